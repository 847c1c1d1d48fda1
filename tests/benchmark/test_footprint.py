import pytest
import torch

from cosa.benchmark.timings import footprint
from cosa.benchmark.timings.footprint import LiveMemory
from cosa.config import from_dict
from cosa.core.errors import UserError
from tests.helpers.tiny import tiny_tree, write_yaml


def tiny(**train):
    return from_dict(tiny_tree(device="cpu", threshold={"dynamic": False},
                               train={"iterations": 12, "batch_size": 8, **train}))


def test_what_lives_at_once_is_counted_once():
    with LiveMemory() as live:
        first = torch.zeros(1000)
        view = first[:10].view(2, 5)
        second = first + 1
        assert live.now == 8000
        del second
        third = torch.zeros(250)
        assert (live.now, live.highest) == (5000, 8000)
        del first
        assert live.now == 5000, "the view holds on to it"
        del view, third
        assert (live.now, live.highest) == (0, 8000)


def test_operations_are_those_that_compute():
    with LiveMemory() as live:
        images = torch.ones(2, 3)
        assert live.operations == 1
        images.t().reshape(6)[:2].detach()
        assert live.operations == 2, "reshape copies what is transposed"
        images.add_(1).relu()
        assert live.operations == 4


def test_frozen_weights_are_cast_once_for_all_scales_of_the_teacher():
    def operations(bf16, scales):
        config = from_dict(tiny_tree(device="cpu", threshold={"dynamic": False},
                                     teacher={"scales": scales}))
        return footprint.footprint(config, 4, bf16)["operations"]

    def more(bf16):
        return operations(bf16, [1.0, 0.5]) - operations(bf16, [1.0])

    # Of a block: the weights of qkv, proj, fc1 and fc2 with their biases.
    blocks = tiny_tree()["model"]["encoder_options"]["depth"]
    assert more(True) - more(False) < 8 * blocks, "activations alone are cast for each scale"


def test_what_is_kept_are_two_networks_two_moments_and_the_batch():
    config = tiny()
    found = footprint.footprint(config, 4, bf16=False)
    cotraining = footprint.build_cotraining(config, 4, torch.device("cpu"), footprint.nullcontext)
    weights = sum(p.nbytes for p in cotraining.online.parameters())
    batch = sum(value.nbytes for value in footprint.imagined_batch(config, 4).values())
    assert found["kept"] == pytest.approx(4 * weights + batch, rel=0.01)
    assert found["peak"] > found["kept"] + weights, "the gradients are missing"


def test_options_for_small_cards_need_less():
    plain = footprint.footprint(tiny(), 4, bf16=False)["peak"]
    for options in ({"activation_checkpointing": True}, {"accumulate": 4}):
        assert footprint.footprint(tiny(**options), 4, bf16=False)["peak"] < 0.9 * plain, options


@pytest.mark.parametrize("section, words", [
    ({"regularizers": {"fsl": {"weight": 0.1}}}, "regularizers"),
    ({"augment": {"crop_size": 50}}, "augment.crop_size=50"),
])
def test_what_cannot_be_counted_is_a_sentence(section, words):
    with pytest.raises(UserError, match=words):
        footprint.footprint(from_dict(tiny_tree(device="cpu", **section)), 4, bf16=False)


def test_the_command_says_a_sentence(tmp_path, capsys):
    path = write_yaml(tmp_path / "tiny.yaml", tiny_tree(tmp_path / "runs"))
    assert footprint.main(["--config", str(path), "train.batch_size=2"]) == 0
    told = capsys.readouterr().out
    assert "tiny, bf16, batches of 2: a step needs 0.0" in told and "GiB at its peak" in told
