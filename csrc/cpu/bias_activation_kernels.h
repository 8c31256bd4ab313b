// The loops of an activation after a bias, compiled once for each instruction set: see kernels.h.

namespace mask2former::MASK2FORMER_SET {

template <typename Real, int Lanes>
struct Activated {
  Pack<Real, Lanes> value, slope;
};

// x times the normal distribution's cumulative probability. Its tail is exp(-x^2 / 2) times a
// polynomial in 1 / (1 + 0.3 |x| / sqrt(2)), fitted to erfcx within 2e-8 of it.
template <int Lanes>
MASK2FORMER_INLINE Activated<float, Lanes> gelu(Pack<float, Lanes> x) {
  using Floats = Pack<float, Lanes>;
  const Floats size = x < 0 ? -x : x;
  const Floats t = 1.0f / (1.0f + 0.3f * 0.70710678118654752f * size);
  const Floats power = exponential<Lanes>(-0.5f * x * x);
  Floats sum = -0.1295300309f * t + 0.4855967142f;
  sum = sum * t - 0.5123449342f;
  sum = sum * t + 0.5477937279f;
  sum = sum * t - 0.09469967208f;
  sum = sum * t + 0.214946033f;
  sum = sum * t + 0.1483343001f;
  sum = sum * t + 0.1707158723f;
  sum = sum * t + 0.1691879698f;
  const Floats tail = 0.5f * sum * t * power;
  const Floats probability = x < 0 ? tail : 1.0f - tail;
  return {x * probability, probability + x * power * 0.39894228040143268f};
}

template <int Lanes>
MASK2FORMER_INLINE Activated<double, Lanes> gelu(Pack<double, Lanes> x) {
  Activated<double, Lanes> result;
  const auto one = [](double x, double& value, double& slope) {
    const double probability = 0.5 * std::erfc(-x * 0.70710678118654752440);
    value = x * probability;
    slope = probability + x * std::exp(-0.5 * x * x) * 0.39894228040143267794;
  };
  if constexpr (Lanes == 1) {
    one(x, result.value, result.slope);
  } else {
    for (int lane = 0; lane < Lanes; ++lane) {
      double value, slope;
      one(x[lane], value, slope);
      result.value[lane] = value;
      result.slope[lane] = slope;
    }
  }
  return result;
}

template <int Lanes, bool Backward, Activation Kind, typename Real>
MASK2FORMER_INLINE void activate_pack(Real* x, Real* grad, const Real* bias, Real* sums) {
  const auto before = load_pack<Lanes>(x) + load_pack<Lanes>(bias);
  const auto grads = Backward ? load_pack<Lanes>(grad) : Pack<Real, Lanes>{};
  Pack<Real, Lanes> after, product;
  if constexpr (Kind == Activation::kRelu) {
    after = before < 0 ? Pack<Real, Lanes>{} : before;  // NaN stays NaN
    product = before <= 0 ? Pack<Real, Lanes>{} : grads;
  } else {
    const auto [value, slope] = gelu<Lanes>(before);
    after = value;
    product = grads * slope;
  }
  store_pack<Lanes>(x, after);
  if constexpr (Backward) {
    store_pack<Lanes>(grad, product);
    store_pack<Lanes>(sums, load_pack<Lanes>(sums) + product);
  }
}

template <bool Backward, Activation Kind, typename Real>
MASK2FORMER_INLINE void activate_rows(Real* x, Real* grad, const Real* bias, int64_t rows,
                                      int64_t columns, Real* sums) {
  constexpr int lanes = kNativeLanes<Real>;
  if (Backward) std::memset(sums, 0, columns * sizeof(Real));
  for (int64_t row = 0; row < rows; ++row, x += columns, grad += Backward ? columns : 0) {
    int64_t i = 0;
    for (; i + lanes <= columns; i += lanes) {
      activate_pack<lanes, Backward, Kind>(x + i, grad + i, bias + i, sums + i);
    }
    for (; i < columns; ++i) {
      activate_pack<1, Backward, Kind>(x + i, grad + i, bias + i, sums + i);
    }
  }
}

template <bool Backward, typename Real>
MASK2FORMER_INLINE void activate_any(Real* x, Real* grad, const Real* bias, int64_t rows,
                                     int64_t columns, Activation kind, Real* sums) {
  if (kind == Activation::kRelu) {
    activate_rows<Backward, Activation::kRelu>(x, grad, bias, rows, columns, sums);
  } else {
    activate_rows<Backward, Activation::kGelu>(x, grad, bias, rows, columns, sums);
  }
}

template <typename Real>
void activate(Real* x, const Real* bias, int64_t rows, int64_t columns, Activation kind) {
  activate_any<false, Real>(x, nullptr, bias, rows, columns, kind, nullptr);
}

template <typename Real>
void activate_backward(Real* x, Real* grad, const Real* bias, int64_t rows, int64_t columns,
                       Activation kind, Real* sums) {
  activate_any<true, Real>(x, grad, bias, rows, columns, kind, sums);
}

template <typename Real>
ActivationKernels<Real> activation_kernels() {
  return {&activate<Real>, &activate_backward<Real>};
}

template ActivationKernels<double> activation_kernels();
template ActivationKernels<float> activation_kernels();

}  // namespace mask2former::MASK2FORMER_SET
