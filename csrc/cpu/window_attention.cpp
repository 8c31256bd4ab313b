// Window attention on the CPU: arguments, kernels, registration.
#include "window_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>

#include "../checks.h"
#include "instruction_set.h"
#include "tensors.h"

namespace mask2former {
namespace {

template <typename Real>
WindowKernels<Real> kernels() {
  switch (instruction_set()) {
#if MASK2FORMER_X86
    case InstructionSet::kAvx512: return avx512::window_kernels<Real>();
    case InstructionSet::kAvx2: return avx2::window_kernels<Real>();
#endif
    default: return baseline::window_kernels<Real>();
  }
}

// Rows of cells, not blank, in some rows of windows of the shifted map.
int64_t rows_in_memory(const WindowProblem& problem) {
  const int64_t begin = problem.first_row * problem.window + problem.shift;
  const int64_t end = begin + problem.window_rows * problem.window;
  const int64_t wrapped = std::max<int64_t>(0, end - problem.whole_height());
  return std::max<int64_t>(0, std::min(end, problem.height) - begin) +
         std::min(wrapped, problem.height);
}

WindowProblem check_arguments(const char* op, const Tensor& qkv, const Tensor& blank,
                              const Tensor& bias, const Tensor& extents, int64_t height,
                              int64_t window, int64_t shift, int64_t first_row, int64_t window_rows,
                              double penalty) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();  // so that no product overflows
  check_dtype(op, "qkv", qkv, {ScalarType::Double, ScalarType::Float});
  check_shape(op, "qkv", qkv, "(N, R, W, 3 * C)", {kAny, kAny, kAny, kAny});
  check_dtype(op, "blank", blank, {qkv.scalar_type()});
  check_shape(op, "blank", blank, "(3 * C)", {qkv.size(3)});
  check_dtype(op, "bias", bias, {qkv.scalar_type()});
  if (window < 1 || window > most) {
    fail(op, ": window must be from 1 to 2^31 - 1, but is ", window);
  }
  if (height < 0 || height > most) {
    fail(op, ": height must be from 0 to 2^31 - 1, but is ", height);
  }
  const int64_t length = window * window;
  check_shape(op, "bias", bias, "(heads, window^2, window^2)", {kAny, length, length});
  check_dtype(op, "extents", extents, {ScalarType::Long});
  check_shape(op, "extents", extents, "(N, 2)", {qkv.size(0), 2});
  const int64_t heads = bias.size(0);
  if (shift < 0 || shift >= window) {
    fail(op, ": shift must be from 0 to window - 1, but is ", shift, " for a window of ", window);
  }
  if (heads < 1 || qkv.size(3) % (3 * heads) != 0) {
    fail(op, ": qkv must have a multiple of 3 * ", heads, " channels, but has ", qkv.size(3));
  }
  const WindowProblem problem{
      qkv.size(0), height, qkv.size(1), qkv.size(2), heads,  qkv.size(3) / (3 * heads),
      window,      shift,  first_row,   window_rows, penalty};
  if (first_row < 0 || window_rows < 0 ||
      first_row > problem.whole_height() / window - window_rows ||
      problem.rows != rows_in_memory(problem)) {
    fail(op, ": qkv has ", problem.rows, " rows, which are not those of ", window_rows,
         " rows of windows from ", first_row, " on, of maps ", height, " high");
  }
  const Tensor sizes = torch::stable::contiguous(extents);
  const auto* size = static_cast<const int64_t*>(sizes.const_data_ptr());
  for (int64_t i = 0; i < sizes.numel(); ++i) {
    const int64_t whole = i % 2 ? problem.width : height;
    if (size[i] < 0 || size[i] > whole) {
      fail(op, ": extents must be from 0 to the maps' ", height, " x ", problem.width, ", but has ",
           size[i]);
    }
  }
  return problem;
}

template <typename Real>
WindowData<Real> inputs(const Tensor& qkv, const Tensor& blank, const Tensor& bias,
                        const Tensor& extents) {
  WindowData<Real> data{};
  data.qkv = static_cast<const Real*>(qkv.const_data_ptr());
  data.blank = static_cast<const Real*>(blank.const_data_ptr());
  data.bias = static_cast<const Real*>(bias.const_data_ptr());
  data.extents = static_cast<const int64_t*>(extents.const_data_ptr());
  return data;
}

template <typename Real>
void for_rows(const WindowProblem& problem, const WindowData<Real>& data,
              typename WindowKernels<Real>::Kernel kernel) {
  const int64_t tasks = problem.images * problem.window_rows * problem.heads;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    WindowScratch<Real> scratch(problem);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / problem.heads;
      kernel(problem, data, scratch, row / problem.window_rows, row % problem.window_rows,
             task % problem.heads);
    }
  });
}

Tensor window_attention(const Tensor& qkv, const Tensor& blank, const Tensor& bias,
                        const Tensor& extents, int64_t height, int64_t window, int64_t shift,
                        int64_t first_row, int64_t window_rows, double penalty) {
  const WindowProblem problem =
      check_arguments("window_attention", qkv, blank, bias, extents, height, window, shift,
                      first_row, window_rows, penalty);
  Tensor output = torch::stable::new_empty(
      qkv, {problem.images, problem.rows, problem.width, problem.heads * problem.channels});
  if (is_empty(output)) return output;
  const Tensor cells = torch::stable::contiguous(qkv);
  const Tensor fill = torch::stable::contiguous(blank);
  const Tensor biases = torch::stable::contiguous(bias);
  const Tensor sizes = torch::stable::contiguous(extents);
  for_real(qkv.scalar_type(), [&](auto real) {
    using Real = decltype(real);
    WindowData<Real> data = inputs<Real>(cells, fill, biases, sizes);
    data.output = static_cast<Real*>(output.mutable_data_ptr());
    for_rows(problem, data, kernels<Real>().forward);
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> window_attention_backward(
    const Tensor& grad_output, const Tensor& qkv, const Tensor& blank, const Tensor& bias,
    const Tensor& extents, int64_t height, int64_t window, int64_t shift, int64_t first_row,
    int64_t window_rows, double penalty) {
  constexpr const char* op = "window_attention_backward";
  const WindowProblem problem = check_arguments(op, qkv, blank, bias, extents, height, window,
                                                shift, first_row, window_rows, penalty);
  const std::vector<int64_t> shape{problem.images, problem.rows, problem.width,
                                   problem.heads * problem.channels};
  check_dtype(op, "grad_output", grad_output, {qkv.scalar_type()});
  check_shape(op, "grad_output", grad_output, "(N, R, W, C)", shape);
  const int64_t parts = problem.images * problem.window_rows, length = problem.length();
  Tensor output = torch::stable::new_empty(qkv, shape);
  Tensor grad_qkv = torch::stable::new_empty(qkv, qkv.sizes());
  Tensor grad_blank = torch::stable::new_empty(qkv, {parts, qkv.size(3)});
  Tensor grad_bias = torch::stable::new_empty(qkv, {parts, problem.heads, length, length});
  if (is_empty(output)) {
    return {output, grad_qkv, torch::stable::zero_(grad_blank), torch::stable::zero_(grad_bias)};
  }
  const Tensor cells = torch::stable::contiguous(qkv);
  const Tensor fill = torch::stable::contiguous(blank);
  const Tensor biases = torch::stable::contiguous(bias);
  const Tensor sizes = torch::stable::contiguous(extents);
  const Tensor grads = torch::stable::contiguous(grad_output);
  for_real(qkv.scalar_type(), [&](auto real) {
    using Real = decltype(real);
    WindowData<Real> data = inputs<Real>(cells, fill, biases, sizes);
    data.output = static_cast<Real*>(output.mutable_data_ptr());
    data.grad_output = static_cast<const Real*>(grads.const_data_ptr());
    data.grad_qkv = static_cast<Real*>(grad_qkv.mutable_data_ptr());
    data.grad_blank = static_cast<Real*>(grad_blank.mutable_data_ptr());
    data.grad_bias = static_cast<Real*>(grad_bias.mutable_data_ptr());
    for_rows(problem, data, kernels<Real>().backward);
  });
  return {output, grad_qkv, grad_blank, grad_bias};
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former_ops, CPU, library) {
  library.impl("window_attention", TORCH_BOX(&mask2former::window_attention));
  library.impl("window_attention_backward", TORCH_BOX(&mask2former::window_attention_backward));
}
