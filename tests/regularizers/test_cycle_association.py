import math
from functools import partial

import pytest
import torch

from cosa.config.regularizers import CycleAssociationOptions
from cosa.core import IGNORE
from cosa.network import NetworkOutput
from cosa.regularizers import cycle_association
from cosa.regularizers.base import Partner
from cosa.regularizers.cycle_association import (
    Candidates,
    CycleAssociation,
    aggregate,
    confident_labels,
    cycle_association_loss,
    draw_sources,
    keep_shared,
    label_smoothing,
    pair_terms,
    prefer_partners,
)
from cosa.targets import CamTargets
from tests.helpers import cotraining, draws
from tests.helpers.cotraining import build, make_batch, only
from tests.helpers.draws import randn

NAMES = ["plca_feature", "plca_probability", "plca_lsr"]
labels_of = partial(draws.labels_of, classes=2)
ROOT2, ROOT3 = math.sqrt(2), math.sqrt(3)


def maps_of(metric, *shape, seed=0):
    """Features or probabilities (B, D, h, w)."""
    maps = randn(*shape, seed=seed)
    return maps if metric == "cosine" else (2 * maps).softmax(dim=1)


def pixels(*vectors):
    """One image whose pixels, in a row, are these vectors."""
    return torch.tensor(vectors, dtype=torch.float64).T[None, :, None, :]


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


# The equations as loops. Numbers are 0-d tensors, so that gradients can be compared, too.


def slow_similarity(metric, a, b):
    if metric == "cosine":
        return sum(a * b) / (sum(a * a).sqrt() * sum(b * b).sqrt())
    return -sum(p * (p.log() - q.log()) for p, q in zip(a, b, strict=True))


def slow_standardise(row, detached):
    mean = sum(row) / len(row)
    deviation = (sum((x - mean) ** 2 for x in row) / (len(row) - 1)).sqrt()
    if detached:
        mean, deviation = mean.detach(), deviation.detach()
    return [(x - mean) / deviation for x in row]


def slow_softmax(row):
    total = sum(x.exp() for x in row)
    return [x.exp() / total for x in row]


def slow_aggregate(metric, target, alpha, detached=True):
    mixed = []
    for x in target:
        row = [slow_similarity(metric, x, y) for y in target]
        attention = slow_softmax(slow_standardise(row, detached) if metric == "cosine" else row)
        around = sum(share * y for share, y in zip(attention, target, strict=True))
        mixed.append((1 - alpha) * x + alpha * around)
    return mixed


def slow_pair(metric, source, target, labels, alpha, detached=True):
    """The terms of the kept source pixels; source, target: lists of vectors."""
    target = slow_aggregate(metric, target, alpha, detached)
    # The way back is from the target pixel: -KL(q_j || p_i), which is no transpose.
    there = [[slow_similarity(metric, p, q) for q in target] for p in source]
    back = [[slow_similarity(metric, q, p) for p in source] for q in target]
    forth = [slow_softmax(slow_standardise(row, detached)) for row in there]
    back = [slow_softmax(slow_standardise(row, detached)) for row in back]
    terms = []
    for i, row in enumerate(forth):
        j = max(range(len(row)), key=lambda j: row[j].item())
        end = max(range(len(back[j])), key=lambda k: back[j][k].item())
        if labels[i] != IGNORE and labels[i] == labels[end]:
            terms.append(-(row[j] * back[j][end]).log())
    return terms


def slow_loss(metric, source, target, labels, alpha, detached=True):
    pairs = [
        slow_pair(metric, list(s.flatten(1).T), list(t.flatten(1).T), line.flatten(), alpha,
                  detached)
        for s, t, line in zip(source, target, labels, strict=True)
    ]
    means = [sum(terms) / len(terms) for terms in pairs if terms]
    return sum(means) / len(means), [len(terms) for terms in pairs]


# The loss


def test_by_hand_with_cosines():
    source, target = pixels((2, 0), (0, 3)), pixels((1, 0), (0, 1), (-5, 0))
    # Rows: (1, 0, -1) has mean 0 and deviation 1; (0, 1, 0) has 1/3 and 1/sqrt 3.
    forth = 1 - math.log(math.e + 1 + 1 / math.e), -math.log(1 + 2 * math.exp(-ROOT3))
    # Back: of two numbers, whichever they are, standardised ones are 1/sqrt 2 and -1/sqrt 2.
    back = -math.log(1 + math.exp(-ROOT2))
    labels = torch.tensor([[[0, 4]]])
    loss = cycle_association_loss(source, target, labels, aggregation=0)
    assert loss.item() == pytest.approx(-(forth[0] + forth[1]) / 2 - back)
    one = cycle_association_loss(source, target, torch.tensor([[[IGNORE, 4]]]), aggregation=0)
    assert one.item() == pytest.approx(-forth[1] - back)


def test_by_hand_with_divergences():
    source, target = pixels((0.75, 0.25)), pixels((0.75, 0.25), (0.5, 0.5), (0.25, 0.75))
    log3, log2 = math.log(3), math.log(2)
    row = [0, -(0.75 * log3 - log2), -0.5 * log3]
    mean = sum(row) / 3
    deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / 2)
    forth = [math.exp((x - mean) / deviation) for x in row]
    loss = cycle_association_loss(source, target, torch.tensor([[[0]]]), "kl", aggregation=0)
    assert loss.item() == pytest.approx(-math.log(forth[0] / sum(forth)))


def test_the_way_back_of_divergences_by_hand():
    """From the target pixel: with the transpose the second source pixel would be the best."""
    p, q = ((0.5, 0.5), (0.9, 0.1), (0.2, 0.8)), ((0.6, 0.4), (0.1, 0.9))

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    def softmax_of_the_best(row):
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / (len(row) - 1))
        powers = [math.exp((x - mean) / deviation) for x in row]
        return max(powers) / sum(powers), row.index(max(row))

    loss = cycle_association_loss(
        pixels(*p), pixels(*q), torch.tensor([[[1, 2, 3]]]), "kl", aggregation=0
    )
    terms = []
    for i in range(3):
        there, j = softmax_of_the_best([-kl(p[i], other) for other in q])
        back, end = softmax_of_the_best([-kl(q[j], other) for other in p])
        if end == i:
            terms.append(-math.log(there * back))
    assert 0 < len(terms) < 3
    assert loss.item() == pytest.approx(sum(terms) / len(terms))


def test_aggregation_by_hand():
    target, valid = torch.eye(2, dtype=torch.float64)[None], torch.ones(1, 2, dtype=torch.bool)
    itself = 1 / (1 + math.exp(-ROOT2))
    mixed = aggregate(target, valid, "cosine", 0.5)
    expected = torch.tensor([1 + itself, 1 - itself], dtype=torch.float64) / 2
    torch.testing.assert_close(mixed[0], torch.stack([expected, expected.flip(0)]))
    assert aggregate(target, valid, "cosine", 0) is target
    # KL((1/2, 1/2) || (3/4, 1/4)) = log(2 / sqrt 3), not standardised.
    soft = torch.tensor([[[0.5, 0.5], [0.75, 0.25]]], dtype=torch.float64)
    itself = 1 / (1 + ROOT3 / 2)
    assert aggregate(soft, valid, "kl", 1)[0, 0, 0].item() == pytest.approx(
        0.5 * itself + 0.75 * (1 - itself)
    )


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
@pytest.mark.parametrize("metric", ["cosine", "kl"])
def test_values_and_gradients_agree_with_the_equations(metric, alpha):
    source = maps_of(metric, 4, 4, 3, 3).requires_grad_()
    target = maps_of(metric, 4, 4, 2, 4, seed=1).requires_grad_()
    labels = labels_of(4, 3, 3)
    labels[3] = IGNORE
    expected, kept = slow_loss(metric, source, target, labels, alpha)
    # Cycles break, by how many tells the pairs apart, and one pair has none.
    assert 0 < min(kept[:3]) < max(kept[:3]) < 9 and kept[3] == 0
    loss = cycle_association_loss(source, target, labels, metric, alpha)
    torch.testing.assert_close(loss, expected)

    def on_simplex(maps):
        # A constant over the channels changes no probability.
        return maps - maps.mean(dim=1, keepdim=True) if metric == "kl" else maps

    ours, theirs = (gradients(value, source, target) for value in (loss, expected))
    for gradient, right in zip(ours, theirs, strict=True):
        assert all(image.any() for image in right[:3])
        torch.testing.assert_close(on_simplex(gradient), on_simplex(right))


@pytest.mark.parametrize("metric", ["cosine", "kl"])
def test_no_gradient_through_the_deviations(metric):
    source, target = maps_of(metric, 1, 4, 3, 3), maps_of(metric, 1, 4, 2, 4, seed=1)
    source, labels = source.requires_grad_(), labels_of(1, 3, 3)
    ours, detached, attached = (
        gradients(value, source)[0] for value in (
            cycle_association_loss(source, target, labels, metric),
            slow_loss(metric, source, target, labels, 0.5)[0],
            slow_loss(metric, source, target, labels, 0.5, detached=False)[0],
        )
    )
    ours, detached, attached = (g - g.mean(dim=1, keepdim=True) for g in (ours, detached, attached))
    torch.testing.assert_close(ours, detached)
    assert (ours - attached).norm() > 0.1 * ours.norm()


def at(degrees):
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


@pytest.mark.parametrize("other", [2, 0, IGNORE])
def test_a_cycle_that_ends_at_another_label_contributes_nothing(other):
    # The only target pixel is nearer to the second source pixel, so the first one's cycle breaks.
    source, target = pixels(at(0), at(30)).requires_grad_(), pixels(at(25)).requires_grad_()
    loss = cycle_association_loss(source, target, torch.tensor([[[1, other]]]))
    intact = math.log(1 + math.exp(-ROOT2))
    assert loss.item() == pytest.approx(0 if other == IGNORE else intact)
    both = cycle_association_loss(source, target, torch.tensor([[[1, 1]]]))
    assert both.item() == pytest.approx(intact)
    if other == IGNORE:
        for gradient in gradients(loss, source, target):
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_background_is_a_label_like_the_others():
    source, target, labels = randn(2, 3, 3, 3), randn(2, 3, 3, 3, seed=1), labels_of(2, 3, 3)
    renamed = torch.where(labels == 0, 7, labels)
    loss = cycle_association_loss(source, target, labels)
    assert loss > 0 and torch.equal(cycle_association_loss(source, target, renamed), loss)
    without = labels.masked_fill(labels == 0, IGNORE)
    assert not torch.allclose(cycle_association_loss(source, target, without), loss)


def test_ignored_pixels_are_candidates():
    """A source pixel without a label still ends cycles and shapes the softmax."""
    source, target = pixels(at(0), at(30), at(90)), pixels(at(25), at(80))
    whole = cycle_association_loss(source, target, torch.tensor([[[1, IGNORE, 1]]]))
    alone = cycle_association_loss(source[..., ::2], target, torch.tensor([[[1, 1]]]))
    assert not torch.allclose(whole, alone)


@pytest.mark.parametrize("metric", ["cosine", "kl"])
def test_padding_counts_on_neither_side(metric):
    source, target = maps_of(metric, 2, 4, 3, 5), maps_of(metric, 2, 4, 4, 5, seed=1)
    labels = labels_of(2, 3, 5)
    valid, target_valid = torch.ones(2, 3, 5).bool(), torch.ones(2, 4, 5).bool()
    valid[..., 3:] = False
    target_valid[..., :1] = False
    expected = cycle_association_loss(source[..., :3], target[..., 1:], labels[..., :3], metric)
    source = source.masked_fill(~valid[:, None], float("nan")).requires_grad_()
    target = target.masked_fill(~target_valid[:, None], float("nan")).requires_grad_()
    loss = cycle_association_loss(
        source, target, labels, metric, target_valid=target_valid, source_valid=valid
    )
    assert loss > 0
    torch.testing.assert_close(loss, expected)
    for gradient, counted in zip(
        gradients(loss, source, target), (valid, target_valid), strict=True
    ):
        assert not gradient.masked_select(~counted[:, None]).any()
        assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("case", ["no label", "source", "target", "no pair", "one image"])
@pytest.mark.parametrize("metric", ["cosine", "kl"])
def test_nothing_to_associate_is_zero(metric, case):
    source, target = maps_of(metric, 2, 4, 3, 3), maps_of(metric, 2, 4, 2, 3, seed=1)
    labels, valid, target_valid = labels_of(2, 3, 3), torch.ones(2, 3, 3), torch.ones(2, 2, 3)
    expected = 0
    if case == "no label":
        labels.fill_(IGNORE)
    elif case == "source":
        valid.zero_()
    elif case == "target":
        target_valid.zero_()
    elif case == "no pair":
        source, target, labels, valid, target_valid = (
            tensor[:0] for tensor in (source, target, labels, valid, target_valid)
        )
    else:  # of which the mean is not diluted
        expected = cycle_association_loss(source[:1], target[:1], labels[:1], metric)
        target_valid[1] = 0
    source, target = source.requires_grad_(), target.requires_grad_()
    loss = cycle_association_loss(
        source, target, labels, metric, target_valid=target_valid, source_valid=valid
    )
    assert loss.item() == pytest.approx(float(expected))
    for gradient in gradients(loss, source, target):
        assert gradient.isfinite().all() and not gradient[1:].any()
        assert gradient.any() == (case == "one image")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["cosine", "kl"])
@pytest.mark.parametrize("constant", ["source", "target", "both", "zero"])
def test_rows_without_deviation(metric, constant, dtype):
    """Their softmax is uniform, and they send no gradient."""
    source, target = (
        maps_of(metric, 1, 4, 3, 3, seed=seed).to(dtype) for seed in range(2)
    )
    if constant in ("source", "both"):
        source = source[..., :1, :1].repeat(1, 1, 3, 3)
    if constant in ("target", "both"):
        target = target[..., :1, :1].repeat(1, 1, 3, 3)
    if constant == "zero":
        source, target = 0 * source, 0 * target
    source, target = source.requires_grad_(), target.requires_grad_()
    labels = torch.ones(1, 3, 3, dtype=torch.int64)
    loss = cycle_association_loss(source, target, labels, metric)
    if constant in ("both", "zero"):
        assert loss.item() == pytest.approx(2 * math.log(9), rel=1e-5)
    for gradient in gradients(loss, source, target):
        assert gradient.isfinite().all()
        assert gradient.any() == (constant in ("source", "target"))


@pytest.mark.parametrize("metric", ["cosine", "kl"])
def test_a_single_pixel_has_nothing_to_choose(metric):
    source, target = maps_of(metric, 1, 4, 1, 1), maps_of(metric, 1, 4, 1, 1, seed=1)
    source = source.requires_grad_()
    loss = cycle_association_loss(source, target, torch.tensor([[[1]]]), metric)
    assert loss.item() == 0 and not gradients(loss, source)[0].any()


def test_certain_predictions_stay_finite():
    logits = (200 * randn(2, 3, 3, 3)).float().requires_grad_()
    target = (200 * randn(2, 3, 3, 3, seed=1)).float().requires_grad_()
    loss = cycle_association_loss(
        logits.softmax(dim=1), target.softmax(dim=1), labels_of(2, 3, 3), "kl"
    ) + label_smoothing(target)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, logits, target))


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_nearly_uniform_predictions_are_not_lost_in_rounding(alpha, monkeypatch):
    """As those of a new decoder are: products with 10 bits of mantissa, as in TensorFloat-32."""
    def narrow(tensor):
        return (tensor.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)

    original = torch.Tensor.__matmul__
    source, target = (0.02 * randn(1, 21, 4, 4, seed=seed) for seed in range(2))
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    right, _ = slow_loss("kl", source.softmax(1), target.softmax(1), labels, alpha)
    products = []
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: (
        products.append(a) or original(narrow(a), narrow(b))))
    source, target = source.float().softmax(1), target.float().softmax(1)
    loss = cycle_association_loss(source, target, labels, "kl", alpha)
    assert products and loss.item() == pytest.approx(right.item(), rel=0.02)


def test_half_precision_under_autocast():
    source, target, labels = randn(2, 8, 3, 3), randn(2, 8, 3, 3, seed=1), labels_of(2, 3, 3)
    source, target = source.bfloat16(), target.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cycle_association_loss(source, target, labels)
        lsr = label_smoothing(source)
    assert loss.dtype == lsr.dtype == torch.float32
    assert torch.equal(loss, cycle_association_loss(source.float(), target.float(), labels))
    assert torch.equal(lsr, label_smoothing(source.float()))


@pytest.mark.parametrize("change, words", [
    ({"metric": "dot"}, "metric"),
    ({"target": torch.zeros(2, 5, 2, 2)}, "target"),
    ({"target": torch.zeros(1, 4, 2, 2)}, "target"),
    ({"source_labels": torch.zeros(2, 2, 3).long()}, "source_labels"),
    ({"target_valid": torch.ones(2, 3, 3).bool()}, "target_valid"),
    ({"source_valid": torch.ones(2, 2, 2).bool()}, "source_valid"),
])
def test_mistakes_are_reported(change, words):
    arguments = {"source": torch.zeros(2, 4, 3, 3), "target": torch.zeros(2, 4, 2, 2),
                 "source_labels": torch.zeros(2, 3, 3).long()}
    cycle_association_loss(**arguments)
    with pytest.raises(ValueError, match=words):
        cycle_association_loss(**arguments | change)


# Label smoothing


def test_label_smoothing_by_hand():
    logits = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    logits[0, 1, 0, 1] = math.log(3)  # probabilities (1/2, 1/2) and (1/4, 3/4)
    logits.requires_grad_()
    levels = math.log(2), math.log(16 / 3) / 2
    loss = label_smoothing(logits)
    assert loss.item() == pytest.approx(sum((x / 10 - 1) * x for x in levels) / 2)
    # dl/dlogits is p - 1/2; the factor l/10 - 1 is constant.
    expected = torch.tensor([-0.25, 0.25], dtype=torch.float64) * (levels[1] / 10 - 1) / 2
    (gradient,) = gradients(loss, logits)
    torch.testing.assert_close(gradient[0, :, 0, 1], expected)
    assert not gradient[0, :, 0, 0].any()


def test_label_smoothing_leaves_padding_out_and_averages_per_image():
    logits, valid = randn(3, 4, 2, 3), torch.ones(3, 2, 3).bool()
    valid[0, :, 1:], valid[2] = False, False
    images = logits[0, :, :, :1], logits[1]
    levels = [-image.softmax(dim=0).log().mean(dim=0) for image in images]
    expected = sum(((x / 10 - 1) * x).mean() for x in levels) / 2
    logits = logits.masked_fill(~valid[:, None], float("nan")).requires_grad_()
    loss = label_smoothing(logits, valid)
    torch.testing.assert_close(loss, expected)
    (gradient,) = gradients(loss, logits)
    assert not gradient.masked_select(~valid[:, None]).any() and gradient.isfinite().all()
    nothing = label_smoothing(logits, torch.zeros_like(valid))
    assert nothing == 0 and not gradients(nothing, logits)[0].any()
    with pytest.raises(ValueError, match="valid"):
        label_smoothing(logits, valid[:2])


# Pairs


def test_sources_are_other_images_with_a_common_class():
    image_labels = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(6, 6)
    for _ in range(900):
        sources = draw_sources(image_labels, generator)
        assert sources.dtype == torch.int64 and (sources[[3, 5]] == -1).all()
        drawn = (sources >= 0).nonzero()[:, 0]
        counts[drawn, sources[drawn]] += 1
    expected = torch.tensor([
        [0, 1 / 2, 0, 0, 1 / 2, 0], [1 / 3, 0, 1 / 3, 0, 1 / 3, 0], [0, 1 / 2, 0, 0, 1 / 2, 0],
        [0] * 6, [1 / 3, 1 / 3, 1 / 3, 0, 0, 0], [0] * 6,
    ])
    assert not counts[expected == 0].any()
    # Five standard deviations of a frequency.
    assert (counts / 900 - expected).abs().max() < 5 * 0.5 / math.sqrt(900)


def test_draws_follow_the_random_state():
    image_labels = torch.ones(8, 1)
    torch.manual_seed(3)
    first, second = draw_sources(image_labels), draw_sources(image_labels)
    torch.manual_seed(3)
    assert torch.equal(draw_sources(image_labels), first) and not torch.equal(first, second)
    generator = torch.Generator().manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(draw_sources(image_labels, generator), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert draw_sources(image_labels[:1]).tolist() == [-1]


def test_a_partner_of_a_class_of_the_target_is_preferred():
    image_labels = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0]])
    sources, index = torch.tensor([1, 0, -1, 1]), torch.tensor([1, 2, 3])
    partner_labels = torch.eye(3)[[0, 2, 2]]
    chosen = prefer_partners(sources, image_labels, index, partner_labels)
    assert chosen.tolist() == [1, 4 + 0, 4 + 1, 1]
    assert sources.tolist() == [1, 0, -1, 1]


def test_labels_that_are_doubtful_or_padded_are_ignored():
    targets = CamTargets(
        cam=torch.zeros(1, 2, 1, 5), labels=torch.tensor([[[0, 1, 2, 2, 1]]]),
        perplexity=torch.tensor([[[0.2, 1.0, 1.1, 0.5, float("nan")]]]), threshold=0.5,
    )
    valid = torch.tensor([[[True, True, True, False, True]]])
    assert confident_labels(targets, valid, 1.0).tolist() == [[[0, 1, IGNORE, IGNORE, IGNORE]]]


def test_labels_of_classes_that_the_target_lacks_are_ignored():
    labels = torch.tensor([[[0, 1, 2, IGNORE, 3]], [[0, 1, 2, IGNORE, 3]]])
    kept = keep_shared(labels, torch.tensor([[0.0, 1, 1], [1, 0, 0]]))
    assert kept.tolist() == [[[0, IGNORE, 2, IGNORE, 3]], [[0, 1, IGNORE, IGNORE, IGNORE]]]


def candidates_of(count=5, grid=(3, 4)):
    generator = torch.manual_seed(9)
    return Candidates(
        features=randn(count, 6, *grid).requires_grad_(),
        seg=randn(count, 4, *grid, seed=1).requires_grad_(),
        labels=labels_of(count, *grid, classes=4),
        valid=torch.rand(count, *grid, generator=generator) < 0.9,
        image_labels=torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 1, 1], [0, 1, 0]])[:count],
    )


def test_terms_are_those_of_the_pairs():
    images = candidates_of()
    terms = cotraining.means(pair_terms(images, torch.tensor([3, -1, 0, -1]), NAMES, 0.3))
    targets, sources = torch.tensor([0, 2]), torch.tensor([3, 0])
    labels = images.labels[sources]
    for pair, absent in enumerate((3, 2)):  # in image 0 and in image 2
        labels[pair].masked_fill_(labels[pair] == absent, IGNORE)
    masks = {"target_valid": images.valid[targets], "source_valid": images.valid[sources]}
    features, probabilities = images.features, images.seg.softmax(dim=1)
    torch.testing.assert_close(terms, {
        "plca_feature": cycle_association_loss(
            features[sources], features[targets], labels, "cosine", 0.3, **masks),
        "plca_probability": cycle_association_loss(
            probabilities[sources], probabilities[targets], labels, "kl", 0.3, **masks),
        "plca_lsr": label_smoothing(images.seg[targets], images.valid[targets]),
    })
    (features, seg) = gradients(sum(terms.values()), images.features, images.seg)
    for gradient in (features, seg):
        assert [bool(image.any()) for image in gradient] == [True, False, True, True, False]


def test_the_order_of_the_batch_does_not_matter():
    images, sources = candidates_of(), torch.tensor([3, 0, -1, 0, 2])
    order = torch.tensor([2, 4, 0, 1, 3])
    moved = Candidates(*(tensor[order] for tensor in vars(images).values()))
    place = order.argsort()
    moved_sources = torch.where(sources < 0, sources, place[sources.clamp_min(0)])[order]
    terms = cotraining.means(pair_terms(images, sources, NAMES))
    torch.testing.assert_close(cotraining.means(pair_terms(moved, moved_sources, NAMES)), terms)
    assert all(term != 0 for term in terms.values())


def test_no_pairs_are_zero_with_zero_gradients():
    images = candidates_of()
    terms = cotraining.means(pair_terms(images, torch.full((5,), -1), NAMES))
    assert set(terms) == set(NAMES) and all(term == 0 for term in terms.values())
    for gradient in gradients(sum(terms.values()), images.features, images.seg):
        assert torch.equal(gradient, torch.zeros_like(gradient))


# The regularizer


def view(count, seed, grid=(3, 4)):
    """A network's output and pseudo-labels at the token grid, all confident."""
    features, seg = randn(count, 6, *grid, seed=seed), randn(count, 4, *grid, seed=seed + 1)
    output = NetworkOutput(
        logits=None, aux_logits=None, cam=torch.zeros(count, 3, *grid), aux_cam=None,
        seg=seg.float().requires_grad_(), features=features.float().requires_grad_(),
    )
    labels = labels_of(count, *grid, classes=2, ignored=0, seed=seed)
    return output, CamTargets(torch.zeros(count, 3, *grid), labels, torch.zeros(labels.shape), 0.5)


def context_of(image_labels, partners=None):
    """Images of class 0 and background; partners: (index, image_labels)."""
    image_labels = torch.tensor(image_labels, dtype=torch.float32)
    output, targets = view(len(image_labels), seed=0)
    context = cotraining.context_of(
        {"image_labels": image_labels, "valid": torch.ones(len(image_labels), 24, 32).bool()},
        output, {"cam": targets},
    )
    if partners is not None:
        index, labels = partners
        output, targets = view(len(index), seed=5)
        for tensor in (output.features, output.seg):
            tensor.requires_grad_(False)
        context.partner = Partner(
            torch.tensor(index), torch.tensor(labels, dtype=torch.float32), None,
            torch.ones(len(index), 24, 32).bool(), output, targets,
        )
    return context


def plca(**options):
    return cotraining.InMeans(
        CycleAssociation(CycleAssociationOptions(weight=1.0, **options), 6, 3)
    )


def test_weights():
    assert plca().weights() == {"plca_feature": 0.1, "plca_probability": 0.1, "plca_lsr": 0.01}
    options = CycleAssociationOptions(weight=0.5, feature=0.4, probability=0.0, lsr=2.0)
    assert CycleAssociation(options, 6, 3).weights() == {"plca_feature": 0.2, "plca_lsr": 1.0}
    assert plca().needs == {"cam"} and not list(plca().parameters())


@pytest.mark.parametrize("off", ["feature", "probability", "lsr"])
def test_a_term_of_weight_0_is_not_computed(off, monkeypatch):
    asked = []
    original = cycle_association.cycle_association_sum
    smoothing = cycle_association.label_smoothing_sum
    monkeypatch.setattr(cycle_association, "cycle_association_sum", lambda *args, **options: (
        asked.append(args[3]) or original(*args, **options)))
    monkeypatch.setattr(cycle_association, "label_smoothing_sum", lambda *args: (
        asked.append("lsr") or smoothing(*args)))
    terms = plca(**{off: 0.0})(context_of([[1, 0, 0], [1, 0, 0]]))
    assert set(terms) == set(NAMES) - {f"plca_{off}"}
    names = {"cosine": "feature", "kl": "probability", "lsr": "lsr"}
    assert {names[name] for name in asked} == {"feature", "probability", "lsr"} - {off}


def test_no_term_at_all():
    with pytest.raises(ValueError, match="all 0"):
        plca(feature=0.0, probability=0.0, lsr=0.0)


def reached(context, term):
    """Which images of the batch a term's gradient reaches, in features or segmentation."""
    inputs = [context.output.features, context.output.seg]
    found = torch.autograd.grad(term, inputs, retain_graph=True, allow_unused=True)
    return {k for g in found if g is not None for k, image in enumerate(g) if image.any()}


def test_two_images_of_the_batch_both_learn():
    context = context_of([[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    terms = plca()(context)
    assert all(term.dtype == torch.float32 for term in terms.values())
    for name in NAMES:
        assert terms[name] != 0 and reached(context, terms[name]) == {0, 1}, name


def test_of_a_pair_in_the_batch_source_and_target_learn():
    images = candidates_of(2)
    images.labels[:] = 0
    terms = cotraining.means(pair_terms(images, torch.tensor([1, -1]), NAMES))
    for name, maps in (("plca_feature", images.features), ("plca_probability", images.seg)):
        (gradient,) = torch.autograd.grad(terms[name], maps, retain_graph=True)
        assert gradient[0].any() and gradient[1].any()
    assert not gradients(terms["plca_lsr"], images.seg)[0][1].any()


def test_of_a_pair_with_a_partner_the_target_alone_learns():
    context = context_of([[1, 1, 0], [0, 1, 1], [0, 0, 0]], ([0, 2], [[1, 0, 0], [1, 0, 0]]))
    context.batch["image_labels"][1, 1] = 0
    terms = plca()(context)
    for name in NAMES:
        assert terms[name] != 0 and reached(context, terms[name]) == {0}, name
    partner = context.partner
    labels = keep_shared(partner.targets.labels[:1], context.batch["image_labels"][:1])
    expected = cycle_association_loss(
        partner.output.features[:1], context.output.features[:1], labels
    )
    torch.testing.assert_close(terms["plca_feature"], expected)


def test_padding_of_the_images_and_of_the_partner_counts_nowhere():
    def terms(noise):
        context = context_of([[1, 1, 0], [0, 1, 1], [1, 0, 1]], ([0], [[1, 0, 0]]))
        context.batch["valid"][:, :, 20:] = False  # the third column in part, the fourth
        context.partner.valid[:, 17:] = False  # the last row, in part
        parts = (
            (context.output, context.targets["cam"], (..., slice(2, None))),
            (context.partner.output, context.partner.targets, (..., slice(2, None), slice(None))),
        )
        for output, targets, area in parts:
            with torch.no_grad():
                output.features[area] = noise * randn(*output.features[area].shape).float()
                output.seg[area] = noise * randn(*output.seg[area].shape).float()
            targets.labels[area] = int(noise) % 2
        torch.manual_seed(0)
        terms = plca()(context)
        inputs = [context.output.features, context.output.seg]
        found = torch.autograd.grad(sum(terms.values()), inputs)
        assert all(g[..., :2].any() and not g[..., 2:].any() for g in found)
        return terms

    assert terms(1.0) == terms(8.0)


def test_doubtful_pixels_are_no_sources():
    context = context_of([[1, 0, 0], [1, 0, 0]])
    context.targets["cam"].perplexity.fill_(0.5)
    assert plca(perplexity=0.5)(context)["plca_feature"] > 0
    terms = plca(perplexity=0.4)(context)
    assert terms["plca_feature"] == terms["plca_probability"] == 0 != terms["plca_lsr"]


@pytest.mark.parametrize("case", ["no pair", "padding"])
def test_degenerate_batches_are_zero(case):
    context = context_of([[1, 0, 0], [0, 1, 0]] if case == "no pair" else [[1, 0, 0]] * 2)
    if case == "padding":
        context.batch["valid"].zero_()
    terms = plca()(context)
    assert set(terms) == set(NAMES) and all(term == 0 for term in terms.values())
    sum(terms.values()).backward()
    for tensor in (context.output.features, context.output.seg):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("autocast", [False, True])
def test_in_a_training_step(autocast):
    bf16 = (lambda: torch.autocast("cpu", torch.bfloat16)) if autocast else None
    cotraining = build(bf16, regularizers={"plca": {"weight": 1.0, "perplexity": 2.0}}, loss=only())
    batch = make_batch(4)
    batch |= {
        "partner": batch["weak"].flip(0), "partner_valid": batch["valid"],
        "partner_class": torch.tensor([0, -1, 0, -1]),
    }
    torch.manual_seed(0)
    total, terms = cotraining.step(batch, 0)
    total.backward()
    assert all(terms[name].isfinite() and terms[name] != 0 for name in NAMES)
    moved = {name for name, p in cotraining.online.named_parameters()
             if p.grad is not None and p.grad.any()}
    assert {"decoder.conv8.weight", "encoder.patch_embed.proj.weight"} <= moved
    assert "classifier.weight" not in moved
    assert all(p.grad is None for p in cotraining.assignment.parameters())
