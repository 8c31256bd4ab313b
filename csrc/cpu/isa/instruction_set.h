// The instruction sets that the kernels are compiled for, and the one in use.
#pragma once

#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define MASK2FORMER_X86 1
#else
#define MASK2FORMER_X86 0
#endif

namespace mask2former {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

const char* name_of(InstructionSet set);

// Those that this machine can run, the fastest first.
const std::vector<InstructionSet>& instruction_sets();

// The fastest one, unless another has been chosen.
InstructionSet instruction_set();
void use_instruction_set(InstructionSet set);

// Each has a namespace of kernels, of which all functions that give them out take the tag.
namespace avx512 {
struct Set {};
}  // namespace avx512
namespace avx2 {
struct Set {};
}  // namespace avx2
namespace baseline {
struct Set {};
}  // namespace baseline

// Returns run(tag) for the instruction set in use.
template <typename Run>
auto with_instruction_set(Run run) {
  switch (instruction_set()) {
#if MASK2FORMER_X86
    case InstructionSet::kAvx512: return run(avx512::Set{});
    case InstructionSet::kAvx2: return run(avx2::Set{});
#endif
    default: return run(baseline::Set{});
  }
}

}  // namespace mask2former
