import numpy as np
import pytest
from PIL import Image

from mask2former.training import tensorboard
from mask2former.training.tensorboard import TensorBoard

LOSSES = {"loss": 99.0, "loss_mask": 1.0, "loss_mask_0": 2.0, "loss_dice": 4.0}


@pytest.fixture
def events():
    """Reads what TensorBoard would show of a run."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(out) -> EventAccumulator:
        accumulator = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0})
        return accumulator.Reload()

    return read


def scalars(events, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


def test_every_part_has_a_curve_and_one_for_each_prediction(tmp_path, events):
    callback = TensorBoard(tmp_path, every=2)
    for step in range(1, 6):
        losses = {name: step * loss for name, loss in LOSSES.items()}
        callback.on_step(step, losses, 1e-4 / step, images=8, seconds=2.0)
    callback.on_evaluation(5, {"pq": 0.5})
    callback.close()
    found = events(tmp_path)
    assert set(found.Tags()["scalars"]) == {
        *("loss/total", "loss/mask", "loss/dice"),
        *("mask/0", "mask/last", "dice/last"),
        *("run/learning_rate", "run/images_per_second", "run/memory_GiB"),
        "metrics/pq",
    }
    steps = [(2, 1.5), (4, 3.5), (5, 5.0)]  # the last step is alone
    assert scalars(found, "loss/total") == [(step, 7 * mean) for step, mean in steps]
    assert scalars(found, "loss/mask") == [(step, 3 * mean) for step, mean in steps]
    assert scalars(found, "mask/0") == [(step, 2 * mean) for step, mean in steps]
    assert scalars(found, "run/images_per_second") == [(step, 4) for step, _ in steps]
    assert scalars(found, "run/learning_rate") == [(step, 1e-4 / step) for step, _ in steps]
    assert scalars(found, "metrics/pq") == [(5, 0.5)]
    assert all(0.01 < event.value < 1000 for event in found.Scalars("run/memory_GiB"))


def test_a_resumed_run_hides_what_came_after(tmp_path, events):
    for steps, factor in ((range(1, 9), 1), (range(6, 11), 10)):
        callback = TensorBoard(tmp_path, every=1)
        for step in steps:
            callback.on_step(step, {"loss_mask": float(factor * step)}, 1e-4, 8, 1.0)
        callback.close()
    expected = [(step, step) for step in range(1, 6)]
    expected += [(step, 10 * step) for step in range(6, 11)]
    assert scalars(events(tmp_path), "loss/mask") == expected


def test_samples_are_shown_as_they_are(tmp_path, events):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    callback = TensorBoard(tmp_path)
    callback.on_samples(10, {"a.jpg": Image.fromarray(pixels)})
    callback.on_samples(20, {"a.jpg": Image.fromarray(pixels[::-1])})
    callback.close()
    shown = events(tmp_path).Images("samples/a.jpg")
    assert [image.step for image in shown] == [10, 20]
    assert (decoded(shown[0].encoded_image_string) == pixels).all()
    assert (decoded(shown[1].encoded_image_string) == pixels[::-1]).all()


def decoded(png: bytes) -> np.ndarray:
    import io

    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)


def test_without_tensorboard_the_run_goes_on_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    said = []
    callback = TensorBoard(tmp_path, every=1, report=said.append)
    assert said == []  # processes other than the first are told nothing
    callback.on_step(1, LOSSES, 1e-4, 8, 1.0)
    callback.on_evaluation(1, {"pq": 0.5})
    callback.on_samples(1, {"a": Image.new("RGB", (4, 4))})
    callback.close()
    assert len(said) == 1 and "pip install mask2former[train]" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_callback_that_is_told_nothing_writes_nothing(tmp_path):
    TensorBoard(tmp_path).close()
    assert list(tmp_path.iterdir()) == []
