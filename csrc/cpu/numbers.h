// Numbers in memory.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../dtypes.h"

namespace mask2former {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// A row of numbers whose floating dtype is known at run time.
struct Numbers {
  void* data;  // null where nobody wants them
  ScalarType dtype;
};

}  // namespace mask2former
