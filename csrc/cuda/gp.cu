// Operators of the gradient penalty on a GPU: interpolation, per-sample norms, penalty.
//
// interpolate: each thread owns one pack of 16 bytes of `out`. Bound: bandwidth, three tensors moved once.
// sample norms: block (n, k) owns partial sum k of sample n; then one thread a sample joins them in order in double
// precision. Bound: bandwidth, g read once. No atomics: equal inputs give equal bits.
#include "wrap.h"

namespace ganscale::cuda {
namespace {

constexpr int64_t kChunk = 16384;  // elements of one partial sum

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- kernels --------------------------------------------------------------------------------------------------------

template <class T, int width>
__global__ void __launch_bounds__(kThreads)
    interpolate_kernel(const T* __restrict__ real,  // [N, S]
                       const T* __restrict__ fake,  // [N, S]
                       const T* __restrict__ eps,   // [N]
                       T* __restrict__ out,         // [N, S]
                       int64_t size, int64_t blocks_each) {
  using A = typename Number<T>::Acc;
  const int64_t sample = blockIdx.x / blocks_each;
  const int64_t first = (blockIdx.x % blocks_each * kThreads + threadIdx.x) * width;
  if (first >= size) return;
  const A share = widen(eps[sample]), rest = A(1) - share;
  const int64_t index = sample * size + first;
  const auto r = *reinterpret_cast<const Pack<T, width>*>(real + index);
  const auto f = *reinterpret_cast<const Pack<T, width>*>(fake + index);
  Pack<T, width> o;
#pragma unroll
  for (int i = 0; i < width; ++i) narrow(share * widen(r.at[i]) + rest * widen(f.at[i]), o.at[i]);
  store_pack(out + index, o);
}

template <class T, int width>
__global__ void __launch_bounds__(kThreads)
    sum_squares_kernel(const T* __restrict__ g,                           // [N, S]
                       typename Number<T>::Acc* __restrict__ partial,  // [N, chunks]
                       int64_t size, int64_t chunks) {
  using A = typename Number<T>::Acc;
  const int64_t sample = blockIdx.x / chunks, start = blockIdx.x % chunks * kChunk;
  const int64_t end = start + kChunk < size ? start + kChunk : size;
  const T* row = g + sample * size;
  A total = A(0);
  for (int64_t i = start + threadIdx.x * width; i < end; i += kThreads * width) {
    const auto pack = *reinterpret_cast<const Pack<T, width>*>(row + i);
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const A value = widen(pack.at[k]);
      total += value * value;
    }
  }
  total = block_sum(total);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const A* __restrict__ partial,  // [N, chunks]
                  A* __restrict__ penalty,        // [N], or null: `result` is then the squared norm
                  A* __restrict__ result,         // [N]
                  int64_t samples, int64_t chunks, double center, bool one_sided) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (sample >= samples) return;
  double squared = 0;
  for (int64_t k = 0; k < chunks; ++k) squared += partial[sample * chunks + k];
  if (penalty == nullptr) {
    result[sample] = static_cast<A>(squared);
    return;
  }
  const double norm = sqrt(squared);
  const double excess = one_sided && norm < center ? 0.0 : norm - center;
  result[sample] = static_cast<A>(norm);
  penalty[sample] = static_cast<A>(excess * excess);
}

// --- launchers ------------------------------------------------------------------------------------------------------

template <class T, int width>
Status launch_interpolate(const View& real, const View& fake, const View& eps, const View& out, const Exec& exec) {
  const int64_t size = real.size[1], each = ceil_div(size, kThreads * width), blocks = real.size[0] * each;
  if (!fits_grid(blocks)) return fail(kBadArgument, "interpolate must need fewer than 2^31 blocks; split the batch");
  GS_LAUNCH(static_cast<unsigned>(blocks), kThreads, 0, stream_of(exec), interpolate_kernel<T, width>)(
      static_cast<const T*>(real.data), static_cast<const T*>(fake.data), static_cast<const T*>(eps.data),
      static_cast<T*>(out.data), size, each);
  return launched("interpolate");
}

template <class T, int width>
Status launch_sums(const View& g, const Exec& exec, int64_t chunks) {
  using A = typename Number<T>::Acc;
  const int64_t blocks = g.size[0] * chunks;
  if (!fits_grid(blocks)) return fail(kBadArgument, "the norm must need fewer than 2^31 blocks; split the batch");
  GS_LAUNCH(static_cast<unsigned>(blocks), kThreads, 0, stream_of(exec), sum_squares_kernel<T, width>)(
      static_cast<const T*>(g.data), static_cast<A*>(exec.workspace), g.size[1], chunks);
  return launched("sample norm, first stage");
}

}  // namespace

// --- host -----------------------------------------------------------------------------------------------------------

Status interpolate(const View& real, const View& fake, const View& eps, const View& out, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(real.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    constexpr int wide = kWide<T>;
    if (real.size[1] % wide == 0 && aligned16(real.data) && aligned16(fake.data) && aligned16(out.data)) {
      return launch_interpolate<T, wide>(real, fake, eps, out, exec);
    }
    return launch_interpolate<T, 1>(real, fake, eps, out, exec);
  });
}

int64_t sample_workspace_bytes(int64_t samples, int64_t sample_size) {
  return samples * ceil_div(sample_size, kChunk) * static_cast<int64_t>(sizeof(double));
}

Status sample_norm(const View& g, const View* penalty, const View& result, double center, bool one_sided,
                   const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  return with_dtype(g.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Number<T>::Acc;
    constexpr int wide = kWide<T>;
    const int64_t samples = g.size[0], chunks = ceil_div(g.size[1], kChunk);
    const bool packs = g.size[1] % wide == 0 && aligned16(g.data);
    const Status sums = packs ? launch_sums<T, wide>(g, exec, chunks) : launch_sums<T, 1>(g, exec, chunks);
    if (sums.code != kOk) return sums;
    GS_LAUNCH(static_cast<unsigned>(ceil_div(samples, kThreads)), kThreads, 0, stream_of(exec), finish_kernel<A>)(
        static_cast<const A*>(exec.workspace), penalty ? static_cast<A*>(penalty->data) : nullptr,
        static_cast<A*>(result.data), samples, chunks, center, one_sided);
    return launched("sample norm, second stage");
  });
}

}  // namespace ganscale::cuda
