"""What an evaluation leaves for the report: counted by hand."""

import json
import math

import numpy as np
import pytest
import torch

from cosa.config import from_dict
from cosa.evaluate import Parts
from cosa.metrics import CamMetrics, iou_of_image
from cosa.threshold import DynamicThreshold
from cosa.training.details import BINS, choose_examples, fitted_confidences
from cosa.training.run_folder import RunFolder
from tests.helpers.tiny import tiny_tree


def chosen(scores, labels, indices=None):
    parts = Parts(indices or [*range(len(scores))], scores, {})
    return [(one.kind, one.index, one.label) for one in choose_examples(parts, np.array(labels))]


def test_the_best_the_median_and_the_worst():
    scores = [k / 100 for k in range(20)]
    found = chosen(scores, np.zeros((20, 2), int))
    assert found == [("best", 19, 0), ("best", 18, 0), ("best", 17, 0),
                     ("median", 10, 0), ("median", 9, 0), ("median", 8, 0),
                     ("worst", 0, 0), ("worst", 1, 0), ("worst", 2, 0)]


@pytest.mark.parametrize("count, kinds", [
    (0, ""), (1, "b"), (2, "bw"), (3, "bmw"), (4, "bbww"), (6, "bbmmww"), (9, "bbbmmmwww"),
])
def test_few_images_are_shown_once(count, kinds):
    found = chosen([k / 10 for k in range(count)], np.zeros((count, 1), int))
    assert "".join(kind[0] for kind, _, _ in found) == kinds
    assert len({index for _, index, _ in found}) == len(found)


def test_one_of_each_class_that_is_not_shown_yet():
    # Numbers 3 to 8 by score, of which 8, 5 and 3 are the best, the median and the worst one...
    labels = np.zeros((30, 3), int)
    labels[3:9, 0] = 1
    labels[8, 1] = 1  # shown already: no other image holds it
    scores = [math.nan] * 30
    scores[3:6] = 0.1, 0.2, 0.3
    found = chosen(scores[:9], labels[:9])
    assert found == [("best", 5, 0), ("median", 4, 0), ("worst", 3, 0)], "no score, no example"
    # ... and without any masks there are examples of classes all the same.
    assert chosen([math.nan] * 9, labels[:9]) == [("class", 6, 1), ("class", 8, 2)]


def test_an_example_of_a_class_is_its_middle_one():
    labels = np.zeros((14, 1), int)
    labels[[4, 6, 12], 0] = 1
    scores = [k / 20 for k in range(14)]
    found = chosen(scores, labels)
    assert {index for kind, index, _ in found if kind != "class"} == {0, 1, 2, 5, 6, 7, 11, 12, 13}
    assert found[-1] == ("class", 4, 1)


def test_numbers_are_those_of_the_data_set():
    labels = np.zeros((40, 1), int)
    labels[39] = 1
    found = chosen([0.5, math.nan], labels, indices=[20, 39])
    assert found == [("best", 20, 0)]


def test_iou_of_an_image():
    # Background: 6 of 6 + 1 + 1; class 1: 2 of 2 + 1; class 2: predicted alone; class 3: nowhere.
    confusion = np.array([[6, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert iou_of_image(confusion) == pytest.approx((6 / 8 + 2 / 3 + 0) / 3)
    assert math.isnan(iou_of_image(np.zeros((3, 3))))


def test_the_distribution_of_a_cam():
    metrics = CamMetrics(3, (0.5, 0.25))
    cam = torch.tensor([[[0.0, 0.1, 0.3, 0.9]], [[0.0, 0.6, 0.2, 0.1]]])
    metrics.update(cam, np.array([[0, 0, 1, 2]], np.uint8))
    edges, background, foreground = metrics.distribution()
    assert edges == [0, 0.25, 0.5, 1]
    assert background.tolist() == [1, 0, 1] and foreground.tolist() == [0, 1, 1]


def test_fitted_confidences():
    threshold = DynamicThreshold(queue_length=2, min_confidence=-1)
    assert fitted_confidences({"cam": threshold}) == {"cam": [0] * BINS}
    for values in ([0.5] * 9, [0.0, 0.019, 0.03, 1.0], [0.99]):
        threshold.push(torch.tensor(values))
    counts = fitted_confidences({"cam": threshold})["cam"]
    assert len(counts) == BINS and sum(counts) == 5, "the first batch has left the queue"
    assert counts[0] == 2 and counts[1] == 1 and counts[-1] == 2


def test_the_folder_keeps_no_picture_that_nothing_names(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create(from_dict(tiny_tree()))
    run.examples.mkdir()
    for name in ("a.png", "b.png"):
        (run.examples / name).write_bytes(b"")
    run.write_details({"iteration": 4, "examples": [{"file": "b.png"}]})
    assert [path.name for path in run.examples.iterdir()] == ["b.png"]
    run.forget_after(4)
    assert json.loads(run.details.read_text())["iteration"] == 4
    run.forget_after(3)
    assert not run.details.exists()
