import copy
import dataclasses
import functools
import multiprocessing
import shutil

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mask2former import (
    BUNDLED_MODEL,
    DataError,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)
from mask2former.data.rendering import render_dataset
from mask2former.data.scene_dataset import SceneDataset
from mask2former.evaluation.evaluate import evaluate
from mask2former.training import Callback, Recipe, RecipeError, history, setup, state, train
from mask2former.training.run import train_on_batches
from mask2former.training.setup import make_model, make_processor
from tests.reference import tiny_model
from tests.training.scenes import same_weights, scene_model

QUICK = Recipe(
    max_steps=2,
    global_batch_size=2,
    warmup_steps=0,
    learning_rate=1e-3,
    dataloader_num_workers=0,
    short_side=64,
)


class CrowdedScenes(SceneDataset):
    """Scenes of which the first segment is a crowd."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        crowd = torch.arange(len(sample.labels)) == 0
        return dataclasses.replace(sample, crowd=crowd)


def swin_model(**options):
    """A model with stochastic depth, and without batch statistics."""
    swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 3}
    return scene_model(backbone_config=SwinConfig(**swin, drop_path_rate=0.0), **options)


def train_scenes(out, recipe=QUICK, model=None, **options):
    model = model or swin_model()
    return train(model, CrowdedScenes(range(4), 64), out, recipe, **options)


class Diary(Callback):
    def __init__(self) -> None:
        self.rates, self.images, self.evaluated, self.processes = [], [], [], 0

    def on_step(self, step, losses, lr, images, seconds):
        self.rates.append(lr)
        self.images.append(images)
        self.processes = len(multiprocessing.active_children())

    def on_evaluation(self, step, metrics):
        self.evaluated.append(step)


# ---- every setting acts -------------------------------------------------------------------------

# What each setting is changed to, what must then change, and what other settings that needs.
CASES = {
    "learning_rate": (2e-3, "weights", {}),
    "weight_decay": (0.5, "weights", {}),
    "backbone_multiplier": (1.0, "weights", {}),
    "max_grad_norm": (0.1, "weights", {}),
    "global_batch_size": (4, "images", {}),
    "gradient_accumulation_steps": (2, "weights", {}),
    "max_steps": (1, "rates", {}),
    "schedule": ("poly", "rates", {}),
    "milestones": ((0.5,), "rates", {}),
    "warmup_steps": (2, "rates", {}),
    "ema": (0.9, "weights", {}),
    "precision": ("bf16", "weights", {"precision": "no"}),
    "gradient_checkpointing": (True, "checkpointing", {}),
    "freeze_backbone": (True, "weights", {}),
    "sync_batch_norm": (True, "synchronised", {"sync_batch_norm": False}),
    "drop_path": (0.9, "weights", {}),
    "dropout": (0.5, "weights", {}),
    "augmentation": ("crop", "weights", {"crop_size": 64}),
    "crop_size": (96, "weights", {"crop_size": 64, "augmentation": "lsj"}),
    "short_side": (96, "weights", {}),
    "flip": (1.0, "weights", {"flip": 0.0}),
    "void": ("ignore", "weights", {}),
    "seed": (1, "weights", {}),
    "dataloader_num_workers": (1, "processes", {}),
    "save_steps": (1, "checkpoints", {}),
    "save_total_limit": (1, "checkpoints", {"save_steps": 1}),
    "eval_steps": (1, "evaluated", {"eval_steps": 2}),
    "metric_for_best_model": ("miou", "best metric", {"eval_steps": 2}),
}


@pytest.fixture(scope="module")
def happened(tmp_path_factory):
    """What a run of some settings does, by name."""

    @functools.cache
    def happened(**settings):
        out, diary, said, seen = tmp_path_factory.mktemp("run"), Diary(), [], {}

        def noted(model, *args, **options):
            seen["model"] = model
            return train_on_batches(model, *args, **options)

        def synchronised(model):
            seen["synchronised"] = True
            return model

        AcceleratorState._reset_state(reset_partial_state=True)  # it remembers a precision
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(setup, "train_on_batches", noted)
            patched.setattr(state, "synchronised", synchronised)
            if "sync_batch_norm" in settings:  # which needs several processes
                patched.setattr(Accelerator, "num_processes", 2)
            patched.setattr(history, "find_spec", lambda package: None)  # curves take long
            outcome = train_scenes(
                out,
                QUICK.replace(**settings),
                validation=SceneDataset(range(4, 5), 64) if "eval_steps" in settings else None,
                callbacks=[diary],
                report=said.append,
            )
        AcceleratorState._reset_state(reset_partial_state=True)
        return {
            "weights": (outcome.model / "model.safetensors").read_bytes(),
            "rates": diary.rates,
            "images": diary.images,
            "evaluated": diary.evaluated,
            "processes": diary.processes,
            "checkpoints": sorted(path.name for path in (out / "checkpoints").iterdir()),
            "checkpointing": seen["model"].is_gradient_checkpointing,
            "synchronised": "synchronised" in seen,
            "best metric": said[-2].split()[-2],
        }

    return happened


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Recipe)])
def test_every_setting_changes_what_train_does(name, happened):
    value, what, others = CASES[name]
    before, after = happened(**others), happened(**(others | {name: value}))
    assert before[what] != after[what]


# ---- data and model -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model, and scenes as COCO panoptic files: four to train on, two to evaluate on."""
    folder = tmp_path_factory.mktemp("folders")
    render_dataset(folder / "data", "coco-panoptic", range(4), range(4, 6), size=64)
    tiny_model().save_pretrained(folder / "model")
    Mask2FormerImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder / "model")
    return folder / "model", folder / "data"


def test_names_of_folders_are_enough(folders, tmp_path):
    model, data = folders
    said = []
    outcome = train(model, data, tmp_path, QUICK, task="semantic", report=said.append)
    assert outcome.finished and list(outcome.best["metrics"]) == ["miou", "pixel_accuracy"]
    assert said[0].startswith("4 images (semantic), 7 classes (disc, box, ")
    assert said[0].endswith("; 2 to evaluate on.")
    assert said[2].startswith("Class head: kept: no object; new: disc, box, ")
    assert said[3].startswith(f"The model is in {tmp_path / 'model'}, the best one, of step 2 with")


def test_a_folder_of_validation_data_gives_its_val_split(folders, tmp_path):
    model, data = folders
    said = []
    scenes = SceneDataset(range(3), 64)
    train(model, scenes, tmp_path, QUICK, validation=str(data), report=said.append)
    assert said[0].startswith("3 images") and said[0].endswith("; 2 to evaluate on.")


def test_validation_data_of_several_splits_without_one_for_validation_is_refused(folders, tmp_path):
    model, data = folders
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*val*"):
        path.rename(path.with_name(path.name.replace("val", "test")))
    with pytest.raises(DataError, match=r"splits test, train, and none is called val; choose one"):
        train(
            model, SceneDataset(range(3), 64), tmp_path / "out", QUICK, validation=tmp_path / "data"
        )


def test_model_and_processor_that_are_given_stay_as_they_are(tmp_path):
    model = tiny_model()
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 96}, thing_label_ids=[6])
    before = copy.deepcopy(model), copy.deepcopy(processor)
    recipe = QUICK.replace(max_steps=1, dropout=0.5)
    outcome = train_scenes(tmp_path, recipe, model, processor=processor)
    assert same_weights(model, before[0]) and model.config == before[0].config
    assert processor == before[1]
    trained = Mask2FormerForUniversalSegmentation.from_pretrained(outcome.model)
    assert not same_weights(trained, model)
    assert (trained.config.dropout, trained.config.id2label[0]) == (0.5, "disc")
    saved = Mask2FormerImageProcessor.from_pretrained(outcome.model)
    assert (trained.config.task, trained.config.thing_label_ids) == ("panoptic", [0, 1, 2, 3])
    assert (saved.size, saved.thing_label_ids) == ({"shortest_edge": 64}, [0, 1, 2, 3])


def test_what_is_frozen_in_a_model_stays_frozen():
    given = scene_model()
    given.model.pixel_decoder.requires_grad_(False)
    model, _ = make_model(given.half(), SceneDataset(range(1)), Recipe())
    trained, expected = (
        {name for name, parameter in one.named_parameters() if parameter.requires_grad}
        for one in (model, given)
    )
    assert trained == expected
    assert trained and not any("pixel_decoder" in name for name in trained)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_task_that_the_annotations_are_not_for_is_refused(tmp_path):
    scenes = SceneDataset(range(1), task="semantic")
    with pytest.raises(RecipeError, match="A data set of semantic annotations does not suit pan"):
        train(scene_model(), scenes, tmp_path, task="panoptic")


@pytest.mark.parametrize(("images_per_worker", "workers"), [(2, 1), (setup.IMAGES_PER_WORKER, 0)])
def test_many_validation_images_are_read_by_workers(
    images_per_worker, workers, folders, tmp_path, monkeypatch
):
    asked = []

    def noted(*args, workers, **options):
        asked.append(workers)
        return evaluate(*args, **options)

    monkeypatch.setattr(setup, "IMAGES_PER_WORKER", images_per_worker)
    monkeypatch.setattr(setup, "evaluate", noted)
    train(*folders, tmp_path, QUICK.replace(max_steps=1, dataloader_num_workers=1))
    assert asked == [workers]


def test_the_class_head_is_kept_for_the_same_classes():
    model, kept = make_model(BUNDLED_MODEL, SceneDataset(range(1)), Recipe())
    bundled = Mask2FormerForUniversalSegmentation.from_pretrained(BUNDLED_MODEL)
    assert same_weights(model, bundled)
    assert kept == []


@pytest.mark.parametrize("names", ["abc", "abcdefg"])
def test_the_class_head_alone_is_re_initialised_for_other_classes(names):
    dataset = SceneDataset(range(1))
    dataset.id2label = dict(enumerate(names))
    model, kept = make_model(BUNDLED_MODEL, dataset, Recipe())
    bundled = Mask2FormerForUniversalSegmentation.from_pretrained(BUNDLED_MODEL)
    assert model.config.id2label == dataset.id2label
    assert model.class_predictor.out_features == len(names) + 1
    for name, tensor in bundled.state_dict().items():
        if not name.startswith("class_predictor."):
            assert torch.equal(model.state_dict()[name], tensor)
    assert kept == [f"Class head: kept: no object; new: {', '.join(names)}."]


def test_the_processor_gets_the_data_set_s_things():
    dataset = SceneDataset(range(1))
    dataset.thing_label_ids = [5, 1]
    assert make_processor(BUNDLED_MODEL, None, dataset, Recipe()).thing_label_ids == [1, 5]


def test_rates_of_dropout_and_stochastic_depth_reach_the_model(tmp_path):
    given = tiny_model("swin")
    given.save_pretrained(tmp_path)
    for source in (given, tmp_path):
        recipe = Recipe(drop_path=0.3, dropout=0.2)
        model, _ = make_model(source, SceneDataset(range(1)), recipe)
        assert model.model.backbone.stages[3][0].drop_path.rate == pytest.approx(0.3)
        assert model.config.dropout == 0.2
    assert given.config.dropout == 0
    with pytest.raises(RecipeError, match="drop_path is given, but the model's backbone .resnet. "):
        make_model(BUNDLED_MODEL, SceneDataset(range(1)), Recipe(drop_path=0.3))
