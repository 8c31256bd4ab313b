// What bias_activation.cpp hands to the kernels of an instruction set.
#pragma once

#include <cstdint>

namespace mask2former {

enum class Activation { kRelu, kGelu };

// The kernels of one instruction set, on `rows` rows of `columns` numbers.
template <typename Real>
struct ActivationKernels {
  // x = activation(x + bias)
  void (*forward)(Real* x, const Real* bias, int64_t rows, int64_t columns, Activation);
  // The same, and grad = grad * activation'(x + bias), whose columns are summed up.
  void (*backward)(Real* x, Real* grad, const Real* bias, int64_t rows, int64_t columns, Activation,
                   Real* sums);
};

namespace avx512 {
template <typename Real>
ActivationKernels<Real> activation_kernels();
}
namespace avx2 {
template <typename Real>
ActivationKernels<Real> activation_kernels();
}
namespace baseline {
template <typename Real>
ActivationKernels<Real> activation_kernels();
}

}  // namespace mask2former
