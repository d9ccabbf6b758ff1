// Transposed convolution of channels_last images to at most 4 channels + bias + activation, on tensor cores: 16-bit floats,
// and float32 where it may be rounded to tf32, whose lines and fragments are the same bytes with half the channels.
//
// Around place (j, i) all phases of all output channels (columns: s * s * CO, 8 a row of phases) are sums over the same few
// shifted inputs, so the layer is one product with rows = places, depth = shifts * CI and weights that are 0 where a phase
// does not reach a shift: nine shifts instead of sixteen taps for kernel 4 and stride 2, and x is read once. A block of 4
// warps owns 256 places and all their outputs; its patch of x and the packed weights come to shared memory by 16-byte
// asynchronous copies, 64 (32) channels at a time, a pixel a line of 128 bytes whose chunks are swapped by the pixel's number;
// a shift is then only another address for ldmatrix. Bound: shared memory (one ldmatrix of x a 16 x 16 x 8 or two), about
// 1.5 times the memory traffic. Shared memory: 62 KiB for kernel 4 and stride 2, so that two or three blocks overlap.
// pack_picture_kernel: a thread owns one packed weight. Sums run over channels by 64 (32), then shifts: a fixed order.
#include "conv_transpose_picture.h"

#include "conv_transpose_product.h"

namespace ganscale::cuda {
namespace {

constexpr int kBlock = 128;      // threads
constexpr int kPlaces = 256;     // of a block
constexpr int kPixelLine = 128;  // bytes of a pixel in one stage
template <class T>
constexpr int kDepth = kPixelLine / static_cast<int>(sizeof(T));  // channels of a stage
constexpr int kLargest = 96 * 1024;

// --- kernels --------------------------------------------------------------------------------------------------------

// Packed weights [chunks][shifts][8 * rows of phases][kDepth]; column 8 d + CO d' + c is phase (d, d') of channel c.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pack_picture_kernel(const T* __restrict__ weight /* [CI, CO, KH, KW] */, T* __restrict__ packed, PicturePlan plan) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;  // below their number: whole blocks
  const ConvSizes& sizes = plan.sizes;
  const int columns = 8 * sizes.stride[0], column = static_cast<int>(index / kDepth<T> % columns);
  const int shift = static_cast<int>(index / kDepth<T> / columns % (plan.shifts[0] * plan.shifts[1]));
  const int chunk = static_cast<int>(index / kDepth<T> / columns / (plan.shifts[0] * plan.shifts[1]));
  const int ci = chunk * kDepth<T> + static_cast<int>(index % kDepth<T>), in_row = column % 8;
  const int phase_across = in_row / sizes.out_channels;
  T value;
  narrow(0.0f, value);
  if (ci < sizes.in_channels && phase_across < sizes.stride[1]) {
    const PhaseAxis down = sizes.axis(0, column / 8), across = sizes.axis(1, phase_across);
    const int ty = down.offset - plan.low[0] - shift / plan.shifts[1];
    const int tx = across.offset - plan.low[1] - shift % plan.shifts[1];
    if (ty >= 0 && ty < down.taps && tx >= 0 && tx < across.taps) {
      const int ky = down.start + ty * sizes.stride[0], kx = across.start + tx * sizes.stride[1];
      const int64_t channel = static_cast<int64_t>(ci) * sizes.out_channels + in_row % sizes.out_channels;
      value = weight[(channel * sizes.kernel[0] + ky) * sizes.kernel[1] + kx];
    }
  }
  if constexpr (sizeof(T) == 4) value = __uint_as_float(to_tf32(value));
  packed[index] = value;
}

// Copies a stage of the block's patch of x, zeros past its rim and past the last channel.
template <class T>
__device__ __forceinline__ void stage_patch(unsigned char* to, const T* image, const PicturePlan& plan, int y0, int x0,
                                            int channel0) {
  const int height = plan.sizes.in[0], width = plan.sizes.in[1], channels = plan.sizes.in_channels;
  const int chunk = static_cast<int>(threadIdx.x) % 8, channel = channel0 + chunk * kWide<T>;
  int pixel = static_cast<int>(threadIdx.x) / 8, row = pixel / plan.patch[1], column = pixel - row * plan.patch[1];
  for (; row < plan.patch[0]; pixel += kBlock / 8) {
    const int iy = y0 + row, ix = x0 + column;
    const bool valid = iy >= 0 && iy < height && ix >= 0 && ix < width && channel < channels;
    const T* const from = image + (static_cast<int64_t>(iy) * width + ix) * channels + channel;
    cp_async16(to + pixel * kPixelLine + (chunk ^ (pixel & 7)) * 16, valid ? from : image, valid);
    for (column += kBlock / 8; column >= plan.patch[1]; ++row) column -= plan.patch[1];
  }
}

// The places of the block, in m-tiles of 16 along a row: tile q of the block begins at (down, across).
struct Place {
  int down, across;
};
__device__ __forceinline__ Place place_of(const PicturePlan& plan, int q) {
  const int each = plan.tile[1] / 16;
  return {q / each, q % each * 16};
}

template <class T, int kPhases>  // kPhases: rows of phases, the stride down
__device__ __forceinline__ void write_picture(T* sample, const float (&c)[4][kPhases][4], const T* bias,
                                              const PicturePlan& plan, int j0, int i0, int activation, float slope) {
  const ConvSizes& sizes = plan.sizes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = lane % 4 * 2, channels = sizes.out_channels;
  const int columns = sizes.stride[1] * channels;
  if (column >= columns) return;
  const float first = bias == nullptr ? 0 : widen(bias[column % channels]);
  const float second = bias == nullptr ? 0 : widen(bias[(column + 1) % channels]);
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Place place = place_of(plan, warp * 4 + m);
      const int j = j0 + place.down, i = i0 + place.across + lane / 4 + half * 8;
      const int x0 = i * sizes.stride[1];
      const bool one = x0 + column / channels < sizes.out[1];
      const bool two = column + 1 < columns && x0 + (column + 1) / channels < sizes.out[1];
#pragma unroll
      for (int d = 0; d < kPhases; ++d) {
        const int row = j * kPhases + d;
        if (row >= sizes.out[0] || !one) continue;
        T* const to = sample + (static_cast<int64_t>(row) * sizes.out[1] + x0) * channels + column;
        Pack<T, 2> pair;
        narrow(activate(c[m][d][2 * half] + first, activation, slope), pair.at[0]);
        narrow(activate(c[m][d][2 * half + 1] + second, activation, slope), pair.at[1]);
        if (two && reinterpret_cast<uintptr_t>(to) % sizeof pair == 0) {
          *reinterpret_cast<Pack<T, 2>*>(to) = pair;
        } else {
          to[0] = pair.at[0];
          if (two) to[1] = pair.at[1];
        }
      }
    }
  }
}

// A warp's four m-tiles and what it has loaded of them: x and weights of one step of 32 bytes at one shift.
template <class T, int kPhases>
struct PictureProduct {
  struct Step {
    uint32_t a[4][4], b[4];
  };

  float c[4][kPhases][4] = {};
  int pixel[4];              // of this lane's row, at shift 0
  int column, column_half;  // of the weights that this lane addresses
  const unsigned char* patch;

  // Lanes 0..15 address the rows of the lower half of a step, 16..31 of the upper one; of weights, 8 columns and halves.
  __device__ __forceinline__ PictureProduct(const PicturePlan& plan, const unsigned char* patch_) : patch(patch_) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    column = lane % 8 + (kPhases == 2 ? lane / 16 * 8 : 0);
    column_half = lane / 8 % 2;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const Place place = place_of(plan, warp * 4 + m);
      pixel[m] = place.down * plan.patch[1] + place.across + lane % 16;
    }
  }

  // `line`: of column 0 of the shift's weights.
  __device__ __forceinline__ void load(Step& to, const unsigned char* line, int shift, int step) const {
    const int half = 2 * step + threadIdx.x % 32 / 16;
    ldmatrix_x4(to.b, line + column * kPixelLine + ((2 * step + column_half) ^ (column & 7)) * 16);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int p = pixel[m] + shift;
      ldmatrix_x4(to.a[m], patch + p * kPixelLine + (half ^ (p & 7)) * 16);
      if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int k = 0; k < 4; ++k) to.a[m][k] = to_tf32(__uint_as_float(to.a[m][k]));
      }
    }
  }

  __device__ __forceinline__ void add(const Step& from) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int d = 0; d < kPhases; ++d) {
        const uint32_t pair[2] = {from.b[2 * d], from.b[2 * d + 1]};
        multiply(c[m][d], from.a[m], pair, T{});
      }
    }
  }

  // All shifts of a whole stage, each step loaded before the one before it is multiplied.
  __device__ __forceinline__ void add_whole(const PicturePlan& plan, const unsigned char* weights) {
    const int shifts = plan.shifts[0] * plan.shifts[1];
    Step even, odd;
    int across = 0, row = 0;
    load(even, weights, 0, 0);
    for (int shift = 0; shift < shifts; ++shift) {
      const unsigned char* const line = weights + shift * (kPhases * 8 * kPixelLine);
      const int here = row + across;
      if (++across == plan.shifts[1]) {
        across = 0;
        row += plan.patch[1];
      }
      const bool last = shift + 1 == shifts;  // then what is loaded ahead is not used
      load(odd, line, here, 1);
      add(even);
      load(even, line, here, 2);
      add(odd);
      load(odd, line, here, 3);
      add(even);
      load(even, last ? weights : line + kPhases * 8 * kPixelLine, last ? 0 : row + across, 0);
      add(odd);
    }
  }

  // The same for a last stage of fewer channels.
  __device__ __forceinline__ void add_part(const PicturePlan& plan, const unsigned char* weights, int steps) {
    for (int sy = 0; sy < plan.shifts[0]; ++sy) {
      for (int sx = 0; sx < plan.shifts[1]; ++sx, weights += kPhases * 8 * kPixelLine) {
        for (int step = 0; step < steps; ++step) {
          Step now;
          load(now, weights, sy * plan.patch[1] + sx, step);
          add(now);
        }
      }
    }
  }
};

template <class T, int kPhases>
__global__ void __launch_bounds__(kBlock, 3)
    picture_kernel(const T* __restrict__ x,       // [N, h, w, CI]
                   const T* __restrict__ packed,  // as above
                   const T* __restrict__ bias,    // [CO] or null
                   T* __restrict__ y,             // [N, H, W, CO]
                   PicturePlan plan, int activation, float slope) {
  GS_DYNAMIC_SHARED(shared);
  const ConvSizes& sizes = plan.sizes;
  unsigned char* const weights = shared + plan.patch[0] * plan.patch[1] * kPixelLine;
  int64_t block = blockIdx.x;
  const int i0 = static_cast<int>(block % plan.tiles[1]) * plan.tile[1];
  block /= plan.tiles[1];
  const int j0 = static_cast<int>(block % plan.tiles[0]) * plan.tile[0];
  const int64_t sample = block / plan.tiles[0];
  const T* const image = x + sample * sizes.in[0] * sizes.in[1] * sizes.in_channels;

  PictureProduct<T, kPhases> product(plan, shared);
  const int lines = plan.shifts[0] * plan.shifts[1] * kPhases * 8;  // of weights
  for (int chunk = 0; chunk < plan.chunks; ++chunk) {
    if (chunk != 0) __syncthreads();  // all have read the previous channels
    stage_patch(shared, image, plan, j0 + plan.low[0], i0 + plan.low[1], chunk * kDepth<T>);
    for (int i = threadIdx.x; i < lines * 8; i += kBlock) {
      const T* const from = packed + (static_cast<int64_t>(chunk) * lines * 8 + i) * kWide<T>;
      cp_async16(weights + i / 8 * kPixelLine + (i % 8 ^ (i / 8 & 7)) * 16, from, true);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    constexpr int kStep = kDepth<T> / 4;
    const int left = (sizes.in_channels - chunk * kDepth<T> + kStep - 1) / kStep;
    if (left >= 4) product.add_whole(plan, weights);
    else product.add_part(plan, weights, left);
  }
  write_picture<T, kPhases>(y + sample * sizes.out[0] * sizes.out[1] * sizes.out_channels, product.c, bias, plan, j0, i0,
                            activation, slope);
}

// --- launchers ------------------------------------------------------------------------------------------------------

bool dense_last(const View& view) {
  int64_t step = 1;
  for (const int axis : {1, 3, 2, 0}) {
    if (view.size[axis] > 1 && view.stride[axis] != step) return false;
    step *= view.size[axis];
  }
  return true;
}

template <class T, int kPhases>
Status launch_picture(const View& x, const View& weight, const View& bias, const View& y, const PicturePlan& plan,
                      int activation, double slope, const Exec& exec) {
  T* const packed = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(exec.workspace) + 15) / 16 * 16);
  static_assert(8 * kDepth<T> % kThreads == 0, "packed weights are whole blocks");
  const int64_t count = int64_t{1} * plan.chunks * plan.shifts[0] * plan.shifts[1] * kPhases * 8 * kDepth<T>;
  GS_LAUNCH(static_cast<unsigned>(count / kThreads), kThreads, 0, stream_of(exec), pack_picture_kernel<T>)(
      static_cast<const T*>(weight.data), packed, plan);
  const Status made = launched("conv_transpose_few, packing of the weights");
  if (made.code != kOk) return made;
  const auto kernel = picture_kernel<T, kPhases>;
  if (plan.shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kLargest);
    if (error != cudaSuccess) return from(error, "reserving shared memory for conv_transpose_few");
  }
  GS_LAUNCH(static_cast<unsigned>(plan.blocks), kBlock, static_cast<size_t>(plan.shared_bytes), stream_of(exec), kernel)(
      static_cast<const T*>(x.data), packed, static_cast<const T*>(bias.data), static_cast<T*>(y.data), plan, activation,
      static_cast<float>(slope));
  return launched("conv_transpose_few on tensor cores");
}

}  // namespace

// --- host -----------------------------------------------------------------------------------------------------------

bool plan_picture(const View& x, const View& weight, const View& y, const ConvShape& shape, PicturePlan* plan) {
  const bool narrow = x.dtype == kF16 || x.dtype == kBF16, tf32 = x.dtype == kF32 && shape.tf32;
  if (!(narrow || tf32) || !dense_last(x) || !dense_last(y) || !aligned16(x.data)) return false;
  if (conv_sizes(x, weight, y, shape, &plan->sizes).code != kOk) return false;
  const ConvSizes& sizes = plan->sizes;
  const int each = narrow ? 8 : 4;
  // Fewer channels than a step's leave tensor cores nothing to gain.
  if (sizes.in_channels % each != 0 || sizes.in_channels < 2 * each || sizes.stride[0] > 2) return false;
  if (static_cast<int64_t>(sizes.stride[1]) * sizes.out_channels > 8) return false;
  for (int axis = 0; axis < 2; ++axis) {
    int low = INT32_MAX, high = INT32_MIN;
    for (int phase = 0; phase < sizes.stride[axis]; ++phase) {
      const PhaseAxis of = sizes.axis(axis, phase);
      if (of.taps == 0) continue;
      if (of.offset - of.taps + 1 < low) low = of.offset - of.taps + 1;
      if (of.offset > high) high = of.offset;
    }
    plan->low[axis] = low;
    plan->shifts[axis] = high - low + 1;
    if (plan->shifts[axis] > 16) return false;
  }
  const int64_t down = ceil_div(sizes.out[0], sizes.stride[0]), across = ceil_div(sizes.out[1], sizes.stride[1]);
  plan->tile[1] = across > 16 ? 32 : 16;
  plan->tile[0] = kPlaces / plan->tile[1];
  plan->tiles[0] = static_cast<int>(ceil_div(down, plan->tile[0]));
  plan->tiles[1] = static_cast<int>(ceil_div(across, plan->tile[1]));
  for (int axis = 0; axis < 2; ++axis) plan->patch[axis] = plan->tile[axis] + plan->shifts[axis] - 1;
  plan->chunks = static_cast<int>(ceil_div(sizes.in_channels, 8 * each));
  const int lines = plan->shifts[0] * plan->shifts[1] * sizes.stride[0] * 8;
  plan->shared_bytes = (plan->patch[0] * plan->patch[1] + lines) * kPixelLine;
  plan->workspace_bytes = static_cast<int64_t>(plan->chunks) * lines * kPixelLine + 16;
  plan->blocks = static_cast<int64_t>(sizes.samples) * plan->tiles[0] * plan->tiles[1];
  return plan->shared_bytes <= kLargest && fits_grid(plan->blocks);
}

Status run_picture(const View& x, const View& weight, const View& bias, const View& y, const PicturePlan& plan,
                   int activation, double slope, const Exec& exec) {
  if (exec.workspace == nullptr || exec.workspace_bytes < plan.workspace_bytes) {
    return fail(kBadArgument, "workspace must hold %lld bytes, got %lld", static_cast<long long>(plan.workspace_bytes),
                static_cast<long long>(exec.workspace_bytes));
  }
  const auto run = [&](auto element) {
    using T = decltype(element);
    return plan.sizes.stride[0] == 2 ? launch_picture<T, 2>(x, weight, bias, y, plan, activation, slope, exec)
                                     : launch_picture<T, 1>(x, weight, bias, y, plan, activation, slope, exec);
  };
  if (x.dtype == kF32) return run(float{});
  return x.dtype == kF16 ? run(f16{}) : run(bf16{});
}

}  // namespace ganscale::cuda
