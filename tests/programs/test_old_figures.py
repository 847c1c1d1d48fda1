"""The demo's first iterations yield the losses of the program before it was rebuilt.

The figures are those of revision 3733e8e, which normalised images itself, with ImageNet's mean and
deviation, and summed its terms in other places: what is rebuilt since then is the same method.
"""

import pytest

from cosa.config import load_config, to_dict
from cosa.data import build_dataset
from cosa.data.batches import to_device
from cosa.data.loader import training_loader
from cosa.training.build import build_cotraining, build_step, prepare
from cosa.training.optimizer import build_optimizer, optimizer_step
from tests.helpers.tiny import ROOT

DEMO = [
    1.448300, 1.420814, 1.364173, 1.339687, 1.304303, 1.166697, 1.165159, 1.200699, 1.036982,
    1.041531, 0.881113, 1.162267, 1.117051, 1.156326, 1.208692, 1.245428, 1.166068, 1.084678,
    0.912758, 1.011354,
]
"""The loss of the first 20 iterations, all of which are of classification alone."""

ALL_TERMS = [5.669133, 5.570996, 5.252801, 4.887846]
"""The same without a warm-up: each iteration has all terms. More of them show what becomes of
rounding: the thresholds are fitted to histograms."""

FIRST = {"cls": 0.723503, "cls_aux": 0.724797, "c2s": 1.997413, "c2s_aux": 1.988128,
         "s2c": 0.705567, "csc": 1.647346}
"""The terms of the first of them."""

XI = 0.488778, 0.475902
"""And its thresholds."""


@pytest.fixture(scope="module")
def demo():
    """The demo's configuration with overrides, and its training images."""

    def load(*overrides):
        return load_config(ROOT / "configs/demo.yaml", ["device=cpu", *overrides])

    return load, build_dataset(load().data, "train")


def iterations(config, dataset, count):
    """Loss and terms of each iteration, and the thresholds after it."""
    device, autocast = prepare(config)
    cotraining = build_cotraining(config, len(dataset.classes), device, autocast)
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
    assert terms == pytest.approx(FIRST, rel=2e-6)
    assert xi == pytest.approx(XI, rel=2e-6)
