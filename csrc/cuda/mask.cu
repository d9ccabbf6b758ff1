// Activations that leave one bit an element behind, and their use, on a GPU. Tensors are [O, C, I], changed in place.
//
// act_mask: each thread owns packs of 16 bytes of x; the lanes whose bits share a 32-bit word of the mask join them by
// shuffles, and the first of them writes it, so a warp writes whole words. mask_scale: each thread owns packs of x and
// reads their bits. Bound: bandwidth, x read and written once, the mask (1/16 to 1/64 of x) once. No sums: equal bits.
#include "ganscale/mask.h"

#include "bias.h"

namespace ganscale::cuda {
namespace {

constexpr int kAhead = 2;  // packs a thread has under way

// Joins the bits of the lanes that share a word and stores it; lanes whose elements do not exist bring zeros.
template <int width>
__device__ __forceinline__ void store_bits(uint8_t* mask, int64_t first, uint32_t bits, int64_t bytes, bool words) {
  constexpr int kSharers = 32 / width;  // lanes of a word
  const int place = threadIdx.x % kSharers;
  uint32_t word = bits << place * width;
#pragma unroll
  for (int step = 1; step < kSharers; step *= 2) word |= __shfl_xor_sync(0xffffffffu, word, step);
  const int64_t byte = first / 32 * 4;
  if (place != 0 || byte >= bytes) return;  // saves work: all lanes of a word hold it
  if (words && byte + 4 <= bytes) {
    *reinterpret_cast<uint32_t*>(mask + byte) = word;
    return;
  }
  for (int64_t i = byte; i < bytes && i < byte + 4; ++i) mask[i] = static_cast<uint8_t>(word >> 8 * (i - byte));
}

template <class T, int width, class Index>
__global__ void __launch_bounds__(kThreads)
    act_mask_kernel(T* x,                        // [O, C, I]
                    const T* __restrict__ bias,  // [C] or null
                    uint8_t* __restrict__ mask,  // [ceil(total / 8)]
                    Index total, Divider<Index> inner, Divider<Index> channels, int fold, bool words,
                    typename Number<T>::Acc slope) {
  using A = typename Number<T>::Acc;
  const Index start = (static_cast<Index>(blockIdx.x) * (kThreads * kAhead) + threadIdx.x) * width;
  A z[kAhead][width];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const Index first = start + k * (kThreads * width);
    if (first < total) widen_all(z[k], load_pack<width>(x + first));
  }
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const Index first = start + k * (kThreads * width);
    uint32_t bits = 0;
    if (first < total) {
      add_bias(z[k], bias, first, fold, inner, channels);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const A below = slope == A(0) && z[k][i] <= A(0) ? A(0) : slope * z[k][i];  // a NaN stays a NaN
        bits |= static_cast<uint32_t>(z[k][i] > A(0)) << i;
        z[k][i] = z[k][i] > A(0) ? z[k][i] : below;
      }
      store_narrow(x + first, z[k]);
    }
    store_bits<width>(mask, static_cast<int64_t>(first), bits, (static_cast<int64_t>(total) + 7) / 8, words);
  }
}

template <class T, int width>
__global__ void __launch_bounds__(kThreads)
    mask_scale_kernel(T* x, const uint8_t* __restrict__ mask, int64_t total, typename Number<T>::Acc slope) {
  using A = typename Number<T>::Acc;
  const int64_t start = (static_cast<int64_t>(blockIdx.x) * (kThreads * kAhead) + threadIdx.x) * width;
  A v[kAhead][width];
  uint32_t bits[kAhead];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const int64_t first = start + k * (kThreads * width);
    if (first < total) {
      widen_all(v[k], load_pack<width>(x + first));
      bits[k] = static_cast<uint32_t>(mask[first / 8]) >> first % 8;
    }
  }
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const int64_t first = start + k * (kThreads * width);
    if (first >= total) break;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const A below = slope == A(0) ? A(0) : slope * v[k][i];
      v[k][i] = bits[k] >> i & 1 ? v[k][i] : below;
    }
    store_narrow(x + first, v[k]);
  }
}

template <class T, int width, class Index>
Status launch_act_mask(const View& x, const View& bias, const View& mask, double slope, const Exec& exec) {
  using A = typename Number<T>::Acc;
  const int64_t channels = x.size[1], inner = x.size[2], total = x.size[0] * channels * inner;
  const int64_t blocks = ceil_div(total, kThreads * kAhead * width);
  if (!fits_grid(blocks)) return fail(kBadArgument, "act_mask must need fewer than 2^31 blocks; split the batch");
  const int fold = bias_fold(bias, channels, inner, width);
  const bool words = reinterpret_cast<uintptr_t>(mask.data) % 4 == 0;
  GS_LAUNCH(static_cast<unsigned>(blocks), kThreads, 0, stream_of(exec), act_mask_kernel<T, width, Index>)(
      static_cast<T*>(x.data), static_cast<const T*>(bias.data), static_cast<uint8_t*>(mask.data),
      static_cast<Index>(total), Divider<Index>(inner), Divider<Index>(channels), fold, words, static_cast<A>(slope));
  return launched("act_mask");
}

template <class T, int width>
Status launch_mask_scale(const View& x, const View& mask, double slope, const Exec& exec) {
  using A = typename Number<T>::Acc;
  const int64_t total = x.size[0] * x.size[1] * x.size[2], blocks = ceil_div(total, kThreads * kAhead * width);
  if (!fits_grid(blocks)) return fail(kBadArgument, "mask_scale must need fewer than 2^31 blocks; split the batch");
  GS_LAUNCH(static_cast<unsigned>(blocks), kThreads, 0, stream_of(exec), mask_scale_kernel<T, width>)(
      static_cast<T*>(x.data), static_cast<const uint8_t*>(mask.data), total, static_cast<A>(slope));
  return launched("mask_scale");
}

}  // namespace

// --- host -----------------------------------------------------------------------------------------------------------

Status act_mask(const View& x, const View& bias, const View& mask, double slope, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    constexpr int wide = kWide<T>;
    const int64_t total = x.size[0] * x.size[1] * x.size[2];
    const bool packs = total % wide == 0 && aligned16(x.data);
    if (total > INT32_MAX / 2) {
      return packs ? launch_act_mask<T, wide, uint64_t>(x, bias, mask, slope, exec)
                   : launch_act_mask<T, 1, uint64_t>(x, bias, mask, slope, exec);
    }
    return packs ? launch_act_mask<T, wide, uint32_t>(x, bias, mask, slope, exec)
                 : launch_act_mask<T, 1, uint32_t>(x, bias, mask, slope, exec);
  });
}

Status mask_scale(const View& x, const View& mask, double slope, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    constexpr int wide = kWide<T>;
    const int64_t total = x.size[0] * x.size[1] * x.size[2];
    return total % wide == 0 && aligned16(x.data) ? launch_mask_scale<T, wide>(x, mask, slope, exec)
                                                  : launch_mask_scale<T, 1>(x, mask, slope, exec);
  });
}

}  // namespace ganscale::cuda
