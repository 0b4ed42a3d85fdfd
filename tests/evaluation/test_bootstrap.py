"""The bootstrap against naive implementations and known widths."""

import numpy as np
import pytest

from simple_multimodal.evaluation import bootstrap
from simple_multimodal.evaluation.bootstrap import bootstrap_interval, resampled_mean, resampled_median


def naive_bootstrap(values, statistic, groups, num_resamples, seed, level):
    """Compute the interval from resamples built as lists of values."""
    names = sorted(set(groups))
    draws = np.random.default_rng(seed).integers(len(names), size=(num_resamples, len(names)))
    statistics = [
        statistic([value for draw in row for value, group in zip(values, groups, strict=True) if group == names[draw]])
        for row in draws
    ]
    return np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])


def test_bootstrap_equals_a_naive_implementation(monkeypatch):
    monkeypatch.setattr(bootstrap, "SEED", 3)
    monkeypatch.setattr(bootstrap, "LEVEL", 0.9)
    values = np.array([1, 4, 2, 2, 9, 3, 7])
    groups = np.array(["a", "b", "a", "c", "c", "c", "d"])
    for vectorised, plain in ((resampled_mean, np.mean), (resampled_median, np.median)):
        interval = bootstrap_interval(values, vectorised, groups=groups, num_resamples=200)
        np.testing.assert_allclose(interval, naive_bootstrap(values, plain, groups.tolist(), 200, 3, 0.9), rtol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_resampled_statistics_equal_numpy_on_the_repeated_values(seed):
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 5, size=6)
    counts = generator.integers(0, 3, size=(4, 6))
    counts[:, 0] += 1
    repeated = [np.repeat(values, row) for row in counts]
    np.testing.assert_allclose(resampled_mean(values, counts), [row.mean() for row in repeated], rtol=1e-12)
    np.testing.assert_array_equal(resampled_median(values, counts), [np.median(row) for row in repeated])


def test_bootstrap_is_deterministic_and_independent_of_the_block_size(monkeypatch):
    values = np.random.default_rng(0).random(31)
    interval = bootstrap_interval(values, resampled_mean)
    assert bootstrap_interval(values, resampled_mean) == interval
    with monkeypatch.context() as context:
        context.setattr(bootstrap, "SEED", 6)
        assert bootstrap_interval(values, resampled_mean) != interval
    monkeypatch.setattr(bootstrap, "MAX_BOOTSTRAP_ELEMENTS", 31 * 7)
    np.testing.assert_allclose(bootstrap_interval(values, resampled_mean), interval, rtol=1e-12)


def test_equal_answers_have_the_exact_interval_of_the_binomial():
    groups = np.repeat(np.arange(6), 2)
    low, high = bootstrap_interval(np.ones(12, bool), resampled_mean, groups=groups)
    assert high == 1 and low**6 == pytest.approx(0.025)  # all of six trials are right with this probability
    assert bootstrap_interval(np.zeros(12, bool), resampled_mean, groups=groups) == pytest.approx((0, 1 - low))
    assert bootstrap_interval(np.zeros(12), resampled_mean) == (0, 0)  # numbers, such as errors, can be anything
    assert bootstrap_interval(np.ones(12, bool), resampled_median) == (1, 1)


def test_bootstrap_width_equals_that_of_the_binomial():
    values = np.arange(400) < 200
    low, high = bootstrap_interval(values, resampled_mean, num_resamples=4000)
    half_width = 1.96 * np.sqrt(0.25 / 400)
    assert abs(low - (0.5 - half_width)) < 0.005
    assert abs(high - (0.5 + half_width)) < 0.005


def test_bootstrap_by_group_is_wider_if_values_of_a_group_agree():
    values = np.repeat(np.arange(20) < 10, 20)
    low, high = bootstrap_interval(values, resampled_mean)
    group_low, group_high = bootstrap_interval(values, resampled_mean, groups=np.repeat(np.arange(20), 20))
    assert group_high - group_low > 3 * (high - low)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.array([]), {}, "at least one"),
        (np.ones(3), {"groups": np.ones(2)}, "one group per value"),
        (np.ones(3), {"num_resamples": 0}, "at least 1, got 0"),
    ],
)
def test_invalid_bootstrap_arguments_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, resampled_mean, **options)
