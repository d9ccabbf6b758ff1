// The CUDA side of each operator; called by the checked entry points of api.h only. Present where GS_CUDA is defined.
#pragma once

#include "ganscale/api.h"

namespace ganscale::cuda {

Status interpolate(const View& real, const View& fake, const View& eps, const View& out, const Exec& exec);
// penalty == nullptr: `result` receives the squared norm; else `result` is the norm.
Status sample_norm(const View& g, const View* penalty, const View& result, double center, bool one_sided,
                   const Exec& exec);
Status bias_act(const View& x, const View& bias, const View& y, int activation, double slope, const Exec& exec);
Status act_backward(const View& gy, const View& y, const View& gx, int activation, double slope, const Exec& exec);
Status channel_sum(const View& x, const View& sum, const Exec& exec);
int64_t sample_workspace_bytes(int64_t samples, int64_t sample_size);
int64_t channel_sum_workspace_bytes(int64_t outer, int64_t channels, int64_t inner);

}  // namespace ganscale::cuda
