// Numbers in memory, and what they are computed in.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

namespace mask2former {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

// A row of numbers whose floating dtype is known at run time.
struct Numbers {
  void* data;  // null where nobody wants them
  ScalarType dtype;
};

// What arithmetic on a storage type is done in.
template <typename Storage>
using RealOf = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

}  // namespace mask2former
