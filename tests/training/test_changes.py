"""What a resumed run says of the options that it changes."""

import pytest

from cosa.config import from_dict, load_config, to_dict
from cosa.core.errors import UserError
from cosa.training.changes import told
from tests.helpers.tiny import tiny_tree, write_yaml

SAVED = to_dict(from_dict(tiny_tree(optimizer={"lr": 1e-3, "warmup_iterations": 2, "power": 1.0})))


def now(tmp_path, *overrides):
    return load_config(write_yaml(tmp_path / "now.yaml", SAVED), overrides)


def test_nothing_is_said_of_what_stays(tmp_path):
    assert told(SAVED, now(tmp_path), 4) == ""


def test_a_longer_schedule_moves_the_learning_rate(tmp_path):
    """1 - 6/12 of the peak, or 1 - 6/24."""
    assert told(SAVED, now(tmp_path, "train.iterations=24"), 6) == (
        "going on at iteration 6 with train.iterations=24 instead of 12; the learning rate is "
        "0.00075, which was 0.0005")


def test_a_finished_run_that_goes_on_leaves_the_end_of_its_schedule(tmp_path):
    assert told(SAVED, now(tmp_path, "train.iterations=24"), 12).endswith(
        "; the learning rate is 0.0005, which was 8.33e-05")


def test_all_options_are_told_and_the_rate_only_if_it_changes(tmp_path):
    assert told(SAVED, now(tmp_path, "loss.csc=0", "teacher.scales=[1.0, 0.5]",
                           "model.encoder_options.depth=4", "method.s2c_start=7"), 6) == (
        "going on at iteration 6 with teacher.scales=(1.0, 0.5) instead of (1.0,), loss.csc=0.0 "
        "instead of 0.1, method.s2c_start=7 instead of 4")
    assert "optimizer.lr=0.002 instead of 0.001; the learning rate is 0.001, which was 0.0005" in (
        told(SAVED, now(tmp_path, "optimizer.lr=2e-3"), 6))


def test_checkpoints_of_other_versions_are_compared_by_what_both_have(tmp_path):
    older = {**SAVED, "gone": 1, "train": {**SAVED["train"], "gone": {"x": 2}}}
    for key in ("passes", "log_every"):
        del older["train"][key]
    del older["model"]["class_offset"]
    assert told(older, now(tmp_path), 4) == "going on at iteration 4 with train.log_every=1 " \
                                            "instead of 50"


@pytest.mark.parametrize("saved", [{**SAVED, "train": 3}, {**SAVED, "seed": "x"}, 5])
def test_what_is_no_configuration_is_an_error(tmp_path, saved):
    with pytest.raises(UserError, match="the checkpoint's configuration"):
        told(saved, now(tmp_path), 4)
