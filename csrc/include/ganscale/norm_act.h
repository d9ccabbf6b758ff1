// Normalisation by batch statistics, affine map and activation: two passes over memory forward, two backward. The
// passes are apart so that ranks can add up their totals in between. Shapes as in api.h.
//
// Below x, y, gy, gx are [O, C, I] of one dtype; "number" is float32, or float64 for float64 x; `mean`, `scale`, `shift`
// are [C] numbers; z = (x - mean[c]) * scale[c] + shift[c] in that order of operations (a mean far from 0 then costs no
// accuracy), y = act(z), and g' = gy * act'(z) with z computed again from x, so that y need not be kept. All four
// activations are allowed everywhere. A view said to be optional is absent where data == nullptr.
#pragma once

#include "ganscale/api.h"

namespace ganscale {

// totals[0, c] = sum, totals[1, c] = sum of squares of x over O and I, taken about a shift inside.
// totals [2, C] float64. Workspace: norm_workspace_bytes.
Status channel_moments(const View& x, const View& totals, const Exec& exec);

// The rows of `stats` [kStatRows, C] numbers. With mean m and biased variance v of the whole batch in float64:
// mean = m rounded; rstd = 1 / sqrt(v + eps); scale = gamma * rstd; shift = beta - (m - mean) * scale, which puts back
// what rounding took from m; variance = v; unbiased = v * count / (count - 1).
enum StatRow : int { kMean = 0, kScale = 1, kShift = 2, kRstd = 3, kVariance = 4, kUnbiased = 5 };
constexpr int kStatRows = 6;

// Writes stats from the totals of all ranks, then y = act(z).
// totals [2 * C + 1] float64: the two rows of channel_moments, then the count of elements a channel; gamma, beta [C]
// numbers, optional (1 and 0). Workspace: norm_workspace_bytes.
Status batch_norm_act(const View& x, const View& totals, const View& gamma, const View& beta, double eps,
                      const View& stats, const View& y, int activation, double slope, const Exec& exec);

// y = act(z).   mean optional (0). Workspace: norm_workspace_bytes.
Status affine_act(const View& x, const View& mean, const View& scale, const View& shift, const View& y, int activation,
                  double slope, const Exec& exec);

// totals[0, c] = sum of g', totals[1, c] = sum of g' * (x - mean[c]).   mean optional (0); rstd [C] numbers, optional
// (1); totals [2, C] float64. gradients [2, C] numbers: row 0 = totals[1] * rstd, the gradient of gamma; row 1 =
// totals[0], that of beta. Workspace: norm_workspace_bytes.
Status affine_act_backward_sums(const View& gy, const View& x, const View& mean, const View& scale, const View& shift,
                                const View& rstd, const View& totals, const View& gradients, int activation,
                                double slope, const Exec& exec);

// gx = scale[c] * (g' - totals[0, c] / count - (x - mean[c]) * rstd[c]^2 * totals[1, c] / count), the totals being those
// of affine_act_backward_sums over all ranks: [2 * C + 1] float64, the count of elements a channel last. Where totals is
// absent the statistics were constants: gx = scale[c] * g', and rstd is not read.   mean optional (0).
// Workspace: norm_workspace_bytes.
Status affine_act_backward(const View& gy, const View& x, const View& mean, const View& scale, const View& shift,
                           const View& rstd, const View& totals, const View& gx, int activation, double slope,
                           const Exec& exec);

// Scratch memory of each of these, enough for either device.
int64_t norm_workspace_bytes(int64_t outer, int64_t channels, int64_t inner);

namespace cuda {
Status channel_moments(const View& x, const View& totals, const Exec& exec);
Status batch_norm_act(const View& x, const View& totals, const View& gamma, const View& beta, double eps,
                      const View& stats, const View& y, int activation, double slope, const Exec& exec);
Status affine_act(const View& x, const View& mean, const View& scale, const View& shift, const View& y, int activation,
                  double slope, const Exec& exec);
Status affine_act_backward_sums(const View& gy, const View& x, const View& mean, const View& scale, const View& shift,
                                const View& rstd, const View& totals, const View& gradients, int activation,
                                double slope, const Exec& exec);
Status affine_act_backward(const View& gy, const View& x, const View& mean, const View& scale, const View& shift,
                           const View& rstd, const View& totals, const View& gx, int activation, double slope,
                           const Exec& exec);
int64_t norm_workspace_bytes(int64_t outer, int64_t channels, int64_t inner);
}  // namespace cuda

}  // namespace ganscale
