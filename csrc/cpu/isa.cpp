// Which instruction sets this CPU runs, and which kernels are used.
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "ganscale/api.h"
#include "kernels.h"

namespace ganscale {
namespace {

constexpr int kMost = 3;

// Slowest first; the baseline is always there.
int runnable(const cpu::KernelTable* tables[kMost]) {
  int count = 0;
  tables[count++] = cpu::table_base();
#ifdef GS_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) tables[count++] = cpu::table_avx2();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    tables[count++] = cpu::table_avx512();
  }
#endif
  return count;
}

const cpu::KernelTable* choose() {
  const cpu::KernelTable* tables[kMost];
  const int count = runnable(tables);
  const char* cap = std::getenv("GANSCALE_ISA");
  for (int i = 0; cap && i < count; ++i) {
    if (std::strcmp(cap, tables[i]->name) == 0) return tables[i];
  }
  return tables[count - 1];
}

}  // namespace

const cpu::KernelTable& cpu::kernels() {
  static const KernelTable* const chosen = choose();
  return *chosen;
}

const char* active_isa() { return cpu::kernels().name; }

int supported_isas(const char** names, int capacity) {
  const cpu::KernelTable* tables[kMost];
  const int count = runnable(tables);
  for (int i = 0; i < count && i < capacity; ++i) names[i] = tables[i]->name;
  return count;
}

const char* version() { return GS_VERSION; }

bool built_with_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

#ifdef GS_CUDA
bool built_with_cuda() { return true; }
const char* cuda_archs() { return GS_CUDA_ARCHS; }
#else
bool built_with_cuda() { return false; }
const char* cuda_archs() { return ""; }
int cuda_device_count(Status* why) {
  *why = fail(kNotBuilt, "the core was built without CUDA");
  return 0;
}
#endif

}  // namespace ganscale
