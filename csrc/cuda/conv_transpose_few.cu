// Transposed convolution to at most 4 channels + bias + activation, on a GPU: the layer that makes the picture.
//
// A block owns a tile of the outputs of one phase (see phases.h) of one sample, all channels of them; a thread owns
// `kRows` outputs of it, one above the other, in registers. The block takes a few input channels at a time: their tile of
// x (with the rim that taps reach) and the phase's weights go to shared memory as the accumulation type, and each value
// of x read from there feeds all output channels. Bound: fused multiply-adds, ceil(K/s)^2 * CI * CO an output; x is read
// about once from memory, s^2 times from the L2 cache. Sums run over CI and then taps in one thread: a fixed order.
// channels_last images whose precision and shape allow it go to tensor cores instead: conv_transpose_picture.cu.
#include "conv_transpose_picture.h"

namespace ganscale::cuda {
namespace {

constexpr int kSharedBudget = 40 * 1024;  // bytes a block aims at: four and more blocks a multiprocessor
constexpr int kSharedMost = 96 * 1024;
constexpr int kMostChunk = 16;  // input channels at a time

struct FewPlan {
  ConvSizes sizes;
  int64_t x_stride[4], y_stride[4];
  int lanes;                   // outputs of a tile along a row; a power of two, at most 32
  int tile[2];                 // outputs of a tile
  int tiles[2];                // tiles of the largest phase
  int most_taps[2];            // of any phase
  int rows, columns, pitch;    // of the x tile, and its row in shared memory
  int chunk;                   // input channels at a time
  bool packs;                  // input channels lie together and can be read 16 bytes at a time
  int shared_bytes;
};

template <class T>
__device__ __forceinline__ void stage_scalars(typename Number<T>::Acc* tile, const T* from, int64_t apart, int plane,
                                              int count, bool valid) {
  using A = typename Number<T>::Acc;
#pragma unroll 4
  for (int c = 0; c < count; ++c) tile[c * plane] = valid ? widen(from[c * apart]) : A(0);
}

template <class T>
__device__ __forceinline__ void stage_packs(typename Number<T>::Acc* tile, const T* from, int plane, int count,
                                            bool valid) {
  using A = typename Number<T>::Acc;
  for (int c = 0; c < count; c += kWide<T>) {
    A v[kWide<T>] = {};
    if (valid) load_wide(v, from + c);
#pragma unroll
    for (int i = 0; i < kWide<T>; ++i) tile[(c + i) * plane] = v[i];
  }
}

// Weights [CI, CO, KH, KW] of `count` channels from `first` on, to [count][taps][4].
template <class T>
__device__ __forceinline__ void stage_weights(typename Number<T>::Acc* to, const T* weight, const FewPlan& plan,
                                              const PhaseAxis& down, const PhaseAxis& across, int first, int count) {
  using A = typename Number<T>::Acc;
  const int taps = down.taps * across.taps, channels = plan.sizes.out_channels, kernel = plan.sizes.kernel[1];
  const int area = plan.sizes.kernel[0] * kernel;
  for (int i = threadIdx.x; i < count * taps * 4; i += kThreads) {
    const int channel = i % 4, tap = i / 4 % taps, c = i / 4 / taps;
    const int ky = down.start + plan.sizes.stride[0] * (tap / across.taps);
    const int kx = across.start + plan.sizes.stride[1] * (tap % across.taps);
    const int64_t at = (static_cast<int64_t>(first + c) * channels + channel) * area + ky * kernel + kx;
    to[i] = channel < channels ? widen(weight[at]) : A(0);
  }
}

// What a block computes: the outputs of one phase from (j0, i0) on.
struct FewTile {
  PhaseAxis down, across;
  int phase_down, phase_across, sample, j0, i0;
};

// Blocks: phases fastest, so that those that read the same x run together; then tiles, then samples.
__device__ __forceinline__ FewTile few_tile_of(const FewPlan& plan) {
  int64_t block = blockIdx.x;
  FewTile tile;
  const int phase = static_cast<int>(block % plan.sizes.phases());
  block /= plan.sizes.phases();
  tile.i0 = static_cast<int>(block % plan.tiles[1]) * plan.tile[1];
  block /= plan.tiles[1];
  tile.j0 = static_cast<int>(block % plan.tiles[0]) * plan.tile[0];
  tile.sample = static_cast<int>(block / plan.tiles[0]);
  tile.phase_down = phase / plan.sizes.stride[1];
  tile.phase_across = phase % plan.sizes.stride[1];
  tile.down = plan.sizes.axis(0, tile.phase_down);
  tile.across = plan.sizes.axis(1, tile.phase_across);
  return tile;
}

// The tile of x that the block's outputs reach, `count` channels from `first` on, to [count][rows][pitch].
template <class T>
__device__ __forceinline__ void stage_image(typename Number<T>::Acc* to, const T* x, const FewPlan& plan,
                                            const FewTile& tile, int first, int count) {
  const int plane = plan.rows * plan.pitch;
  const int y0 = tile.j0 + tile.down.offset - (tile.down.taps - 1);
  const int x0 = tile.i0 + tile.across.offset - (tile.across.taps - 1);
  const T* const image = x + tile.sample * plan.x_stride[0] + first * plan.x_stride[1];
  for (int i = threadIdx.x; i < plan.rows * plan.columns; i += kThreads) {
    const int row = i / plan.columns, column = i - row * plan.columns, iy = y0 + row, ix = x0 + column;
    const bool valid = iy >= 0 && iy < plan.sizes.in[0] && ix >= 0 && ix < plan.sizes.in[1];
    const T* const from = image + iy * plan.x_stride[2] + ix * plan.x_stride[3];
    if (plan.packs) stage_packs(to + row * plan.pitch + column, from, plane, count, valid);
    else stage_scalars(to + row * plan.pitch + column, from, plan.x_stride[1], plane, count, valid);
  }
}

// Adds what one channel gives to a thread's outputs. `from`: its first output's place in the staged channel; `w`: [taps][4].
template <class A, int kChannels, int kRows>
__device__ __forceinline__ void add_channel(A (&total)[kRows][kChannels], const A* from, const A* w, const FewTile& tile,
                                            int pitch, int lines) {
  for (int ty = tile.down.taps - 1; ty >= 0; --ty) {
    const A* const row = from + ty * pitch;
#pragma unroll 4
    for (int tx = tile.across.taps - 1; tx >= 0; --tx, w += 4) {
      A four[4];
#pragma unroll
      for (int i = 0; i < 4; i += kWide<A>) {
        const auto part = *reinterpret_cast<const Pack<A, kWide<A>>*>(w + i);
#pragma unroll
        for (int k = 0; k < kWide<A>; ++k) four[i + k] = part.at[k];
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const A v = row[r * lines * pitch + tx];
#pragma unroll
        for (int k = 0; k < kChannels; ++k) total[r][k] = multiply_add(v, four[k], total[r][k]);
      }
    }
  }
}

template <class T, int kChannels, int kRows>
__device__ __forceinline__ void write_few(T* y, const typename Number<T>::Acc (&total)[kRows][kChannels], const T* bias,
                                          const FewPlan& plan, const FewTile& tile, int activation,
                                          typename Number<T>::Acc slope) {
  using A = typename Number<T>::Acc;
  const ConvSizes& sizes = plan.sizes;
  const int lane = threadIdx.x & (plan.lanes - 1), line = threadIdx.x / plan.lanes, lines = kThreads / plan.lanes;
  const int i = tile.i0 + lane;
  if (i >= tile.across.count) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int j = tile.j0 + line + r * lines;
    if (j >= tile.down.count) break;
    T* const to = y + tile.sample * plan.y_stride[0] +
                  (static_cast<int64_t>(j) * sizes.stride[0] + tile.phase_down) * plan.y_stride[2] +
                  (static_cast<int64_t>(i) * sizes.stride[1] + tile.phase_across) * plan.y_stride[3];
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      if (k >= sizes.out_channels) break;
      const A z = total[r][k] + (bias == nullptr ? A(0) : widen(bias[k]));
      narrow(activate(z, activation, slope), to[k * plan.y_stride[1]]);
    }
  }
}

template <class T, int kChannels, int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    few_kernel(const T* __restrict__ x,       // [N, CI, h, w]
               const T* __restrict__ weight,  // [CI, CO, KH, KW]
               const T* __restrict__ bias,    // [CO] or null
               T* __restrict__ y,             // [N, CO, H, W]
               FewPlan plan, int activation, typename Number<T>::Acc slope) {
  using A = typename Number<T>::Acc;
  GS_DYNAMIC_SHARED(shared);
  const FewTile tile = few_tile_of(plan);
  if (tile.j0 >= tile.down.count || tile.i0 >= tile.across.count) return;  // the whole block: a phase with fewer outputs
  const int plane = plan.rows * plan.pitch, taps = tile.down.taps * tile.across.taps;
  A* const staged = reinterpret_cast<A*>(shared);                 // [chunk][rows][pitch]
  A* const weights = staged + ((plan.chunk * plane + 3) & ~3);  // [chunk][taps][4]
  const int lane = threadIdx.x & (plan.lanes - 1), line = threadIdx.x / plan.lanes;

  A total[kRows][kChannels] = {};
  for (int first = 0; first < plan.sizes.in_channels && taps > 0; first += plan.chunk) {
    const int left = plan.sizes.in_channels - first, count = plan.chunk < left ? plan.chunk : left;
    if (first != 0) __syncthreads();  // all have read the previous channels
    stage_image(staged, x, plan, tile, first, count);
    stage_weights(weights, weight, plan, tile.down, tile.across, first, count);
    __syncthreads();
    for (int c = 0; c < count; ++c) {
      add_channel<A, kChannels, kRows>(total, staged + c * plane + line * plan.pitch + lane, weights + c * taps * 4, tile,
                                       plan.pitch, kThreads / plan.lanes);
    }
  }
  write_few<T, kChannels, kRows>(y, total, bias, plan, tile, activation, slope);
}

// --- launchers ------------------------------------------------------------------------------------------------------

template <class T>
Status plan_few(const View& x, const View& weight, const View& y, const ConvShape& shape, int rows, FewPlan* plan) {
  using A = typename Number<T>::Acc;
  const Status sized = conv_sizes(x, weight, y, shape, &plan->sizes);
  if (sized.code != kOk) return sized;
  const ConvSizes& sizes = plan->sizes;
  for (int axis = 0; axis < 4; ++axis) {
    plan->x_stride[axis] = x.stride[axis];
    plan->y_stride[axis] = y.stride[axis];
  }
  const int most_across = ceil_div(sizes.out[1], sizes.stride[1]), most_down = ceil_div(sizes.out[0], sizes.stride[0]);
  plan->lanes = 32;
  while (plan->lanes > 4 && plan->lanes / 2 >= most_across) plan->lanes /= 2;
  plan->tile[0] = kThreads / plan->lanes * rows;
  plan->tile[1] = plan->lanes;
  plan->tiles[0] = static_cast<int>(ceil_div(most_down, plan->tile[0]));
  plan->tiles[1] = static_cast<int>(ceil_div(most_across, plan->tile[1]));
  for (int axis = 0; axis < 2; ++axis) {
    plan->most_taps[axis] = static_cast<int>(ceil_div(sizes.kernel[axis], sizes.stride[axis]));
  }
  plan->rows = plan->tile[0] + plan->most_taps[0] - 1;
  plan->columns = plan->tile[1] + plan->most_taps[1] - 1;
  plan->pitch = plan->columns | 1;
  const int64_t each = (static_cast<int64_t>(plan->rows) * plan->pitch +
                        4LL * plan->most_taps[0] * plan->most_taps[1]) * static_cast<int64_t>(sizeof(A));
  if (each > kSharedMost - 64) {
    return fail(kBadArgument, "the kernel must need at most %d bytes of shared memory a channel, got %lld (%d x %d)",
                kSharedMost, static_cast<long long>(each), sizes.kernel[0], sizes.kernel[1]);
  }
  constexpr int wide = kWide<T>;
  const auto whole = [](int64_t stride) { return stride % wide == 0; };
  plan->packs = x.stride[1] == 1 && sizes.in_channels % wide == 0 && aligned16(x.data) &&
                (x.size[0] == 1 || whole(x.stride[0])) && (x.size[2] == 1 || whole(x.stride[2])) &&
                (x.size[3] == 1 || whole(x.stride[3]));
  int64_t chunk = kSharedBudget / each;
  if (chunk > kMostChunk) chunk = kMostChunk;
  if (plan->packs) chunk = chunk / wide * wide > 0 ? chunk / wide * wide : wide;
  if (chunk < 1) chunk = 1;
  if (chunk > sizes.in_channels) chunk = sizes.in_channels;
  if (chunk * each > kSharedMost - 64) {
    plan->packs = false;  // whole packs of channels of so large a kernel do not fit
    chunk = 1;
  }
  plan->chunk = static_cast<int>(chunk);
  plan->shared_bytes = static_cast<int>(chunk * each) + 64;
  return ok();
}

template <class T, int kChannels, int kRows>
Status launch_few(const View& x, const View& weight, const View& bias, const View& y, const FewPlan& plan,
                  int activation, double slope, const Exec& exec) {
  using A = typename Number<T>::Acc;
  const auto kernel = few_kernel<T, kChannels, kRows>;
  const int64_t tiles = static_cast<int64_t>(plan.tiles[0]) * plan.tiles[1] * plan.sizes.phases();
  if (!fits_grid(tiles) || !fits_grid(tiles * plan.sizes.samples)) {
    return fail(kBadArgument, "conv_transpose_few must need fewer than 2^31 blocks; split the batch");
  }
  if (plan.shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes);
    if (error != cudaSuccess) return from(error, "reserving shared memory for conv_transpose_few");
  }
  GS_LAUNCH(static_cast<unsigned>(tiles * plan.sizes.samples), kThreads, static_cast<size_t>(plan.shared_bytes),
            stream_of(exec), kernel)(static_cast<const T*>(x.data), static_cast<const T*>(weight.data),
                                     static_cast<const T*>(bias.data), static_cast<T*>(y.data), plan, activation,
                                     static_cast<A>(slope));
  return launched("conv_transpose_few");
}

}  // namespace

// --- host -----------------------------------------------------------------------------------------------------------

Status conv_transpose_few(const View& x, const View& weight, const View& bias, const View& y, const ConvShape& shape,
                          int activation, double slope, const Exec& exec) {
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  PicturePlan picture{};
  if (plan_picture(x, weight, y, shape, &picture)) {
    return run_picture(x, weight, bias, y, picture, activation, slope, exec);
  }
  return with_dtype(x.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    constexpr int kTall = 4;
    FewPlan plan{};
    Status status = plan_few<T>(x, weight, y, shape, kTall, &plan);
    // A tile half of which lies outside the image is a waste; neither fits a kernel that is too large for it.
    const bool tall = status.code == kOk && 2 * ceil_div(y.size[2], shape.stride[0]) > plan.tile[0];
    if (!tall) status = plan_few<T>(x, weight, y, shape, 1, &plan);
    if (status.code != kOk) return status;
    const auto with_channels = [&](auto channels) {
      constexpr int count = decltype(channels)::value;
      return tall ? launch_few<T, count, kTall>(x, weight, bias, y, plan, activation, slope, exec)
                  : launch_few<T, count, 1>(x, weight, bias, y, plan, activation, slope, exec);
    };
    if (y.size[1] == 1) return with_channels(std::integral_constant<int, 1>{});
    if (y.size[1] <= 3) return with_channels(std::integral_constant<int, 3>{});
    return with_channels(std::integral_constant<int, 4>{});
  });
}

int64_t conv_transpose_few_workspace_bytes(const View& x, const View& weight, const View& y, const ConvShape& shape) {
  PicturePlan picture{};
  return plan_picture(x, weight, y, shape, &picture) ? picture.workspace_bytes : 0;
}

}  // namespace ganscale::cuda
