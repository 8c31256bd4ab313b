// The dtypes of tensors as C++ types, for all devices.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <type_traits>

namespace mask2former {

using torch::headeronly::ScalarType;

// What arithmetic on a storage type is done in.
template <typename Storage>
using RealOf = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

template <typename Real>
constexpr ScalarType kDtypeOf =
    std::is_same_v<Real, double> ? ScalarType::Double : ScalarType::Float;

// What planes are sampled to: masks hold no fractions.
template <typename Storage>
using OutputOf = std::conditional_t<std::is_same_v<Storage, uint8_t>, float, Storage>;

// Calls run(number) with a number of the dtype, one of the four floating ones. The half types are
// those that the device's code computes with.
template <typename Half, typename BFloat16, typename Run>
void for_floating(ScalarType dtype, Run run) {
  switch (dtype) {
    case ScalarType::Double: return run(double{});
    case ScalarType::Float: return run(float{});
    case ScalarType::Half: return run(Half{});
    default: return run(BFloat16{});
  }
}

// The same with masks. A bool lies in memory as a uint8 does.
template <typename Half, typename BFloat16, typename Run>
void for_storage(ScalarType dtype, Run run) {
  const bool mask = dtype == ScalarType::Byte || dtype == ScalarType::Bool;
  mask ? run(uint8_t{}) : for_floating<Half, BFloat16>(dtype, run);
}

}  // namespace mask2former
