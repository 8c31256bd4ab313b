// Uncertain points on the CPU: arguments, kernels, registration.
#include "uncertain_points.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../dtypes.h"
#include "isa/instruction_set.h"
#include "tensors.h"

namespace mask2former {
namespace {

template <typename Storage>
UncertainKernels<Storage> kernels() {
  return with_instruction_set([](auto set) { return uncertain_kernels<Storage>(set); });
}

UncertainProblem make_problem(const Tensor& logits, int64_t candidates, int64_t chosen,
                              int64_t points, int64_t seed) {
  return {logits.size(0),
          candidates,
          chosen,
          points,
          static_cast<uint64_t>(seed),
          make_axis(static_cast<int32_t>(logits.size(2)), false),
          make_axis(static_cast<int32_t>(logits.size(1)), false)};
}

Tensor uncertain_points(const Tensor& logits, int64_t candidates, int64_t chosen, int64_t points,
                        int64_t seed) {
  const UncertainProblem problem = make_problem(logits, candidates, chosen, points, seed);
  const auto dtype =
      logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor output = torch::stable::new_empty(
      logits, torch::headeronly::IntHeaderOnlyArrayRef({problem.masks, points, 2}), dtype);
  if (is_empty(output)) return output;
  const Tensor pixels = torch::stable::contiguous(logits);
  for_floating<Half, BFloat16>(logits.scalar_type(), [&](auto storage) {
    using Storage = decltype(storage);
    const auto* from = static_cast<const Storage*>(pixels.const_data_ptr());
    auto* to = static_cast<RealOf<Storage>*>(output.mutable_data_ptr());
    const auto choose = kernels<Storage>().choose;
    torch::stable::parallel_for(0, problem.masks, 1, [&](int64_t begin, int64_t end) {
      Candidates<Storage> scratch(problem);
      for (int64_t mask = begin; mask < end; ++mask) {
        choose(problem, from + mask * problem.area(), mask, scratch, to + 2 * points * mask);
      }
    });
  });
  return output;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former_ops, CPU, library) {
  library.impl("uncertain_points", TORCH_BOX(&mask2former::uncertain_points));
}
