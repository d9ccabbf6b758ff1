// The matrix product of one output phase of a transposed convolution (see phases.h), channels_last.
//
//   rows     m = (sample, j, i), the outputs of the phase        N * h' * w'
//   columns  n = output channel                                  CO
//   depth    k = (tap, input channel)                            taps * padded CI
//
// A block of 4 warps owns a tile kM x kN of one phase, a warp a quarter of it, in registers. Rows of x (gathered by tap,
// zeros past its rim) and of the packed weights come in by 16-byte asynchronous copies, kStages deep, as lines of 64 bytes
// whose four chunks are swapped by the line's number, so that neither copies nor ldmatrix meet a bank twice. 16-bit floats
// are multiplied as 16x8x16 and tf32 as 16x8x8, whose fragments are the same bytes; IEEE float32 by fused multiply-adds.
// The tile then passes through shared memory as float32 to become 16-byte stores and, where asked for, one (mean, sum of
// squares about it) a column and band of rows. Bound: tensor cores, from about 128 columns on; else the L2 cache.
//
// Shared memory: kStages * (kM + kN) * 64 bytes, or kM * kN * 4 if more: 64 KiB at 128 x 128, so that two blocks and more
// fit a multiprocessor at up to 255 registers a thread. Each sum runs over taps, then channels, in one thread.
#pragma once

#include "conv_transpose_product.h"

namespace ganscale::cuda {

// --- the way out ----------------------------------------------------------------------------------------------------

// The tile in shared memory, float32. Chunks are swapped so that the pairs a warp writes meet no bank twice.
template <int kN>
__device__ __forceinline__ float* tile_at(unsigned char* shared, int row, int column) {
  return reinterpret_cast<float*>(shared) + row * kN + ((column >> 2 ^ (row & 3) << 1) << 2 | (column & 3));
}

// One record a column and group: over the values as stored, about the first of them, so that a large mean costs nothing.
template <class T, int kM, int kN>
__device__ __forceinline__ void write_records(const GemmArguments<T>& args, const TileOf& tile, unsigned char* shared) {
  constexpr int kRows = kM / kGroups<kN>;
  const int column = threadIdx.x % kN, group = threadIdx.x / kN, first = group * kRows;
  const int left = tile.rows - tile.m0 - first, count = left < kRows ? left : kRows;
  if (count <= 0 || tile.n0 + column >= args.sizes.out_channels) return;
  const auto stored = [&](int row) {
    T rounded;
    narrow(*tile_at<kN>(shared, first + row, column), rounded);
    return widen(rounded);
  };
  const float about = stored(0);
  float sum = 0, squares = 0;
#pragma unroll 4
  for (int row = 1; row < count; ++row) {
    const float v = stored(row) - about;
    sum += v;
    squares = multiply_add(v, v, squares);
  }
  const float mean = sum / static_cast<float>(count);
  Record record;
  record.at[0] = about + mean;
  record.at[1] = squares - sum * mean;
  args.records[static_cast<int64_t>(tile.n0 + column) * args.bands + tile.band + group] = record;
}

// y = act(tile * scale + shift), 16 bytes of a pixel at a time; `pixels` are the rows' places in y, or -1.
template <class T, int kM, int kN>
__device__ __forceinline__ void write_outputs(const GemmArguments<T>& args, const TileOf& tile, unsigned char* shared,
                                              const int* pixels) {
  constexpr int kEach = 16 / sizeof(T), kPacks = kN / kEach, kApart = kGemmThreads / kPacks;
  const int column = static_cast<int>(threadIdx.x) % kPacks * kEach, channels = args.sizes.out_channels;
  const int left = channels - tile.n0 - column;
  if (left <= 0) return;
  float scale[kEach], shift[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    scale[i] = args.scale != nullptr && i < left ? args.scale[tile.n0 + column + i] : 1;
    shift[i] = args.shift != nullptr && i < left ? args.shift[tile.n0 + column + i] : 0;
  }
#pragma unroll 2
  for (int row = threadIdx.x / kPacks; row < kM; row += kApart) {
    if (pixels[row] < 0) break;  // no later row exists either
    float v[kEach];
#pragma unroll
    for (int i = 0; i < kEach; i += 4) {
      const auto four = *reinterpret_cast<const Pack<float, 4>*>(tile_at<kN>(shared, row, column + i));
#pragma unroll
      for (int k = 0; k < 4; ++k) v[i + k] = multiply_add(four.at[k], scale[i + k], shift[i + k]);
    }
    activate_all(v, args.activation, args.slope);
    T* const to = args.y + static_cast<int64_t>(pixels[row]) * channels + tile.n0 + column;
    if (args.wide) {
      store_narrow(to, v);
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (i < left) narrow(v[i], to[i]);
      }
    }
  }
}

// --- the kernel -----------------------------------------------------------------------------------------------------

// Places in y of the tile's rows, counted in pixels; -1 past the last row.
template <class T, int kM>
__device__ __forceinline__ void find_pixels(int* pixels, const GemmArguments<T>& args, const TileOf& tile) {
  const int area = tile.down.count * tile.across.count;
  for (int row = threadIdx.x; row < kM; row += kGemmThreads) {
    const int m = tile.m0 + row, sample = m / area;
    const int j = (m - sample * area) / tile.across.count, i = m - sample * area - j * tile.across.count;
    const int64_t line = static_cast<int64_t>(sample) * args.sizes.out[0] + j * args.sizes.stride[0] + tile.phase_down;
    const int64_t pixel = line * args.sizes.out[1] + i * args.sizes.stride[1] + tile.phase_across;
    pixels[row] = m < tile.rows ? static_cast<int>(pixel) : -1;
  }
}

// All stages of the product: copies run kStages - 1 ahead.
template <class T, class Product, int kM, int kN>
__device__ __forceinline__ void run_stages(Product& product, const GemmArguments<T>& args, const TileOf& tile,
                                           unsigned char* shared) {
  constexpr int kStageBytes = (kM + kN) * kLine, kPerStage = kLine / static_cast<int>(sizeof(T));
  Loader<T, kM, kN> loader(args, tile);
  const int stages = (tile.depth + kPerStage - 1) / kPerStage;
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < stages) loader.copy(shared + stage * kStageBytes);
    cp_async_commit();
  }
  cp_async_wait<kStages - 2>();
  __syncthreads();
  product.begin(shared);
  int reading = 0, writing = kStages - 1;
  for (int done = 0; done < stages; ++done) {
    // The stage written to was last read before the barrier of the iteration before this one.
    if (done + kStages - 1 < stages) loader.copy(shared + writing * kStageBytes);
    cp_async_commit();
    product.first_half(shared + reading * kStageBytes);
    product.multiply_first();
    writing = reading;
    reading = reading + 1 == kStages ? 0 : reading + 1;
    cp_async_wait<kStages - 2>();
    __syncthreads();
    product.next(shared + reading * kStageBytes);  // past the last stage: whatever lies there, and not used
    product.multiply_second();
  }
  cp_async_wait<0>();  // the groups left are empty: for the race checker
  __syncthreads();     // what was read past the last stage is not used: for the race checker
}

template <class T, class Product, int kM, int kN>
__global__ void __launch_bounds__(kGemmThreads, 2) gemm_kernel(GemmArguments<T> args) {
  GS_DYNAMIC_SHARED(shared);
  GS_SHARED(int, pixels, kM);
  const TileOf tile = tile_of<T, kM, kN>(args);
  if (tile.m0 >= tile.rows) return;  // the whole block: a phase may have fewer rows than the largest
  find_pixels<T, kM>(pixels, args, tile);
  Product product;
  run_stages<T, Product, kM, kN>(product, args, tile, shared);
  product.each([&](int row, int column, float first, float second) {
    Pack<float, 2> pair;
    pair.at[0] = first;
    pair.at[1] = second;
    *reinterpret_cast<Pack<float, 2>*>(tile_at<kN>(shared, row, column)) = pair;
  });
  __syncthreads();
  if (args.records != nullptr) write_records<T, kM, kN>(args, tile, shared);
  write_outputs<T, kM, kN>(args, tile, shared, pixels);
}

}  // namespace ganscale::cuda
