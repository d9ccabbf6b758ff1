// One element of each dtype: load widens to the accumulation type, store rounds to nearest even.
//
// Written without branches so that loops over them vectorise at any register width. Included by kernels.cpp only,
// which is compiled once per instruction set: everything sits in an anonymous namespace and uses no standard library
// template, so no function compiled for a newer CPU can be linked into an older path.
#pragma once

#include <cstdint>

#define GS_FLAT __attribute__((always_inline))
#define GS_INLINE inline GS_FLAT

namespace {

template <class To, class From>
GS_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

struct F32 {
  using Storage = float;
  using Acc = float;
  static GS_INLINE Acc load(Storage x) { return x; }
  static GS_INLINE Storage store(Acc x) { return x; }
};

struct F64 {
  using Storage = double;
  using Acc = double;
  static GS_INLINE Acc load(Storage x) { return x; }
  static GS_INLINE Storage store(Acc x) { return x; }
};

struct BF16 {
  using Storage = uint16_t;
  using Acc = float;
  static GS_INLINE Acc load(Storage x) { return bits_as<float>(static_cast<int32_t>(x) << 16); }
  static GS_INLINE Storage store(Acc x) {
    const int32_t bits = bits_as<int32_t>(x);
    const int32_t high = (bits >> 16) & 0xffff;
    const int32_t rounded = static_cast<int32_t>(static_cast<uint32_t>(bits) + 0x7fffu + (high & 1)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? high | 0x40 : rounded);  // a NaN stays quiet
  }
};

struct F16 {
  using Storage = uint16_t;
  using Acc = float;
  static GS_INLINE Acc load(Storage x) {
    const int32_t magnitude = x & 0x7fff, shifted = magnitude << 13;
    // Subnormal halves are magnitude * 2^-24 exactly; others keep their fraction and move the exponent's bias.
    const int32_t small = bits_as<int32_t>(static_cast<float>(magnitude) * 0x1p-24f);
    int32_t bits = magnitude < 0x400 ? small : shifted + 0x38000000;
    bits = magnitude >= 0x7c00 ? shifted | 0x7f800000 : bits;
    return bits_as<float>(bits | (static_cast<int32_t>(x & 0x8000) << 16));
  }
  static GS_INLINE Storage store(Acc x) {
    const int32_t all = bits_as<int32_t>(x), magnitude = all & 0x7fffffff;
    const int32_t rounded = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // Below 2^-14 one half step is 2^-24, which is the spacing of floats at 0.5: that addition rounds for us.
    const int32_t small = bits_as<int32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000;
    int32_t bits = magnitude < 0x38800000 ? small : rounded;
    bits = magnitude >= 0x477ff000 ? 0x7c00 : bits;  // 65520 and above round to infinity
    bits = magnitude > 0x7f800000 ? 0x7e00 : bits;
    return static_cast<uint16_t>(bits | ((all >> 16) & 0x8000));
  }
};

// tanh|x| = m / (m + 2) with m = exp(2|x|) - 1 = 2^k (exp(r) - 1) + (2^k - 1), r = 2|x| - k ln 2 in [-0.35, 0.35].
// exp(r) - 1 is its Taylor polynomial of degree 8 (remainder below 2^-27 of r). Past |x| = 10 the result is 1.
GS_INLINE float tanh_of(float x) {
  const int32_t sign = bits_as<int32_t>(x) & INT32_MIN;
  const float magnitude = bits_as<float>(bits_as<int32_t>(x) & INT32_MAX);
  const float a = magnitude > 10.0f ? 10.0f : magnitude;  // a NaN passes through
  const float twice = a + a;
  const float shifted = twice * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the addition rounds to an integer
  const float k = shifted - 12582912.0f;
  const float r = (twice - k * 0.693359375f) + k * 2.12194440e-4f;  // ln 2 in two parts; k * 0.693359375 is exact
  float p = r * (1.0f / 40320) + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  const float scale = bits_as<float>((bits_as<uint32_t>(shifted) << 23) + 0x3f800000u);
  const float m = scale * p + (scale - 1.0f);
  return bits_as<float>(bits_as<int32_t>(m / (m + 2.0f)) | sign);
}
GS_INLINE double tanh_of(double x) { return __builtin_tanh(x); }

}  // namespace
