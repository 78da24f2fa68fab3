"""Statistics of a few seeds: intervals, gains over a baseline, corrections for many comparisons, paired tests of two networks."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import mean, variance

from bam_exp.config import remembered

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance of its ends."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Gain:
    """The gain of a row over its baseline, in the unit of the figure; a positive gain is an improvement."""

    value: float
    interval: Interval | None = None
    """Welch's 95 % interval; None unless both rows have at least two runs that are not all equal."""
    p: float | None = None
    """Two-sided p-value of Welch's t test."""
    p_holm: float | None = None
    """The same, corrected by Holm for all gains of the table."""


@dataclass(frozen=True)
class McNemar:
    """The images on which two networks disagree, and the exact p-value that both are right equally often."""

    only_first: int
    only_second: int
    p: float


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of a mean; None for a single value."""
    if len(values) < 2:
        return None

    def bounds() -> list[float]:
        from scipy import stats  # takes a second to import

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns where all values are equal
            found = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
        return [float(found.low), float(found.high)]

    return _finite(*remembered("mean", list(values), bounds))


def gain_over(baseline: Sequence[float], row: Sequence[float], *, lower_is_better: bool) -> Gain:
    """The gain of a row over its baseline with Welch's interval, which allows for unequal variances.

    The runs are not paired by seed: the same seed gives two different networks different initial weights.
    """
    worse, better = (baseline, row) if lower_is_better else (row, baseline)
    value = mean(worse) - mean(better)
    if len(baseline) < 2 or len(row) < 2:
        return Gain(value)

    def test() -> list[float]:
        from scipy import stats

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = stats.ttest_ind(worse, better, equal_var=False)
            bounds = found.confidence_interval(CONFIDENCE)
        return [float(bounds.low), float(bounds.high), float(found.pvalue)]

    low, high, p = remembered("gain", [list(worse), list(better)], test)
    interval = _finite(low, high)
    if interval is None or interval.half_width == 0:
        return Gain(value)
    return Gain(value, interval, p)


def _finite(low: float, high: float) -> Interval | None:
    return Interval(low, high) if isfinite(low) and isfinite(high) else None


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected by Holm (1979), in the order given."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def mcnemar(first: bytes, second: bytes, images: int) -> McNemar:
    """The exact test of McNemar from one bit for each image, packed as by numpy.packbits; 1 stands for a right answer."""

    def test() -> list[float]:
        import numpy as np
        from scipy import stats

        ours, theirs = (np.unpackbits(np.frombuffer(bits, np.uint8), count=images) for bits in (first, second))
        only_first, only_second = int((ours > theirs).sum()), int((theirs > ours).sum())
        count = only_first + only_second
        p = float(stats.binomtest(min(only_first, only_second), count).pvalue) if count else 1.0
        return [only_first, only_second, p]

    only_first, only_second, p = remembered("mcnemar", [first.hex(), second.hex(), images], test)
    return McNemar(only_first, only_second, p)


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Standard deviation within groups, pooled over them, and its degrees of freedom; None without a group of two values."""
    freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
    if not freedom:
        return None
    squares = sum(variance(group) * (len(group) - 1) for group in groups if len(group) > 1)
    return sqrt(squares / freedom), freedom


def seeds_needed(deviation: float, gain: float, *, comparisons: int = 1, power: float = 0.8) -> int | None:
    """Seeds in each of two rows that show a gain with this power, by the two-sided t test at 5 %, corrected for comparisons.

    Holm's correction is at its strictest Bonferroni's, which is what counts here. None if more than 1000 would be needed.
    """

    def needed() -> list[int | None]:
        import numpy as np
        from scipy import stats

        seeds = np.arange(2, 1001)
        freedom, shift = 2 * (seeds - 1), gain / deviation * np.sqrt(seeds / 2)
        critical = stats.t.isf((1 - CONFIDENCE) / 2 / comparisons, freedom)
        reached = np.flatnonzero(
            stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift) >= power
        )
        return [int(seeds[reached[0]]) if len(reached) else None]

    seeds: int | None = remembered("seeds", [deviation, gain, comparisons, power], needed)[0]
    return seeds
