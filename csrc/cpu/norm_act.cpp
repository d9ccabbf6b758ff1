// Batch statistics, affine map, activation, on the CPU: how [O, C, I] is cut into tasks, and what is done once a channel.
//
// Sums: bands of rows (any thread) leave partial totals, joined in order in double precision. Maps: pieces of rows.
// Rows are samples where a channel's run I is long, else stretches of a whole number of periods C * I, long enough to
// fill vectors, with the parameters laid out an element.
#include "ganscale/norm_act.h"

#include <algorithm>
#include <cmath>

#include "isa.h"
#include "norm_kernels.h"
#include "parallel.h"
#include "run.h"

namespace ganscale {
namespace {

using cpu::NormTable;

const NormTable& kernels() {
  static const NormTable* (*const tables[])() = GS_TABLES(cpu::norm_table);
  return *tables[cpu::isa()]();
}

constexpr int64_t kLongRun = 16;        // elements of one channel in a row, from which they are handled by themselves
constexpr int64_t kBand = 4 * kPiece;   // elements of one band at least
constexpr int64_t kMostBands = 32;
constexpr int64_t kColumns = 64;        // elements of a stretch at least, a multiple of the 16 lanes

struct Plan {
  bool runs;
  int64_t outer, channels, inner;
  int64_t rows, columns, rest;  // whole rows; parameters of a row; elements after the last whole row
  int64_t width;                // elements of a row
  int64_t bands, rows_per_band;
};

Plan plan(int64_t outer, int64_t channels, int64_t inner) {
  Plan p{inner >= kLongRun, outer, channels, inner, outer, channels, 0, channels * inner, 1, 0};
  if (!p.runs) {
    int64_t fold = 1;
    while (p.width * fold < kColumns || p.width * fold % 16 != 0) fold *= 2;
    p.width *= fold;
    p.columns = p.width;
    p.rows = outer / fold;
    p.rest = outer % fold * channels * inner;
  }
  p.rows_per_band = std::max(ceil_div(p.rows, kMostBands), ceil_div(kBand, p.width));
  p.bands = std::max<int64_t>(1, ceil_div(p.rows, p.rows_per_band));
  return p;
}

Plan plan(const View& x) { return plan(x.size[0], x.size[1], x.size[2]); }

// The workspace: parameters first, then the bands' totals.
double* band_totals(const Plan& p, const Exec& exec) {
  return static_cast<double*>(exec.workspace) + cpu::kParameters * p.columns;
}

int64_t workspace_bytes(const Plan& p) {
  return (cpu::kParameters + 2 * p.bands) * p.columns * static_cast<int64_t>(sizeof(double));
}

// Runs sum(first row, rows, live elements of a row, totals) for every band, and joins the totals [2, C].
template <class F>
void join_bands(const Plan& p, const View& totals, const Exec& exec, const F& sum) {
  double* partial = band_totals(p, exec);
  cpu::parallel_for(exec.threads, p.bands, [&](int64_t band) {
    double* mine = partial + band * 2 * p.columns;
    std::fill(mine, mine + 2 * p.columns, 0.0);
    const int64_t first = band * p.rows_per_band, last = std::min(p.rows, first + p.rows_per_band);
    if (first < last) sum(first, last - first, p.width, mine);
    if (p.rest && band == p.bands - 1) sum(p.rows, 1, p.rest, mine);
  });
  auto* out = static_cast<double*>(totals.data);
  const int64_t inner = p.runs ? 1 : p.inner, period = p.channels * inner;
  for (int64_t c = 0; c < p.channels; ++c) {
    double both[2] = {0, 0};
    for (int64_t band = 0; band < 2 * p.bands; ++band) {
      for (int64_t start = band * p.columns + c * inner; start < (band + 1) * p.columns; start += period) {
        for (int64_t i = 0; i < inner; ++i) both[band % 2] += partial[start + i];
      }
    }
    out[c] = both[0];
    out[p.channels + c] = both[1];
  }
}

// Lays a row of parameters out: value(channel) an element, or a channel where runs are long.
template <class A, class F>
void lay_out(const Plan& p, const Exec& exec, int row, const F& value) {
  A* out = static_cast<A*>(exec.workspace) + row * p.columns;
  const int64_t inner = p.runs ? 1 : p.inner, period = p.channels * inner;
  for (int64_t c = 0; c < p.channels; ++c) std::fill(out + c * inner, out + (c + 1) * inner, value(c));
  for (int64_t start = period; start < p.columns; ++start) out[start] = out[start - period];
}

template <class A>
A number_at(const View& view, int64_t channel, A absent) {
  return view.data ? static_cast<const A*>(view.data)[channel] : absent;
}

struct Map {
  View mean, scale, shift;
};

template <class A>
void lay_out_map(const Plan& p, const Exec& exec, const Map& map) {
  lay_out<A>(p, exec, cpu::kParMean, [&](int64_t c) { return number_at<A>(map.mean, c, 0); });
  lay_out<A>(p, exec, cpu::kParScale, [&](int64_t c) { return number_at<A>(map.scale, c, 1); });
  lay_out<A>(p, exec, cpu::kParShift, [&](int64_t c) { return number_at<A>(map.shift, c, 0); });
}

void lay_out_map(const View& x, const Plan& p, const Exec& exec, const Map& map) {
  if (x.dtype == kF64) lay_out_map<double>(p, exec, map);
  else lay_out_map<float>(p, exec, map);
}

// The two rows that carry the batch's statistics back: (x - mean) times the first and the second are subtracted.
template <class A>
void lay_out_batch_terms(const Plan& p, const Exec& exec, const View& rstd, const View& totals) {
  const auto* t = static_cast<const double*>(totals.data);
  const double count = t[2 * p.channels];
  lay_out<A>(p, exec, cpu::kParSlopeOfX, [&](int64_t c) {
    const double r = number_at<A>(rstd, c, 1);
    return static_cast<A>(r * r * t[p.channels + c] / count);
  });
  lay_out<A>(p, exec, cpu::kParOffset, [&](int64_t c) { return static_cast<A>(t[c] / count); });
}

// out = the map of x, and of gy where `mode` is not kForward, with the parameters in the workspace.
void run_map(const Plan& p, const View& gy, const View& x, const View& out, int mode, int activation, double slope,
             const Exec& exec) {
  const int64_t units = p.runs ? p.outer * p.channels : p.rows;
  const int64_t each = std::max<int64_t>(1, kPiece / (p.runs ? p.inner : p.width)), tasks = ceil_div(units, each);
  const auto from = [&](const View& view, int64_t element) { return view.data ? at(view, element) : nullptr; };
  // Last piece first: the sums before this read forwards, so the end of x is what the caches still hold.
  cpu::parallel_for(exec.threads, tasks + (p.rest ? 1 : 0), [&](int64_t task) {
    const int64_t first = (tasks - 1 - task) * each, last = std::min(units, first + each);
    if (task == tasks) {
      const int64_t start = p.rows * p.width;
      kernels().column_map[x.dtype](from(gy, start), at(x, start), at(out, start), 1, p.width, p.rest, exec.workspace,
                                    mode, activation, slope);
    } else if (p.runs) {
      kernels().run_map[x.dtype](gy.data, x.data, out.data, first, last, p.channels, p.inner, exec.workspace, mode,
                                 activation, slope);
    } else {
      const int64_t start = first * p.width;
      kernels().column_map[x.dtype](from(gy, start), at(x, start), at(out, start), last - first, p.width, p.width,
                                    exec.workspace, mode, activation, slope);
    }
  });
}

template <class A>
void write_stats(const View& totals, const View& gamma, const View& beta, double eps, const View& stats) {
  const int64_t channels = stats.size[1];
  const auto* t = static_cast<const double*>(totals.data);
  auto* out = static_cast<A*>(stats.data);
  const double count = t[2 * channels];
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = t[c] / count, raw = t[channels + c] / count - mean * mean;
    const double variance = raw < 0 ? 0 : raw;  // a NaN stays a NaN
    const double rstd = 1 / std::sqrt(variance + eps);
    const A rounded = static_cast<A>(mean), scale = static_cast<A>(number_at<A>(gamma, c, 1) * rstd);
    out[kMean * channels + c] = rounded;
    out[kScale * channels + c] = scale;
    out[kShift * channels + c] = static_cast<A>(number_at<A>(beta, c, 0) - (mean - rounded) * scale);
    out[kRstd * channels + c] = static_cast<A>(rstd);
    out[kVariance * channels + c] = static_cast<A>(variance);
    out[kUnbiased * channels + c] = static_cast<A>(variance * (count / (count - 1)));
  }
}

View row_of(const View& stats, int row) {
  View view = stats;
  view.data = at(stats, row * stats.size[1]);
  view.ndim = 1;
  view.size[0] = stats.size[1];
  view.stride[0] = 1;
  return view;
}

void number_a_channel(Check& check, const char* name, const View& view, const View& x, bool optional) {
  if (!check.passed() || (optional && !view.data)) return;
  check.dense(name, view, 1).dtype(name, view, accumulation_dtype(x.dtype)).size(name, view, 0, x.size[1]);
}

void check_map(Check& check, const View& x, const View& mean, const View& scale, const View& shift) {
  number_a_channel(check, "mean", mean, x, true);
  number_a_channel(check, "scale", scale, x, false);
  number_a_channel(check, "shift", shift, x, false);
  if (check.passed()) check.workspace(norm_workspace_bytes(x.size[0], x.size[1], x.size[2]));
}

void check_totals(Check& check, const View& totals, const View& x) {
  if (!check.passed()) return;
  check.dense("totals", totals, 1).dtype("totals", totals, kF64).size("totals", totals, 0, 2 * x.size[1] + 1);
}

}  // namespace

int64_t norm_workspace_bytes(int64_t outer, int64_t channels, int64_t inner) {
  const int64_t host = workspace_bytes(plan(outer, channels, inner));
#ifdef GS_CUDA
  return std::max(host, cuda::norm_workspace_bytes(outer, channels, inner));
#else
  return host;
#endif
}

Status channel_moments(const View& x, const View& totals, const Exec& exec) {
  Check check(exec);
  check.dense("x", x, 3).dense("totals", totals, 2).dtype("totals", totals, kF64).size("totals", totals, 0, 2);
  if (check.passed()) check.size("totals", totals, 1, x.size[1]);
  if (check.passed()) check.workspace(norm_workspace_bytes(x.size[0], x.size[1], x.size[2]));
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(channel_moments(x, totals, exec));
  const Plan p = plan(x);
  join_bands(p, totals, exec, [&](int64_t first, int64_t rows, int64_t live, double* out) {
    const void* from = at(x, first * p.width);
    if (p.runs) kernels().run_moments[x.dtype](from, rows, p.channels, p.inner, out);
    else kernels().column_moments[x.dtype](from, rows, p.width, live, out);
  });
  return ok();
}

Status batch_norm_act(const View& x, const View& totals, const View& gamma, const View& beta, double eps,
                      const View& stats, const View& y, int activation, double slope, const Exec& exec) {
  Check check(exec);
  check.dense("x", x, 3).same_shape("y", y, x).activation(activation, slope);
  check_totals(check, totals, x);
  number_a_channel(check, "gamma", gamma, x, true);
  number_a_channel(check, "beta", beta, x, true);
  if (check.passed()) check.dense("stats", stats, 2).dtype("stats", stats, accumulation_dtype(x.dtype));
  if (check.passed()) check.size("stats", stats, 0, kStatRows).size("stats", stats, 1, x.size[1]);
  if (check.passed()) check.workspace(norm_workspace_bytes(x.size[0], x.size[1], x.size[2]));
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(batch_norm_act(x, totals, gamma, beta, eps, stats, y, activation, slope, exec));
  const Plan p = plan(x);
  if (x.dtype == kF64) write_stats<double>(totals, gamma, beta, eps, stats);
  else write_stats<float>(totals, gamma, beta, eps, stats);
  lay_out_map(x, p, exec, {row_of(stats, kMean), row_of(stats, kScale), row_of(stats, kShift)});
  run_map(p, View{}, x, y, cpu::kForward, activation, slope, exec);
  return ok();
}

Status affine_act(const View& x, const View& mean, const View& scale, const View& shift, const View& y, int activation,
                  double slope, const Exec& exec) {
  Check check(exec);
  check.dense("x", x, 3).same_shape("y", y, x).activation(activation, slope);
  check_map(check, x, mean, scale, shift);
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(affine_act(x, mean, scale, shift, y, activation, slope, exec));
  const Plan p = plan(x);
  lay_out_map(x, p, exec, {mean, scale, shift});
  run_map(p, View{}, x, y, cpu::kForward, activation, slope, exec);
  return ok();
}

Status affine_act_backward_sums(const View& gy, const View& x, const View& mean, const View& scale, const View& shift,
                                const View& rstd, const View& totals, const View& gradients, int activation,
                                double slope, const Exec& exec) {
  Check check(exec);
  check.dense("x", x, 3).same_shape("gy", gy, x).activation(activation, slope);
  check_map(check, x, mean, scale, shift);
  number_a_channel(check, "rstd", rstd, x, true);
  if (check.passed()) check.dense("totals", totals, 2).dtype("totals", totals, kF64).size("totals", totals, 0, 2);
  if (check.passed()) check.size("totals", totals, 1, x.size[1]).dense("gradients", gradients, 2);
  if (check.passed()) check.dtype("gradients", gradients, accumulation_dtype(x.dtype)).size("gradients", gradients, 0, 2);
  if (check.passed()) check.size("gradients", gradients, 1, x.size[1]);
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(affine_act_backward_sums(gy, x, mean, scale, shift, rstd, totals, gradients, activation, slope, exec));
  const Plan p = plan(x);
  lay_out_map(x, p, exec, {mean, scale, shift});
  join_bands(p, totals, exec, [&](int64_t first, int64_t rows, int64_t live, double* out) {
    const int64_t start = first * p.width;
    if (p.runs) {
      kernels().run_sums[x.dtype](at(gy, start), at(x, start), rows, p.channels, p.inner, exec.workspace, out,
                                  activation, slope);
    } else {
      kernels().column_sums[x.dtype](at(gy, start), at(x, start), rows, p.width, live, exec.workspace, out, activation,
                                     slope);
    }
  });
  const auto* t = static_cast<const double*>(totals.data);
  for (int64_t c = 0; c < p.channels; ++c) {
    if (x.dtype == kF64) {
      static_cast<double*>(gradients.data)[c] = t[p.channels + c] * number_at<double>(rstd, c, 1);
      static_cast<double*>(gradients.data)[p.channels + c] = t[c];
    } else {
      static_cast<float*>(gradients.data)[c] = static_cast<float>(t[p.channels + c] * number_at<float>(rstd, c, 1));
      static_cast<float*>(gradients.data)[p.channels + c] = static_cast<float>(t[c]);
    }
  }
  return ok();
}

Status affine_act_backward(const View& gy, const View& x, const View& mean, const View& scale, const View& shift,
                           const View& rstd, const View& totals, const View& gx, int activation, double slope,
                           const Exec& exec) {
  Check check(exec);
  check.dense("x", x, 3).same_shape("gy", gy, x).same_shape("gx", gx, x).activation(activation, slope);
  check_map(check, x, mean, scale, shift);
  if (totals.data) {
    check_totals(check, totals, x);
    number_a_channel(check, "rstd", rstd, x, true);
  }
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(affine_act_backward(gy, x, mean, scale, shift, rstd, totals, gx, activation, slope, exec));
  const Plan p = plan(x);
  lay_out_map(x, p, exec, {mean, scale, shift});
  if (totals.data && x.dtype == kF64) lay_out_batch_terms<double>(p, exec, rstd, totals);
  else if (totals.data) lay_out_batch_terms<float>(p, exec, rstd, totals);
  run_map(p, gy, x, gx, totals.data ? cpu::kBackwardBatch : cpu::kBackwardConstant, activation, slope, exec);
  return ok();
}

}  // namespace ganscale
