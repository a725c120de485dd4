// Numbers as tensors store them, and strided views of them.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#if defined(__GNUC__)
#define DIFFCROP_INLINE inline __attribute__((always_inline))
#else
#define DIFFCROP_INLINE inline
#endif

// A lambda belongs to the instruction set of the function that it is inlined into, not to that of its file.
#if defined(__GNUC__)
#define DIFFCROP_ALWAYS __attribute__((always_inline))
#else
#define DIFFCROP_ALWAYS
#endif

// Vectors as a type of the compiler's own.
#if defined(__has_builtin)
#define DIFFCROP_VECTORS __has_builtin(__builtin_shufflevector)
#else
#define DIFFCROP_VECTORS 0
#endif

namespace diffcrop {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// What sums of T are kept in.
template <class T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;
// Interpolated integers give float32.
template <class T>
using ResultOf = std::conditional_t<std::is_integral_v<T>, float, T>;

template <class A, class T>
DIFFCROP_INLINE A load(T value) {
  return static_cast<A>(value);
}
template <class A>
DIFFCROP_INLINE A load(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}
template <class A>
DIFFCROP_INLINE A load(Half value) {
  // The exponent is moved to its place and re-biased by a product, which also makes subnormals normal.
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  bits |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinities and NaNs keep an exponent of ones
  return std::bit_cast<float>(bits | ((value.bits & 0x8000u) << 16));
}

// Round to nearest, ties to even.
template <class T, class A>
DIFFCROP_INLINE T store(A value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(value));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
  } else if constexpr (std::is_same_v<T, Half>) {
    const uint32_t all = std::bit_cast<uint32_t>(static_cast<float>(value));
    const uint32_t sign = all & 0x80000000u, bits = all ^ sign;
    // Below 2^-14 the result is subnormal: adding 1/2 ulp of the smallest normal lets the adder do the rounding.
    const uint32_t magic = 126u << 23;
    const uint32_t tiny = std::bit_cast<uint32_t>(std::bit_cast<float>(bits) + std::bit_cast<float>(magic)) - magic;
    const uint32_t normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    const uint32_t huge = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t magnitude = bits >= (143u << 23) ? huge : bits < (113u << 23) ? tiny : normal;
    return {static_cast<uint16_t>(magnitude | (sign >> 16))};
  } else {
    return static_cast<T>(value);
  }
}

// A strided array (channels, rows, columns) of one image, one crop or one gradient; or (planes, rows, columns) of one
// channel of a volume, or of those side by side: planes are `more` than a channel apart.
template <class T>
struct View {
  T* data;
  int64_t channel, row, column;
  int64_t more = 0;
  T* at(int64_t c, int64_t i) const { return data + c * (channel + more) + i * row; }
};

// A strided array (channels, planes, rows, columns).
template <class T>
struct Solid {
  T* data;
  int64_t channel, plane, row, column;
  T* at(int64_t c, int64_t k, int64_t i) const { return data + c * channel + k * plane + i * row; }
  // The planes of channel c, or of those that are side by side with it.
  View<T> planes(int64_t c) const { return {data + c * channel, channel, row, column, plane - channel}; }
};

// Whether a row of m channels to a pixel is without gaps.
template <class T>
bool is_dense(const View<T>& view, int64_t m) {
  return view.column == m && (m == 1 || view.channel == 1);
}

}  // namespace diffcrop
