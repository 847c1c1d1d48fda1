"""The regularizers in the training step: switched on, mixed, saved. Each has its own test file."""

import dataclasses
import itertools
import json

import pytest
import torch

import cosa
import train
from cosa.checkpoint import read
from cosa.config import Config, from_dict, load_config, to_dict
from cosa.core.device import full_precision
from cosa.core.errors import UserError
from cosa.cotrain import CoTraining
from cosa.data import build_dataset
from cosa.data.batches import to_device
from cosa.data.loader import TrainingViews, training_loader
from cosa.data.partners import PartnerViews
from cosa.network import NetworkOutput
from cosa.regularizers.registry import REGULARIZERS
from cosa.training.build import choose_stream
from cosa.training.optimizer import build_optimizer
from cosa.training.run_folder import RunFolder
from tests.helpers import cotraining as tiny_cotraining
from tests.helpers.cotraining import ON
from tests.helpers.tiny import SIZE, tiny_tree, write_yaml

PAIRS = list(itertools.combinations(REGULARIZERS, 2))


def build(regularizers, seed=0, **sections):
    return tiny_cotraining.build(seed=seed, classes=7, regularizers=regularizers, **sections)


@pytest.fixture(scope="module")
def batch():
    """Eight scenes with the partners that CSD asks for."""
    config = from_dict(tiny_tree(data={"scenes_train": 60}))
    loader = training_loader(
        build_dataset(config.data, "train"), batch_size=8, seed=1, iterations=1, workers=0,
        stream=PartnerViews, **to_dict(config.augment),
    )
    (only,) = loader
    assert (only["partner_class"] >= 0).any() and (only["partner_class"] < 0).any()
    return to_device(only, "cpu", build({}).online.mean)


# Configuration


def test_every_section_is_a_regularizer_and_off_by_default():
    sections = {field.name for field in dataclasses.fields(Config().regularizers)}
    assert sections == set(REGULARIZERS)
    for name in sections:
        options = getattr(Config().regularizers, name)
        assert (options.weight, options.start) == (0.0, 0), name


def test_nothing_is_built_or_computed_at_weight_0(batch):
    cotraining = build({name: {"weight": 0.0} for name in REGULARIZERS})
    assert not cotraining.regularizers and not cotraining.active_regularizers(10**6)
    assert choose_stream(from_dict(tiny_tree())) is TrainingViews
    _, terms = cotraining.step(batch, 11)
    assert set(terms) == {"cls", "cls_aux", "c2s", "c2s_aux", "s2c", "csc"}


@pytest.mark.parametrize("override, words", [
    ("regularizers.fls.weight=1", "regularizers.fsl"),
    ("regularizers.fsl.wait=1", "regularizers.fsl.weight"),
    ("regularizers.isl.weight=1.5", "weight"),
    ("regularizers.csd.weight=-1", "weight"),
    ("regularizers.plca.weight=x", "regularizers.plca.weight"),
    ("regularizers.fsl=0.1", "regularizers.fsl"),
    ("regularizers.fsl.sigma=1e-30", "sigma"),
    ("regularizers.csd={weight: 1, foreground: 0, background: 0}", "set weight to 0 instead"),
])
def test_mistakes_in_the_section_are_named(override, words):
    with pytest.raises(UserError, match=words):
        load_config(None, [override])


# The step


@pytest.mark.parametrize("name", REGULARIZERS)
def test_each_adds_its_terms_and_moves_the_network(batch, name):
    off = {"cls": 0.0, "cls_aux": 0.0, "c2s": 0.0, "c2s_aux": 0.0, "s2c": 0.0, "csc": 0.0}
    weights = {"weight": 1.0} if name == "isl" else ON[name]  # all of the classification, then
    cotraining = build({name: weights}, loss=off | ({"cls": 1.0} if name == "isl" else {}))
    torch.manual_seed(5)
    total, terms = cotraining.step(batch, 6)
    (regularizer,) = cotraining.active_regularizers(6)
    assert set(terms) == set(regularizer.weights())
    assert all(term == name or term.startswith(f"{name}_") for term in terms)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    weighted = sum(weight * terms[term] for term, weight in regularizer.weights().items())
    torch.testing.assert_close(total.detach(), weighted)
    total.backward()
    moved = [p.grad for p in cotraining.online.parameters() if p.grad is not None]
    assert any(gradient.any() for gradient in moved)
    assert all(gradient.isfinite().all() for gradient in moved)
    assert all(p.grad is None for p in cotraining.assignment.parameters())


@pytest.mark.parametrize("names", [*PAIRS, tuple(REGULARIZERS)], ids="+".join)
def test_any_mix_runs_a_step(batch, names):
    cotraining = build({name: ON[name] for name in names})
    assert set(cotraining.regularizers) == set(names)
    total, terms = cotraining.step(batch, 6)
    assert total.isfinite() and all(term.isfinite() for term in terms.values())
    for regularizer in cotraining.regularizers.values():
        assert set(regularizer.weights()) <= set(terms)
    total.backward()
    gradients = [p.grad for p in cotraining.online.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("side", [40, 56])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_odd_grids_and_small_batches(batch, size, side, bfloat16):
    few = {key: value[:size] for key, value in batch.items()}
    for key in ("weak", "strong", "partner"):
        few[key] = torch.nn.functional.interpolate(few[key], (side, side), mode="bilinear")
    for key in ("valid", "partner_valid"):
        few[key] = torch.ones(size, side, side, dtype=torch.bool)
        few[key][:, :, side // 2 + 3 :] = False
    cotraining = build(ON)
    if bfloat16:
        cotraining.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    total, terms = cotraining.step(few, 6)
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())
    total.backward()
    assert all(p.grad.isfinite().all() for p in cotraining.online.parameters()
               if p.grad is not None)


@pytest.mark.cuda
def test_the_step_on_cuda_is_that_on_the_cpu(batch):
    on = {name: options for name, options in ON.items() if name not in ("isl", "plda")}
    on["plda"] = ON["plda"] | {"dropout": 0.0}  # the draws of the devices differ
    results = []
    for device in ("cpu", "cuda"):
        cotraining = build(on)
        for module in (cotraining.online, cotraining.assignment, cotraining.regularizers):
            module.to(device)
        torch.manual_seed(5)
        moved = {key: value.to(device) for key, value in batch.items()}
        with full_precision():
            results.append(cotraining.step(moved, 6)[1])
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name].cpu(), value, rtol=2e-2, atol=1e-4, msg=name)


def test_a_regularizer_changes_no_other_term(batch):
    plain, mixed = build({}), build(ON | {"isl": {"weight": 0.0}})
    _, before = plain.step(batch, 6)
    _, after = mixed.step(batch, 6)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


def test_terms_start_when_they_are_told_and_never_before_their_targets():
    cotraining = build(ON | {"fsl": {"weight": 1.0, "start": 5}}, method={"cls_iterations": 3})

    def started(iteration):
        active = cotraining.active_regularizers(iteration)
        return {name for name, r in cotraining.regularizers.items() if r in active}

    assert started(0) == started(2) == {"isl"}
    assert started(3) == started(4) == set(REGULARIZERS) - {"fsl"}
    assert started(5) == set(REGULARIZERS)


def test_isl_replaces_a_part_of_the_classification_loss(batch):
    cotraining = build({"isl": {"weight": 0.25, "start": 2}}, loss={"cls_aux": 3.0})
    assert cotraining.active_terms(1)["cls"] == 1.0
    weights = cotraining.active_terms(2)
    assert (weights["cls"], weights["cls_aux"]) == (0.75, 2.25)
    assert cotraining.regularizers["isl"].weights() == {"isl": 0.25, "isl_aux": 0.75}
    total, terms = cotraining.step(batch, 2)
    assert set(terms) == {"cls", "cls_aux", "isl", "isl_aux"} | set(weights)
    alone = build({"isl": {"weight": 0.25}}, loss={"cls_aux": 0.0}).regularizers["isl"]
    assert alone.weights() == {"isl": 0.25}, "what is off has no share to replace"
    assert set(build({"isl": {"weight": 1.0}}).active_terms(0)).isdisjoint({"cls", "cls_aux"})


def test_no_partner_in_the_batch_is_no_mistake(batch):
    single = {key: value[batch["partner_class"] < 0] for key, value in batch.items()}
    total, terms = build({"csd": ON["csd"], "plca": ON["plca"]}).step(single, 6)
    assert total.isfinite() and terms["csd_foreground"] == terms["csd_background"] == 0


def test_one_image_without_a_partner_is_told_once(batch, capsys):
    one = {key: value[:1] for key, value in batch.items() if not key.startswith("partner")}
    cotraining = build({"plca": ON["plca"]})
    for iteration in (6, 7):
        _, terms = cotraining.step(one, iteration)
    assert terms["plca_feature"] == terms["plca_lsr"] == 0
    assert capsys.readouterr().err.count("plca: a batch of one image") == 1


def test_all_padding_counts_nowhere(batch):
    empty = batch | {"valid": torch.zeros_like(batch["valid"])}
    total, terms = build(ON).step(empty, 6)
    assert total.isfinite() and all(term.isfinite() for term in terms.values())
    assert {name for name, term in terms.items() if term != 0} == {"cls", "cls_aux"}
    total.backward()


def test_the_views_in_rgb_are_the_images():
    pixels = torch.randint(256, (2, 4, 6, 3), dtype=torch.uint8)
    whole = {"weak": pixels, "valid": torch.ones(2, 4, 6, dtype=torch.bool)}
    seen = to_device(whole, "cpu", torch.zeros(3, 1, 1))
    context = tiny_cotraining.context_of(seen, NetworkOutput(*[None] * 6))
    seen = context.batch["weak"].permute(0, 2, 3, 1)
    torch.testing.assert_close(seen, pixels / 255, atol=1e-6, rtol=0)


# Parameters of their own


def test_parameters_join_the_optimizer_at_the_rate_of_the_heads():
    cotraining = build({"plda": ON["plda"]})
    options = from_dict(tiny_tree()).optimizer
    optimizer = build_optimizer(cotraining.online, options, cotraining.regularizers)
    groups = {group["name"]: group for group in optimizer.param_groups}
    own = groups["regularizers"]["params"] + groups["regularizers_no_decay"]["params"]
    assert {id(p) for p in own} == {id(p) for p in cotraining.regularizers.parameters()}
    assert groups["regularizers"]["lr_scale"] == options.head_lr_factor
    assert groups["regularizers_no_decay"]["weight_decay"] == 0
    names = {g["name"] for g in build_optimizer(cotraining.online, options).param_groups}
    assert "regularizers" not in names


def run_to_the_end(folder, regularizers, **sections):
    folder.mkdir(parents=True)
    tree = tiny_tree(folder / "runs", regularizers=regularizers, **sections)
    assert train.main([str(write_yaml(folder / "config.yaml", tree))]) == 0
    return RunFolder(folder / "runs" / "tiny")


def without_time(run):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_resumed_run_with_all_of_them_is_exact(tmp_path, monkeypatch):
    sections = {"data": {"scenes_train": 60}, "train": {"checkpoint_every": 7}}
    whole = run_to_the_end(tmp_path / "whole", ON, **sections)
    original = CoTraining.step

    def step(self, batch, iteration):
        if iteration == 9:
            raise KeyboardInterrupt
        return original(self, batch, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(CoTraining, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run_to_the_end(tmp_path / "cut", ON, **sections)
    cut = RunFolder(tmp_path / "cut" / "runs" / "tiny")
    assert read(cut.last)["state"]["iteration"] == 7
    assert train.main(["--resume", str(cut.path)]) == 0

    assert without_time(cut) == without_time(whole)
    ours, theirs = read(cut.last), read(whole.last)
    assert ours["regularizers"].keys() == theirs["regularizers"].keys() != set()
    for part in ("online", "assignment", "regularizers"):
        for key, value in theirs[part].items():
            assert torch.equal(ours[part][key], value), key


def test_checkpoints_load_without_their_regularizers(tmp_path):
    run = run_to_the_end(tmp_path / "a", {"plda": ON["plda"]}, train={"iterations": 5})
    assert "regularizers" not in read(run.best)
    for file in (run.best, run.last):
        network = cosa.load(str(file))
        assert not any("plda" in key for key in network.state_dict())
        assert network(torch.zeros(1, 3, SIZE, SIZE)).logits.shape == (1, 7)
    with pytest.raises(UserError, match="does not fit this configuration.*regularizers"):
        train.main(["--resume", str(run.path), "regularizers.plda.weight=0"])


def test_no_classifier_of_domains_without_its_loss():
    cotraining = build({"plda": {"weight": 1.0, "adversarial": 0.0}})
    assert not list(cotraining.regularizers.parameters())


def test_a_checkpoint_from_before_there_were_regularizers_resumes():
    saved, resumed = build({}), build({}, seed=1)
    state = saved.state_dict()
    del state["regularizers"]

    def same(network):
        mine, theirs = (getattr(each, network).state_dict() for each in (resumed, saved))
        return all(torch.equal(value, theirs[key]) for key, value in mine.items())

    assert not same("online") and not same("assignment")
    resumed.load_state_dict(state)
    assert same("online") and same("assignment")
