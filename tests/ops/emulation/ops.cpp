// The CUDA operators, kernels and host code, compiled for the emulation: they take CPU tensors and
// are registered beside the real ones, as emulated_cuda::ms_deform_attn and so on.
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <map>
#include <string>

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

namespace {

namespace cuda = mask2former::cuda;

// Forward and backward of float32 attention with levels that the host does not read, as where they
// lie on a GPU. Takes the addresses of contiguous tensors; sizes are N, S, M, D, Q, L, P.
template <typename Layout>
void attend(const std::map<std::string, uintptr_t>& at, const std::array<int64_t, 7>& sizes) {
  const auto [n, s, m, d, q, l, p] = sizes;
  const auto floats = [&](const char* name) { return reinterpret_cast<float*>(at.at(name)); };
  cuda::AttentionArguments<float> arguments{};
  arguments.images = n;
  arguments.positions = s;
  arguments.heads = m;
  arguments.channels = d;
  arguments.queries = q;
  arguments.samples = l * p;
  arguments.levels.count = static_cast<int32_t>(l);
  arguments.levels.shapes = reinterpret_cast<const int64_t*>(at.at("shapes"));
  arguments.levels.starts = reinterpret_cast<const int64_t*>(at.at("starts"));
  for (int64_t i = 0; i < l; ++i) arguments.levels.ends[i] = (i + 1) * p;
  arguments.value = floats("value");
  arguments.locations = {floats("locations"), false};
  arguments.attention = {floats("attention"), false};
  arguments.output = floats("output");
  arguments.grad_output = floats("grad_output");
  arguments.grad_locations = {floats("grad_locations"), false};
  arguments.grad_attention = {floats("grad_attention"), false};
  const cuda::ValueGradient<float, float> gradient{floats("grad_value"), nullptr};
  const auto blocks = cuda::blocks_for(n * q * m);
  const size_t shared =
      Layout::kFast ? l * p * sizeof(cuda::Map<Layout>) : l * sizeof(cuda::DeviceLevel);
  const cuda::Launcher launch("attend", torch::stable::empty({1}));
  launch(cuda::ms_deform_attn_forward_kernel<Layout>, blocks, cuda::kThreads, shared, arguments);
  launch(cuda::ms_deform_attn_backward_kernel<Layout, float>, blocks, cuda::kThreads, shared,
         arguments, gradient);
}

}  // namespace

PYBIND11_MODULE(emulated_cuda, module) {
  bind_emulator(module);
  module.def("attend", &attend<cuda::AnyLayout<float>>);
  module.def("attend_fast", &attend<cuda::FastLayout<float, 32>>);
}
