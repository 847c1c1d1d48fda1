import json

import pytest
from conftest import tiny_tree

from cosa.config import from_dict, load_config
from cosa.errors import UserError
from cosa.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "runs" / "one")


def test_create_writes_the_whole_configuration(run):
    config = from_dict(tiny_tree())
    run.create(config)
    assert load_config(run.config) == config
    assert run.metrics.read_text() == ""


def test_create_refuses_a_folder_with_a_checkpoint_and_leaves_it(run):
    run.create(from_dict(tiny_tree()))
    run.last.write_bytes(b"precious")
    run.log({"iteration": 1})
    with pytest.raises(UserError, match="already holds a run.*--resume"):
        run.create(from_dict(tiny_tree(seed=9)))
    assert run.last.read_bytes() == b"precious"
    assert run.metrics.read_text() and load_config(run.config).seed == 3


def test_create_starts_anew_where_nothing_was_saved(run):
    run.create(from_dict(tiny_tree()))
    run.log({"iteration": 1})
    run.create(from_dict(tiny_tree(seed=9)))
    assert run.metrics.read_text() == "" and load_config(run.config).seed == 9


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run folder.*output="):
        RunFolder(tmp_path / "file" / "run").create(from_dict(tiny_tree()))


def test_reopen_applies_overrides(run):
    run.create(from_dict(tiny_tree()))
    run.last.write_bytes(b"")
    assert run.reopen(["train.iterations=99", "device=cpu"]).train.iterations == 99


@pytest.mark.parametrize("missing", ["config", "last"])
def test_reopen_needs_configuration_and_checkpoint(run, missing):
    run.create(from_dict(tiny_tree()))
    run.last.write_bytes(b"")
    getattr(run, missing).unlink()
    with pytest.raises(UserError, match="holds no run to resume"):
        run.reopen([])


def test_metrics_after_the_checkpoint_are_forgotten(run):
    run.create(from_dict(tiny_tree()))
    for iteration in (1, 2, 3, 4):
        run.log({"iteration": iteration, "loss": 0.5})
    with open(run.metrics, "a") as file:
        file.write('{"iteration": 2, "lo')  # the process died while writing
    run.forget_after(2)
    run.log({"iteration": 3})
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [record["iteration"] for record in records] == [1, 2, 3]


def test_summary(run):
    run.create(from_dict(tiny_tree()))
    run.write_summary({"miou": 0.5, "iou": {"boat": None}})
    assert json.loads(run.summary.read_text()) == {"miou": 0.5, "iou": {"boat": None}}
