// From tensors to what kernels take, for both operators.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"
#include "numbers.h"

namespace mask2former {

inline Numbers numbers(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.scalar_type()};
}

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

// Calls run(number) with a number of the dtype, which the checks have let through.
template <typename Run>
void for_floating(ScalarType dtype, Run run) {
  switch (dtype) {
    case ScalarType::Double: return run(double{});
    case ScalarType::Float: return run(float{});
    case ScalarType::Half: return run(Half{});
    default: return run(BFloat16{});
  }
}

}  // namespace mask2former
