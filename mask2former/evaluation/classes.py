"""The classes of a model brought into the order of a data set's, by name."""

from __future__ import annotations

from collections.abc import Mapping

from mask2former.io.errors import DataError

_SHOWN = 5  # names in a message


def class_order(
    model: Mapping[int, str], dataset: Mapping[int, str], *, others_allowed: bool = False
) -> list[int]:
    """The model's label for each label of the data set, 0 to K - 1, then its other labels.

    Args:
        model, dataset: id2label of both.
        others_allowed: the model may have classes that the data set does not have, such as stuff
            where only things are annotated.

    Raises:
        DataError: a class of the data set is missing in the model, or the other way round; the
            message says which.
    """
    model_names = [model[label] for label in range(len(model))]
    names = [dataset[label] for label in range(len(dataset))]
    if model_names == names:
        return list(range(len(names)))
    missing = [name for name in names if name not in model_names]
    others = [name for name in model_names if name not in names]
    if missing or (others and not others_allowed):
        differences = [
            f"{who} {_shortened(classes)}"
            for who, classes in (("only the data set has", missing), ("only the model has", others))
            if classes
        ]
        raise DataError(
            f"The model knows {len(model_names)} classes and the data set has {len(names)}, not "
            f"the same ones: {'; '.join(differences)}. Give a model trained on these classes."
        )
    repeated = sorted({name for name in names if names.count(name) + model_names.count(name) != 2})
    if repeated:
        raise DataError(
            f"Classes of one name, {_shortened(repeated)}, cannot be distinguished, and model and "
            "data set do not list the classes in the same order; give each a name of its own."
        )
    labels = {name: label for label, name in enumerate(model_names)}
    return [labels[name] for name in (*names, *others)]


def _shortened(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    text = ", ".join(map(repr, names[:_SHOWN]))
    more = len(names) - _SHOWN
    return f"{text} and {more} more" if more > 0 else text
