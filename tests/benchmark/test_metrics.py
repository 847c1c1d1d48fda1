"""`benchmark metrics`: J and F against the program that goes class by class, and their times."""

import sys

import numpy as np
import pytest

from cosa.benchmark.__main__ import main as benchmark
from cosa.benchmark.timings import metrics
from cosa.metrics import SegmentationMetrics

SCIPY = "class by class, `scipy.ndimage.binary_dilation`"


def test_at_least_ten_times_as_fast_as_class_by_class_and_the_same():
    makers = metrics.programs(21)
    pairs = [metrics.label_maps(seed, 5, 21, metrics.SIZE) for seed in range(3)]
    assert all(labels.shape == (375, 500) for pair in pairs for labels in pair)
    seconds, scores = metrics.measure({name: makers[name] for name in (metrics.OURS, SCIPY)},
                                      pairs, repeats=1)
    assert metrics.ratio(seconds, SCIPY) >= 10
    ours, slow = scores[metrics.OURS], scores[SCIPY]
    for key in ("iou", "boundary_f_classes"):
        assert ours[key] == pytest.approx(slow[key], nan_ok=True, abs=1e-12)
    assert 0.2 < ours["boundary_f"] < 0.99 and 0.2 < ours["miou"] < 0.99
    assert metrics.agree(ours, slow)


@pytest.mark.parametrize("skip", [False, True])
def test_class_by_class_counts_what_it_should(skip):
    if skip:
        dilate = pytest.importorskip("cv2") and metrics.opencv_dilation()
    else:
        dilate = metrics.scipy_dilation
    fast, slow = SegmentationMetrics(6, boundary=True), metrics.ClassByClass(6, dilate, skip)
    for seed in range(4):
        # A prediction of 64 bits a pixel, as an argmax yields, and classes that never occur.
        prediction, target = metrics.label_maps(seed, 3, classes=5, size=(50 + seed, 70))
        for scores in (fast, slow):
            scores.update(prediction.astype(np.int64), target)
    assert (fast.confusion == slow.confusion).all()
    assert metrics.agree(fast.compute(), slow.compute())
    slow.matched[0, 1] -= 1
    assert not metrics.agree(fast.compute(), slow.compute())


def test_label_maps_hold_several_classes_and_ignored_pixels():
    prediction, target = metrics.label_maps(0, 5, 21, (90, 120))
    assert prediction.dtype == target.dtype == np.uint8
    assert len(np.unique(target)) >= 5 and (target == metrics.IGNORE).any()
    assert prediction.max() < 21 and len(np.unique(prediction)) >= 4
    assert not np.array_equal(target, metrics.label_maps(1, 5, 21, (90, 120))[1])


def test_the_report_names_the_programs_that_are_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "SIZE", (40, 60))
    monkeypatch.setitem(sys.modules, "cv2", None)
    report = tmp_path / "report.md"
    command = ["metrics", "--images", "2", "--repeats", "1", "--report", str(report)]
    assert benchmark(command) == 0
    text = report.read_text(encoding="utf-8")
    assert f"| {SCIPY} |" in text and f"| {metrics.OURS} |" in text and "60x40 pixels" in text
    assert "cv2" not in text and "OpenCV (opencv-python-headless) is not installed" in text
    assert "All programs yield the same scores" in text
    assert "same scores" in capsys.readouterr().out
    # A program that is wrong is not passed over.
    monkeypatch.setattr(metrics, "scipy_dilation", lambda mask, disk: mask)
    assert benchmark(command) == 1
    assert "DIFFERENT SCORES" in report.read_text(encoding="utf-8")
