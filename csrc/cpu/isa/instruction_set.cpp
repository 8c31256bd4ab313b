#include "instruction_set.h"

#include <atomic>

#if MASK2FORMER_X86
#include <cpuid.h>
#endif

namespace mask2former {
namespace {

#if MASK2FORMER_X86
// clang 16 has no __builtin_cpu_supports("f16c").
bool converts_half() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

std::vector<InstructionSet> detect() {
  std::vector<InstructionSet> sets;
#if MASK2FORMER_X86
  // These also ask whether the operating system saves the wide registers.
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_half();
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    sets.push_back(InstructionSet::kAvx512);
  }
  if (avx2) sets.push_back(InstructionSet::kAvx2);
#endif
  sets.push_back(InstructionSet::kBaseline);
  return sets;
}

std::atomic<InstructionSet>& current() {
  static std::atomic<InstructionSet> set{instruction_sets().front()};
  return set;
}

}  // namespace

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512: return "avx512";
    case InstructionSet::kAvx2: return "avx2";
    default: break;
  }
#if defined(__aarch64__)
  return "neon";  // every such machine has it
#else
  return "baseline";
#endif
}

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = detect();
  return sets;
}

InstructionSet instruction_set() {
  return current().load(std::memory_order_relaxed);
}

void use_instruction_set(InstructionSet set) {
  current().store(set, std::memory_order_relaxed);
}

}  // namespace mask2former
