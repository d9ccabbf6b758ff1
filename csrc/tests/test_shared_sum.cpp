// Sums over ranks, here threads that each open the file anew: against the sum, and refusals.
#include "ganscale/shared_sum.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

using namespace ganscale;

namespace {

constexpr int64_t kCounts[] = {1, 5, 4096, 4099, 65536, 65537, 150001};

template <class T>
bool sums_are_right(SharedSum& shared, int rank, int size, int dtype) {
  for (int64_t count : kCounts) {
    std::vector<T> data(count);
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<T>((rank + 1) * (i % 1000));
    const View view{data.data(), dtype, 1, {count}, {1}};
    if (shared.sum(view).code != kOk) return false;
    for (int64_t i = 0; i < count; ++i) {
      if (data[i] != static_cast<T>(size * (size + 1) / 2 * (i % 1000))) return false;
    }
  }
  return true;
}

bool ranks_agree(const char* path, int size) {
  std::vector<std::unique_ptr<SharedSum>> shared(size);
  for (int rank = 0; rank < size; ++rank) {
    if (SharedSum::open(path, rank, size, 60, &shared[rank]).code != kOk) return false;
  }
  std::vector<char> right(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      right[rank] = sums_are_right<float>(*shared[rank], rank, size, kF32) &&
                    sums_are_right<double>(*shared[rank], rank, size, kF64);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (char each : right) {
    if (!each) return false;
  }
  return true;
}

}  // namespace

int check_shared_sum() {
  const std::string path = "/dev/shm/ganscale-test-" + std::to_string(getpid());
  int checks = 0;
  const auto expect = [&](bool holds, const char* what) {
    ++checks;
    if (holds) return;
    std::printf("test_shared_sum.cpp: %s\n", what);
    unlink(path.c_str());
    std::exit(1);
  };
  for (int size : {2, 3, 4}) {
    close(open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR, 0600));
    expect(ranks_agree(path.c_str(), size), "every rank must get the sum");
    unlink(path.c_str());
  }
  close(open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR, 0600));
  std::unique_ptr<SharedSum> first, second;
  expect(SharedSum::open(path.c_str(), 0, 2, 0.2, &first).code == kOk, "a file must open");
  expect(SharedSum::open(path.c_str(), 0, 2, 0.2, &second).code == kSystemFailure, "a rank is there once");
  expect(SharedSum::open(path.c_str(), 1, 2, 0.2, &second).code == kOk, "another rank must open");
  float one = 1;
  const View view{&one, kF32, 1, {1}, {1}};
  const Status late = first->sum(view);
  expect(late.code == kPeerLost && std::strstr(late.message, "within 0.2 s"), "a rank that stays away must be named");
  second.reset();
  const Status gone = first->sum(view);
  expect(gone.code == kPeerLost && std::strstr(gone.message, "has died"), "a rank that has gone must be named");
  expect(SharedSum::open("/nowhere/at/all", 0, 2, 1, &second).code == kSystemFailure, "no file, no memory");
  unlink(path.c_str());
  return checks;
}
