"""Passes over the images and shares of the training become iterations."""

import re

import pytest

from cosa.config import Config, load_config, settled, to_yaml
from cosa.config.schedule import beyond, is_settled, moments, settings
from cosa.core.errors import UserError
from tests.helpers.tiny import ROOT, write_yaml


def schedule(name, images):
    config = settled(load_config(ROOT / f"configs/{name}.yaml"), images)
    assert config.train.passes == 0 and is_settled(config)
    return (config.train.iterations, config.method.cls_iterations, config.method.s2c_start,
            config.optimizer.warmup_iterations, config.train.evaluate_every)


@pytest.mark.parametrize("name, images, expected", [
    # The numbers that were chosen by measurement, and those of the paper.
    ("photographs", 311, (540, 180, 330, 20, 270)),
    ("photographs_regularizers", 311, (540, 180, 330, 20, 270)),
    ("custom", 10_582, (32_000, 6000, 6000, 1500, 2000)),
    # Images times passes over the batch, and shares of that.
    ("photographs", 100, (174, 58, 106, 6, 87)),
    ("photographs", 100_000, (173_667, 57_883, 106_128, 6426, 86_834)),
    ("custom", 100, (302, 57, 57, 14, 19)),
])
def test_shipped_configurations_fit_every_number_of_images(name, images, expected):
    assert schedule(name, images) == expected


def test_the_start_of_a_regularizer_is_a_share_as_well():
    config = settled(load_config(ROOT / "configs/photographs_regularizers.yaml"), 311)
    assert (config.regularizers.fsl.start, config.train.checkpoint_every) == (225, 270)
    assert (config.train.batch_size, config.train.log_every) == (6, 20)


def test_commands_of_the_documentation_are_accepted():
    text = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^python train.py (.*)$", text, re.MULTILINE)
    assert len(commands) == 6
    for words in map(str.split, commands):
        path = ROOT / words.pop(0) if words[0].endswith(".yaml") else None
        words = words[2:] if words[0] == "--resume" else words
        assert is_settled(settled(load_config(path, words), 311)), words


def test_shares_are_of_the_iterations_where_there_are_no_passes():
    given = load_config(None, ["train.iterations=10", "method.s2c_start=0.74",
                               "train.log_every=0.001", "train.evaluate_every=0.0",
                               "optimizer.warmup_iterations=3e-1"])
    assert not is_settled(given)
    config = settled(given, 99)
    assert (config.train.iterations, config.method.s2c_start) == (10, 7)
    assert (config.train.log_every, config.train.evaluate_every) == (1, 0)
    assert config.optimizer.warmup_iterations == 3 and config.method.cls_iterations == 6000
    assert settled(config, 3) == config, "the number of images is of no account any more"
    assert load_config(None, ["train.iterations=10", *settings(config, given)]) == config


def test_the_defaults_are_settled():
    assert is_settled(Config()) and settled(Config(), 7) == Config()


def test_all_moments_of_a_training_are_in_the_documentation():
    text = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    keys = [re.sub(r"regularizers\.\w+", "regularizers.*", key) for key, _ in moments(Config())]
    assert len(keys) == 12
    for key in {*keys, "train.passes", "data.balance"}:
        assert f"`{key}`" in text, key


def test_what_a_short_training_never_comes_to_is_known():
    short = ["train.iterations=100", "method.cls_iterations=50", "method.s2c_start=100",
             "optimizer.warmup_iterations=99"]
    assert beyond(load_config(None, short)) == ["method.s2c_start=100"]
    assert beyond(load_config(None, [*short, "loss.s2c=0"])) == []
    assert beyond(load_config(None, [*short, "loss.s2c=0", "regularizers.fsl.start=200"])) == []
    config = settled(load_config(None, ["train.passes=1", "regularizers.fsl.start=200",
                                        "regularizers.fsl.weight=1"]), 400)
    assert beyond(config) == ["method.cls_iterations=6000", "method.s2c_start=6000",
                              "regularizers.fsl.start=200", "optimizer.warmup_iterations=1500"]
    for path in ROOT.glob("configs/*.yaml"):
        assert beyond(settled(load_config(path), 40)) == [], path


def test_there_is_one_iteration_at_least_and_not_too_many():
    few = load_config(None, ["train.passes=0.001"])
    assert settled(few, 3).train.iterations == 1
    with pytest.raises(UserError, match=r"train.passes=1e\+06 over 1000 .* train.iterations is 2500"
                                        r"00000: it must lie in 1..100000000"):
        settled(load_config(None, ["train.passes=1e6"]), 1000)


@pytest.mark.parametrize("overrides, expected", [
    (["train.passes=3"], (3, 32000)), (["train.iterations=7"], (0, 7)),
    (["train.passes=3", "train.iterations=7"], (0, 7)),
    (["train.iterations=7", "train.passes=3"], (3, 32000)),
    (["train.iterations=7", "train.passes=0"], (0, 7)),
])
def test_of_passes_and_iterations_the_last_one_counts(tmp_path, overrides, expected):
    for base in ({"passes": 5}, {"iterations": 50}, {"passes": 0, "iterations": 50}):
        path = write_yaml(tmp_path / "base.yaml", {"train": base})
        train = load_config(path, overrides).train
        assert (train.passes, train.iterations) == expected
    child = {key.split(".")[1]: int(value) for key, value in
             (item.split("=") for item in overrides[-1:])}
    if child != {"passes": 0}:
        write_yaml(tmp_path / "base.yaml", {"train": {"passes": 5}})
        path = write_yaml(tmp_path / "child.yaml", {"base": "base.yaml", "train": child})
        train = load_config(path).train
        assert (train.passes, train.iterations) == expected


def test_a_file_says_the_length_once(tmp_path):
    path = write_yaml(tmp_path / "both.yaml", {"train": {"passes": 5, "iterations": 50}})
    with pytest.raises(UserError, match="both.yaml sets train.passes and train.iterations"):
        load_config(path)
    config = load_config(None, ["train.passes=2.5", "method.s2c_start=0.25"])
    (tmp_path / "a.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "a.yaml") == config


@pytest.mark.parametrize("value", ["1.0", "6000.0", "-1", "-0.5", "1000000001", "1e9", "'7'"])
def test_what_is_neither_iterations_nor_a_share(value):
    with pytest.raises(UserError, match=r"method.s2c_start is .*: it must be a whole number of "
                                        r"iterations in 0..1000000000, or a share"):
        load_config(None, [f"method.s2c_start={value}"])


@pytest.mark.parametrize("key", ["train.log_every", "train.checkpoint_every"])
@pytest.mark.parametrize("value", ["0", "0.0"])
def test_what_is_done_again_and_again_has_a_distance(key, value):
    with pytest.raises(UserError, match=f"{key} is {value}: .* in 1..1000000000"):
        load_config(None, [f"{key}={value}"])
