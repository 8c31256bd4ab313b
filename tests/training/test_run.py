import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from mask2former import (
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)
from mask2former.io.errors import DataError
from mask2former.training.callback import Callback
from mask2former.training.checkpoint import has_checkpoint, load_newest
from mask2former.training.recipe import Recipe, RecipeError, read_recipe
from mask2former.training.run import Evaluation
from tests.reference import same_points
from tests.training.full_disk import no_file_over
from tests.training.scenes import RECIPE, batches, same_weights, scene_model, train_scenes

TWO_PASSES = {"global_batch_size": 4, "gradient_accumulation_steps": 2}


class Stop(Exception):
    """Ends a run from within."""


def broken_at(number: int, error: Exception, loader):
    """The batches, until one that cannot be read."""

    def broken(first_step, **rest):
        for step, batch in enumerate(loader(first_step, **rest), first_step):
            if step == number:
                raise error
            yield batch

    return broken


class Diary(Callback):
    """Remembers what it is told; may do something after a step."""

    def __init__(self, then=lambda step: None) -> None:
        self.steps, self.losses, self.rates, self.metrics, self.closed = [], [], [], {}, 0
        self.images, self.pictures, self.then = [], {}, then

    def on_step(self, step, losses, lr, images, seconds):
        assert seconds > 0
        self.steps.append(step)
        self.losses.append(losses)
        self.rates.append(lr)
        self.images.append(images)
        self.then(step)

    def on_evaluation(self, step, metrics):
        self.metrics[step] = metrics

    def on_samples(self, step, pictures):
        self.pictures[step] = pictures

    def close(self):
        self.closed += 1


def constant_figure(model) -> Evaluation:
    return Evaluation({"pq": 0.5})


def saved_steps(out) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def saved_model(out):
    return Mask2FormerForUniversalSegmentation.from_pretrained(out / "model")


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        (0, {}),
        (5, {"ema": 0.9, "schedule": "one-cycle", "warmup_steps": 2}),
        (3, {**TWO_PASSES, "schedule": "poly", "max_steps": 4}),
    ],
)
def test_a_resumed_run_ends_with_the_same_weights(at, changes, tmp_path):
    recipe = RECIPE.replace(**changes)
    whole, resumed = scene_model(dropout=0.1), scene_model(dropout=0.1)
    train_scenes(tmp_path / "whole", recipe, model=whole)
    at *= recipe.gradient_accumulation_steps
    loader = broken_at(at, Stop(), batches(recipe.images_per_pass))
    with pytest.raises(Stop):
        train_scenes(tmp_path / "broken", recipe, loader=loader, model=scene_model(dropout=0.1))
    outcome = train_scenes(tmp_path / "broken", recipe, model=resumed, resume=True)
    assert outcome.step == recipe.max_steps and outcome.finished
    assert same_weights(whole, resumed)
    assert not same_weights(whole, scene_model(dropout=0.1))
    assert same_weights(saved_model(tmp_path / "whole"), saved_model(tmp_path / "broken"))


def test_the_loss_of_a_few_scenes_falls(tmp_path):
    diary = Diary()
    recipe = RECIPE.replace(max_steps=40, save_steps=100, max_grad_norm=1.0, learning_rate=3e-3)
    train_scenes(tmp_path, recipe, callbacks=[diary])
    losses = [losses["loss"] for losses in diary.losses]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])  # measured: 0.6


def test_a_run_leaves_model_processor_and_settings(tmp_path):
    model = scene_model()
    diary = Diary()
    outcome = train_scenes(tmp_path, model=model, callbacks=[diary])
    assert (outcome.step, outcome.finished, outcome.best) == (6, True, None)
    assert outcome.model == tmp_path / "model"
    assert same_weights(saved_model(tmp_path), model)
    processor = Mask2FormerImageProcessor.from_pretrained(tmp_path / "model")
    assert processor.size == {"height": 32, "width": 32}
    assert Recipe(**read_recipe(tmp_path / "recipe.yaml")) == RECIPE.replace(precision="no")
    assert saved_steps(tmp_path) == ["step-000004", "step-000006"]
    assert diary.steps == [1, 2, 3, 4, 5, 6] and diary.closed == 1
    assert diary.rates == pytest.approx([1e-3] * 6)  # the first milestone is later
    assert diary.images == [2] * 6
    first = diary.losses[0]
    parts = sum(value for name, value in first.items() if name != "loss")
    assert first["loss"] == pytest.approx(parts, rel=1e-5)


def test_the_saved_model_has_the_averaged_weights(tmp_path):
    model = scene_model()
    recipe = RECIPE.replace(ema=0.5, max_steps=2)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps = []

    def average(step: int) -> None:
        decay = min(0.5, step / (9 + step))
        steps.append(step)
        for name, tensor in model.state_dict().items():
            old = expected[name]
            expected[name] = (
                decay * old + (1 - decay) * tensor if old.is_floating_point() else tensor
            )

    train_scenes(tmp_path, recipe, model=model, callbacks=[Diary(average)])
    assert steps == [1, 2]
    saved = saved_model(tmp_path).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-5, atol=1e-6)
    checkpoint = load_newest(tmp_path / "checkpoints", pytest.fail)
    assert all(torch.equal(checkpoint.weights[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(checkpoint.average[k], v) for k, v in saved.items())


def test_the_same_images_twice_in_a_step_are_as_good_as_once(tmp_path):
    def repeated(**where):
        for batch in batches()(**where):
            yield from (dict(batch), dict(batch))

    def swin():  # which has no statistics of a batch
        config = SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=3,
            drop_path_rate=0.0,
        )
        return scene_model(backbone_config=config)

    once, twice = swin(), swin()
    diary = Diary()
    recipe = RECIPE.replace(max_steps=2, global_batch_size=4, gradient_accumulation_steps=2)
    with same_points():
        train_scenes(tmp_path / "once", RECIPE.replace(max_steps=2), model=once)
        train_scenes(tmp_path / "twice", recipe, loader=repeated, model=twice, callbacks=[diary])
    assert diary.steps == [1, 2] and diary.images == [4, 4]
    assert same_weights(once, twice)  # halves add up without rounding


def test_the_best_model_is_kept(tmp_path):
    figures = {2: 0.3, 4: 0.5, 6: float("nan")}
    seen = {}

    def evaluate(model):
        step = 2 * (len(seen) + 1)
        assert not model.training
        seen[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return Evaluation({"other": 1.0, "pq": figures[step]}, {})

    diary = Diary()
    recipe = RECIPE.replace(metric_for_best_model="pq", ema=0.9)
    outcome = train_scenes(tmp_path, recipe, evaluate=evaluate, callbacks=[diary])
    assert outcome.best == {"step": 4, "metrics": {"other": 1.0, "pq": 0.5}}
    assert list(diary.metrics) == list(diary.pictures) == [2, 4, 6]
    best = saved_model(tmp_path).state_dict()
    assert all(torch.equal(best[name], tensor) for name, tensor in seen[4].items())
    assert not all(torch.equal(best[name], tensor) for name, tensor in seen[6].items())


def test_an_evaluation_that_fails_loses_no_step_and_is_made_up_for(tmp_path):
    def lost(model):
        raise DataError("val/7.png is lost.")

    seen = []

    def evaluate(model):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return Evaluation({"pq": 1.0 / len(seen)})

    with pytest.raises(DataError, match="val/7.png is lost"):
        train_scenes(tmp_path, evaluate=lost)
    assert saved_steps(tmp_path) == ["step-000002"]
    weights = load_newest(tmp_path / "checkpoints", pytest.fail).weights
    diary = Diary()
    outcome = train_scenes(tmp_path, evaluate=evaluate, callbacks=[diary], resume=True)
    assert list(diary.metrics) == [2, 4, 6]
    assert all(torch.equal(weights[name], tensor) for name, tensor in seen[0].items())
    assert outcome.best["step"] == 2


@pytest.mark.parametrize("at", [4, 6])
def test_a_run_that_is_stopped_saves_at_once_and_evaluates_when_it_is_resumed(at, tmp_path):
    def kill(step: int) -> None:
        if step == at - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped, resumed = Diary(kill), Diary()
    options = {"recipe": RECIPE.replace(save_steps=9), "evaluate": constant_figure}
    outcome = train_scenes(tmp_path, callbacks=[stopped], **options)
    assert (outcome.step, outcome.finished) == (at, False)
    assert saved_steps(tmp_path) == [f"step-{at:06d}"]
    assert list(stopped.metrics) == list(range(2, at, 2))
    assert train_scenes(tmp_path, callbacks=[resumed], resume=True, **options).finished
    assert list(resumed.metrics) == list(range(at, 7, 2))


def test_the_best_model_is_known_to_a_run_that_goes_on_from_before_it(tmp_path):
    def break_at_six(step: int) -> None:
        if step == 5:
            raise Stop

    recipe = RECIPE.replace(save_steps=3, eval_steps=4)
    with pytest.raises(Stop):
        train_scenes(tmp_path, recipe, evaluate=constant_figure, callbacks=[Diary(break_at_six)])
    assert saved_steps(tmp_path) == ["step-000003"]
    best = saved_model(tmp_path)
    outcome = train_scenes(tmp_path, recipe, evaluate=constant_figure, resume=True)
    assert outcome.best == {"step": 4, "metrics": {"pq": 0.5}}
    assert same_weights(saved_model(tmp_path), best)


def test_a_metric_that_there_is_not_can_be_corrected(tmp_path):
    with pytest.raises(RecipeError, match="metric_for_best_model is 'ap'; there are pq"):
        train_scenes(tmp_path, RECIPE.replace(metric_for_best_model="ap"), evaluate=constant_figure)
    with pytest.raises(RecipeError, match="metric_for_best_model is 'pg'; there are pq"):
        train_scenes(
            tmp_path,
            RECIPE.replace(metric_for_best_model="pg"),
            evaluate=constant_figure,
            resume=True,
        )
    recipe = RECIPE.replace(metric_for_best_model="pq")
    assert train_scenes(tmp_path, recipe, evaluate=constant_figure, resume=True).finished


def test_evaluation_changes_no_weight(tmp_path):
    def evaluate(model):
        torch.rand(3)
        for parameter in model.parameters():
            parameter.data.zero_()
        return Evaluation({"pq": 0.0})

    one, other = scene_model(), scene_model()
    train_scenes(tmp_path / "without", RECIPE.replace(max_steps=4), model=one)
    train_scenes(tmp_path / "with", RECIPE.replace(max_steps=4), model=other, evaluate=evaluate)
    assert same_weights(one, other)


def test_an_unknown_best_metric_is_refused(tmp_path):
    recipe = RECIPE.replace(metric_for_best_model="ap")
    with pytest.raises(RecipeError, match="metric_for_best_model is 'ap'; there are pq, miou"):
        train_scenes(tmp_path, recipe, evaluate=lambda model: Evaluation({"pq": 1.0, "miou": 1.0}))


# ---- surviving ----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_images(tmp_path):
    def poisoned(**where):
        for number, batch in enumerate(batches()(**where), where["first_step"]):
            if number == 3:
                batch["pixel_values"][0, 0, 0, 0] = torch.nan
            yield batch

    diary = Diary()
    with pytest.raises(FloatingPointError) as error:
        train_scenes(tmp_path, loader=poisoned, callbacks=[diary])
    assert "loss is not finite in step 4, whose images are scene 2, scene 3;" in str(error.value)
    assert "\n" not in str(error.value)
    assert diary.closed == 1
    assert load_newest(tmp_path / "checkpoints", pytest.fail).step == 2
    assert all(torch.isfinite(p).all() for p in saved_model(tmp_path).parameters())
    assert train_scenes(tmp_path, resume=True).finished


def test_a_gradient_that_is_not_finite_ends_the_run_too(tmp_path):
    model = scene_model()
    calls = []

    def poison(gradient):
        calls.append(1)
        return gradient * torch.nan if len(calls) == 3 else gradient

    model.class_predictor.bias.register_hook(poison)
    with pytest.raises(FloatingPointError, match="gradient is not finite in step 3, whose images"):
        train_scenes(tmp_path, model=model)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_batches_are_closed_when_a_run_fails(tmp_path):
    """Otherwise worker processes live as long as somebody holds the error."""
    closed = []

    def loader(**where):
        try:
            yield from batches()(**where)
        finally:
            closed.append(True)

    def fail(step: int) -> None:
        raise Stop

    with pytest.raises(Stop) as error:
        train_scenes(tmp_path, loader=loader, callbacks=[Diary(fail)])
    assert closed and error.tb


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run(number, tmp_path):
    def kill(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    model, whole = scene_model(), scene_model()
    outcome = train_scenes(tmp_path / "one", callbacks=[Diary(kill)])
    assert not outcome.finished
    assert outcome.step == 4  # the one that was under way
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert train_scenes(tmp_path / "one", model=model, resume=True).finished
    train_scenes(tmp_path / "other", model=whole)
    assert same_weights(model, whole)


def test_a_second_interrupt_ends_the_run_at_once(tmp_path):
    def interrupt_twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_scenes(tmp_path, callbacks=[Diary(interrupt_twice)])


@pytest.mark.parametrize("moment", ["evaluating", "checkpoint", "best model"])
def test_an_interrupt_while_it_evaluates_or_saves_leaves_the_run_whole(
    moment, tmp_path, monkeypatch
):
    def interrupt(*_) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    def evaluate(model):
        if moment == "evaluating":
            interrupt()
        return Evaluation({"pq": float(model.class_predictor.weight.detach().sum())})

    run, folder = tmp_path / "run", {"checkpoint": "checkpoints", "best model": "model"}
    replace = os.replace

    def replaced(source, target) -> None:
        if folder.get(moment) == Path(target).parent.name and has_checkpoint(run / "checkpoints"):
            interrupt()
        replace(source, target)

    whole, resumed = scene_model(), scene_model()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replaced)
        with pytest.raises(KeyboardInterrupt):
            train_scenes(run, evaluate=evaluate)
    assert list((run / "checkpoints").glob(".*")) == list((run / "model").glob(".*")) == []
    assert saved_steps(run) == ["step-000002"]
    saved_model(run)
    moment = "later"
    assert train_scenes(run, model=resumed, evaluate=evaluate, resume=True).finished
    outcome = train_scenes(tmp_path / "whole", model=whole, evaluate=evaluate)
    assert same_weights(whole, resumed)
    assert same_weights(saved_model(run), saved_model(tmp_path / "whole"))
    assert outcome.best["step"] in (2, 4, 6)


def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(tmp_path):
    def fill(step: int) -> None:
        if step == 3:
            disk.enter_context(no_file_over(20_000))

    with ExitStack() as disk, pytest.raises(DataError) as error:
        train_scenes(tmp_path, callbacks=[Diary(fill)])
    sentence = str(error.value)
    assert f"Step 4 cannot be saved in {tmp_path} (" in sentence and "too large" in sentence
    assert "The last checkpoint is intact." in sentence and "\n" not in sentence
    assert saved_steps(tmp_path) == ["step-000002"]
    saved_model(tmp_path)
    assert train_scenes(tmp_path, resume=True).finished


def test_a_data_file_that_vanishes_ends_the_run_with_its_sentence(tmp_path):
    error = DataError("image 7.png cannot be read (No such file); restore it.")
    with pytest.raises(DataError, match="image 7.png cannot be read"):
        train_scenes(tmp_path, loader=broken_at(3, error, batches()))
    assert saved_steps(tmp_path) == ["step-000002"]
    assert train_scenes(tmp_path, resume=True).finished


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path):
    whole, resumed = scene_model(), scene_model()
    train_scenes(tmp_path, model=whole)
    damaged = tmp_path / "checkpoints/step-000006"
    (damaged / "optimizer.pt").write_bytes(b"")
    said = []
    train_scenes(tmp_path, model=resumed, resume=True, report=said.append)
    assert len(said) == 1 and str(damaged) in said[0] and "continues from step-000004" in said[0]
    assert same_weights(whole, resumed)


def test_images_that_were_passed_over_are_reported(tmp_path):
    def skipping(**where):
        for batch in batches()(**where):
            yield {**batch, "skipped": ["image 7 is damaged."]}

    said = []
    train_scenes(tmp_path, RECIPE.replace(max_steps=1), loader=skipping, report=said.append)
    assert said == ["image 7 is damaged."]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path):
    command = [sys.executable, "-m", "tests.training.killed_run", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = done.stdout.split()
    assert set(ends[:-1]) == {str(-signal.SIGKILL)} and ends[-1] == "0", done.stderr
    assert len(ends) > 4
    assert same_weights(saved_model(tmp_path / "whole"), saved_model(tmp_path / "killed"))
    one, other = (
        load_newest(tmp_path / name / "checkpoints", pytest.fail) for name in ("whole", "killed")
    )
    assert one.step == other.step == 16
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert list((tmp_path / "killed").rglob(".*")) == []


# ---- refusals -----------------------------------------------------------------------------------


def test_a_run_is_not_overwritten(tmp_path):
    train_scenes(tmp_path, RECIPE.replace(max_steps=2))
    with pytest.raises(DataError, match="has a run already; resume it"):
        train_scenes(tmp_path, RECIPE.replace(max_steps=2))


def test_a_run_is_not_resumed_with_settings_that_change_its_weights(tmp_path):
    train_scenes(tmp_path, RECIPE.replace(max_steps=2))
    with pytest.raises(RecipeError, match="was begun with learning_rate 0.001, not 0.1;"):
        train_scenes(tmp_path, RECIPE.replace(max_steps=2, learning_rate=0.1), resume=True)
    assert train_scenes(
        tmp_path,
        RECIPE.replace(max_steps=2, save_total_limit=1, dataloader_num_workers=0),
        resume=True,
    ).finished


def test_a_run_is_not_resumed_with_another_model(tmp_path):
    train_scenes(tmp_path, RECIPE.replace(max_steps=2))
    with pytest.raises(DataError, match="are of another model; resume the run with the model"):
        train_scenes(
            tmp_path, RECIPE.replace(max_steps=2), model=scene_model(num_queries=7), resume=True
        )


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/run cannot be made or written to"):
        train_scenes(tmp_path / "file/run")
