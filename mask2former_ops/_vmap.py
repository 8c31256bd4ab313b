"""What the vmap rules of both ops share: the mapped dimension goes into one that the op has."""

from torch import Tensor


def place(tensor: Tensor, mapped: int | None, size: int, at: int) -> Tensor:
    """Brings the mapped dimension to `at`; a tensor that is not mapped is expanded there."""
    if mapped is not None:
        return tensor.movedim(mapped, at)
    return tensor.unsqueeze(at).expand(*tensor.shape[:at], size, *tensor.shape[at:])


def fold(tensor: Tensor, mapped: int | None, size: int, into: int) -> Tensor:
    """Makes dimension `into` `size` times as long, by the mapped dimension or by repetition."""
    return place(tensor, mapped, size, into).flatten(into, into + 1)


def unfold(tensor: Tensor, size: int, at: int) -> Tensor:
    """Takes the mapped dimension out of dimension `at` again; it comes to lie before it."""
    return tensor.unflatten(at, (size, tensor.shape[at] // size))
