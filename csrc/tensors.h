// Tensors, for the host code of all devices.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace mask2former {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Memory for a gradient, of shape (0,) where nobody wants it.
inline Tensor new_gradient(bool wanted, const Tensor& like) {
  const int64_t nothing = 0;
  return torch::stable::new_empty(
      like, wanted ? like.sizes() : torch::headeronly::IntHeaderOnlyArrayRef(&nothing, 1));
}

inline bool is_empty(const Tensor& tensor) {
  for (const int64_t size : tensor.sizes()) {
    if (size == 0) return true;
  }
  return false;
}

}  // namespace mask2former
