"""Backbone configurations as transformers writes them."""

from __future__ import annotations

from typing import Any

from mask2former.io.errors import DataError
from mask2former.io.optional import require_package


def with_our_stages(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a Swin or ResNet of transformers, whose index 0 is the stem.

    Its configurations name the last stage alone unless told otherwise. No Mask2Former can be made
    of one stage, so that means all of them.
    """
    values = {k: v for k, v in values.items() if k != "stage_names"}
    depths = values.get("depths")
    count = len(depths) if isinstance(depths, (list, tuple)) else 4
    stages = ["stem", *(f"stage{number}" for number in range(1, count + 1))]
    names, indices = values.pop("out_features", None), values.pop("out_indices", None)
    if names is None and indices is not None:
        if not all(-len(stages) <= index < len(stages) for index in indices):
            raise ValueError(
                f"out_indices is {indices}; this backbone has maps from {-len(stages)} to "
                f"{len(stages) - 1}."
            )
        names = [stages[index] for index in indices]
    return {**values, "out_features": None if names == stages[-1:] else names}


def transformers_config(model_type: Any, values: dict[str, Any], ours: list[str]) -> Any:
    """A configuration object of transformers.

    Args:
        model_type: of a backbone that only transformers has.
        values: the configuration's dict without it.
        ours: model types that need no transformers, for messages.

    Raises:
        DataError: transformers is not installed, or has no such backbone.
        ValueError: it refuses a value.
    """
    require_package(
        "transformers", f"backbone_config has model_type {model_type!r}, none of {ours}, and so"
    )
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

    if model_type not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        raise DataError(
            f"backbone_config has model_type {model_type!r}, which is no backbone; use one of "
            f"{ours} or a backbone of transformers."
        )
    values = {k: v for k, v in values.items() if k not in ("dtype", "torch_dtype")}
    config_class = CONFIG_MAPPING[model_type]
    # Some of its networks take lists only, although their configurations default to tuples.
    try:
        values = config_class(**values).to_dict()
        config = config_class.from_dict(
            {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        )
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"backbone_config is no {config_class.__name__}: {reason}") from error
    if not hasattr(config, "num_channels"):
        config.num_channels = 3  # a network that takes no other number and does not say so
    return config
