// Bilinear point sampling on the CPU: arguments, kernels, registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "../bilinear.h"
#include "../checks.h"
#include "simd.h"

namespace mask2former {
namespace {

// Points that the whole batch shares make one image of N * C planes.
struct Problem {
  int64_t images, planes, points;  // planes and points of each image
  Axis columns, rows;

  int64_t area() const { return int64_t{columns.size} * rows.size; }
};

// A block of points is worked through for one plane after the other, so that the arithmetic of the
// points is done once for all planes of a group.
constexpr int64_t kPointsInBlock = 4096, kPlanesInGroup = 16;

// What all planes share about the points of a block. Most points have all four pixels around them:
// their position is that of the top left one, and their weights are in reading order. Position -1
// stands for any other point.
template <typename Real>
struct Block {
  int64_t position[kPointsInBlock];
  Real weight[4][kPointsInBlock];
};

int64_t blocks_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

template <typename Real>
MASK2FORMER_KERNEL void prepare(const Problem& problem, const Real* __restrict__ points,
                                int64_t count, Block<Real>& __restrict__ block) {
  const Axis columns = problem.columns, rows = problem.rows;
  for (int64_t i = 0; i < count; ++i) {
    const Cell<Real> cell = locate(columns, rows, points + 2 * i);
    const bool whole = cell.near & (cell.left >= 0) & (cell.left + 1 < columns.size) &
                       (cell.top >= 0) & (cell.top + 1 < rows.size);
    block.position[i] = whole ? int64_t{cell.top} * columns.size + cell.left : -1;
    const Real to_left = 1 - cell.to_right, to_top = 1 - cell.to_bottom;
    block.weight[0][i] = to_left * to_top;
    block.weight[1][i] = cell.to_right * to_top;
    block.weight[2][i] = to_left * cell.to_bottom;
    block.weight[3][i] = cell.to_right * cell.to_bottom;
  }
}

// ---- forward --------------------------------------------------------------------------------------

template <typename Storage, typename Output, typename Real>
MASK2FORMER_KERNEL void sample_plane(const Problem& problem, const Storage* plane,
                                     const Real* points, const Block<Real>& block, int64_t count,
                                     Output* output) {
  const int64_t width = problem.columns.size;
  for (int64_t i = 0; i < count; ++i) {
    Real sum = 0;
    if (block.position[i] >= 0) {
      const Storage* pixel = plane + block.position[i];
      sum = block.weight[0][i] * static_cast<Real>(pixel[0]) +
            block.weight[1][i] * static_cast<Real>(pixel[1]) +
            block.weight[2][i] * static_cast<Real>(pixel[width]) +
            block.weight[3][i] * static_cast<Real>(pixel[width + 1]);
    } else {
      visit_corners(locate(problem.columns, problem.rows, points + 2 * i), problem.columns.size,
                    problem.rows.size,
                    [&](int64_t position, Real weight, Real, Real) __attribute__((always_inline)) {
                      sum += weight * static_cast<Real>(plane[position]);
                    });
    }
    output[i] = static_cast<Output>(sum);
  }
}

template <typename Storage, typename Output, typename Real>
void forward(const Problem& problem, const Storage* input, const Real* points, Output* output) {
  const int64_t blocks = blocks_of(problem.points, kPointsInBlock);
  const int64_t groups = blocks_of(problem.planes, kPlanesInGroup);
  torch::stable::parallel_for(
      0, problem.images * groups * blocks, 1, [&](int64_t begin, int64_t end) {
        const auto block = std::make_unique<Block<Real>>();
        for (int64_t task = begin; task < end; ++task) {
          const int64_t image = task / (groups * blocks);
          const int64_t first_plane = task / blocks % groups * kPlanesInGroup;
          const int64_t first = task % blocks * kPointsInBlock;
          const int64_t count = std::min(kPointsInBlock, problem.points - first);
          const Real* at = points + (image * problem.points + first) * 2;
          prepare(problem, at, count, *block);
          const int64_t last_plane = std::min(first_plane + kPlanesInGroup, problem.planes);
          for (int64_t plane = first_plane; plane < last_plane; ++plane) {
            const int64_t index = image * problem.planes + plane;
            sample_plane(problem, input + index * problem.area(), at, *block, count,
                         output + index * problem.points + first);
          }
        }
      });
}

// ---- backward -------------------------------------------------------------------------------------

template <typename Output, typename Real>
MASK2FORMER_KERNEL void add_to_plane(const Problem& problem, const Output* grad_output,
                                     const Real* points, const Block<Real>& block, int64_t count,
                                     Real* plane) {
  const int64_t width = problem.columns.size;
  for (int64_t i = 0; i < count; ++i) {
    const Real grad = static_cast<Real>(grad_output[i]);
    if (block.position[i] >= 0) {
      Real* pixel = plane + block.position[i];
      pixel[0] += block.weight[0][i] * grad;
      pixel[1] += block.weight[1][i] * grad;
      pixel[width] += block.weight[2][i] * grad;
      pixel[width + 1] += block.weight[3][i] * grad;
    } else {
      visit_corners(locate(problem.columns, problem.rows, points + 2 * i), problem.columns.size,
                    problem.rows.size,
                    [&](int64_t position, Real weight, Real, Real)
                        __attribute__((always_inline)) { plane[position] += weight * grad; });
    }
  }
}

// A plane has one writer that takes the points in their order: the sums do not depend on the
// threads.
template <typename Output, typename Real>
void backward_input(const Problem& problem, const Output* grad_output, const Real* points,
                    Real* grad_input) {
  const int64_t groups = blocks_of(problem.planes, kPlanesInGroup);
  torch::stable::parallel_for(0, problem.images * groups, 1, [&](int64_t begin, int64_t end) {
    const auto block = std::make_unique<Block<Real>>();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / groups, first_plane = task % groups * kPlanesInGroup;
      const int64_t last_plane = std::min(first_plane + kPlanesInGroup, problem.planes);
      for (int64_t first = 0; first < problem.points; first += kPointsInBlock) {
        const int64_t count = std::min(kPointsInBlock, problem.points - first);
        const Real* at = points + (image * problem.points + first) * 2;
        prepare(problem, at, count, *block);
        for (int64_t plane = first_plane; plane < last_plane; ++plane) {
          const int64_t index = image * problem.planes + plane;
          add_to_plane(problem, grad_output + index * problem.points + first, at, *block, count,
                       grad_input + index * problem.area());
        }
      }
    }
  });
}

// Adds what one plane contributes to the gradients of `count` points.
template <typename Storage, typename Output, typename Real>
MASK2FORMER_KERNEL void add_to_points(const Problem& problem, const Output* grad_output,
                                      const Storage* plane, const Real* points, int64_t count,
                                      Real* grad_points) {
  const auto scale_x = static_cast<Real>(problem.columns.scale);
  const auto scale_y = static_cast<Real>(problem.rows.scale);
  for (int64_t i = 0; i < count; ++i) {
    const Real grad = static_cast<Real>(grad_output[i]);
    visit_corners(locate(problem.columns, problem.rows, points + 2 * i), problem.columns.size,
                  problem.rows.size,
                  [&](int64_t position, Real, Real slope_x, Real slope_y)
                      __attribute__((always_inline)) {
                        const Real product = static_cast<Real>(plane[position]) * grad;
                        grad_points[2 * i] += slope_x * scale_x * product;
                        grad_points[2 * i + 1] += slope_y * scale_y * product;
                      });
  }
}

// A block of points has one writer that takes the planes in their order.
template <typename Storage, typename Output, typename Real>
void backward_points(const Problem& problem, const Output* grad_output, const Storage* input,
                     const Real* points, Real* grad_points) {
  const int64_t blocks = blocks_of(problem.points, kPointsInBlock);
  torch::stable::parallel_for(0, problem.images * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, first = task % blocks * kPointsInBlock;
      const int64_t count = std::min(kPointsInBlock, problem.points - first);
      const int64_t at = (image * problem.points + first) * 2;
      for (int64_t plane = 0; plane < problem.planes; ++plane) {
        const int64_t index = image * problem.planes + plane;
        add_to_points(problem, grad_output + index * problem.points + first,
                      input + index * problem.area(), points + at, count, grad_points + at);
      }
    }
  });
}

// ---- arguments ------------------------------------------------------------------------------------

bool is_mask(const Tensor& input) {
  return input.scalar_type() == ScalarType::Byte || input.scalar_type() == ScalarType::Bool;
}

ScalarType output_dtype(const Tensor& input) {
  return is_mask(input) ? ScalarType::Float : input.scalar_type();
}

ScalarType real_of(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Problem check_arguments(const Tensor& input, const Tensor& points, bool align_corners) {
  constexpr const char* op = "point_sample";
  check_dtype(op, "input", input,
              {ScalarType::Double, ScalarType::Float, ScalarType::Half, ScalarType::BFloat16,
               ScalarType::Byte, ScalarType::Bool});
  check_shape(op, "input", input, "(N, C, H, W)", {kAny, kAny, kAny, kAny});
  check_dtype(op, "points", points, {output_dtype(input), real_of(input)});
  if (points.dim() == 4) {
    check_shape(op, "points", points, "(N or 1, Hg, Wg, 2)", {kAny, kAny, kAny, 2});
  } else {
    check_shape(op, "points", points, "(N or 1, P, 2)", {kAny, kAny, 2});
  }
  const int64_t batch = input.size(0), sets = points.size(0);
  if (sets != 1 && sets != batch) {
    fail(op, ": points must have a first size of 1 or input's N = ", batch, ", but has ", sets);
  }
  check_on_cpu(op, "points", points, "input");
  const int64_t height = input.size(2), width = input.size(3);
  if (std::max(height, width) > std::numeric_limits<int32_t>::max()) {
    fail(op, ": input must have fewer than 2^31 rows and columns, but has ", height, " x ", width);
  }
  const bool shared = sets == 1;
  const int64_t count = points.size(1) * (points.dim() == 4 ? points.size(2) : 1);
  return {shared ? 1 : batch, shared ? batch * input.size(1) : input.size(1), count,
          make_axis(static_cast<int32_t>(width), align_corners),
          make_axis(static_cast<int32_t>(height), align_corners)};
}

// (N, C, P) or (N, C, Hg, Wg)
std::vector<int64_t> output_shape(const Tensor& input, const Tensor& points) {
  std::vector<int64_t> shape{input.size(0), input.size(1), points.size(1)};
  if (points.dim() == 4) shape.push_back(points.size(2));
  return shape;
}

// ---- operators ------------------------------------------------------------------------------------

// Calls run(storage, output, real) with a number of each type.
template <typename Run>
void for_types(ScalarType dtype, Run run) {
  switch (dtype) {
    case ScalarType::Double: return run(double{}, double{}, double{});
    case ScalarType::Float: return run(float{}, float{}, float{});
    case ScalarType::Half: return run(Half{}, Half{}, float{});
    case ScalarType::BFloat16: return run(BFloat16{}, BFloat16{}, float{});
    default: return run(uint8_t{}, float{}, float{});  // the checks let only uint8 and bool through
  }
}

Tensor point_sample(const Tensor& input, const Tensor& points, bool align_corners) {
  const Problem problem = check_arguments(input, points, align_corners);
  Tensor output = torch::stable::new_empty(input, output_shape(input, points), output_dtype(input));
  const Tensor pixels = torch::stable::contiguous(input);
  const Tensor where = torch::stable::contiguous(torch::stable::to(points, real_of(input)));
  if (problem.area() == 0) return torch::stable::zero_(output);
  for_types(input.scalar_type(), [&](auto storage, auto result, auto real) {
    forward(problem, static_cast<const decltype(storage)*>(pixels.const_data_ptr()),
            static_cast<const decltype(real)*>(where.const_data_ptr()),
            static_cast<decltype(result)*>(output.mutable_data_ptr()));
  });
  return output;
}

std::tuple<Tensor, Tensor> point_sample_backward(const Tensor& grad_output, const Tensor& input,
                                                 const Tensor& points, bool align_corners,
                                                 const std::vector<bool>& output_mask) {
  const Problem problem = check_arguments(input, points, align_corners);
  constexpr const char* op = "point_sample_backward";
  check_dtype(op, "grad_output", grad_output, {output_dtype(input)});
  check_shape(op, "grad_output", grad_output, points.dim() == 4 ? "(N, C, Hg, Wg)" : "(N, C, P)",
              output_shape(input, points));
  check_on_cpu(op, "grad_output", grad_output, "input");

  const auto zeros = [&](bool wanted, const Tensor& like) {
    const int64_t nothing = 0;
    return torch::stable::new_zeros(
        like, wanted ? like.sizes() : torch::headeronly::IntHeaderOnlyArrayRef(&nothing, 1),
        real_of(input));
  };
  Tensor grad_input = zeros(output_mask[0], input);
  Tensor grad_points = zeros(output_mask[1], points);
  const Tensor pixels = torch::stable::contiguous(input);
  const Tensor grads = torch::stable::contiguous(grad_output);
  const Tensor where = torch::stable::contiguous(torch::stable::to(points, real_of(input)));
  for_types(input.scalar_type(), [&](auto storage, auto result, auto real) {
    using Real = decltype(real);
    const auto* from = static_cast<const decltype(result)*>(grads.const_data_ptr());
    const auto* at = where.const_data_ptr<Real>();
    if (output_mask[0]) {
      backward_input(problem, from, at, grad_input.mutable_data_ptr<Real>());
    }
    if (output_mask[1]) {
      backward_points(problem, from, static_cast<const decltype(storage)*>(pixels.const_data_ptr()),
                      at, grad_points.mutable_data_ptr<Real>());
    }
  });
  return {torch::stable::to(grad_input, input.scalar_type()),
          torch::stable::to(grad_points, points.scalar_type())};
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former_ops, CPU, library) {
  library.impl("point_sample", TORCH_BOX(&mask2former::point_sample));
  library.impl("point_sample_backward", TORCH_BOX(&mask2former::point_sample_backward));
}
