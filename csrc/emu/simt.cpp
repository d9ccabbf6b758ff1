// The emulator's state: one block at a time, its threads, its shared memory.
#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "fiber.h"
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

uint3 threadIdx{}, blockIdx{};
dim3 blockDim, gridDim;

namespace simt {
namespace {

constexpr int kPoison = 0xff;
constexpr unsigned char kCanary = 0xc5;
constexpr size_t kGuard = 64;  // bytes on either side of a shared array that must stay as they are

enum class State { kReady, kAtBarrier, kInWarp, kEnded };

struct Copy {
  void* shared;
  const void* global;
  size_t bytes;
  bool valid;
};

struct Thread {
  Fiber fiber;
  uint3 index{};
  int number = 0;
  State state = State::kReady;
  Where where{};
  const char* what = "";
  int vote = 0;
  std::vector<Copy> started;                // copies not yet committed
  std::deque<std::vector<Copy>> committed;  // groups, oldest first
};

// Lanes that are on their way to one collective operation of their warp.
struct Meeting {
  int warp;
  unsigned mask, arrived;
  const char* what;
  Where where;
  void* records[kLanes];
};

// One array of the block's shared memory between two guards. The address sanitizer sees every access to a guard;
// without it a write to one is seen when the block ends.
class Shared {
 public:
  // Aligned to what was declared and no further, so that a wider access is one to misaligned memory.
  Shared(const void* site_, const char* name_, size_t bytes_, size_t alignment)
      : site(site_), name(name_), bytes(bytes_) {
    const size_t wide = 2 * std::max(alignment, kGuard);
    memory_.reset(new unsigned char[2 * kGuard + wide + alignment + bytes]);
    const uintptr_t start = (reinterpret_cast<uintptr_t>(memory_.get()) + kGuard + wide - 1) / wide * wide;
    data = reinterpret_cast<unsigned char*>(start + alignment);
    std::memset(data - kGuard, kCanary, kGuard);
    std::memset(data + bytes, kCanary, kGuard);
    poison(data, bytes);
#ifdef SIMT_ASAN
    ASAN_POISON_MEMORY_REGION(data - kGuard, kGuard);
    ASAN_POISON_MEMORY_REGION(data + bytes, kGuard);
#endif
  }
  Shared(Shared&&) = default;
  Shared& operator=(Shared&&) = delete;
#ifdef SIMT_ASAN
  ~Shared() {
    if (memory_ != nullptr) ASAN_UNPOISON_MEMORY_REGION(data - kGuard, bytes + 2 * kGuard);
  }
#endif
  bool intact() const {
#ifdef SIMT_ASAN
    return true;
#else
    const auto kept = [](unsigned char byte) { return byte == kCanary; };
    return std::all_of(data - kGuard, data, kept) && std::all_of(data + bytes, data + bytes + kGuard, kept);
#endif
  }

  const void* site;
  const char* name;
  unsigned char* data;
  size_t bytes;

 private:
  std::unique_ptr<unsigned char[]> memory_;
};

std::minstd_rand random_bits;
unsigned order_seed = 0;

Fiber main_fiber;
std::vector<std::unique_ptr<Thread>> threads;  // grows; a block uses the first `count`
int count = 0;
std::deque<Thread*> ready;
Thread* running = nullptr;
int at_barrier = 0, ended = 0;
Where barrier_where{};
std::vector<Meeting> meetings;
std::vector<Shared> arrays;
void (*invoke_kernel)(void*) = nullptr;
void* kernel_closure = nullptr;

bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
bool same(const Where& a, const Where& b) { return a.line == b.line && same(a.file, b.file); }

void print_where(const Thread& thread) {
  std::fprintf(stderr, "block (%u, %u, %u) thread (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z, thread.index.x,
               thread.index.y, thread.index.z);
}

// Nobody can go on: somebody waits for a thread that has ended or waits elsewhere.
[[noreturn]] void report_deadlock() {
  const Thread* waiting = nullptr;
  for (int i = 0; i < count; ++i) {
    if (threads[i]->state == State::kAtBarrier || (waiting == nullptr && threads[i]->state == State::kInWarp)) {
      waiting = threads[i].get();
    }
  }
  std::fprintf(stderr, "simt: %s: %d of %d threads are at a barrier, %d have ended",
               waiting->state == State::kAtBarrier ? "divergent barrier" : "a lane of the mask never came",
               at_barrier, count, ended);
  std::fprintf(stderr, "; ");
  print_where(*waiting);
  std::fprintf(stderr, " waits in %s at %s:%d\n", waiting->what, waiting->where.file, waiting->where.line);
  std::abort();
}

Thread* pick() {
  Thread* next = nullptr;
  if (order_seed == 0) {
    next = ready.front();
    ready.pop_front();
  } else {
    if (order_seed > 1) std::swap(ready[random_bits() % ready.size()], ready.back());
    next = ready.back();
    ready.pop_back();
  }
  return next;
}

// Gives the processor to a thread that can run, or back to the block's loop when all have ended.
void yield(bool last = false) {
  Thread* const self = running;
  if (ready.empty()) {
    if (ended < count) report_deadlock();
    running = nullptr;
    Fiber::go(self->fiber, main_fiber, last);
    return;
  }
  Thread* const next = pick();
  if (next == self) return;
  running = next;
  threadIdx = next->index;
  Fiber::go(self->fiber, next->fiber, last);
}

void make_ready(Thread* thread) {
  thread->state = State::kReady;
  ready.push_back(thread);
}

#if defined(__GNUC__)
__attribute__((no_sanitize("address")))
#endif
void thread_entry() {
  running->fiber.arrived();
  invoke_kernel(kernel_closure);
  Thread& self = *running;
  bool copying = !self.started.empty();
  for (const auto& group : self.committed) copying |= !group.empty();
  if (copying) fault({"the kernel's end", 0}, "a thread ended without waiting for its asynchronous copies");
  self.committed.clear();
  self.state = State::kEnded;
  ++ended;
  yield(true);
}

void check_guards() {
  for (const Shared& array : arrays) {
    if (array.intact()) continue;
    std::fprintf(stderr, "simt: block (%u, %u, %u) wrote outside its shared array %s of %zu bytes\n", blockIdx.x,
                 blockIdx.y, blockIdx.z, array.name, array.bytes);
    std::abort();
  }
}

void run_block(const dim3& block) {
  ready.clear();
  meetings.clear();
  at_barrier = ended = 0;
  for (const Shared& array : arrays) poison(array.data, array.bytes);
  int number = 0;
  for (unsigned z = 0; z < block.z; ++z) {
    for (unsigned y = 0; y < block.y; ++y) {
      for (unsigned x = 0; x < block.x; ++x, ++number) {
        Thread& thread = *threads[static_cast<size_t>(number)];
        thread.index = {x, y, z};
        thread.number = number;
        thread.fiber.begin(thread_entry);
        make_ready(&thread);
      }
    }
  }
  running = pick();
  threadIdx = running->index;
  Fiber::go(main_fiber, running->fiber);
  check_guards();
}

}  // namespace

void set_seed(unsigned seed) {
  order_seed = seed;
  random_bits.seed(seed);
}

void fault(const Where& where, const char* format, ...) {
  std::fprintf(stderr, "simt: ");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, " (%s:%d", where.file, where.line);
  if (running != nullptr) {
    std::fprintf(stderr, ", ");
    print_where(*running);
  }
  std::fprintf(stderr, ")\n");
  std::abort();
}

void poison(void* memory, size_t bytes) { std::memset(memory, kPoison, bytes); }

int lane() { return running->number % kLanes; }

void run_grid(const dim3& grid, const dim3& block, size_t shared_bytes, void (*invoke)(void*), void* closure) {
  if (running != nullptr) fault({"a launch", 0}, "a kernel launched a kernel");
  main_fiber.adopt();
  count = static_cast<int>(block.x * block.y * block.z);
  while (threads.size() < static_cast<size_t>(count)) threads.push_back(std::make_unique<Thread>());
  arrays.clear();
  arrays.emplace_back(nullptr, "(dynamic)", shared_bytes, 16);
  invoke_kernel = invoke;
  kernel_closure = closure;
  blockDim = block;
  gridDim = grid;
  std::vector<uint64_t> order(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
  for (uint64_t i = 0; i < order.size(); ++i) order[i] = order_seed == 1 ? order.size() - 1 - i : i;
  if (order_seed > 1) std::shuffle(order.begin(), order.end(), random_bits);
  for (const uint64_t i : order) {
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(block);
  }
  arrays.clear();
}

Votes barrier(int vote, const Where& where) {
  static Votes result;
  Thread& self = *running;
  if (at_barrier > 0 && !same(barrier_where, where)) {
    fault(where, "divergent barrier: another thread of the block waits at %s:%d", barrier_where.file,
          barrier_where.line);
  }
  barrier_where = where;
  self.where = where;
  self.what = "__syncthreads";
  self.vote = vote != 0;
  self.state = State::kAtBarrier;
  if (++at_barrier == count) {
    at_barrier = 0;
    int votes = 0;
    for (int i = 0; i < count; ++i) {
      votes += threads[static_cast<size_t>(i)]->vote;
      make_ready(threads[static_cast<size_t>(i)].get());
    }
    result = {votes, votes > 0, votes == count};
  }
  yield();
  return result;  // the next barrier completes only after every thread has read it
}

void together(unsigned mask, const char* what, void* record, Complete complete, const Where& where) {
  Thread& self = *running;
  const int warp = self.number / kLanes, own = self.number % kLanes;
  if (((mask >> own) & 1) == 0) fault(where, "%s with mask %08x by lane %d, which the mask lacks", what, mask, own);
  Meeting* meeting = nullptr;
  for (Meeting& open : meetings) {
    if (open.warp != warp || (open.mask & mask) == 0) continue;
    if (open.mask != mask || !same(open.what, what) || !same(open.where, where)) {
      fault(where, "%s with mask %08x while other lanes of the warp are in %s with mask %08x at %s:%d", what, mask,
            open.what, open.mask, open.where.file, open.where.line);
    }
    meeting = &open;
  }
  if (meeting == nullptr) {
    meetings.push_back({warp, mask, 0, what, where, {}});
    meeting = &meetings.back();
  }
  meeting->records[own] = record;
  meeting->arrived |= 1u << own;
  self.where = where;
  self.what = what;
  self.state = State::kInWarp;
  if (meeting->arrived == mask) {
    const Meeting done = *meeting;
    meetings.erase(meetings.begin() + (meeting - meetings.data()));
    complete(done.records, mask);
    for (int i = 0; i < kLanes; ++i) {
      if ((mask >> i) & 1) make_ready(threads[static_cast<size_t>(warp * kLanes + i)].get());
    }
  }
  yield();
}

void* static_shared(const void* site, const char* name, size_t bytes, size_t alignment) {
  for (Shared& array : arrays) {
    if (array.site == site) return array.data;
  }
  arrays.emplace_back(site, name, bytes, alignment);
  size_t total = 0;
  for (const Shared& array : arrays) total += array.bytes;
  if (total > 227 * 1024) fault({"shared memory", 0}, "a block has %zu bytes of shared memory, 227 KiB is most", total);
  return arrays.back().data;
}

void* dynamic_shared() { return arrays.front().data; }

bool in_shared(const void* address, size_t bytes) {
  const auto* const begin = static_cast<const unsigned char*>(address);
  return std::any_of(arrays.begin(), arrays.end(), [&](const Shared& array) {
    return begin >= array.data && begin + bytes <= array.data + array.bytes;
  });
}

void copy_async(void* shared, const void* global, size_t bytes, bool valid, const Where& where) {
  const auto aligned = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  if (!in_shared(shared, bytes)) fault(where, "cp.async to an address outside the block's shared memory");
  if (!aligned(shared) || (valid && !aligned(global))) fault(where, "cp.async of %zu bytes, misaligned", bytes);
  poison(shared, bytes);
  running->started.push_back({shared, global, bytes, valid});
}

void commit_copies() {
  running->committed.push_back(std::move(running->started));
  running->started.clear();
}

void wait_copies(int pending) {
  while (running->committed.size() > static_cast<size_t>(pending)) {
    for (const Copy& copy : running->committed.front()) {
      if (copy.valid) {
        std::memcpy(copy.shared, copy.global, copy.bytes);
      } else {
        std::memset(copy.shared, 0, copy.bytes);
      }
    }
    running->committed.pop_front();
  }
}

}  // namespace simt
