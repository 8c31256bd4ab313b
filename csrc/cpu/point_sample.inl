// The loops of point sampling, compiled once for each instruction set:
// see isa/kernels.inl.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../bilinear.h"
#include "bilinear.inl"
#include "isa/instruction_set.h"
#include "ms_deform_attn.inl"
#include "numbers.h"
#include "point_sample.h"
#include "simd.inl"

#include "isa/begin.inl"
namespace mask2former::MASK2FORMER_SET {

constexpr int kPointLanes = 8;  // points in a pack, whatever the instruction set

// ---- points ---------------------------------------------------------------------------------------

template <typename Real>
MASK2FORMER_INLINE void set_unpacked(const PointProblem& problem, const Real* points, int64_t index,
                                     PointBlock<Real>& block) {
  block.unpacked[block.unpacked_count++] = {
      index, locate(problem.columns, problem.rows, points + 2 * index), 0, 0};
}

// Locates `count` points of a block from `begin` on. A point without one of the four pixels gets
// position -1.
template <typename Real>
MASK2FORMER_INLINE void locate_packs(const PointProblem& problem, const double* xs,
                                     const double* ys, int64_t begin, int64_t count,
                                     PointBlock<Real>& block) {
  const Axis columns = problem.columns, rows = problem.rows;
  const Doubles width = Doubles{} + double(columns.size), height = Doubles{} + double(rows.size);
  for (int64_t i = 0; i < count; i += kCellLanes) {
    const auto [near, left, top, to_right, to_bottom] =
        locate(load_pack<kCellLanes>(xs + i) * columns.scale + columns.shift,
               load_pack<kCellLanes>(ys + i) * rows.scale + rows.shift, width, height);
    const Masks whole =
        near & (left >= 0.0) & (left + 1.0 < width) & (top >= 0.0) & (top + 1.0 < height);
    const Masks position = to_integers<kCellLanes>(top * width + left) | ~whole;
    std::memcpy(block.position + begin + i, &position, sizeof position);
    narrow_store<kCellLanes>(block.to_right + begin + i, to_right);
    narrow_store<kCellLanes>(block.to_bottom + begin + i, to_bottom);
  }
}

template <typename Real>
MASK2FORMER_INLINE void locate_points(const PointProblem& problem, const Numbers& numbers,
                                      int64_t first, int64_t count, PointBlock<Real>& block) {
  constexpr int64_t step = 256;
  double x[step], y[step];
  const Real* points = widened(numbers, 2 * first, 2 * count, block.scratch);
  const int64_t packed = count / kPointLanes * kPointLanes;
  block.count = count;
  block.unpacked_count = 0;
  for (int64_t begin = 0; begin < packed; begin += step) {
    const int64_t size = packed - begin < step ? packed - begin : step;
    split_pairs(points + 2 * begin, size, x, y);
    locate_packs(problem, x, y, begin, size, block);
    for (int64_t i = begin; i < begin + size; ++i) {
      if (block.position[i] >= 0) continue;
      block.position[i] = 0;
      set_unpacked(problem, points, i, block);
    }
  }
  // A map of one row or one column has no point between four pixels, and no pixels for a pack.
  block.packed = block.unpacked_count < packed ? packed : 0;
  for (int64_t i = packed; i < count; ++i) set_unpacked(problem, points, i, block);
}

// ---- pixels ---------------------------------------------------------------------------------------

// Numbers that lie at `position` and after it, for a pack of points.
template <typename Real>
struct Pairs {
  Pack<Real, kPointLanes> left, right;
};

template <typename Bits, typename Lane = Bits, typename Storage>
MASK2FORMER_INLINE Pack<Lane, kPointLanes> gather(const Storage* from, const int64_t* position) {
  const auto at = [&](int lane) -> Lane {
    Bits bits;
    std::memcpy(&bits, from + position[lane], sizeof bits);
    return bits;
  };
  return Pack<Lane, kPointLanes>{at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)};
}

MASK2FORMER_INLINE Pairs<double> load_pairs(const double* from, const int64_t* position) {
  return {gather<double>(from, position), gather<double>(from + 1, position)};
}

// One load for both numbers of a pair. The left one is in the low bits.
MASK2FORMER_INLINE Pairs<float> load_pairs(const float* from, const int64_t* position) {
  using Floats = Pack<float, kPointLanes>;
  using Bits = Pack<uint32_t, kPointLanes>;
  const auto bits = gather<uint64_t>(from, position);
  return {reinterpret_cast<Floats>(__builtin_convertvector(bits, Bits)),
          reinterpret_cast<Floats>(__builtin_convertvector(bits >> 32, Bits))};
}

template <typename HalfType>
MASK2FORMER_INLINE Pairs<float> load_pairs(const HalfType* from, const int64_t* position) {
  const auto bits = gather<uint32_t>(from, position);
  return {widen_pack<HalfType, kPointLanes>(bits & 0xffffu),
          widen_pack<HalfType, kPointLanes>(bits >> 16)};
}

MASK2FORMER_INLINE Pairs<float> load_pairs(const uint8_t* from, const int64_t* position) {
  const auto bits = gather<uint16_t, int32_t>(from, position);
  return {__builtin_convertvector(bits & 0xff, Pack<float, kPointLanes>),
          __builtin_convertvector(bits >> 8, Pack<float, kPointLanes>)};
}

// ---- forward --------------------------------------------------------------------------------------

template <typename Storage, typename Real>
MASK2FORMER_INLINE void sample_plane(const PointProblem& problem, const PointBlock<Real>& block,
                                     const Storage* plane, OutputOf<Storage>* output) {
  const Storage* below = plane + problem.columns.size;
  for (int64_t i = 0; i < block.packed; i += kPointLanes) {
    const Pairs<Real> upper = load_pairs(plane, block.position + i);
    const Pairs<Real> lower = load_pairs(below, block.position + i);
    const auto to_right = load_pack<kPointLanes>(block.to_right + i);
    const auto to_bottom = load_pack<kPointLanes>(block.to_bottom + i);
    const auto to_left = 1 - to_right, to_top = 1 - to_bottom;
    store_pack<kPointLanes>(output + i,
                            to_top * (to_left * upper.left + to_right * upper.right) +
                                to_bottom * (to_left * lower.left + to_right * lower.right));
  }
  for (int64_t i = 0; i < block.unpacked_count; ++i) {
    Real sum = 0;
    visit_corners(block.unpacked[i].cell, problem.columns.size, problem.rows.size,
                  [&](int64_t position, Real weight, Real, Real) {
                    sum += weight * static_cast<Real>(plane[position]);
                  });
    output[block.unpacked[i].index] = static_cast<OutputOf<Storage>>(sum);
  }
}

template <typename Storage>
void forward(const PointProblem& problem, const PointData<Storage>& data,
             PointBlock<RealOf<Storage>>& block, int64_t image, int64_t begin, int64_t end,
             int64_t first, int64_t count) {
  locate_points(problem, data.points, image * problem.points + first, count, block);
  for (int64_t plane = image * problem.planes + begin; plane < image * problem.planes + end;
       ++plane) {
    sample_plane(problem, block, data.input + plane * problem.area(),
                 data.output + plane * problem.points + first);
  }
}

// ---- backward: input ------------------------------------------------------------------------------

// `plane` holds the pixels of `rows`, from the first of these on. Only half planes are cut into
// such bands; the others have all rows.
template <typename Output, typename Real>
MASK2FORMER_INLINE void add_to_plane(const PointProblem& problem, PointBlock<Real>& block,
                                     const Output* grad_output, const Rows& rows, Real* plane) {
  constexpr bool all = std::is_same_v<Output, Real>;
  const int64_t width = problem.columns.size;
  const int64_t origin = rows.begin * width, pixels = (rows.end - rows.begin) * width;
  const auto inside = [&](int64_t position) {
    return all || uint64_t(position) < uint64_t(pixels);
  };
  Real* grad = block.scratch;
  convert(grad_output, block.count, grad);
  for (int64_t i = 0; i < block.unpacked_count; ++i) {
    const auto& point = block.unpacked[i];
    const Real share = std::exchange(grad[point.index], Real(0));
    visit_corners(point.cell, problem.columns.size, problem.rows.size,
                  [&](int64_t position, Real weight, Real, Real) {
                    position -= origin;
                    if (inside(position)) plane[position] += weight * share;
                  });
  }
  using Pair = Pack<Real, 2>;
  const auto add = [&](int64_t position, Pair pair) {
    if (!inside(position)) return;
    store_pack<2>(plane + position, load_pack<2>(plane + position) + pair);
  };
  for (int64_t i = 0; i < block.packed; i += kPointLanes) {
    const auto grads = load_pack<kPointLanes>(grad + i);
    const auto to_right = load_pack<kPointLanes>(block.to_right + i);
    const auto lower = grads * load_pack<kPointLanes>(block.to_bottom + i),
               upper = grads * (1 - load_pack<kPointLanes>(block.to_bottom + i));
    const auto upper_right = upper * to_right, upper_left = upper - upper_right;
    const auto lower_right = lower * to_right, lower_left = lower - lower_right;
    for (int lane = 0; lane < kPointLanes; ++lane) {
      const int64_t position = block.position[i + lane] - origin;
      add(position, Pair{upper_left[lane], upper_right[lane]});
      add(position + width, Pair{lower_left[lane], lower_right[lane]});
    }
  }
}

// The planes have one writer that takes the points in their order: the sums do not depend on the
// threads. They are summed up in place, side by side, so that the points are located once for all
// of them.
template <typename Storage>
void backward_input(const PointProblem& problem, const PointData<Storage>& data,
                    PointBlock<Storage>& block, int64_t image, int64_t begin, int64_t end) {
  const int64_t area = problem.area(), points = problem.points;
  for (int64_t first = 0; first < points; first += block.capacity) {
    const int64_t count = std::min(block.capacity, points - first);
    locate_points(problem, data.points, image * points + first, count, block);
    for (int64_t plane = image * problem.planes + begin; plane < image * problem.planes + end;
         ++plane) {
      Storage* sums = data.grad_input + plane * area;
      if (first == 0) std::memset(sums, 0, area * sizeof(Storage));
      add_to_plane(problem, block, data.grad_output + plane * points + first,
                   {0, problem.rows.size}, sums);
    }
  }
}

// Half planes are summed up in the buffer, one band after the other. The points of a block that
// holds all of them are located once.
template <typename Storage>
void backward_half_input(const PointProblem& problem, const PointData<Storage>& data,
                         PointBlock<float>& block, int64_t image, int64_t begin, int64_t end,
                         float* buffer, int64_t buffer_rows) {
  const int64_t width = problem.columns.size, points = problem.points;
  const bool one_block = points <= block.capacity;
  if (one_block) locate_points(problem, data.points, image * points, points, block);
  for (int64_t plane = image * problem.planes + begin; plane < image * problem.planes + end;
       ++plane) {
    for (int64_t row = 0; row < problem.rows.size; row += buffer_rows) {
      const Rows rows{row, std::min<int64_t>(row + buffer_rows, problem.rows.size)};
      const int64_t pixels = (rows.end - rows.begin) * width;
      std::memset(buffer, 0, pixels * sizeof(float));
      for (int64_t first = 0; first < points; first += block.capacity) {
        const int64_t count = std::min(block.capacity, points - first);
        if (!one_block) locate_points(problem, data.points, image * points + first, count, block);
        add_to_plane(problem, block, data.grad_output + plane * points + first, rows, buffer);
      }
      convert(buffer, pixels, data.grad_input + plane * problem.area() + row * width);
    }
  }
}

// ---- backward: points -----------------------------------------------------------------------------

// Adds what one plane contributes to the derivatives by the points' columns and rows.
template <typename Storage, typename Real>
MASK2FORMER_INLINE void add_to_points(const PointProblem& problem, const Storage* plane,
                                      const OutputOf<Storage>* grad_output,
                                      PointBlock<Real>& block) {
  const Storage* below = plane + problem.columns.size;
  for (int64_t i = 0; i < block.packed; i += kPointLanes) {
    const Pairs<Real> upper = load_pairs(plane, block.position + i);
    const Pairs<Real> lower = load_pairs(below, block.position + i);
    const auto to_right = load_pack<kPointLanes>(block.to_right + i);
    const auto to_bottom = load_pack<kPointLanes>(block.to_bottom + i);
    const auto grads = load_pack<kPointLanes>(grad_output + i);
    const auto slope_x =
        (1 - to_bottom) * (upper.right - upper.left) + to_bottom * (lower.right - lower.left);
    const auto slope_y =
        (1 - to_right) * (lower.left - upper.left) + to_right * (lower.right - upper.right);
    store_pack<kPointLanes>(block.grad_x + i,
                            load_pack<kPointLanes>(block.grad_x + i) + grads * slope_x);
    store_pack<kPointLanes>(block.grad_y + i,
                            load_pack<kPointLanes>(block.grad_y + i) + grads * slope_y);
  }
  for (int64_t i = 0; i < block.unpacked_count; ++i) {
    auto& point = block.unpacked[i];
    const Real grad = static_cast<Real>(grad_output[point.index]);
    visit_corners(point.cell, problem.columns.size, problem.rows.size,
                  [&](int64_t position, Real, Real slope_x, Real slope_y) {
                    point.grad_x += slope_x * grad * static_cast<Real>(plane[position]);
                    point.grad_y += slope_y * grad * static_cast<Real>(plane[position]);
                  });
  }
}

// A block of points has one writer that takes the planes in their order.
template <typename Storage>
void backward_points(const PointProblem& problem, const PointData<Storage>& data,
                     PointBlock<RealOf<Storage>>& block, int64_t image, int64_t first,
                     int64_t count) {
  using Real = RealOf<Storage>;
  const int64_t index = image * problem.points + first;
  locate_points(problem, data.points, index, count, block);
  std::memset(block.grad_x, 0, count * sizeof(Real));
  std::memset(block.grad_y, 0, count * sizeof(Real));
  for (int64_t i = 0; i < problem.planes; ++i) {
    const int64_t plane = image * problem.planes + i;
    add_to_points(problem, data.input + plane * problem.area(),
                  data.grad_output + plane * problem.points + first, block);
  }
  for (int64_t i = 0; i < block.unpacked_count; ++i) {
    block.grad_x[block.unpacked[i].index] = block.unpacked[i].grad_x;
    block.grad_y[block.unpacked[i].index] = block.unpacked[i].grad_y;
  }
  const auto scale_x = static_cast<Real>(problem.columns.scale);
  const auto scale_y = static_cast<Real>(problem.rows.scale);
  for (int64_t i = 0; i < count; ++i) {
    block.scratch[2 * i] = block.grad_x[i] * scale_x;
    block.scratch[2 * i + 1] = block.grad_y[i] * scale_y;
  }
  write(data.grad_points, 2 * index, 2 * count, block.scratch);
}

// ---- channels side by side ------------------------------------------------------------------------

// Finds the four pixels of each point, as offsets from `image`; returns the offset of the zeros.
template <typename Storage>
MASK2FORMER_INLINE int64_t find_pixels(const PixelProblem& problem, const Numbers& points,
                                       int64_t index, int64_t count, const char* image,
                                       PixelBlock<Storage>& block) {
  auto& samples = block.samples;
  const int64_t zero_row = bytes(block.zeros) - image;
  split_pairs(widened(points, 2 * index, 2 * count, samples.scratch), count, samples.x, samples.y);
  for (int64_t i = 0; i < count; ++i) samples.attention[i] = 1;
  set_level({0, 1, problem.height, problem.width}, 0, problem.pixel_byte_stride, samples, 0, count);
  find_corners(samples, count, problem.pixel_byte_stride, zero_row, problem.align_corners);
  return zero_row;
}

// Writes the block's rows of channels as rows of points, which are `stride` numbers apart.
template <typename Storage>
MASK2FORMER_INLINE void write_channels(const PixelBlock<Storage>& block, int64_t channels,
                                       int64_t count, OutputOf<Storage>* output, int64_t stride) {
  const int64_t row = block.stride;
  for (int64_t channel = 0; channel < channels; ++channel, output += stride) {
    const auto* from = block.rows + channel;
    int64_t i = 0;
    for (; i + kPointLanes <= count; i += kPointLanes, from += kPointLanes * row) {
      store_pack<kPointLanes>(output + i,
                              Pack<RealOf<Storage>, kPointLanes>{
                                  from[0], from[row], from[2 * row], from[3 * row], from[4 * row],
                                  from[5 * row], from[6 * row], from[7 * row]});
    }
    for (; i < count; ++i, from += row) store_pack<1>(output + i, *from);
  }
}

// The other way round.
template <typename Storage>
MASK2FORMER_INLINE void read_channels(const OutputOf<Storage>* grad_output, int64_t stride,
                                      int64_t channels, int64_t count, PixelBlock<Storage>& block) {
  for (int64_t channel = 0; channel < channels; ++channel, grad_output += stride) {
    auto* to = block.rows + channel;
    for (int64_t i = 0; i < count; ++i, to += block.stride) *to = load_pack<1>(grad_output + i);
  }
}

template <typename Storage>
void forward_pixels(const PixelProblem& problem, const PointData<Storage>& data,
                    PixelBlock<Storage>& block, int64_t image, int64_t first, int64_t count) {
  const int64_t channels = problem.channels, points = problem.points;
  const char* pixels = bytes(data.input) + image * problem.image_byte_stride;
  find_pixels(problem, data.points, (problem.shared_points ? 0 : image * points) + first, count,
              pixels, block);
  with_lanes<RealOf<Storage>>(channels, [&](auto lanes) {
    for (int64_t i = 0; i < count; ++i) {
      for_packs<lanes.value>(channels, [&](auto packs, int64_t channel, int) {
        sum_rows<lanes.value, packs.value, Storage>(pixels + channel * sizeof(Storage),
                                                    block.samples, i, 1,
                                                    block.rows + i * block.stride + channel);
      });
    }
  });
  write_channels(block, channels, count, data.output + image * channels * points + first, points);
}

// A block of points has one writer that takes the images in their order.
template <typename Storage>
void backward_pixel_points(const PixelProblem& problem, const PointData<Storage>& data,
                           PixelBlock<Storage>& block, int64_t image, int64_t first,
                           int64_t count) {
  using Real = RealOf<Storage>;
  const int64_t channels = problem.channels, points = problem.points;
  const int64_t index = image * points + first;
  const int64_t last = problem.shared_points ? problem.images : image + 1;
  int64_t zero_row = 0;
  for (Real* dot : block.samples.dot) std::memset(dot, 0, count * sizeof(Real));
  for (; image < last; ++image) {
    const char* pixels = bytes(data.input) + image * problem.image_byte_stride;
    zero_row = find_pixels(problem, data.points, index, count, pixels, block);
    read_channels(data.grad_output + image * channels * points + first, points, channels, count,
                  block);
    with_lanes<Real>(channels, [&](auto lanes) {
      for (int64_t i = 0; i < count; ++i) {
        const Real* grad = block.rows + i * block.stride;
        for_packs<lanes.value>(channels, [&](auto packs, int64_t channel, int overlap) {
          multiply_rows<lanes.value, packs.value, Storage>(
              pixels + channel * sizeof(Storage), grad + channel, overlap, block.samples, i, 1);
        });
      }
    });
  }
  finish_samples(block.samples, count, zero_row, problem.align_corners);
  write_gradients(block.samples, index, count, data.grad_points, Numbers{});
}

template <typename Storage>
PointKernels<Storage> point_kernels(Set) {
  PointKernels<Storage> kernels{};  // masks have no gradient
  kernels.forward_pixels = &forward_pixels<Storage>;
  kernels.backward_pixel_points = &backward_pixel_points<Storage>;
  kernels.forward = &forward<Storage>;
  kernels.backward_points = &backward_points<Storage>;
  if constexpr (std::is_same_v<Storage, RealOf<Storage>>) {
    kernels.backward_input = &backward_input<Storage>;
  } else if constexpr (!std::is_same_v<Storage, uint8_t>) {
    kernels.backward_half_input = &backward_half_input<Storage>;
  }
  return kernels;
}

template PointKernels<double> point_kernels(Set);
template PointKernels<float> point_kernels(Set);
template PointKernels<Half> point_kernels(Set);
template PointKernels<BFloat16> point_kernels(Set);
template PointKernels<uint8_t> point_kernels(Set);

}  // namespace mask2former::MASK2FORMER_SET
#include "isa/end.inl"
