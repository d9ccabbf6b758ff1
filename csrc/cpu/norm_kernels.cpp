// Batch statistics, affine map and activation, compiled once per instruction set (GS_ISA names it). Bound: memory
// bandwidth. Who owns what: a call adds to the totals or writes the outputs it is given; threads are the caller's
// business. Determinism: sums run down a column, or down the lanes of a run, in blocks of at most 256 additions a lane
// that join a double; the order depends on the sizes alone. float16 passes through a buffer of floats in the first cache.
#include "norm_kernels.h"

#include "lanes.h"

namespace {

using namespace ganscale;

constexpr int64_t kBlockRows = 256;    // additions in the accumulation type before they join a double
constexpr int64_t kChunk = 512;        // columns whose sums are kept side by side
constexpr int64_t kRunBlock = 4096;    // elements of a run, 256 a lane
constexpr int64_t kRunsAtLeast = 256;  // elements read for each reduction of the lanes to one number
constexpr int64_t kBuffer = 4096;      // elements widened at once

template <class A>
struct At {
  Vec<A> mean, scale, shift, b, offset;
};

// `mode` says which rows there are.
template <class A>
GS_INLINE At<A> at_column(int mode, const A* p, int64_t stride, int64_t lanes) {
  At<A> at = {read_some<A>(p, lanes), read_some<A>(p + stride, lanes), read_some<A>(p + 2 * stride, lanes), {}, {}};
  if (mode == cpu::kBackwardBatch) {
    at.b = read_some<A>(p + 3 * stride, lanes);
    at.offset = read_some<A>(p + 4 * stride, lanes);
  }
  return at;
}

template <class A>
GS_INLINE At<A> at_channel(int mode, const A* p, int64_t stride) {
  At<A> at = {all16<A>(p[0]), all16<A>(p[stride]), all16<A>(p[2 * stride]), {}, {}};
  if (mode == cpu::kBackwardBatch) {
    at.b = all16<A>(p[3 * stride]);
    at.offset = all16<A>(p[4 * stride]);
  }
  return at;
}

// What the loops below take T for: float16 has passed through a buffer of floats.
template <class T>
struct Taken {
  using As = T;
};
template <>
struct Taken<F16> {
  using As = F32;
};
template <class T>
using Loop = typename Taken<T>::As;

template <class T>
constexpr bool kInPlace = sizeof(typename T::Storage) == sizeof(typename Loop<T>::Storage);

// Elements where they are, or in a buffer.
template <class T>
struct Source {
  using Storage = typename Loop<T>::Storage;
  Storage buffer[kInPlace<T> ? 1 : kBuffer];

  // `rows` stretches of `width` elements, `stride` apart, of which the result is `out_stride` apart.
  GS_INLINE const Storage* read(const void* p_, int64_t first, int64_t rows, int64_t stride, int64_t width,
                                int64_t* out_stride) {
    auto* p = static_cast<const typename T::Storage*>(p_) + first;
    if constexpr (kInPlace<T>) {
      *out_stride = stride;
      return p;
    } else {
      *out_stride = width;
      if (width == stride) widen<T>(p, rows * width, buffer);
      else for (int64_t row = 0; row < rows; ++row) widen<T>(p + row * stride, width, buffer + row * width);
      return buffer;
    }
  }
};

template <class T>
GS_INLINE int64_t rows_at_once(int64_t rows, int64_t width) {
  return kInPlace<T> ? rows : kBuffer / width;
}

// --- sums down columns ----------------------------------------------------------------------------------------------

template <class A>
struct Sums {
  A first[kChunk + kLane], second[kChunk + kLane], shift[kChunk + kLane];
};

// Adds term(row, column, lanes) of `rows` rows of one chunk, row after row: the memory is one stream, which the
// processor foresees, and that is worth more than the sums' loads and stores in the first cache.
template <class A, class F>
GS_INLINE void add_rows(Sums<A>& sums, int64_t width, int64_t rows, F term) {
  for (int64_t row = 0; row < rows; ++row) {
    by_lanes(width, [&](int64_t column, int64_t lanes) GS_FLAT {
      auto first = read16<A>(sums.first + column), second = read16<A>(sums.second + column);
      term(row, column, lanes, first, second);
      write16<A>(sums.first + column, first);
      write16<A>(sums.second + column, second);
    });
  }
}

template <class L, class A>
GS_APART void add_moments(const typename L::Storage* x, int64_t rows, int64_t stride, int64_t width, Sums<A>& sums) {
  add_rows<A>(sums, width, rows, [&](int64_t row, int64_t column, int64_t lanes, Vec<A>& sum, Vec<A>& square) GS_FLAT {
    const Vec<A> d = load_some<L>(x + row * stride + column, lanes) - read16<A>(sums.shift + column);
    sum += d;
    square += d * d;
  });
}

template <class L, class A>
GS_APART void add_products(const typename L::Storage* gy, const typename L::Storage* x, int64_t rows, int64_t stride,
                           int64_t width, const A* p, int64_t p_stride, int activation, A slope, Sums<A>& sums) {
  with_activation<A>(activation, [&](auto kind) GS_FLAT {
    add_rows<A>(sums, width, rows, [&](int64_t row, int64_t column, int64_t lanes, Vec<A>& a, Vec<A>& b) GS_FLAT {
      const At<A> at = at_column<A>(cpu::kForward, p + column, p_stride, lanes);
      const Vec<A> d = load_some<L>(x + row * stride + column, lanes) - at.mean;
      const Vec<A> g = derived16<decltype(kind)::value, A>(load_some<L>(gy + row * stride + column, lanes),
                                                           d * at.scale + at.shift, slope, activation);
      a += g;
      b += g * d;
    });
  });
}

template <class T>
void column_moments_one(const void* x, int64_t rows, int64_t stride, int64_t live, double* totals) {
  using A = typename T::Acc;
  Source<T> source;
  Sums<A> sums;
  for (int64_t start = 0; start < live; start += kChunk) {
    const int64_t width = least(kChunk, live - start);
    for (int64_t block = 0; block < rows; block += kBlockRows) {
      const int64_t end = least(rows, block + kBlockRows), each = rows_at_once<T>(end - block, width);
      int64_t s;
      sums = {};
      // About the block's first row: a mean far from 0 costs no accuracy.
      widen<Loop<T>>(source.read(x, block * stride + start, 1, stride, width, &s), width, sums.shift);
      for (int64_t row = block; row < end; row += each) {
        const int64_t count = least(each, end - row);
        const auto* from = source.read(x, row * stride + start, count, stride, width, &s);
        add_moments<Loop<T>, A>(from, count, s, width, sums);
      }
      const double count = static_cast<double>(end - block);
      for (int64_t i = 0; i < width; ++i) {
        const double shift = sums.shift[i], sum = sums.first[i];
        totals[start + i] += sum + count * shift;
        totals[stride + start + i] += sums.second[i] + shift * (2 * sum + count * shift);
      }
    }
  }
}

template <class T>
void column_sums_one(const void* gy, const void* x, int64_t rows, int64_t stride, int64_t live,
                     const void* parameters, double* totals, int activation, double slope) {
  using A = typename T::Acc;
  auto* p = static_cast<const A*>(parameters);
  Source<T> gy_source, x_source;
  Sums<A> sums;
  for (int64_t start = 0; start < live; start += kChunk) {
    const int64_t width = least(kChunk, live - start);
    for (int64_t block = 0; block < rows; block += kBlockRows) {
      const int64_t end = least(rows, block + kBlockRows), each = rows_at_once<T>(end - block, width);
      sums = {};
      for (int64_t row = block; row < end; row += each) {
        const int64_t count = least(each, end - row), first = row * stride + start;
        int64_t s;
        const auto* g = gy_source.read(gy, first, count, stride, width, &s);
        const auto* v = x_source.read(x, first, count, stride, width, &s);
        add_products<Loop<T>, A>(g, v, count, s, width, p + start, stride, activation, static_cast<A>(slope), sums);
      }
      for (int64_t i = 0; i < width; ++i) {
        totals[start + i] += sums.first[i];
        totals[stride + start + i] += sums.second[i];
      }
    }
  }
}

// --- sums along runs ------------------------------------------------------------------------------------------------

struct Pair {
  double first, second;
};

// The totals of term(offset, lanes, a, b) over `rows` stretches of `width` elements.
template <class A, class F>
GS_INLINE Pair reduce_rows(int64_t rows, int64_t stride, int64_t width, F term) {
  Vec<A> a0 = {}, b0 = {}, a1 = {}, b1 = {};
  for (int64_t row = 0; row < rows; ++row) {
    int64_t i = row * stride;
    const int64_t end = i + width;
    for (; i + 2 * kLane <= end; i += 2 * kLane) {
      term(i, kLane, a0, b0);
      term(i + kLane, kLane, a1, b1);
    }
    if (i + kLane <= end) {
      term(i, kLane, a0, b0);
      i += kLane;
    }
    if (i < end) term(i, end - i, a1, b1);
  }
  return {total16<A>(a0 + a1), total16<A>(b0 + b1)};
}

template <class L, class A>
GS_APART Pair reduce_moments(const typename L::Storage* x, int64_t rows, int64_t stride, int64_t width, A shift) {
  return reduce_rows<A>(rows, stride, width, [&](int64_t i, int64_t lanes, Vec<A>& sum, Vec<A>& square) GS_FLAT {
    const Vec<A> d = load_some<L>(x + i, lanes, shift) - shift;
    sum += d;
    square += d * d;
  });
}

template <class L, class A>
GS_APART Pair reduce_products(const typename L::Storage* gy, const typename L::Storage* x, int64_t rows, int64_t stride,
                              int64_t width, const A* p, int64_t p_stride, int activation, A slope) {
  const A mean = p[0], scale = p[p_stride], shift = p[2 * p_stride];
  Pair sums = {0, 0};
  with_activation<A>(activation, [&](auto kind) GS_FLAT {
    sums = reduce_rows<A>(rows, stride, width, [&](int64_t i, int64_t lanes, Vec<A>& a, Vec<A>& b) GS_FLAT {
      const Vec<A> d = load_some<L>(x + i, lanes) - mean;
      const Vec<A> g = derived16<decltype(kind)::value, A>(load_some<L>(gy + i, lanes), d * scale + shift, slope,
                                                           activation);
      a += g;
      b += g * d;
    });
  });
  return sums;
}

// Visits every channel's runs in blocks, short runs of several samples together: block(channel, first element, stretches,
// elements of one).
template <class F>
GS_INLINE void over_runs(int64_t outer, int64_t channels, int64_t inner, F block) {
  const int64_t together = inner >= kRunsAtLeast ? 1 : kRunsAtLeast / inner;
  for (int64_t sample = 0; sample < outer; sample += together) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t start = 0; start < inner; start += kRunBlock) {
        block(channel, (sample * channels + channel) * inner + start, least(together, outer - sample),
              least(kRunBlock, inner - start));
      }
    }
  }
}

template <class T>
void run_moments_one(const void* x, int64_t outer, int64_t channels, int64_t inner, double* totals) {
  using A = typename T::Acc;
  Source<T> source;
  over_runs(outer, channels, inner, [&](int64_t channel, int64_t first, int64_t rows, int64_t width) {
    int64_t s;
    const auto* from = source.read(x, first, rows, channels * inner, width, &s);
    const A shift = Loop<T>::load(from[0]);
    const Pair sums = reduce_moments<Loop<T>, A>(from, rows, s, width, shift);
    const double about = shift, count = static_cast<double>(rows * width);
    totals[channel] += sums.first + count * about;
    totals[channels + channel] += sums.second + about * (2 * sums.first + count * about);
  });
}

template <class T>
void run_sums_one(const void* gy, const void* x, int64_t outer, int64_t channels, int64_t inner,
                  const void* parameters, double* totals, int activation, double slope) {
  using A = typename T::Acc;
  auto* p = static_cast<const A*>(parameters);
  Source<T> gy_source, x_source;
  over_runs(outer, channels, inner, [&](int64_t channel, int64_t first, int64_t rows, int64_t width) {
    int64_t s;
    const auto* g = gy_source.read(gy, first, rows, channels * inner, width, &s);
    const auto* v = x_source.read(x, first, rows, channels * inner, width, &s);
    const Pair sums = reduce_products<Loop<T>, A>(g, v, rows, s, width, p + channel, channels, activation,
                                                                 static_cast<A>(slope));
    totals[channel] += sums.first;
    totals[channels + channel] += sums.second;
  });
}

// --- maps -----------------------------------------------------------------------------------------------------------

// What a map is told beside its arrays; as constants where the code is compiled for one mode and activation.
template <class A>
struct How {
  int mode, activation;
  A slope;
};

template <int kind, class L, class S = typename L::Storage, class A = typename L::Acc>
GS_INLINE void map_lanes(const S* gy, const S* x, S* out, int64_t lanes, const At<A>& at, const How<A>& how) {
  const Vec<A> d = load_some<L>(x, lanes) - at.mean, z = d * at.scale + at.shift;
  Vec<A> value;
  if (how.mode == cpu::kForward) {
    value = activate16<kind, A>(z, how.slope, how.activation);
  } else {
    const Vec<A> g = derived16<kind, A>(load_some<L>(gy, lanes), z, how.slope, how.activation);
    value = how.mode == cpu::kBackwardConstant ? at.scale * g : at.scale * ((g - at.offset) - d * at.b);
  }
  store_some<L>(out, lanes, value);
}

// Calls f with the activation as a type and the mode as a constant of its copy of the code; double's are left open.
template <class A, class F>
GS_INLINE void with_mode(How<A> how, F f) {
  with_activation<A>(how.activation, [&](auto kind) GS_FLAT {
    if constexpr (decltype(kind)::value == kAny) return f(kind, how);
    else if (how.mode == cpu::kForward) f(kind, How<A>{cpu::kForward, decltype(kind)::value, how.slope});
    else if (how.mode == cpu::kBackwardBatch) f(kind, How<A>{cpu::kBackwardBatch, decltype(kind)::value, how.slope});
    else f(kind, How<A>{cpu::kBackwardConstant, decltype(kind)::value, how.slope});
  });
}

template <class L, class S = typename L::Storage, class A = typename L::Acc>
GS_APART void map_columns(const S* gy, const S* x, S* out, int64_t rows, int64_t width, const A* p, int64_t p_stride,
                          const How<A>& asked) {
  with_mode<A>(asked, [&](auto kind, const How<A>& how) GS_FLAT {
    for (int64_t row = 0; row < rows; ++row) {
      by_lanes(width, [&](int64_t column, int64_t lanes) GS_FLAT {
        const int64_t here = row * width + column;
        const At<A> at = at_column<A>(how.mode, p + column, p_stride, lanes);
        map_lanes<decltype(kind)::value, L>(gy + here, x + here, out + here, lanes, at, how);
      });
    }
  });
}

template <class L, class S = typename L::Storage, class A = typename L::Acc>
GS_APART void map_runs(const S* gy, const S* x, S* out, int64_t first, int64_t last, int64_t width, const A* p,
                       int64_t channels, const How<A>& asked) {
  with_mode<A>(asked, [&](auto kind, const How<A>& how) GS_FLAT {
    for (int64_t run = first; run < last; ++run) {
      const At<A> at = at_channel<A>(how.mode, p + run % channels, channels);
      const int64_t start = (run - first) * width;
      by_lanes(width, [&](int64_t i, int64_t lanes) GS_FLAT {
        const int64_t here = start + i;
        map_lanes<decltype(kind)::value, L>(gy + here, x + here, out + here, lanes, at, how);
      });
    }
  });
}

// Calls f(gy, x, out) as the loops take them for `count` elements in a row; without gy, in the forward pass, it gets x.
template <class T, class F>
GS_INLINE void widened(const void* gy_, const void* x_, void* out_, int64_t first, int64_t count, Source<T>& gy_source,
                       Source<T>& x_source, F f) {
  auto* out = static_cast<typename T::Storage*>(out_) + first;
  int64_t s;
  const auto* x = x_source.read(x_, first, 1, count, count, &s);
  const auto* gy = gy_ ? gy_source.read(gy_, first, 1, count, count, &s) : x;
  if constexpr (kInPlace<T>) {
    f(gy, x, out);
  } else {
    f(gy, x, x_source.buffer);  // in place
    narrow<T>(x_source.buffer, count, out);
  }
}

template <class T>
void column_map_one(const void* gy, const void* x, void* out, int64_t rows, int64_t stride, int64_t live,
                    const void* parameters, int mode, int activation, double slope) {
  using A = typename T::Acc;
  auto* p = static_cast<const A*>(parameters);
  Source<T> gy_source, x_source;
  // Whole rows together where they fit the buffer, else one row in parts.
  const int64_t part = kInPlace<T> ? live : least(live, kBuffer);
  const int64_t together = live < stride || part < live ? 1 : rows_at_once<T>(rows, part);
  for (int64_t row = 0; row < rows; row += together) {
    for (int64_t start = 0; start < live; start += part) {
      const int64_t width = least(part, live - start), count = least(together, rows - row);
      widened<T>(gy, x, out, row * stride + start, count * width, gy_source, x_source,
                 [&](const auto* g, const auto* v, auto* o) GS_FLAT {
        map_columns<Loop<T>>(g, v, o, count, width, p + start, stride, {mode, activation, static_cast<A>(slope)});
      });
    }
  }
}

template <class T>
void run_map_one(const void* gy, const void* x, void* out, int64_t first, int64_t last, int64_t channels,
                 int64_t inner, const void* parameters, int mode, int activation, double slope) {
  using A = typename T::Acc;
  auto* p = static_cast<const A*>(parameters);
  Source<T> gy_source, x_source;
  const int64_t part = kInPlace<T> ? inner : least(inner, kBuffer);
  const int64_t together = part < inner ? 1 : rows_at_once<T>(last - first, part);
  for (int64_t run = first; run < last; run += together) {
    for (int64_t start = 0; start < inner; start += part) {
      const int64_t width = least(part, inner - start), count = least(together, last - run);
      widened<T>(gy, x, out, run * inner + start, count * width, gy_source, x_source,
                 [&](const auto* g, const auto* v, auto* o) GS_FLAT {
        map_runs<Loop<T>>(g, v, o, run, run + count, width, p, channels, {mode, activation, static_cast<A>(slope)});
      });
    }
  }
}

#define GS_EACH(fn) {fn<F32>, fn<F64>, fn<F16>, fn<BF16>}
constexpr cpu::NormTable kTable = {
    GS_EACH(column_moments_one), GS_EACH(run_moments_one), GS_EACH(column_sums_one),
    GS_EACH(run_sums_one),       GS_EACH(column_map_one),  GS_EACH(run_map_one),
};

}  // namespace

namespace ganscale::cpu {
#define GS_JOIN(a, b) a##b
#define GS_TABLE(isa) GS_JOIN(norm_table_, isa)
const NormTable* GS_TABLE(GS_ISA)() { return &kTable; }
}  // namespace ganscale::cpu
