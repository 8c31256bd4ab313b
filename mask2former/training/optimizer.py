"""The optimiser's groups of parameters, and the schedule of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from mask2former.training.recipe import Recipe, RecipeError

# The norms that the paper's code names, and others that backbones may have.
NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
# Position biases and absolute position embeddings of Swin, under our names and the usual ones.
POSITIONS = (
    *("position_bias", "position", "relative_position_bias_table", "absolute_pos_embed"),
    *("pos_embed", "position_embeddings"),
)
POWER = 0.9  # of the poly schedule
DROP = 0.1  # of the step schedule, at every milestone
CYCLE_START = 0.04  # of the one cycle (Smith and Topin 2017), as a fraction of its highest rate


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameters that train, in groups for AdamW with their weight decay.

    As in the paper's code (train_net.py), norms, embeddings and position biases have none. Biases
    of other layers have it, and the pixel decoder's level embedding, which is no `nn.Embedding`.

    Returns:
        Groups of "params", "weight_decay" and "backbone", which is True for parameters in a module
        of that name. Empty groups are left out.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            free = isinstance(module, (*NORMS, nn.Embedding)) or name in POSITIONS
            backbone = "backbone" in module_name.split(".")
            groups.setdefault((backbone, free), []).append(parameter)
    return [
        {"params": params, "weight_decay": 0.0 if free else weight_decay, "backbone": backbone}
        for (backbone, free), params in sorted(groups.items(), key=lambda item: item[0])
    ]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with the recipe's rates, lower in the backbone.

    Raises:
        RecipeError: no parameter trains.
    """
    groups = parameter_groups(model, recipe.weight_decay)
    if not groups:
        raise RecipeError("No parameter of the model requires a gradient, so nothing can train.")
    for group in groups:
        multiplier = recipe.backbone_multiplier if group.pop("backbone") else 1.0
        group["lr"] = recipe.learning_rate * multiplier
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> LRScheduler:
    """The schedule of the learning rates of all groups, to be stepped after each update."""
    return LambdaLR(optimizer, lambda step: rate_factor(step, recipe))


def rate_factor(step: int, recipe: Recipe) -> float:
    """The factor of the learning rate in the update after `step` others."""
    done, warmup = step / recipe.max_steps, recipe.warmup_steps
    if recipe.schedule == "one-cycle":
        if step < warmup:
            return CYCLE_START + (1 - CYCLE_START) * _half_cosine(step / warmup)
        return 1 - _half_cosine((step - warmup) / max(recipe.max_steps - warmup, 1))
    factor = 1.0
    if recipe.schedule == "step":
        factor = DROP ** sum(done >= milestone for milestone in recipe.milestones)
    elif recipe.schedule == "poly":
        factor = max(1 - done, 0.0) ** POWER
    return factor * min((step + 1) / (warmup + 1), 1.0)


def _half_cosine(part: float) -> float:
    """From 0 to 1 along half a cosine."""
    return (1 - math.cos(math.pi * part)) / 2
