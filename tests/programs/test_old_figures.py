"""The demo's first iterations yield the losses of the program before it was rebuilt.

The figures are those of revision 3733e8e, which normalised images itself, with ImageNet's mean and
deviation, and summed its terms in other places: what is rebuilt since then is the same method.
"""

import numpy as np
import pytest
import torch

from cosa.config import load_config, to_dict
from cosa.data import build_dataset
from cosa.data.batches import to_device
from cosa.data.loader import training_loader
from cosa.training.build import build_cotraining, build_step, prepare
from cosa.training.optimizer import build_optimizer, optimizer_step
from tests.helpers.tiny import ROOT

DEMO = [
    1.401535, 1.418535, 1.371428, 1.374391, 1.281854, 1.202536, 1.162946, 1.205130, 1.064278,
    1.018289, 0.894946, 1.146026, 1.183403, 1.144844, 1.184835, 1.285032, 1.178520, 1.072109,
    0.878973, 0.980495,
]
"""The loss of the first 20 iterations, all of which are of classification alone."""

ALL_TERMS = [5.894636, 5.838403, 5.737984, 5.507564]
"""The same without a warm-up: each iteration has all terms. More of them show what becomes of
rounding: the thresholds are fitted to histograms."""

FIRST = {"cls": 0.703153, "cls_aux": 0.698382, "c2s": 2.119349, "c2s_aux": 2.113609,
         "s2c": 0.735720, "csc": 1.865707}
"""The terms of the first of them."""

XI = 0.469224, 0.467957
"""And its thresholds."""


@pytest.fixture(scope="module")
def demo():
    """The demo's configuration with overrides, and its training images."""

    def load(*overrides):
        return load_config(ROOT / "configs/demo.yaml", ["device=cpu", *overrides])

    return load, build_dataset(load().data, "train")


def draw_heads(network):
    """All but the encoder from numpy's numbers: PyTorch's differ from version to version."""
    rng = np.random.default_rng(0)
    for name, parameter in network.named_parameters():
        if not name.startswith("encoder."):
            drawn = 0.02 * rng.standard_normal(parameter.shape)
            parameter.data.copy_(torch.from_numpy(drawn.astype(np.float32)))


def iterations(config, dataset, count):
    """Loss and terms of each iteration, and the thresholds after it."""
    device, autocast = prepare(config)
    cotraining = build_cotraining(config, len(dataset.classes), device, autocast)
    draw_heads(cotraining.online)
    draw_heads(cotraining.assignment.network)
    optimizer, step = build_optimizer(cotraining.online, config.optimizer), build_step(cotraining)
    loader = training_loader(
        dataset, batch_size=config.train.batch_size, seed=config.seed, iterations=count,
        workers=0, **to_dict(config.augment),
    )
    for iteration, batch in enumerate(loader):
        optimizer.zero_grad()
        loss, terms = step(to_device(batch, device, cotraining.online.mean), iteration)
        optimizer_step(optimizer, loss, config.optimizer, iteration, config.train.iterations)
        cotraining.update_assignment(iteration)
        yield loss.item(), {name: term.item() for name, term in terms.items()}, cotraining.xi()


def test_the_first_20_iterations_of_the_demo(demo, monkeypatch):
    monkeypatch.chdir(ROOT)
    load, dataset = demo
    losses = [loss for loss, _, _ in iterations(load(), dataset, 20)]
    assert losses == pytest.approx(DEMO, rel=1e-5)


def test_all_terms_of_the_demo(demo, monkeypatch):
    monkeypatch.chdir(ROOT)
    load, dataset = demo
    config = load("method.cls_iterations=0", "method.s2c_start=0")
    found = list(iterations(config, dataset, len(ALL_TERMS)))
    assert [loss for loss, _, _ in found] == pytest.approx(ALL_TERMS, rel=2e-5)
    _, terms, xi = found[0]
    assert terms == pytest.approx(FIRST, rel=5e-6)
    assert xi == pytest.approx(XI, rel=5e-6)
