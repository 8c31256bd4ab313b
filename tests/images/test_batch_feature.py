import numpy as np
import pytest
import torch

from mask2former.images.batch_feature import BatchFeature


def a_batch():
    return BatchFeature(
        pixel_values=torch.rand(2, 3, 4, 5),
        pixel_mask=torch.ones(2, 4, 5, dtype=torch.int64),
        mask_labels=[torch.rand(1, 4, 5) > 0.5, torch.rand(2, 4, 5) > 0.5],
    )


def test_entries_are_attributes_and_keyword_arguments():
    batch = a_batch()
    assert batch.pixel_values is batch["pixel_values"]
    assert set(dict(**batch)) == {"pixel_values", "pixel_mask", "mask_labels"}


def test_an_absent_entry_is_an_attribute_error_that_lists_the_entries():
    with pytest.raises(AttributeError, match=r"'labels'.*pixel_values"):
        _ = a_batch().labels


def test_to_a_dtype_casts_only_floating_point_tensors():
    batch = a_batch().to(torch.bfloat16)
    assert batch.pixel_values.dtype == torch.bfloat16
    assert batch.pixel_mask.dtype == torch.int64
    assert [masks.dtype for masks in batch.mask_labels] == [torch.bool, torch.bool]


def test_to_a_device_moves_tensors_in_lists_too():
    batch = a_batch().to("meta")
    assert batch.pixel_mask.device.type == "meta"
    assert {masks.device.type for masks in batch.mask_labels} == {"meta"}


def test_numpy_converts_tensors_in_lists_too():
    batch = a_batch().numpy()
    assert isinstance(batch.pixel_values, np.ndarray)
    assert all(isinstance(masks, np.ndarray) for masks in batch.mask_labels)
