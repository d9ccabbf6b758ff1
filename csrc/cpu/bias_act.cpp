// Bias + activation, its backward, and the sum over all axes but the channels, on the CPU.
//
// [O, C, I] is walked in memory order. Where a channel's run I is long, one bias serves a whole run; where it is short
// (channels_last has I = 1), the biases of a stretch are laid out as a pattern first.
#include <algorithm>

#include "check.h"
#include "kernels.h"
#include "parallel.h"
#include "pattern.h"
#include "run.h"

namespace ganscale {
namespace {

constexpr int64_t kLongRun = 64;   // elements of one channel in a row, from which it is handled by itself
constexpr int64_t kStretch = 512;  // elements of a pattern
constexpr int64_t kMostBands = 64;

// Adding -0.0 changes no number, the sign of zero included.
double bias_of(const View& bias, int64_t channel) { return bias.data ? cpu::kernels().read[bias.dtype](bias.data, channel) : -0.0; }

void flat_act(const View& x, const View& y, int activation, double slope, const Exec& exec) {
  const int64_t total = x.size[0] * x.size[1] * x.size[2];
  cpu::parallel_for(exec.threads, ceil_div(total, kPiece), [&](int64_t task) {
    const int64_t start = task * kPiece;
    cpu::kernels().bias_act[x.dtype](at(x, start), at(y, start), std::min(kPiece, total - start), -0.0, activation,
                                     slope);
  });
}

void run_act(const View& x, const View& bias, const View& y, int activation, double slope, const Exec& exec) {
  const int64_t channels = x.size[1], run = x.size[2], runs = x.size[0] * channels;
  const int64_t each = std::max<int64_t>(1, kPiece / run);
  cpu::parallel_for(exec.threads, ceil_div(runs, each), [&](int64_t task) {
    for (int64_t r = task * each; r < std::min(runs, (task + 1) * each); ++r) {
      cpu::kernels().bias_act[x.dtype](at(x, r * run), at(y, r * run), run, bias_of(bias, r % channels), activation,
                                       slope);
    }
  });
}

template <class A>
void pattern_act(const View& x, const View& bias, const View& y, int activation, double slope, const Exec& exec) {
  const int64_t channels = x.size[1], inner = x.size[2], period = channels * inner, total = x.size[0] * period;
  const bool repeats = period <= kStretch;
  const int64_t stretch = repeats ? kStretch / period * period : kStretch;
  const int64_t each = kPiece / stretch * stretch;
  const auto value = [&](int64_t channel) { return bias_of(bias, channel); };
  cpu::parallel_for(exec.threads, ceil_div(total, each), [&](int64_t task) {
    A pattern[kStretch];
    if (repeats) {
      lay_out(pattern, 0, period, channels, inner, value);
      repeat(pattern, period, stretch);
    }
    for (int64_t start = task * each; start < std::min(total, (task + 1) * each); start += stretch) {
      const int64_t count = std::min(stretch, total - start);
      if (!repeats) lay_out(pattern, start, count, channels, inner, value);
      cpu::kernels().pattern_act[x.dtype](at(x, start), pattern, at(y, start), count, activation, slope);
    }
  });
}

// How a channel sum is cut: long runs are summed one by one; else bands of rows of `columns` elements, where `fold`
// rows are read as one so that short rows fill the vectors.
struct Plan {
  bool long_runs;
  int64_t rows, columns, bands, rows_per_band, partials;
};

Plan plan_channel_sum(int64_t outer, int64_t channels, int64_t inner) {
  if (inner >= kLongRun) return {true, outer, channels, 0, 0, outer * channels};
  int64_t fold = 1;
  while (channels * inner * fold < 64 && outer % (2 * fold) == 0) fold *= 2;
  const int64_t rows = outer / fold, columns = channels * inner * fold;
  const int64_t per_band = std::max(ceil_div(rows, kMostBands), std::max<int64_t>(1, kPiece / columns));
  const int64_t bands = ceil_div(rows, per_band);
  return {false, rows, columns, bands, per_band, bands * columns};
}

void sum_partials(const View& x, const Plan& plan, const Exec& exec) {
  auto* partial = static_cast<double*>(exec.workspace);
  if (plan.long_runs) {
    const int64_t run = x.size[2], each = std::max<int64_t>(1, kPiece / run);
    cpu::parallel_for(exec.threads, ceil_div(plan.partials, each), [&](int64_t task) {
      for (int64_t r = task * each; r < std::min(plan.partials, (task + 1) * each); ++r) {
        cpu::kernels().sum[x.dtype](at(x, r * run), run, partial + r);
      }
    });
    return;
  }
  cpu::parallel_for(exec.threads, plan.bands, [&](int64_t band) {
    const int64_t first = band * plan.rows_per_band, rows = std::min(plan.rows_per_band, plan.rows - first);
    double* totals = partial + band * plan.columns;
    std::fill(totals, totals + plan.columns, 0.0);
    cpu::kernels().column_sums[x.dtype](at(x, first * plan.columns), rows, plan.columns, totals);
  });
}

}  // namespace

Status bias_act(const View& x, const View& bias, const View& y, int activation, double slope, const Exec& exec) {
  Check check(exec);
  check.dense("x", x, 3).same_shape("y", y, x).activation(activation, slope);
  if (bias.data) check.dense("bias", bias, 1).dtype("bias", bias, x.dtype).size("bias", bias, 0, x.size[1]);
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(bias_act(x, bias, y, activation, slope, exec));
  if (!bias.data) flat_act(x, y, activation, slope, exec);
  else if (x.size[2] >= kLongRun) run_act(x, bias, y, activation, slope, exec);
  else if (x.dtype == kF64) pattern_act<double>(x, bias, y, activation, slope, exec);
  else pattern_act<float>(x, bias, y, activation, slope, exec);
  return ok();
}

Status act_backward(const View& gy, const View& y, const View& gx, int activation, double slope, const Exec& exec) {
  Check check(exec);
  check.dense("gy", gy, 3).same_shape("y", y, gy).same_shape("gx", gx, gy).activation(activation, slope);
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(act_backward(gy, y, gx, activation, slope, exec));
  const int64_t total = gy.size[0] * gy.size[1] * gy.size[2];
  cpu::parallel_for(exec.threads, ceil_div(total, kPiece), [&](int64_t task) {
    const int64_t start = task * kPiece;
    cpu::kernels().act_backward[gy.dtype](at(gy, start), at(y, start), at(gx, start),
                                          std::min(kPiece, total - start), activation, slope);
  });
  return ok();
}

int64_t channel_sum_workspace_bytes(int64_t outer, int64_t channels, int64_t inner) {
  const int64_t host = plan_channel_sum(outer, channels, inner).partials * static_cast<int64_t>(sizeof(double));
#ifdef GS_CUDA
  return std::max(host, cuda::channel_sum_workspace_bytes(outer, channels, inner));
#else
  return host;
#endif
}

Status channel_sum(const View& x, const View& sum, const Exec& exec) {
  Check check(exec);
  check.dense("x", x, 3).dense("sum", sum, 1).dtype("sum", sum, x.dtype);
  if (check.passed()) check.size("sum", sum, 0, x.size[1]);
  if (check.passed()) check.workspace(channel_sum_workspace_bytes(x.size[0], x.size[1], x.size[2]));
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(channel_sum(x, sum, exec));
  const int64_t channels = x.size[1], inner = x.size[2];
  const Plan plan = plan_channel_sum(x.size[0], channels, inner);
  sum_partials(x, plan, exec);
  const auto* partial = static_cast<const double*>(exec.workspace);
  const int64_t run = plan.long_runs ? 1 : inner;
  for (int64_t channel = 0; channel < channels; ++channel) {
    double total = 0;
    for (int64_t start = channel * run; start < plan.partials; start += channels * run) {
      for (int64_t i = 0; i < run; ++i) total += partial[start + i];
    }
    cpu::kernels().write[x.dtype](sum.data, channel, total);
  }
  return ok();
}

}  // namespace ganscale
