#include "ganscale/shared_sum.h"

#include "check.h"

#ifdef __linux__

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace ganscale {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxRanks = 256;
constexpr int64_t kSlotBytes = 256 << 10;  // a slot of each rank fits the cache beside the others
constexpr int64_t kWholeBytes = 16 << 10;  // below it every rank adds everything; above it each adds a share
constexpr auto kAwake = std::chrono::milliseconds(2);  // a rank that is no later than this costs no going to sleep
constexpr auto kNap = std::chrono::milliseconds(100);  // how often a sleeper looks whether the others live

// What one rank tells the others; a cache line of its own, and the neighbour that is fetched with it.
struct alignas(128) Place {
  std::atomic<uint32_t> meetings;  // that this rank has come to
  std::atomic<uint32_t> sleepers;  // that wait for it
  std::atomic<int64_t> bytes[2];   // of the sums it came with to the last two: it may be one meeting ahead of a reader
};

uint32_t* word(std::atomic<uint32_t>& value) { return reinterpret_cast<uint32_t*>(&value); }

void rest() {
#ifdef __x86_64__
  for (int i = 0; i < 32; ++i) __builtin_ia32_pause();
#endif
}

struct flock byte_lock(int rank) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

template <class T>
void add_slots(T* out, const T* const* slots, int size, int64_t begin, int64_t end) {
  const T* first = slots[0];
  const T* second = slots[1];
  for (int64_t i = begin; i < end; ++i) out[i] = first[i] + second[i];
  for (int rank = 2; rank < size; ++rank) {
    const T* next = slots[rank];
    for (int64_t i = begin; i < end; ++i) out[i] += next[i];
  }
}

class Mapped final : public SharedSum {
 public:
  Mapped(int file, char* memory, int64_t bytes, int rank, int size, double timeout_s)
      : file_(file), memory_(memory), bytes_(bytes), rank_(rank), size_(size), timeout_s_(timeout_s) {}

  ~Mapped() override {
    munmap(memory_, static_cast<size_t>(bytes_));
    ::close(file_);
  }

  static int64_t bytes_for(int size) { return size * (static_cast<int64_t>(sizeof(Place)) + 2 * kSlotBytes); }

  Status sum(const View& data) override {
    if (data.ndim != 1 || data.stride[0] != 1) return fail(kBadArgument, "data must be one dense axis");
    if (data.dtype == kF32) return sum_of(static_cast<float*>(data.data), data.size[0]);
    if (data.dtype == kF64) return sum_of(static_cast<double*>(data.data), data.size[0]);
    return fail(kBadArgument, "data must be float32 or float64, got dtype %d", data.dtype);
  }

 private:
  Place& place(int rank) { return reinterpret_cast<Place*>(memory_)[rank]; }

  char* slot(int rank) {
    return memory_ + size_ * static_cast<int64_t>(sizeof(Place)) + (2 * rank + turn_) * kSlotBytes;
  }

  template <class T>
  Status sum_of(T* data, int64_t count) {
    constexpr int64_t most = kSlotBytes / static_cast<int64_t>(sizeof(T));
    for (int64_t begin = 0; begin < count; begin += most) {
      const Status status = sum_piece(data + begin, std::min(most, count - begin), count * sizeof(T));
      if (status.code != kOk) return status;
    }
    return ok();
  }

  // `whole_bytes`: of the sum that this is a piece of.
  template <class T>
  Status sum_piece(T* data, int64_t count, int64_t whole_bytes) {
    const T* slots[kMaxRanks];
    for (int rank = 0; rank < size_; ++rank) slots[rank] = reinterpret_cast<T*>(slot(rank));
    T* mine = reinterpret_cast<T*>(slot(rank_));
    std::memcpy(mine, data, count * sizeof(T));
    Status status = meet(whole_bytes);
    if (status.code != kOk) return status;
    if (size_ == 2 || count * static_cast<int64_t>(sizeof(T)) <= kWholeBytes) {
      add_slots(data, slots, size_, 0, count);
    } else {
      // nobody else reads this rank's share of this rank's own slot before the second meeting
      add_slots(data, slots, size_, share(rank_, count), share(rank_ + 1, count));
      std::copy(data + share(rank_, count), data + share(rank_ + 1, count), mine + share(rank_, count));
      status = meet(whole_bytes);
      if (status.code != kOk) return status;
      for (int rank = 0; rank < size_; ++rank) {
        std::copy(slots[rank] + share(rank, count), slots[rank] + share(rank + 1, count), data + share(rank, count));
      }
    }
    turn_ ^= 1;
    return ok();
  }

  int64_t share(int rank, int64_t count) const { return rank * count / size_; }

  // Returns once all ranks have come here as often as this one, with a sum of the same size.
  Status meet(int64_t bytes) {
    Place& mine = place(rank_);
    mine.bytes[++meeting_ % 2].store(bytes, std::memory_order_relaxed);
    mine.meetings.store(meeting_);
    if (mine.sleepers.load() > 0) syscall(SYS_futex, word(mine.meetings), FUTEX_WAKE, size_, nullptr, nullptr, 0);
    for (int rank = 0; rank < size_; ++rank) {
      if (rank == rank_) continue;
      const Status status = wait_for(rank);
      if (status.code != kOk) return status;
      const int64_t theirs = place(rank).bytes[meeting_ % 2].load(std::memory_order_relaxed);
      if (theirs != bytes) {
        return fail(kBadArgument, "all ranks must sum the same number of bytes, got %lld on rank %d and %lld on rank %d",
                    static_cast<long long>(bytes), rank_, static_cast<long long>(theirs), rank);
      }
    }
    return ok();
  }

  // Or has gone on to the next meeting, but no further: there it waits for this rank.
  bool has_come(int rank) {
    return static_cast<int32_t>(place(rank).meetings.load(std::memory_order_acquire) - meeting_) >= 0;
  }

  Status wait_for(int rank) {
    const auto began = Clock::now();
    for (int looks = 0; !has_come(rank); ++looks) {
      if (looks < 64) {
        rest();
        continue;
      }
      const auto waited = Clock::now() - began;
      if (waited < kAwake) {
        sched_yield();
        continue;
      }
      if (!nap_until_news_of(rank) && !has_come(rank)) {
        if (!lives(rank) && !has_come(rank)) return fail(kPeerLost, "rank %d has died, says rank %d", rank, rank_);
        if (std::chrono::duration<double>(waited).count() > timeout_s_) {
          return fail(kPeerLost, "rank %d must come to a sum within %g s, says rank %d", rank, timeout_s_, rank_);
        }
      }
    }
    return ok();
  }

  // Sleeps until rank has come to a meeting, at most kNap; returns whether it slept to the end.
  bool nap_until_news_of(int rank) {
    Place& other = place(rank);
    const timespec nap{0, std::chrono::nanoseconds(kNap).count()};
    other.sleepers.fetch_add(1);
    const uint32_t seen = other.meetings.load();
    bool woken = true;
    if (static_cast<int32_t>(seen - meeting_) < 0) {
      woken = syscall(SYS_futex, word(other.meetings), FUTEX_WAIT, seen, &nap, nullptr, 0) == 0 || errno != ETIMEDOUT;
    }
    other.sleepers.fetch_sub(1);
    return woken;
  }

  // A process that ends, however it does, lets go of its lock.
  bool lives(int rank) {
    struct flock lock = byte_lock(rank);
    return fcntl(file_, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  }

  int file_;
  char* memory_;
  int64_t bytes_;
  int rank_, size_;
  double timeout_s_;
  uint32_t meeting_ = 0;
  int turn_ = 0;  // which of a rank's two slots this sum uses
};

Status system_failure(const char* what, const char* path) {
  return fail(kSystemFailure, "%s must be possible for %s, got: %s", what, path, std::strerror(errno));
}

}  // namespace

Status SharedSum::open(const char* path, int rank, int size, double timeout_s, std::unique_ptr<SharedSum>* opened) {
  if (size < 2 || size > kMaxRanks || rank < 0 || rank >= size) {
    return fail(kBadArgument, "ranks must be 0 .. size - 1 with 2 <= size <= %d, got %d of %d", kMaxRanks, rank, size);
  }
  const int file = ::open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return system_failure("opening", path);
  const int64_t bytes = Mapped::bytes_for(size);
  struct flock lock = byte_lock(rank);
  // reserved now: a full memory file system would otherwise kill this process at the first write
  errno = posix_fallocate(file, 0, bytes);
  void* memory = MAP_FAILED;
  if (errno == 0 && fcntl(file, F_OFD_SETLK, &lock) == 0) {
    memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  if (memory == MAP_FAILED) {
    const Status status = system_failure("locking and mapping", path);
    ::close(file);
    return status;
  }
  *opened = std::make_unique<Mapped>(file, static_cast<char*>(memory), bytes, rank, size, timeout_s);
  return ok();
}

}  // namespace ganscale

#else

namespace ganscale {

Status SharedSum::open(const char*, int, int, double, std::unique_ptr<SharedSum>*) {
  return fail(kNotBuilt, "sums in shared memory are built for Linux only");
}

}  // namespace ganscale

#endif
