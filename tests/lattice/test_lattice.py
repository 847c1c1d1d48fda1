import importlib.util
import math
import warnings

import pytest
import torch

from cosa.lattice import Lattice, bilateral_features, filter
from cosa.lattice.filter import spatial_features
from tests.helpers.draws import rand, randn


def photograph(h, w, seed=0):
    """(h, w, 3) in 0..255: two smooth regions with an edge between them, and some noise."""
    coarse = 255 * rand(2, 3, 3, 3, seed=seed)
    smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic")
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    disc = (y - h / 2) ** 2 + (x - w / 3) ** 2 < (h / 3) ** 2
    image = torch.where(disc, smooth[0], smooth[1]) + 4 * randn(3, h, w, seed=seed)
    return image.clamp(0, 255).permute(1, 2, 0)


def exact_filter(features, values):
    return torch.exp(-torch.cdist(features, features) ** 2 / 2) @ values


def slow_filter(features, values):
    """The lattice as Adams, Baek and Davis describe it, point by point."""
    d = features.shape[1]
    simplices, lattice = [], {}
    for feature, value in zip(features.tolist(), values, strict=True):
        # The columns of E of their Section 3: orthogonal, of sum 0. The factor makes the variance
        # of the blur, in units of the features, 1.
        position = [0.0] * (d + 1)
        for i, x in enumerate(feature, start=1):
            x *= math.sqrt(2 / 3) * (d + 1) / math.sqrt(i * (i + 1))
            for k in range(i):
                position[k] += x
            position[i] -= i * x
        # The closest lattice point of remainder 0.
        corner = [round(p / (d + 1)) * (d + 1) for p in position]
        rest = [p - c for p, c in zip(position, corner, strict=True)]
        off = sum(corner) // (d + 1)
        order = sorted(range(d + 1), key=lambda k: rest[k], reverse=off < 0)
        for k in order[: abs(off)]:
            corner[k] -= int(math.copysign(d + 1, off))
        rest = [p - c for p, c in zip(position, corner, strict=True)]
        order = sorted(range(d + 1), key=lambda k: rest[k])
        step = [rest[k] / (d + 1) for k in order]
        weights = [1 + step[0] - step[d]] + [b - a for a, b in zip(step, step[1:], strict=False)]
        simplex = []
        for r, weight in enumerate(weights):
            key = [c + r for c in corner]
            for k in order[:r]:
                key[k] -= d + 1
            simplex.append((tuple(key), weight))
            lattice[tuple(key)] = lattice.get(tuple(key), 0) + weight * value
        simplices.append(simplex)
    for j in range(d + 1):
        blurred = {}
        for key, value in lattice.items():
            blurred[key] = value
            for sign in (1, -1):
                near = tuple(k - sign + sign * (d + 1) * (i == j) for i, k in enumerate(key))
                blurred[key] = blurred[key] + lattice.get(near, 0) / 2
        lattice = blurred
    sliced = [sum(weight * lattice[key] for key, weight in simplex) for simplex in simplices]
    return torch.stack(sliced) / (1 + 2**-d)


# The lattice itself


@pytest.mark.parametrize("spread", [0.3, 1.5, 30.0])
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_filter_is_that_of_the_paper(d, spread):
    features, values = spread * randn(120, d), randn(120, 3, seed=1)
    expected = slow_filter(features, values)
    assert torch.allclose(Lattice(features).filter(values), expected, atol=1e-10)


def test_filter_of_a_photograph_is_that_of_the_paper():
    features, values = bilateral_features(photograph(12, 16), 8, 13), rand(192, 2)
    # On the face of a simplex, as at x = 0 or of a grey pixel, which points exist is rounding.
    features = features + 0.01 * randn(192, 5)
    expected = slow_filter(features, values)
    assert torch.allclose(Lattice(features).filter(values), expected, atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_single_point_by_hand(d):
    # It sits on a lattice point. Around its simplex the blur leads once back to it, by d+1 halves.
    value = randn(1, 4)
    lattice = Lattice(torch.zeros(1, d, dtype=torch.float64))
    assert lattice.num_points == d + 1
    assert torch.allclose(lattice.filter(value), value * (1 + 2.0 ** -(d + 1)) / (1 + 2.0**-d))


def test_two_points_by_hand():
    # One feature: the lattice is that of the whole numbers, sqrt(3)/2 apart, as the two passes of
    # the blur have variance 1/2 each and splat and slice 1/6. Both points lie between 0 and 1.
    place = torch.tensor([[0.25], [0.5]], dtype=torch.float64)
    lattice = Lattice(place * math.sqrt(3) / 2)
    filtered = lattice.filter(torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    # (3/4, 1/4), blurred (7/8, 5/8), again (19/16, 17/16); sliced, over 1 + 1/2
    expected = torch.tensor([[37 / 32], [9 / 8]], dtype=torch.float64) / 1.5
    assert lattice.num_points == 2
    assert torch.allclose(filtered, expected)


# Against the exact Gaussian


def normalised_error(features, values):
    lattice, ones = Lattice(features), torch.ones_like(values[:, :1])
    approximate = lattice.filter(values) / lattice.filter(ones)
    exact = exact_filter(features, values) / exact_filter(features, ones)
    return ((approximate - exact).abs().sum() / exact.abs().sum()).item()


# The bounds are a third above the errors measured, with noise and with a smooth input.
@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("sigma, bound", [(1, 0.016), (3, 0.0066)])
def test_spatial_filter_is_near_the_gaussian(sigma, bound, kind):
    values = rand(30 * 40, 3) if kind == "noise" else photograph(30, 40).reshape(-1, 3) / 255
    assert normalised_error(spatial_features(30, 40, sigma).double(), values) < bound


@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("sigma_rgb, bound", [(5, 0.063), (15, 0.018), (40, 0.017)])
def test_bilateral_filter_is_near_the_gaussian(sigma_rgb, bound, kind):
    values = rand(30 * 40, 3)
    if kind == "smooth":
        values = photograph(30, 40, seed=1).reshape(-1, 3) / 255
    features = bilateral_features(photograph(30, 40), 25, sigma_rgb)
    assert normalised_error(features, values) < bound


@pytest.mark.parametrize("d", [2, 5])
def test_scale_where_all_lattice_points_exist(d):
    # The inner points of a dense cloud: those at its rim see fewer others.
    side = 3.5 if d == 5 else 8
    features = side * rand(1500 if d == 2 else 6000, d)
    features[0] = side / 2
    ones = torch.ones(len(features), 1, dtype=torch.float64)
    gaussian = torch.exp(-((features - features[0]) ** 2).sum(dim=1) / 2).sum()
    expected = 2 / (math.sqrt(d + 1) * (1 + 2**-d) * (math.pi / 3) ** (d / 2))
    ratio = (Lattice(features).filter(ones)[0, 0] / gaussian).item()
    assert ratio == pytest.approx(expected, rel=0.12)


# Derivatives


@pytest.mark.parametrize("d", [2, 5])
def test_adjoint(d):
    lattice = Lattice(3 * randn(200, d))
    x, y = randn(200, 4, seed=1).requires_grad_(), randn(200, 4, seed=2)
    filtered = lattice.filter(x)
    (filtered * y).sum().backward()
    # <W e_i, y> = (W' y)_i, whatever the order of the blur's axes
    basis = lattice.filter(torch.eye(200, dtype=torch.float64))
    assert torch.allclose(x.grad, basis.T @ y, atol=1e-12)
    assert torch.allclose((filtered * y).sum(), (x * x.grad).sum())
    assert not torch.allclose(basis, basis.T)  # the axes do not commute: a test that can fail


def test_gradcheck():
    lattice = Lattice(bilateral_features(photograph(3, 4), 2, 30)).normalized()
    values = randn(12, 2).requires_grad_()
    assert torch.autograd.gradcheck(lattice.filter, values)
    assert torch.autograd.gradgradcheck(lambda x: lattice.filter(x) ** 2, values)


def test_no_gradient_reaches_the_features():
    features = randn(10, 2).requires_grad_()
    lattice = Lattice(features)
    assert not lattice.filter(randn(10, 1)).requires_grad
    assert not lattice.scaled(features[:, 0]).filter(randn(10, 1)).requires_grad


# Invariances


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_groups_do_not_see_each_other(spread):
    features, values = spread * randn(90, 3), randn(90, 2, seed=1)
    group = torch.arange(90) % 3 * 7  # interleaved; ids need not be consecutive
    together = Lattice(features, group).filter(values)
    for g in group.unique():
        mine = group == g
        alone = Lattice(features[mine]).filter(values[mine])
        assert torch.allclose(together[mine], alone, rtol=1e-13, atol=1e-13)
    assert not torch.allclose(together, Lattice(features).filter(values)) or spread > 100


def test_equal_points_of_different_groups_stay_apart():
    features, values = torch.zeros(2, 5), torch.tensor([[1.0], [0.0]])
    filtered = Lattice(features, torch.tensor([0, 1])).filter(values)
    assert filtered[0] > 0.9 and filtered[1] == 0


@pytest.mark.parametrize("d", [2, 5])
def test_order_of_the_points_does_not_matter(d):
    features, values = 2 * randn(150, d), randn(150, 2, seed=1)
    order = torch.randperm(150, generator=torch.manual_seed(2))
    shuffled = Lattice(features[order]).filter(values[order])
    assert torch.allclose(shuffled, Lattice(features).filter(values)[order], atol=1e-12)


def test_moving_all_points_by_the_lattice_period_does_not_matter():
    features, values = randn(80, 2), randn(80, 2, seed=1)
    period = torch.tensor([math.sqrt(3), 0], dtype=torch.float64)
    for shift in (-40, 3):
        moved = Lattice(features + shift * period).filter(values)
        assert torch.allclose(moved, Lattice(features).filter(values), atol=1e-10)


def test_duplicates_count_once_each():
    features, values = 2 * randn(40, 5), randn(40, 2, seed=1)
    twice = Lattice(features.repeat(2, 1)).filter(values.repeat(2, 1))
    expected = 2 * Lattice(features).filter(values)
    assert torch.allclose(twice, expected.repeat(2, 1), atol=1e-12)


def test_constant_values_stay_constant_when_normalised():
    features = bilateral_features(photograph(10, 12), 5, 20)
    ones = torch.ones(120, 1, dtype=torch.float64)
    lattice = Lattice(features)
    assert torch.allclose(lattice.filter(3.7 * ones), 3.7 * lattice.filter(ones))
    assert (lattice.filter(ones) > 0.3).all()


def test_scaled_and_normalized():
    features, values = 2 * randn(60, 3), randn(60, 2, seed=1)
    lattice, factor = Lattice(features), randn(60, seed=2)
    expected = factor[:, None] * lattice.filter(factor[:, None] * values)
    assert torch.allclose(lattice.scaled(factor).filter(values), expected)
    norm = lattice.filter(torch.ones(60, 1, dtype=torch.float64)) ** -0.5
    assert torch.allclose(lattice.normalized().filter(values), norm * lattice.filter(norm * values))
    # The lattice itself is as it was.
    assert torch.equal(lattice.filter(values), Lattice(features).filter(values))


# The sparse product, which is the splat on CUDA


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")  # pytest forgets the program's
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_splat_as_a_sparse_matrix_is_that_of_bags(dtype):
    lattice = Lattice(bilateral_features(photograph(12, 16), 8, 30).to(dtype)).normalized()
    values = randn(192, 3).to(dtype)
    size = (lattice.num_points + 1, 192)
    matrix = filter.splat_matrix(
        lattice._splat_ends, lattice._splat_rows, lattice._splat_weights, size
    )
    bags = lattice._onto_lattice(values)
    assert bags.shape == (lattice.num_points + 1, 3) and bags[:-1].any() and not bags[-1].any()
    torch.testing.assert_close(matrix @ values, bags)
    assert matrix.crow_indices().dtype == matrix.col_indices().dtype == torch.int32


def test_no_word_of_sparse_matrices_being_in_beta():
    parts = torch.tensor([0, 1]).int(), torch.tensor([0]).int(), torch.ones(1), (1, 1)
    spec = importlib.util.spec_from_file_location("imported_again", filter.__file__)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            again = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(again)
            assert again.splat_matrix(*parts).to_dense().item() == 1
            warnings.warn("another", UserWarning, stacklevel=1)
    finally:
        torch.set_warn_always(False)
    assert [str(warning.message) for warning in noted] == ["another"]


# Types and shapes


def test_channels_are_filtered_one_by_one():
    lattice, values = Lattice(randn(50, 5)), randn(5, 50, seed=1).T
    columns = [lattice.filter(values[:, k : k + 1]) for k in range(5)]
    assert torch.allclose(lattice.filter(values), torch.cat(columns, dim=1))


@pytest.mark.parametrize("block", [1, 5000, 2**40])
def test_size_of_the_blocks_does_not_matter(monkeypatch, block):
    lattice, values = Lattice(randn(50, 5)), randn(50, 7, seed=1).requires_grad_()
    expected = lattice.filter(values)
    (gradient,) = torch.autograd.grad((expected**2).sum(), values)
    monkeypatch.setattr("cosa.lattice.filter._LARGEST_BLOCK", block)
    filtered = lattice.filter(values)
    assert torch.allclose(filtered, expected)
    assert torch.allclose(torch.autograd.grad((filtered**2).sum(), values)[0], gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_types_are_filtered_in_float32(dtype):
    features, values = bilateral_features(photograph(20, 20), 10, 10), rand(400, 3).to(dtype)
    filtered = Lattice(features.float()).filter(values)
    assert filtered.dtype == torch.float32
    assert torch.allclose(filtered, Lattice(features).filter(values.double()).float(), rtol=1e-4)


def test_double_values_on_a_single_precision_lattice_come_back_double():
    filtered = Lattice(randn(20, 2).float()).filter(rand(20, 3))
    assert filtered.dtype == torch.float64


def test_many_standard_deviations_need_long_keys():
    # Far more lattice points than 32 bits can number, none of them shared.
    features = 1e4 * randn(30, 4)
    values = randn(30, 2, seed=1)
    lattice = Lattice(features)
    assert lattice.num_points == 150
    assert torch.allclose(lattice.filter(values), slow_filter(features, values), atol=1e-8)


@pytest.mark.parametrize("features", [
    torch.full((3, 2), float("nan")),
    torch.tensor([[0.0, 0.0], [float("inf"), 0.0]]),
    torch.tensor([[0.0, 0.0], [0.0, 1e9]]),
    torch.tensor([[0.0] * 9, [3e4] * 9], dtype=torch.float64),
])
def test_points_too_far_apart_are_reported(features):
    with pytest.raises(ValueError, match="standard deviations"):
        Lattice(features)


def test_what_does_not_fit_is_reported():
    for features in (torch.zeros(0, 2), torch.zeros(3), torch.zeros(3, 0)):
        with pytest.raises(ValueError, match="features must have shape"):
            Lattice(features)
    with pytest.raises(ValueError, match="group must have shape"):
        Lattice(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="negative"):
        Lattice(torch.zeros(3, 2), torch.tensor([0, -1, 0]))
    with pytest.raises(ValueError, match="standard deviations"):
        Lattice(randn(3, 5), torch.tensor([0, 2**61, 1]))
    for values in (torch.zeros(4, 1), torch.zeros(3)):
        with pytest.raises(ValueError, match="values must have shape"):
            Lattice(torch.zeros(3, 2)).filter(values)


def test_features_of_images():
    image = torch.arange(18, dtype=torch.uint8).reshape(2, 3, 3)
    features = bilateral_features(image, sigma_xy=2, sigma_rgb=3)
    assert features.dtype == torch.float32 and features.shape == (6, 5)
    assert torch.allclose(features[5], torch.tensor([1.0, 0.5, 5.0, 16 / 3, 17 / 3]))
    assert torch.equal(features[:, :2], spatial_features(2, 3, 2))
    first = photograph(2, 4)
    assert torch.equal(
        bilateral_features(first.permute(2, 0, 1), 2, 3), bilateral_features(first, 2, 3)
    )
    batch = torch.stack([first, photograph(2, 4, seed=1)])
    assert torch.equal(bilateral_features(batch, 2, 3)[0], bilateral_features(first, 2, 3))
    for shape in ((4, 4), (4, 5, 6), (2, 3, 4, 4)):
        with pytest.raises(ValueError, match="image must have shape"):
            bilateral_features(torch.zeros(shape), 1, 1)
