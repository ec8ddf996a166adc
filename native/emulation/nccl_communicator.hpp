// The handle of an emulated communicator.
#pragma once

#include <algorithm>

#include "nccl.hpp"

namespace emulation::nccl {

struct communicator {
  std::shared_ptr<membership> mine;  // none while a split waits for its other ranks
  std::shared_ptr<membership> parent = nullptr;
  int split = 0, color = 0;
  unsigned polls = 0;
};

extern std::set<communicator*>& the_communicators;

// Starts the thread that does what nobody in this process waits for, though other ranks do.
void start_engine();

// Success when a call may be made on the communicator now.
inline ncclResult usable(communicator* c) {
  if (!the_communicators.contains(c)) return refuse(nccl_invalid_argument, "no communicator");
  if (!c->mine || c->mine->state == nccl_in_progress) {
    return refuse(nccl_invalid_usage,
                  "the communicator is in progress: poll ncclCommGetAsyncError first");
  }
  return c->mine->state;
}

}  // namespace emulation::nccl
