// From tensors to what kernels take, for all operators.
#pragma once

#include "../tensors.h"
#include "numbers.h"

namespace mask2former {

inline Numbers numbers(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.scalar_type()};
}

}  // namespace mask2former
