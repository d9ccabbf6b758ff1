// Sums over all axes but the channels of a tensor [O, C, I]: what channel_sum and batch norm share.
//
// What is summed is a struct `Sums` with kCount sums a channel: load() fetches what belongs to the channels a thread owns,
// read() a pack, add() adds one. Where a channel's run I is short, each thread sums a pack of 16 bytes of columns (see
// planes.h) over one band of rows, and a block joins its lines: partial sums are one a column and band. Where it is long,
// block (channel, band) sums one channel over one band of O. Then one warp a channel joins its partial sums in float64.
// Bound: bandwidth, inputs once. Sums are float32 over at most kMostLines steps of a thread (float64 for float64), float64
// from there on; no atomics: the order is fixed by the sizes, and equal inputs give equal bits.
#pragma once

#include "planes.h"

namespace ganscale::cuda {

constexpr int64_t kLongRun = 64;    // I from which a block reads one channel
constexpr int64_t kSumBlocks = 1024;   // wanted of the first stage
constexpr int64_t kLeastLines = 8;  // steps of a thread, to pay for joining a block
constexpr int64_t kMostLines = 512;
constexpr int kAhead = 4;           // rows a thread has under way
constexpr int64_t kSteps = 64;  // of a thread along runs, before its sums go on in float64

// --- first stage ----------------------------------------------------------------------------------------------------

template <class T, int width, class Sums>
__global__ void __launch_bounds__(kThreads, 2)
    column_sums_kernel(Sums sums, double* __restrict__ partial /* [kCount, columns, bands] */, Walk walk) {
  using A = typename Number<T>::Acc;
  constexpr int kCount = Sums::kCount;
  GS_SHARED(A, joined, kCount * width * kThreads);  // [kCount][width][line][lane]
  const Share share = share_of(walk);
  A totals[kCount][width] = {};
  if (share.steps > 0) {
    int channel[width];
    channels_of(channel, share.column, walk);
    const auto of = sums.template load<width>(channel);
    typename Sums::template Row<width> rows[kAhead] = {};
    walk_rows<kAhead>(
        share, [&](int k, int64_t at) { sums.read(rows[k], at); },
        [&](int k, int64_t) { sums.add(rows[k], of, totals); });
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
#pragma unroll
    for (int i = 0; i < width; ++i) joined[(k * width + i) * kThreads + threadIdx.x] = totals[k][i];
  }
  __syncthreads();
  for (int task = threadIdx.x; task < kCount * width * walk.lanes; task += kThreads) {
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
    run_sums_kernel(Sums sums, double* __restrict__ partial /* [kCount, C, bands] */, int64_t outer, int64_t channels,
                    int64_t inner, int64_t rows_per_band) {
  using A = typename Number<T>::Acc;
  constexpr int kCount = Sums::kCount;
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
  double totals[kCount] = {};
  while (left > 0) {
    A some_steps[kCount][width] = {};
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
        if (step + k < steps) sums.add(rows_read[k], of, some_steps);
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
#pragma unroll
      for (int i = 0; i < width; ++i) totals[k] += some_steps[k][i];
    }
    left -= steps;
  }
  GS_SHARED(double, warps, kCount * kWarps);
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    totals[k] = warp_sum(totals[k]);
    if (threadIdx.x % 32 == 0) warps[k * kWarps + threadIdx.x / 32] = totals[k];
  }
  __syncthreads();
  if (threadIdx.x >= kCount) return;
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

// --- launchers ------------------------------------------------------------------------------------------------------

struct SumPlan {
  bool runs;
  Walk walk;  // where not `runs`
  int64_t rows_per_band, bands;
  Parts parts;
};

inline SumPlan plan_sums(int64_t outer, int64_t channels, int64_t inner, int width) {
  SumPlan plan{};
  plan.runs = inner >= kLongRun;
  if (plan.runs) {
    plan.rows_per_band = ceil_div(outer * channels, kSumBlocks);
    const int64_t least = ceil_div(kLeastLines * kThreads * 4, inner);  // work for each thread
    if (plan.rows_per_band < least) plan.rows_per_band = least;
    if (plan.rows_per_band < ceil_div(outer, 65535)) plan.rows_per_band = ceil_div(outer, 65535);
    plan.bands = ceil_div(outer, plan.rows_per_band);
    plan.parts = {channels, 1, plan.bands, 0, channels * plan.bands};
  } else {
    plan.walk = plan_walk(outer, channels, inner, width, kSumBlocks, kLeastLines, kMostLines);
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
  const SumPlan plan = plan_sums(x.size[0], x.size[1], x.size[2], width);
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

inline unsigned join_blocks(int64_t channels) { return static_cast<unsigned>(ceil_div(channels, kWarps)); }

// Numbers of partial sums that `count` sums a channel need at most, whatever the element type and the alignment.
inline int64_t partial_sums(int64_t outer, int64_t channels, int64_t inner, int count) {
  int64_t most = 0;
  for (int width = 1; width <= 8; width *= 2) {
    if (inner < kLongRun && fold_of(outer, channels, inner, width) == 0) continue;
    const int64_t numbers = count * plan_sums(outer, channels, inner, width).parts.sums_apart;
    if (numbers > most) most = numbers;
  }
  return most;
}

}  // namespace ganscale::cuda
