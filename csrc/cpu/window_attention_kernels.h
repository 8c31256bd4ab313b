// The loops of window attention, compiled once for each instruction set: see kernels.h.

namespace mask2former::MASK2FORMER_SET {

// ---- small matrix products ------------------------------------------------------------------------

// c (Rows, Packs packs) = or += a (Rows, depth) * b (depth, Packs packs). An element of `a` is at
// row * a_row + k * a_step; lines of b and c are b_line and c_line numbers apart.
template <int Rows, int Packs, typename Real>
MASK2FORMER_INLINE void multiply_block(const Real* a, int64_t a_row, int64_t a_step, const Real* b,
                                       int64_t b_line, int64_t depth, const Real* from, Real* c,
                                       int64_t c_line) {
  constexpr int lanes = kNativeLanes<Real>;
  Pack<Real, lanes> sums[Rows][Packs];
  for (int row = 0; row < Rows; ++row) {
    for (int pack = 0; pack < Packs; ++pack) {
      sums[row][pack] =
          from ? load_pack<lanes>(from + row * c_line + pack * lanes) : Pack<Real, lanes>{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Pack<Real, lanes> line[Packs];
    for (int pack = 0; pack < Packs; ++pack)
      line[pack] = load_pack<lanes>(b + k * b_line + pack * lanes);
    for (int row = 0; row < Rows; ++row) {
      const Real factor = a[row * a_row + k * a_step];
      for (int pack = 0; pack < Packs; ++pack) sums[row][pack] += factor * line[pack];
    }
  }
  for (int row = 0; row < Rows; ++row) {
    for (int pack = 0; pack < Packs; ++pack) {
      store_pack<lanes>(c + row * c_line + pack * lanes, sums[row][pack]);
    }
  }
}

// A matrix whose element is at row * line + column * step.
template <typename Real>
struct Matrix {
  const Real* data;
  int64_t line, step;
};

template <int Rows, int Packs, typename Real>
MASK2FORMER_INLINE void multiply_columns(const Matrix<Real>& a, const Real* b, int64_t rows,
                                         int64_t depth, const Real* from, Real* c, int64_t line) {
  int64_t row = 0;
  const auto block = [&](auto count) {
    multiply_block<count.value, Packs>(a.data + row * a.line, a.line, a.step, b, line, depth,
                                       from ? from + row * line : nullptr, c + row * line, line);
    row += count.value;
  };
  while (row + Rows <= rows) block(std::integral_constant<int, Rows>{});
  while (row < rows) block(std::integral_constant<int, 1>{});
}

// c (rows, columns) = from (or 0) + a (rows, depth) * b (depth, columns). Lines of b, c and `from`
// are `line` numbers apart, and have room for whole packs.
template <typename Real>
MASK2FORMER_INLINE void multiply(const Matrix<Real>& a, const Real* b, int64_t rows, int64_t depth,
                                 int64_t columns, const Real* from, Real* c, int64_t line) {
  constexpr int lanes = kNativeLanes<Real>;
  constexpr int wide = MASK2FORMER_PACK_BYTES == 64 ? 4 : 2;  // packs that leave registers free
  constexpr int few = MASK2FORMER_PACK_BYTES == 64 ? 8 : 4;
  int64_t column = 0;
  const auto next = [&](auto count, auto block) {
    multiply_columns<block.value, count.value>(a, b + column, rows, depth,
                                               from ? from + column : nullptr, c + column, line);
    column += count.value * lanes;
  };
  using std::integral_constant;
  while (wide == 4 && column + 3 * lanes < columns) {
    next(integral_constant<int, wide>{}, integral_constant<int, 4>{});
  }
  while (column + lanes < columns) {
    next(integral_constant<int, 2>{}, integral_constant<int, few>{});
  }
  while (column < columns) next(integral_constant<int, 1>{}, integral_constant<int, few>{});
}

// ---- softmax --------------------------------------------------------------------------------------

// One number from all of a pack.
template <int Lanes, typename Real, typename Join>
MASK2FORMER_INLINE Real fold(Pack<Real, Lanes> pack, Join join) {
  if constexpr (Lanes == 1) {
    return pack;
  } else {
    Pack<Real, Lanes / 2> halves[2];
    std::memcpy(halves, &pack, sizeof pack);
    return fold<Lanes / 2, Real>(join(halves[0], halves[1]), join);
  }
}

constexpr auto kSum = [](auto a, auto b) { return a + b; };
constexpr auto kLarger = [](auto a, auto b) { return b > a ? b : a; };

// The part of a line that has scores. Beyond it a line is filled up to packs of the widest
// instruction set, where products leave what was there.
template <typename Real>
MASK2FORMER_INLINE int64_t scored(const WindowProblem& problem) {
  constexpr int lanes = kNativeLanes<Real>;
  return (problem.length() + lanes - 1) / lanes * lanes;
}

template <typename Real>
MASK2FORMER_INLINE void softmax(Real* scores, int64_t line) {
  constexpr int lanes = kNativeLanes<Real>;
  Pack<Real, lanes> most = load_pack<lanes>(scores);
  for (int64_t i = lanes; i < line; i += lanes) {
    most = kLarger(most, load_pack<lanes>(scores + i));
  }
  const Real largest = fold<lanes, Real>(most, kLarger);
  Pack<Real, lanes> sum{};
  for (int64_t i = 0; i < line; i += lanes) {
    const auto power = exponential<lanes>(load_pack<lanes>(scores + i) - largest);
    store_pack<lanes>(scores + i, power);
    sum += power;
  }
  const Real scale = 1 / fold<lanes, Real>(sum, kSum);
  for (int64_t i = 0; i < line; i += lanes) {
    store_pack<lanes>(scores + i, load_pack<lanes>(scores + i) * scale);
  }
}

// ---- windows --------------------------------------------------------------------------------------

template <typename Real>
MASK2FORMER_INLINE void load_bias(const WindowProblem& problem, const WindowData<Real>& data,
                                  WindowScratch<Real>& scratch, int64_t head) {
  const int64_t length = problem.length();
  const Real* from = data.bias + head * length * length;
  for (int64_t i = 0; i < length; ++i) {
    Real* to = scratch.bias + i * scratch.line;
    std::memcpy(to, from + i * length, length * sizeof(Real));
    // What fills the line up gets no attention.
    for (int64_t j = length; j < scratch.line; ++j) to[j] = -INFINITY;
  }
}

// Finds the cells of a window. Returns whether some of its places must not look at each other.
template <typename Real>
MASK2FORMER_INLINE bool find_cells(const WindowProblem& problem, const WindowData<Real>& data,
                                   WindowScratch<Real>& scratch, int64_t image, int64_t window_row,
                                   int64_t window_column) {
  const int64_t size = problem.window, shift = problem.shift;
  const int64_t height = problem.whole_height(), width = problem.whole_width();
  const int64_t valid_rows = data.extents[2 * image], valid_columns = data.extents[2 * image + 1];
  const auto whole = [size](int64_t extent) { return (extent + size - 1) / size * size; };
  // Alone, the image would have no places beyond these.
  const int64_t own_rows = whole(valid_rows), own_columns = whole(valid_columns);
  const int64_t top = (problem.first_row + window_row) * size, left = window_column * size;
  const int64_t begin = problem.first_row * size + shift;
  // In memory, rows that came from the other side follow those that did not.
  const int64_t wrapped = std::max<int64_t>(0, problem.height - begin);
  const auto region = [&](int64_t where, int64_t extent) {
    return (where >= extent - size) + (where >= extent - shift);
  };
  bool apart = false;
  for (int64_t i = 0; i < size; ++i) {
    const bool over = top + i + shift >= height;
    const int64_t row = top + i + shift - (over ? height : 0);
    const int64_t first = (image * problem.rows + row + (over ? wrapped : -begin)) * problem.width;
    const int64_t row_region = region(top + i, height) * 3 + (row >= own_rows ? 9 : 0);
    for (int64_t j = 0; j < size; ++j) {
      const int64_t column = left + j + shift - (left + j + shift >= width ? width : 0);
      const int64_t place = i * size + j;
      const int64_t mine = row_region + region(left + j, width) + (column >= own_columns ? 9 : 0);
      scratch.cell[place] = row < problem.height && column < problem.width ? first + column : -1;
      scratch.blank[place] = row >= valid_rows || column >= valid_columns;
      scratch.region[place] = static_cast<Real>(mine);
      apart |= mine >= 9 || scratch.region[place] != scratch.region[0];
    }
  }
  return apart;
}

template <typename Real>
MASK2FORMER_INLINE void scale_row(const Real* from, int64_t count, Real scale, Real* to) {
  constexpr int lanes = kNativeLanes<Real>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store_pack<lanes>(to + i, load_pack<lanes>(from + i) * scale);
  }
  for (; i < count; ++i) to[i] = from[i] * scale;
}

// One part of qkv (0, 1, 2) of a window's places.
template <typename Real>
MASK2FORMER_INLINE void load_rows(const WindowProblem& problem, const WindowScratch<Real>& scratch,
                                  const Real* from, const Real* blank, int64_t stride, Real scale,
                                  Real* to) {
  for (int64_t place = 0; place < problem.length(); ++place, to += scratch.row) {
    const Real* row = scratch.blank[place] ? blank : from + scratch.cell[place] * stride;
    if (!row) {
      std::memset(to, 0, problem.channels * sizeof(Real));
      continue;
    }
    scale_row(row, problem.channels, scale, to);
  }
}

// Four places' four channels, and the other way round.
template <typename Real>
MASK2FORMER_INLINE void turn_block(const Real* from, int64_t row, Real* to, int64_t line) {
  Pack<Real, 4> rows[4];
  for (int i = 0; i < 4; ++i) rows[i] = load_pack<4>(from + i * row);
  const auto first = shuffle<0, 4, 1, 5>(rows[0], rows[1]),
             second = shuffle<0, 4, 1, 5>(rows[2], rows[3]),
             third = shuffle<2, 6, 3, 7>(rows[0], rows[1]),
             fourth = shuffle<2, 6, 3, 7>(rows[2], rows[3]);
  store_pack<4>(to, shuffle<0, 1, 4, 5>(first, second));
  store_pack<4>(to + line, shuffle<2, 3, 6, 7>(first, second));
  store_pack<4>(to + 2 * line, shuffle<0, 1, 4, 5>(third, fourth));
  store_pack<4>(to + 3 * line, shuffle<2, 3, 6, 7>(third, fourth));
}

// (length, row) -> (channels, line)
template <typename Real>
MASK2FORMER_INLINE void turn(const WindowProblem& problem, WindowScratch<Real>& scratch,
                             const Real* from) {
  const int64_t length = problem.length(), channels = problem.channels;
  const int64_t row = scratch.row, line = scratch.line, whole = length / 4 * 4;
  int64_t channel = 0;
  for (; channel + 4 <= channels; channel += 4) {
    Real* to = scratch.turned + channel * line;
    for (int64_t place = 0; place < whole; place += 4) {
      turn_block(from + place * row + channel, row, to + place, line);
    }
    for (int64_t place = whole; place < length; ++place) {
      for (int i = 0; i < 4; ++i) to[i * line + place] = from[place * row + channel + i];
    }
  }
  for (; channel < channels; ++channel) {
    for (int64_t place = 0; place < length; ++place) {
      scratch.turned[channel * line + place] = from[place * row + channel];
    }
  }
}

// Loads a window's query, key and value, and leaves its attention in `scores`.
template <typename Real>
MASK2FORMER_INLINE void attend(const WindowProblem& problem, const WindowData<Real>& data,
                               WindowScratch<Real>& scratch, int64_t head, bool apart) {
  constexpr int lanes = kNativeLanes<Real>;
  const int64_t length = problem.length(), channels = problem.channels;
  const int64_t width = problem.heads * channels, of_head = head * channels;
  const int64_t line = scored<Real>(problem);
  const Real scale = 1 / std::sqrt(static_cast<Real>(channels));
  const auto load = [&](int64_t part, Real factor, Real* to) {
    load_rows(problem, scratch, data.qkv + part * width + of_head,
              data.blank + part * width + of_head, 3 * width, factor, to);
  };
  load(0, scale, scratch.query);
  load(1, Real(1), scratch.key);
  load(2, Real(1), scratch.value);
  turn(problem, scratch, scratch.key);
  multiply({scratch.query, scratch.row, 1}, scratch.turned, length, channels, length, scratch.bias,
           scratch.scores, scratch.line);
  for (int64_t i = 0; i < length; ++i) {
    Real* scores = scratch.scores + i * scratch.line;
    for (int64_t j = 0; apart && j < line; j += lanes) {
      const auto region = load_pack<lanes>(scratch.region.data() + j);
      const auto penalty = Pack<Real, lanes>{} + Real(problem.penalty);
      const auto hidden = (region != scratch.region[i]) | (region >= Real(9));
      store_pack<lanes>(scores + j,
                        load_pack<lanes>(scores + j) + (hidden ? penalty : Pack<Real, lanes>{}));
    }
    softmax(scores, line);
  }
}

// Writes rows of a window's places to their cells: zeros to blank ones, and none where is no cell.
template <typename Real>
MASK2FORMER_INLINE void store_rows(const WindowProblem& problem, const WindowScratch<Real>& scratch,
                                   const Real* from, Real scale, int64_t stride, Real* to) {
  for (int64_t place = 0; place < problem.length(); ++place, from += scratch.row) {
    if (scratch.cell[place] < 0) continue;
    Real* row = to + scratch.cell[place] * stride;
    if (scratch.blank[place]) {
      std::memset(row, 0, problem.channels * sizeof(Real));
    } else {
      scale_row(from, problem.channels, scale, row);
    }
  }
}

template <typename Real>
void window_forward(const WindowProblem& problem, const WindowData<Real>& data,
                    WindowScratch<Real>& scratch, int64_t image, int64_t window_row, int64_t head) {
  const int64_t length = problem.length(), channels = problem.channels;
  load_bias(problem, data, scratch, head);
  for (int64_t column = 0; column < problem.windows_across(); ++column) {
    const bool apart = find_cells(problem, data, scratch, image, window_row, column);
    attend(problem, data, scratch, head, apart);
    multiply<Real>({scratch.scores, scratch.line, 1}, scratch.value, length, length, channels,
                   nullptr, scratch.result, scratch.row);
    store_rows<Real>(problem, scratch, scratch.result, 1, problem.heads * channels,
                     data.output + head * channels);
  }
}

// scores * (grads - the row's mean of grads by scores), the derivative of the softmax.
template <typename Real>
MASK2FORMER_INLINE void differentiate_softmax(const Real* scores, Real* grads, Real* grad_bias,
                                              int64_t line) {
  constexpr int lanes = kNativeLanes<Real>;
  Pack<Real, lanes> sum{};
  for (int64_t i = 0; i < line; i += lanes) {
    sum += load_pack<lanes>(scores + i) * load_pack<lanes>(grads + i);
  }
  const Real mean = fold<lanes, Real>(sum, kSum);
  for (int64_t i = 0; i < line; i += lanes) {
    const auto grad = load_pack<lanes>(scores + i) * (load_pack<lanes>(grads + i) - mean);
    store_pack<lanes>(grads + i, grad);
    store_pack<lanes>(grad_bias + i, load_pack<lanes>(grad_bias + i) + grad);
  }
}

template <typename Real>
void window_backward(const WindowProblem& problem, const WindowData<Real>& data,
                     WindowScratch<Real>& scratch, int64_t image, int64_t window_row,
                     int64_t head) {
  const int64_t length = problem.length(), channels = problem.channels, line = scratch.line;
  const int64_t width = problem.heads * channels, of_head = head * channels;
  const int64_t row = image * problem.window_rows + window_row;
  const Real scale = 1 / std::sqrt(static_cast<Real>(channels));
  load_bias(problem, data, scratch, head);
  std::memset(scratch.grad_bias, 0, length * line * sizeof(Real));
  Real* grad_blank = data.grad_blank + row * 3 * width + of_head;
  for (int part = 0; part < 3; ++part) {
    std::memset(grad_blank + part * width, 0, channels * sizeof(Real));
  }
  const auto store = [&](int64_t part, Real factor) {
    store_rows(problem, scratch, scratch.result, factor, 3 * width,
               data.grad_qkv + part * width + of_head);
    for (int64_t place = 0; place < length; ++place) {
      if (!scratch.blank[place]) continue;
      for (int64_t channel = 0; channel < channels; ++channel) {
        grad_blank[part * width + channel] +=
            factor * scratch.result[place * scratch.row + channel];
      }
    }
  };
  for (int64_t column = 0; column < problem.windows_across(); ++column) {
    const bool apart = find_cells(problem, data, scratch, image, window_row, column);
    attend(problem, data, scratch, head, apart);
    const Matrix<Real> scores{scratch.scores, line, 1}, turned_scores{scratch.scores, 1, line};
    const Matrix<Real> grads{scratch.grads, line, 1}, turned_grads{scratch.grads, 1, line};
    multiply<Real>(scores, scratch.value, length, length, channels, nullptr, scratch.result,
                   scratch.row);
    store_rows<Real>(problem, scratch, scratch.result, 1, width, data.output + of_head);
    load_rows<Real>(problem, scratch, data.grad_output + of_head, nullptr, width, 1, scratch.grad);
    turn(problem, scratch, scratch.value);
    multiply<Real>({scratch.grad, scratch.row, 1}, scratch.turned, length, channels, length,
                   nullptr, scratch.grads, line);
    for (int64_t i = 0; i < length; ++i) {
      differentiate_softmax(scratch.scores + i * line, scratch.grads + i * line,
                            scratch.grad_bias + i * line, scored<Real>(problem));
    }
    multiply<Real>(grads, scratch.key, length, length, channels, nullptr, scratch.result,
                   scratch.row);
    store(0, scale);
    multiply<Real>(turned_grads, scratch.query, length, length, channels, nullptr, scratch.result,
                   scratch.row);
    store(1, 1);
    multiply<Real>(turned_scores, scratch.grad, length, length, channels, nullptr, scratch.result,
                   scratch.row);
    store(2, 1);
  }
  Real* grad_bias = data.grad_bias + (row * problem.heads + head) * length * length;
  for (int64_t i = 0; i < length; ++i) {
    std::memcpy(grad_bias + i * length, scratch.grad_bias + i * line, length * sizeof(Real));
  }
}

template <typename Real>
WindowKernels<Real> window_kernels() {
  return {&window_forward<Real>, &window_backward<Real>};
}

template WindowKernels<double> window_kernels();
template WindowKernels<float> window_kernels();

}  // namespace mask2former::MASK2FORMER_SET
