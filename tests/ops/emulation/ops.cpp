// The CUDA operators, kernels and host code, compiled for the emulation: they take CPU tensors and
// are registered beside the real ones, as emulated_cuda::ms_deform_attn and so on.
#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, device, library) \
  _STABLE_TORCH_LIBRARY_IMPL(emulated_cuda, CPU, library, C10_UID)

#include "../../../csrc/cuda/ms_deform_attn.cu"
#include "../../../csrc/cuda/point_sample.cu"
#include "emulator_python.h"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

PYBIND11_MODULE(emulated_cuda, module) {
  bind_emulator(module);
}
