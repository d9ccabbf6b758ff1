// Transposed convolution on a GPU, channels_last: one matrix product an output phase (conv_transpose_gemm.h), its weights
// packed beforehand, its statistics joined afterwards.
//
// pack_kernel: block (32 kernel places of output channels, 64 input channels) owns their packed weights, by a transpose in
// shared memory. pad_kernel: a thread owns 16 bytes of a copy of x, made only where packs of channels do not fit x.
// join_kernel: a block owns one output channel's totals, in float64. Bound of all three: bandwidth. The product's tile is
// chosen by the problem's sizes alone, so that results do not depend on the GPU; no atomics anywhere.
#include "conv_transpose_gemm.h"

namespace ganscale::cuda {
namespace {

constexpr int kPackColumns = 32, kPackChannels = 64;
constexpr int64_t kEnoughBlocks = 192;  // from which a larger tile is worth its reuse, on GPUs of 100 and more processors

// --- kernels --------------------------------------------------------------------------------------------------------

// From [CI, CO, KH, KW] to, phase after phase, [CO, taps, padded CI]; zeros in the padding.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const T* __restrict__ weight, T* __restrict__ packed, ConvSizes sizes, int padded, bool tf32) {
  GS_SHARED(T, tile, kPackChannels * (kPackColumns + 1));
  const int lane = threadIdx.x % 32, line = threadIdx.x / 32, area = sizes.kernel[0] * sizes.kernel[1];
  const int64_t columns = static_cast<int64_t>(sizes.out_channels) * area;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPackColumns;
  const int channel0 = static_cast<int>(blockIdx.y) * kPackChannels;
  for (int c = line; c < kPackChannels; c += kWarps) {
    T value;
    narrow(0.0f, value);
    if (channel0 + c < sizes.in_channels && first + lane < columns) {
      value = weight[(channel0 + c) * columns + first + lane];
    }
    if constexpr (sizeof(T) == 4) {
      if (tf32) value = __uint_as_float(to_tf32(value));
    }
    tile[c * (kPackColumns + 1) + lane] = value;
  }
  __syncthreads();
  for (int q = line; q < kPackColumns; q += kWarps) {
    if (first + q >= columns) break;
    const int channel = static_cast<int>((first + q) / area), place = static_cast<int>(first + q - int64_t{1} * channel * area);
    const int ky = place / sizes.kernel[1], kx = place % sizes.kernel[1];
    const int down = sizes.stride[0], across = sizes.stride[1];
    const int phase_down = (ky % down - sizes.padding[0] % down + down) % down;
    const int phase_across = (kx % across - sizes.padding[1] % across + across) % across;
    const int taps_across = sizes.axis(1, phase_across).taps, taps = sizes.axis(0, phase_down).taps * taps_across;
    const int64_t before = static_cast<int64_t>(taps_before(sizes, phase_down, phase_across)) * sizes.out_channels;
    const int64_t row = before + static_cast<int64_t>(channel) * taps + ky / down * taps_across + kx / across;
    for (int c = lane; c < kPackChannels && channel0 + c < padded; c += 32) {
      packed[row * padded + channel0 + c] = tile[c * (kPackColumns + 1) + q];
    }
  }
}

// From [pixels, CI] to [pixels, padded CI], zeros in the padding.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pad_kernel(const T* __restrict__ x, T* __restrict__ to, int64_t pixels, int channels, int padded) {
  constexpr int kEach = kWide<T>;
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, packs = padded / kEach;
  if (pack >= pixels * packs) return;
  const int64_t pixel = pack / packs;
  const int channel = static_cast<int>(pack - pixel * packs) * kEach;
  float v[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) v[i] = channel + i < channels ? widen(x[pixel * channels + channel + i]) : 0;
  store_narrow(to + pack * kEach, v);
}

// How rows are dealt to the records: `bands` of them, `each` rows a band, `m_tiles * groups` bands a phase.
struct Bands {
  ConvSizes sizes;
  int bands, each, bands_per_phase;
};

__global__ void __launch_bounds__(kThreads)
    join_kernel(const Record* __restrict__ records, double* __restrict__ totals, Bands of) {
  GS_SHARED(double, warps, 2 * kWarps);
  const Record* const mine = records + static_cast<int64_t>(blockIdx.x) * of.bands;
  double sum = 0, squares = 0;
#pragma unroll 4
  for (int band = threadIdx.x; band < of.bands; band += kThreads) {
    const int phase = band / of.bands_per_phase, across = phase % of.sizes.stride[1];
    const int rows = of.sizes.samples * of.sizes.axis(0, phase / of.sizes.stride[1]).count * of.sizes.axis(1, across).count;
    const int left = rows - (band - phase * of.bands_per_phase) * of.each;
    if (left <= 0) continue;
    const Record record = mine[band];
    const double count = left < of.each ? left : of.each, mean = record.at[0];
    sum += count * mean;
    squares += record.at[1] + count * mean * mean;
  }
  sum = warp_sum(sum);
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) {
    warps[threadIdx.x / 32] = sum;
    warps[kWarps + threadIdx.x / 32] = squares;
  }
  __syncthreads();
  if (threadIdx.x >= 2) return;
  double total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += warps[threadIdx.x * kWarps + warp];
  totals[threadIdx.x * of.sizes.out_channels + blockIdx.x] = total;
}

// --- plan -----------------------------------------------------------------------------------------------------------

struct Plan {
  ConvSizes sizes;
  int tile_m, tile_n, groups, padded;
  int64_t most_rows, m_tiles, n_tiles, blocks;
  bool pads;
  int64_t packed_bytes, padded_bytes, record_bytes;  // each a multiple of 16
  int64_t bytes() const { return packed_bytes + padded_bytes + record_bytes + 16; }
  int64_t bands() const { return m_tiles * sizes.phases() * groups; }
};

int64_t round16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

void choose_tile(Plan& plan, bool plain) {
  struct {
    int m, n;
  } constexpr tiles[] = {{128, 128}, {128, 64}, {64, 64}};
  for (const auto& tile : tiles) {
    if (tile.n == 128 && (plain || plan.sizes.out_channels <= 64)) continue;
    plan.tile_m = tile.m;
    plan.tile_n = tile.n;
    plan.groups = kGemmThreads / tile.n;
    plan.m_tiles = ceil_div(plan.most_rows, tile.m);
    plan.n_tiles = ceil_div(plan.sizes.out_channels, tile.n);
    plan.blocks = plan.m_tiles * plan.n_tiles * plan.sizes.phases();
    if (plan.blocks >= kEnoughBlocks) break;
  }
}

Status plan_gemm(const View& x, const View& weight, const View& y, const ConvShape& shape, bool plain, Plan* plan) {
  const Status sized = conv_sizes(x, weight, y, shape, &plan->sizes);
  if (sized.code != kOk) return sized;
  const ConvSizes& sizes = plan->sizes;
  const int bytes = element_size(x.dtype), each = 16 / bytes;
  plan->padded = static_cast<int>(ceil_div(sizes.in_channels, each)) * each;
  plan->pads = plan->padded != sizes.in_channels || !aligned16(x.data);
  plan->most_rows = static_cast<int64_t>(sizes.samples) * ceil_div(sizes.out[0], sizes.stride[0]) *
                    ceil_div(sizes.out[1], sizes.stride[1]);
  const int64_t places = static_cast<int64_t>(sizes.kernel[0]) * sizes.kernel[1];
  const int64_t pixels = static_cast<int64_t>(sizes.samples) * sizes.out[0] * sizes.out[1];
  if (pixels > INT32_MAX - 128 || plan->most_rows > INT32_MAX - 128 || places * plan->padded > INT32_MAX) {
    return fail(kBadArgument, "conv_transpose must make fewer than 2^31 pixels from fewer than 2^31 products each; "
                              "split the batch");
  }
  choose_tile(*plan, plain);
  if (!fits_grid(plan->blocks) || plan->bands() > INT32_MAX) {
    return fail(kBadArgument, "conv_transpose must need fewer than 2^31 blocks; split the batch");
  }
  plan->packed_bytes = round16(places * sizes.out_channels * plan->padded * bytes);
  plan->padded_bytes =
      plan->pads ? round16(static_cast<int64_t>(sizes.samples) * sizes.in[0] * sizes.in[1] * plan->padded * bytes) : 0;
  plan->record_bytes = round16(plan->bands() * sizes.out_channels * static_cast<int64_t>(sizeof(Record)));
  return ok();
}

// --- launchers ------------------------------------------------------------------------------------------------------

template <class T>
Status launch_pack(const View& weight, T* packed, const Plan& plan, bool tf32, const Exec& exec) {
  const int64_t columns = weight.size[1] * weight.size[2] * weight.size[3];
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kPackColumns)),
                  static_cast<unsigned>(ceil_div(plan.padded, kPackChannels)));
  if (!fits_grid(ceil_div(columns, kPackColumns)) || grid.y > 65535) {
    return fail(kBadArgument, "conv_transpose must have fewer than 2^22 input channels, got %d", plan.sizes.in_channels);
  }
  GS_LAUNCH(grid, kThreads, 0, stream_of(exec), pack_kernel<T>)(static_cast<const T*>(weight.data), packed, plan.sizes,
                                                              plan.padded, tf32);
  return launched("conv_transpose, packing of the weights");
}

template <class T>
Status launch_pad(const View& x, T* to, const Plan& plan, const Exec& exec) {
  const int64_t pixels = x.size[0] * x.size[2] * x.size[3];
  const int64_t blocks = ceil_div(pixels * (plan.padded / kWide<T>), kThreads);
  if (!fits_grid(blocks)) return fail(kBadArgument, "conv_transpose must need fewer than 2^31 blocks; split the batch");
  GS_LAUNCH(static_cast<unsigned>(blocks), kThreads, 0, stream_of(exec), pad_kernel<T>)(
      static_cast<const T*>(x.data), to, pixels, plan.sizes.in_channels, plan.padded);
  return launched("conv_transpose, padding of the channels");
}

template <class T, class Product, int kM, int kN>
Status launch_gemm(const GemmArguments<T>& args, const Plan& plan, const Exec& exec) {
  constexpr int bytes = gemm_shared_bytes<kM, kN>();
  const auto kernel = gemm_kernel<T, Product, kM, kN>;
  if (bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return from(error, "reserving shared memory for conv_transpose");
  }
  GS_LAUNCH(static_cast<unsigned>(plan.blocks), kGemmThreads, static_cast<size_t>(bytes), stream_of(exec), kernel)(args);
  return launched("conv_transpose");
}

template <class T>
Status launch_tile(const GemmArguments<T>& args, const Plan& plan, bool plain, const Exec& exec) {
  if constexpr (sizeof(T) == 4) {
    if (plain && plan.tile_m == 128) return launch_gemm<T, PlainProduct<128, 64>, 128, 64>(args, plan, exec);
    if (plain) return launch_gemm<T, PlainProduct<64, 64>, 64, 64>(args, plan, exec);
  }
  if (plan.tile_n == 128) return launch_gemm<T, TensorProduct<T, 128, 128>, 128, 128>(args, plan, exec);
  if (plan.tile_m == 128) return launch_gemm<T, TensorProduct<T, 128, 64>, 128, 64>(args, plan, exec);
  return launch_gemm<T, TensorProduct<T, 64, 64>, 64, 64>(args, plan, exec);
}

template <class T>
Status run_gemm(const View& x, const View& weight, const View& scale, const View& shift, const View& y,
                const View& totals, const Plan& plan, int activation, double slope, bool plain, const Exec& exec) {
  unsigned char* place = reinterpret_cast<unsigned char*>(round16(reinterpret_cast<intptr_t>(exec.workspace)));
  T* const packed = reinterpret_cast<T*>(place);
  T* const padded = reinterpret_cast<T*>(place + plan.packed_bytes);
  auto* const records = reinterpret_cast<Record*>(place + plan.packed_bytes + plan.padded_bytes);
  Status status = launch_pack<T>(weight, packed, plan, !plain, exec);
  if (status.code == kOk && plan.pads) status = launch_pad<T>(x, padded, plan, exec);
  if (status.code != kOk) return status;

  GemmArguments<T> args{};
  args.x = plan.pads ? padded : static_cast<const T*>(x.data);
  args.weights = packed;
  args.scale = static_cast<const float*>(scale.data);
  args.shift = static_cast<const float*>(shift.data);
  args.y = static_cast<T*>(y.data);
  args.records = totals.data == nullptr ? nullptr : records;
  args.sizes = plan.sizes;
  args.padded = plan.padded;
  args.m_tiles = static_cast<int>(plan.m_tiles);
  args.n_tiles = static_cast<int>(plan.n_tiles);
  args.bands = static_cast<int>(plan.bands());
  args.activation = totals.data == nullptr ? activation : kLinear;
  args.slope = static_cast<float>(slope);
  args.wide = plan.sizes.out_channels % kWide<T> == 0 && aligned16(y.data);
  status = launch_tile<T>(args, plan, plain, exec);
  if (status.code != kOk || totals.data == nullptr) return status;

  const Bands bands{plan.sizes, args.bands, plan.tile_m / plan.groups, static_cast<int>(plan.m_tiles) * plan.groups};
  GS_LAUNCH(static_cast<unsigned>(plan.sizes.out_channels), kThreads, 0, stream_of(exec), join_kernel)(
      records, static_cast<double*>(totals.data), bands);
  return launched("conv_transpose, statistics");
}

}  // namespace

// --- host -----------------------------------------------------------------------------------------------------------

Status conv_transpose(const View& x, const View& weight, const View& scale, const View& shift, const View& y,
                      const View& totals, const ConvShape& shape, int activation, double slope, bool tf32,
                      const Exec& exec) {
  if (x.dtype == kF64) {
    return fail(kBadArgument, "conv_transpose on a GPU must be given float32, float16 or bfloat16, got float64");
  }
  OnDevice guard(exec.device);
  if (guard.error() != cudaSuccess) return from(guard.error(), "selecting the device");
  const bool plain = x.dtype == kF32 && !tf32;
  Plan plan{};
  const Status planned = plan_gemm(x, weight, y, shape, plain, &plan);
  if (planned.code != kOk) return planned;
  if (exec.workspace == nullptr || exec.workspace_bytes < plan.bytes()) {
    return fail(kBadArgument, "workspace must hold %lld bytes, got %lld", static_cast<long long>(plan.bytes()),
                static_cast<long long>(exec.workspace_bytes));
  }
  if (x.dtype == kF32) return run_gemm<float>(x, weight, scale, shift, y, totals, plan, activation, slope, plain, exec);
  if (x.dtype == kF16) return run_gemm<f16>(x, weight, scale, shift, y, totals, plan, activation, slope, false, exec);
  return run_gemm<bf16>(x, weight, scale, shift, y, totals, plan, activation, slope, false, exec);
}

int64_t conv_transpose_workspace_bytes(const View& x, const View& weight, const View& y, const ConvShape& shape) {
  Plan tensor{}, plain{};  // a call says later which it is
  if (plan_gemm(x, weight, y, shape, false, &tensor).code != kOk) return 0;
  if (x.dtype == kF32 && plan_gemm(x, weight, y, shape, true, &plain).code == kOk && plain.bytes() > tensor.bytes()) {
    return plain.bytes();
  }
  return tensor.bytes();
}

}  // namespace ganscale::cuda
