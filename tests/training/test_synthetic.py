import copy

import numpy as np
import pytest
import torch
from torch import nn

from mask2former import Mask2FormerForUniversalSegmentation
from mask2former.evaluation.synthetic import HELD_OUT_SEEDS
from mask2former.synthetic import render_scene
from mask2former.training import synthetic
from tests.reference import tiny_model


def test_targets_are_one_mask_per_segment():
    scene = render_scene(3, 64, 64)
    masks, labels = synthetic.scene_targets(scene)
    assert masks.dtype == torch.bool
    assert torch.equal(masks.sum(0), torch.ones(64, 64, dtype=torch.long))
    assert labels.tolist() == [segment["label_id"] for segment in scene.segments_info]
    for mask, segment in zip(masks, scene.segments_info, strict=True):
        assert np.array_equal(mask.numpy(), scene.segmentation == segment["id"])


def test_batches_go_through_all_scenes_and_mirror_picture_and_masks_together():
    scenes = [render_scene(seed, 64, 64) for seed in range(4)]
    processor = synthetic.bundled_processor()
    source = synthetic.batches(scenes, 2, processor, seed=0)
    mirrored = []
    seen = []
    for batch in (next(source), next(source)):
        assert batch["pixel_values"].shape == (2, 3, 64, 64)
        for masks, labels in zip(batch["mask_labels"], batch["class_labels"], strict=True):
            matches = {}
            for index, scene in enumerate(scenes):
                truth, classes = synthetic.scene_targets(scene)
                for flip in (False, True):
                    expected = truth.flip(-1) if flip else truth
                    if torch.equal(classes, labels) and torch.equal(expected, masks):
                        matches[index] = flip
            ((index, flip),) = matches.items()
            seen.append(index)
            mirrored.append(flip)
    assert sorted(seen) == [0, 1, 2, 3]
    assert len(set(mirrored)) == 2


def test_training_scenes_are_never_held_out():
    with pytest.raises(ValueError, match="seeds from 1000000 are held out"):
        synthetic.render_scenes(HELD_OUT_SEEDS.start + 1, workers=1)


def test_pretraining_and_training_save_a_folder_that_loads(tmp_path):
    scenes = [render_scene(seed, 64, 64) for seed in range(2)]
    model = tiny_model(num_labels=7).train()
    before = copy.deepcopy(model.state_dict())
    synthetic.pretrain(model.model.backbone, scenes, steps=2, batch_size=2, seed=0)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed
    assert all(name.startswith("model.backbone.") for name in changed)
    synthetic.train(model, scenes, tmp_path, steps=3, batch_size=2, rate=1e-3, seed=0)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    assert model.config.num_labels == 7
    assert (tmp_path / "preprocessor_config.json").is_file()


def test_class_maps_name_every_pixel_and_keep_classes_when_resized():
    scene = render_scene(5, 64, 64)
    masks, labels = synthetic.scene_targets(scene)
    truth = synthetic.class_maps([masks], [labels])
    for segment in scene.segments_info:
        where = torch.from_numpy(scene.segmentation == segment["id"])
        assert (truth[0][where] == segment["label_id"]).all()
    coarse = synthetic.resized_classes(truth, torch.zeros(1, 5, 16, 16))
    assert torch.equal(coarse, truth[:, 2::4, 2::4])


def test_a_loss_that_is_not_finite_stops_training():
    parameter = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(parameter.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    before = parameter.weight.clone()
    with pytest.raises(RuntimeError, match="The loss is nan"):
        synthetic.step_optimizer(
            parameter.weight.sum() * float("nan"), parameter, optimizer, schedule
        )
    assert torch.equal(parameter.weight, before)


def test_the_bundled_architecture_fits_six_megabytes_in_float16():
    model = Mask2FormerForUniversalSegmentation(synthetic.bundled_config())
    assert 2 * sum(p.numel() for p in model.parameters()) < 5.9e6
