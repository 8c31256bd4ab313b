import torch

from tests.training.scenes import RECIPE, same_weights, scene_model, train_scenes


def test_a_frozen_backbone_stays_bit_identical(tmp_path):
    model = scene_model()
    train_scenes(tmp_path, RECIPE.replace(freeze_backbone=True, max_steps=2), model=model)
    before = scene_model().state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith("model.backbone."):
            assert torch.equal(tensor, before[name])
    assert not same_weights(model, scene_model())


def test_gradient_checkpointing_changes_no_weight(tmp_path):
    one, other = scene_model(), scene_model()
    train_scenes(tmp_path / "kept", RECIPE.replace(max_steps=2), model=one)
    recipe = RECIPE.replace(max_steps=2, gradient_checkpointing=True)
    train_scenes(tmp_path / "checkpointed", recipe, model=other)
    assert other.is_gradient_checkpointing
    assert same_weights(one, other)
