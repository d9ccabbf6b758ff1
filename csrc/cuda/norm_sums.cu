// Two sums a channel on a GPU, of a batch norm and of its backward: first over parts of the tensor, then over the parts.
//
// Where a channel's run I is short, each thread sums a pack of 16 bytes of columns (see planes.h) over one band of rows,
// and a block joins its lines: partial sums are one a column and band. Where it is long, block (channel, band) sums one
// channel over one band of O. Then one warp a channel joins its partial sums in float64. Bound: bandwidth, inputs once.
// Sums are float32 over at most kMostLines steps of a thread (float64 for float64), float64 from there on; no atomics:
// the order is fixed by the sizes, and equal inputs give equal bits.
#include "ganscale/norm_act.h"

#include "planes.h"

namespace ganscale::cuda {
namespace {

constexpr int64_t kLongRun = 64;    // I from which a block reads one channel
constexpr int64_t kBlocks = 1024;   // wanted of the first stage
constexpr int64_t kLeastLines = 8;  // steps of a thread, to pay for joining a block
constexpr int64_t kMostLines = 512;
constexpr int kAhead = 4;           // rows a thread has under way
constexpr int64_t kSteps = 64;  // of a thread along runs, before its sums go on in float64

// --- what is summed -------------------------------------------------------------------------------------------------

// Sums of x - x[0, c, 0] and its square: about a number near the mean squares lose nothing to cancellation.
template <class T>
struct Moments {
  using A = typename Number<T>::Acc;
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
  __device__ __forceinline__ void add(const Row<width>& row, const Channels<width>& of, A (&first)[width],
                                      A (&second)[width]) const {
    A v[width];
    widen_all(v, row.x);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      v[i] -= of.shift[i];
      first[i] += v[i];
      second[i] = multiply_add(v[i], v[i], second[i]);
    }
  }
};

// Sums of g' and of g' (x - mean).
template <class T>
struct Gradients {
  using A = typename Number<T>::Acc;
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
  __device__ __forceinline__ void add(const Row<width>& row, const Channels<width>& of, A (&first)[width],
                                      A (&second)[width]) const {
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
      first[i] += g[i];
      second[i] = multiply_add(g[i], v[i], second[i]);
    }
  }
};

// --- first stage ----------------------------------------------------------------------------------------------------

template <class T, int width, class Sums>
__global__ void __launch_bounds__(kThreads, 2)
    column_sums_kernel(Sums sums, double* __restrict__ partial /* [2, columns, bands] */, Walk walk) {
  using A = typename Number<T>::Acc;
  GS_SHARED(A, joined, 2 * width * kThreads);  // [2 width][line][lane]
  const Share share = share_of(walk);
  A first[width] = {}, second[width] = {};
  if (share.steps > 0) {
    int channel[width];
    channels_of(channel, share.column, walk);
    const auto of = sums.template load<width>(channel);
    typename Sums::template Row<width> rows[kAhead] = {};
    walk_rows<kAhead>(
        share, [&](int k, int64_t at) { sums.read(rows[k], at); },
        [&](int k, int64_t) { sums.add(rows[k], of, first, second); });
  }
#pragma unroll
  for (int i = 0; i < width; ++i) {
    joined[i * kThreads + threadIdx.x] = first[i];
    joined[(width + i) * kThreads + threadIdx.x] = second[i];
  }
  __syncthreads();
  for (int task = threadIdx.x; task < 2 * width * walk.lanes; task += kThreads) {
    const int lane = task & (walk.lanes - 1), sum = task / walk.lanes;
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * walk.lanes + lane) * width + sum % width;
    if (column >= walk.columns) continue;
    double total = 0;
    for (int line = 0; line < share.high; ++line) total += joined[sum * kThreads + line * walk.lanes + lane];
    partial[(sum / width * walk.columns + column) * walk.bands + blockIdx.y] = total;
  }
}

// Grid (channels, bands of O). A block's packs are numbered along its rows, `packs` in each.
template <class T, int width, class Sums>
__global__ void __launch_bounds__(kThreads, 2)
    run_sums_kernel(Sums sums, double* __restrict__ partial /* [2, C, bands] */, int64_t outer, int64_t channels,
                    int64_t inner, int64_t rows_per_band) {
  using A = typename Number<T>::Acc;
  int channel[width];
#pragma unroll
  for (int i = 0; i < width; ++i) channel[i] = static_cast<int>(blockIdx.x);
  const auto of = sums.template load<width>(channel);
  const int64_t start = blockIdx.y * rows_per_band, packs = inner / width, apart = (channels - 1) * inner;
  const int64_t rows = start + rows_per_band < outer ? rows_per_band : outer - start;
  const int thread = static_cast<int>(threadIdx.x), some = static_cast<int>(packs < kThreads ? packs : kThreads);
  const int row = packs < kThreads ? thread / some : 0, row_step = packs < kThreads ? kThreads / some : 0;
  const int pack_step = kThreads - row_step * some;
  int64_t pack = thread - row * some, left = (rows * packs - thread + kThreads - 1) / kThreads;
  int64_t at = ((start + row) * channels + blockIdx.x) * inner + pack * width;
  double totals[2] = {};
  while (left > 0) {
    A first[width] = {}, second[width] = {};
    const int steps = static_cast<int>(left < kSteps ? left : kSteps);
    for (int step = 0; step < steps; step += kAhead) {
      typename Sums::template Row<width> rows_read[kAhead] = {};
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (step + k < steps) sums.read(rows_read[k], at);
        pack += pack_step;
        const bool next = pack >= packs;
        pack -= next ? packs : 0;
        at += kThreads * width + (row_step + next) * apart;  // all channels of a row lie between two of its runs
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (step + k < steps) sums.add(rows_read[k], of, first, second);
      }
    }
#pragma unroll
    for (int i = 0; i < width; ++i) {
      totals[0] += first[i];
      totals[1] += second[i];
    }
    left -= steps;
  }
  GS_SHARED(double, warps, 2 * kWarps);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    totals[k] = warp_sum(totals[k]);
    if (threadIdx.x % 32 == 0) warps[k * kWarps + threadIdx.x / 32] = totals[k];
  }
  __syncthreads();
  if (threadIdx.x >= 2) return;
  double total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += warps[threadIdx.x * kWarps + warp];
  partial[(threadIdx.x * channels + blockIdx.x) * gridDim.y + blockIdx.y] = total;
}

// --- second stage ---------------------------------------------------------------------------------------------------

// How the partial sums of a channel lie: `groups` stretches of `stretch` numbers, `step` apart.
struct Parts {
  int64_t channels, groups, stretch, step, sums_apart;
};

__device__ __forceinline__ double join(const double* partial, int64_t channel, const Parts& parts) {
  double total = 0;
  for (int64_t group = 0; group < parts.groups; ++group) {
    const double* from = partial + group * parts.step + channel * parts.stretch;
#pragma unroll 4
    for (int64_t i = threadIdx.x % 32; i < parts.stretch; i += 32) total += from[i];
  }
  return warp_sum(total);
}

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

// --- launchers ------------------------------------------------------------------------------------------------------

struct Plan {
  bool runs;
  Walk walk;  // where not `runs`
  int64_t rows_per_band, bands;
  Parts parts;
};

Plan plan_sums(int64_t outer, int64_t channels, int64_t inner, int width) {
  Plan plan{};
  plan.runs = inner >= kLongRun;
  if (plan.runs) {
    plan.rows_per_band = ceil_div(outer * channels, kBlocks);
    const int64_t least = ceil_div(kLeastLines * kThreads * 4, inner);  // work for each thread
    if (plan.rows_per_band < least) plan.rows_per_band = least;
    if (plan.rows_per_band < ceil_div(outer, 65535)) plan.rows_per_band = ceil_div(outer, 65535);
    plan.bands = ceil_div(outer, plan.rows_per_band);
    plan.parts = {channels, 1, plan.bands, 0, channels * plan.bands};
  } else {
    plan.walk = plan_walk(outer, channels, inner, width, kBlocks, kLeastLines, kMostLines);
    plan.bands = plan.walk.bands;
    const int64_t row = channels * inner;
    plan.parts = {channels, plan.walk.columns / row, inner * plan.bands, row * plan.bands,
                  plan.walk.columns * plan.bands};
  }
  return plan;
}

// The first stage, with a plan for the join.
template <class T, int width, class Sums>
Status launch_sums(const Sums& sums, const View& x, const Exec& exec, Parts& parts) {
  const Plan plan = plan_sums(x.size[0], x.size[1], x.size[2], width);
  parts = plan.parts;
  auto* partial = static_cast<double*>(exec.workspace);
  if (plan.runs ? !fits_grid(x.size[1]) || plan.bands > 65535 : !plan.walk.fits()) {
    return fail(kBadArgument, "channel sums must need fewer than 2^31 blocks and 2^31 channels; split the batch");
  }
  if (plan.runs) {
    const dim3 grid(static_cast<unsigned>(x.size[1]), static_cast<unsigned>(plan.bands));
    GS_LAUNCH(grid, kThreads, 0, stream_of(exec), run_sums_kernel<T, width, Sums>)(
        sums, partial, x.size[0], x.size[1], x.size[2], plan.rows_per_band);
  } else {
    GS_LAUNCH(plan.walk.grid(), kThreads, 0, stream_of(exec), column_sums_kernel<T, width, Sums>)(sums, partial,
                                                                                             plan.walk);
  }
  return launched("sums over channels, first stage");
}

// Runs of one channel take packs where packs divide them, columns where packs divide the folded rows.
template <class T, class F>
Status with_sums_width(const View& x, bool aligned, F f) {
  if (x.size[2] < kLongRun) return with_width<T>(x.size[0], x.size[1], x.size[2], aligned, f);
  if (aligned && x.size[2] % kWide<T> == 0) return f(std::integral_constant<int, kWide<T>>{});
  return f(std::integral_constant<int, 1>{});
}

unsigned join_blocks(int64_t channels) { return static_cast<unsigned>(ceil_div(channels, kWarps)); }

}  // namespace

// --- host -----------------------------------------------------------------------------------------------------------

int64_t norm_workspace_bytes(int64_t outer, int64_t channels, int64_t inner) {
  int64_t most = 2 * channels;  // the terms of affine_act_backward
  for (int width = 1; width <= 8; width *= 2) {
    if (inner < kLongRun && fold_of(outer, channels, inner, width) == 0) continue;
    const int64_t numbers = 2 * plan_sums(outer, channels, inner, width).parts.sums_apart;
    if (numbers > most) most = numbers;
  }
  return most * static_cast<int64_t>(sizeof(double));
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
