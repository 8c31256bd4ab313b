import copy

import torch

from mask2former import Mask2FormerForUniversalSegmentation
from mask2former.data.scene_dataset import SceneDataset
from mask2former.losses.annotations import Annotation
from mask2former.scenes.scene import HELD_OUT_SEEDS, render_scene
from mask2former.training import synthetic
from tests.reference import tiny_model


def test_training_never_sees_a_scene_that_is_held_out():
    batches = synthetic.scene_batches(4, 2, seed=0, workers=0)
    seeds = [int(name.split()[1]) for batch in batches for name in batch["names"]]
    assert len(set(seeds)) == 8
    assert not set(seeds) & set(HELD_OUT_SEEDS)


def test_pretraining_changes_the_backbone_alone():
    model = tiny_model(num_labels=7).train()
    before = copy.deepcopy(model.state_dict())
    batches = [_batch([0, 1]), _batch([2, 3])]
    synthetic.pretrain(model.model.backbone, batches, steps=2)
    after = model.state_dict()
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert changed
    assert all(name.startswith("model.backbone.") for name in changed)


def test_a_run_goes_on_where_it_ended_and_its_model_is_halved(tmp_path):
    recipe = synthetic.RECIPE.replace(
        max_steps=3, warmup_steps=1, global_batch_size=2, dataloader_num_workers=0, save_steps=1
    )
    torch.manual_seed(0)
    model = tiny_model(num_labels=7).train()
    outcome = synthetic.train_whole(model, recipe, tmp_path / "run", resume=True)
    assert outcome.finished
    again = synthetic.train_whole(model, recipe, tmp_path / "run", resume=True)
    assert again.step == 3
    synthetic.halve(outcome.model, tmp_path / "model")
    whole = Mask2FormerForUniversalSegmentation.from_pretrained(outcome.model).state_dict()
    halved = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "model").state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(halved[name], tensor.half().to(tensor.dtype), rtol=0, atol=0)
    assert (tmp_path / "model" / "preprocessor_config.json").is_file()


def test_class_maps_name_every_pixel_and_keep_classes_when_resized():
    scene = render_scene(5, 64, 64)
    truth = synthetic.class_maps(_batch([5])["annotations"])
    for segment in scene.segments_info:
        where = torch.from_numpy(scene.segmentation == segment["id"])
        assert (truth[0][where] == segment["label_id"]).all()
    coarse = synthetic.resized_classes(truth, torch.zeros(1, 5, 16, 16))
    assert torch.equal(coarse, truth[:, 2::4, 2::4])


def test_the_bundled_architecture_fits_six_megabytes_in_float16():
    model = Mask2FormerForUniversalSegmentation(synthetic.bundled_config())
    assert 2 * sum(p.numel() for p in model.parameters()) < 5.9e6


def _batch(seeds):
    dataset = SceneDataset(seeds, 64)
    samples = [dataset[index] for index in range(len(seeds))]
    return {
        "pixel_values": torch.stack([sample.image / 255 for sample in samples]),
        "annotations": [Annotation(sample.masks, sample.labels) for sample in samples],
    }
