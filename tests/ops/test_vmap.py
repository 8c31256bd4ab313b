"""Where the mapped dimension goes and where it comes out again."""

import pytest
import torch

from mask2former_ops._vmap import fold, place, unfold

TENSOR = torch.arange(24).view(2, 3, 4)


@pytest.mark.parametrize("into", [0, 1])
@pytest.mark.parametrize("mapped", [0, 1, 2])
def test_a_mapped_dimension_comes_back_out_of_the_one_it_was_folded_into(mapped, into):
    folded = fold(TENSOR, mapped, TENSOR.shape[mapped], into)
    assert folded.dim() == 2
    assert torch.equal(unfold(folded, TENSOR.shape[mapped], into), TENSOR.movedim(mapped, into))


@pytest.mark.parametrize("into", [0, 1, 2])
def test_a_tensor_that_is_not_mapped_is_repeated(into):
    repeated = unfold(fold(TENSOR, None, 5, into), 5, into)
    for one in repeated.unbind(into):
        assert torch.equal(one, TENSOR)


def test_repeating_takes_no_memory_before_folding():
    assert place(TENSOR, None, 5, 0).stride(0) == 0


def test_a_dimension_may_be_empty():
    assert unfold(fold(TENSOR[:, :0], 0, 2, 0), 2, 0).shape == (2, 0, 4)
