import copy
import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cosa.checkpoint import build_network
from cosa.config import from_dict, to_dict
from cosa.config.regularizers import SemanticDecouplingOptions
from cosa.core.device import choose_autocast
from cosa.ema import AssignmentNetwork
from cosa.network import NetworkOutput
from cosa.regularizers import semantic_decoupling as csd
from cosa.regularizers.semantic_decoupling import (
    Placement,
    SemanticDecoupling,
    bounding_box,
    carry,
    decoupling_background,
    decoupling_foreground,
    draw_placement,
    paste,
    random_box,
    soften,
    warp,
)
from cosa.targets import CamTargets
from cosa.training.build import assemble
from tests.helpers import cotraining as tiny_cotraining
from tests.helpers.draws import randn
from tests.helpers.tiny import SIZE, tiny_tree

CLASSES, SIDE, PATCH = 3, 32, 4
GRID = SIDE // PATCH
LOSSES = (decoupling_foreground, decoupling_background)
BOTH = {"csd_foreground", "csd_background"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def random_mask(*shape, seed=0):
    return torch.rand(*shape, generator=torch.manual_seed(seed)) < 0.5


def rectangle(top, bottom, left, right, side=SIDE):
    """(side, side) bool, True in the rectangle."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def placement(scale=1.0, source=(0.0, 0.0), target=(0.0, 0.0), n=1, side=SIDE):
    """One placement for n images; its corners are given in pixels."""
    corners = (torch.tensor([corner] * n) / side for corner in (source, target))
    return Placement(torch.full((n,), scale), *corners)


# The losses: Eq. (3) and its twin


def naive(loss, source, pasted, mask, background_score=1.0):
    """Position by position, from the equations."""
    images, total = 0, 0.0
    for i in range(len(mask)):
        images += bool(mask[i].any())
        for y, x in mask[i].nonzero().tolist():
            scores = [maps[i, :, y, x].tolist() for maps in (source, pasted)]
            if loss is decoupling_background:
                scores = [[background_score, sum(max(v, 0.0) for v in s)] for s in scores]
            p, q = ([math.exp(v) / sum(math.exp(u) for u in s) for v in s] for s in scores)
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / max(images, 1)


def test_foreground_by_hand():
    source = torch.zeros(3, 2, 1, 2, dtype=torch.float64)  # probabilities (1/2, 1/2)
    pasted = source.clone()
    pasted[:, 1] = math.log(3.0)  # (1/4, 3/4)
    mask = torch.tensor([[[1, 1]], [[0, 1]], [[0, 0]]]).bool()
    one = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    # A sum over three positions, averaged over the two images that have a mask.
    assert decoupling_foreground(source, pasted, mask).item() == pytest.approx(1.5 * one)


def test_background_by_hand():
    source = torch.tensor([-5.0, -40.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    pasted = torch.tensor([2.0, -7.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    # Saliencies 0 and 2: negative scores count as no activation at all.
    p, q = 1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(0.5))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert decoupling_background(source, pasted, mask, 1.5).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_against_the_naive_form(loss):
    source, pasted = 2 * randn(3, 4, 5, 6), 2 * randn(3, 4, 5, 6, seed=1)
    mask = random_mask(3, 5, 6)
    mask[1] = False
    value = loss(source, pasted, mask)
    assert value.dtype is torch.float64
    assert value.item() == pytest.approx(naive(loss, source, pasted, mask), rel=1e-12)


def test_the_background_score_is_used():
    maps = randn(2, 4, 5, 5), randn(2, 4, 5, 5, seed=1), random_mask(2, 5, 5)
    for score in (0.0, 1.0, 3.0):
        expected = naive(decoupling_background, *maps, score)
        assert decoupling_background(*maps, score).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_off_the_mask_nothing_counts(loss):
    source, pasted, mask = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1), random_mask(2, 4, 4)
    expected = loss(source, pasted, mask)
    off = ~mask[:, None].expand_as(source)
    source[off], pasted[off] = float("nan"), float("nan")
    pasted.requires_grad_()
    value = loss(source, pasted, mask)
    value.backward()
    assert torch.equal(value, expected)
    assert (pasted.grad[off] == 0).all() and pasted.grad[~off].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_an_empty_mask_gives_zero(loss):
    pasted = randn(2, 3, 4, 4).requires_grad_()
    value = loss(randn(2, 3, 4, 4, seed=1), pasted, torch.zeros(2, 4, 4, dtype=torch.bool))
    value.backward()
    assert value.item() == 0 and torch.equal(pasted.grad, torch.zeros_like(pasted))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_source_gets_no_gradient(loss):
    source, pasted = randn(2, 3, 4, 4).requires_grad_(), randn(2, 3, 4, 4, seed=1).requires_grad_()
    loss(source, pasted, random_mask(2, 4, 4)).backward()
    assert source.grad is None and pasted.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_scores_cost_nothing_and_pull_nowhere(loss):
    source, mask = randn(2, 3, 4, 4), random_mask(2, 4, 4)
    pasted = source.clone().requires_grad_()
    value = loss(source, pasted, mask)
    value.backward()
    assert abs(value.item()) < 1e-12 and pasted.grad.abs().max() < 1e-12
    assert loss(source, pasted + randn(2, 3, 4, 4, seed=2), mask) > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_the_images_does_not_matter(loss):
    maps = randn(3, 4, 5, 5), randn(3, 4, 5, 5, seed=1), random_mask(3, 5, 5)
    order = [2, 0, 1]
    assert torch.allclose(loss(*maps), loss(*(m[order] for m in maps)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_are_float32_and_bear_large_scores(loss, dtype):
    source, pasted = (200 * randn(2, 3, 4, 4, seed=s) for s in (0, 1))
    mask, pasted = random_mask(2, 4, 4), pasted.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(source.to(dtype), pasted, mask)
    value.backward()
    assert value.dtype is torch.float32 and torch.isfinite(value)
    assert torch.isfinite(pasted.grad).all()
    exact = loss(source.to(dtype).double(), pasted.detach().double(), mask)
    assert torch.allclose(value.double(), exact, rtol=1e-5)


def test_the_background_term_pushes_activations_down_alone():
    source = torch.full((1, 2, 1, 2), -3.0)
    pasted = torch.tensor([[2.0, -4.0], [-1.0, -2.0]]).reshape(1, 2, 1, 2).requires_grad_()
    decoupling_background(source, pasted, torch.ones(1, 1, 2, dtype=torch.bool)).backward()
    assert pasted.grad[0, 0, 0, 0] > 0, "activated in the pasted view alone"
    assert pasted.grad.count_nonzero() == 1, "as inactive as in the source"


# Where a region goes


def test_bounding_boxes_by_hand():
    mask = torch.zeros(3, 8, 4, dtype=torch.bool)
    mask[0, 2, 1] = mask[0, 5, 0] = True
    mask[1] = True
    low, high = bounding_box(mask)
    assert low.tolist() == [[0.25, 0.0], [0.0, 0.0], [1.0, 1.0]]
    assert high.tolist() == [[0.75, 0.5], [1.0, 1.0], [0.0, 0.0]]


def test_random_boxes_have_half_the_sides_and_lie_in_the_valid_area():
    valid = torch.stack([rectangle(0, 32, 0, 32), rectangle(4, 24, 10, 30)])
    boxes = torch.stack([random_box(valid) for _ in range(200)])  # (200, 2, H, W)
    assert not (boxes & ~valid).any()
    for image, side in ((0, 16), (1, 10)):
        assert (boxes[:, image].flatten(1).sum(dim=1) == side**2).float().mean() > 0.9
        for axis in (1, 2):
            reached = boxes[:, image].any(dim=axis).any(dim=0)
            assert reached.equal(valid[image].any(dim=axis - 1)), "every place is"


def test_objects_land_in_the_valid_area():
    region = rectangle(8, 20, 2, 8).expand(300, -1, -1)
    valid = rectangle(4, 28, 6, 30).expand(300, -1, -1)
    drawn = draw_placement(region, valid, 0.4, 1.0)
    assert drawn.scale.min() >= 0.4 and drawn.scale.max() <= 1.0
    assert drawn.scale.std() > 0.15, "uniform: 0.17"
    assert (drawn.source * SIDE).tolist() == [[8.0, 2.0]] * 300
    low = drawn.target * SIDE
    high = low + drawn.scale[:, None] * torch.tensor([12.0, 6.0])
    inside, outside = torch.tensor([4.0, 6.0]) - 1e-4, torch.tensor([28.0, 30.0]) + 1e-4
    assert (low >= inside).all() and (high <= outside).all()
    assert (low.amin(dim=0) < inside + 1).all() and (high.amax(dim=0) > outside - 1).all()
    landed = warp(region[:, None].float(), drawn)[:, 0]
    assert landed[~valid].max() < 1e-4 and landed.flatten(1).any(dim=1).all()


def test_objects_that_are_too_large_cover_the_valid_area():
    region = rectangle(0, 32, 0, 32).expand(100, -1, -1)
    valid = rectangle(8, 24, 8, 32).expand(100, -1, -1)
    drawn = draw_placement(region, valid, 1.0, 1.3)
    assert (warp(region[:, None].float(), drawn)[:, 0][valid] > 0.85).all()
    assert drawn.target.std(dim=0).min() > 0.05


def test_draws_come_from_the_global_generator():
    region, valid = rectangle(8, 20, 2, 8)[None], rectangle(0, 32, 0, 32)[None]

    def draw():
        return draw_placement(region, valid, 0.5, 1.0).target, random_box(valid)

    state = torch.get_rng_state()
    first, other = draw(), draw()
    torch.set_rng_state(state)
    again = draw()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


# Copy and paste


def naive_warp(maps, scale, source, target):
    """Bilinear, corner coordinates in cells of the map, 0 outside; (K, H, W) float64."""
    channels, height, width = maps.shape
    result = torch.zeros_like(maps)
    for y in range(height):
        for x in range(width):
            v = source[0] + (y + 0.5 - target[0]) / scale - 0.5
            u = source[1] + (x + 0.5 - target[1]) / scale - 0.5
            for j in (math.floor(v), math.floor(v) + 1):
                for i in (math.floor(u), math.floor(u) + 1):
                    if 0 <= j < height and 0 <= i < width:
                        weight = (1 - abs(v - j)) * (1 - abs(u - i))
                        result[:, y, x] += weight * maps[:, j, i]
    return result


@pytest.mark.parametrize("scale, source, target", [
    (1.0, (0, 0), (0, 0)), (1.0, (2, 3), (5, 1)), (0.6, (1.5, 2.0), (3.2, 0.4)),
    (1.4, (3.0, 0.0), (0.7, 2.1)),
])
def test_warp_against_the_naive_form(scale, source, target):
    maps = randn(2, 3, 10, 10)
    place = placement(scale, source, target, n=2, side=10)
    expected = torch.stack([naive_warp(m, scale, source, target) for m in maps])
    moved = warp(maps, place)
    assert moved.dtype is torch.float64
    # The placement itself is float32.
    assert torch.allclose(moved, expected, rtol=0, atol=2e-5)
    if target == (0, 0):
        assert torch.allclose(moved, maps, rtol=0, atol=2e-5)


def test_every_image_has_its_own_placement():
    maps, places = randn(2, 1, 8, 8), [placement(1.0, (0, 0), (2, 1), side=8),
                                       placement(0.5, (4, 4), (0, 3), side=8)]
    both = Placement(*(torch.cat([getattr(p, name) for p in places])
                       for name in ("scale", "source", "target")))
    for k, place in enumerate(places):
        assert torch.equal(warp(maps, both)[k : k + 1], warp(maps[k : k + 1], place))


def test_soft_edges():
    mask = rectangle(8, 24, 0, 16)[None, None].double()
    assert torch.equal(soften(mask, 0.0), mask)
    soft = soften(mask, 4 / SIDE)  # five pixels: two on each side of the middle one
    expected = [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0]
    assert soft[0, 0, 16, 12:20].tolist() == pytest.approx(expected)
    assert soft[0, 0, 4:12, 4].tolist() == pytest.approx(expected[::-1])
    assert soft[0, 0, 16, 0] == 1, "the border of the image is no edge"
    assert soft.min() >= 0 and soft.max() <= 1
    assert torch.isfinite(soften(mask, 2.0)).all(), "wider than the image"


def paste_one(region, place, edge=0.0, valid=None, target_valid=None, images=None):
    images = randn(1, 3, SIDE, SIDE) if images is None else images
    target = randn(1, 3, SIDE, SIDE, seed=1)
    whole = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    valid = whole if valid is None else valid[None]
    target_valid = whole if target_valid is None else target_valid[None]
    result = paste(images, region[None], valid, target, target_valid, place, edge)
    return images, target, result


def test_pasted_pixels_are_the_partners_and_the_rest_is_the_targets():
    region = rectangle(8, 20, 4, 12)
    images, target, result = paste_one(region, placement(1.0, (8, 4), (15, 20)))
    landed = rectangle(15, 27, 20, 28)
    inside = result.images[0][:, landed].unflatten(1, (12, 8))
    assert torch.allclose(inside, images[0, :, 8:20, 4:12], rtol=0, atol=1e-4)
    assert torch.allclose(result.images[0][:, ~landed], target[0][:, ~landed], rtol=0, atol=1e-4)
    assert torch.allclose(result.alpha[0, 0], landed.double(), rtol=0, atol=1e-4)
    assert torch.allclose(result.coverage, result.alpha, rtol=0, atol=1e-6)


def test_scaled_objects_keep_their_shape():
    region = rectangle(8, 20, 4, 12) & ~rectangle(8, 14, 8, 12)  # an L
    _, _, result = paste_one(region, placement(0.5, (8, 4), (20, 2)))
    landed = rectangle(20, 26, 2, 6) & ~rectangle(20, 23, 4, 6)
    assert torch.allclose(result.alpha[0, 0], landed.double(), rtol=0, atol=1e-4)


def test_a_soft_edge_blends_both_images():
    region = rectangle(8, 20, 8, 20)
    place = placement(0.9, (8, 8), (5.3, 9.8))
    images, target, result = paste_one(region, place, edge=4 / SIDE)
    alpha = result.alpha
    assert alpha.min() == 0 and alpha.max() > 1 - 1e-6 and alpha.max() <= 1
    assert ((alpha > 0.05) & (alpha < 0.95)).sum() > 40
    expected = alpha * warp(images, place) + (1 - alpha) * target
    assert torch.allclose(result.images, expected, rtol=0, atol=1e-12)
    assert torch.equal(result.images[0][:, alpha[0, 0] == 0], target[0][:, alpha[0, 0] == 0])


def test_padding_is_neither_pasted_nor_pasted_over():
    valid, target_valid = rectangle(0, 32, 0, 12), rectangle(10, 32, 0, 24)
    region = rectangle(8, 20, 4, 16)  # reaches into the padding
    images = randn(1, 3, SIDE, SIDE)
    place = placement(1.0, (8, 4), (4, 14))
    arguments = dict(edge=4 / SIDE, valid=valid, target_valid=target_valid)
    _, target, result = paste_one(region, place, images=images, **arguments)
    landed = rectangle(4, 16, 14, 22)
    assert (result.alpha[0, 0][~target_valid] == 0).all()
    for plane in (result.alpha, result.coverage):
        assert plane[..., 22:].max() < 1e-4, "beyond: the partner's padding"
    assert (result.alpha[0, 0][landed & target_valid] > 0.3).all()
    assert torch.equal(result.images[0][:, ~target_valid], target[0][:, ~target_valid])
    noisy = images.masked_fill(~valid, 1e4)
    _, _, other = paste_one(region, place, images=noisy, **arguments)
    # what is left is the rounding of the placement
    assert torch.allclose(other.images, result.images, rtol=0, atol=0.2)


# Scores that go along


def carry_one(source, coverage, place, valid=None, target_valid=None):
    whole = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    valid = whole if valid is None else valid[None]
    target_valid = whole if target_valid is None else target_valid[None]
    moved, mask = carry(source, coverage[None, None].to(source), valid, target_valid, place)
    return moved, mask[0]


def test_scores_stay_in_an_identity_placement():
    scores = randn(1, CLASSES, GRID, GRID)
    region = rectangle(8, 20, 4, 12)
    moved, mask = carry_one(scores, region, placement())
    assert torch.allclose(moved, scores, rtol=0, atol=1e-5)
    assert torch.equal(mask, rectangle(2, 5, 1, 3, GRID))


def test_scores_land_where_the_object_lands():
    scores = randn(1, CLASSES, GRID, GRID)
    place = placement(1.0, (8, 4), (16, 20))
    _, _, result = paste_one(rectangle(8, 20, 4, 12), place)
    moved, mask = carry_one(scores, result.coverage[0, 0], place)
    assert torch.equal(mask, rectangle(4, 7, 5, 7, GRID))
    expected = scores[..., 2:5, 1:3]
    assert torch.allclose(moved[..., 4:7, 5:7], expected, rtol=0, atol=1e-5)


def test_scores_shrink_with_the_object():
    scores = randn(1, 1, GRID, GRID)
    place = placement(0.5, (8, 8), (16, 16))
    _, _, result = paste_one(rectangle(8, 24, 8, 24), place)
    moved, mask = carry_one(scores, result.coverage[0, 0], place)
    assert torch.equal(mask, rectangle(4, 6, 4, 6, GRID))
    halved = F.avg_pool2d(scores[..., 2:6, 2:6], 2)
    assert torch.allclose(moved[..., 4:6, 4:6], halved, rtol=0, atol=1e-5)


def test_cells_count_that_are_covered_by_half():
    scores = randn(1, 1, GRID, GRID)
    _, mask = carry_one(scores, rectangle(4, 8, 4, 10), placement())
    assert torch.equal(mask, rectangle(1, 2, 1, 3, GRID)), "8 of 16 pixels"
    region = rectangle(4, 8, 4, 10)
    region[4, 9] = False
    _, mask = carry_one(scores, region, placement())
    assert torch.equal(mask, rectangle(1, 2, 1, 2, GRID)), "7 of 16 pixels"
    _, mask = carry_one(scores, rectangle(5, 7, 6, 7), placement())
    assert not mask.any(), "the object vanishes at the token grid"


def test_cells_with_padding_never_count():
    scores = randn(1, CLASSES, GRID, GRID)
    valid, target_valid = rectangle(0, 32, 0, 23), rectangle(6, 32, 0, 32)
    clean = scores.clone()
    scores[..., 5:] = 1e4  # the sixth column of cells is cut by the padding
    moved, mask = carry_one(scores, valid, placement(), valid, target_valid)
    assert torch.equal(mask, rectangle(2, 8, 0, 5, GRID)), "the second row is cut in the target"
    assert torch.allclose(moved[0][:, mask], clean[0][:, mask], rtol=0, atol=0.1)
    shifted = placement(1.0, (0, 0), (0, 2))
    region = warp(valid[None, None].float(), shifted)[0, 0]
    _, mask = carry_one(scores, region, shifted, valid, target_valid)
    assert torch.equal(mask, rectangle(2, 8, 0, 5, GRID)), "the next column would mix padding in"


def test_scores_at_the_border_of_the_crop_count():
    """An object that the crop cuts off has scores to the last cell."""
    place = placement(1.0, (20, 0), (10, 0))
    _, _, result = paste_one(rectangle(20, 32, 0, 32), place)
    moved, mask = carry_one(randn(1, 1, GRID, GRID), result.coverage[0, 0], place)
    assert mask.any(dim=1).tolist() == [False, False, True, True, True, True, False, False]
    assert torch.isfinite(moved).all()


# The regularizer, on a network whose scores are a function of a cell's colour


class Colours(nn.Module):
    """CAM = weight @ mean colour of the cell + spread * mean colour of the image."""

    def __init__(self, spread=0.0):
        super().__init__()
        self.weight = nn.Parameter(randn(CLASSES, 3, seed=4).float())
        self.spread = spread
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        cells = F.avg_pool2d(images, PATCH)
        cells = cells + self.spread * cells.mean(dim=(2, 3), keepdim=True)
        cam = (self.weight @ cells.flatten(2)).unflatten(2, cells.shape[2:])
        pooled = cam.amax(dim=(2, 3))
        return NetworkOutput(pooled, pooled, cam, cam, cam, cells)


def make_context(objects, network=None, classes=None, **changes):
    """Image k of the batch has partner k with the object mask ``objects[k]``; None: no partner."""
    network = Colours() if network is None else network
    n = len(objects)
    if classes is None:
        classes = [k % CLASSES if mask is not None else -1 for k, mask in enumerate(objects)]
    batch = {
        "weak": randn(n, 3, SIDE, SIDE, seed=5).float(),
        "strong": randn(n, 3, SIDE, SIDE, seed=6).float(),
        "image_labels": torch.ones(n, CLASSES),
        "valid": torch.ones(n, SIDE, SIDE, dtype=torch.bool),
        "partner": randn(n, 3, SIDE, SIDE, seed=7).float(),
        "partner_valid": torch.ones(n, SIDE, SIDE, dtype=torch.bool),
        "partner_class": torch.tensor(classes),
    } | changes

    def pseudo_labels(cam, labels, valid, present):
        own = [mask for mask in objects if mask is not None]
        label = torch.stack(own) * (labels.argmax(dim=1)[:, None, None] + 1)
        cam = F.interpolate(cam, valid.shape[1:])
        return CamTargets(cam, label, torch.ones_like(cam[:, 0]), 0.5)

    output = network(batch["strong"])
    network.seen.clear()
    return tiny_cotraining.context_of(
        batch, output, label_view=pseudo_labels, online=network,
        assignment=AssignmentNetwork(network),
    )


def regularizer(**options):
    return tiny_cotraining.InMeans(SemanticDecoupling(
        SemanticDecouplingOptions(**{"weight": 1.0, "edge": 0.0} | options), 8, CLASSES
    ))


# All corners: at scale 1 the only place is its own.
FRAME = ~rectangle(8, 20, 12, 24)
STILL = dict(scale_min=1.0, scale_max=1.0)


def test_weights():
    assert regularizer().weights() == pytest.approx({"csd_foreground": 0.01, "csd_background": 0.1})
    assert regularizer(weight=2.0, foreground=0.3, background=0.0).weights() == pytest.approx(
        {"csd_foreground": 0.6}
    )
    assert SemanticDecoupling.needs == {"cam"}
    with pytest.raises(ValueError, match="all 0"):
        regularizer(foreground=0.0, background=0.0)


def test_both_views_go_through_the_network_in_one_pass():
    context = make_context([rectangle(4, 20, 4, 20), None, rectangle(8, 32, 0, 16)])
    terms = regularizer()(context)
    assert set(terms) == BOTH and all(term.shape == () and term > 0 for term in terms.values())
    (seen,) = context.online.seen
    assert seen.shape == (4, 3, SIDE, SIDE), "two partners, twice"
    target = context.batch["strong"][[0, 2, 0, 2]]
    kept = torch.isclose(seen, target, atol=1e-5).all(dim=1)
    assert (kept.flatten(1).float().mean(dim=1) > 0.2).all()
    assert (~kept).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("kept, off", [("foreground", "background"), ("background", "foreground")])
def test_a_term_of_weight_zero_is_not_computed(monkeypatch, kept, off):
    def refuse(*args):
        raise AssertionError("computed for nothing")

    monkeypatch.setattr(csd, f"decoupling_{off}", refuse)
    if off == "background":
        monkeypatch.setattr(csd, "random_box", refuse)
    context = make_context([rectangle(4, 20, 4, 20)])
    assert set(regularizer(**{off: 0.0})(context)) == {f"csd_{kept}"}
    assert [len(images) for images in context.online.seen] == [1]


def test_the_foreground_is_pasted_where_the_pseudo_labels_see_it():
    context = make_context([FRAME])
    regularizer(background=0.0, **STILL)(context)
    (seen,) = context.online.seen
    expected = torch.where(FRAME, context.batch["partner"], context.batch["strong"])
    assert torch.allclose(seen, expected, atol=1e-4)


def test_the_background_is_pasted_without_the_object():
    whole = torch.full((1, 3, SIDE, SIDE), 100.0)
    target, objects = torch.zeros_like(whole), rectangle(8, 24, 8, 24)
    whole[:, :, objects] = -100.0
    context = make_context([objects], partner=whole, strong=target)
    parts = []
    for _ in range(20):
        regularizer(foreground=0.0, **STILL)(context)
        seen = context.online.seen[-1]
        # Between two pixels the edge, a quarter of which is pasted, has a share of the object.
        assert seen.min() > -13, "a pixel of the object was pasted"
        parts.append((seen > 50).float().mean().item())
    # The box has a quarter of the image, and the object covers a part of most boxes.
    assert max(parts) < 0.25 and max(parts) - min(parts) > 0.05


def test_seeing_the_same_pixels_costs_nothing():
    terms = regularizer(**STILL, background=0.0)(make_context([FRAME, FRAME]))
    assert terms["csd_foreground"].item() == pytest.approx(0, abs=1e-5)
    # The same cells in a context that colours the scores of a network that looks farther:
    context = make_context([FRAME, FRAME], Colours(spread=1.0))
    context.batch["strong"] = context.batch["strong"] + 3
    assert regularizer(**STILL, background=0.0)(context)["csd_foreground"] > 1e-2


def test_the_value_is_that_of_the_oracle():
    """Cell by cell: the partner's scores where it is pasted, in place, against the new ones."""
    context = make_context([FRAME, FRAME], Colours(spread=1.0))
    value = regularizer(**STILL, background=0.0)(context)["csd_foreground"].item()
    pasted = torch.where(FRAME, context.batch["partner"], context.batch["strong"])
    with torch.no_grad():
        source = context.online(context.batch["partner"]).cam.double()
        scores = context.online(pasted).cam.double()
    cells = ~rectangle(2, 5, 3, 6, GRID)
    expected = naive(decoupling_foreground, source, scores, cells.expand(2, -1, -1))
    assert value == pytest.approx(expected, rel=1e-3)


def test_background_that_is_everywhere_the_same_costs_nothing():
    colour = torch.tensor([0.5, -1.0, 0.3])[:, None, None].expand(1, 3, SIDE, SIDE)
    partner = torch.where(rectangle(8, 20, 8, 20), 2.0, colour)
    context = make_context([rectangle(8, 20, 8, 20)], partner=partner, strong=colour)
    # The scores next to the object are blends with the object's, where cells do not align.
    aligned = dict(scale_min=1.0, scale_max=1.0, foreground=0.0)
    values = [regularizer(**aligned)(context)["csd_background"].item() for _ in range(10)]
    assert min(values) == pytest.approx(0, abs=1e-6)
    context.batch["strong"] = colour + 1
    assert regularizer(**aligned)(context)["csd_background"] > 0


def test_a_partner_goes_into_the_valid_area_of_its_own_image():
    left, right = rectangle(0, 32, 0, 16), rectangle(0, 32, 16, 32)
    valid = torch.stack([left, right, left, left])
    context = make_context([None, rectangle(8, 20, 4, 16), None, FRAME & left], valid=valid)
    regularizer()(context)
    (seen,) = context.online.seen
    kept = torch.isclose(seen, context.batch["strong"][[1, 3, 1, 3]], atol=1e-5).all(dim=1)
    for place, area in enumerate((right, left, right, left)):
        assert kept[place][~area].all() and not kept[place][area].all()


def test_the_background_score_and_the_edge_are_the_options():
    values, blends = [], []
    for options in ({}, {"background_score": 4.0}, {"edge": 0.2}):
        torch.manual_seed(0)
        context = make_context([rectangle(8, 24, 8, 24)], strong=torch.zeros(1, 3, SIDE, SIDE),
                               partner=torch.ones(1, 3, SIDE, SIDE))
        values.append(regularizer(**STILL | options)(context)["csd_background"].item())
        images = context.online.seen[0]
        blends.append(((images > 0.05) & (images < 0.95)).float().mean().item())
    assert values[0] > 0 and not math.isclose(values[1], values[0], rel_tol=0.01)
    assert blends[0] == blends[1] and blends[2] > blends[0] + 0.1


def test_gradients_reach_the_online_network_alone():
    context = make_context([rectangle(4, 20, 4, 20), rectangle(8, 32, 0, 16)])
    for images in context.batch.values():
        if images.is_floating_point():
            images.requires_grad_()
    terms = regularizer()(context)
    sum(terms.values()).backward()
    assert context.online.weight.grad.any()
    assert all(p.grad is None for p in context.assignment.parameters())
    assert all(t.grad is None for t in context.batch.values() if t.is_floating_point())
    assert not context.partner.output.cam.requires_grad


def test_the_network_runs_in_the_autocast_context_and_the_losses_outside():
    context = make_context([rectangle(4, 20, 4, 20)])
    inside = []

    @contextmanager
    def autocast():
        inside.append(len(context.online.seen))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
        inside.append(len(context.online.seen))

    exact = torch.get_rng_state(), regularizer()(context)
    context.online.seen.clear()
    torch.set_rng_state(exact[0])
    context.autocast = autocast
    terms = regularizer()(context)
    assert inside == [0, 1], "the partner was seen before"
    for name, term in terms.items():
        assert term.dtype is torch.float32
        assert term != exact[1][name] and torch.allclose(term, exact[1][name], rtol=0.2)


# Batches that hold little


def zero(term):
    return term.item() == 0 and term.requires_grad and term.dtype is torch.float32


@pytest.mark.parametrize("keys", [True, False])
def test_without_partners_both_terms_are_zero(keys):
    context = make_context([None, None])
    if not keys:
        for key in ("partner", "partner_valid", "partner_class"):
            del context.batch[key]
    terms = regularizer()(context)
    assert set(terms) == BOTH and all(zero(term) for term in terms.values())
    sum(terms.values()).backward()
    assert not context.online.weight.grad.any() and context.online.seen == []


def test_partners_without_a_visible_object_take_no_part(capsys):
    empty = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    one = regularizer(**STILL, background=0.0)
    network = Colours(spread=1.0)
    value = one(make_context([empty, FRAME], network))["csd_foreground"]
    assert [len(images) for images in network.seen] == [1]
    err = capsys.readouterr().err
    assert err.startswith("note: csd: ") and err.count("\n") == 1
    alone = make_context([None, FRAME], network)
    assert torch.allclose(value, one(alone)["csd_foreground"])
    context = make_context([empty, empty])
    terms = regularizer()(context)
    assert all(zero(term) for term in terms.values()) and context.online.seen == []
    capsys.readouterr()
    one(make_context([empty, FRAME]))
    assert capsys.readouterr().err == "", "it was said before"


def test_an_object_in_the_padding_is_none():
    valid = rectangle(0, 32, 0, 16)[None]
    terms = regularizer()(make_context([rectangle(0, 32, 20, 32)], partner_valid=valid))
    assert all(zero(term) for term in terms.values())


def test_a_partner_that_is_all_object_has_no_background():
    context = make_context([torch.ones(SIDE, SIDE, dtype=torch.bool)], Colours(spread=1.0))
    terms = regularizer()(context)
    assert zero(terms["csd_background"]) and terms["csd_foreground"] > 0
    terms["csd_background"].backward()
    assert not context.online.weight.grad.any()


def test_an_object_smaller_than_half_a_cell_gives_zero():
    context = make_context([rectangle(9, 11, 9, 11)])
    terms = regularizer()(context)
    assert zero(terms["csd_foreground"]) and terms["csd_background"] > 0
    terms["csd_foreground"].backward()
    assert torch.equal(context.online.weight.grad, torch.zeros(CLASSES, 3))


def test_a_target_that_is_padding_gives_zero():
    nothing = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    context = make_context([rectangle(4, 20, 4, 20)], valid=nothing)
    terms = regularizer()(context)
    assert all(zero(term) for term in terms.values())
    assert torch.equal(context.online.seen[0], context.batch["strong"].repeat(2, 1, 1, 1))


def test_padding_never_counts():
    """Whatever the padding of partner and target holds, and of the scores there, stays out."""
    valid, target_valid = rectangle(0, 32, 0, 16), rectangle(8, 32, 4, 32)
    objects = rectangle(8, 20, 4, 16)
    values = []
    for colour in (0.0, 1e3):
        torch.manual_seed(3)
        context = make_context([objects], partner_valid=valid[None], valid=target_valid[None])
        context.batch["partner"].masked_fill_(~valid, colour)
        context.batch["strong"].masked_fill_(~target_valid, colour)
        terms = regularizer(edge=0.1)(context)
        values.append([term.item() for term in terms.values()])
    assert min(values[0]) > 0
    assert values[1] == pytest.approx(values[0], rel=1e-2)


# In a training step, on a real network


def step(autocast=None, partner_class=(-1, 2, 0)):
    options = {"csd": {"weight": 1.0, "foreground": 1.0, "background": 1.0}}
    tree = tiny_tree(method={"cls_iterations": 0, "s2c_start": 0}, regularizers=options)
    config = from_dict(tree)
    torch.manual_seed(0)
    network = build_network(to_dict(config), CLASSES).train()
    nn.init.normal_(network.classifier.weight, std=0.3)
    cotraining = assemble(network, config, *([autocast] if autocast else []))
    images = F.interpolate(randn(9, 3, 8, 8).float(), (SIZE, SIZE), mode="bilinear")
    batch = dict(zip(("weak", "strong", "partner"), images.chunk(3), strict=True)) | {
        "image_labels": torch.ones(3, CLASSES),
        "valid": torch.ones(3, SIZE, SIZE, dtype=torch.bool),
        "partner_valid": torch.ones(3, SIZE, SIZE, dtype=torch.bool),
        "partner_class": torch.tensor(partner_class),
    }
    before = copy.deepcopy(cotraining.assignment.state_dict())
    loss, terms = cotraining.step(batch, 0)
    loss.backward()
    after = cotraining.assignment.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in cotraining.assignment.parameters())
    return cotraining, loss, terms


def test_a_training_step():
    cotraining, loss, terms = step()
    assert BOTH < set(terms) and all(terms[name] > 0 for name in BOTH)
    assert torch.isfinite(loss) and cotraining.online.classifier.weight.grad.any()
    _, other, without = step(partner_class=(-1, -1, -1))
    assert all(without[name] == 0 for name in BOTH)
    assert loss.item() - other.item() == pytest.approx(
        sum(terms[name].item() for name in BOTH), rel=1e-4
    )


def test_a_training_step_in_bf16():
    cotraining, loss, terms = step(choose_autocast(torch.device("cpu"), "bf16"))
    _, _, exact = step()
    for name in BOTH:
        assert terms[name].dtype is torch.float32
        assert torch.allclose(terms[name], exact[name], rtol=0.4, atol=0.02), name
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in cotraining.online.parameters()
               if p.grad is not None)
