import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from cosa.cam import filter_by_labels, normalize
from cosa.config.regularizers import DomainAdaptationOptions
from cosa.core import IGNORE
from cosa.ema import AssignmentNetwork
from cosa.network import CoSANetwork, NetworkOutput
from cosa.regularizers.domain_adaptation import (
    SOURCE,
    TARGET,
    DomainAdaptation,
    DomainClassifier,
    confident_labels,
    confident_pseudo_supervision,
    domain_adversarial_loss,
    mask_assign,
    reversal_strength,
    reverse_gradient,
    see_without_source,
)
from cosa.targets import CamTargets
from tests.helpers import cotraining
from tests.helpers.draws import labels_of, randn

LOG3 = math.log(3)


def domains_of(*shape, seed=0):
    """Random domain labels, a third each of source, target and neither."""
    draws = torch.randint(0, 3, shape, generator=torch.manual_seed(seed))
    return draws.masked_fill(draws == 2, IGNORE)


def padded_columns(*shape, first):
    """(B, h, w) bool in which the columns from ``first`` on are padding."""
    valid = torch.ones(shape, dtype=torch.bool)
    valid[..., first:] = False
    return valid


# Gradient reversal


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_reversal_layer_is_the_identity_with_a_reversed_gradient(dtype):
    x = randn(2, 3).to(dtype).requires_grad_()
    y = reverse_gradient(x, 0.25)
    assert y.dtype == dtype and torch.equal(y, x)
    (gradient,) = torch.autograd.grad((y * torch.arange(6.0).view(2, 3).to(dtype)).sum(), x)
    assert torch.equal(gradient, -0.25 * torch.arange(6.0).view(2, 3).to(dtype))


def test_the_strength_of_the_reversal_grows_from_0_to_1():
    for progress in (0.0, 0.03, 0.1, 0.5, 0.99, 1.0):
        expected = 2 / (1 + math.exp(-10 * progress)) - 1
        assert reversal_strength(progress) == pytest.approx(expected, abs=1e-15)
    assert reversal_strength(0.0) == 0


def through_classifier(classifier, features, labels, strength=None):
    """Loss of the domain classifier, and the gradient that it sends to the features."""
    features = features.clone().requires_grad_()
    seen = features if strength is None else reverse_gradient(features, strength)
    loss = domain_adversarial_loss(classifier(seen), labels)
    return loss, *torch.autograd.grad(loss, features, retain_graph=True)


def test_the_classifier_learns_while_the_features_get_the_opposite():
    torch.manual_seed(0)
    features, labels = randn(2, 5, 4, 4), domains_of(2, 3, 4, 4)
    classifier = DomainClassifier(5, 3, width=16, hidden=8, dropout=0.0).double()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    before, *_ = through_classifier(classifier, features, labels)
    for _ in range(30):
        loss, reversed_gradient = through_classifier(classifier, features, labels, strength=0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after, gradient = through_classifier(classifier, features, labels)
    same, reversed_gradient = through_classifier(classifier, features, labels, strength=0.3)
    assert after < 0.8 * before and same == after
    cosine = F.cosine_similarity(gradient.flatten(), reversed_gradient.flatten(), dim=0)
    assert cosine.item() == pytest.approx(-1) and gradient.norm() > 0
    torch.testing.assert_close(reversed_gradient, -0.3 * gradient)
    # A step of descent along what arrives makes the classifier's task harder.
    moved, _ = through_classifier(classifier, features - 0.1 * reversed_gradient, labels)
    assert moved > after


def test_the_reversal_does_not_reach_the_classifier():
    torch.manual_seed(0)
    features, labels = randn(2, 5, 4, 4), domains_of(2, 3, 4, 4)
    classifier = DomainClassifier(5, 3, width=16, hidden=8, dropout=0.0).double()
    gradients = []
    for strength in (None, 0.3, 0.0):
        loss, _ = through_classifier(classifier, features, labels, strength)
        gradients.append(torch.autograd.grad(loss, list(classifier.parameters())))
    for plain, weak, none in zip(*gradients, strict=True):
        assert plain.any() and torch.equal(plain, weak) and torch.equal(plain, none)


# The adversarial loss


def slow_adversarial(logits, labels, valid):
    """The equation as loops; numbers are 0-d tensors, so that gradients can be compared, too."""
    batch, classes, _, height, width = logits.shape
    cells = [(b, y, x) for b in range(batch) for y in range(height) for x in range(width)
             if valid[b, y, x]]
    total = 0
    for c in range(classes):
        terms = []
        for b, y, x in cells:
            k = int(labels[b, c, y, x])
            if k == IGNORE:
                continue
            count = [sum(int(labels[b, c, v, u]) == domain for a, v, u in cells if a == b)
                     for domain in (0, 1)]
            balance = (sum(count) - count[k]) / (1 + sum(count))
            p = [z.exp() / sum(z.exp() for z in logits[b, c, :, y, x])
                 for z in logits[b, c, :, y, x]]
            entropy = -sum(q.detach() * q.detach().log() for q in p)
            terms.append(balance * (1 + (-entropy).exp()) * -p[k].log())
        if terms:
            total = total + sum(terms) / len(cells)
    return total


def test_adversarial_loss_by_hand():
    logits = torch.zeros(1, 1, 2, 2, 2, dtype=torch.float64)
    logits[0, 0, 0, 0, 0] = LOG3  # a source pixel with probability 3/4
    labels = torch.tensor([[[[SOURCE, TARGET], [SOURCE, IGNORE]]]])
    # N_src = 2, N_tgt = 1: a source pixel weighs 1/4, the target pixel 2/4.
    sure = 1 + math.exp(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    source = sure * math.log(4 / 3) / 4, 1.5 * math.log(2) / 4
    target = 1.5 * math.log(2) * 2 / 4
    loss = domain_adversarial_loss(logits, labels)
    assert loss.item() == pytest.approx((sum(source) + target) / 4)


def test_adversarial_loss_agrees_with_the_equation():
    logits, labels = 2 * randn(3, 4, 2, 3, 2).requires_grad_(), domains_of(3, 4, 3, 2)
    labels[:, 1] = IGNORE
    labels[0, 2] = SOURCE
    labels[2] = IGNORE
    valid = torch.ones(3, 3, 2, dtype=torch.bool)
    valid[1, 0] = False
    for counted in (torch.ones_like(valid), valid):
        expected = slow_adversarial(logits, labels, counted)
        loss = domain_adversarial_loss(logits, labels, counted)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(value, logits, retain_graph=True) for value in (loss, expected))
        )
    everything = domain_adversarial_loss(logits, labels)
    torch.testing.assert_close(everything, slow_adversarial(logits, labels, valid | True))


def test_the_weights_carry_no_gradient():
    """With them, the gradient of the mean entropy would be part of it."""
    logits = torch.tensor([1.0, -0.5], dtype=torch.float64).view(1, 1, 2, 1, 1)
    logits = logits.repeat(1, 1, 1, 1, 2).requires_grad_()
    labels = torch.tensor([[[[SOURCE, TARGET]]]])
    (gradient,) = torch.autograd.grad(domain_adversarial_loss(logits, labels), logits)
    p = logits.detach()[0, 0, :, 0, 0].softmax(0)
    weight = (1 + math.exp(sum(p * p.log()))) / 3 / 2
    torch.testing.assert_close(gradient[0, 0, :, 0, 0], weight * (p - torch.tensor([1.0, 0.0])))


def test_one_domain_alone_has_nothing_to_tell_apart():
    logits, labels = randn(2, 2, 2, 3, 3).requires_grad_(), torch.full((2, 2, 3, 3), SOURCE)
    for domain in (SOURCE, TARGET, IGNORE):
        loss = domain_adversarial_loss(logits, labels.fill_(domain))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0 and torch.equal(gradient, torch.zeros_like(gradient))
    # Neither is its other domain in another image, nor in another class.
    labels[0, 0], labels[1, 0], labels[0, 1] = SOURCE, TARGET, TARGET
    assert domain_adversarial_loss(logits, labels) == 0


def test_both_domains_have_the_same_say():
    logits = torch.zeros(1, 1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.full((1, 1, 4, 5), SOURCE)
    labels[..., 0, :3] = TARGET
    (gradient,) = torch.autograd.grad(domain_adversarial_loss(logits, labels), logits)
    on_target, on_source = (gradient[0, 0, 0][labels[0, 0] == k].sum() for k in (TARGET, SOURCE))
    assert on_target > 0
    torch.testing.assert_close(on_target, -on_source)


def test_classes_without_pixels_and_neither_domain_count_as_the_equation_says():
    logits, labels = randn(2, 2, 2, 3, 4), domains_of(2, 2, 3, 4)
    absent = labels.clone()
    absent[:, 1] = IGNORE
    alone = domain_adversarial_loss(logits[:, :1], labels[:, :1])
    torch.testing.assert_close(domain_adversarial_loss(logits, absent), alone)
    # The mean is over all pixels: the same domains in a frame of others count for less.
    frame = F.pad(labels, (0, 4), value=IGNORE)
    framed = domain_adversarial_loss(F.pad(logits, (0, 4), value=0.3), frame)
    torch.testing.assert_close(framed, domain_adversarial_loss(logits, labels) / 2)


def test_adversarial_loss_never_counts_padding():
    logits, labels = randn(2, 3, 2, 4, 6), domains_of(2, 3, 4, 6)
    valid = padded_columns(2, 4, 6, first=4)
    expected = domain_adversarial_loss(logits[..., :4], labels[..., :4])
    logits[..., 4:] = float("nan")
    logits.requires_grad_()
    loss = domain_adversarial_loss(logits, labels, valid=valid)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all() and not gradient[..., 4:].any() and gradient.any()
    nothing = domain_adversarial_loss(logits, labels, valid=torch.zeros_like(valid))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing == 0 and torch.equal(gradient, torch.zeros_like(gradient))


def test_adversarial_loss_does_not_feel_the_order_of_images_or_classes():
    logits, labels = randn(3, 4, 2, 3, 3), domains_of(3, 4, 3, 3)
    loss = domain_adversarial_loss(logits, labels)
    for order in (([2, 0, 1], slice(None)), (slice(None), [3, 1, 0, 2])):
        shuffled = domain_adversarial_loss(logits[order], labels[order])
        torch.testing.assert_close(shuffled, loss)


def test_large_logits_are_survived():
    logits = (1e4 * randn(2, 2, 2, 3, 3)).float().requires_grad_()
    loss = domain_adversarial_loss(logits, domains_of(2, 2, 3, 3))
    (gradient,) = torch.autograd.grad(loss, logits)
    exact = domain_adversarial_loss(logits.detach().double(), domains_of(2, 2, 3, 3))
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5) and loss > 1000
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_are_float32_or_float64(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logits, cam = randn(2, 2, 2, 3, 3).to(dtype), randn(2, 2, 3, 3).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert domain_adversarial_loss(logits, domains_of(2, 2, 3, 3)).dtype == wide
        assert confident_pseudo_supervision(cam, labels_of(2, 3, 3)).dtype == wide


def test_shapes_are_checked():
    logits, labels = randn(2, 3, 2, 4, 4), domains_of(2, 3, 4, 4)
    for call in (
        lambda: domain_adversarial_loss(logits[:, :, :1], labels),
        lambda: domain_adversarial_loss(logits, labels[:, :2]),
        lambda: domain_adversarial_loss(logits, labels, valid=torch.ones(2, 4, 3).bool()),
        lambda: mask_assign(labels.float(), labels[:1].float()),
        lambda: mask_assign(labels.float(), labels.float(), valid=torch.ones(2, 3, 4).bool()),
        lambda: confident_labels(labels.float(), labels.float(), torch.ones(2, 2)),
        lambda: confident_labels(labels.float(), labels[:1].float(), torch.ones(2, 3)),
        lambda: confident_labels(*[labels.float()] * 2, torch.ones(2, 3), valid=labels[:, 0, 1:]),
        lambda: confident_pseudo_supervision(labels.float(), labels[:, 0, :3]),
    ):
        with pytest.raises(ValueError, match="shape"):
            call()


# The classifier


def test_the_classifier_has_a_pair_of_logits_per_class_and_pixel():
    torch.manual_seed(0)
    classifier = DomainClassifier(5, 3, width=8, hidden=4).eval()
    features = randn(2, 5, 4, 3).float()
    logits = classifier(features)
    assert logits.shape == (2, 3, 2, 4, 3)
    # 1x1 convolutions: a pixel knows nothing of the others.
    features[0, :, 1, 2] += 1
    changed = (classifier(features) != logits).any(dim=2).any(dim=1)
    assert changed[0, 1, 2] and changed.sum() == 1
    assert [tuple(p.shape[:2]) for p in classifier.parameters() if p.ndim > 1] == [
        (8, 5), (4, 8), (6, 4),
    ]
    # The heads of different classes share everything but their own weights.
    (gradient,) = torch.autograd.grad(classifier(features)[:, 1].sum(), classifier.heads.weight)
    assert gradient[2:4].any() and not gradient[:2].any() and not gradient[4:].any()


def test_the_classifier_starts_undecided_and_drops_out_in_training_only():
    torch.manual_seed(0)
    classifier = DomainClassifier(16, 2, width=64, hidden=32, dropout=0.5)
    features = randn(2, 16, 4, 4).float()
    assert not torch.equal(classifier(features), classifier(features))
    classifier.eval()
    assert torch.equal(classifier(features), classifier(features))
    assert (classifier(features).softmax(dim=2) - 0.5).abs().max() < 0.1
    assert DomainClassifier(16, 2, dropout=0.25).shared[2].p == 0.25


def test_the_classifier_takes_half_precision_and_answers_in_full():
    torch.manual_seed(0)
    classifier = DomainClassifier(5, 3, width=8, hidden=4, dropout=0.0)
    features = randn(1, 5, 2, 2)
    assert classifier(features.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert classifier(features.bfloat16()).dtype == torch.float32
    assert classifier.double()(features).dtype == torch.float64


# MaskAssign


def test_mask_assign_by_hand():
    cam = torch.tensor([0.0, 0.7, 0.6, 0.61, 0.5, 0.9]).view(1, 1, 1, 6)
    erased = torch.tensor([0.0, 0.0, 0.6, 0.9, 0.9, 0.61]).view(1, 1, 1, 6)
    expected = [IGNORE, SOURCE, IGNORE, SOURCE, TARGET, SOURCE]
    labels = mask_assign(cam, erased)
    assert labels.dtype == torch.int64 and labels.flatten().tolist() == expected
    assert mask_assign(cam, erased, threshold=0.65).flatten().tolist() == [
        IGNORE, SOURCE, IGNORE, TARGET, TARGET, SOURCE,
    ]


def test_mask_assign_knows_neither_padding_nor_absent_classes():
    cam, erased = randn(2, 3, 4, 4).abs(), randn(2, 3, 4, 4, seed=1).abs()
    valid = padded_columns(2, 4, 4, first=3)
    labels = mask_assign(cam, erased, valid=valid)
    assert (labels[..., 3:] == IGNORE).all()
    assert torch.equal(labels[..., :3], mask_assign(cam, erased)[..., :3])
    present = torch.tensor([[1, 0, 1], [0, 0, 0]])
    cam, erased = filter_by_labels(cam, present), filter_by_labels(erased, present)
    labels = mask_assign(cam, erased, threshold=0.0)
    assert (labels[0, 1] == IGNORE).all() and (labels[1] == IGNORE).all()
    assert (labels[0, 0] != IGNORE).all()


# Confident labels


def slow_labels(cam, erased_cam, image_labels, foreground, background, floor, valid):
    batch, classes, height, width = cam.shape
    labels = torch.full((batch, height, width), IGNORE)
    for b in range(batch):
        cells = [(y, x) for y in range(height) for x in range(width) if valid[b, y, x]]
        present = [c for c in range(classes) if image_labels[b, c] > 0]
        value = {(c, p): max(float(cam[b, c][p]), float(erased_cam[b, c][p]))
                 for c in present for p in cells}
        winners = {p: [] for p in cells}
        for c in present:
            largest = max((value[c, p] for p in cells), default=0.0)
            for p in cells:
                if value[c, p] > foreground * largest and cam[b, c][p] >= floor:
                    winners[p].append(c + 1)
        all_show = all(any(c + 1 in won for won in winners.values()) for c in present)
        for p, won in winners.items():
            left = 1 - max((value[c, p] for c in present), default=0.0) >= background
            if left and all_show:
                won.append(0)
            if len(won) == 1:
                labels[b][p] = won[0]
    return labels


def test_confident_labels_by_hand():
    cam = torch.tensor([
        [0.9, 0.61, 0.5, 0.29, 0.31, 0.7, 0.0, 0.2, 0.19],
        [0.0, 0.0, 0.0, 0.1, 0.0, 0.5, 0.4, 0.0, 0.0],
    ])
    erased_cam = torch.tensor([
        [0.0, 0.0, 0.59, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ])
    labels = confident_labels(cam.view(1, 2, 1, 9), erased_cam.view(1, 2, 1, 9), torch.ones(1, 2))
    # At place 5 both classes win; at 6 the second has 0.4, of a maximum of 0.5. At 8 the first
    # map is below the floor.
    assert labels.tolist() == [[[1, 1, IGNORE, 0, IGNORE, IGNORE, 2, 1, IGNORE]]]


@pytest.mark.parametrize("cuts", [(0.6, 0.7, 0.2), (0.4, 0.5, 0.1), (0.3, 0.9, 0.4)])
def test_confident_labels_agree_with_the_rules(cuts):
    generator = torch.manual_seed(0)
    cam, erased_cam = torch.rand(2, 8, 3, 4, 5, generator=generator, dtype=torch.float64) ** 4
    cam[0, 1] *= 0.05
    image_labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]] * 2)
    valid = torch.rand(8, 4, 5, generator=generator) < 0.8
    valid[7] = False
    everywhere = torch.ones_like(valid)
    expected = slow_labels(cam, erased_cam, image_labels, *cuts, everywhere)
    assert {0, 1, 2, 3, IGNORE} == set(expected.unique().tolist())
    labels = confident_labels(cam, erased_cam, image_labels, *cuts)
    assert labels.dtype == torch.int64 and torch.equal(labels, expected)
    cam = cam.masked_fill(~valid[:, None], 1.0)
    labels = confident_labels(cam, erased_cam, image_labels, *cuts, valid)
    assert torch.equal(labels, slow_labels(cam, erased_cam, image_labels, *cuts, valid))


def test_no_background_while_a_class_shows_nowhere():
    cam = torch.zeros(3, 2, 2, 2)
    cam[:, 0, 0, 0] = 1.0
    cam[1, 1, 0, 1] = 0.1  # below the floor
    cam[2, 1, 0, 1] = 0.5
    none = torch.zeros_like(cam)
    labels = confident_labels(cam, none, torch.ones(3, 2))
    nothing = [IGNORE, IGNORE, IGNORE]
    assert labels.flatten(1).tolist() == [[1, *nothing], [1, *nothing], [1, 2, 0, 0]]
    one_class = confident_labels(cam, none, torch.tensor([[1, 0]]).expand(3, 2))
    assert one_class.flatten(1).tolist() == [[1, 0, 0, 0]] * 3
    assert (confident_labels(cam, none, torch.zeros(3, 2)) == 0).all()


# Confident pseudo-supervision


def slow_supervision(cam, labels):
    logits = torch.cat([torch.zeros_like(cam[:, :1]), cam], dim=1)
    terms = {}
    for b, y, x in (labels != IGNORE).nonzero().tolist():
        k = int(labels[b, y, x])
        z = logits[b, :, y, x]
        terms.setdefault(k, []).append(sum(v.exp() for v in z).log() - z[k])
    return sum(sum(line) / len(line) for line in terms.values()) / len(terms)


def test_supervision_by_hand():
    cam = torch.tensor([[0.0, 0.0, LOG3, 5.0], [0.0, math.log(2), 0.0, 5.0]], dtype=torch.float64)
    labels = torch.tensor([[[0, 0, 1, IGNORE]]])
    background = (LOG3 + math.log(4)) / 2
    expected = (background + math.log(5 / 3)) / 2
    loss = confident_pseudo_supervision(cam.view(1, 2, 1, 4), labels)
    assert loss.item() == pytest.approx(expected)


def test_supervision_agrees_with_the_equation():
    cam, labels = randn(3, 4, 3, 3).requires_grad_(), labels_of(3, 3, 3, classes=4)
    labels[labels == 2] = 3
    expected, loss = slow_supervision(cam, labels), confident_pseudo_supervision(cam, labels)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, cam)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)
    assert not ours.masked_select((labels == IGNORE)[:, None]).any()
    shuffled = confident_pseudo_supervision(cam[[2, 0, 1]], labels[[2, 0, 1]])
    torch.testing.assert_close(shuffled, loss)


def test_the_softmax_is_that_of_sigmoids_of_which_one_at_most_is_on():
    cam = 2 * randn(1, 3, 1, 1)
    on = cam.flatten().sigmoid()
    joint = [math.prod((1 - on).tolist())]
    joint += [joint[0] / (1 - p.item()) * p.item() for p in on]
    for k, p in enumerate(joint):
        loss = confident_pseudo_supervision(cam, torch.full((1, 1, 1), k))
        assert loss.item() == pytest.approx(-math.log(p / sum(joint)))


def test_supervision_is_balanced_over_the_classes():
    cam = torch.zeros(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(1, 4, 5, dtype=torch.int64)
    labels[0, 0, :2] = 1
    (gradient,) = torch.autograd.grad(confident_pseudo_supervision(cam, labels), cam)
    per_pixel = gradient[0, 1]  # of a class that is wrong everywhere
    shares = [per_pixel[labels[0] == k].sum() for k in (0, 1)]
    assert shares[0] > 0
    torch.testing.assert_close(*shares)


def test_supervision_without_confident_pixels_is_zero():
    cam, labels = randn(2, 3, 4, 4).requires_grad_(), torch.full((2, 4, 4), IGNORE)
    loss = confident_pseudo_supervision(cam, labels)
    (gradient,) = torch.autograd.grad(loss, cam)
    assert loss == 0 and torch.equal(gradient, torch.zeros_like(gradient))
    cam.data[0, :, 0, 0] = float("nan")
    labels[1, 0, 0] = 1
    loss = confident_pseudo_supervision(cam, labels)
    (gradient,) = torch.autograd.grad(loss, cam)
    assert loss > 0 and gradient.isfinite().all() and gradient.count_nonzero() == 3


# The regularizer in a step


CLASSES, SIZE, PATCH = 3, 48, 8
GRID = SIZE // PATCH


def tiny_network():
    torch.manual_seed(0)
    network = CoSANetwork(
        CLASSES, "vit_tiny_patch16_224",
        {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 16, "depth": 2, "num_heads": 2},
        aux_layer=0, decoder_width=8, decoder_dilation=1,
    )
    torch.nn.init.normal_(network.classifier.weight, std=0.3)
    return network


class Spy(torch.nn.Module):
    """An assignment network that notes what it sees and gives the CAM that it was told to."""

    def __init__(self, cam):
        super().__init__()
        self.cam = cam
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        self.under_autocast = torch.is_autocast_enabled("cpu")
        unused = torch.zeros(())
        return NetworkOutput(unused, unused, self.cam, unused, unused, unused)


def pseudo_labels(cam, image_labels, valid, present):
    cam = filter_by_labels(normalize(cam.relu(), valid[:, None]), image_labels)
    return CamTargets(cam, (cam.amax(dim=1) > 0.5).long(), torch.zeros(()), 0.5)


def patches(cells):
    """(..., h, w) at the token grid to pixels."""
    return cells.repeat_interleave(PATCH, -1).repeat_interleave(PATCH, -2)


def make_context(batch_size=2, progress=0.5, cam=None, assignment=None, autocast=nullcontext):
    """Random images, each with two of the three classes, and the maps ``cam`` for them."""
    online = tiny_network()
    generator = torch.manual_seed(1)
    weak = torch.randn(batch_size, 3, SIZE, SIZE, generator=generator)
    image_labels = torch.ones(batch_size, CLASSES)
    image_labels[torch.arange(batch_size), torch.arange(batch_size) % CLASSES] = 0
    if cam is None:
        cam = patches(torch.rand(batch_size, CLASSES, GRID, GRID, generator=generator))
    cam = filter_by_labels(normalize(cam), image_labels)
    with autocast():
        output = online(weak + 0.1)
    batch = {
        "weak": weak, "strong": weak + 0.1, "image_labels": image_labels,
        "valid": torch.ones(batch_size, SIZE, SIZE, dtype=torch.bool),
    }
    return cotraining.context_of(
        batch, output,
        {"cam": CamTargets(cam, torch.zeros(()), torch.zeros(()), 0.5)},
        label_view=pseudo_labels,
        online=online,
        assignment=assignment or AssignmentNetwork(online),
        progress=progress,
        autocast=autocast,
    )


def make_regularizer(**options):
    torch.manual_seed(2)
    options = {"weight": 1.0, "width": 16, "hidden": 8, "dropout": 0.0} | options
    return cotraining.InMeans(
        DomainAdaptation(DomainAdaptationOptions(**options), 16, CLASSES)
    )


def test_supervision_is_of_scores_with_the_offset_of_the_classifier():
    context, regularizer = make_context(), make_regularizer(adversarial=0)
    before = regularizer(context)["plda_supervision"]
    offset = torch.tensor([1.0, -3.0, 2.0])[:, None, None]
    output = context.output
    moved = replace(output, cam=output.cam - offset, offset=offset)
    after = regularizer(replace(context, output=moved))["plda_supervision"]
    torch.testing.assert_close(after, before)


def test_weights():
    assert make_regularizer(weight=0.5, adversarial=0.2, supervision=3).weights() == {
        "plda_adversarial": 0.1, "plda_supervision": 1.5,
    }
    assert set(make_regularizer(adversarial=0).weights()) == {"plda_supervision"}
    assert make_regularizer().needs == {"cam"} and make_regularizer().loss_factors() == {}


def test_the_second_pass_sees_no_source_pixels():
    spy = Spy(torch.zeros(2, CLASSES, GRID, GRID))
    # One corner of a patch: erased are pixels, not cells.
    cam = torch.zeros(2, CLASSES, SIZE, SIZE)
    cam[0, 1, 4:7, 2:5] = 1.0  # class 0 is absent from image 0, class 1 from image 1
    cam[0, 2, 30:33, 40:48] = 0.7
    cam[0, 2, 40:44, 40:44] = 0.5
    cam[0, 2, 0, 47] = 1.0
    cam[0, 0, 20:22] = cam[1, 1, 20:22] = 1.0
    cam[1, 2, 10:12, 0] = 1.0
    context = make_context(cam=cam, assignment=spy)
    see_without_source(context, 0.6)
    (seen,) = spy.seen
    erased = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    erased[0, 4:7, 2:5] = erased[0, 30:33, 40:48] = erased[0, 0, 47] = True
    erased[1, 10:12, 0] = True
    assert torch.equal((seen == context.online.mean).all(dim=1), erased)
    kept = ~erased[:, None].expand_as(seen)
    assert torch.equal(seen[kept], context.batch["weak"][kept])


def test_the_erased_area_neither_sets_the_scale_nor_becomes_target():
    raw = torch.full((1, CLASSES, GRID, GRID), -1.0)
    raw[0, 1, 0, :5] = torch.tensor([9.0, 2.0, 1.5, 1.0, 4.0])
    cam = torch.zeros(1, CLASSES, SIZE, SIZE)
    cam[0, 1, :PATCH, :PATCH] = 1.0  # the whole cell (0, 0)
    cam[0, 2, :PATCH, 4 * PATCH:4 * PATCH + 5] = 1.0  # of another class, 5/8 of a cell
    cam[0, 2, :PATCH, 2 * PATCH:2 * PATCH + 4] = 1.0  # half a cell
    context = make_context(1, cam=cam, assignment=Spy(raw))
    second = see_without_source(context, 0.6)
    assert second[0, 1, 0].tolist() == [0, 1, 0.75, 0.5, 0, 0]
    assert not second[0, 0].any() and not second[0, 1, 1:].any()


def test_a_cell_that_is_erased_piecewise_is_erased():
    raw = torch.zeros(1, CLASSES, GRID, GRID)
    raw[0, 1, 0, :2] = torch.tensor([4.0, 1.0])
    cam = torch.zeros(1, CLASSES, SIZE, SIZE)
    cam[0, 1, :4, :PATCH] = cam[0, 2, 4:8, :PATCH] = 1.0  # each class has half of it
    second = see_without_source(make_context(1, cam=cam, assignment=Spy(raw)), 0.6)
    assert second[0, 1, 0].tolist() == [0, 1, 0, 0, 0, 0]


def test_what_is_not_activated_is_no_target():
    context = make_context(1, assignment=Spy(-torch.rand(1, CLASSES, GRID, GRID)))
    assert not see_without_source(context, 0.6).any()


def expected_terms(regularizer, context):
    """What the terms must be, from the functions that are tested above."""
    valid = F.max_pool2d((~context.batch["valid"]).float(), PATCH) == 0
    cam = F.avg_pool2d(context.targets["cam"].cam, PATCH)
    second = see_without_source(context, 0.6)
    domains = mask_assign(cam, second, 0.6, valid)
    labels = confident_labels(cam, second, context.batch["image_labels"], valid=valid)
    logits = regularizer.classifier(context.output.features)
    assert {SOURCE, TARGET, IGNORE} == set(domains.unique().tolist())
    return {
        "plda_adversarial": domain_adversarial_loss(logits, domains, valid),
        "plda_supervision": confident_pseudo_supervision(context.output.cam, labels),
    }


def test_the_terms_are_the_losses_of_the_domains():
    regularizer, context = make_regularizer(), make_context()
    terms, expected = regularizer(context), expected_terms(regularizer, context)
    assert set(terms) == set(regularizer.weights())
    for name, value in terms.items():
        assert value > 0 and value.dtype == torch.float32 and value.shape == ()
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("progress", [0.0, 0.2])
def test_the_features_get_the_reversed_gradient_and_the_classifier_the_plain_one(progress):
    regularizer, context = make_regularizer(), make_context(progress=progress)
    inputs = [context.output.features, *regularizer.classifier.parameters()]
    term = regularizer(context)["plda_adversarial"]
    plain = expected_terms(regularizer, context)["plda_adversarial"]
    (ours, *own), (theirs, *expected) = (
        torch.autograd.grad(value, inputs) for value in (term, plain)
    )
    assert theirs.any()
    torch.testing.assert_close(ours, -reversal_strength(progress) * theirs)
    for gradient, right in zip(own, expected, strict=True):
        assert right.any()
        torch.testing.assert_close(gradient, right)


def test_gradients_reach_the_online_network_and_the_classifier_alone():
    regularizer, context = make_regularizer(), make_context()
    sum(regularizer(context).values()).backward()
    assert all(p.grad is None for p in context.assignment.parameters())
    assert context.online.encoder.blocks[0].attn.qkv.weight.grad.any()
    assert context.online.classifier.weight.grad.any()
    assert context.online.decoder.conv8.weight.grad is None
    assert all(p.grad.any() for p in regularizer.parameters())


def test_a_term_of_weight_zero_is_not_computed():
    supervision = make_regularizer(adversarial=0.0)
    terms = supervision(make_context())
    assert set(terms) == {"plda_supervision"}
    terms["plda_supervision"].backward()
    assert all(p.grad is None for p in supervision.parameters())
    adversarial, context = make_regularizer(supervision=0.0), make_context()
    terms = adversarial(context)
    assert set(terms) == {"plda_adversarial"}
    terms["plda_adversarial"].backward()
    assert context.online.classifier.weight.grad is None
    with pytest.raises(ValueError, match="all 0"):
        make_regularizer(adversarial=0.0, supervision=0.0)


def test_options_are_passed_on():
    context = make_context()
    values = [
        {k: v.item() for k, v in make_regularizer(**changed)(context).items()}
        for changed in ({}, {"threshold": 0.4}, {"background": 0.9}, {"floor": 0.6})
    ]
    default, threshold, background, floor = values
    assert threshold["plda_adversarial"] != default["plda_adversarial"]
    for other in (threshold, background, floor):
        assert other["plda_supervision"] != default["plda_supervision"]
    assert background["plda_adversarial"] == default["plda_adversarial"]
    spy = Spy(torch.zeros(2, CLASSES, GRID, GRID))
    context = make_context(assignment=spy)
    make_regularizer(threshold=0.8)(context)
    erased = context.targets["cam"].cam.amax(dim=1) > 0.8
    assert torch.equal((spy.seen[0] == context.online.mean).all(dim=1), erased)
    classifier = make_regularizer(width=12, hidden=6, dropout=0.3).classifier
    assert classifier.shared[0].weight.shape[:2] == (12, 16)
    assert classifier.heads.weight.shape[:2] == (2 * CLASSES, 6) and classifier.shared[2].p == 0.3


def test_padding_counts_nowhere():
    raw = torch.randn(2, CLASSES, GRID, GRID, generator=torch.manual_seed(4))
    context = make_context(assignment=Spy(raw))
    # The last column and a bit of the one before it: five whole cells become four.
    context.batch["valid"] = padded_columns(2, SIZE, SIZE, first=SIZE - PATCH - 1)
    valid = context.batch["valid"][:, None]
    context.targets["cam"].cam = context.targets["cam"].cam.masked_fill(~valid, 0)
    regularizer = make_regularizer()
    terms = regularizer(context)
    raw[..., 4:] = 50.0
    context.targets["cam"].cam = context.targets["cam"].cam.masked_fill(~valid, 1.0)
    hidden = torch.arange(GRID) >= 4
    context.output.features = context.output.features.masked_fill(hidden, float("nan"))
    context.output.cam = context.output.cam.masked_fill(hidden, float("nan"))
    inputs = context.output.features, context.output.cam
    again = regularizer(context)
    for name, value in terms.items():
        assert value > 0
        torch.testing.assert_close(again[name], value)
    for gradient in torch.autograd.grad(sum(again.values()), inputs):
        assert gradient.isfinite().all() and gradient.any() and not gradient[..., 4:].any()


@pytest.mark.parametrize("case", ["padding", "flat", "no class"])
def test_a_batch_that_holds_nothing_gives_zero(case):
    regularizer, context = make_regularizer(), make_context()
    if case == "padding":
        context.batch["valid"].zero_()
    elif case == "flat":
        context.assignment = Spy(torch.zeros(2, CLASSES, GRID, GRID))
        context.targets["cam"].cam.zero_()
    else:
        context.batch["image_labels"].zero_()
        context.targets["cam"].cam.zero_()
    terms = regularizer(context)
    assert terms["plda_adversarial"] == 0
    # An image that holds no class is background, and that is no pseudo-label.
    assert (terms["plda_supervision"] > 0) == (case == "no class")
    inputs = [context.output.features, *regularizer.parameters()]
    for gradient in torch.autograd.grad(terms["plda_adversarial"], inputs):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    (gradient,) = torch.autograd.grad(terms["plda_supervision"], context.output.cam)
    assert gradient.isfinite().all() and gradient.any() == (case == "no class")


def test_the_order_of_the_images_changes_nothing():
    regularizer, context = make_regularizer(), make_context(3)
    terms, order = regularizer(context), [2, 0, 1]
    shuffled = copy.copy(context)
    shuffled.batch = {key: value[order] for key, value in context.batch.items()}
    shuffled.output = context.online(shuffled.batch["strong"])
    shuffled.targets = {"cam": CamTargets(context.targets["cam"].cam[order], None, None, 0.5)}
    for name, value in regularizer(shuffled).items():
        torch.testing.assert_close(value, terms[name], rtol=1e-5, atol=1e-6)


def test_under_autocast():
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    spy = Spy(torch.randn(2, CLASSES, GRID, GRID, generator=torch.manual_seed(4)))
    regularizer, context = make_regularizer(), make_context(assignment=spy, autocast=autocast)
    context.output.features = context.output.features.bfloat16()
    terms = regularizer(context)
    assert spy.under_autocast
    assert all(term.dtype == torch.float32 and term > 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in regularizer.parameters())


def test_the_classifier_is_saved_and_restored():
    saved, other = make_regularizer(), make_regularizer()
    optimizer = torch.optim.AdamW(saved.parameters(), lr=1e-2)
    context = make_context()
    saved(context)["plda_adversarial"].backward()
    optimizer.step()
    features = context.output.features.detach()
    assert not torch.equal(saved.classifier(features), other.classifier(features))
    state = saved.state_dict()
    assert state and state.keys() == dict(saved.named_parameters()).keys()
    other.load_state_dict(state)
    assert torch.equal(saved.classifier(features), other.classifier(features))
