// The exponential function, for packs. Compiled once for each instruction set: see kernels.h.

namespace mask2former::MASK2FORMER_SET {

// For numbers that are not positive; what is too small for a normal number becomes 0. As in Cephes'
// expf: a power of two times a polynomial.
template <int Lanes>
MASK2FORMER_INLINE Pack<float, Lanes> exponential(Pack<float, Lanes> x) {
  if constexpr (Lanes == 1) {
    return x < -87.0f ? 0.0f : std::exp(x);
  } else {
    using Floats = Pack<float, Lanes>;
    using Integers = Pack<int32_t, Lanes>;
    const auto gone = x < -87.0f;
    x = gone ? Floats{} : x;
    // Adding so much rounds to an integer, which is in the low bits then.
    const Floats shifted = x * 1.44269504088896341f + 12582912.0f;
    const Integers power = reinterpret_cast<Integers>(shifted) - 0x4b400000;
    const Floats whole = shifted - 12582912.0f;
    const Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const Floats scaled = reinterpret_cast<Floats>(reinterpret_cast<Integers>(sum) + (power << 23));
    return gone ? Floats{} : x == x ? scaled : x;
  }
}

template <int Lanes>
MASK2FORMER_INLINE Pack<double, Lanes> exponential(Pack<double, Lanes> x) {
  if constexpr (Lanes == 1) {
    return std::exp(x);
  } else {
    for (int lane = 0; lane < Lanes; ++lane) x[lane] = std::exp(x[lane]);
    return x;
  }
}

}  // namespace mask2former::MASK2FORMER_SET
