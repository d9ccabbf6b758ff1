// How kernels walk a tensor [O, C, I]: as rows [rows, columns] whose columns are owned by threads, so that what belongs
// to a channel is loaded once a thread. Also the activations, as all kernels compute them.
//
// A block of kThreads is `lanes` packs of columns wide and kThreads / lanes rows high; it walks one band of rows of one
// tile of columns. Where C * I is no multiple of a pack, several O are read as one row (`fold`).
#pragma once

#include "wrap.h"

namespace ganscale::cuda {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// --- activations ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }

// The piecewise linear ones; a NaN stays a NaN.
template <class A>
__device__ __forceinline__ A bend(A z, int activation, A slope) {
  const A below = activation == kLeakyRelu ? z * slope : activation == kRelu && z <= A(0) ? A(0) : z;
  return z > A(0) ? z : below;
}

template <class A>
__device__ __forceinline__ A activate(A z, int activation, A slope) {
  return activation == kTanh ? tanh_of(z) : bend(z, activation, slope);
}

// In place, with one branch for all: tanh is long code.
template <int count, class A>
__device__ __forceinline__ void activate_all(A (&z)[count], int activation, A slope) {
  if (activation == kTanh) {
#pragma unroll
    for (int i = 0; i < count; ++i) z[i] = tanh_of(z[i]);
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) z[i] = bend(z[i], activation, slope);
  }
}

// g = g * act'(z), in place.
template <int count, class A>
__device__ __forceinline__ void backward_all(A (&g)[count], const A (&z)[count], int activation, A slope) {
  if (activation == kTanh) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const A y = tanh_of(z[i]);
      g[i] *= A(1) - y * y;
    }
  } else if (activation != kLinear) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const A below = activation == kRelu ? A(0) : g[i] * slope;
      g[i] = z[i] > A(0) ? g[i] : below;
    }
  }
}

// --- packs ----------------------------------------------------------------------------------------------------------

template <class T, int width>
__device__ __forceinline__ void widen_all(typename Number<T>::Acc (&to)[width], const Pack<T, width>& pack) {
#pragma unroll
  for (int i = 0; i < width; ++i) to[i] = widen(pack.at[i]);
}

template <class T, int width>
__device__ __forceinline__ void load_wide(typename Number<T>::Acc (&to)[width], const T* from) {
  widen_all(to, *reinterpret_cast<const Pack<T, width>*>(from));
}

template <class T, int width>
__device__ __forceinline__ void store_narrow(T* to, const typename Number<T>::Acc (&from)[width]) {
  Pack<T, width> pack;
#pragma unroll
  for (int i = 0; i < width; ++i) narrow(from[i], pack.at[i]);
  store_pack(to, pack);
}

// --- rows and columns -----------------------------------------------------------------------------------------------

struct Walk {
  int64_t rows, columns;  // columns = fold * C * I
  int64_t channels, inner;
  int64_t rows_per_band;
  int64_t tiles, bands;
  int lanes;  // a power of two
  int width;  // columns of a pack

  dim3 grid() const { return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(bands)); }
  bool fits() const { return fits_grid(tiles) && bands <= 65535 && channels <= INT32_MAX; }
};

// Rows that have to be read as one so that packs of `width` elements divide them; 0 if there is no such number.
inline int64_t fold_of(int64_t outer, int64_t channels, int64_t inner, int width) {
  int64_t fold = 1;
  while (fold < width && fold * (channels % width) * (inner % width) % width != 0) fold *= 2;
  return outer % fold == 0 ? fold : 0;
}

// A walk in packs of `width` (which must divide the folded rows), in bands of at most `most_lines` steps and few enough
// of them that about `blocks` blocks result.
inline Walk plan_walk(int64_t outer, int64_t channels, int64_t inner, int width, int64_t blocks, int64_t least_lines,
                      int64_t most_lines) {
  const int64_t fold = width == 1 ? 1 : fold_of(outer, channels, inner, width);
  Walk walk{outer / fold, fold * channels * inner, channels, inner, 0, 0, 0, kThreads, width};
  const int64_t packs = walk.columns / width;
  for (int64_t high = 1; high < 8 && 2 * high <= walk.rows; high *= 2) walk.lanes /= 2;
  while (walk.lanes > 1 && walk.lanes / 2 >= packs) walk.lanes /= 2;
  walk.tiles = ceil_div(packs, walk.lanes);
  const int64_t high = kThreads / walk.lanes, lines = ceil_div(walk.rows, high);  // steps of a block that walks all
  int64_t each = ceil_div(lines * walk.tiles, blocks);
  if (each < least_lines) each = least_lines;
  if (each > most_lines) each = most_lines;
  if (each < ceil_div(lines, 65535)) each = ceil_div(lines, 65535);  // all bands in gridDim.y
  walk.rows_per_band = each * high;
  walk.bands = ceil_div(walk.rows, walk.rows_per_band);
  return walk;
}

// What a thread owns: `width` columns from `column` on, in `steps` rows: elements at, at + stride, ... and those beside.
struct Share {
  int64_t column, at, stride;
  int steps, lane, line, high;
};

__device__ __forceinline__ Share share_of(const Walk& walk) {
  Share share;
  share.lane = threadIdx.x & (walk.lanes - 1);
  share.line = threadIdx.x / walk.lanes;
  share.high = kThreads / walk.lanes;
  share.column = (static_cast<int64_t>(blockIdx.x) * walk.lanes + share.lane) * walk.width;
  const int64_t start = blockIdx.y * walk.rows_per_band, left = walk.rows - start;
  const int rows = static_cast<int>(left < walk.rows_per_band ? left : walk.rows_per_band);
  share.steps = share.column < walk.columns ? (rows - share.line + share.high - 1) / share.high : 0;
  share.at = (start + share.line) * walk.columns + share.column;
  share.stride = share.high * walk.columns;
  return share;
}

// The channels of `width` columns from `column` on.
template <int width>
__device__ __forceinline__ void channels_of(int (&channel)[width], int64_t column, const Walk& walk) {
  int64_t run, place;
  if (walk.columns <= INT32_MAX) {  // a 64-bit division costs tens of instructions
    run = static_cast<uint32_t>(column) / static_cast<uint32_t>(walk.inner);
    place = column - run * walk.inner;
    channel[0] = static_cast<int>(static_cast<uint32_t>(run) % static_cast<uint32_t>(walk.channels));
  } else {
    run = column / walk.inner;
    place = column - run * walk.inner;
    channel[0] = static_cast<int>(run % walk.channels);
  }
#pragma unroll
  for (int i = 1; i < width; ++i) {
    const bool next = ++place == walk.inner;
    channel[i] = channel[i - 1] + next;
    if (next) place = 0;
    if (channel[i] == walk.channels) channel[i] = 0;
  }
}

// Calls load(k, at) for up to `ahead` rows and then use(k, at) for each of them, over all rows of the share: loads written
// one after the other are under way together, which branches between them would prevent.
template <int ahead, class Load, class Use>
__device__ __forceinline__ void walk_rows(const Share& share, Load load, Use use) {
  for (int step = 0; step < share.steps; step += ahead) {
    const int64_t at = share.at + step * share.stride;
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (step + k < share.steps) load(k, at + k * share.stride);
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (step + k < share.steps) use(k, at + k * share.stride);
    }
  }
}

template <int width, class A>
__device__ __forceinline__ void load_channels(A (&to)[width], const A* from, const int (&channel)[width], A absent) {
#pragma unroll
  for (int i = 0; i < width; ++i) to[i] = from == nullptr ? absent : from[channel[i]];
}

// Calls f with the widest pack that all pointers and the folded rows allow: std::integral_constant of 16 bytes or 1.
template <class T, class F>
Status with_width(int64_t outer, int64_t channels, int64_t inner, bool aligned, F f) {
  if (aligned && fold_of(outer, channels, inner, kWide<T>) != 0) return f(std::integral_constant<int, kWide<T>>{});
  return f(std::integral_constant<int, 1>{});
}

}  // namespace ganscale::cuda
