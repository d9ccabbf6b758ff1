// Sums over the processes of one machine, in memory that they share: what a training step on CPU workers waits for.
//
// Each rank copies its numbers into a slot of its own, says so, waits for the others, and adds all slots in the order
// of the ranks, so that every rank gets the same bits. One meeting a sum: slots are used in turn, and a rank that comes
// to the next meeting has finished reading this one. A rank that waits first looks, then sleeps. Linux only.
#pragma once

#include <memory>

#include "ganscale/api.h"

namespace ganscale {

class SharedSum {
 public:
  // Maps the file at `path`, which is on a memory file system, exists and is empty or of another rank's making. Every
  // rank of 0 .. size - 1 opens the same one. `timeout_s`: how long a sum waits for a rank that lives.
  static Status open(const char* path, int rank, int size, double timeout_s, std::unique_ptr<SharedSum>* opened);
  virtual ~SharedSum() = default;

  // data = the sum of data over all ranks, in place.   data [I] of kF32 or kF64. Every rank calls it alike. Fails with
  // kPeerLost where a rank dies or does not come in time, and with kBadArgument where one brings another number of
  // bytes; no sum is possible after that.
  virtual Status sum(const View& data) = 0;
};

}  // namespace ganscale
