import math

import pytest
import torch
import torch.nn.functional as F

from cosa.config.regularizers import ImportanceSamplingOptions
from cosa.network import NetworkOutput
from cosa.regularizers.importance_sampling import (
    ImportanceSampling,
    cells_to_draw_from,
    draw,
    importance_sampling_loss,
)
from tests.helpers import cotraining
from tests.helpers.draws import randn


def drawn_counts(scores, labels, num_samples, **options):
    """How often each pixel was drawn, read off the gradient of the loss."""
    scores = scores.clone().requires_grad_()
    importance_sampling_loss(scores, labels, num_samples, **options).backward()
    one = (scores.detach().sigmoid() - labels[:, :, None, None]) / (
        num_samples * labels.numel())
    return scores.grad / one


# The loss, Eq. (8), (14) and (18)


def test_loss_by_hand():
    # One pixel: it is drawn every time. sigmoid: 1/2 and 3/4.
    scores = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64).reshape(1, 2, 1, 1)
    loss = importance_sampling_loss(scores, torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2)


def test_loss_averages_what_was_drawn_over_samples_classes_and_images():
    scores, labels = randn(3, 2, 2, 3), torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    counts = drawn_counts(scores, labels, 7, generator=torch.manual_seed(5))
    total = 0.0
    for b in range(3):
        for c in range(2):
            for y in range(2):
                for x in range(3):
                    p = 1 / (1 + math.exp(-scores[b, c, y, x].item()))
                    term = -math.log(p) if labels[b, c] else -math.log(1 - p)
                    total += counts[b, c, y, x].item() * term
    loss = importance_sampling_loss(scores, labels, 7, torch.manual_seed(5))
    assert loss.item() == pytest.approx(total / (3 * 2 * 7))


def test_gradient_is_that_of_the_drawn_pixels_alone():
    # The probabilities of the draw carry none: else the counts would not be whole numbers.
    scores, labels = randn(2, 3, 4, 4), (randn(2, 3, seed=1) > 0).double()
    counts = drawn_counts(scores, labels, 10, generator=torch.manual_seed(2))
    assert torch.allclose(counts, counts.round(), atol=1e-9)
    assert torch.equal(counts.round().sum(dim=(2, 3)), torch.full((2, 3), 10.0).double())
    assert counts[labels == 0].abs().sum() > 0  # absent classes are sampled as well


def test_labels_get_no_gradient():
    labels = torch.tensor([[1.0, 0.0]], requires_grad=True)
    importance_sampling_loss(randn(1, 2, 2, 2).requires_grad_(), labels).backward()
    assert labels.grad is None


def test_expected_loss_is_that_of_the_distribution():
    scores, labels = 3 * randn(1, 2, 3, 3), torch.tensor([[1.0, 0.0]])
    share = scores.sigmoid() / scores.sigmoid().sum(dim=(2, 3), keepdim=True)
    target = labels.double()[:, :, None, None].expand_as(scores)
    losses = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    expected = (share * losses).sum(dim=(2, 3))
    variance = (share * (losses - expected[..., None, None]).square()).sum(dim=(2, 3))
    error = (variance.sum() / 4 / 40_000).sqrt()
    loss = importance_sampling_loss(scores, labels, 40_000, torch.manual_seed(3))
    assert abs(loss - expected.mean()) < 4 * error < 0.03


# The draw, Eq. (15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_are_drawn_in_proportion_to_the_sigmoid(dtype):
    scores = torch.tensor([[-4.0, -1.0, 0.0], [1.0, 3.0, -2.0]], dtype=dtype)
    scores = torch.stack([scores, -scores])[None]
    number = 20_000
    counts = drawn_counts(scores, torch.tensor([[1.0, 0.0]]), number,
                          generator=torch.manual_seed(0)).flatten(2)
    share = scores.sigmoid().flatten(2)
    share = share / share.sum(dim=2, keepdim=True)
    chi_squared = ((counts - number * share).square() / (number * share)).sum(dim=2)
    assert chi_squared.max() < 20.5  # 5 degrees of freedom, probability 0.001


def test_draw_is_with_replacement_and_independent():
    weights = torch.ones(1, 2)
    first, second = draw(weights, 20_000, torch.manual_seed(0)).reshape(2, -1)
    assert abs(torch.corrcoef(torch.stack([first, second]).double())[0, 1]) < 0.04
    assert abs((first == 0).double().mean() - 0.5) < 0.02


def test_draw_never_takes_a_weight_of_zero():
    weights = torch.zeros(50, 40)
    weights[:, 7] = 1e-5
    weights[:, 31] = 1.0
    drawn = draw(weights, 1000, torch.manual_seed(0))
    assert set(drawn.unique().tolist()) <= {7, 31}


@pytest.mark.parametrize("share, index", [(0.0, 31), (1 - 2**-24, 7)])
def test_draw_stays_within_the_weights_at_the_ends_of_the_random_numbers(
    share, index, monkeypatch
):
    weights = torch.zeros(40)
    weights[[7, 31]] = 1.0
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, share))
    assert draw(weights, 3).tolist() == [index] * 3


def test_draw_reaches_the_first_and_the_last_index():
    drawn = draw(torch.ones(1, 3), 300, torch.manual_seed(0))
    assert set(drawn.unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_draw_bears_weights_without_meaning(weight):
    drawn = draw(torch.full((2, 5), weight), 20)
    assert drawn.min() >= 0 and drawn.max() < 5


def test_a_map_without_activation_is_sampled_evenly():
    scores = torch.full((1, 1, 2, 2), -200.0)
    counts = drawn_counts(scores, torch.ones(1, 1), 4000, generator=torch.manual_seed(0))
    assert (counts / 4000 - 0.25).abs().max() < 0.03


def test_generator_decides_the_draw_and_the_global_one_is_the_default():
    scores, labels = randn(2, 3, 6, 6), torch.ones(2, 3)

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return importance_sampling_loss(scores, labels, generator=generator)

    assert loss(1) == loss(1) != loss(2)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert loss(1) == importance_sampling_loss(scores, labels)
    assert not torch.equal(before, torch.random.get_rng_state())
    after = torch.random.get_rng_state()
    loss(1)
    assert torch.equal(after, torch.random.get_rng_state())


# Padding


def test_padding_is_never_drawn():
    scores, labels = randn(2, 3, 4, 6).float(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[0, :, 4:] = False
    valid[1, :2] = False
    scores = torch.where(valid[:, None], scores, float("nan")).requires_grad_()
    loss = importance_sampling_loss(scores, labels, 500, valid=valid)
    loss.backward()
    assert torch.isfinite(loss)
    assert not scores.grad.masked_select(~valid[:, None]).any()
    assert scores.grad.masked_select(valid[:, None]).abs().min() > 0


def test_valid_pixels_are_drawn_as_if_there_were_no_others():
    scores = torch.tensor([[[[5.0, 0.0, 1.0, -1.0, 5.0]]]], dtype=torch.float64)
    valid = torch.tensor([[[False, True, True, True, False]]])
    counts = drawn_counts(scores, torch.ones(1, 1), 20_000, generator=torch.manual_seed(0),
                          valid=valid)[0, 0, 0, 1:4]
    share = scores.sigmoid()[0, 0, 0, 1:4]
    expected = 20_000 * share / share.sum()
    assert ((counts - expected).square() / expected).sum() < 13.8  # 2 degrees, 0.001
    assert (counts.round() - counts).abs().max() < 0.02  # all draws are from these


def test_images_of_padding_alone_do_not_count():
    scores = torch.tensor([0.0, 2.0, float("nan")]).reshape(3, 1, 1, 1).expand(3, 2, 2, 2)
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    valid = torch.tensor([True, True, False])[:, None, None].expand(3, 2, 2)
    expected = importance_sampling_loss(scores[:2], labels[:2])  # constant: no chance in it
    assert torch.allclose(importance_sampling_loss(scores, labels, valid=valid), expected)


def test_a_batch_of_padding_is_zero():
    scores = randn(2, 3, 2, 2).requires_grad_()
    valid = torch.zeros(2, 2, 2, dtype=torch.bool)
    loss = importance_sampling_loss(scores, torch.ones(2, 3), valid=valid)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_cells_to_draw_from_are_whole_unless_none_is():
    valid = torch.zeros(3, 8, 8, dtype=torch.bool)
    valid[0, :5] = True
    valid[1, 3:5, 6] = True  # two rows of one column: four cells of 4x4 pixels, none whole
    cells = cells_to_draw_from(valid, (2, 2))
    assert cells.tolist() == [
        [[True, True], [False, False]], [[False, True], [False, True]], [[False] * 2] * 2,
    ]


# Precision and shapes


def test_half_precision_scores_are_widened():
    scores, labels = randn(2, 3, 4, 4).bfloat16(), torch.ones(2, 3, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = importance_sampling_loss(scores, labels, generator=torch.manual_seed(0))
    assert loss.dtype == torch.float32
    assert loss == importance_sampling_loss(scores.float(), labels, generator=torch.manual_seed(0))


def test_large_scores_give_a_finite_loss():
    scores = torch.tensor([300.0, -300.0]).reshape(1, 1, 1, 2).requires_grad_()
    loss = importance_sampling_loss(scores, torch.zeros(1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(300) and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("name", ["image_labels", "valid"])
def test_shapes_that_do_not_fit_are_reported(name):
    given = {"image_labels": torch.ones(2, 3), "valid": torch.ones(2, 4, 4)}
    given[name] = given[name][:1]
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        importance_sampling_loss(randn(2, 3, 4, 4), **given)


# The regularizer, Eq. (16)


def context_of(cam, aux_cam, labels, valid, offset=None, aux_offset=None):
    nothing = torch.zeros(0)
    output = NetworkOutput(nothing, nothing, cam, aux_cam, nothing, nothing, offset, aux_offset)
    batch = {"image_labels": labels, "valid": valid}
    return cotraining.context_of(batch, output)


def sampling(samples, classes):
    options = ImportanceSamplingOptions(weight=0.2, samples=samples)
    return cotraining.InMeans(ImportanceSampling(options, 8, classes))


def test_weights_take_their_share_from_the_classification_losses():
    regularizer = ImportanceSampling(ImportanceSamplingOptions(weight=0.2), 8, 3)
    assert regularizer.weights() == {"isl": 0.2, "isl_aux": 0.2}
    assert regularizer.loss_factors() == {"cls": 0.8, "cls_aux": 0.8}
    assert not regularizer.needs


def test_scores_of_pixels_have_the_offset_of_the_classifier():
    """A CAM that need not be negative to say that a class is absent is no logit by itself."""
    regularizer = sampling(3, 2)
    cam, offset = randn(2, 2, 4, 4), torch.tensor([1.0, -3.0])[:, None, None]
    valid, labels = torch.ones(2, 16, 16, dtype=torch.bool), torch.tensor([[1.0, 0.0]] * 2)
    torch.manual_seed(0)
    expected = regularizer(context_of(cam, cam + 1, labels, valid))
    torch.manual_seed(0)
    terms = regularizer(context_of(cam - offset, cam + 1 + offset, labels, valid, offset, -offset))
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term)


def test_terms_read_their_own_map():
    regularizer = sampling(3, 2)
    cam = torch.zeros(2, 2, 4, 4, requires_grad=True)
    aux_cam = torch.full((2, 2, 4, 4), math.log(3.0), requires_grad=True)
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    terms = regularizer(context_of(cam, aux_cam, torch.tensor([[1.0, 0.0]] * 2), valid))
    assert terms.keys() == regularizer.weights().keys()
    assert terms["isl"].item() == pytest.approx(math.log(2))
    assert terms["isl_aux"].item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    terms["isl"].backward()
    assert aux_cam.grad is None
    assert 3 <= cam.grad.count_nonzero() <= 3 * 4  # three samples, two images, two classes


def test_cells_with_padding_are_left_out():
    regularizer = sampling(200, 1)
    cam = torch.zeros(1, 1, 4, 4, requires_grad=True)
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    valid[:, :, 11:] = False  # the third column of cells is cut, the fourth is padding
    regularizer(context_of(cam, cam, torch.ones(1, 1), valid))["isl"].backward()
    assert cam.grad[..., :2].abs().min() > 0 and not cam.grad[..., 2:].any()


def test_an_image_narrower_than_a_cell_still_counts():
    regularizer = sampling(50, 1)
    cam = torch.zeros(1, 1, 4, 4, requires_grad=True)
    valid = torch.zeros(1, 16, 16, dtype=torch.bool)
    valid[:, :, 5:7] = True
    loss = regularizer(context_of(cam, cam, torch.ones(1, 1), valid))["isl"]
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert cam.grad[..., 1].abs().min() > 0 and not cam.grad[..., [0, 2, 3]].any()
