// Built-in functions of device code: barriers, warp operations, bit and float intrinsics.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "conversions.h"
#include "scheduler.h"

// --- barriers -------------------------------------------------------------------------------------------------------

inline void __syncthreads(SIMT_HERE) { simt::barrier(0, where); }
inline int __syncthreads_count(int predicate, SIMT_HERE) { return simt::barrier(predicate, where).count; }
inline int __syncthreads_or(int predicate, SIMT_HERE) { return simt::barrier(predicate, where).any; }
inline int __syncthreads_and(int predicate, SIMT_HERE) { return simt::barrier(predicate, where).all; }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace simt {

inline void meet(void* const (&)[kLanes], unsigned) {}

template <class T>
struct Shuffle {
  T mine, result;
  int from;  // lane, or -1: its own value
};

template <class T>
void shuffle_all(void* const (&records)[kLanes], unsigned) {
  for (void* record : records) {
    if (record == nullptr) continue;
    auto& to = *static_cast<Shuffle<T>*>(record);
    if (to.from < 0) {
      to.result = to.mine;
    } else if (records[to.from] != nullptr) {
      to.result = static_cast<Shuffle<T>*>(records[to.from])->mine;
    } else {
      poison(&to.result, sizeof to.result);  // undefined: the lane read from is outside the mask
    }
  }
}

template <class T>
T shuffle(unsigned mask, T value, int from, const char* what, const Where& where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles move 4 or 8 bytes");
  Shuffle<T> record{value, value, from};
  together(mask, what, &record, shuffle_all<T>, where);
  return record.result;
}

inline int shuffle_width(int width, const Where& where) {
  if (width < 1 || width > kLanes || (width & (width - 1)) != 0) fault(where, "a shuffle over %d lanes", width);
  return width;
}

struct Vote {
  bool mine;
  unsigned ballot;
};

inline void vote_all(void* const (&records)[kLanes], unsigned) {
  unsigned ballot = 0;
  for (int i = 0; i < kLanes; ++i) {
    if (records[i] != nullptr && static_cast<Vote*>(records[i])->mine) ballot |= 1u << i;
  }
  for (void* record : records) {
    if (record != nullptr) static_cast<Vote*>(record)->ballot = ballot;
  }
}

inline unsigned vote(unsigned mask, bool mine, const char* what, const Where& where) {
  Vote record{mine, 0};
  together(mask, what, &record, vote_all, where);
  return record.ballot;
}

}  // namespace simt

// --- warp operations ------------------------------------------------------------------------------------------------

inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_HERE) {
  int nothing = 0;
  simt::together(mask, "__syncwarp", &nothing, simt::meet, where);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = warpSize, SIMT_HERE) {
  const int base = simt::lane() / simt::shuffle_width(width, where) * width;
  return simt::shuffle(mask, value, base + (from & (width - 1)), "__shfl_sync", where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, SIMT_HERE) {
  const int in = simt::lane() % simt::shuffle_width(width, where), from = in + static_cast<int>(delta);
  return simt::shuffle(mask, value, from < width ? simt::lane() - in + from : -1, "__shfl_down_sync", where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, SIMT_HERE) {
  const int in = simt::lane() % simt::shuffle_width(width, where), from = in - static_cast<int>(delta);
  return simt::shuffle(mask, value, from >= 0 ? simt::lane() - in + from : -1, "__shfl_up_sync", where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, SIMT_HERE) {
  const int in = simt::lane() % simt::shuffle_width(width, where), from = in ^ lanes;
  return simt::shuffle(mask, value, from < width ? simt::lane() - in + from : -1, "__shfl_xor_sync", where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
  return simt::vote(mask, predicate != 0, "__ballot_sync", where);
}
inline int __any_sync(unsigned mask, int predicate, SIMT_HERE) {
  return simt::vote(mask, predicate != 0, "__any_sync", where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_HERE) {
  return simt::vote(mask, predicate != 0, "__all_sync", where) == mask;
}

// Atomics on integers alone: those on floats would make results depend on the order of threads.
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = static_cast<T>(before + value);
  return before;
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T atomicOr(T* address, T value) {
  const T before = *address;
  *address = before | value;
  return before;
}

// --- bits and numbers -----------------------------------------------------------------------------------------------

inline float __uint_as_float(uint32_t bits) { return simt::bits_to_float(bits); }
inline uint32_t __float_as_uint(float value) { return simt::float_to_bits(value); }
inline float __int_as_float(int bits) { return simt::bits_to_float(static_cast<uint32_t>(bits)); }
inline int __float_as_int(float value) { return static_cast<int>(simt::float_to_bits(value)); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }

template <class T>
T __ldg(const T* address) { return *address; }

template <class T>
constexpr T min(T a, T b) { return b < a ? b : a; }
template <class T>
constexpr T max(T a, T b) { return a < b ? b : a; }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
