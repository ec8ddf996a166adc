// The entry points of the emulated NCCL: operations and groups. Every rank sends what the others
// need to all of them and combines what it got in the order of the ranks.
#include <cstring>

#include "nccl_communicator.hpp"

namespace emulation::nccl {

namespace {

enum : int {
  type_int8 = 0,
  type_uint8 = 1,
  type_float32 = 7,
  operation_sum = 0,
  operation_max = 2
};

struct pending {
  communicator* c;
  stream* on;
  std::shared_ptr<work> w;
};

thread_local int the_depth = 0;
thread_local std::vector<pending> the_group;

std::size_t bytes_of(int type, std::size_t count) {
  return type == type_float32 ? 4 * count : count;
}

ncclResult check(communicator* c, int type, stream* on, int peer) {
  if (const ncclResult state = usable(c)) return state;
  if (type != type_int8 && type != type_uint8 && type != type_float32) {
    return refuse(nccl_invalid_argument, "a type that the emulation does not know");
  }
  if (peer < 0 || peer >= c->mine->ranks) return refuse(nccl_invalid_argument, "no such rank");
  if (!the_driver.streams.contains(on) || on->home != c->mine->home) {
    return refuse(nccl_invalid_argument, "the stream is not one of the communicator's device");
  }
  return nccl_success;
}

ncclResult check_memory(const void* p, std::size_t bytes) {
  if (bytes == 0 || the_driver.holds(reinterpret_cast<CUdeviceptr>(p), bytes)) return nccl_success;
  return refuse(nccl_invalid_argument, "the bytes do not lie in device memory");
}

// The part of the open group that is this communicator's on this stream.
work& part_of_group(communicator* c, stream* on) {
  for (const pending& p : the_group) {
    if (p.c == c && p.on == on) return *p.w;
  }
  the_group.push_back({c, on, std::make_shared<work>()});
  return *the_group.back().w;
}

// Enqueues the group. Every second group only begins to, as the real one may at any time.
ncclResult close_group() {
  ncclResult result = nccl_success;
  for (auto& [c, on, w] : std::exchange(the_group, {})) {
    membership& m = *c->mine;
    if (++m.operations % 2) {
      m.deferred.push_back({on, w, on->recording});
      m.state = result = nccl_in_progress;
    } else if (submit(c->mine, on, w) != success) {
      return refuse(nccl_unhandled_cuda_error, "the stream takes no more work");
    }
  }
  return result;
}

ncclResult end_call() {
  return the_depth == 0 ? close_group() : nccl_success;
}

void add(work& w, int peer, bool leaves, const message& header, const void* data,
         std::size_t bytes) {
  w.transfers.push_back({peer, leaves, header, static_cast<char*>(const_cast<void*>(data)), bytes});
}

// Sends bytes to all and takes as many of each into `all`, the own ones too.
void add_all_gather(work& w, const membership& m, const message& header, const void* data,
                    std::size_t bytes, char* all) {
  for (int peer = 0; peer < m.ranks; ++peer) {
    if (peer == m.rank) continue;
    add(w, peer, true, header, data, bytes);
    add(w, peer, false, header, all + peer * bytes, bytes);
  }
  w.endings.push_back([=, rank = m.rank] {
    if (all + rank * bytes != data) std::memmove(all + rank * bytes, data, bytes);
  });
}

void combine(float* result, const float* all, std::size_t count, int ranks, int operation) {
  for (std::size_t i = 0; i < count; ++i) {
    float value = all[i];
    for (int rank = 1; rank < ranks; ++rank) {
      const float other = all[rank * count + i];
      value = operation == operation_sum ? value + other : std::max(value, other);
    }
    result[i] = value;
  }
}

ncclResult point_to_point(void* data, std::size_t count, int type, int peer, communicator* c,
                          stream* on, bool leaves) {
  std::lock_guard lock(the_driver.mutex);
  if (const ncclResult error = check(c, type, on, peer)) return error;
  if (const ncclResult error = check_memory(data, bytes_of(type, count))) return error;
  add(part_of_group(c, on), peer, leaves, {message::send, type, 0, 0, count}, data,
      bytes_of(type, count));
  return end_call();
}

}  // namespace

}  // namespace emulation::nccl

using namespace emulation;
using namespace emulation::nccl;

NCCL_API ncclGroupStart() {
  ++the_depth;
  return nccl_success;
}

NCCL_API ncclGroupEnd() {
  std::lock_guard lock(the_driver.mutex);
  if (the_depth == 0) return refuse(nccl_invalid_usage, "no group is open");
  return --the_depth == 0 ? close_group() : nccl_success;
}

NCCL_API ncclSend(const void* data, std::size_t count, int type, int peer, communicator* c,
                  stream* on) {
  return point_to_point(const_cast<void*>(data), count, type, peer, c, on, true);
}

NCCL_API ncclRecv(void* data, std::size_t count, int type, int peer, communicator* c, stream* on) {
  return point_to_point(data, count, type, peer, c, on, false);
}

NCCL_API ncclAllGather(const void* data, void* all, std::size_t count, int type, communicator* c,
                       stream* on) {
  std::lock_guard lock(the_driver.mutex);
  if (const ncclResult error = check(c, type, on, 0)) return error;
  const std::size_t bytes = bytes_of(type, count);
  if (const ncclResult error = check_memory(data, bytes)) return error;
  if (const ncclResult error = check_memory(all, bytes * c->mine->ranks)) return error;
  add_all_gather(part_of_group(c, on), *c->mine, {message::all_gather, type, 0, 0, count}, data,
                 bytes, static_cast<char*>(all));
  return end_call();
}

NCCL_API ncclAllReduce(const void* data, void* result, std::size_t count, int type, int operation,
                       communicator* c, stream* on) {
  std::lock_guard lock(the_driver.mutex);
  if (const ncclResult error = check(c, type, on, 0)) return error;
  const std::size_t bytes = bytes_of(type, count);
  if (const ncclResult error = check_memory(data, bytes)) return error;
  if (const ncclResult error = check_memory(result, bytes)) return error;
  if (type != type_float32 || (operation != operation_sum && operation != operation_max)) {
    return refuse(nccl_invalid_argument, "an operation that the emulation does not know");
  }
  const int ranks = c->mine->ranks;
  const auto all = std::make_shared<std::vector<float>>(count * ranks);
  work& w = part_of_group(c, on);
  add_all_gather(w, *c->mine, {message::all_reduce, type, operation, 0, count}, data, bytes,
                 reinterpret_cast<char*>(all->data()));
  w.endings.push_back(
      [=] { combine(static_cast<float*>(result), all->data(), count, ranks, operation); });
  return end_call();
}

NCCL_API ncclBroadcast(const void* data, void* result, std::size_t count, int type, int root,
                       communicator* c, stream* on) {
  std::lock_guard lock(the_driver.mutex);
  if (const ncclResult error = check(c, type, on, root)) return error;
  const membership& m = *c->mine;
  const std::size_t bytes = bytes_of(type, count);
  if (const ncclResult error = check_memory(m.rank == root ? data : result, bytes)) return error;
  const message header{message::broadcast, type, 0, root, count};
  work& w = part_of_group(c, on);
  if (m.rank != root) {
    add(w, root, false, header, result, bytes);
    return end_call();
  }
  for (int peer = 0; peer < m.ranks; ++peer) {
    if (peer != root) add(w, peer, true, header, data, bytes);
  }
  if (data != result) {
    w.endings.push_back([=] { std::memmove(result, data, bytes); });
  }
  return end_call();
}
