import pytest

from mask2former.images.thresholds import DEFAULT_THRESHOLDS, PAPER_THRESHOLDS, Thresholds


def test_the_paper_counts_surer_segments_only():
    assert vars(DEFAULT_THRESHOLDS) | {"threshold": 0.8} == vars(PAPER_THRESHOLDS)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_share_is_named(value):
    with pytest.raises(ValueError, match="mask_threshold is .*; give a number from 0 to 1"):
        Thresholds(mask_threshold=value)
