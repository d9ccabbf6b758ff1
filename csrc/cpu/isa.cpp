// Which instruction sets this CPU runs, and which one is used.
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "ganscale/api.h"
#include "isa.h"
#include "kernels.h"

namespace ganscale {
namespace {

constexpr const char* kNames[cpu::kIsas] = {"base", "avx2", "avx512"};

// How many of the sets this CPU runs; slowest first, the baseline is always there.
int runnable() {
#ifdef GS_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
             ? 3
             : 2;
#else
  return 1;
#endif
}

int choose() {
  const int count = runnable();
  const char* cap = std::getenv("GANSCALE_ISA");
  for (int i = 0; cap && i < count; ++i) {
    if (std::strcmp(cap, kNames[i]) == 0) return i;
  }
  return count - 1;
}

}  // namespace

int cpu::isa() {
  static const int chosen = choose();
  return chosen;
}

const cpu::KernelTable& cpu::kernels() {
  static const KernelTable* (*const tables[])() = GS_TABLES(table);
  return *tables[isa()]();
}

const char* active_isa() { return kNames[cpu::isa()]; }

int supported_isas(const char** names, int capacity) {
  const int count = runnable();
  for (int i = 0; i < count && i < capacity; ++i) names[i] = kNames[i];
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
