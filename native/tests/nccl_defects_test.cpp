// Mistakes that host code makes with NCCL, planted one by one: the emulation must find each, and
// must find nothing where the same code is right.
#include <atomic>
#include <mutex>

#include "nccl_rank.hpp"

namespace {

std::mutex the_mutex;
std::string the_words;  // that were found for the errors of a run

bool was_said(const char* words) {
  return the_words.find(words) != std::string::npos;
}

// Runs ranks and gives how each ended: the error of a call, of what it enqueued, or of leaving.
std::vector<ncclResult_t> outcomes(int ranks, const std::function<ncclResult_t(rank&)>& body) {
  std::vector<ncclResult_t> results(ranks);
  the_words.clear();
  on_ranks(ranks, [&](rank& r) {
    ncclResult_t result = body(r);
    if (result == ncclSuccess) result = r.wait();
    if (result == ncclSuccess) result = r.settle(ncclCommFinalize(r.comm));
    std::lock_guard lock(the_mutex);
    results[r.number] = result;
    if (result != ncclSuccess) the_words += ncclGetLastError(r.comm) + std::string("; ");
  });
  return results;
}

bool has(const std::vector<ncclResult_t>& results, ncclResult_t which) {
  for (const ncclResult_t result : results) {
    if (result == which) return true;
  }
  return false;
}

// One rank does it like the others, or not.
using variant = std::function<ncclResult_t(rank&, float* p, bool odd)>;

void must_be_found(const char* what, const char* words, const variant& call) {
  const auto run = [&](bool planted) {
    return outcomes(
        2, [&](rank& r) { return call(r, r.floats(filled(100, 1)), planted && r.number == 1); });
  };

  const bool passes = run(false) == std::vector<ncclResult_t>(2, ncclSuccess);
  if (!passes) std::printf("%s: planted nowhere, but found %s\n", what, the_words.c_str());
  EXPECT(passes);
  const bool found = has(run(true), ncclInvalidUsage);
  if (!found || !was_said(words)) std::printf("%s: found %s\n", what, the_words.c_str());
  EXPECT(found && was_said(words));
}

void calls_that_differ() {
  must_be_found("another count", "an all-reduce of 50",
                [](rank& r, float* p, bool odd) { return r.all_reduce(p, odd ? 50 : 100); });
  must_be_found("another operator", "by operation 2", [](rank& r, float* p, bool odd) {
    return r.settle(
        ncclAllReduce(p, p, 100, ncclFloat32, odd ? ncclMax : ncclSum, r.comm, r.stream));
  });
  must_be_found("another type", "of type 1", [](rank& r, float* p, bool odd) {
    return r.settle(
        ncclAllGather(p, p, odd ? 4 : 1, odd ? ncclUint8 : ncclFloat32, r.comm, r.stream));
  });
  must_be_found("another root", "nobody received", [](rank& r, float* p, bool odd) {
    return odd ? r.settle(ncclBroadcast(p, p, 8, ncclFloat32, 1, r.comm, r.stream))
               : r.settle(ncclBroadcast(p, p, 8, ncclFloat32, 0, r.comm, r.stream));
  });
}

// The first rank sends 10 and then 20; the second takes them so, or the other way round.
void sends_in_another_order() {
  must_be_found("another order of sends", "a send/receive of", [](rank& r, float* p, bool odd) {
    if (r.number == 0) {
      const ncclResult_t first = r.settle(ncclSend(p, 10, ncclFloat32, 1, r.comm, r.stream));
      if (first != ncclSuccess) return first;
      return r.settle(ncclSend(p, 20, ncclFloat32, 1, r.comm, r.stream));
    }
    const std::size_t first = odd ? 20 : 10;
    const ncclResult_t one = r.settle(ncclRecv(p, first, ncclFloat32, 0, r.comm, r.stream));
    if (one != ncclSuccess) return one;
    return r.settle(ncclRecv(p, 30 - first, ncclFloat32, 0, r.comm, r.stream));
  });
  must_be_found("a collective before a message", "a send/receive", [](rank& r, float* p, bool odd) {
    const auto message = [&] {
      return r.settle(r.number == 0 ? ncclSend(p, 5, ncclFloat32, 1, r.comm, r.stream)
                                    : ncclRecv(p, 5, ncclFloat32, 0, r.comm, r.stream));
    };
    const ncclResult_t first = odd ? r.all_reduce(p, 5) : message();
    if (first != ncclSuccess) return first;
    return odd ? message() : r.all_reduce(p, 5);
  });
}

// A message longer than a ring, whose receiver leaves.
void nobody_receives() {
  const auto results = outcomes(2, [](rank& r) {
    float* p = r.floats(filled(long_count, 1));
    if (r.number == 1) return ncclSuccess;
    return r.settle(ncclSend(p, long_count, ncclFloat32, 1, r.comm, r.stream));
  });
  EXPECT(results[0] == ncclRemoteError && was_said("rank 1 left"));
}

// A rank that is late is waited for; one that aborts is an error of all.
void a_rank_is_missing() {
  const auto late = outcomes(3, [](rank& r) {
    float* p = r.floats(filled(10, 1));
    if (r.number == 2) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return r.all_reduce(p, 10);
  });
  EXPECT(late == std::vector<ncclResult_t>(3, ncclSuccess));
  const auto aborted = outcomes(3, [](rank& r) {
    float* p = r.floats(filled(10, 1));
    return r.number == 2 ? ncclRemoteError : r.all_reduce(p, 10);
  });
  EXPECT(aborted == std::vector<ncclResult_t>(3, ncclRemoteError));
}

// What one stream writes and another sends needs an event between: without it what leaves is NaN,
// unless a rank that waits for the other has done the other's write by then.
bool arrives_written(bool is_ordered) {
  std::atomic<bool> is_written = true;
  on_ranks(2, [&](rank& r) {
    const std::vector<float> values = filled(10, 5);
    float* received = r.floats(filled(10, -1));
    std::uint64_t p;
    cudaStream_t writer;
    void* written;
    EXPECT(cuMemAlloc_v2(&p, 40) == 0 && cuStreamCreate(&writer, 1) == 0);
    EXPECT(cuEventCreate(&written, 2) == 0);
    r.memory.push_back(p);
    EXPECT(cuMemcpyHtoDAsync_v2(p, values.data(), 40, writer) == 0);
    EXPECT(cuEventRecord(written, writer) == 0);
    if (is_ordered) EXPECT(cuStreamWaitEvent(r.stream, written, 0) == 0);
    float* const sent = reinterpret_cast<float*>(p);

    ncclGroupStart();
    ncclSend(sent, 10, ncclFloat32, 1 - r.number, r.comm, r.stream);
    ncclRecv(received, 10, ncclFloat32, 1 - r.number, r.comm, r.stream);
    EXPECT(r.settle(ncclGroupEnd()) == ncclSuccess);

    if (r.read(received, 10) != values) is_written = false;
    r.leave();
    EXPECT(cuStreamDestroy_v2(writer) == 0 && cuEventDestroy_v2(written) == 0);
  });
  return is_written;
}

void streams_must_be_ordered() {
  for (int round = 0; round < 5; ++round)
    EXPECT(arrives_written(true));
  int lost = 0;
  for (int round = 0; round < 20 && lost == 0; ++round)
    lost += !arrives_written(false);
  EXPECT(lost > 0);
}

void asynchronous_errors_can_be_planted() {
  setenv("TREEATTN_EMULATION_NCCL_FAULT", "1:3:2", 1);
  const auto results = outcomes(3, [](rank& r) {
    float* p = r.floats(filled(10, 1));
    ncclResult_t result = ncclSuccess;
    for (int i = 0; i < 5 && result == ncclSuccess; ++i)
      result = r.all_reduce(p, 10);
    return result;
  });
  unsetenv("TREEATTN_EMULATION_NCCL_FAULT");
  EXPECT(results[1] == ncclSystemError);
  EXPECT(results[0] == ncclRemoteError && results[2] == ncclRemoteError);
}

// Every rank but the last has a device of its own.
void devices_must_not_be_shared() {
  const ncclUniqueId id = new_id();
  std::vector<ncclResult_t> results(3);
  std::vector<std::thread> threads;
  for (int number = 0; number < 3; ++number) {
    threads.emplace_back([&, number] {
      rank r(id, number, 3, number % 2);
      results[number] = r.settle();
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT(has(results, ncclInvalidUsage) && results[1] != ncclInvalidUsage);
}

}  // namespace

int main() {
  EXPECT(cuInit(0) == 0);
  calls_that_differ();
  sends_in_another_order();
  nobody_receives();
  a_rank_is_missing();
  streams_must_be_ordered();
  asynchronous_errors_can_be_planted();
  devices_must_not_be_shared();
  std::printf("%d failures\n", failures.load());
  return failures != 0;
}
