// Argument checks shared by the host wrappers; mask2former_ops/_checks.py says the same in Python.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace mask2former {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Python sees a RuntimeError, as from torch's own operators.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return "float64";
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "another dtype";
  }
}

constexpr int64_t kAny = std::numeric_limits<int64_t>::min();  // any size in an expected shape

template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  text << "(";
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (i) text << ", ";
    if (sizes[i] == kAny) {
      text << "any";
    } else {
      text << sizes[i];
    }
  }
  text << ")";
  return text.str();
}

// As Python prints a list.
inline std::string list_text(const std::vector<int64_t>& numbers) {
  std::string text = shape_text(numbers);
  text.front() = '[';
  text.back() = ']';
  return text;
}

inline void check_shape(const char* op, const char* name, const Tensor& tensor, const char* layout,
                        const std::vector<int64_t>& expected) {
  const auto sizes = tensor.sizes();
  if (sizes.size() != expected.size()) {
    fail(op, ": ", name, " must have ", expected.size(), " dimensions ", layout, ", but has shape ",
         shape_text(sizes));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] != kAny && sizes[i] != expected[i]) {
      fail(op, ": ", name, " must have shape ", layout, " = ", shape_text(expected), ", but has ",
           shape_text(sizes));
    }
  }
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor,
                        std::initializer_list<ScalarType> allowed) {
  std::string names, last;
  for (const ScalarType dtype : allowed) {
    if (tensor.scalar_type() == dtype) return;
    if (last == dtype_name(dtype)) continue;
    last = dtype_name(dtype);
    names += (names.empty() ? "" : " or ") + last;
  }
  fail(op, ": ", name, " must be ", names, ", but is ", dtype_name(tensor.scalar_type()));
}

// Says which gradients are wanted.
inline void check_output_mask(const char* op, const std::vector<bool>& mask, size_t count) {
  if (mask.size() != count) {
    fail(op, ": output_mask must have ", count, " values, but has ", mask.size());
  }
}

inline std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "another device";
}

inline void check_device(const char* op, const char* name, const Tensor& tensor, const char* first,
                         const Tensor& other) {
  const std::string expected = device_text(other), got = device_text(tensor);
  if (got != expected) {
    fail(op, ": ", name, " must be on ", expected, " like ", first, ", but is on ", got);
  }
}

}  // namespace mask2former
