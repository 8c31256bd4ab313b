"""Two processes with half a batch each must learn what one process learns from the whole batch."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from mask2former import (
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)
from mask2former.data.scene_dataset import SceneDataset
from mask2former.evaluation.evaluate import evaluate
from mask2former.io.errors import DataError
from mask2former.training.callback import Callback
from mask2former.training.devices import make_accelerator
from mask2former.training.recipe import Recipe, RecipeError
from mask2former.training.run import Evaluation
from tests.reference import make_labels, same_points, tiny_model
from tests.training.scenes import RECIPE, batches, train_scenes

RANKS = 2
SIZE = (64, 64)
CLIP_NORM = 1.0
# Annotations of each image: one batch after the other. The model has 6 queries.
BATCHES = {
    "unequal": [[3, 7, 1, 0]],
    "nothing on one rank": [[2, 3, 0, 0]],
    "one mask in all": [[0, 1, 0, 0]],
    "nothing at all": [[0, 0, 0, 0]],
    "accumulated": [[1, 4, 2, 0], [0, 0, 3, 1]],
}

Result = dict[str, Tensor]


def whole_batches(name: str) -> list[dict[str, list[Tensor]]]:
    """Images and labels of every image of every batch."""
    batches = []
    for seed, counts in enumerate(BATCHES[name]):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn(len(counts), 3, *SIZE, generator=generator, dtype=torch.float64)
        masks, classes = make_labels(seed, counts, SIZE, 3)
        batches.append({"pixel_values": pixels, "mask_labels": masks, "class_labels": classes})
    return batches


def part(batch: dict, rank: int) -> dict:
    """The images of a rank."""
    count = len(batch["pixel_values"]) // RANKS
    return {key: values[rank * count : (rank + 1) * count] for key, values in batch.items()}


def float64_model() -> Mask2FormerForUniversalSegmentation:
    """Layer and group norms only: statistics of a batch would differ between halves and whole."""
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=3, drop_path_rate=0.0
    )
    return tiny_model(backbone_config=backbone, decoder_layers=3).double().train()


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Adam would blow up the rounding of gradients that are zero but for rounding."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


def gradients(model: torch.nn.Module) -> Result:
    """By the names of the bare model; every parameter must have one."""
    return {
        name.removeprefix("module."): whole(parameter.grad).clone()
        for name, parameter in model.named_parameters()
    }


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


# What a rank does.


def through_ddp(name: str, rank: int) -> Result:
    """Gradients of one backward pass, and the loss."""
    model = DistributedDataParallel(float64_model())
    for _ in range(2):  # a parameter without a gradient would make the second one fail
        model.zero_grad()
        output = model(**part(whole_batches(name)[0], rank))
        output.loss.backward()
    return {"loss": output.loss.detach(), **gradients(model)}


def through_static_ddp(name: str, rank: int) -> Result:
    """The first pass of a graph that is said to stay the same, as checkpointing may want it.

    DDP then needs to find the tensors in the model's output, which it does in registered trees.
    """
    model = DistributedDataParallel(float64_model(), static_graph=True)
    output = model(**part(whole_batches(name)[0], rank))
    output.loss.backward()
    return {"loss": output.loss.detach(), **gradients(model)}


def through_fsdp(name: str, rank: int) -> Result:
    """The same with every parameter cut in two; what Accelerate does for `fsdp_version: 2`."""
    model = float64_model()
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in [*model.model.pixel_decoder.layers, *model.model.transformer_decoder.layers]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    output = model(**part(whole_batches(name)[0], rank))
    output.loss.backward()
    return {"loss": output.loss.detach(), **gradients(model)}


def step_through_fsdp(name: str, rank: int) -> Result:
    """Weights after one step, with the gradient of all parameters clipped."""
    model = float64_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer = optimizer_of(model)
    model(**part(whole_batches(name)[0], rank)).loss.backward()
    clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    return {name: whole(parameter) for name, parameter in model.named_parameters()}


def step_through_accelerate(name: str, rank: int) -> Result:
    """Weights after one step, with the batches of `name` accumulated."""
    from accelerate import Accelerator

    batches = whole_batches(name)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=len(batches))
    model = float64_model()
    model, optimizer = accelerator.prepare(model, optimizer_of(model))
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(**part(batch, rank)).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
    return accelerator.unwrap_model(model).state_dict()


Run = Callable[[str, int], Result]
GRADIENTS: dict[str, tuple[Run, str]] = {
    **{f"ddp, {name}": (through_ddp, name) for name in BATCHES if name != "accumulated"},
    "static ddp, unequal": (through_static_ddp, "unequal"),
    "fsdp, unequal": (through_fsdp, "unequal"),
    "fsdp, nothing on one rank": (through_fsdp, "nothing on one rank"),
}
STEPS: dict[str, tuple[Run, str]] = {
    "fsdp, unequal": (step_through_fsdp, "unequal"),
    "accelerate, unequal": (step_through_accelerate, "unequal"),
    "accelerate, accumulated": (step_through_accelerate, "accumulated"),
}


def what_the_trainer_sees(rank: int) -> tuple[int, int, str]:
    """Its rank and world size, though nothing says that there is no GPU; and a refusal."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the steps above
    accelerator = make_accelerator(Recipe())
    with pytest.raises(RecipeError) as refusal:
        make_accelerator(Recipe(sync_batch_norm=True))
    return accelerator.process_index, accelerator.num_processes, str(refusal.value)


class FullDisk(Callback):
    """Of the first process only, as all callbacks are."""

    def on_step(self, step, losses, lr, images, seconds):
        raise DataError("curves.png cannot be written.")


class VanishingScenes(SceneDataset):
    """Whose second image, the second process's, is lost."""

    def __getitem__(self, index):
        if index == 1:
            raise DataError("image 1 is lost.")
        return super().__getitem__(index)


def measured_scenes(model: Mask2FormerForUniversalSegmentation) -> Evaluation:
    scenes, processor = VanishingScenes(range(4), 64), Mask2FormerImageProcessor(do_resize=False)
    return Evaluation(evaluate(model, processor, scenes, gather=True, progress=False).figures)


def how_runs_fail(rank: int, folder: Path) -> dict[str, str]:
    """What every process raises where something fails in one of them."""

    def batches_with(fail: Callable[[dict], None]):
        def loader(**where):
            for number, batch in enumerate(batches(2)(**where)):
                if number == rank == 1:
                    fail(batch)
                yield batch

        return loader

    def vanish(batch: dict) -> None:
        raise DataError("image 7.png is lost.")

    def poison(batch: dict) -> None:
        batch["pixel_values"][0, 0, 0, 0] = torch.nan

    sound = {"loader": batches(2)}
    cases = {
        "a lost image": {"loader": batches_with(vanish)},
        "a loss that is not finite": {"loader": batches_with(poison)},
        "a full disk": {**sound, "callbacks": [FullDisk()]},
        "a lost validation image": {**sound, "evaluate": measured_scenes},
    }
    raised = {}
    recipe = RECIPE.replace(global_batch_size=4, eval_steps=1)
    for number, (case, options) in enumerate(cases.items()):
        with pytest.raises((DataError, FloatingPointError)) as error:
            train_scenes(folder / str(number), recipe, **options)
        raised[case] = str(error.value)
    return raised


def rank_main(rank: int, folder: Path) -> None:
    """All scenarios, one after the other, in a process of its own."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # Accelerate asks, nobody calls
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=(folder / "meeting").as_uri(),
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    with same_points():
        results = [
            {key: run(name, rank) for key, (run, name) in scenarios.items()}
            for scenarios in (GRADIENTS, STEPS)
        ]
    results += [what_the_trainer_sees(rank), how_runs_fail(rank, folder)]
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[list]:
    """What each rank found: results of GRADIENTS, of STEPS, and of the functions below those."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.spawn(rank_main, (folder,), RANKS, join=False)
    end = time.monotonic() + 240
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail("The ranks wait for each other.")
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def alone(name: str) -> Mask2FormerForUniversalSegmentation:
    """One process with the whole batches: the model holds the mean of their gradients."""
    model = float64_model()
    batches = whole_batches(name)
    with same_points():
        for batch in batches:
            (model(**batch).loss / len(batches)).backward()
    return model


def largest_error(found: Result, expected: Result) -> float:
    """Of any tensor: L2 distance relative to its norm, or to a millionth of the norm of all."""
    assert found.keys() == expected.keys()
    floor = 1e-6 * torch.stack([tensor.norm() for tensor in expected.values()]).norm()
    return max(
        float((found[key] - tensor).norm() / tensor.norm().clamp(min=floor))
        for key, tensor in expected.items()
    )


@pytest.mark.parametrize("key", GRADIENTS)
def test_halves_of_a_batch_give_the_gradients_of_the_whole(ranks, key):
    results = [dict(found[key]) for found, *_ in ranks]
    losses = torch.stack([result.pop("loss") for result in results])
    name = GRADIENTS[key][1]
    model = alone(name)
    for result in results:
        assert largest_error(result, gradients(model)) < 1e-9  # measured 5.1e-13
    with same_points():
        loss = model(**whole_batches(name)[0]).loss
    assert losses.mean().item() == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("key", STEPS)
def test_a_step_of_two_ranks_ends_at_the_weights_of_one(ranks, key):
    """Accumulated batches count alike, each divided by the masks that all ranks have in it."""
    model = alone(STEPS[key][1])
    before = float64_model().state_dict()
    assert clip_grad_norm_(model.parameters(), CLIP_NORM) > CLIP_NORM
    optimizer_of(model).step()
    change = {name: tensor - before[name] for name, tensor in model.state_dict().items()}
    for _, weights, *_ in ranks:
        found = {name: tensor - before[name] for name, tensor in weights[key].items()}
        assert largest_error(found, change) < 1e-9  # measured 9.2e-13


def test_processes_without_a_gpu_train_together_but_synchronise_no_batch_norms(ranks):
    for rank, (_, _, (found, count, refusal), _) in enumerate(ranks):
        assert (found, count) == (rank, RANKS)
        assert refusal.startswith("sync_batch_norm is on, but torch cannot synchronise")


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("a lost image", "image 7.png is lost."),
        (
            "a loss that is not finite",
            "The loss is not finite in step 2, whose images are scene 2, scene 3, scene 2, ",
        ),
        ("a full disk", "curves.png cannot be written."),
        ("a lost validation image", "image 1 is lost."),
    ],
)
def test_what_fails_in_one_process_ends_all_with_its_sentence(ranks, case, sentence):
    for *_, raised in ranks:
        assert raised[case].startswith(sentence)
