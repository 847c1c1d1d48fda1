"""The configurations that come along are usable, and say what the paper says."""

import pytest

from cosa.config import load_config, settled
from cosa.data import coco, voc
from tests.helpers.tiny import ROOT

SHIPPED = (
    "demo", "voc", "coco", "custom", "photographs", "photographs_regularizers", "photographs_vit",
)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_load(name):
    config = load_config(ROOT / f"configs/{name}.yaml")
    assert config.name == name
    config = settled(config, 311)
    assert config.method.cls_iterations < config.train.iterations


def test_encoder_of_the_demo_is_included():
    assert (ROOT / load_config(ROOT / "configs/demo.yaml").model.weights).exists()


def test_all_shipped_configurations_are_tested():
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == set(SHIPPED)


@pytest.mark.parametrize("name, classes", [("voc", voc.CLASSES), ("coco", coco.CLASSES)])
def test_coexistence_classes_are_classes(name, classes):
    chosen = load_config(ROOT / f"configs/{name}.yaml").evaluate.coexistence_classes
    assert chosen and set(chosen) <= set(classes)


def test_configurations_hold_the_values_of_the_paper():
    config = load_config(ROOT / "configs/voc.yaml")
    loss, method = config.loss, config.method
    assert (loss.cls, loss.cls_aux, loss.c2s, loss.c2s_aux) == (1, 1, 0.1, 0.1)
    assert (loss.s2c, loss.csc) == (0.05, 0.1)
    assert (method.perplexity_alpha, method.perplexity_beta, method.temperature) == (0.8, 1, 0.01)
    assert (method.csc_epsilon, config.threshold.queue_length) == (1, 100)
    assert (config.teacher.momentum, config.optimizer.lr) == (0.9994, 6e-5)
    assert (config.augment.crop_size, config.train.iterations, config.train.batch_size) == (
        448, 32000, 4
    )
    longer = load_config(ROOT / "configs/coco.yaml")
    assert (longer.train.iterations, longer.train.batch_size) == (60000, 8)
    assert longer.method.cls_iterations == longer.method.s2c_start == 10000
