// Sixteen elements at a time, whatever the registers are: vectors of the accumulation type A, and the way between it and
// 16-bit storage. Like number.h: for files compiled once per instruction set, in an anonymous namespace.
#pragma once

#include "ganscale/api.h"
#include "number.h"

#define GS_APART __attribute__((noinline))

namespace {

constexpr int kLane = 16;

#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

// One register of numbers. Wider vectors than the registers are not left to the compiler, which splits them badly.
template <class A>
struct Register;
template <>
struct Register<float> {
  typedef float V __attribute__((vector_size(kRegister)));
};
template <>
struct Register<double> {
  typedef double V __attribute__((vector_size(kRegister)));
};

template <class A>
struct Vec {
  using V = typename Register<A>::V;
  static constexpr int parts = kLane * static_cast<int>(sizeof(A)) / kRegister;
  V part[parts];
};

template <class A>
GS_INLINE Vec<A> all16(A value) {
  Vec<A> out;
  for (int i = 0; i < Vec<A>::parts; ++i) out.part[i] = value - typename Vec<A>::V{};  // -0.0 stays
  return out;
}

#define GS_EACH_PART(sign)                                                                   \
  template <class A>                                                                         \
  GS_INLINE Vec<A> operator sign(Vec<A> a, Vec<A> b) {                                       \
    for (int i = 0; i < Vec<A>::parts; ++i) a.part[i] = a.part[i] sign b.part[i];            \
    return a;                                                                                \
  }                                                                                          \
  template <class A>                                                                         \
  GS_INLINE Vec<A> operator sign(Vec<A> a, A b) {                                            \
    for (int i = 0; i < Vec<A>::parts; ++i) a.part[i] = a.part[i] sign b;                    \
    return a;                                                                                \
  }
GS_EACH_PART(+)
GS_EACH_PART(-)
GS_EACH_PART(*)
#undef GS_EACH_PART

template <class A>
GS_INLINE void operator+=(Vec<A>& a, Vec<A> b) {
  a = a + b;
}

// a where z > 0, else b; a NaN of z takes b.
template <class A>
GS_INLINE Vec<A> where_positive(Vec<A> z, Vec<A> a, Vec<A> b) {
  const typename Vec<A>::V zero = {};
  for (int i = 0; i < Vec<A>::parts; ++i) a.part[i] = z.part[i] > zero ? a.part[i] : b.part[i];
  return a;
}

// 0 where z <= 0, else z; a NaN stays a NaN.
template <class A>
GS_INLINE Vec<A> positive_part(Vec<A> z) {
  const typename Vec<A>::V zero = {};
  for (int i = 0; i < Vec<A>::parts; ++i) z.part[i] = z.part[i] <= zero ? zero : z.part[i];
  return z;
}

GS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class A>
GS_INLINE Vec<A> read16(const A* p) {
  Vec<A> v;
  for (int i = 0; i < Vec<A>::parts; ++i) __builtin_memcpy(&v.part[i], p + i * (kLane / Vec<A>::parts), kRegister);
  return v;
}

template <class A>
GS_INLINE void write16(A* p, Vec<A> v) {
  for (int i = 0; i < Vec<A>::parts; ++i) __builtin_memcpy(p + i * (kLane / Vec<A>::parts), &v.part[i], kRegister);
}

// Kept out of line: tails are rare, and inlined they would be most of the code.
template <class A>
GS_APART const A* padded(const A* p, int64_t count, A fill, A* buffer) {
  for (int lane = 0; lane < kLane; ++lane) buffer[lane] = lane < count ? p[lane] : fill;
  return buffer;
}

template <class A>
GS_APART void copy_some(const A* from, int64_t count, A* to) {
  for (int64_t lane = 0; lane < count; ++lane) to[lane] = from[lane];
}

// The first `count` <= 16 elements; the other lanes hold `fill`.
template <class A>
GS_INLINE Vec<A> read_some(const A* p, int64_t count, A fill = 0) {
  A buffer[kLane];
  return read16<A>(count >= kLane ? p : padded<A>(p, count, fill, buffer));
}

// Calls f(start, lanes) for sixteen elements at a time and then for the rest: the sixteen as a constant, so that the
// copy of f that does nearly all the work asks nothing.
template <class F>
GS_INLINE void by_lanes(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kLane <= count; i += kLane) f(i, kLane);
  if (i < count) f(i, count - i);
}

template <class A>
GS_INLINE void write_some(A* p, int64_t count, Vec<A> v) {
  if (count >= kLane) return write16<A>(p, v);
  A buffer[kLane];
  write16<A>(buffer, v);
  copy_some<A>(buffer, count, p);
}

// Halves are added on one another, so the order does not depend on the registers.
template <class A>
GS_APART double total_of(A* lanes) {
  for (int half = kLane / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

template <class A>
GS_INLINE double total16(Vec<A> v) {
  A lanes[kLane];
  write16<A>(lanes, v);
  return total_of<A>(lanes);
}

// act(z) and gy * act'(z), sixteen at a time.
template <class A>
GS_APART void tanh_in_place(A* lanes) {
  for (int lane = 0; lane < kLane; ++lane) lanes[lane] = tanh_of(lanes[lane]);
}

template <class A>
GS_INLINE Vec<A> tanh16(Vec<A> v) {
  A lanes[kLane];
  write16<A>(lanes, v);
  tanh_in_place<A>(lanes);
  return read16<A>(lanes);
}

// `fixed` is the activation where the code was compiled for one, else kAny, and `activation` says which it is.
constexpr int kAny = -1;

template <int fixed, class A>
GS_INLINE Vec<A> activate16(Vec<A> z, A slope, int activation) {
  const int kind = fixed == kAny ? activation : fixed;
  if (kind == ganscale::kRelu) return positive_part<A>(z);
  if (kind == ganscale::kLeakyRelu) return where_positive<A>(z, z, z * slope);
  if (kind == ganscale::kTanh) return tanh16<A>(z);
  return z;
}

template <int fixed, class A>
GS_INLINE Vec<A> derived16(Vec<A> gy, Vec<A> z, A slope, int activation) {
  const int kind = fixed == kAny ? activation : fixed;
  if (kind == ganscale::kRelu) return where_positive<A>(z, gy, all16<A>(0));
  if (kind == ganscale::kLeakyRelu) return where_positive<A>(z, gy, gy * slope);
  if (kind == ganscale::kTanh) {
    const Vec<A> t = tanh16<A>(z);
    return gy * (all16<A>(1) - t * t);
  }
  return gy;
}

template <int k>
struct Kind {
  static constexpr int value = k;
};

// With the address sanitizer all loops choose as they run: checked, a dozen copies of them would compile for minutes.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kOneCopy = true;
#else
constexpr bool kOneCopy = false;
#endif

// Calls f with the activation as a type, so that float's loops are compiled for one each; double's choose as they run.
template <class A, class F>
GS_INLINE void with_activation(int activation, F f) {
  if constexpr (kOneCopy || sizeof(A) == sizeof(double)) return f(Kind<kAny>{});
  else switch (activation) {
    case ganscale::kRelu: return f(Kind<ganscale::kRelu>{});
    case ganscale::kLeakyRelu: return f(Kind<ganscale::kLeakyRelu>{});
    case ganscale::kTanh: return f(Kind<ganscale::kTanh>{});
    default: return f(Kind<ganscale::kLinear>{});
  }
}

// Between storage and the accumulation type. These loops vectorise by themselves; kept out of line so that the kernels
// proper exist once for float and once for double.
template <class T>
GS_APART void widen(const typename T::Storage* from, int64_t count, typename T::Acc* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = T::load(from[i]);
}

template <class T>
GS_APART void narrow(const typename T::Acc* from, int64_t count, typename T::Storage* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = T::store(from[i]);
}

template <class T>
constexpr bool kStoredWide = sizeof(typename T::Storage) == sizeof(typename T::Acc);

// Sixteen elements as they are stored: wide ones, and bfloat16, which is the upper half of a float.
typedef uint32_t Bits32 __attribute__((vector_size(kRegister)));
typedef uint16_t Bits16 __attribute__((vector_size(kRegister / 2)));

GS_INLINE Vec<float> load16(BF16, const uint16_t* p) {
  constexpr int each = kRegister / 4;
  Vec<float> v;
  for (int i = 0; i < Vec<float>::parts; ++i) {
    Bits16 stored;
    __builtin_memcpy(&stored, p + i * each, sizeof stored);
    v.part[i] = bits_as<typename Register<float>::V>(__builtin_convertvector(stored, Bits32) << 16);
  }
  return v;
}

// As BF16::store.
GS_INLINE void store16(BF16, uint16_t* p, Vec<float> v) {
  constexpr int each = kRegister / 4;
  for (int i = 0; i < Vec<float>::parts; ++i) {
    const Bits32 bits = bits_as<Bits32>(v.part[i]), high = bits >> 16;
    const Bits32 rounded = (bits + 0x7fff + (high & 1)) >> 16;
    const Bits32 value = v.part[i] != v.part[i] ? high | 0x40 : rounded;  // a NaN stays quiet
    const Bits16 stored = __builtin_convertvector(value, Bits16);
    __builtin_memcpy(p + i * each, &stored, sizeof stored);
  }
}

template <class T>
GS_INLINE Vec<typename T::Acc> load_some(const typename T::Storage* p, int64_t count, typename T::Acc fill = 0) {
  using A = typename T::Acc;
  if constexpr (kStoredWide<T>) {
    return read_some<A>(p, count, fill);
  } else {
    if (count >= kLane) return load16(T{}, p);
    A buffer[kLane];
    widen<T>(p, count, buffer);
    return read_some<A>(buffer, count, fill);
  }
}

template <class T>
GS_INLINE void store_some(typename T::Storage* p, int64_t count, Vec<typename T::Acc> v) {
  using A = typename T::Acc;
  if constexpr (kStoredWide<T>) {
    write_some<A>(p, count, v);
  } else {
    if (count >= kLane) return store16(T{}, p, v);
    A buffer[kLane];
    write16<A>(buffer, v);
    narrow<T>(buffer, count, p);
  }
}

}  // namespace
