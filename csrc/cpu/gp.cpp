// Operators of the gradient penalty on the CPU: interpolation, per-sample norms, the penalty of Gulrajani et al. 2017.
// Two stages: fixed pieces of a sample are summed apart (any thread), then joined in order in double precision.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "kernels.h"
#include "parallel.h"
#include "run.h"

namespace ganscale {
namespace {

int64_t pieces(int64_t size) { return ceil_div(size, kPiece); }

void write(const View& view, int64_t i, double value) { cpu::kernels().write[view.dtype](view.data, i, value); }

// Leaves sum of squares of piece k of sample n in the workspace at [n, k].
void sum_pieces(const View& g, const Exec& exec) {
  const int64_t size = g.size[1], each = pieces(size);
  auto* partial = static_cast<double*>(exec.workspace);
  cpu::parallel_for(exec.threads, g.size[0] * each, [&](int64_t task) {
    const int64_t sample = task / each, start = task % each * kPiece;
    cpu::kernels().sum_squares[g.dtype](at(g, sample * size + start), std::min(kPiece, size - start), partial + task);
  });
}

double join(const Exec& exec, int64_t sample, int64_t each) {
  const auto* partial = static_cast<const double*>(exec.workspace) + sample * each;
  double total = 0;
  for (int64_t k = 0; k < each; ++k) total += partial[k];
  return total;
}

}  // namespace

Status interpolate(const View& real, const View& fake, const View& eps, const View& out, const Exec& exec) {
  Check check(exec);
  check.dense("real", real, 2).same_shape("fake", fake, real).same_shape("out", out, real);
  check.dense("eps", eps, 1).dtype("eps", eps, real.dtype).size("eps", eps, 0, real.size[0]);
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(interpolate(real, fake, eps, out, exec));
  const int64_t size = real.size[1], each = pieces(size);
  cpu::parallel_for(exec.threads, real.size[0] * each, [&](int64_t task) {
    const int64_t sample = task / each, start = task % each * kPiece, first = sample * size + start;
    cpu::kernels().interpolate[real.dtype](at(real, first), at(fake, first), at(out, first),
                                           std::min(kPiece, size - start), cpu::kernels().read[eps.dtype](eps.data, sample));
  });
  return ok();
}

int64_t sample_workspace_bytes(int64_t samples, int64_t sample_size) {
  const int64_t host = samples * pieces(sample_size) * static_cast<int64_t>(sizeof(double));
#ifdef GS_CUDA
  return std::max(host, cuda::sample_workspace_bytes(samples, sample_size));
#else
  return host;
#endif
}

Status sample_norm2(const View& g, const View& squared, const Exec& exec) {
  Check check(exec);
  check.dense("g", g, 2).dense("squared", squared, 1).size("squared", squared, 0, g.size[0]);
  check.dtype("squared", squared, accumulation_dtype(g.dtype));
  if (check.passed()) check.workspace(sample_workspace_bytes(g.size[0], g.size[1]));
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(sample_norm(g, nullptr, squared, 0, false, exec));
  sum_pieces(g, exec);
  for (int64_t n = 0; n < g.size[0]; ++n) write(squared, n, join(exec, n, pieces(g.size[1])));
  return ok();
}

Status gp_penalty(const View& g, const View& penalty, const View& norm, double center, bool one_sided,
                  const Exec& exec) {
  Check check(exec);
  check.dense("g", g, 2).dense("penalty", penalty, 1).size("penalty", penalty, 0, g.size[0]);
  check.dtype("penalty", penalty, accumulation_dtype(g.dtype)).same_shape("norm", norm, penalty);
  if (check.passed()) check.workspace(sample_workspace_bytes(g.size[0], g.size[1]));
  if (!check.passed()) return check.status();
  GS_ON_DEVICE(sample_norm(g, &penalty, norm, center, one_sided, exec));
  sum_pieces(g, exec);
  for (int64_t n = 0; n < g.size[0]; ++n) {
    const double length = std::sqrt(join(exec, n, pieces(g.size[1])));
    const double excess = one_sided && length < center ? 0 : length - center;
    write(norm, n, length);
    write(penalty, n, excess * excess);
  }
  return ok();
}

}  // namespace ganscale
