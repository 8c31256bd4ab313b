// Stands for torch's header: the tensors are in host memory, so no device has to be chosen.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

HIDDEN_NAMESPACE_BEGIN(torch, stable, accelerator)

using DeviceIndex = int32_t;

class DeviceGuard {
 public:
  explicit DeviceGuard(DeviceIndex) {}
  void set_index(DeviceIndex) {}
};

HIDDEN_NAMESPACE_END(torch, stable, accelerator)
