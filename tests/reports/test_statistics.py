"""Intervals, gains and corrections against formulas of textbooks, published examples and simulation."""

from math import sqrt
from statistics import mean, stdev, variance

import numpy as np
import pytest
from scipy import stats

from bam_exp.reports.statistics import gain_over, holm, mcnemar, mean_interval, pooled_deviation, seeds_needed

BASELINE = [50.22, 51.71, 50.67]
RELEASED = [49.66, 48.87, 48.85]
"""Errors of two rows of the committed table `cpu`."""


@pytest.mark.parametrize(("seeds", "deviations"), [(2, 8.98), (3, 2.48), (5, 1.24)])
def test_the_interval_of_a_mean_is_students(seeds: int, deviations: float) -> None:
    """The half-widths in standard deviations are those of any table of Student's t."""
    values = [20.0, 20.6, 19.7, 20.1, 21.0][:seeds]
    interval = mean_interval(values)
    assert interval is not None
    assert interval.half_width / stdev(values) == pytest.approx(deviations, abs=0.01)
    assert (interval.low + interval.high) / 2 == pytest.approx(mean(values))


def test_one_run_has_no_interval_and_its_gain_no_p_value() -> None:
    assert mean_interval([20.0]) is None
    gain = gain_over([21.0, 21.5], [20.0], lower_is_better=True)
    assert (gain.value, gain.interval, gain.p) == (1.25, None, None)


def test_equal_runs_have_no_interval_of_their_gain() -> None:
    gain = gain_over([21.0, 21.0], [20.0, 20.0], lower_is_better=True)
    assert (gain.value, gain.interval, gain.p) == (1.0, None, None)


def test_the_interval_of_a_gain_is_welchs() -> None:
    """By the formula of Welch and Satterthwaite."""
    gain = gain_over(BASELINE, RELEASED, lower_is_better=True)
    parts = [variance(values) / 3 for values in (BASELINE, RELEASED)]
    freedom = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    half_width = stats.t.ppf(0.975, freedom) * sqrt(sum(parts))
    assert gain.value == pytest.approx(1.74)
    assert gain.interval is not None
    assert (gain.interval.low, gain.interval.high) == pytest.approx((1.74 - half_width, 1.74 + half_width))
    assert gain.p == pytest.approx(2 * stats.t.sf(1.74 / sqrt(sum(parts)), freedom))


def test_a_gain_is_positive_where_the_row_is_better_whichever_way_that_is() -> None:
    assert gain_over([21.0], [20.0], lower_is_better=True).value == 1.0
    assert gain_over([30.0], [32.0], lower_is_better=False).value == 2.0


def test_holm_equals_a_published_example() -> None:
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), method = "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_mcnemar_is_the_sign_test_on_the_images_that_differ() -> None:
    first, second = np.ones(2003, np.uint8), np.ones(2003, np.uint8)
    first[:15], second[15:20] = 0, 0  # 15 images that only the second gets right, 5 that only the first does
    test = mcnemar(np.packbits(first).tobytes(), np.packbits(second).tobytes(), 2003)
    assert (test.only_first, test.only_second) == (5, 15)
    assert test.p == pytest.approx(2 * stats.binom.cdf(5, 20, 0.5))
    assert mcnemar(b"\xff", b"\xff", 8).p == 1.0


def test_deviations_are_pooled_by_their_degrees_of_freedom() -> None:
    assert pooled_deviation([[1.0, 3.0], [5.0, 5.0, 8.0], [7.0]]) == pytest.approx((sqrt((2 + 6) / 3), 3))
    assert pooled_deviation([[1.0], []]) is None


def test_as_many_seeds_as_needed_give_the_power_and_one_fewer_does_not() -> None:
    """Against a simulation of the t test."""
    generator = np.random.default_rng(0)

    def power(seeds: int) -> float:
        errors = generator.normal(0, 0.67, (2, 20_000, seeds))
        return float(np.mean(stats.ttest_ind(errors[0] + 1, errors[1], axis=1).pvalue < 0.05))

    needed = seeds_needed(0.67, 1.0)
    assert needed == 9
    assert power(9) > 0.8 > power(8)
    assert seeds_needed(0.67, 1.0, comparisons=8) == 14
    assert seeds_needed(100.0, 0.1) is None
