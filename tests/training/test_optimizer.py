import pytest

from cosa.training.optimizer import learning_rate_factor


def test_warm_up_is_linear_and_never_zero():
    factors = [learning_rate_factor(i, 100, 4, 0.9) for i in range(4)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_decay_follows_the_polynomial_of_the_whole_run():
    assert learning_rate_factor(50, 100, 10, 0.9) == pytest.approx(0.5**0.9)
    assert learning_rate_factor(99, 100, 10, 1.0) == pytest.approx(0.01)


def test_without_warm_up_it_starts_at_the_peak():
    assert learning_rate_factor(0, 100, 0, 0.9) == 1.0


def test_power_zero_keeps_the_rate():
    assert learning_rate_factor(99, 100, 0, 0.0) == 1.0


def test_a_warm_up_longer_than_the_run_only_rises():
    factors = [learning_rate_factor(i, 5, 10, 0.9) for i in range(5)]
    assert factors == sorted(factors) and 0 < factors[0] and factors[-1] < 1
