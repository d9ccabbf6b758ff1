// Batch statistics made into an affine map, affine map + activation and its backward, on a GPU. Tensors are [O, C, I].
//
// Each thread owns a pack of 16 bytes of columns (see planes.h) in one band of rows, keeps what belongs to their channels
// in registers and writes those outputs. Bound: bandwidth, every tensor once. What belongs to a channel is prepared in
// float64 by one thread a channel beforehand. The sums over a channel are in norm_sums.cu.
#include "ganscale/norm_act.h"

#include "planes.h"

namespace ganscale::cuda {
namespace {

constexpr int64_t kBlocks = 2048;   // wanted: a few waves of blocks on the largest GPUs
constexpr int64_t kLeastLines = 4;  // steps of a thread, to pay for loading what belongs to its channels
constexpr int64_t kMostLines = 32;

// --- kernels --------------------------------------------------------------------------------------------------------

template <class A>
__global__ void __launch_bounds__(kThreads)
    stats_kernel(const double* __restrict__ totals,  // [2 C + 1]: sums, sums of squares, count
                 const A* __restrict__ gamma, const A* __restrict__ beta,  // [C] or null
                 A* __restrict__ stats,                                    // [kStatRows, C]
                 int64_t channels, double eps) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (channel >= channels) return;
  const double count = totals[2 * channels], mean = totals[channel] / count;
  const double spread = totals[channels + channel] / count - mean * mean;
  const double variance = spread < 0 ? 0 : spread;  // a NaN stays a NaN
  const double rstd = 1 / sqrt(variance + eps);
  const double scale = (gamma == nullptr ? 1.0 : static_cast<double>(gamma[channel])) * rstd;
  const A rounded = static_cast<A>(mean);
  stats[kMean * channels + channel] = rounded;
  stats[kScale * channels + channel] = static_cast<A>(scale);
  stats[kShift * channels + channel] = static_cast<A>((beta == nullptr ? 0.0 : static_cast<double>(beta[channel])) -
                                                      (mean - static_cast<double>(rounded)) * scale);
  stats[kRstd * channels + channel] = static_cast<A>(rstd);
  stats[kVariance * channels + channel] = static_cast<A>(variance);
  stats[kUnbiased * channels + channel] = static_cast<A>(variance * count / (count - 1));
}

// gx = scale * g' - (x - mean) * slant - offset: what totals mean for a channel.
template <class A>
__global__ void __launch_bounds__(kThreads)
    backward_terms_kernel(const double* __restrict__ totals,                          // [2 C + 1]
                          const A* __restrict__ scale, const A* __restrict__ rstd,  // [C]
                          A* __restrict__ terms,                                    // [2, C]: slant, offset
                          int64_t channels) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (channel >= channels) return;
  const double count = totals[2 * channels], s = scale[channel], r = rstd[channel];
  terms[channel] = static_cast<A>(s * r * r * totals[channels + channel] / count);
  terms[channels + channel] = static_cast<A>(s * totals[channel] / count);
}

template <class T, int width>
__global__ void __launch_bounds__(kThreads, 2)
    affine_act_kernel(const T* __restrict__ x,                           // [rows, columns]
                      const typename Number<T>::Acc* __restrict__ mean,  // [C] or null
                      const typename Number<T>::Acc* __restrict__ scale, const typename Number<T>::Acc* __restrict__ shift,
                      T* __restrict__ y,  // [rows, columns]
                      Walk walk, int activation, typename Number<T>::Acc slope) {
  using A = typename Number<T>::Acc;
  const Share share = share_of(walk);
  if (share.steps <= 0) return;
  int channel[width];
  channels_of(channel, share.column, walk);
  A m[width], s[width], h[width];
  load_channels(m, mean, channel, A(0));
  load_channels(s, scale, channel, A(1));
  load_channels(h, shift, channel, A(0));
  Pack<T, width> in[4] = {};
  walk_rows<4>(
      share, [&](int k, int64_t at) { in[k] = *reinterpret_cast<const Pack<T, width>*>(x + at); },
      [&](int k, int64_t at) {
        A v[width];
        widen_all(v, in[k]);
#pragma unroll
        for (int i = 0; i < width; ++i) v[i] = multiply_add(v[i] - m[i], s[i], h[i]);
        activate_all(v, activation, slope);
        store_narrow(y + at, v);
      });
}

template <class T, int width>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const T* __restrict__ gy, const T* __restrict__ x,  // [rows, columns]
                    const typename Number<T>::Acc* __restrict__ mean,   // [C] or null
                    const typename Number<T>::Acc* __restrict__ scale, const typename Number<T>::Acc* __restrict__ shift,
                    const typename Number<T>::Acc* __restrict__ terms,  // [2, C] or null
                    T* __restrict__ gx, Walk walk, int activation, typename Number<T>::Acc slope) {
  using A = typename Number<T>::Acc;
  const Share share = share_of(walk);
  if (share.steps <= 0) return;
  int channel[width];
  channels_of(channel, share.column, walk);
  A m[width], s[width], h[width], slant[width], offset[width];
  load_channels(m, mean, channel, A(0));
  load_channels(s, scale, channel, A(1));
  load_channels(h, shift, channel, A(0));
  load_channels(slant, terms, channel, A(0));
  load_channels(offset, terms == nullptr ? nullptr : terms + walk.channels, channel, A(0));
  Pack<T, width> in[2] = {}, gradient[2] = {};
  walk_rows<2>(
      share,
      [&](int k, int64_t at) {
        in[k] = *reinterpret_cast<const Pack<T, width>*>(x + at);
        gradient[k] = *reinterpret_cast<const Pack<T, width>*>(gy + at);
      },
      [&](int k, int64_t at) {
        A g[width], v[width], z[width];
        widen_all(g, gradient[k]);
        widen_all(v, in[k]);
#pragma unroll
        for (int i = 0; i < width; ++i) {
          v[i] -= m[i];
          z[i] = multiply_add(v[i], s[i], h[i]);  // as forward: the same side of the kink
        }
        backward_all(g, z, activation, slope);
#pragma unroll
        for (int i = 0; i < width; ++i) g[i] = s[i] * g[i] - (v[i] * slant[i] + offset[i]);
        store_narrow(gx + at, g);
      });
}

// --- launchers ------------------------------------------------------------------------------------------------------

unsigned channel_blocks(int64_t channels) { return static_cast<unsigned>(ceil_div(channels, kThreads)); }

Status too_many(const char* what) {
  return fail(kBadArgument, "%s must need fewer than 2^31 blocks and 2^31 channels; split the batch", what);
}

template <class T>
const typename Number<T>::Acc* numbers(const View& view) {
  return static_cast<const typename Number<T>::Acc*>(view.data);
}

template <class T, int width>
Status launch_forward(const View& x, const typename Number<T>::Acc* mean, const typename Number<T>::Acc* scale,
                      const typename Number<T>::Acc* shift, const View& y, int activation, double slope,
                      const Exec& exec) {
  using A = typename Number<T>::Acc;
  const Walk walk = plan_walk(x.size[0], x.size[1], x.size[2], width, kBlocks, kLeastLines, kMostLines);
  if (!walk.fits()) return too_many("affine_act");
  GS_LAUNCH(walk.grid(), kThreads, 0, stream_of(exec), affine_act_kernel<T, width>)(
      static_cast<const T*>(x.data), mean, scale, shift, static_cast<T*>(y.data), walk, activation,
      static_cast<A>(slope));
  return launched("affine_act");
}

template <class T>
Status forward(const View& x, const typename Number<T>::Acc* mean, const typename Number<T>::Acc* scale,
               const typename Number<T>::Acc* shift, const View& y, int activation, double slope, const Exec& exec) {
  const bool aligned = aligned16(x.data) && aligned16(y.data);
  return with_width<T>(x.size[0], x.size[1], x.size[2], aligned, [&](auto width) {
    return launch_forward<T, decltype(width)::value>(x, mean, scale, shift, y, activation, slope, exec);
  });
}

template <class T, int width>
Status launch_backward(const View& gy, const View& x, const View& mean, const View& scale, const View& shift,
                       const typename Number<T>::Acc* terms, const View& gx, int activation, double slope,
                       const Exec& exec) {
  using A = typename Number<T>::Acc;
  const Walk walk = plan_walk(x.size[0], x.size[1], x.size[2], width, kBlocks, kLeastLines, kMostLines);
  if (!walk.fits()) return too_many("affine_act_backward");
  GS_LAUNCH(walk.grid(), kThreads, 0, stream_of(exec), backward_kernel<T, width>)(
      static_cast<const T*>(gy.data), static_cast<const T*>(x.data), numbers<T>(mean), numbers<T>(scale),
      numbers<T>(shift), terms, static_cast<T*>(gx.data), walk, activation, static_cast<A>(slope));
  return launched("affine_act_backward");
}

}  // namespace

// --- host -----------------------------------------------------------------------------------------------------------

Status batch_norm_act(const View& x, const View& totals, const View& gamma, const View& beta, double eps,
                      const View& stats, const View& y, int activation, double slope, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Number<T>::Acc;
    const int64_t channels = x.size[1];
    auto* table = static_cast<A*>(stats.data);
    GS_LAUNCH(channel_blocks(channels), kThreads, 0, stream_of(exec), stats_kernel<A>)(
        static_cast<const double*>(totals.data), numbers<T>(gamma), numbers<T>(beta), table, channels, eps);
    const Status made = launched("batch_norm_act, statistics");
    if (made.code != kOk) return made;
    return forward<T>(x, table + kMean * channels, table + kScale * channels, table + kShift * channels, y, activation,
                      slope, exec);
  });
}

Status affine_act(const View& x, const View& mean, const View& scale, const View& shift, const View& y, int activation,
                  double slope, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return forward<T>(x, numbers<T>(mean), numbers<T>(scale), numbers<T>(shift), y, activation, slope, exec);
  });
}

Status affine_act_backward(const View& gy, const View& x, const View& mean, const View& scale, const View& shift,
                           const View& rstd, const View& totals, const View& gx, int activation, double slope,
                           const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Number<T>::Acc;
    const int64_t channels = x.size[1];
    A* terms = nullptr;
    if (totals.data != nullptr) {
      terms = static_cast<A*>(exec.workspace);
      GS_LAUNCH(channel_blocks(channels), kThreads, 0, stream_of(exec), backward_terms_kernel<A>)(
          static_cast<const double*>(totals.data), numbers<T>(scale), numbers<T>(rstd), terms, channels);
      const Status made = launched("affine_act_backward, terms of the channels");
      if (made.code != kOk) return made;
    }
    const bool aligned = aligned16(x.data) && aligned16(gy.data) && aligned16(gx.data);
    return with_width<T>(x.size[0], channels, x.size[2], aligned, [&](auto width) {
      return launch_backward<T, decltype(width)::value>(gy, x, mean, scale, shift, terms, gx, activation, slope, exec);
    });
  });
}

}  // namespace ganscale::cuda
