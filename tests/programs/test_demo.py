import json

import numpy as np

import train
from cosa.config import load_config
from cosa.data import build_dataset
from cosa.training.run_folder import RunFolder
from tests.helpers.tiny import ROOT


def test_a_short_training_learns_to_segment_from_image_labels(tmp_path, monkeypatch):
    """The demo in half a minute: fewer and smaller images, fewer iterations, faster teacher."""
    monkeypatch.chdir(ROOT)
    assert train.main([
        "configs/demo.yaml", f"output={tmp_path}", "device=cpu", "seed=0", "data.workers=0",
        "data.scenes_train=300", "data.scenes_val=20", "data.scenes_test=60",
        "train.iterations=120", "train.batch_size=12", "train.log_every=5",
        "train.evaluate_every=0", "method.cls_iterations=40", "method.s2c_start=60",
        "augment.crop_size=64", "optimizer.lr=1e-3", "teacher.momentum=0.95", "loss.c2s=0.3",
        "loss.c2s_aux=0.3", "teacher.scales=[1.0]", "evaluate.scales=[1.0]", "evaluate.panels=0",
    ]) == 0
    run = RunFolder(tmp_path / "demo")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for term in ("cls", "cls_aux", "c2s", "c2s_aux"):
        values = [line[term] for line in lines if term in line]
        assert np.mean(values[-4:]) < 0.9 * np.mean(values[:2]), term

    summary = json.loads(run.summary.read_text())
    test_set = build_dataset(load_config(run.config).data, "test")
    background = np.mean([(test_set.mask(i) == 0).mean() for i in range(len(test_set))])
    trivial = background / (1 + len(test_set.classes))  # background everywhere
    assert summary["miou"] > 2 * trivial
    assert summary["iou"]["background"] > background
    assert sum(iou > 0.1 for iou in summary["iou"].values()) >= 4, "several classes are found"
    assert summary["classification_map"] > 0.5
