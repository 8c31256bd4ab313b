"""Training: `train` with a `Recipe` fine-tunes a model on a data set."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mask2former.training.callback import Callback
    from mask2former.training.recipe import Recipe, RecipeError
    from mask2former.training.run import Outcome
    from mask2former.training.setup import train

__all__ = ["Callback", "Outcome", "Recipe", "RecipeError", "train"]

# The module of each name, imported at first use, so that the command line knows all settings
# without waiting for torch.
_MODULES = {
    "Callback": "callback",
    "Outcome": "run",
    "Recipe": "recipe",
    "RecipeError": "recipe",
    "train": "setup",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
