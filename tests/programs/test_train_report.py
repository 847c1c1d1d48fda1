"""A training that keeps its report up to date."""

import json
import os
import signal

import pytest

import train
from cosa.cotrain import CoTraining
from cosa.report.reading import read_run
from cosa.training.run_folder import RunFolder
from tests.helpers.reports import assert_inert, parsed
from tests.helpers.tiny import update_that_acts
from tests.helpers.training import configure

pytest.importorskip("matplotlib")

SECTIONS = {"train": {"iterations": 8, "evaluate_every": 4, "report": True, "log_every": 2},
            "data": {"scenes_val": 3, "scenes_test": 9, "name": "scenes", "workers": 0,
                     "scenes_train": 14, "scenes_size": 48}}


def test_the_report_is_there_at_each_evaluation_and_at_the_end(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "runs" / "tiny")
    config, seen = configure(tmp_path, **SECTIONS), []

    def stop():
        seen.append((run.report.read_text(encoding="utf-8"),
                     sorted(path.name for path in run.examples.iterdir())))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CoTraining, "update_assignment", update_that_acts(6, stop))
    assert train.main([config]) == 128 + signal.SIGINT
    monkeypatch.undo()
    [(page, examples)] = seen
    assert_inert(page)
    assert "4 of 8 iterations so far" in parsed(page)[2]
    assert examples and all(name.startswith("00000004-val-") for name in examples)

    assert train.main(["--resume", str(run.path)]) == 0
    text = parsed(run.report.read_text(encoding="utf-8"))[2]
    assert "Trained to the end: 8 iterations" in text and "9 generated test images" in text
    assert "resumed" in text and "1 times, at iteration 6" in text
    for part in ("Confusion matrix", "Confidences in training", "Scores over time", "worst"):
        assert part in text, part
    assert "Not recorded" not in text and "Warning" not in text

    # What was recorded, against what the scores say.
    found = read_run(run.path)
    assert found.problems == []
    details, summary = found.details, json.loads(run.summary.read_text())
    assert (details["iteration"], details["split"], details["images"]) == (8, "test", 9)
    assert sum(details["image_scores"]) == 9 and details["images_of_class"][0] == 9
    confusion = details["confusion"]
    hits, rows = confusion[0][0], sum(confusion[0])
    columns = sum(row[0] for row in confusion)
    assert summary["iou"]["background"] == pytest.approx(hits / (rows + columns - hits))
    pixels = details["confidences"]
    assert sum(pixels["background"]) == rows
    assert sum(pixels["foreground"]) == sum(map(sum, confusion[1:]))
    assert summary["xi"] in pixels["edges"] and sum(details["fitted"]["cam"]) > 0
    examples = sorted(path.name for path in run.examples.iterdir())
    assert examples == sorted(example["file"] for example in details["examples"])
    assert all(name.startswith("00000008-test-") for name in examples)
    kinds = [example["kind"] for example in details["examples"]]
    assert [kinds.count(kind) for kind in ("best", "median", "worst")] == [3, 3, 3]
    best, worst = details["examples"][0]["score"], details["examples"][6]["score"]
    assert best >= worst
    assert [start["iteration"] for start in found.starts] == [0, 6]
    assert found.starts[0]["versions"]["PyTorch"] and found.starts[0]["processes"] == 1


def test_without_the_library_the_training_goes_on_and_says_once_how_to_get_one(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr("cosa.report.writing.available", lambda: False)
    sections = SECTIONS | {"evaluate": {"panels": 0}}
    assert train.main([configure(tmp_path, **sections)]) == 0
    run = RunFolder(tmp_path / "runs" / "tiny")
    err = capfd.readouterr().err
    assert err.count("pip install matplotlib, then python -m cosa.report") == 1
    assert run.summary.exists() and not run.report.exists() and not run.examples.exists()


def test_a_report_that_fails_ends_no_training(tmp_path, monkeypatch, capfd):
    def broken(run):
        raise ValueError("no such chart")

    monkeypatch.setattr("cosa.report.writing.run_page", broken)
    sections = {"train": {"iterations": 2, "report": True}, "evaluate": {"panels": 0}}
    assert train.main([configure(tmp_path, **sections)]) == 0
    assert "report.html is not written (ValueError: no such chart)" in capfd.readouterr().err
