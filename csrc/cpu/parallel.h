// Splits independent tasks over the threads of one call. Tasks are the same whatever the thread count, so that results
// are too.
#pragma once

#include <cstdint>

namespace ganscale::cpu {

using Task = void (*)(const void* context, int64_t index);
void run_tasks(int threads, int64_t count, Task task, const void* context);

// Calls f(index) for every index below count, on at most `threads` threads.
template <class F>
void parallel_for(int threads, int64_t count, const F& f) {
  run_tasks(threads, count, [](const void* context, int64_t index) { (*static_cast<const F*>(context))(index); }, &f);
}

}  // namespace ganscale::cpu
