"""A training that logs for TensorBoard, interrupted and gone on with."""

import os
import signal

import pytest

import train
from cosa.core.errors import UserError
from cosa.cotrain import CoTraining
from cosa.training import tensorboard
from cosa.training.run_folder import RunFolder
from tests.helpers.tiny import update_that_acts
from tests.helpers.training import configure, lines


def shown(run, part):
    """What TensorBoard shows of a part of a run: tag -> [(step, value)], and pictures' steps."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(run.tensorboard / part), size_guidance={"images": 0})
    found.Reload()
    tags = found.Tags()
    return ({tag: [(event.step, event.value) for event in found.Scalars(tag)]
             for tag in tags["scalars"]},
            {tag: [event.step for event in found.Images(tag)] for tag in tags["images"]})


def test_what_is_logged_and_what_is_taken_back(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    run = RunFolder(tmp_path / "runs" / "tiny")
    config = configure(tmp_path, train={
        "iterations": 8, "evaluate_every": 4, "checkpoint_every": 4, "tensorboard": True,
        "checkpoint_minutes": 0})

    def end():  # as a kill does: without a checkpoint of what was logged since the last one
        raise KeyboardInterrupt

    monkeypatch.setattr(CoTraining, "update_assignment", update_that_acts(7, end))
    with pytest.raises(KeyboardInterrupt):
        train.main([config])
    monkeypatch.undo()
    assert [step for step, _ in shown(run, "training")[0]["training/loss"]] == [1, 2, 3, 4, 5, 6]
    assert train.main(["--resume", str(run.path)]) == 0
    assert train.main(["--resume", str(run.path)]) == 0  # makes the last evaluation again

    scalars, _ = shown(run, "training")
    assert "training/seconds" not in scalars
    for key, name in (("loss", "training/loss"), ("cls", "training/cls"), ("lr", "training/lr")):
        logged = [(line["iteration"], line[key]) for line in lines(run)]
        assert [step for step, _ in scalars[name]] == [*range(1, 9)], "each once"
        assert [value for _, value in scalars[name]] == pytest.approx(
            [value for _, value in logged], rel=1e-6)
    scalars, images = shown(run, "evaluations")
    evaluations = run.read_evaluations()
    assert [(step, pytest.approx(value)) for step, value in scalars["val/miou"]] == [
        (scores["iteration"], scores["miou"]) for scores in evaluations]
    assert "val_iou/background" in scalars and "test/miou" in scalars
    assert "val/images" not in scalars
    panels = [steps for tag, steps in images.items() if tag.startswith("val_panels/")]
    assert panels == [[4, 8]] * 2
    assert sum(tag.startswith("test_panels/") for tag in images) == 2


def test_without_the_package_one_sentence_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    config = configure(tmp_path, train={"iterations": 2, "tensorboard": True})
    with pytest.raises(UserError, match="train.tensorboard needs .*pip install tensorboard, or"):
        train.main([config])
    assert not (tmp_path / "runs").exists()


def test_by_default_there_is_none(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "runs" / "tiny")
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    stop = update_that_acts(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(CoTraining, "update_assignment", stop)
    assert train.main([configure(tmp_path)]) == 128 + signal.SIGINT
    assert run.last.exists() and not run.tensorboard.exists()
