import time

import numpy as np
import pytest
import torch

from cosa.core.errors import NotFiniteError
from cosa.mixture import fit_threshold
from cosa.threshold import DynamicThreshold

SAMPLES = 20000


def mixture(weight, low, high, seed=0, samples=SAMPLES):
    """Values of two Gaussians (mean, deviation), within [0, 1]."""
    rng = np.random.default_rng(seed)
    first = rng.random(samples) < weight
    values = np.where(first, rng.normal(*low, samples), rng.normal(*high, samples))
    return torch.from_numpy(values.clip(0, 1))


def newest_fit(**options):
    return DynamicThreshold(**{"smoothing": 0.0, "min_confidence": 0.0, **options})


def oracle(values):
    """Scikit-learn's mixture of the raw values and the crossing of its densities."""
    module = pytest.importorskip("sklearn.mixture")
    model = module.GaussianMixture(2, tol=1e-7, max_iter=2000, random_state=0)
    model.fit(values.numpy().reshape(-1, 1))
    order = model.means_[:, 0].argsort()
    mean = model.means_[order, 0]
    variance = model.covariances_[order, 0, 0]
    points = np.linspace(*mean, 20001)[:, None]
    density = np.exp(-((points - mean) ** 2) / 2 / variance) / np.sqrt(variance)
    density *= model.weights_[order]
    return points[(density[:, 1] > density[:, 0]).argmax(), 0]


@pytest.mark.parametrize(
    "weight, low, high",
    [
        (0.5, (0.2, 0.06), (0.8, 0.08)),
        (0.8, (0.15, 0.05), (0.7, 0.15)),
        (0.95, (0.2, 0.05), (0.7, 0.1)),
        (0.1, (0.25, 0.1), (0.75, 0.1)),
        (0.6, (0.3, 0.12), (0.65, 0.15)),
        (0.4, (0.3, 0.1), (0.6, 0.15)),  # overlapping: plain EM would need many iterations
    ],
)
def test_agrees_with_scikit_learn(weight, low, high):
    values = mixture(weight, low, high)
    kept = values[values > 0.05]
    assert newest_fit(min_confidence=0.05).update(values) == pytest.approx(oracle(kept), abs=3e-3)


def test_agrees_with_scikit_learn_on_skewed_confidences():
    rng = np.random.default_rng(1)
    parts = rng.beta(1, 6, 14000), rng.beta(5, 2, 6000)
    values = torch.from_numpy(np.concatenate(parts))
    assert newest_fit().update(values) == pytest.approx(oracle(values), abs=1e-2)


def test_equal_gaussians_cross_half_way():
    values = mixture(0.5, (0.3, 0.05), (0.7, 0.05), samples=200000)
    assert newest_fit().update(values) == pytest.approx(0.5, abs=5e-3)


def test_the_crossing_of_unequal_weights_by_hand():
    # log(w1/w2) + ((x - m2)^2 - (x - m1)^2) / 2v = 0 at x = 0.5 + v log(w1/w2) / (m2 - m1)
    values = mixture(0.9, (0.3, 0.08), (0.7, 0.08), samples=400000)
    expected = 0.5 + 0.08**2 * np.log(9) / 0.4
    assert newest_fit().update(values) == pytest.approx(expected, abs=5e-3)


def test_smoothing_averages_with_the_last_value():
    values = mixture(0.5, (0.2, 0.05), (0.6, 0.05))
    fit = newest_fit().update(values)
    threshold = newest_fit(smoothing=0.9, initial=0.7)
    assert threshold.update(values) == pytest.approx(0.9 * 0.7 + 0.1 * fit, abs=1e-12)
    assert threshold.update(values) == pytest.approx(0.81 * 0.7 + 0.19 * fit, abs=1e-12)


def test_low_confidences_are_left_out():
    values = mixture(0.5, (0.6, 0.03), (0.8, 0.03))
    low = torch.tensor([0.0, 0.05], dtype=torch.float64).repeat(10000)
    alone = newest_fit().update(values)
    together = torch.cat([values, low])
    assert newest_fit(min_confidence=0.05).update(together) == alone > 0.6
    # At 0 even the zeros take part: they become the lower Gaussian.
    with_zeros = torch.cat([values, torch.zeros(10000)])
    assert newest_fit(min_confidence=0.0).update(with_zeros) < 0.5


def test_the_queue_forgets_the_oldest_batch():
    early = mixture(0.5, (0.1, 0.03), (0.4, 0.03))
    late = mixture(0.5, (0.5, 0.03), (0.9, 0.03))
    threshold = newest_fit(queue_length=2)
    threshold.update(early)
    both = threshold.update(late)
    alone = newest_fit().update(late)
    assert both != pytest.approx(alone, abs=0.05)
    assert threshold.update(late) == pytest.approx(alone, abs=1e-9)


def test_a_batch_order_within_the_queue_does_not_matter():
    batches = [mixture(0.5, (0.2, 0.1), (0.7, 0.1), seed=seed) for seed in range(3)]
    forward, backward = newest_fit(), newest_fit()
    for one, other in zip(batches, reversed(batches), strict=True):
        forward.update(one)
        backward.update(other)
    assert forward.value == backward.value


def test_shape_dtype_and_gradient_do_not_matter():
    values = mixture(0.6, (0.2, 0.05), (0.7, 0.1)).float()
    expected = newest_fit().update(values)
    shaped = values.reshape(4, 50, 100).clone().requires_grad_()
    assert newest_fit().update(shaped) == expected
    assert newest_fit().update(values.half()) == pytest.approx(expected, abs=2e-3)


def test_values_out_of_range_count_as_the_bounds():
    values = mixture(0.5, (0.2, 0.05), (0.7, 0.1))
    outside = torch.cat([values, torch.full((500,), 3.0), torch.full((500,), -2.0)])
    assert newest_fit().update(outside) == newest_fit().update(outside.clamp(0, 1))


def test_nan_is_refused_and_changes_nothing():
    threshold = newest_fit()
    threshold.update(mixture(0.5, (0.2, 0.05), (0.7, 0.1)))
    before = threshold.state_dict()
    with pytest.raises(NotFiniteError, match="1 of 3 confidences are NaN"):
        threshold.update(torch.tensor([0.1, float("nan"), 0.3]))
    assert threshold.value == before["value"]
    assert torch.equal(threshold.state_dict()["histograms"], before["histograms"])


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(0),
        torch.tensor([0.2, 0.8]),
        torch.zeros(1000),
        torch.ones(1000),
        torch.full((1000,), 0.7),
        torch.full((1000,), 0.04),
    ],
    ids=["empty", "too few", "zeros", "ones", "one value", "all dropped"],
)
@pytest.mark.parametrize("min_confidence", [0.0, 0.05])
def test_keeps_the_last_value_where_nothing_can_be_fitted(values, min_confidence):
    threshold = newest_fit(initial=0.42, min_confidence=min_confidence)
    assert threshold.update(values) == 0.42


def test_keeps_the_last_value_where_densities_do_not_cross_between_the_means():
    # A narrow peak on top of a wide one of the same mean.
    values = mixture(0.5, (0.5, 0.02), (0.5, 0.15), samples=200000)
    values = torch.cat([values, 1 - values])
    assert newest_fit(initial=0.3).update(values) == 0.3


def test_two_spikes_are_held_apart_by_the_variance_floor():
    values = torch.cat([torch.full((500,), 0.2), torch.full((500,), 0.8)])
    assert newest_fit().update(values) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_any_histogram_gives_a_value_in_range_or_none(seed):
    rng = np.random.default_rng(seed)
    histogram = np.zeros(501, dtype=np.int64)
    chosen = rng.integers(0, 501, rng.integers(1, 40))
    histogram[chosen] = 10.0 ** rng.integers(0, 7, chosen.size)
    fit = fit_threshold(histogram)
    assert fit is None or 0 < fit < 1


@pytest.mark.parametrize("batches", [0, 2, 5])
def test_resuming_is_exact(batches):
    threshold = DynamicThreshold(queue_length=3)
    stream = [mixture(0.5, (0.2, 0.05), (0.6, 0.1), seed=seed, samples=500) for seed in range(10)]
    for values in stream[:batches]:
        threshold.update(values)
    resumed = DynamicThreshold(queue_length=3, initial=0.9)
    resumed.update(stream[0])
    resumed.load_state_dict(threshold.state_dict())
    for values in stream[batches:]:
        assert resumed.update(values) == threshold.update(values)


def test_the_state_survives_a_checkpoint(tmp_path):
    threshold = DynamicThreshold()
    threshold.update(mixture(0.5, (0.2, 0.05), (0.6, 0.1)))
    torch.save(threshold.state_dict(), tmp_path / "state.pt")
    resumed = DynamicThreshold()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.value == threshold.value != 0.5


def test_a_shorter_queue_keeps_the_newest_batches():
    stream = [mixture(0.5, (0.2, 0.05), (0.6, 0.1), seed=seed, samples=500) for seed in range(4)]
    long, short = newest_fit(queue_length=4), newest_fit(queue_length=2)
    for values in stream:
        long.update(values)
        short.update(values)
    shortened = newest_fit(queue_length=2)
    shortened.load_state_dict(long.state_dict())
    expected = short.state_dict()["histograms"]
    assert torch.equal(shortened.state_dict()["histograms"], expected)
    assert shortened.update(stream[0]) == short.update(stream[0])


def test_a_state_of_other_bins_is_refused():
    state = {"value": 0.5, "histograms": torch.zeros(2, 100, dtype=torch.int32)}
    with pytest.raises(ValueError, match="501"):
        DynamicThreshold().load_state_dict(state)


@pytest.mark.parametrize(
    "option",
    [
        {"queue_length": 0},
        {"initial": 1.1},
        {"smoothing": 1.0},
        {"min_confidence": 1.0},
        {"variance_floor": 0.0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        DynamicThreshold(**option)


def test_an_update_is_far_faster_than_a_fit_on_the_samples():
    module = pytest.importorskip("sklearn.mixture")
    values = mixture(0.8, (0.15, 0.05), (0.7, 0.15), samples=100 * 4 * 784)
    batches = values.reshape(100, 4, 28, 28)
    threshold = DynamicThreshold(queue_length=100, min_confidence=0.0)
    for batch in batches:
        threshold.update(batch)

    def seconds(action):
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    update = min(seconds(lambda: threshold.update(batches[0])) for _ in range(20))
    model = module.GaussianMixture(2, random_state=0)
    fit = min(seconds(lambda: model.fit(values.numpy().reshape(-1, 1))) for _ in range(2))
    assert update < 0.02
    assert fit > 20 * update


@pytest.mark.cuda
def test_confidences_on_a_gpu_give_the_same_threshold():
    values = mixture(0.6, (0.2, 0.05), (0.7, 0.1)).float()
    assert newest_fit().update(values.to("cuda")) == newest_fit().update(values)
