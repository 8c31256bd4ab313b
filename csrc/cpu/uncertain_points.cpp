// Uncertain points on the CPU: arguments, kernels, registration.
#include "uncertain_points.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "instruction_set.h"
#include "tensors.h"

namespace mask2former {
namespace {

template <typename Storage>
UncertainKernels<Storage> kernels() {
  switch (instruction_set()) {
#if MASK2FORMER_X86
    case InstructionSet::kAvx512: return avx512::uncertain_kernels<Storage>();
    case InstructionSet::kAvx2: return avx2::uncertain_kernels<Storage>();
#endif
    default: return baseline::uncertain_kernels<Storage>();
  }
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
  for_floating(logits.scalar_type(), [&](auto storage) {
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
