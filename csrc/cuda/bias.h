// The bias of each element of a pack of a tensor [O, C, I]: divisions are what it costs, and these are cheap ones.
#pragma once

#include "planes.h"

namespace ganscale::cuda {

enum Fold : int { kNoBias, kOneChannel /* of a pack */, kRowOfChannels /* I = 1, whole packs */, kAnyChannels };

inline int bias_fold(const View& bias, int64_t channels, int64_t inner, int width) {
  if (bias.data == nullptr) return kNoBias;
  if (inner % width == 0) return kOneChannel;
  return inner == 1 && channels % width == 0 && aligned16(bias.data) ? kRowOfChannels : kAnyChannels;
}

// Division by a number fixed at launch, by a multiplication where numerators stay below 2^31.
template <class Index>
struct Divider {
  uint64_t divisor;
  explicit Divider(int64_t d) : divisor(static_cast<uint64_t>(d)) {}
  __device__ __forceinline__ uint64_t operator()(uint64_t n) const { return n / divisor; }
};

template <>
struct Divider<uint32_t> {
  uint32_t divisor, multiplier, shift;  // n / d = n * ceil(2^(32 + shift) / d) >> 32 + shift, 2^shift < d <= 2^(shift+1)
  explicit Divider(int64_t d) : divisor(static_cast<uint32_t>(d)), multiplier(0), shift(0) {
    if (d == 1) return;
    while ((int64_t{2} << shift) < d) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << (32 + shift)) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ uint32_t operator()(uint32_t n) const {
    if (divisor == 1) return n;
    return static_cast<uint32_t>(static_cast<uint64_t>(n) * multiplier >> 32) >> shift;
  }
};

template <class T, int width, class Index>
__device__ __forceinline__ void add_bias(typename Number<T>::Acc (&z)[width], const T* bias, Index first, int fold,
                                         const Divider<Index>& inner, const Divider<Index>& channels) {
  using A = typename Number<T>::Acc;
  if (fold == kNoBias) return;
  const Index run = inner(first);
  Index channel = run - channels(run) * channels.divisor;
  if (fold == kRowOfChannels) {
    A b[width];
    load_wide(b, bias + channel);
#pragma unroll
    for (int i = 0; i < width; ++i) z[i] += b[i];
    return;
  }
  A b = widen(bias[channel]);
  Index place = first - run * inner.divisor;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    z[i] += b;
    if (fold == kAnyChannels && i + 1 < width && ++place == inner.divisor) {
      place = 0;
      channel = channel + 1 == channels.divisor ? 0 : channel + 1;
      b = widen(bias[channel]);
    }
  }
}

}  // namespace ganscale::cuda
