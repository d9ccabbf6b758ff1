// The scheduler of the emulator: runs the threads of a block as fibers, from one meeting point to the next.
#pragma once

#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};

// The built-in variables, of the thread that is running.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace simt {

// Where a thread called from.
struct Where {
  const char* file;
  int line;
};
#define SIMT_HERE const ::simt::Where where = {__builtin_FILE(), __builtin_LINE()}

// Chooses the order in which threads and blocks run: 0 ascending, 1 descending, any other a shuffle of its own.
void set_seed(unsigned seed);

// Ends the process with the message and the running thread's place.
[[noreturn]] void fault(const Where& where, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Runs invoke(closure) once for every thread of the grid.
void run_grid(const dim3& grid, const dim3& block, size_t shared_bytes, void (*invoke)(void*), void* closure);

// Waits for all threads of the block, all of which must come to the same line. `vote` is combined over the block.
struct Votes {
  int count, any, all;
};
Votes barrier(int vote, const Where& where);

// Lanes of a warp that do something together. `complete` runs once, when all lanes in `mask` have come to the same
// line, on their records (null for lanes outside the mask).
constexpr int kLanes = 32;
using Complete = void (*)(void* const (&records)[kLanes], unsigned mask);
void together(unsigned mask, const char* what, void* record, Complete complete, const Where& where);

int lane();  // of the running thread

// Memory of the block, poisoned when the block starts. `site` tells the declarations of a kernel apart.
void* static_shared(const void* site, const char* name, size_t bytes, size_t alignment);
void* dynamic_shared();
bool in_shared(const void* address, size_t bytes);

// Asynchronous copies of the running thread: the destination is poison from the start of a copy to the wait for it.
void copy_async(void* shared, const void* global, size_t bytes, bool valid, const Where& where);
void commit_copies();
void wait_copies(int pending);

void poison(void* memory, size_t bytes);  // every float, double and 16-bit float of it is a NaN

}  // namespace simt
