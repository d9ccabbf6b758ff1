// Serial CPU kernels, compiled once per instruction set (GS_ISA names it). Bound: memory bandwidth, tanh excepted.
// Who owns what: a call writes exactly the `count` outputs it is given; threads are the caller's business.
// Determinism: every sum has a fixed order that depends on the sizes alone, neither on threads nor on registers.
#include "kernels.h"

#include "ganscale/api.h"
#include "number.h"

namespace {

using namespace ganscale;

constexpr int kLanes = 32;        // partial sums side by side
constexpr int64_t kBlock = 4096;  // elements summed in the accumulation type before they join a double

// --- elementwise frames ---------------------------------------------------------------------------------------------

template <class T, class F>
GS_INLINE void map1(const void* x_, void* y_, int64_t count, F f) {
  auto* __restrict x = static_cast<const typename T::Storage*>(x_);
  auto* __restrict y = static_cast<typename T::Storage*>(y_);
  for (int64_t i = 0; i < count; ++i) y[i] = T::store(f(T::load(x[i])));
}

template <class T, class F>
GS_INLINE void map2(const void* a_, const void* b_, void* y_, int64_t count, F f) {
  auto* __restrict a = static_cast<const typename T::Storage*>(a_);
  auto* __restrict b = static_cast<const typename T::Storage*>(b_);
  auto* __restrict y = static_cast<typename T::Storage*>(y_);
  for (int64_t i = 0; i < count; ++i) y[i] = T::store(f(T::load(a[i]), T::load(b[i])));
}

template <class T>
void interpolate_one(const void* real, const void* fake, void* out, int64_t count, double eps) {
  using A = typename T::Acc;
  const A share = static_cast<A>(eps), rest = A(1) - share;
  map2<T>(real, fake, out, count, [=](A r, A f) GS_FLAT { return share * r + rest * f; });
}

// --- sums -----------------------------------------------------------------------------------------------------------

template <class T, class F>
GS_INLINE double reduce(const void* x_, int64_t count, F f) {
  using A = typename T::Acc;
  auto* x = static_cast<const typename T::Storage*>(x_);
  double total = 0;
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t end = start + kBlock < count ? start + kBlock : count;
    A lanes[kLanes] = {};
    int64_t i = start;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += f(T::load(x[i + lane]));
    }
    for (int lane = 0; i + lane < end; ++lane) lanes[lane] += f(T::load(x[i + lane]));
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    total += lanes[0];
  }
  return total;
}

template <class T>
void sum_squares_one(const void* x, int64_t count, double* total) {
  using A = typename T::Acc;
  *total = reduce<T>(x, count, [](A v) GS_FLAT { return v * v; });
}

template <class T>
void sum_one(const void* x, int64_t count, double* total) {
  using A = typename T::Acc;
  *total = reduce<T>(x, count, [](A v) GS_FLAT { return v; });
}

template <class T>
void column_sums_one(const void* x_, int64_t rows, int64_t columns, double* totals) {
  using A = typename T::Acc;
  constexpr int64_t kRows = 256;
  auto* x = static_cast<const typename T::Storage*>(x_);
  for (int64_t first = 0; first < columns; first += kLanes) {
    const int64_t live = columns - first < kLanes ? columns - first : kLanes;
    for (int64_t start = 0; start < rows; start += kRows) {
      const int64_t end = start + kRows < rows ? start + kRows : rows;
      A lanes[kLanes] = {};
      if (live == kLanes) {
        for (int64_t row = start; row < end; ++row) {
          for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += T::load(x[row * columns + first + lane]);
        }
      } else {
        for (int64_t row = start; row < end; ++row) {
          for (int64_t lane = 0; lane < live; ++lane) lanes[lane] += T::load(x[row * columns + first + lane]);
        }
      }
      for (int64_t lane = 0; lane < live; ++lane) totals[first + lane] += lanes[lane];
    }
  }
}

// --- activations ----------------------------------------------------------------------------------------------------

template <int kind, class A>
GS_INLINE A activate(A z, A slope) {
  const A scaled = z * slope;
  if constexpr (kind == kRelu) return z <= 0 ? A(0) : z;  // a NaN stays a NaN
  if constexpr (kind == kLeakyRelu) return z > 0 ? z : scaled;
  if constexpr (kind == kTanh) return tanh_of(z);
  return z;
}

template <int kind, class A>
GS_INLINE A backward_at(A gy, A y, A slope) {
  const A scaled = gy * slope;
  if constexpr (kind == kRelu) return y > 0 ? gy : A(0);
  if constexpr (kind == kLeakyRelu) return y > 0 ? gy : scaled;
  if constexpr (kind == kTanh) return gy * (A(1) - y * y);
  return gy;
}

template <int k>
struct Kind {
  static constexpr int value = k;
};

// Calls f with the activation as a type, so that each loop is compiled for one activation.
template <class F>
GS_INLINE void with_kind(int activation, F f) {
  switch (activation) {
    case kRelu: return f(Kind<kRelu>{});
    case kLeakyRelu: return f(Kind<kLeakyRelu>{});
    case kTanh: return f(Kind<kTanh>{});
    default: return f(Kind<kLinear>{});
  }
}

template <class T>
void bias_act_one(const void* x, void* y, int64_t count, double bias, int activation, double slope) {
  using A = typename T::Acc;
  const A b = static_cast<A>(bias), s = static_cast<A>(slope);
  with_kind(activation, [&](auto kind) GS_FLAT {
    map1<T>(x, y, count, [=](A v) GS_FLAT { return activate<decltype(kind)::value>(v + b, s); });
  });
}

template <class T>
void pattern_act_one(const void* x_, const void* pattern_, void* y_, int64_t count, int activation, double slope) {
  using A = typename T::Acc;
  auto* __restrict x = static_cast<const typename T::Storage*>(x_);
  auto* __restrict y = static_cast<typename T::Storage*>(y_);
  auto* __restrict pattern = static_cast<const A*>(pattern_);
  const A s = static_cast<A>(slope);
  with_kind(activation, [&](auto kind) GS_FLAT {
    for (int64_t i = 0; i < count; ++i) {
      y[i] = T::store(activate<decltype(kind)::value>(T::load(x[i]) + pattern[i], s));
    }
  });
}

template <class T>
void act_backward_one(const void* gy, const void* y, void* gx, int64_t count, int activation, double slope) {
  using A = typename T::Acc;
  const A s = static_cast<A>(slope);
  with_kind(activation, [&](auto kind) GS_FLAT {
    map2<T>(gy, y, gx, count, [=](A g, A v) GS_FLAT { return backward_at<decltype(kind)::value>(g, v, s); });
  });
}

// --- single elements ------------------------------------------------------------------------------------------------

template <class T>
double read_one(const void* array, int64_t i) {
  return T::load(static_cast<const typename T::Storage*>(array)[i]);
}

template <class T>
void write_one(void* array, int64_t i, double value) {
  static_cast<typename T::Storage*>(array)[i] = T::store(static_cast<typename T::Acc>(value));
}

#define GS_EACH(fn) {fn<F32>, fn<F64>, fn<F16>, fn<BF16>}
constexpr cpu::KernelTable kTable = {
    GS_EACH(interpolate_one), GS_EACH(sum_squares_one), GS_EACH(sum_one),          GS_EACH(column_sums_one),
    GS_EACH(bias_act_one),    GS_EACH(pattern_act_one), GS_EACH(act_backward_one), GS_EACH(read_one),
    GS_EACH(write_one),
};

}  // namespace

namespace ganscale::cpu {
#define GS_JOIN(a, b) a##b
#define GS_TABLE(isa) GS_JOIN(table_, isa)
const KernelTable* GS_TABLE(GS_ISA)() { return &kTable; }
}  // namespace ganscale::cpu
