"""What the tests of training share: a tiny model, and batches of rendered scenes for it."""

import torch

from mask2former import Mask2FormerImageProcessor
from mask2former.data.scene_dataset import SceneDataset
from mask2former.scenes.scene import ID2LABEL
from mask2former.training.recipe import Recipe
from mask2former.training.run import Outcome, train_on_batches
from tests.reference import tiny_model

SCENES = SceneDataset(range(4), 32)
RECIPE = Recipe(
    max_steps=6, global_batch_size=2, save_steps=2, eval_steps=2, warmup_steps=0, learning_rate=1e-3
)


def scene_model(**options):
    return tiny_model(num_labels=len(ID2LABEL), id2label=ID2LABEL, **options)


def batches(images: int = 2):
    """Batches of so many scenes in turn, as the trainer asks for them, in one process."""

    def loader(first_step: int, steps: int, rank: int, world_size: int):
        for number in range(first_step, steps):
            numbers = range(number * images, (number + 1) * images)
            samples = [SCENES[index % len(SCENES)] for index in numbers]
            yield {
                "pixel_values": torch.stack([sample.image / 255 - 0.5 for sample in samples]),
                "mask_labels": [sample.masks for sample in samples],
                "class_labels": [sample.labels for sample in samples],
                "names": [sample.name for sample in samples],
            }

    return loader


def train_scenes(out, recipe=RECIPE, *, model=None, loader=None, **options) -> Outcome:
    """Train a tiny model and leave it in `model`."""
    model = model or scene_model()
    loader = loader or batches(recipe.images_per_pass)
    processor = Mask2FormerImageProcessor(size={"height": 32, "width": 32})
    return train_on_batches(model, processor, loader, recipe, out, **options)


def same_weights(one, other) -> bool:
    """Whether the weights of two models are bit-identical."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
