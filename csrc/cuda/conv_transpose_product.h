// What a block of the matrix product does until its sums are done: which tile it owns, how both operands come into shared
// memory, how a warp multiplies one stage of them. See conv_transpose_gemm.h for the whole.
#pragma once

#include "phases.h"

namespace ganscale::cuda {

constexpr int kGemmThreads = 128;
constexpr int kStages = 4;
constexpr int kLine = 64;                      // bytes of a row in one stage
constexpr int kChunks = kLine / 16;
constexpr int kRowsApart = kGemmThreads / kChunks;  // of the rows that a thread copies

using Record = Pack<float, 2>;  // mean and sum of squares about it

// Two groups of threads each take half of a column of the statistics where a tile is only 64 wide.
template <int kN>
constexpr int kGroups = kGemmThreads / kN;

template <class T>
struct GemmArguments {
  const T* x;        // [N, h, w, padded CI]
  const T* weights;  // per phase [CO, taps, padded CI]
  const float* scale;
  const float* shift;
  T* y;             // [N, H, W, CO]
  Record* records;  // [CO, bands] or null
  ConvSizes sizes;
  int padded, m_tiles, n_tiles, bands;
  int activation;
  float slope;
  bool wide;  // CO and y allow 16-byte stores
};

template <int kM, int kN>
constexpr int gemm_shared_bytes() {
  constexpr int pipeline = kStages * (kM + kN) * kLine, tile = kM * kN * 4;
  return pipeline > tile ? pipeline : tile;
}

// Where a chunk of a line lies. Lines 0..7 of one chunk are in eight different groups of four banks.
__device__ __forceinline__ int swapped(int line, int chunk) { return chunk ^ (line >> 1 & 3); }

// Kernel places of the phases before this one: phases lie one after the other in the packed weights.
__host__ __device__ __forceinline__ int taps_before(const ConvSizes& sizes, int phase_down, int phase_across) {
  int down = 0, across = 0;
  for (int d = 0; d < phase_down; ++d) down += sizes.axis(0, d).taps;
  for (int d = 0; d < phase_across; ++d) across += sizes.axis(1, d).taps;
  return down * sizes.kernel[1] + sizes.axis(0, phase_down).taps * across;
}

// What one block computes.
struct TileOf {
  PhaseAxis down, across;
  int phase_down, phase_across, m0, n0, rows, depth, band;
};

// Blocks: columns fastest, then phases, then rows, so that blocks reading the same rows of x run together.
template <class T, int kM, int kN>
__device__ __forceinline__ TileOf tile_of(const GemmArguments<T>& args) {
  const int n_tile = static_cast<int>(blockIdx.x % args.n_tiles), rest = static_cast<int>(blockIdx.x / args.n_tiles);
  const int phases = args.sizes.phases(), phase = rest % phases, m_tile = rest / phases;
  TileOf tile;
  tile.phase_down = phase / args.sizes.stride[1];
  tile.phase_across = phase % args.sizes.stride[1];
  tile.down = args.sizes.axis(0, tile.phase_down);
  tile.across = args.sizes.axis(1, tile.phase_across);
  tile.m0 = m_tile * kM;
  tile.n0 = n_tile * kN;
  tile.rows = args.sizes.samples * tile.down.count * tile.across.count;
  tile.depth = tile.down.taps * tile.across.taps * args.padded;
  tile.band = (phase * args.m_tiles + m_tile) * kGroups<kN>;
  return tile;
}

// --- copies into shared memory --------------------------------------------------------------------------------------

// A thread copies chunk `chunk` of every kRowsApart-th row of both operands, stage after stage.
template <class T, int kM, int kN>
struct Loader {
  static constexpr int kEach = 16 / sizeof(T);
  static constexpr int kARows = kM / kRowsApart, kBRows = kN / kRowsApart;

  const char* a[kARows];  // at tap 0 and channel 0, possibly outside of x
  int iy[kARows], ix[kARows];
  const char* b;
  int64_t b_apart, x_row, x_pixel;  // bytes
  int height, width, taps_down, taps_across, padded;
  int columns_left, place;  // of this thread's first row; place of its chunk in a stage
  int channel, ty, tx;      // of the next copy

  __device__ __forceinline__ Loader(const GemmArguments<T>& args, const TileOf& tile) {
    const int row = static_cast<int>(threadIdx.x) / kChunks, chunk = static_cast<int>(threadIdx.x) % kChunks;
    padded = args.padded;
    height = args.sizes.in[0];
    width = args.sizes.in[1];
    taps_down = tile.down.taps;
    taps_across = tile.across.taps;
    x_pixel = static_cast<int64_t>(padded) * static_cast<int64_t>(sizeof(T));
    x_row = x_pixel * width;
    const int area = tile.down.count * tile.across.count;
#pragma unroll
    for (int i = 0; i < kARows; ++i) {
      const int m = tile.m0 + row + i * kRowsApart, sample = m / area, in_sample = m - sample * area;
      const int j = in_sample / tile.across.count;
      iy[i] = m < tile.rows ? j + tile.down.offset : INT32_MIN / 2;  // rows past the last are zeros
      ix[i] = in_sample - j * tile.across.count + tile.across.offset;
      a[i] = reinterpret_cast<const char*>(args.x) +
             (m < tile.rows ? (static_cast<int64_t>(sample) * height + iy[i]) * x_row + ix[i] * x_pixel : 0);
    }
    b_apart = kRowsApart * static_cast<int64_t>(tile.depth) * static_cast<int64_t>(sizeof(T));
    const int64_t first = static_cast<int64_t>(taps_before(args.sizes, tile.phase_down, tile.phase_across)) *
                              args.padded * args.sizes.out_channels +
                          static_cast<int64_t>(tile.n0 + row) * tile.depth;
    b = reinterpret_cast<const char*>(args.weights + first + chunk * kEach);
    columns_left = args.sizes.out_channels - tile.n0 - row;
    place = row * kLine + swapped(row, chunk) * 16;
    channel = chunk * kEach;
    ty = tx = 0;
    settle();
  }

  // Moves on to the tap that `channel` reaches into.
  __device__ __forceinline__ void settle() {
    while (channel >= padded && ty < taps_down) {
      channel -= padded;
      if (++tx == taps_across) {
        tx = 0;
        ++ty;
      }
    }
  }

  __device__ __forceinline__ void copy(unsigned char* stage) {
    const bool live = ty < taps_down;
    const int64_t step = static_cast<int64_t>(channel) * static_cast<int64_t>(sizeof(T)) - ty * x_row - tx * x_pixel;
    unsigned char* const to = stage + place;
#pragma unroll
    for (int i = 0; i < kARows; ++i) {
      const bool valid = live && static_cast<unsigned>(iy[i] - ty) < static_cast<unsigned>(height) &&
                         static_cast<unsigned>(ix[i] - tx) < static_cast<unsigned>(width);
      cp_async16(to + i * (kRowsApart * kLine), a[i] + step, valid);
    }
#pragma unroll
    for (int i = 0; i < kBRows; ++i) {
      cp_async16(to + (kM + i * kRowsApart) * kLine, b + i * b_apart, live && i * kRowsApart < columns_left);
    }
    b += kLine;
    channel += kLine / static_cast<int>(sizeof(T));
    settle();
    __syncwarp();  // its lanes go round as often as their chunks ask, and ldmatrix takes all of them together
  }
};

// --- the product of one stage ---------------------------------------------------------------------------------------

__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) {
  mma_16x8x8_tf32(c, a, b);
}
template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) {
  mma_16x8x16(c, a, b, T{});
}

// A warp's part of a stage in two steps of 32 bytes depth. Fragments of a step are loaded before the step before it is
// multiplied. Weights are tf32 already; x is rounded here.
template <class T, int kM, int kN>
struct TensorProduct {
  static constexpr int kDown = kM / 32, kAcross = kN / 16;  // 16 x 8 tiles of a warp
  struct Fragments {
    uint32_t a[kDown][4], b[kAcross / 2][4];
  };

  float c[kDown][kAcross][4];
  Fragments even, odd;
  int a_place[2], b_place[2];  // of this lane's row, in either step

  __device__ __forceinline__ TensorProduct() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int a_row = warp / 2 * (kM / 2) + lane % 16, b_row = warp % 2 * (kN / 2) + lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      a_place[step] = a_row * kLine + swapped(a_row, 2 * step + lane / 16) * 16;
      b_place[step] = (kM + b_row) * kLine + swapped(b_row, 2 * step + lane / 8 % 2) * 16;
    }
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) c[i][j][k] = 0;
      }
    }
  }

  __device__ __forceinline__ void load(Fragments& to, const unsigned char* stage, int step) {
#pragma unroll
    for (int i = 0; i < kDown; ++i) ldmatrix_x4(to.a[i], stage + a_place[step] + i * 16 * kLine);
#pragma unroll
    for (int j = 0; j < kAcross / 2; ++j) ldmatrix_x4(to.b[j], stage + b_place[step] + j * 16 * kLine);
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) to.a[i][k] = to_tf32(__uint_as_float(to.a[i][k]));
      }
    }
  }

  __device__ __forceinline__ void add(const Fragments& from) {
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        const uint32_t b[2] = {from.b[j / 2][j % 2 * 2], from.b[j / 2][j % 2 * 2 + 1]};
        multiply(c[i][j], from.a[i], b, T{});
      }
    }
  }

  __device__ __forceinline__ void begin(const unsigned char* stage) { load(even, stage, 0); }
  __device__ __forceinline__ void first_half(const unsigned char* stage) { load(odd, stage, 1); }
  __device__ __forceinline__ void multiply_first() { add(even); }
  __device__ __forceinline__ void next(const unsigned char* stage) { load(even, stage, 0); }
  __device__ __forceinline__ void multiply_second() { add(odd); }

  // Calls put(row, column, value, value of the next column) for all of them.
  template <class F>
  __device__ __forceinline__ void each(F put) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp / 2 * (kM / 2) + lane / 4, column = warp % 2 * (kN / 2) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        put(row + i * 16, column + j * 8, c[i][j][0], c[i][j][1]);
        put(row + i * 16 + 8, column + j * 8, c[i][j][2], c[i][j][3]);
      }
    }
  }
};

// The same by fused multiply-adds: a thread owns rows 16 apart and pairs of columns 16 apart.
template <int kM, int kN>
struct PlainProduct {
  static constexpr int kDown = kM / 16, kAcross = kN / 8;

  float c[kDown][kAcross];
  int row, column;

  __device__ __forceinline__ PlainProduct() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    row = warp % 2 * 8 + lane % 8;
    column = (warp / 2 * 4 + lane / 8) * 2;
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) c[i][j] = 0;
    }
  }
  static __device__ __forceinline__ const float* at(const unsigned char* stage, int line, int chunk) {
    return reinterpret_cast<const float*>(stage + line * kLine + swapped(line, chunk) * 16);
  }
  __device__ __forceinline__ void add(const unsigned char* stage, int chunk) {
    float a[kDown][4];
#pragma unroll
    for (int i = 0; i < kDown; ++i) load_wide(a[i], at(stage, row + 16 * i, chunk));
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
      float b[4];
      load_wide(b, at(stage, kM + column + j / 2 * 16 + j % 2, chunk));
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) c[i][j] = multiply_add(a[i][k], b[k], c[i][j]);
      }
    }
  }

  __device__ __forceinline__ void begin(const unsigned char*) {}
  __device__ __forceinline__ void first_half(const unsigned char* stage) {
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk) add(stage, chunk);  // long enough; unrolled it takes all registers
  }
  __device__ __forceinline__ void multiply_first() {}
  __device__ __forceinline__ void next(const unsigned char*) {}
  __device__ __forceinline__ void multiply_second() {}

  template <class F>
  __device__ __forceinline__ void each(F put) const {
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) put(row + 16 * i, column + j * 8, c[i][j], c[i][j + 1]);
    }
  }
};

}  // namespace ganscale::cuda
