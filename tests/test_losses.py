import math

import pytest
import torch
import torch.nn.functional as F

from cosa.core import IGNORE
from cosa.losses import cam_to_seg, classification, contrastive_separation, seg_to_cam
from cosa.targets import perplexity as perplexity_of
from tests.helpers.draws import randn


def labels_of(*shape, classes=3, seed=0):
    return torch.randint(0, classes, shape, generator=torch.manual_seed(seed))


# Classification, Eq. (1)


def test_classification_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    # sigmoid: 1/2 and 3/4
    expected = -(math.log(0.5) + math.log(0.25)) / 2
    assert classification(logits, torch.tensor([[1, 0]])).item() == pytest.approx(expected)


def test_classification_is_multi_label_soft_margin_and_survives_large_logits():
    logits, labels = 200 * randn(4, 5), labels_of(4, 5, classes=2)
    expected = F.multilabel_soft_margin_loss(logits / 200, labels)
    assert torch.allclose(classification(logits / 200, labels), expected)
    assert torch.isfinite(classification(logits, labels))


# CAM to segmentation, Eq. (5)


def test_cam_to_seg_by_hand():
    seg = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    seg[0, 1, 0, 1] = math.log(3.0)  # probabilities (1/2, 1/2) and (1/4, 3/4)
    labels = torch.tensor([[[0, 1]]])
    terms = math.log(2), math.log(4 / 3)
    assert cam_to_seg(seg, labels).item() == pytest.approx(sum(terms) / 2)
    # 1/P = 2 and 1/2; normalised to mean 1 over the pixels: 8/5 and 2/5.
    weighted = cam_to_seg(seg, labels, torch.tensor([[[0.5, 2.0]]]))
    assert weighted.item() == pytest.approx((1.6 * terms[0] + 0.4 * terms[1]) / 2)


def test_cam_to_seg_normalises_over_the_batch_not_per_image():
    seg, labels = randn(2, 3, 4, 4), labels_of(2, 4, 4)
    doubt = randn(2, 4, 4, seed=1).abs() + torch.tensor([0.1, 4.0])[:, None, None]
    weight = 1 / doubt
    expected = (weight / weight.mean() * F.cross_entropy(seg, labels, reduction="none")).mean()
    assert torch.allclose(cam_to_seg(seg, labels, doubt), expected)


def test_cam_to_seg_does_not_feel_the_scale_of_the_perplexity():
    seg, labels, doubt = randn(2, 3, 4, 4), labels_of(2, 4, 4), randn(2, 4, 4, seed=1).abs() + 0.1
    assert torch.allclose(cam_to_seg(seg, labels, 7 * doubt), cam_to_seg(seg, labels, doubt))
    constant = torch.full((2, 4, 4), 0.3)
    assert torch.allclose(cam_to_seg(seg, labels, constant), cam_to_seg(seg, labels))


def test_cam_to_seg_resizes_to_the_labels():
    seg, labels = randn(2, 3, 4, 5), labels_of(2, 16, 20)
    large = F.interpolate(seg, size=(16, 20), mode="bilinear", align_corners=False)
    assert torch.allclose(cam_to_seg(seg, labels), F.cross_entropy(large, labels))


@pytest.mark.parametrize("weighted", [False, True])
def test_cam_to_seg_never_counts_padding(weighted):
    seg, labels = randn(2, 3, 4, 6), labels_of(2, 4, 6)
    doubt = randn(2, 4, 6, seed=1).abs() + 0.1
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[..., 4:] = False
    expected = cam_to_seg(seg[..., :4], labels[..., :4], doubt[..., :4] if weighted else None)
    doubt[..., 4:] = float("nan")
    seg = seg.requires_grad_()
    loss = cam_to_seg(seg, labels, doubt if weighted else None, valid)
    assert torch.allclose(loss, expected)
    loss.backward()
    assert not seg.grad[..., 4:].any() and seg.grad[..., :4].abs().min() > 0
    ignored = labels.masked_fill(~valid, IGNORE)
    assert torch.allclose(cam_to_seg(seg, ignored, doubt if weighted else None), expected)


def test_cam_to_seg_of_a_batch_of_padding_is_zero():
    seg = randn(2, 3, 4, 4).requires_grad_()
    valid = torch.zeros(2, 8, 8, dtype=torch.bool)
    loss = cam_to_seg(seg, labels_of(2, 8, 8), torch.ones(2, 8, 8), valid)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(seg.grad, torch.zeros_like(seg))


def test_cam_to_seg_bears_the_bounds_of_the_perplexity():
    seg, labels = randn(1, 3, 1, 3).requires_grad_(), labels_of(1, 1, 3)
    doubt = torch.tensor([[[0.0, 0.5, float("inf")]]])
    loss = cam_to_seg(seg, labels, doubt)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(seg.grad).all()
    assert not seg.grad[..., 2].any()


# Segmentation to CAM, Eq. (8)


def test_seg_to_cam_by_hand():
    cam = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64).reshape(1, 2, 1, 1)
    targets = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).reshape(1, 3, 1, 1)
    expected = math.log(2) - 0.3 * math.log(0.75) - 0.7 * math.log(0.25)
    assert seg_to_cam(cam, targets).item() == pytest.approx(expected / 2)


def test_seg_to_cam_averages_the_targets_over_a_cell():
    cam = randn(1, 1, 1, 2)
    targets = torch.tensor([[1.0, 0.0, 0.2, 0.4], [0.0, 0.0, 0.6, 0.8]], dtype=torch.float64)
    coarse = torch.tensor([[0.25, 0.5]], dtype=torch.float64)

    def both_channels(foreground):
        return torch.stack([1 - foreground, foreground])[None]

    expected = seg_to_cam(cam, both_channels(coarse))
    assert torch.allclose(seg_to_cam(cam, both_channels(targets)), expected)


def test_seg_to_cam_leaves_the_background_out():
    cam, targets = randn(2, 3, 4, 4), randn(2, 4, 8, 8).softmax(dim=1)
    changed = targets.clone()
    changed[:, 0] = 0.5
    assert torch.equal(seg_to_cam(cam, targets), seg_to_cam(cam, changed))


def test_seg_to_cam_never_counts_padding():
    cam, targets = randn(2, 3, 4, 4), randn(2, 4, 16, 16).softmax(dim=1)
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[..., 11:] = False  # the third column of cells is cut, the fourth is padding
    expected = seg_to_cam(cam[..., :2], targets[..., :8])
    targets[..., 11:] = 7.0
    cam = cam.requires_grad_()
    loss = seg_to_cam(cam, targets, valid)
    assert torch.allclose(loss, expected)
    loss.backward()
    assert not cam.grad[..., 2:].any() and cam.grad[..., :2].abs().min() > 0


def test_seg_to_cam_with_every_position_valid_is_the_plain_mean():
    cam, targets = randn(2, 3, 28, 28), randn(2, 4, 28, 28, seed=1).softmax(dim=1)
    valid = torch.ones(2, 448, 448, dtype=torch.bool)
    assert torch.allclose(seg_to_cam(cam, targets, valid), seg_to_cam(cam, targets))


def test_seg_to_cam_of_a_batch_of_padding_is_zero():
    cam = randn(2, 3, 4, 4).requires_grad_()
    loss = seg_to_cam(cam, torch.rand(2, 4, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(cam.grad, torch.zeros_like(cam))


# Contrastive separation, Eq. (9)-(11)


def slow_separation_of_image(maps, labels, doubt, epsilon, temperature):
    """Eq. (9)-(11) word by word; maps (C, N), labels and doubt (N,)."""

    def closeness(i, j):
        a, b = maps[:, i], maps[:, j]
        return math.exp((a @ b / a.norm() / b.norm()).item() / temperature)

    anchors = [i for i in range(labels.numel()) if doubt[i] <= epsilon]
    total = 0.0
    for i in anchors:
        positives = [j for j in anchors if labels[j] == labels[i] and j != i]
        negative = sum(closeness(i, j) for j in anchors if labels[j] != labels[i])
        terms = [-math.log(closeness(i, j) / (closeness(i, j) + negative)) for j in positives]
        total += sum(terms) / len(terms) if terms else 0.0
    return total / len(anchors) if anchors else 0.0


def test_contrastive_separation_by_hand():
    # Two positions along one axis with label 1, one along the other axis with label 0.
    cam = torch.tensor([[[[2.0, 1.0, 0.0]], [[0.0, 0.0, 5.0]]]], dtype=torch.float64)
    labels, doubt = torch.tensor([[[1, 1, 0]]]), torch.full((1, 1, 3), 0.5)
    pair = -math.log(math.e**2 / (math.e**2 + 1))  # cosine 1 and 0 at temperature 1/2
    loss = contrastive_separation(cam, labels, doubt)
    assert loss.item() == pytest.approx(2 * pair / 3)  # the third anchor has no partner


@pytest.mark.parametrize("epsilon", [1.0, 0.5, 0.0])
def test_a_perplexity_of_just_epsilon_makes_an_anchor(epsilon):
    cam, labels = randn(1, 3, 2, 4), torch.tensor([[[0, 0, 1, 1], [1, 0, 0, 1]]])
    doubt = torch.full((1, 2, 4), epsilon, dtype=torch.float64)
    expected = contrastive_separation(cam, labels, doubt - 1, epsilon)
    assert expected > 0
    assert contrastive_separation(cam, labels, doubt, epsilon) == expected
    above = torch.nextafter(doubt, doubt + 1)
    assert contrastive_separation(cam, labels, above, epsilon) == 0


@pytest.mark.parametrize("temperature", [0.5, 0.07])
@pytest.mark.parametrize("epsilon", [1.0, 0.8])
def test_contrastive_separation_agrees_with_the_equations(epsilon, temperature):
    cam, labels = randn(3, 4, 4, 5), labels_of(3, 4, 5)
    doubt = 2 * torch.rand(3, 4, 5, generator=torch.manual_seed(1))
    labels[1] = 2  # one class only
    images = zip(cam.flatten(2), labels.flatten(1), doubt.flatten(1), strict=True)
    images = [slow_separation_of_image(*image, epsilon, temperature) for image in images]
    expected = sum(images) / 3
    loss = contrastive_separation(cam, labels, doubt, epsilon, temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert images[0] > 0 and images[1] == 0 and images[2] > 0


def test_contrastive_separation_gradient():
    cam = randn(2, 3, 2, 3).requires_grad_()
    labels = torch.tensor([[[0, 1, 1], [2, 0, 1]], [[0, 0, 0], [1, 1, 2]]])
    doubt = torch.tensor([[[0.5, 0.5, 2.0], [0.1, 1.0, 0.2]], [[0.5, 3.0, 0.5], [0.5, 0.5, 0.5]]])
    assert torch.autograd.gradcheck(lambda x: contrastive_separation(x, labels, doubt), cam)


def test_contrastive_separation_falls_as_classes_part():
    labels = torch.tensor([[[1, 1, 0, 0]]])
    mixed = torch.tensor([[[[1.0, 0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0, 1.0]]]])
    parted = torch.tensor([[[[1.0, 1.0, -1.0, -1.0]], [[0.0, 0.0, 0.0, 0.0]]]])
    doubt = torch.zeros(1, 1, 4)
    low, high = (contrastive_separation(cam, labels, doubt) for cam in (parted, mixed))
    assert 0 < low < high


@pytest.mark.parametrize("kind", ["one class", "no anchor", "lone anchors", "zero vectors"])
def test_contrastive_separation_of_degenerate_images_is_zero(kind):
    cam, doubt = randn(2, 3, 2, 2), torch.zeros(2, 2, 2)
    labels = torch.ones(2, 2, 2, dtype=torch.int64)
    if kind == "no anchor":
        doubt += 5
    elif kind == "lone anchors":
        labels[:] = torch.arange(4).reshape(2, 2)
    elif kind == "zero vectors":
        cam = torch.zeros_like(cam)
    cam = cam.requires_grad_()
    loss = contrastive_separation(cam, labels, doubt)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(cam.grad, torch.zeros_like(cam))


def test_contrastive_separation_bears_zero_vectors_among_others():
    cam = randn(1, 3, 2, 4)
    cam[..., 0] = 0
    cam = cam.requires_grad_()
    labels = torch.tensor([[[0, 0, 1, 1], [1, 0, 0, 1]]])
    loss = contrastive_separation(cam, labels, torch.zeros(1, 2, 4))
    loss.backward()
    assert loss > 0 and torch.isfinite(cam.grad).all()
    assert not cam.grad[..., 0].any() and cam.grad[..., 1:].any()


def test_contrastive_separation_never_counts_padding():
    cam, labels, doubt = randn(2, 3, 4, 6), labels_of(2, 4, 6), torch.zeros(2, 4, 6)
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[..., 4:] = False
    expected = contrastive_separation(cam[..., :4], labels[..., :4], doubt[..., :4])
    assert torch.allclose(contrastive_separation(cam, labels, doubt, valid=valid), expected)
    ignored = labels.masked_fill(~valid, IGNORE)
    assert torch.allclose(contrastive_separation(cam, ignored, doubt), expected)
    infinite = doubt.masked_fill(~valid, float("inf"))
    assert torch.allclose(contrastive_separation(cam, labels, infinite), expected)


def test_contrastive_separation_is_stable_at_low_temperature():
    cam = randn(1, 3, 4, 4).float().requires_grad_()
    labels, doubt = labels_of(1, 4, 4), torch.zeros(1, 4, 4)
    loss = contrastive_separation(cam, labels, doubt, temperature=1e-3)
    loss.backward()
    exact = contrastive_separation(cam.detach().double(), labels, doubt, temperature=1e-3)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5) and loss > 100
    assert torch.isfinite(cam.grad).all()


# All of them


def cases():
    cam, seg = randn(3, 3, 4, 4), randn(3, 4, 4, 4, seed=1)
    labels = labels_of(3, 4, 4, classes=4)
    doubt = perplexity_of(torch.rand(3, 4, 4, generator=torch.manual_seed(2)), 0.5)
    present = labels_of(3, 3, classes=2).double()
    valid = torch.rand(3, 4, 4, generator=torch.manual_seed(3)) < 0.8
    return {
        "classification": (classification, randn(3, 3), present),
        "cam_to_seg": (cam_to_seg, seg, labels, doubt, valid),
        "seg_to_cam": (seg_to_cam, cam, seg.softmax(dim=1), valid),
        "contrastive": (contrastive_separation, cam, labels, doubt),
    }


NAMES = ["classification", "cam_to_seg", "seg_to_cam", "contrastive"]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_prediction_only(name):
    loss, *tensors = cases()[name]
    tensors = [t.requires_grad_() if t.is_floating_point() else t for t in tensors]
    loss(*tensors).backward()
    assert tensors[0].grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in tensors[1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_batch_does_not_matter(name):
    loss, *tensors = cases()[name]
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(loss(*(tensor[order] for tensor in tensors)), loss(*tensors))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_predictions_are_widened(name):
    loss, prediction, *rest = cases()[name]
    narrow = prediction.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(narrow, *rest)
    assert value.dtype == torch.float32
    assert torch.allclose(value, loss(narrow.float(), *rest), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit_are_reported(name):
    loss, prediction, *rest = cases()[name]
    with pytest.raises(ValueError, match="must have shape"):
        loss(prediction, rest[0][:2], *rest[1:])
