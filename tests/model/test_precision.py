import torch

from mask2former.model.precision import full_precision
from tests.reference import tiny_model


def test_within_it_autocast_is_off_and_afterwards_as_before():
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(a.device):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    with full_precision(a.device):
        assert (a @ a).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_model_runs_on_a_device_without_autocast():
    output = tiny_model().to("meta")(torch.zeros(1, 3, 64, 96, device="meta"))
    assert output.masks_queries_logits.shape == (1, 6, 16, 24)
