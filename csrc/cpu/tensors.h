// From tensors to what kernels take, for all operators.
#pragma once

#include "../tensors.h"
#include "numbers.h"

namespace mask2former {

inline Numbers numbers(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.scalar_type()};
}

// Calls run(number) with a number of the dtype, one of the four floating ones.
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
