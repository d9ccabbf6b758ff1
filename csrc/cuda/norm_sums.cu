// Two sums a channel on a GPU, of a batch norm and of its backward; how they are taken is in channel_sums.h.
//
// Moments are summed about the channel's first element, so that a mean far from 0 costs no accuracy; the gradients' terms
// are computed from gy and x in passing. Bound: bandwidth, inputs once. One warp a channel writes what the sums give.
#include "channel_sums.h"
#include "ganscale/norm_act.h"

namespace ganscale::cuda {
namespace {

// --- what is summed -------------------------------------------------------------------------------------------------

// Sums of x - x[0, c, 0] and its square: about a number near the mean squares lose nothing to cancellation.
template <class T>
struct Moments {
  using A = typename Number<T>::Acc;
  static constexpr int kCount = 2;
  const T* x;
  int64_t inner;

  template <int width>
  struct Channels {
    A shift[width];
  };
  template <int width>
  __device__ __forceinline__ Channels<width> load(const int (&channel)[width]) const {
    Channels<width> of;
#pragma unroll
    for (int i = 0; i < width; ++i) of.shift[i] = widen(x[channel[i] * inner]);
    return of;
  }
  template <int width>
  struct Row {
    Pack<T, width> x;
  };
  template <int width>
  __device__ __forceinline__ void read(Row<width>& row, int64_t at) const {
    row.x = *reinterpret_cast<const Pack<T, width>*>(x + at);
  }
  template <int width>
  __device__ __forceinline__ void add(const Row<width>& row, const Channels<width>& of,
                                      A (&totals)[kCount][width]) const {
    A v[width];
    widen_all(v, row.x);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      v[i] -= of.shift[i];
      totals[0][i] += v[i];
      totals[1][i] = multiply_add(v[i], v[i], totals[1][i]);
    }
  }
};

// Sums of g' and of g' (x - mean).
template <class T>
struct Gradients {
  using A = typename Number<T>::Acc;
  static constexpr int kCount = 2;
  const T* gy;
  const T* x;
  const A* mean;  // or null
  const A* scale;
  const A* shift;
  int activation;
  A slope;

  template <int width>
  struct Channels {
    A mean[width], scale[width], shift[width];
  };
  template <int width>
  __device__ __forceinline__ Channels<width> load(const int (&channel)[width]) const {
    Channels<width> of;
    load_channels(of.mean, mean, channel, A(0));
    load_channels(of.scale, scale, channel, A(1));
    load_channels(of.shift, shift, channel, A(0));
    return of;
  }
  template <int width>
  struct Row {
    Pack<T, width> gy, x;
  };
  template <int width>
  __device__ __forceinline__ void read(Row<width>& row, int64_t at) const {
    row.gy = *reinterpret_cast<const Pack<T, width>*>(gy + at);
    row.x = *reinterpret_cast<const Pack<T, width>*>(x + at);
  }
  template <int width>
  __device__ __forceinline__ void add(const Row<width>& row, const Channels<width>& of,
                                      A (&totals)[kCount][width]) const {
    A g[width], v[width], z[width];
    widen_all(g, row.gy);
    widen_all(v, row.x);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      v[i] -= of.mean[i];
      z[i] = multiply_add(v[i], of.scale[i], of.shift[i]);
    }
    backward_all(g, z, activation, slope);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      totals[0][i] += g[i];
      totals[1][i] = multiply_add(g[i], v[i], totals[1][i]);
    }
  }
};

// --- second stage ----------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads)
    join_moments_kernel(const double* __restrict__ partial, const T* __restrict__ x, double* __restrict__ totals,
                        Parts parts, int64_t inner, double count) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (channel >= parts.channels) return;
  const double first = join(partial, channel, parts), second = join(partial + parts.sums_apart, channel, parts);
  if (threadIdx.x % 32 != 0) return;
  const double shift = widen(x[channel * inner]);
  totals[channel] = first + count * shift;
  totals[parts.channels + channel] = second + shift * (2 * first + count * shift);
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    join_gradients_kernel(const double* __restrict__ partial, const A* __restrict__ rstd, double* __restrict__ totals,
                          A* __restrict__ gradients, Parts parts) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (channel >= parts.channels) return;
  const double first = join(partial, channel, parts), second = join(partial + parts.sums_apart, channel, parts);
  if (threadIdx.x % 32 != 0) return;
  totals[channel] = first;
  totals[parts.channels + channel] = second;
  gradients[channel] = static_cast<A>(second * (rstd == nullptr ? 1.0 : static_cast<double>(rstd[channel])));
  gradients[parts.channels + channel] = static_cast<A>(first);
}

}  // namespace

// --- host -----------------------------------------------------------------------------------------------------------

int64_t norm_workspace_bytes(int64_t outer, int64_t channels, int64_t inner) {
  const int64_t sums = partial_sums(outer, channels, inner, 2), terms = 2 * channels;  // of affine_act_backward
  return (sums > terms ? sums : terms) * static_cast<int64_t>(sizeof(double));
}

Status channel_moments(const View& x, const View& totals, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const T* data = static_cast<const T*>(x.data);
    Parts parts{};
    const Status summed = with_sums_width<T>(x, aligned16(x.data), [&](auto width) {
      return launch_sums<T, decltype(width)::value>(Moments<T>{data, x.size[2]}, x, exec, parts);
    });
    if (summed.code != kOk) return summed;
    GS_LAUNCH(join_blocks(x.size[1]), kThreads, 0, stream_of(exec), join_moments_kernel<T>)(
        static_cast<const double*>(exec.workspace), data, static_cast<double*>(totals.data), parts, x.size[2],
        static_cast<double>(x.size[0]) * static_cast<double>(x.size[2]));
    return launched("channel_moments, second stage");
  });
}

Status affine_act_backward_sums(const View& gy, const View& x, const View& mean, const View& scale, const View& shift,
                                const View& rstd, const View& totals, const View& gradients, int activation,
                                double slope, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Number<T>::Acc;
    const Gradients<T> sums{static_cast<const T*>(gy.data),     static_cast<const T*>(x.data),
                            static_cast<const A*>(mean.data),   static_cast<const A*>(scale.data),
                            static_cast<const A*>(shift.data),  activation,
                            static_cast<A>(slope)};
    Parts parts{};
    const Status summed = with_sums_width<T>(x, aligned16(x.data) && aligned16(gy.data), [&](auto width) {
      return launch_sums<T, decltype(width)::value>(sums, x, exec, parts);
    });
    if (summed.code != kOk) return summed;
    GS_LAUNCH(join_blocks(x.size[1]), kThreads, 0, stream_of(exec), join_gradients_kernel<A>)(
        static_cast<const double*>(exec.workspace), static_cast<const A*>(rstd.data),
        static_cast<double*>(totals.data), static_cast<A*>(gradients.data), parts);
    return launched("affine_act_backward_sums, second stage");
  });
}

}  // namespace ganscale::cuda
