// Bias + activation, its backward, and the sum over all axes but the channels, on a GPU. Tensors are [O, C, I].
//
// bias_act, act_backward: each thread owns one pack of 16 bytes of the output. Bound: bandwidth, every tensor once.
// channel_sum: block (column tile, band) owns the sums of 32 columns over one band of rows, where the tensor is read
// as rows [O, C * I] if I is short, else as [O, C] runs of I and block (channel, band) owns one channel; then one
// thread a channel joins the bands in order. Bound: bandwidth, x once. No atomics: equal inputs give equal bits.
#include "wrap.h"

namespace ganscale::cuda {
namespace {

constexpr int64_t kLongRun = 64;  // elements of one channel in a row, from which a block reads runs
constexpr int kBandsMost = 64;
constexpr int kTile = 32;  // columns of a block in the row-wise sum

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- kernels --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }

template <class A>
__device__ __forceinline__ A activate(A z, int activation, A slope) {
  switch (activation) {
    case kRelu: return z <= A(0) ? A(0) : z;  // a NaN stays a NaN
    case kLeakyRelu: return z > A(0) ? z : z * slope;
    case kTanh: return tanh_of(z);
    default: return z;
  }
}

template <class A>
__device__ __forceinline__ A backward_at(A gy, A y, int activation, A slope) {
  switch (activation) {
    case kRelu: return y > A(0) ? gy : A(0);
    case kLeakyRelu: return y > A(0) ? gy : gy * slope;
    case kTanh: return gy * (A(1) - y * y);
    default: return gy;
  }
}

// Index is 32-bit where the tensor allows it: a 64-bit division costs tens of instructions.
template <class T, int width, class Index>
__global__ void __launch_bounds__(kThreads)
    bias_act_kernel(const T* __restrict__ x,     // [O, C, I]
                    const T* __restrict__ bias,  // [C] or null
                    T* __restrict__ y,           // [O, C, I]
                    Index total, Index channels, Index inner, int activation, typename Number<T>::Acc slope) {
  using A = typename Number<T>::Acc;
  const Index first = (static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (first >= total) return;
  const auto in = *reinterpret_cast<const Pack<T, width>*>(x + first);
  Pack<T, width> out;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    A z = widen(in.at[i]);
    if (bias != nullptr) z += widen(bias[(first + i) / inner % channels]);
    narrow(activate(z, activation, slope), out.at[i]);
  }
  store_pack(y + first, out);
}

template <class T, int width>
__global__ void __launch_bounds__(kThreads)
    act_backward_kernel(const T* __restrict__ gy, const T* __restrict__ y, T* __restrict__ gx, int64_t total,
                        int activation, typename Number<T>::Acc slope) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (first >= total) return;
  const auto g = *reinterpret_cast<const Pack<T, width>*>(gy + first);
  const auto v = *reinterpret_cast<const Pack<T, width>*>(y + first);
  Pack<T, width> out;
#pragma unroll
  for (int i = 0; i < width; ++i) narrow(backward_at(widen(g.at[i]), widen(v.at[i]), activation, slope), out.at[i]);
  store_pack(gx + first, out);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    run_sums_kernel(const T* __restrict__ x,                           // [O, C, I], I long
                    typename Number<T>::Acc* __restrict__ partial,  // [bands, C]
                    int64_t outer, int64_t channels, int64_t inner, int64_t rows_per_band) {
  using A = typename Number<T>::Acc;
  const int64_t channel = blockIdx.x % channels, band = blockIdx.x / channels, first = band * rows_per_band;
  const int64_t last = first + rows_per_band < outer ? first + rows_per_band : outer;
  A total = A(0);
  for (int64_t row = first; row < last; ++row) {
    const T* run = x + (row * channels + channel) * inner;
    for (int64_t i = threadIdx.x; i < inner; i += kThreads) total += widen(run[i]);
  }
  total = block_sum(total);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    column_sums_kernel(const T* __restrict__ x,                           // [rows, columns]
                       typename Number<T>::Acc* __restrict__ partial,  // [bands, columns]
                       int64_t rows, int64_t columns, int64_t tiles, int64_t rows_per_band) {
  using A = typename Number<T>::Acc;
  GS_SHARED(A, sums, kWarps * kTile);
  const int lane = threadIdx.x % kTile, line = threadIdx.x / kTile;
  const int64_t column = blockIdx.x % tiles * kTile + lane, band = blockIdx.x / tiles;
  const int64_t first = band * rows_per_band, last = first + rows_per_band < rows ? first + rows_per_band : rows;
  A total = A(0);
  if (column < columns) {
    for (int64_t row = first + line; row < last; row += kWarps) total += widen(x[row * columns + column]);
  }
  sums[line * kTile + lane] = total;
  __syncthreads();
  if (line != 0 || column >= columns) return;
  for (int other = 1; other < kWarps; ++other) total += sums[other * kTile + lane];
  partial[band * columns + column] = total;
}

// run is 1 where the partials are one a channel, else I.
template <class T>
__global__ void __launch_bounds__(kThreads)
    join_kernel(const typename Number<T>::Acc* __restrict__ partial,  // [bands, C * run]
                T* __restrict__ sum,                                  // [C]
                int64_t bands, int64_t channels, int64_t run) {
  using A = typename Number<T>::Acc;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (channel >= channels) return;
  double total = 0;
  for (int64_t band = 0; band < bands; ++band) {
    for (int64_t i = 0; i < run; ++i) total += partial[(band * channels + channel) * run + i];
  }
  narrow(static_cast<A>(total), sum[channel]);
}

// --- launchers ------------------------------------------------------------------------------------------------------

template <class T, int width, class Index>
Status launch_bias_act(const View& x, const View& bias, const View& y, int activation, double slope, const Exec& exec) {
  using A = typename Number<T>::Acc;
  const int64_t total = x.size[0] * x.size[1] * x.size[2], blocks = ceil_div(total, kThreads * width);
  if (!fits_grid(blocks)) return fail(kBadArgument, "bias_act must need fewer than 2^31 blocks; split the batch");
  GS_LAUNCH(static_cast<unsigned>(blocks), kThreads, 0, stream_of(exec), bias_act_kernel<T, width, Index>)(
      static_cast<const T*>(x.data), static_cast<const T*>(bias.data), static_cast<T*>(y.data),
      static_cast<Index>(total), static_cast<Index>(x.size[1]), static_cast<Index>(x.size[2]), activation,
      static_cast<A>(slope));
  return launched("bias_act");
}

template <class T, int width>
Status launch_backward(const View& gy, const View& y, const View& gx, int activation, double slope, const Exec& exec) {
  using A = typename Number<T>::Acc;
  const int64_t total = gy.size[0] * gy.size[1] * gy.size[2], blocks = ceil_div(total, kThreads * width);
  if (!fits_grid(blocks)) return fail(kBadArgument, "act_backward must need fewer than 2^31 blocks; split the batch");
  GS_LAUNCH(static_cast<unsigned>(blocks), kThreads, 0, stream_of(exec), act_backward_kernel<T, width>)(
      static_cast<const T*>(gy.data), static_cast<const T*>(y.data), static_cast<T*>(gx.data), total, activation,
      static_cast<A>(slope));
  return launched("act_backward");
}

struct Plan {
  int64_t columns, run, bands, rows_per_band;
  bool long_runs;
};

Plan plan_channel_sum(int64_t outer, int64_t channels, int64_t inner) {
  const bool long_runs = inner >= kLongRun;
  const int64_t least = long_runs ? 1 : 4 * kWarps;  // rows of a band: give every thread of a block some work
  const int64_t rows = ceil_div(outer, kBandsMost) > least ? ceil_div(outer, kBandsMost) : least;
  return {long_runs ? channels : channels * inner, long_runs ? 1 : inner, ceil_div(outer, rows), rows, long_runs};
}

}  // namespace

// --- host -----------------------------------------------------------------------------------------------------------

Status bias_act(const View& x, const View& bias, const View& y, int activation, double slope, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    constexpr int wide = kWide<T>;
    const int64_t total = x.size[0] * x.size[1] * x.size[2];
    const bool packs = total % wide == 0 && aligned16(x.data) && aligned16(y.data);
    if (total > INT32_MAX / 2) {
      return packs ? launch_bias_act<T, wide, uint64_t>(x, bias, y, activation, slope, exec)
                   : launch_bias_act<T, 1, uint64_t>(x, bias, y, activation, slope, exec);
    }
    return packs ? launch_bias_act<T, wide, uint32_t>(x, bias, y, activation, slope, exec)
                 : launch_bias_act<T, 1, uint32_t>(x, bias, y, activation, slope, exec);
  });
}

Status act_backward(const View& gy, const View& y, const View& gx, int activation, double slope, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(gy.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    constexpr int wide = kWide<T>;
    const int64_t total = gy.size[0] * gy.size[1] * gy.size[2];
    if (total % wide == 0 && aligned16(gy.data) && aligned16(y.data) && aligned16(gx.data)) {
      return launch_backward<T, wide>(gy, y, gx, activation, slope, exec);
    }
    return launch_backward<T, 1>(gy, y, gx, activation, slope, exec);
  });
}

int64_t channel_sum_workspace_bytes(int64_t outer, int64_t channels, int64_t inner) {
  const Plan plan = plan_channel_sum(outer, channels, inner);
  return plan.bands * plan.columns * static_cast<int64_t>(sizeof(double));
}

Status channel_sum(const View& x, const View& sum, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Number<T>::Acc;
    const int64_t outer = x.size[0], channels = x.size[1], inner = x.size[2];
    const Plan plan = plan_channel_sum(outer, channels, inner);
    const int64_t tiles = ceil_div(plan.columns, kTile), blocks = plan.bands * (plan.long_runs ? channels : tiles);
    if (!fits_grid(blocks)) return fail(kBadArgument, "channel_sum must need fewer than 2^31 blocks; split the batch");
    auto* partial = static_cast<A*>(exec.workspace);
    const unsigned grid = static_cast<unsigned>(blocks);
    if (plan.long_runs) {
      GS_LAUNCH(grid, kThreads, 0, stream_of(exec), run_sums_kernel<T>)(static_cast<const T*>(x.data), partial, outer,
                                                                 channels, inner, plan.rows_per_band);
    } else {
      GS_LAUNCH(grid, kThreads, 0, stream_of(exec), column_sums_kernel<T>)(static_cast<const T*>(x.data), partial, outer,
                                                                    plan.columns, tiles, plan.rows_per_band);
    }
    const Status sums = launched("channel_sum, first stage");
    if (sums.code != kOk) return sums;
    GS_LAUNCH(static_cast<unsigned>(ceil_div(channels, kThreads)), kThreads, 0, stream_of(exec), join_kernel<T>)(
        partial, static_cast<T*>(sum.data), plan.bands, channels, plan.run);
    return launched("channel_sum, second stage");
  });
}

}  // namespace ganscale::cuda
