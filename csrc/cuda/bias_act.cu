// Bias + activation, its backward, and the sum over all axes but the channels, on a GPU. Tensors are [O, C, I].
//
// bias_act, act_backward: each thread owns packs of 16 bytes of the output. channel_sum: see channel_sums.h; one warp a
// channel joins the partial sums. Bound: bandwidth, every tensor once. No atomics: equal inputs give equal bits.
#include "bias.h"
#include "channel_sums.h"

namespace ganscale::cuda {
namespace {

constexpr int kPacks = 2;  // that a thread has under way

// --- kernels --------------------------------------------------------------------------------------------------------

// Index is 32-bit where the tensor allows it: a 64-bit division costs tens of instructions.
template <class T, int width, class Index>
__global__ void __launch_bounds__(kThreads)
    bias_act_kernel(const T* __restrict__ x,     // [O, C, I]
                    const T* __restrict__ bias,  // [C] or null
                    T* __restrict__ y,           // [O, C, I]
                    Index total, Divider<Index> inner, Divider<Index> channels, int fold, int activation,
                    typename Number<T>::Acc slope) {
  using A = typename Number<T>::Acc;
  const Index start = (static_cast<Index>(blockIdx.x) * (kThreads * kPacks) + threadIdx.x) * width;
  Pack<T, width> in[kPacks] = {};
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const Index first = start + k * (kThreads * width);
    if (first < total) in[k] = *reinterpret_cast<const Pack<T, width>*>(x + first);
  }
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const Index first = start + k * (kThreads * width);
    if (first >= total) break;
    A z[width];
    widen_all(z, in[k]);
    add_bias(z, bias, first, fold, inner, channels);
    activate_all(z, activation, slope);
    store_narrow(y + first, z);
  }
}

// gx = gy * act'(z), the derivative read off y = act(z): where y > 0, so was z.
template <class T, int width>
__global__ void __launch_bounds__(kThreads)
    act_backward_kernel(const T* __restrict__ gy, const T* __restrict__ y, T* __restrict__ gx, int64_t total,
                        int activation, typename Number<T>::Acc slope) {
  using A = typename Number<T>::Acc;
  const int64_t start = (static_cast<int64_t>(blockIdx.x) * (kThreads * kPacks) + threadIdx.x) * width;
  Pack<T, width> gradient[kPacks] = {}, output[kPacks] = {};
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t first = start + k * (kThreads * width);
    if (first < total) {
      gradient[k] = *reinterpret_cast<const Pack<T, width>*>(gy + first);
      output[k] = *reinterpret_cast<const Pack<T, width>*>(y + first);
    }
  }
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t first = start + k * (kThreads * width);
    if (first >= total) break;
    A g[width], v[width];
    widen_all(g, gradient[k]);
    widen_all(v, output[k]);
    if (activation == kTanh) {
#pragma unroll
      for (int i = 0; i < width; ++i) g[i] *= A(1) - v[i] * v[i];
    } else {
      backward_all(g, v, activation, slope);
    }
    store_narrow(gx + first, g);
  }
}

// One sum a channel, of x itself.
template <class T>
struct Total {
  using A = typename Number<T>::Acc;
  static constexpr int kCount = 1;
  const T* x;

  template <int width>
  struct Channels {};
  template <int width>
  struct Row {
    Pack<T, width> x;
  };
  template <int width>
  __device__ __forceinline__ Channels<width> load(const int (&)[width]) const {
    return {};
  }
  template <int width>
  __device__ __forceinline__ void read(Row<width>& row, int64_t at) const {
    row.x = *reinterpret_cast<const Pack<T, width>*>(x + at);
  }
  template <int width>
  __device__ __forceinline__ void add(const Row<width>& row, const Channels<width>&, A (&totals)[kCount][width]) const {
    A v[width];
    widen_all(v, row.x);
#pragma unroll
    for (int i = 0; i < width; ++i) totals[0][i] += v[i];
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    join_kernel(const double* __restrict__ partial, T* __restrict__ sum /* [C] */, Parts parts) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (channel >= parts.channels) return;
  const double total = join(partial, channel, parts);
  if (threadIdx.x % 32 == 0) narrow(static_cast<typename Number<T>::Acc>(total), sum[channel]);
}

// --- launchers ------------------------------------------------------------------------------------------------------

template <class T, int width, class Index>
Status launch_bias_act(const View& x, const View& bias, const View& y, int activation, double slope, const Exec& exec) {
  using A = typename Number<T>::Acc;
  const int64_t total = x.size[0] * x.size[1] * x.size[2], blocks = ceil_div(total, kThreads * kPacks * width);
  if (!fits_grid(blocks)) return fail(kBadArgument, "bias_act must need fewer than 2^31 blocks; split the batch");
  GS_LAUNCH(static_cast<unsigned>(blocks), kThreads, 0, stream_of(exec), bias_act_kernel<T, width, Index>)(
      static_cast<const T*>(x.data), static_cast<const T*>(bias.data), static_cast<T*>(y.data),
      static_cast<Index>(total), Divider<Index>(x.size[2]), Divider<Index>(x.size[1]),
      bias_fold(bias, x.size[1], x.size[2], width), activation, static_cast<A>(slope));
  return launched("bias_act");
}

template <class T, int width>
Status launch_backward(const View& gy, const View& y, const View& gx, int activation, double slope, const Exec& exec) {
  using A = typename Number<T>::Acc;
  const int64_t total = gy.size[0] * gy.size[1] * gy.size[2], blocks = ceil_div(total, kThreads * kPacks * width);
  if (!fits_grid(blocks)) return fail(kBadArgument, "act_backward must need fewer than 2^31 blocks; split the batch");
  GS_LAUNCH(static_cast<unsigned>(blocks), kThreads, 0, stream_of(exec), act_backward_kernel<T, width>)(
      static_cast<const T*>(gy.data), static_cast<const T*>(y.data), static_cast<T*>(gx.data), total, activation,
      static_cast<A>(slope));
  return launched("act_backward");
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
  return partial_sums(outer, channels, inner, 1) * static_cast<int64_t>(sizeof(double));
}

Status channel_sum(const View& x, const View& sum, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    Parts parts{};
    const Status summed = with_sums_width<T>(x, aligned16(x.data), [&](auto width) {
      return launch_sums<T, decltype(width)::value>(Total<T>{static_cast<const T*>(x.data)}, x, exec, parts);
    });
    if (summed.code != kOk) return summed;
    GS_LAUNCH(join_blocks(x.size[1]), kThreads, 0, stream_of(exec), join_kernel<T>)(
        static_cast<const double*>(exec.workspace), static_cast<T*>(sum.data), parts);
    return launched("channel_sum, second stage");
  });
}

}  // namespace ganscale::cuda
