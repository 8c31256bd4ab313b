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

}  // namespace mask2former
