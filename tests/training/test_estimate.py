"""What cannot fit is refused before it is made, by the key that asks for it."""

import pytest
import torch

from cosa.config import from_dict, load_config
from cosa.core import distributed, memory
from cosa.core.errors import UserError
from cosa.training.build import build_cotraining
from cosa.training.estimate import check_memory, check_scenes, count_weights
from cosa.training.optimizer import build_optimizer
from tests.helpers.tiny import CNN, tiny_tree, write_yaml

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """A machine with 2 GiB."""
    monkeypatch.setattr(memory, "available_memory", lambda device=None: 2 * 2**30)


@pytest.mark.parametrize("overrides, told", [
    (["model.decoder_width=65536"], "networks of .* million weights.*model.decoder_width=65536"),
    (["model.encoder_options.embed_dim=4096"], "networks of .* smaller model.encoder"),
    (["model.encoder_options.img_size=4096", "model.encoder_options.patch_size=1",
      "augment.crop_size=32"], "networks"),
    (["regularizers.plda.weight=1", "regularizers.plda.width=65536",
      "regularizers.plda.hidden=65536"], "regularizers of .* lower regularizers.plda.width"),
    (["train.batch_size=65536"], "131072 views .* 48 pixels a side take at least 3.4 GiB, and "
                                 "this machine has 2.0 GiB for them: lower train.batch_size"),
    (["augment.crop_size=8192"], "8 views of training images of 8192 pixels a side"),
    (["teacher.scales=[16]", "augment.crop_size=512"], "4 images for the teacher of 8192 pixels"),
    (["evaluate.image_size=16384"], "lower evaluate.batch_size or evaluate.image_size"),
])
def test_what_cannot_fit_is_refused(small, tmp_path, overrides, told):
    config = configured(tmp_path, *overrides)
    with pytest.raises(UserError, match=told):
        check_memory(config, 7, 1000, CPU)


def configured(tmp_path, *overrides):
    return load_config(write_yaml(tmp_path / "a.yaml", tiny_tree()), overrides)


def test_the_shipped_configurations_are_not_refused(small):
    for name in ("voc", "demo", "photographs"):
        check_memory(load_config(f"configs/{name}.yaml"), 20, 1449, CPU)


@pytest.mark.parametrize("model", [{}, CNN | {"freeze_layers": 2, "freeze_batch_norm": False}])
def test_weights_are_counted_as_they_are(model):
    config = from_dict(tiny_tree(model=model, regularizers={"plda": {"weight": 1.0}}))
    cotraining = build_cotraining(config, 7, CPU, torch.no_grad, pretrained=False)
    (trained, others), (own, _) = count_weights(config, 7)
    assert trained + others == sum(t.numel() for t in cotraining.online.state_dict().values())
    assert own == sum(p.numel() for p in cotraining.regularizers.parameters()) > 0
    groups = build_optimizer(cotraining.online, config.optimizer).param_groups
    assert trained == sum(p.numel() for group in groups for p in group["params"])


def test_an_encoder_that_cannot_be_counted_is_not_refused(small, monkeypatch):
    def build(*_):
        raise NotImplementedError("Cannot copy out of meta tensor")

    monkeypatch.setattr("cosa.checkpoint.build_network", build)
    assert count_weights(from_dict(tiny_tree()), 7) == ((0, 0), (0, 0))


def test_processes_and_parts_share_a_batch(small, tmp_path, monkeypatch):
    config = configured(tmp_path, "train.batch_size=65536")
    monkeypatch.setattr(distributed, "world", lambda: 4)
    check_memory(config, 7, 1000, CPU)


def test_generated_images_are_counted_with_those_of_the_final_scores(small, tmp_path):
    config = configured(tmp_path, "data.scenes_test=100000", "data.scenes_size=1024")
    with pytest.raises(UserError, match="100018 generated .*1024.* GiB.*lower data.scenes_train"):
        check_scenes(config)
    check_scenes(configured(tmp_path))
