// Batch statistics, affine map, activation.
#include "ganscale/norm_act.h"

#include "wrap.h"

namespace ganscale::cuda {

Status channel_moments(const View&, const View&, const Exec&) { return fail(kNotBuilt, "channel_moments is not built"); }
Status batch_norm_act(const View&, const View&, const View&, const View&, double, const View&, const View&, int, double, const Exec&) { return fail(kNotBuilt, "batch_norm_act is not built"); }
Status affine_act(const View&, const View&, const View&, const View&, const View&, int, double, const Exec&) { return fail(kNotBuilt, "affine_act is not built"); }
Status affine_act_backward_sums(const View&, const View&, const View&, const View&, const View&, const View&, const View&, const View&, int, double, const Exec&) { return fail(kNotBuilt, "affine_act_backward_sums is not built"); }
Status affine_act_backward(const View&, const View&, const View&, const View&, const View&, const View&, const View&, const View&, int, double, const Exec&) { return fail(kNotBuilt, "affine_act_backward is not built"); }
int64_t norm_workspace_bytes(int64_t, int64_t, int64_t) { return 0; }

}  // namespace ganscale::cuda
