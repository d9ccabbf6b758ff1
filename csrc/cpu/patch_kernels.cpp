// Adding up runs of patches, once per instruction set. Bound: memory bandwidth.
// Who owns what: a call writes exactly the `count` outputs it is given; threads are the caller's business.
#include "patch_kernels.h"

#include "number.h"

namespace {

using namespace ganscale;

template <class T>
void add_one(void* total_, const void* x_, int64_t count) {
  auto* __restrict total = static_cast<typename T::Acc*>(total_);
  auto* __restrict x = static_cast<const typename T::Storage*>(x_);
  for (int64_t i = 0; i < count; ++i) total[i] += T::load(x[i]);
}

template <class T>
void narrow_one(const void* total_, void* y_, int64_t count) {
  auto* __restrict total = static_cast<const typename T::Acc*>(total_);
  auto* __restrict y = static_cast<typename T::Storage*>(y_);
  for (int64_t i = 0; i < count; ++i) y[i] = T::store(total[i]);
}

#define GS_EACH(fn) {fn<F32>, fn<F64>, fn<F16>, fn<BF16>}
constexpr cpu::PatchTable kTable = {GS_EACH(add_one), GS_EACH(narrow_one)};

}  // namespace

namespace ganscale::cpu {
#define GS_JOIN(a, b) a##b
#define GS_TABLE(isa) GS_JOIN(patch_table_, isa)
const PatchTable* GS_TABLE(GS_ISA)() { return &kTable; }
}  // namespace ganscale::cpu
