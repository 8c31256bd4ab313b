// An activation after a bias, in place, on the CPU: arguments, kernels, registration.
#include "bias_activation.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../checks.h"
#include "instruction_set.h"
#include "tensors.h"

namespace mask2former {
namespace {

template <typename Real>
ActivationKernels<Real> kernels() {
  switch (instruction_set()) {
#if MASK2FORMER_X86
    case InstructionSet::kAvx512: return avx512::activation_kernels<Real>();
    case InstructionSet::kAvx2: return avx2::activation_kernels<Real>();
#endif
    default: return baseline::activation_kernels<Real>();
  }
}

// Rows of a task. Sums over columns have one order, whatever the number of threads.
constexpr int64_t kRows = 64;

Activation check_arguments(const char* op, const Tensor& x, const Tensor& bias, bool gelu) {
  check_dtype(op, "x", x, {ScalarType::Double, ScalarType::Float});
  check_shape(op, "x", x, "(rows, C)", {kAny, kAny});
  check_dtype(op, "bias", bias, {x.scalar_type()});
  check_shape(op, "bias", bias, "(C)", {x.size(1)});
  if (!x.is_contiguous() || !bias.is_contiguous()) fail(op, ": x and bias must be contiguous");
  return gelu ? Activation::kGelu : Activation::kRelu;
}

template <typename Run>
void for_rows(const Tensor& x, Run run) {
  const int64_t rows = x.size(0);
  torch::stable::parallel_for(0, (rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      run(task, task * kRows, std::min(kRows, rows - task * kRows));
    }
  });
}

Tensor bias_activation(Tensor x, const Tensor& bias, bool gelu) {
  const Activation kind = check_arguments("bias_activation", x, bias, gelu);
  for_real(x.scalar_type(), [&](auto real) {
    using Real = decltype(real);
    const int64_t columns = x.size(1);
    Real* to = static_cast<Real*>(x.mutable_data_ptr());
    const Real* biases = static_cast<const Real*>(bias.const_data_ptr());
    for_rows(x, [&](int64_t, int64_t first, int64_t rows) {
      kernels<Real>().forward(to + first * columns, biases, rows, columns, kind);
    });
  });
  return x;
}

Tensor bias_activation_backward(Tensor x, Tensor grad, const Tensor& bias, bool gelu) {
  constexpr const char* op = "bias_activation_backward";
  const Activation kind = check_arguments(op, x, bias, gelu);
  check_dtype(op, "grad", grad, {x.scalar_type()});
  check_shape(op, "grad", grad, "(rows, C)", {x.size(0), x.size(1)});
  if (!grad.is_contiguous()) fail(op, ": grad must be contiguous");
  const int64_t columns = x.size(1);
  Tensor sums = torch::stable::new_empty(x, {(x.size(0) + kRows - 1) / kRows, columns});
  if (is_empty(x)) return sums;
  for_real(x.scalar_type(), [&](auto real) {
    using Real = decltype(real);
    Real* to = static_cast<Real*>(x.mutable_data_ptr());
    Real* grads = static_cast<Real*>(grad.mutable_data_ptr());
    Real* sum = static_cast<Real*>(sums.mutable_data_ptr());
    const Real* biases = static_cast<const Real*>(bias.const_data_ptr());
    for_rows(x, [&](int64_t task, int64_t first, int64_t rows) {
      kernels<Real>().backward(to + first * columns, grads + first * columns, biases, rows, columns,
                               kind, sum + task * columns);
    });
  });
  return sums;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former_ops, CPU, library) {
  library.impl("bias_activation_", TORCH_BOX(&mask2former::bias_activation));
  library.impl("bias_activation_backward_", TORCH_BOX(&mask2former::bias_activation_backward));
}
