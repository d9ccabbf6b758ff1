// Transposed convolution to at most four channels, compiled once per instruction set (GS_ISA names it).
//
// Each input row is multiplied by all kernel taps at once, [w, CI] x [CI, KH * KW * CO], a few pixels by a few
// registers at a time; the products of neighbouring pixels and rows that meet in an output pixel are added
// in rows that stay in the first cache, and a finished row gets bias and activation and is written once. There is no
// column matrix in memory. Bound: multiply-adds.
// Who owns what: a call writes the output rows it is given. Determinism: the order of every sum depends on the sizes
// alone; multiply-adds are fused here, so the bits differ between instruction sets.
#include "conv_transpose_kernels.h"

#include "lanes.h"

namespace {

using namespace ganscale;
using cpu::FewShape;

// Registers of sums at once: pixels times vectors, as many as the processor has registers for.
#if defined(__AVX512F__)
constexpr int kPixels = 8, kVectors = 3;
#elif defined(__AVX2__)
constexpr int kPixels = 4, kVectors = 3;
#else
constexpr int kPixels = 2, kVectors = 3;
#endif

// --- products -------------------------------------------------------------------------------------------------------

// `next` is where this block's pixels of the next row begin: they are asked for on the way, since a row at a time is
// no stream that the processor would foresee.
template <int pixels, int vectors, class A>
GS_INLINE void multiply_block(const A* x, int64_t x_w, int64_t x_c, int64_t ci, const A* packed, int64_t columns, A* out,
                              const A* next) {
  using V = typename Register<A>::V;
  constexpr int lanes = kRegister / sizeof(A);
  V sums[pixels][vectors];
  for (int p = 0; p < pixels; ++p) {
    for (int v = 0; v < vectors; ++v) sums[p][v] = V{};
  }
  for (int64_t c = 0; c < ci; ++c) {
    V taps[vectors];
    for (int v = 0; v < vectors; ++v) __builtin_memcpy(&taps[v], packed + v * lanes, kRegister);
    for (int p = 0; p < pixels; ++p) {
      const A value = x[p * x_w];
      for (int v = 0; v < vectors; ++v) sums[p][v] += taps[v] * value;
    }
    __builtin_prefetch(next);
    next += x_c == 1 ? pixels : x_c;
    packed += columns;
    x += x_c;
  }
  for (int p = 0; p < pixels; ++p) {
    for (int v = 0; v < vectors; ++v) __builtin_memcpy(out + p * columns + v * lanes, &sums[p][v], kRegister);
  }
}

// out[pixel, column] of all pixels of a row and as many columns as `vectors` registers hold.
template <int vectors, class A>
GS_APART void multiply(const FewShape& s, const A* x, int64_t x_w, int64_t x_c, int64_t ahead, const A* packed, A* out) {
  int64_t pixel = 0;
  const auto block = [&](auto pixels) GS_FLAT {
    const A* from = x + pixel * x_w;
    multiply_block<decltype(pixels)::value, vectors, A>(from, x_w, x_c, s.ci, packed, s.columns,
                                                        out + pixel * s.columns, from + ahead);
    pixel += decltype(pixels)::value;
  };
  while (pixel + kPixels <= s.w) block(Kind<kPixels>{});
  while (pixel < s.w) block(Kind<1>{});
}

template <class A>
GS_INLINE void multiply_row(const FewShape& s, const A* x, int64_t x_w, int64_t x_c, int64_t ahead, const A* packed,
                            A* out) {
  constexpr int64_t lanes = kRegister / sizeof(A);
  int64_t column = 0;
  // Four registers left over are better taken as two and two than as three and one.
  for (; s.columns - column >= kVectors * lanes && s.columns - column != 4 * lanes; column += kVectors * lanes) {
    multiply<kVectors, A>(s, x, x_w, x_c, ahead, packed + column, out + column);
  }
  for (; s.columns - column >= 2 * lanes; column += 2 * lanes) {
    multiply<2, A>(s, x, x_w, x_c, ahead, packed + column, out + column);
  }
  if (column < s.columns) multiply<1, A>(s, x, x_w, x_c, ahead, packed + column, out + column);
}

// The products of input row `row`, read in place or, in 16 bits, through a widened copy.
template <class T>
GS_INLINE void products_of(const FewShape& s, const typename T::Storage* x, int64_t row, const typename T::Acc* packed,
                           typename T::Acc* scratch) {
  using A = typename T::Acc;
  A* products = scratch + s.products_at;
  x += row * s.x_h;
  if constexpr (kStoredWide<T>) {
    multiply_row<A>(s, x, s.x_w, s.x_c, row + 1 < s.h ? s.x_h : 0, packed, products);
  } else {
    A* wide = scratch + s.row_at;
    if (s.x_w == s.ci && s.x_c == 1) {
      widen<T>(x, s.w * s.ci, wide);
      multiply_row<A>(s, wide, s.ci, 1, 0, packed, products);
    } else {
      for (int64_t c = 0; c < s.ci; ++c) widen<T>(x + c * s.x_c, s.w, wide + c * s.w);
      multiply_row<A>(s, wide, 1, s.w, 0, packed, products);
    }
  }
}

// --- a finished row -------------------------------------------------------------------------------------------------

template <int kind, class A>
GS_INLINE void finish(const A* from, const A* bias, A* to, int64_t count, int activation, A slope) {
  by_lanes(count, [&](int64_t i, int64_t lanes) GS_FLAT {
    const Vec<A> z = read_some<A>(from + i, lanes) + read_some<A>(bias + i, lanes);
    write_some<A>(to + i, lanes, activate16<kind, A>(z, slope, activation));
  });
}

// Adds the bias to the row [W, CO] at `from`, which may be overwritten, applies the activation and writes it.
template <class T>
GS_APART void write_row(const FewShape& s, typename T::Acc* from, const typename T::Acc* bias,
                                         typename T::Storage* y, int activation, typename T::Acc slope) {
  using A = typename T::Acc;
  const int64_t count = s.out_w * s.co;
  const bool in_a_row = s.y_w == s.co && (s.y_c == 1 || s.co == 1);
  A* to = from;
  if constexpr (kStoredWide<T>) to = in_a_row ? y : from;
  with_activation<A>(activation, [&](auto kind) GS_FLAT {
    finish<decltype(kind)::value, A>(from, bias, to, count, activation, slope);
  });
  if (in_a_row) {
    if constexpr (!kStoredWide<T>) narrow<T>(from, count, y);
    return;
  }
  for (int64_t c = 0; c < s.co; ++c) {
    for (int64_t i = 0; i < s.out_w; ++i) y[c * s.y_c + i * s.y_w] = T::store(from[i * s.co + c]);
  }
}

// --- kernel 4, stride 2 ---------------------------------------------------------------------------------------------

// sums[j, ky, 2, CO] = the first half of pixel j's products + the second half of pixel j - 1's, j = 0 .. w.
template <int co, class A>
GS_INLINE void join_halves(const FewShape& s, const A* products, A* sums) {
  constexpr int half = 8 * co;
  for (int i = 0; i < half; ++i) sums[i] = products[i];
  for (int64_t j = 1; j < s.w; ++j) {
    const A* here = products + j * 2 * half;
    for (int i = 0; i < half; ++i) sums[j * half + i] = here[i] + here[i - half];
  }
  for (int i = 0; i < half; ++i) sums[s.w * half + i] = products[(2 * s.w - 1) * half + i];
}

// line[j, 2, CO] = sums[j, ky] of this input row + before[j, ky + 2] of the one above.
template <int co, class A>
GS_INLINE void join_rows(const FewShape& s, const A* sums, const A* before, int ky, A* line) {
  constexpr int half = 8 * co, part = 2 * co;
  sums += ky * part;
  before += (ky + 2) * part;
  for (int64_t j = 0; j <= s.w; ++j) {
    for (int i = 0; i < part; ++i) line[j * part + i] = sums[j * half + i] + before[j * half + i];
  }
}

template <class T, int co>
void rows_by_halves(const FewShape& s, const void* x, const typename T::Acc* packed, const typename T::Acc* bias,
                    void* y, typename T::Acc* scratch, int64_t first, int64_t last, int activation,
                    typename T::Acc slope) {
  using A = typename T::Acc;
  auto* out = static_cast<typename T::Storage*>(y);
  const int64_t size = (s.w + 1) * 8 * co;
  A* before = scratch + s.sums_at;
  A* sums = before + size;
  A* line = scratch + s.line_at;
  for (int64_t i = 0; i < s.line * co; ++i) line[i] = 0;
  const auto sums_of = [&](int64_t row, A* to) {
    if (row < 0 || row >= s.h) {
      for (int64_t i = 0; i < size; ++i) to[i] = 0;
    } else {
      products_of<T>(s, static_cast<const typename T::Storage*>(x), row, packed, scratch);
      join_halves<co, A>(s, scratch + s.products_at, to);
    }
  };
  // Uncropped output rows 2 row and 2 row + 1 end with input row `row`.
  const int64_t begin = first + s.padding_h, end = last + s.padding_h;
  sums_of(begin / 2 - 1, before);
  for (int64_t row = begin / 2; row <= (end - 1) / 2; ++row) {
    sums_of(row, sums);
    for (int ky = 0; ky < 2; ++ky) {
      const int64_t full = 2 * row + ky;
      if (full < begin || full >= end) continue;
      join_rows<co, A>(s, sums, before, ky, line);
      write_row<T>(s, line + s.padding_w * co, bias, out + (full - s.padding_h) * s.y_h, activation, slope);
      // What write_row left beyond the joined part must be zero again.
      for (int64_t i = 2 * (s.w + 1) * co; i < s.line * co; ++i) line[i] = 0;
    }
    A* other = before;
    before = sums;
    sums = other;
  }
}

// --- any kernel -----------------------------------------------------------------------------------------------------

// Adds the products of one input row to the KH rows of the ring, whose row for uncropped output row f is f % KH.
template <class A>
GS_INLINE void scatter(const FewShape& s, const A* products, int64_t row, A* ring) {
  const int64_t taps = s.kw * s.co, width = s.line * s.co;
  for (int64_t ky = 0; ky < s.kh; ++ky) {
    A* to = ring + (row * s.stride_h + ky) % s.kh * width;
    const A* from = products + ky * taps;
    for (int64_t j = 0; j < s.w; ++j) {
      for (int64_t i = 0; i < taps; ++i) to[i] += from[i];
      to += s.stride_w * s.co;
      from += s.columns;
    }
  }
}

template <class T>
void rows_by_ring(const FewShape& s, const void* x, const typename T::Acc* packed, const typename T::Acc* bias, void* y,
                  typename T::Acc* scratch, int64_t first, int64_t last, int activation, typename T::Acc slope) {
  using A = typename T::Acc;
  auto* out = static_cast<typename T::Storage*>(y);
  const int64_t width = s.line * s.co;
  A* ring = scratch + s.sums_at;
  A* line = scratch + s.line_at;
  const int64_t begin = first + s.padding_h;
  int64_t next = begin < s.kh ? 0 : (begin - s.kh) / s.stride_h + 1;  // the first input row that reaches `begin`
  int64_t fresh = next * s.stride_h;  // ring rows from here on hold nothing of use yet
  for (int64_t full = begin; full < last + s.padding_h; ++full) {
    const int64_t newest = least(full / s.stride_h, s.h - 1);
    for (; next <= newest; ++next) {
      for (; fresh < next * s.stride_h + s.kh; ++fresh) {
        if (fresh < next * s.stride_h) continue;  // between kernels
        for (int64_t i = 0; i < width; ++i) ring[fresh % s.kh * width + i] = 0;
      }
      products_of<T>(s, static_cast<const typename T::Storage*>(x), next, packed, scratch);
      scatter<A>(s, scratch + s.products_at, next, ring);
    }
    const bool reached = newest * s.stride_h + s.kh > full;
    for (int64_t i = 0; i < width; ++i) line[i] = reached ? ring[full % s.kh * width + i] : 0;
    write_row<T>(s, line + s.padding_w * s.co, bias, out + (full - s.padding_h) * s.y_h, activation, slope);
  }
}

// --- the table ------------------------------------------------------------------------------------------------------

template <class T>
void pack_one(const FewShape& s, const void* weight_, void* packed_) {
  auto* weight = static_cast<const typename T::Storage*>(weight_);
  auto* packed = static_cast<typename T::Acc*>(packed_);
  for (int64_t i = 0; i < s.ci * s.columns; ++i) packed[i] = 0;
  for (int64_t c = 0; c < s.ci; ++c) {
    for (int64_t o = 0; o < s.co; ++o) {
      for (int64_t ky = 0; ky < s.kh; ++ky) {
        for (int64_t kx = 0; kx < s.kw; ++kx) {
          const int64_t tap = s.halves ? (kx / 2 * 4 + ky) * 2 + kx % 2 : ky * s.kw + kx;
          packed[c * s.columns + tap * s.co + o] = T::load(*weight++);
        }
      }
    }
  }
}

template <class T>
void rows_one(const FewShape& s, const void* x, const void* packed_, const void* bias_, void* y, void* scratch_,
              int64_t first, int64_t last, int activation, double slope_) {
  using A = typename T::Acc;
  auto* packed = static_cast<const A*>(packed_);
  auto* bias = static_cast<const A*>(bias_);
  auto* scratch = static_cast<A*>(scratch_);
  const A slope = static_cast<A>(slope_);
  if (!s.halves) return rows_by_ring<T>(s, x, packed, bias, y, scratch, first, last, activation, slope);
  switch (s.co) {
    case 1: return rows_by_halves<T, 1>(s, x, packed, bias, y, scratch, first, last, activation, slope);
    case 2: return rows_by_halves<T, 2>(s, x, packed, bias, y, scratch, first, last, activation, slope);
    case 3: return rows_by_halves<T, 3>(s, x, packed, bias, y, scratch, first, last, activation, slope);
    default: return rows_by_halves<T, 4>(s, x, packed, bias, y, scratch, first, last, activation, slope);
  }
}

#define GS_EACH(fn) {fn<F32>, fn<F64>, fn<F16>, fn<BF16>}
constexpr cpu::FewTable kTable = {GS_EACH(pack_one), GS_EACH(rows_one)};

}  // namespace

namespace ganscale::cpu {
#define GS_JOIN(a, b) a##b
#define GS_TABLE(isa) GS_JOIN(few_table_, isa)
const FewTable* GS_TABLE(GS_ISA)() { return &kTable; }
}  // namespace ganscale::cpu
