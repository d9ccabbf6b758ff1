// Activations with their derivative as bits.
#include "ganscale/mask.h"

#include "wrap.h"

namespace ganscale::cuda {

Status act_mask(const View&, const View&, const View&, double, const Exec&) { return fail(kNotBuilt, "act_mask is not built"); }
Status mask_scale(const View&, const View&, double, const Exec&) { return fail(kNotBuilt, "mask_scale is not built"); }

}  // namespace ganscale::cuda
