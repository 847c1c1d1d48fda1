"""Pixel and classification scores against hand-computed values and slow oracles."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score

from cosa import metrics as metrics_module
from cosa.cam import filter_by_labels
from cosa.metrics import (
    CamMetrics,
    SegmentationMetrics,
    average_precision,
    f1_scores,
    iou_per_class,
    mean_over_present,
)
from cosa.targets import cam_pseudo_labels


def random_regions(seed, num_classes, height=60, width=80, cells=7):
    """A label map of smooth regions."""
    noise = torch.randn(1, num_classes, cells, cells, generator=torch.Generator().manual_seed(seed))
    maps = F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)
    return maps[0].argmax(0).numpy().astype(np.uint8)


def scores_of(pairs, num_classes, **options):
    metrics = SegmentationMetrics(num_classes, **options)
    for prediction, target in pairs:
        metrics.update(prediction, target)
    return metrics.compute()


def test_iou_by_hand():
    target = np.array([[0, 0, 1], [1, 2, 255]])
    prediction = np.array([[0, 1, 1], [1, 0, 2]])
    metrics = SegmentationMetrics(3)
    metrics.update(prediction, target)
    assert metrics.confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    scores = metrics.compute()
    assert scores["iou"] == pytest.approx([1 / 3, 2 / 3, 0])
    assert scores["miou"] == pytest.approx(1 / 3)
    assert "boundary_f" not in scores


def test_images_are_pooled_not_averaged():
    pairs = [
        (np.array([[0, 1]]), np.array([[0, 1]])),
        (np.array([[0, 0, 0]]), np.array([[1, 1, 0]])),
    ]
    assert scores_of(pairs, 2)["iou"] == pytest.approx([2 / 4, 1 / 3])


def test_classes_absent_from_the_targets_do_not_count():
    scores = scores_of([(np.array([[0, 2, 1]]), np.array([[0, 0, 1]]))], 4)
    assert scores["iou"][:2] == [0.5, 1.0]
    assert all(math.isnan(iou) for iou in scores["iou"][2:])
    assert scores["miou"] == 0.75


def test_only_ignored_pixels():
    scores = scores_of([(np.zeros((2, 2), int), np.full((2, 2), 255))], 2)
    assert math.isnan(scores["miou"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_numpy_and_torch_agree(dtype):
    rng = np.random.default_rng(0)
    prediction, target = (rng.integers(0, 2, (9, 7)).astype(dtype) for _ in range(2))
    tensors = [(torch.from_numpy(prediction), torch.from_numpy(target))]
    scores = scores_of([(prediction, target)], 2, boundary=True)
    assert scores_of(tensors, 2, boundary=True) == scores


def test_renaming_the_classes_permutes_the_scores():
    prediction, target = random_regions(0, 5), random_regions(1, 5)
    order = np.array([0, 3, 1, 4, 2])
    before = scores_of([(prediction, target)], 5, boundary=True)
    after = scores_of([(order[prediction], order[target])], 5, boundary=True)
    for key in ("iou", "boundary_f_classes"):
        assert np.array(after[key])[order] == pytest.approx(before[key])
    assert after["jf"] == pytest.approx(before["jf"])


def test_perfect_prediction():
    target = random_regions(3, 6)
    scores = scores_of([(target, target)], 6, boundary=True)
    assert scores["miou"] == scores["boundary_f"] == scores["jf"] == 1


def test_mask_with_ignored_pixels_against_itself():
    target = random_regions(3, 4)
    target[10:20, 10:40] = 255
    scores = scores_of([(target, target)], 4, boundary=True)
    assert scores["miou"] == scores["boundary_f"] == 1


@pytest.mark.parametrize(
    "prediction, target, message",
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "differ in shape"),
        (np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), int), r"\(H, W\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "integers"),
        (np.full((2, 2), 3), np.zeros((2, 2), int), "prediction holds"),
        (np.full((2, 2), 255), np.zeros((2, 2), int), "prediction holds"),
        (np.full((2, 2), -1), np.zeros((2, 2), int), "prediction holds"),
        (np.zeros((2, 2), int), np.full((2, 2), 3), "target holds"),
    ],
)
def test_bad_maps(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(3).update(prediction, target)


@pytest.mark.parametrize("options", [{"num_classes": 1}, {"num_classes": 4, "ignore_index": 3}])
def test_bad_construction(options):
    with pytest.raises(ValueError):
        SegmentationMetrics(**options)


def slow_contour(mask):
    """DAVIS: the mask differs from its neighbour east, south or south-east."""
    height, width = mask.shape
    contour = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            south, east = min(y + 1, height - 1), min(x + 1, width - 1)
            others = (mask[y, east], mask[south, x], mask[south, east])
            contour[y, x] = any(other != mask[y, x] for other in others)
    return contour


def slow_boundary_f(pairs, num_classes):
    scores = []
    for label in range(num_classes):
        hits, totals = np.zeros(2), np.zeros(2)
        for prediction, target in pairs:
            contours = [slow_contour(labels == label) for labels in (prediction, target)]
            radius = math.ceil(0.008 * math.hypot(*target.shape))
            for side, (own, other) in enumerate((contours, contours[::-1])):
                points = np.argwhere(other)
                for point in np.argwhere(own):
                    near = ((points - point) ** 2).sum(axis=1) <= radius**2
                    hits[side] += near.any()
                totals[side] += own.sum()
        if not totals.any():
            scores.append(1.0)
        elif not totals.all() or not hits.any():
            scores.append(0.0)
        else:
            precision, recall = hits / totals
            scores.append(2 * precision * recall / (precision + recall))
    return scores


@pytest.mark.parametrize("size", [(40, 56), (230, 120), (1, 30)])
def test_boundary_f_against_slow_oracle(size):
    num_classes = 6  # the last one occurs nowhere
    pairs = [
        (random_regions(2 * k, 5, *size), random_regions(2 * k + 1, 4, *size)) for k in range(2)
    ]
    scores = scores_of(pairs, num_classes, boundary=True)
    expected = slow_boundary_f(pairs, num_classes)
    assert expected[-1] == 1 and 0 < expected[1] < 1
    assert scores["boundary_f_classes"] == pytest.approx(expected)
    assert scores["boundary_f"] == pytest.approx(np.mean(expected[1:]))
    assert scores["jf"] == pytest.approx((scores["miou"] + scores["boundary_f"]) / 2)


@pytest.mark.parametrize("size", [(1, 700), (700, 1), (2, 900), (3, 400)])
def test_boundary_f_of_lines_of_pixels(size, monkeypatch):
    rng = np.random.default_rng(0)
    pairs = [tuple(np.sort(rng.integers(0, 4, size), axis=axis) for axis in (0, 1))
             for _ in range(2)]
    expected = slow_boundary_f(pairs, 4)
    assert scores_of(pairs, 4, boundary=True)["boundary_f_classes"] == pytest.approx(expected)
    # One class and few pixels at a time
    monkeypatch.setattr(metrics_module, "_PLACES_AT_ONCE", 1)
    monkeypatch.setattr(metrics_module, "_PIXELS_AT_ONCE", 7)
    again = scores_of(pairs, 4, boundary=True)
    assert again["boundary_f_classes"] == pytest.approx(expected)
    assert again["iou"] == scores_of(pairs, 4)["iou"]


def test_memory_of_a_long_line_is_that_of_its_pixels():
    line = np.zeros((1, 200_000), np.uint8)
    line[0, 100_000:] = 1
    tracemalloc.start()
    shifted = np.zeros_like(line)
    shifted[0, 101_500:] = 1
    scores = scores_of([(shifted, line)], 21, boundary=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scores["boundary_f_classes"][1] == 1 and peak < 60 * line.size


def test_boundary_tolerance_by_hand():
    """200 x 150 pixels: the diagonal is 250, so contours 2 pixels apart match, 3 do not."""
    target = np.zeros((150, 200), np.uint8)
    target[:, 100:] = 1
    for shift, expected in ((2, 1.0), (-2, 1.0), (3, 0.0)):
        prediction = np.roll(target, shift, axis=1)
        prediction[:, :50], prediction[:, 150:] = 0, 1
        scores = scores_of([(prediction, target)], 2, boundary=True)
        assert scores["boundary_f"] == expected, shift


def test_boundary_treats_ignored_pixels_as_background():
    target = np.zeros((20, 20), np.uint8)
    target[5:15, 5:15] = 1
    prediction = target.copy()
    target[0:5], target[15:] = 255, 255
    assert scores_of([(prediction, target)], 2, boundary=True)["boundary_f"] == 1


def test_class_on_one_side_only_has_no_boundary_score():
    target = random_regions(0, 2)
    scores = scores_of([(np.zeros_like(target), target)], 3, boundary=True)
    assert scores["boundary_f_classes"] == [0, 0, 1]
    assert scores["boundary_f"] == 0.5


def test_cam_thresholds_equal_direct_computation():
    generator = torch.Generator().manual_seed(0)
    thresholds = (0.7, 0.2, 0.45, 0.0)
    curve = CamMetrics(4, thresholds)
    direct = {threshold: SegmentationMetrics(4) for threshold in thresholds}
    for seed in range(3):
        cam = torch.rand(1, 3, 20, 30, generator=generator)
        cam[0, :, :4] = cam[0, :, :4].mul(20).floor() / 20  # exactly at thresholds, ties
        cam[0, :, 4] = 0
        cam = filter_by_labels(cam, torch.tensor([[1, 0, 1]]))
        target = random_regions(seed, 4, 20, 30)
        target[:, :3] = 255
        curve.update(cam[0], target)
        for threshold, metrics in direct.items():
            metrics.update(cam_pseudo_labels(cam, threshold)[0][0], target)
    for threshold, metrics in direct.items():
        assert (curve.confusion(threshold) == metrics.confusion).all()
        assert curve.miou(threshold) == metrics.compute()["miou"]
    assert len({curve.miou(threshold) for threshold in thresholds}) > 1


def test_cam_metrics_check_their_input():
    metrics = CamMetrics(3, (0.5,))
    with pytest.raises(ValueError, match="cam"):
        metrics.update(torch.zeros(3, 4, 4), np.zeros((4, 4), int))
    with pytest.raises(ValueError, match="target"):
        metrics.update(torch.zeros(2, 4, 4), np.full((4, 4), 3))


def test_mean_over_present():
    assert mean_over_present([0.25, math.nan, 0.75]) == 0.5
    assert math.isnan(mean_over_present([math.nan]))


def test_iou_per_class_of_a_confusion():
    assert iou_per_class(np.array([[6, 2], [1, 3]])) == pytest.approx([6 / 9, 3 / 6])


def random_classification(seed, decimals):
    rng = np.random.default_rng(seed)
    labels = (rng.random((50, 5)) < 0.3).astype(np.uint8)
    scores = np.round(rng.normal(size=(50, 5)) + labels - 0.5, decimals)
    return scores, labels


@pytest.mark.parametrize("decimals", [0, 6])  # 0: many ties
def test_average_precision_equals_scikit_learn(decimals):
    scores, labels = random_classification(0, decimals)
    expected = [average_precision_score(labels[:, k], scores[:, k]) for k in range(5)]
    assert average_precision(scores, labels) == pytest.approx(expected)


def test_average_precision_by_hand():
    scores = np.array([[4.0], [3.0], [2.0], [1.0]])
    labels = np.array([[1], [0], [1], [0]])
    assert average_precision(scores, labels) == pytest.approx([(1 + 2 / 3) / 2])


def test_f1_equals_scikit_learn():
    scores, labels = random_classification(1, 6)
    expected = f1_score(labels, scores > 0, average=None)
    assert f1_scores(scores, labels) == pytest.approx(expected)


def test_classes_without_positives_have_no_classification_score():
    scores, labels = np.ones((3, 2)), np.array([[1, 0], [0, 0], [1, 0]])
    assert np.isnan(average_precision(scores, labels)).tolist() == [False, True]
    assert f1_scores(scores, labels)[0] == pytest.approx(0.8)
    assert math.isnan(f1_scores(scores, labels)[1])


@pytest.mark.parametrize("score", [average_precision, f1_scores])
def test_classification_scores_check_their_input(score):
    with pytest.raises(ValueError, match="should both"):
        score(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="NaN"):
        score(np.full((3, 2), np.nan), np.zeros((3, 2)))


@pytest.mark.parametrize("kind", ["seg", "contours", "cam"])
def test_counts_of_shares_of_the_images_add_up_to_those_of_all(kind):
    rng = np.random.default_rng(0)
    images = [(rng.random((3, 12, 14)), rng.integers(0, 4, (12, 14))) for _ in range(5)]

    def count(share):
        if kind == "cam":
            metrics = CamMetrics(4, (0.3, 0.6))
            for cam, target in share:
                metrics.update(torch.from_numpy(cam), target)
            return metrics, lambda: [metrics.miou(0.3), metrics.miou(0.6)]
        metrics = SegmentationMetrics(4, boundary=kind == "contours")
        for cam, target in share:
            metrics.update(cam.argmax(axis=0), target)
        return metrics, metrics.compute

    (whole, expected), (mine, scores), (others, _) = map(count, (images, images[:2], images[2:]))
    assert scores() != expected()
    for own, other in zip(mine.counts, others.counts, strict=True):
        own += other
    assert scores() == expected() and len(whole.counts) == (3 if kind == "contours" else 1)
