import math

import pytest
import torch
import torch.nn.functional as F

from cosa.benchmark.timings.similarity import (
    FORMS,
    compare,
    make_inputs,
    pairwise_similarity_loss,
    product_similarity_loss,
    value_and_gradient,
)
from cosa.config.regularizers import FeatureSimilarityOptions
from cosa.network import NetworkOutput
from cosa.regularizers.feature_similarity import (
    FeatureSimilarity,
    feature_similarity_loss,
    max_normalize,
    resize_within,
)
from tests.helpers import cotraining
from tests.helpers.draws import rand


def slow_loss_of_image(maps, image, mu, sigma, inside):
    """Eq. (9)-(13) word by word; maps (K, h, w), image (3, h, w), inside (h, w)."""
    cells = [(y, x) for y in range(inside.shape[0]) for x in range(inside.shape[1]) if inside[y, x]]
    total = 0.0
    for yi, xi in cells:
        for yj, xj in cells:
            squared = (yi - yj) ** 2 + (xi - xj) ** 2
            w = math.exp(-squared / (2 * sigma**2)) / (2 * math.pi * sigma**2)
            g = 0.5 * sum((a[yi, xi] - a[yj, xj]).item() ** 2 for a in maps)
            delta = sum(abs((a[yi, xi] - a[yj, xj]).item()) for a in image) / 3
            f = math.tanh(mu + math.log((delta + 1e-5) / (1 - delta + 1e-5)))
            total += w * g * f
    return -total / max(len(cells), 1)


def some_inputs(seed=0):
    """Two images of 4x5 cells; some of their colours are alike, one pair is black and white."""
    images = rand(2, 3, 4, 5, seed=seed + 1)
    images[0, :, :2] = 0.5 + 0.02 * images[0, :, :2]
    images[1, :, 1, 1], images[1, :, 1, 2] = 0.0, 1.0
    return rand(2, 3, 4, 5, seed=seed), images


# The loss, Eq. (9)-(13)


def test_loss_by_hand():
    # Two cells, activations 1 and 0, colours 0.3 apart in one channel: delta = 0.1.
    maps = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)
    images = torch.tensor([0.2, 0.5, 0.4, 0.4, 0.7, 0.7], dtype=torch.float64).reshape(1, 3, 1, 2)
    w = math.exp(-1 / 8) / (8 * math.pi)  # sigma = 2
    f = math.tanh(1.5 + math.log(0.10001 / 0.90001))
    expected = -(2 * w * 0.5 * f) / 2  # both orders of the pair, over two cells
    assert feature_similarity_loss(maps, images, 1.5, 2.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [
    feature_similarity_loss, pairwise_similarity_loss, product_similarity_loss,
])
@pytest.mark.parametrize("mu, sigma", [(2.5, 5.0), (0.7, 1.5)])
def test_loss_agrees_with_the_equations(loss, mu, sigma):
    maps, images = some_inputs()
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    pairs = zip(maps, images, valid, strict=True)
    expected = [slow_loss_of_image(m, i, mu, sigma, v) for m, i, v in pairs]
    assert loss(maps, images, mu, sigma).item() == pytest.approx(sum(expected) / 2, rel=1e-9)
    valid[0, 1:, 4] = False
    valid[1, :, :2] = False
    pairs = zip(maps, images, valid, strict=True)
    expected = [slow_loss_of_image(m, i, mu, sigma, v) for m, i, v in pairs]
    found = loss(maps, images, mu, sigma, valid)
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-9)


@pytest.mark.parametrize("padded", [False, True])
def test_gradient(padded):
    maps, images = some_inputs()
    valid = rand(2, 4, 5, seed=3) < 0.7 if padded else None
    maps.requires_grad_()

    def loss(x):
        return feature_similarity_loss(x, images, 2.5, 2.0, valid)

    assert torch.autograd.gradcheck(loss, maps)
    (found,) = torch.autograd.grad(loss(maps), maps)
    direct = pairwise_similarity_loss(maps, images, 2.5, 2.0, valid)
    assert torch.allclose(found, torch.autograd.grad(direct, maps)[0], atol=1e-12)


def test_gradient_scales_with_what_follows_and_differs_by_image():
    maps, images = some_inputs()
    maps.requires_grad_()
    (single,) = torch.autograd.grad(feature_similarity_loss(maps, images), maps)
    (scaled,) = torch.autograd.grad(-3 * feature_similarity_loss(maps, images), maps)
    assert torch.allclose(scaled, -3 * single)
    for b in range(2):
        one = maps[b:b + 1].detach().requires_grad_()
        feature_similarity_loss(one, images[b:b + 1]).backward()
        assert torch.allclose(one.grad[0], 2 * single[b])


def test_gradient_cannot_be_differentiated_again():
    maps, images = some_inputs()
    loss = feature_similarity_loss(maps.requires_grad_(), images)
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(loss, maps, create_graph=True)


@pytest.mark.parametrize("side, sigma", [(40, 5.0), (32, 2.0), (24, 0.6)])
def test_the_window_loses_less_than_a_thousandth(side, sigma):
    maps, images = make_inputs(1, 2, side)

    def windowed(*inputs):
        return feature_similarity_loss(*inputs, sigma=sigma)

    def direct(*inputs):
        return pairwise_similarity_loss(*inputs, sigma=sigma)

    value, gradient = value_and_gradient(windowed, maps, images, False)
    expected, expected_gradient = value_and_gradient(direct, maps, images, False)
    assert value == pytest.approx(expected, rel=1e-3)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


def test_like_cells_attract_and_unlike_ones_repel():
    maps = torch.tensor([[[[0.6, 0.4]]]], requires_grad=True)
    alike, unlike = torch.full((1, 3, 1, 2), 0.5), torch.tensor([0.2, 0.8]).expand(1, 3, 1, 2)
    for images, sign in ((alike, 1), (unlike, -1)):
        loss = feature_similarity_loss(maps, images)
        (grad,) = torch.autograd.grad(loss, maps)
        assert sign * loss > 0 and sign * grad[..., 0] > 0 and sign * grad[..., 1] < 0


def test_images_get_no_gradient():
    maps, images = some_inputs()
    feature_similarity_loss(maps.requires_grad_(), images.requires_grad_()).backward()
    assert images.grad is None and maps.grad.abs().sum() > 0


def test_the_order_of_batch_and_classes_does_not_matter():
    maps, images = some_inputs()
    valid = rand(2, 4, 5, seed=3) < 0.7
    expected = feature_similarity_loss(maps, images, valid=valid)
    flipped = feature_similarity_loss(maps.flip(0, 1), images.flip(0), valid=valid.flip(0))
    assert torch.allclose(flipped, expected)


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
def test_constant_maps_cost_nothing(value):
    maps = torch.full((1, 2, 20, 20), value, requires_grad=True)
    loss = feature_similarity_loss(maps, torch.rand(1, 3, 20, 20))
    loss.backward()
    assert loss.abs() < 1e-10 and maps.grad.abs().max() < 1e-9
    assert value == 0.7 or (loss == 0 and not maps.grad.any())


def test_small_differences_of_large_values_keep_their_digits():
    maps, images = some_inputs()
    exact = 0.9 + 1e-3 * maps
    found, expected = (
        feature_similarity_loss(kind, images).item() for kind in (exact.float(), exact)
    )
    assert found == pytest.approx(expected, rel=1e-3)


# Padding


def test_padding_is_in_no_pair():
    maps, images = some_inputs()
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[..., 3:] = False
    expected = feature_similarity_loss(maps[..., :3], images[..., :3])
    maps[..., 3:], images[..., 3:] = float("nan"), float("nan")
    loss = feature_similarity_loss(maps.requires_grad_(), images, valid=valid)
    loss.backward()
    assert torch.allclose(loss, expected)
    assert not maps.grad[..., 3:].any() and maps.grad[..., :3].abs().min() > 0


def test_images_of_padding_alone_contribute_nothing():
    maps, images = some_inputs()
    maps.requires_grad_()
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[0] = False
    loss = feature_similarity_loss(maps, images, valid=valid)
    assert torch.allclose(loss, feature_similarity_loss(maps[1:], images[1:]) / 2)
    loss = feature_similarity_loss(maps, images, valid=torch.zeros_like(valid))
    loss.backward()
    assert loss.item() == 0 and torch.equal(maps.grad, torch.zeros_like(maps))


# Precision and shapes


def test_half_precision_maps_are_widened():
    maps, images = some_inputs()
    narrow = maps.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = feature_similarity_loss(narrow, images.float())
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, feature_similarity_loss(narrow.float(), images), rtol=1e-5)
    loss.backward()
    assert narrow.grad.dtype == torch.bfloat16 and narrow.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["images", "valid"])
def test_shapes_that_do_not_fit_are_reported(name):
    maps, images = some_inputs()
    given = {"images": images, "valid": torch.ones(2, 4, 5, dtype=torch.bool)}
    given[name] = given[name][..., :4]
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        feature_similarity_loss(maps, **given)


# Max-normalised maps, Eq. (4)


def test_max_normalize_by_hand():
    cam = torch.tensor([[[[2.0, -1.0, 4.0, 9.0]], [[-1.0, -2.0, -3.0, 1.0]], [[5.0] * 4]]])
    valid = torch.tensor([[[True, True, True, False]]])
    found = max_normalize(cam, torch.tensor([[1, 1, 0]]), valid)
    assert found.tolist() == [[[[0.5, 0.0, 1.0, 0.0]], [[0.0] * 4], [[0.0] * 4]]]


def test_max_normalize_sends_a_gradient_through_the_maximum():
    cam = torch.tensor([[[[2.0, -1.0, 4.0]]]], dtype=torch.float64, requires_grad=True)
    everywhere = torch.ones(1, 1, 3, dtype=torch.bool)
    max_normalize(cam, torch.ones(1, 1), everywhere).sum().backward()
    assert cam.grad.flatten().tolist() == [0.25, 0.0, -0.125]  # d(2/4 + 4/4)


@pytest.mark.parametrize("level", [-1.0, 0.0, 1e-30])
def test_max_normalize_bears_maps_without_activation(level):
    cam = torch.full((1, 1, 3, 3), level, requires_grad=True)
    everywhere = torch.ones(1, 3, 3, dtype=torch.bool)
    maps = max_normalize(cam, torch.ones(1, 1), everywhere)
    feature_similarity_loss(maps, torch.rand(1, 3, 3, 3)).backward()
    assert maps.max() < 1e-20 and not cam.grad.any()


def test_max_normalize_reports_shapes_that_do_not_fit():
    cam, valid = torch.zeros(1, 2, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="valid must have shape"):
        max_normalize(cam, torch.ones(1, 2), valid[:, :2])
    with pytest.raises(ValueError, match="image_labels must have shape"):
        max_normalize(cam, torch.ones(1, 3), valid)


@pytest.mark.parametrize("end", [16, 13])
def test_resize_within_sees_no_padding(end):
    maps = rand(1, 2, 4, 6)
    valid = torch.ones(1, 16, 24, dtype=torch.bool)
    valid[..., end:] = False  # the fifth column of cells is padding, the fourth at least not all
    expected = F.interpolate(maps[..., :4], (8, 8), mode="bilinear")
    maps[..., 4:] = float("nan")
    found = resize_within(maps.requires_grad_(), valid, (8, 12))
    assert torch.allclose(found[..., :8], expected)
    found[..., :8].sum().backward()
    assert not maps.grad[..., 4:].any() and maps.grad[..., :4].abs().min() > 0


def test_resize_within_is_the_plain_resize_without_padding():
    maps, valid = rand(2, 3, 4, 4), torch.ones(2, 16, 16, dtype=torch.bool)
    expected = F.interpolate(maps, (7, 9), mode="bilinear")
    assert torch.allclose(resize_within(maps, valid, (7, 9)), expected)


# The regularizer


def context_of(cam, rgb, labels, valid):
    nothing = torch.zeros(0)
    output = NetworkOutput(nothing, nothing, cam, nothing, nothing, nothing)
    batch = {"weak": rgb, "image_labels": labels, "valid": valid}
    return cotraining.context_of(batch, output)


def regularizer(**options):
    return cotraining.InMeans(
        FeatureSimilarity(FeatureSimilarityOptions(weight=0.1, **options), 8, 2)
    )


@pytest.mark.parametrize("grid, side", [(0, 8), (6, 6), (4, 4)])
def test_the_term_is_the_loss_on_the_grid(grid, side):
    cam = (rand(2, 2, 4, 4) - 0.3).requires_grad_()
    rgb, labels = rand(2, 3, 24, 24, seed=1), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    valid = torch.ones(2, 24, 24, dtype=torch.bool)
    fsl = regularizer(grid=grid, mu=1.0, sigma=2.0)
    terms = fsl(context_of(cam, rgb, labels, valid))
    maps = F.interpolate(cam, (side, side), mode="bilinear").relu()
    maps = maps / maps.amax(dim=(2, 3), keepdim=True) * labels[:, :, None, None]
    cell = 24 // side
    colours = rgb.reshape(2, 3, side, cell, side, cell).mean(dim=(3, 5))
    expected = pairwise_similarity_loss(maps, colours, 1.0, 2.0)
    assert terms.keys() == fsl.weights().keys() == {"fsl"}
    assert torch.allclose(terms["fsl"], expected)
    (found,) = torch.autograd.grad(terms["fsl"], cam, retain_graph=True)
    (gradient,) = torch.autograd.grad(expected, cam)
    assert torch.allclose(found, gradient, atol=1e-12)
    assert not found[0, 1].any() and found[1, 1].any()  # the first image lacks the second class


def test_it_asks_for_no_maps_and_weighs_as_told():
    assert not regularizer().needs
    assert regularizer().weights() == {"fsl": 0.1} and regularizer().loss_factors() == {}


def test_a_padded_image_counts_as_if_it_were_cropped():
    cam, rgb = (rand(1, 2, 4, 4) - 0.3), rand(1, 3, 16, 16, seed=1)
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    labels, fsl = torch.ones(1, 2), regularizer(sigma=2.0)
    cropped = context_of(cam[..., :2], rgb[..., :8], labels, valid[..., :8])
    expected = fsl(cropped)["fsl"]
    valid[..., 8:] = False
    cam[..., 2:], rgb[..., 8:] = 50.0, 0.0
    cam.requires_grad_()
    loss = fsl(context_of(cam, rgb, labels, valid))["fsl"]
    loss.backward()
    assert torch.allclose(loss, expected) and loss != 0
    assert not cam.grad[..., 2:].any() and cam.grad[..., :2].any()


def test_colours_are_those_of_the_weak_view():
    cam, rgb = torch.rand(1, 2, 4, 4), rand(1, 3, 8, 8).float()
    valid, labels = torch.ones(1, 8, 8, dtype=torch.bool), torch.ones(1, 2)
    context, same, other = (context_of(cam, rgb, labels, valid) for _ in range(3))
    context.batch |= {"strong": torch.zeros(1, 3, 8, 8)}
    other.batch |= {"weak": torch.zeros(1, 3, 8, 8)}
    assert torch.allclose(regularizer()(context)["fsl"], regularizer()(same)["fsl"])
    assert not torch.allclose(regularizer()(other)["fsl"], regularizer()(same)["fsl"])


@pytest.mark.parametrize("kind", ["no class", "no activation", "padding"])
def test_degenerate_batches_give_zero(kind):
    cam = torch.rand(2, 2, 4, 4) - (2 if kind == "no activation" else 0)
    cam.requires_grad_()
    labels = torch.zeros(2, 2) if kind == "no class" else torch.ones(2, 2)
    valid = torch.full((2, 16, 16), kind != "padding")
    loss = regularizer()(context_of(cam, torch.rand(2, 3, 16, 16), labels, valid))["fsl"]
    loss.backward()
    assert loss.item() == 0 and torch.equal(cam.grad, torch.zeros_like(cam))


# The benchmark


def test_benchmark_compares_all_forms_with_the_first():
    found = {}
    for number, (name, (loss, one_by_one)) in enumerate(FORMS.items(), start=1):
        value, gradient = value_and_gradient(loss, *make_inputs(2, 3, 16), one_by_one)
        found[name] = {
            "seconds": {"s": 1 / number}, "mebibytes": 12 / number, "value": value,
            "gradient": gradient.numpy(),
        }
    head, *lines = compare(found)
    assert [line[0] for line in lines] == list(FORMS) and all(len(x) == len(head) for x in lines)
    assert [line[2] for line in lines] == ["3", "2", "1"]
    assert all(line[-2:] == ["0.00 %", "0.00 %"] for line in lines)
