// What window_attention.cpp hands to the kernels of an instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace mask2former {

// Attention inside the windows of maps that are shifted cyclically and filled up to whole windows.
// Only some rows of windows are looked at, `window_rows` from `first_row` on, and only their rows
// of cells are in memory, `rows` of each map, in the order of the shifted map. `height` is that of
// the whole maps.
struct WindowProblem {
  int64_t images, height, rows, width, heads, channels;  // channels of a head
  int64_t window, shift, first_row, window_rows;
  double penalty;  // added to the scores of places that must not look at each other

  int64_t length() const { return window * window; }
  int64_t windows_across() const { return (width + window - 1) / window; }
  int64_t whole_height() const { return (height + window - 1) / window * window; }
  int64_t whole_width() const { return windows_across() * window; }
};

// The arguments in memory, contiguous.
template <typename Real>
struct WindowData {
  const Real* qkv;          // (images, rows, width, 3, heads, channels)
  const Real* blank;        // (3, heads, channels), what fills the maps up
  const Real* bias;         // (heads, length, length)
  const int64_t* extents;   // (images, 2), rows and columns of a map that are not blank
  Real* output;             // (images, rows, width, heads, channels)
  const Real* grad_output;  // the same
  Real* grad_qkv;           // as qkv
  Real* grad_blank;         // (images * window_rows, 3, heads, channels), to be summed up
  Real* grad_bias;          // (images * window_rows, heads, length, length), to be summed up
};

// The places of a window. Lines of numbers are filled up to whole packs.
template <typename Real>
class WindowScratch {
 public:
  static constexpr int64_t kPack = 64 / sizeof(Real);  // of the widest instruction set
  const int64_t line, row;                             // a number for each place, for each channel

  std::vector<int64_t> cell;                  // in memory, or -1 for none
  std::vector<char> blank;                    // what the maps are filled up with is there
  std::vector<Real> region;                   // which other places may be looked at, filled up
  Real *bias, *scores, *grads, *grad_bias;    // (length, line)
  Real *query, *key, *value, *grad, *result;  // (length, row)
  Real* turned;                               // (row, line)

  explicit WindowScratch(const WindowProblem& problem)
      : line(whole(problem.length())),
        row(whole(problem.channels)),
        cell(problem.length()),
        blank(problem.length()),
        region(line) {
    const int64_t square = problem.length() * line, tall = problem.length() * row;
    numbers_ = std::make_unique<Real[]>(4 * square + 5 * tall + row * line + kPack);
    Real* next = numbers_.get();
    next += (64 - reinterpret_cast<uintptr_t>(next) % 64) % 64 / sizeof(Real);
    for (Real** array : {&bias, &scores, &grads, &grad_bias})
      *array = std::exchange(next, next + square);
    for (Real** array : {&query, &key, &value, &grad, &result})
      *array = std::exchange(next, next + tall);
    turned = next;
  }

 private:
  static int64_t whole(int64_t count) { return (count + kPack - 1) / kPack * kPack; }
  std::unique_ptr<Real[]> numbers_;
};

// The kernels of one instruction set: one head of one row of windows of an image.
template <typename Real>
struct WindowKernels {
  using Kernel = void (*)(const WindowProblem&, const WindowData<Real>&, WindowScratch<Real>&,
                          int64_t image, int64_t window_row, int64_t head);
  Kernel forward, backward;
};

namespace avx512 {
template <typename Real>
WindowKernels<Real> window_kernels();
}
namespace avx2 {
template <typename Real>
WindowKernels<Real> window_kernels();
}
namespace baseline {
template <typename Real>
WindowKernels<Real> window_kernels();
}

}  // namespace mask2former
