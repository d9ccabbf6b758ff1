// Threads of one call: OpenMP's pool where the build found it (torch's own pool, when torch is loaded), else plain
// threads started for the call.
#include "parallel.h"

#ifndef _OPENMP
#include <thread>
#include <vector>
#endif

namespace ganscale::cpu {

void run_tasks(int threads, int64_t count, Task task, const void* context) {
  const int64_t most = threads < count ? threads : count;
  if (most <= 1) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(most)) schedule(static)
  for (int64_t i = 0; i < count; ++i) task(context, i);
#else
  auto share = [=](int64_t part) {
    for (int64_t i = part * count / most; i < (part + 1) * count / most; ++i) task(context, i);
  };
  std::vector<std::thread> others;
  for (int64_t part = 1; part < most; ++part) others.emplace_back(share, part);
  share(0);
  for (std::thread& thread : others) thread.join();
#endif
}

}  // namespace ganscale::cpu
