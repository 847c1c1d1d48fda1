"""Passes, shares, images without classes and rare classes, through train.py."""

import json
import os
import signal

import numpy as np
import pytest
import yaml
from PIL import Image

import train
from cosa.checkpoint import read
from cosa.training.run_folder import RunFolder
from tests.helpers.training import (
    assert_equal_runs,
    configure,
    fake_scores,
    stop_after,
    training_lines,
)

SIDE = 48
REST = {"batch_size": 4, "evaluate_every": 0, "checkpoint_every": 0.4, "log_every": 1}
SHARES = {"method": {"cls_iterations": 0.25, "s2c_start": 0.5},
          "optimizer": {"lr": 1e-3, "warmup_iterations": 0.2, "clip_norm": 1.0}}


def things(root, count):
    """A red square in every second image, and nothing but noise in the others."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    lines = ["image,labels"]
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(60, 200, (SIDE, SIDE, 3), dtype=np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        if number % 2:
            y, x = rng.integers(0, SIDE // 2, 2)
            mask[y : y + SIDE // 2, x : x + SIDE // 2] = 1
            pixels[mask > 0] = pixels[mask > 0] // 4 + np.array([190, 0, 0], np.uint8)
        Image.fromarray(pixels).save(root / f"images/{number:02d}.png")
        Image.fromarray(mask).save(root / f"masks/{number:02d}.png")
        lines.append(f"{number:02d}.png,{'thing' * (number % 2)}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"name": "folder", "root": str(root), "images": "images", "labels": "labels.csv",
            "masks": "masks"}


@pytest.fixture
def data(tmp_path):
    return things(tmp_path / "own", 16) | {"negatives": True, "balance": 0.5}


def test_a_single_class_is_learnt_from_images_with_and_without_it(train_program, tmp_path, data):
    """Background alone would be 43.8 mIoU, and ranking by chance half as good."""
    plain = {"scale_min": 0.8, "scale_max": 1.25, "blur": 0.0, "strong": False}
    code, out, err = train_program(configure(
        tmp_path, data=data | {"balance": 0.0}, augment=plain, loss={"c2s": 1.0, "c2s_aux": 1.0},
        method={"cls_iterations": 20, "s2c_start": 30}, train={"iterations": 60, "log_every": 30},
    ))
    assert code == 0 and "have no label" not in err, err
    assert next(line for line in out.splitlines() if line.startswith("no label")).split()[2] == "8"
    scores = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    assert scores["images"] == 16
    assert scores["classification_map"] > 0.9 and scores["cam_best_miou"] > 0.6
    assert scores["miou_label_filtered"] >= scores["miou"] > 0.55


def test_without_the_key_they_take_no_part_and_a_single_class_is_refused(
    train_program, tmp_path, data
):
    code, _, err = train_program(configure(tmp_path, data=data | {"negatives": False}))
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith("error: all 8 training images that have a label have the")
    assert "set data.negatives=true" in last


def test_a_schedule_of_passes_is_kept_in_iterations(
    train_program, tmp_path, data, monkeypatch, capfd
):
    """16 images, of which every one takes part: 1.25 passes of 4 are 5 iterations."""
    config, passes = configure(tmp_path, data=data, train=REST, **SHARES), "train.passes=1.25"
    other = RunFolder(tmp_path / "other" / "runs" / "tiny")
    run = RunFolder(tmp_path / "runs" / "tiny")
    code, out, err = train_program(config, passes, f"output={other.path.parent}")
    assert code == 0, err
    assert ("schedule for 16 images in batches of 4: train.iterations=5, method.cls_iterations=1, "
            "method.s2c_start=2, optimizer.warmup_iterations=1, train.checkpoint_every=2") in out
    kept = yaml.safe_load(other.config.read_text())
    assert kept["train"]["iterations"] == 5 and kept["train"]["passes"] == 0
    assert (kept["method"]["cls_iterations"], kept["method"]["s2c_start"]) == (1, 2)
    assert [sorted(line) for line in training_lines(other)][:2] == [
        ["cls", "cls_aux", "iteration", "loss", "lr", "xi", "xi_aux"],
        ["c2s", "c2s_aux", "cls", "cls_aux", "csc", "iteration", "loss", "lr", "xi", "xi_aux"]]

    with monkeypatch.context() as patch:
        stop_after(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train.main([config, passes]) == 128 + signal.SIGTERM
    capfd.readouterr()
    code, out, err = train_program("--resume", run.path)
    assert code == 0 and "going on at" not in err and "schedule for" not in out
    assert_equal_runs(run, other)
    assert read(run.last)["state"]["images"] == 16


def test_a_resume_says_what_it_changes(train_program, tmp_path, data, monkeypatch):
    config = configure(tmp_path, data=data, train={**REST, "iterations": 4},
                       optimizer={"lr": 1e-3, "warmup_iterations": 0, "power": 1.0})
    with monkeypatch.context() as patch:
        stop_after(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train.main([config]) == 128 + signal.SIGTERM
    run = RunFolder(tmp_path / "runs" / "tiny")
    things(tmp_path / "own", 18)
    fake_scores(monkeypatch, 0.5)
    code, out, err = train_program("--resume", run.path, "train.passes=1.1")
    assert code == 0, err
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert ("note: going on at iteration 2 with train.iterations=5 instead of 4; the learning rate "
            "is 0.0006, which was 0.0005") in notes
    assert ("note: 18 images are trained on, 16 when the checkpoint was written: their order is "
            "another from here on, the schedule stays unless it is given anew") in notes
    assert [line["lr"] for line in training_lines(run)][2:] == pytest.approx([6e-4, 4e-4, 2e-4])
    assert yaml.safe_load(run.config.read_text())["train"]["iterations"] == 5
