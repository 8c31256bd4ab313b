import mmap

import pytest
import torch

from mask2former.training.callback import (
    StepAverages,
    by_prediction,
    headlines,
    memory_in_use,
    sum_by_part,
)


def test_averages_are_of_the_steps_since_they_were_last_taken():
    averages = StepAverages()
    assert averages.take() is None
    averages.add({"loss": 5.0, "loss_mask": 2.0, "loss_mask_0": 3.0}, 1e-3, 8, 2.0)
    averages.add({"loss": 9.0, "loss_mask": 4.0, "loss_mask_0": 5.0}, 1e-4, 8, 6.0)
    means = averages.take()
    assert 0.01 < means.pop("memory") < 1000
    assert means == {
        "loss": 7.0,
        "loss_mask": 3.0,
        "loss_mask_0": 4.0,
        "lr": 1e-4,
        "images_per_second": 2.0,
        "seconds": 4.0,
    }
    averages.add({"loss_mask": 1.0}, 1e-5, 8, 2.0)
    means = averages.take()
    assert (means["loss"], means["lr"], means["images_per_second"]) == (1.0, 1e-5, 4.0)
    assert averages.take() is None


def test_parts_are_sums_over_all_predictions():
    losses = {
        "loss": 99.0,
        "loss_mask": 1.0,
        "loss_mask_0": 2.0,
        "loss_mask_10": 4.0,
        "loss_dice_3": 8.0,
        "loss_cross_entropy": 16.0,
        "lr": 32.0,
    }
    assert sum_by_part(losses) == {"cross-entropy": 16.0, "mask": 7.0, "dice": 8.0}
    assert by_prediction(losses) == [
        ("cross-entropy", "last", 16.0),
        ("mask", "last", 1.0),
        ("mask", "0", 2.0),
        ("mask", "10", 4.0),
        ("dice", "3", 8.0),
    ]
    assert sum_by_part({"loss_mask": None, "loss_dice": 1.0}) == {"dice": 1.0}


def test_the_parts_of_a_models_losses_add_up_to_its_loss():
    from tests.reference import make_labels, tiny_model

    masks, classes = make_labels(0, [1, 2], (64, 64), 3)
    with torch.no_grad():
        output = tiny_model()(torch.zeros(2, 3, 64, 64), masks, classes)
    losses = {name: loss.item() for name, loss in output.loss_dict.items()}
    assert sum(sum_by_part(losses).values()) == pytest.approx(output.loss.item(), rel=1e-5)
    assert len(by_prediction(losses)) == len(losses)


def test_headlines_are_the_most_telling_metrics_or_all():
    assert headlines({"sq": 0.1, "miou": 0.2, "pq": 0.3, "rq": 0.4}) == ["pq", "miou"]
    assert headlines({"f1": 0.1, "accuracy": 0.2}) == ["f1", "accuracy"]


def test_memory_is_that_of_the_process_or_the_most_on_the_gpu(monkeypatch):
    before = memory_in_use()
    with mmap.mmap(-1, 2**26) as block:  # what malloc gives may have been the process's before
        block.write(b"1" * 2**20 * 64)
        grown = memory_in_use() - before
    assert 0.9 * 2**26 < grown < 2**28
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12345)
    assert memory_in_use() == 12345
