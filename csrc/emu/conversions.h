// 16-bit floats and tf32 by plain arithmetic, as the conversion instructions of sm_80 define them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace simt {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float widen_bf16(uint16_t bits) { return bits_to_float(static_cast<uint32_t>(bits) << 16); }

// To nearest, ties to even; any NaN becomes 0x7fff.
inline uint16_t narrow_bf16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = float_to_bits(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float widen_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 31) return bits_to_float(fraction ? 0x7fffffff : sign | 0x7f800000);
  if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * static_cast<float>(fraction);
  return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
}

inline uint16_t narrow_f16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude >= 65520) return sign | 0x7c00;
  if (magnitude < 0x1p-14) return sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24));
  int exponent;
  const double fraction = std::frexp(magnitude, &exponent);  // in [0.5, 1)
  const auto steps = static_cast<int>(std::nearbyint(fraction * 2048));  // 2048 carries into the exponent by itself
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) + steps - 1024);
}

// To 10 bits of fraction, ties away from zero.
inline uint32_t narrow_tf32(float value) {
  const uint32_t bits = float_to_bits(value);
  if (std::isnan(value)) return 0x7fffffff;
  if (std::isinf(value)) return bits;
  return (bits + 0x1000) & 0xffffe000u;
}

}  // namespace simt
