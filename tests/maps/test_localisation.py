"""How maps relate to masks, against SciPy's own rank test and by hand."""

import pytest
import torch
from scipy.stats import mannwhitneyu

from bam_exp.maps.localisation import Estimate, auc, inside_and_outside


@pytest.fixture
def masks() -> torch.Tensor:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, 2:5, 1:4] = masks[1, :, 6:] = masks[2, 7, 7] = True
    return masks


def test_auc_is_the_statistic_of_mann_and_whitney_with_ties(masks: torch.Tensor) -> None:
    maps = torch.randint(0, 5, (3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    expected = [
        mannwhitneyu(one[mask].numpy(), one[~mask].numpy()).statistic / (mask.sum() * (~mask).sum()).item()
        for one, mask in zip(maps, masks, strict=True)
    ]
    assert auc(maps, masks).tolist() == pytest.approx(expected)


def test_a_map_that_is_the_mask_its_opposite_and_one_that_says_nothing(masks: torch.Tensor) -> None:
    assert auc(masks.float(), masks).tolist() == [1, 1, 1]
    assert auc(-masks.float(), masks).tolist() == [0, 0, 0]
    assert auc(torch.full((3, 8, 8), 0.3), masks).tolist() == [0.5, 0.5, 0.5]
    inside, outside = inside_and_outside(masks.float(), masks)
    assert inside.tolist() == [1, 1, 1]
    assert outside.tolist() == [0, 0, 0]


def test_a_small_map_counts_as_blocks_of_pixels(masks: torch.Tensor) -> None:
    small = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    blocks = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(auc(small, masks), auc(blocks, masks))
    inside, outside = inside_and_outside(small, masks)
    assert inside.tolist() == pytest.approx([one[mask].mean().item() for one, mask in zip(blocks, masks, strict=True)])
    assert outside.tolist() == pytest.approx(
        [one[~mask].mean().item() for one, mask in zip(blocks, masks, strict=True)]
    )


def test_the_interval_contains_the_mean_of_the_population_19_times_in_20() -> None:
    values = torch.randn(2000, 100, generator=torch.Generator().manual_seed(0)).double()
    intervals = [Estimate.of(sample) for sample in values]
    assert sum(abs(one.mean) < one.half_width for one in intervals) / len(intervals) == pytest.approx(0.95, abs=0.015)
