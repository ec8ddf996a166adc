// NCCL calls on streams that record: they become a part of the graph, are done by each launch, and
// are held to what a launch over several ranks demands: the same graphs everywhere, destroyed
// before the communicator.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <mutex>

#include "nccl_rank.hpp"

extern "C" {
int cuMemcpyDtoDAsync_v2(std::uint64_t, std::uint64_t, std::size_t, cudaStream_t);
int cuStreamBeginCapture_v2(cudaStream_t, int);
int cuStreamEndCapture(cudaStream_t, void**);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, cudaStream_t);
int cuGraphDestroy(void*);
int cuGraphExecDestroy(void*);
}

namespace {

constexpr int thread_mode = 1;
constexpr std::size_t count = 1001;

// What `work` enqueues on the rank's stream, as a graph that can be launched.
void* captured(const rank& r, const std::function<void()>& work) {
  void *graph = nullptr, *ready = nullptr;
  EXPECT(cuStreamBeginCapture_v2(r.stream, thread_mode) == 0);
  work();
  EXPECT(cuStreamEndCapture(r.stream, &graph) == 0);
  EXPECT(cuGraphInstantiateWithFlags(&ready, graph, 0) == 0 && cuGraphDestroy(graph) == 0);
  return ready;
}

std::uint64_t address(const float* p) {
  return reinterpret_cast<std::uint64_t>(p);
}

void set(const rank& r, float* p, float value) {
  const std::vector<float> values = filled(count, value);
  EXPECT(cuMemcpyHtoDAsync_v2(address(p), values.data(), 4 * count, r.stream) == 0);
  EXPECT(cuStreamSynchronize(r.stream) == 0);
}

// Two collectives and a message to the next rank, of which calls in progress are polled as ever.
void each_launch_communicates(rank& r) {
  float *const sum = r.floats(filled(count, -1)), *const got = r.floats(filled(count, -1));
  float* const all = r.floats(filled(count * r.ranks, -1));
  const int next = (r.number + 1) % r.ranks, previous = (r.number + r.ranks - 1) % r.ranks;
  void* const graph = captured(r, [&] {
    EXPECT(r.all_reduce(sum, count) == ncclSuccess);
    EXPECT(r.settle(ncclAllGather(sum, all, count, ncclFloat32, r.comm, r.stream)) == ncclSuccess);
    ncclGroupStart();
    EXPECT(ncclSend(sum, count, ncclFloat32, next, r.comm, r.stream) == ncclSuccess);
    EXPECT(ncclRecv(got, count, ncclFloat32, previous, r.comm, r.stream) == ncclSuccess);
    EXPECT(r.settle(ncclGroupEnd()) == ncclSuccess);
  });
  EXPECT(r.read(sum, 1)[0] == -1);  // recorded, not done

  for (int launch = 1; launch <= 3; ++launch) {
    set(r, sum, float(launch * (r.number + 1)));
    EXPECT(cuGraphLaunch(graph, r.stream) == 0 && r.wait() == ncclSuccess);
    const float expected = launch * r.ranks * (r.ranks + 1) / 2.f;
    EXPECT(r.read(got, count) == filled(count, expected));
    EXPECT(r.read(all, count * r.ranks) == filled(count * r.ranks, expected));
  }
  EXPECT(r.all_reduce(sum, count) == ncclSuccess && r.wait() == ncclSuccess);  // direct calls go on
  cuGraphExecDestroy(graph);
  r.leave();
}

// A second stream sends while the first reads what is sent, and joins before the buffer is
// overwritten; without the join the capture is refused, without the fork's wait what is sent is
// what lay there before.
void a_second_stream_forks_and_joins(rank& r) {
  cudaStream_t side;
  void *forked, *joined;
  EXPECT(cuStreamCreate(&side, 1) == 0 && cuEventCreate(&forked, 2) == 0);
  EXPECT(cuEventCreate(&joined, 2) == 0);
  float *const mine = r.floats(filled(count, 0)), *const sent = r.floats(filled(count, -1));
  float *const got = r.floats(filled(count, -1)), *const read = r.floats(filled(count, -1));
  const int peer = 1 - r.number;
  void* const graph = captured(r, [&] {
    EXPECT(cuMemcpyDtoDAsync_v2(address(sent), address(mine), 4 * count, r.stream) == 0);
    EXPECT(cuEventRecord(forked, r.stream) == 0 && cuStreamWaitEvent(side, forked, 0) == 0);
    ncclGroupStart();
    ncclSend(sent, count, ncclFloat32, peer, r.comm, side);
    ncclRecv(got, count, ncclFloat32, peer, r.comm, side);
    EXPECT(r.settle(ncclGroupEnd()) == ncclSuccess);
    EXPECT(cuMemcpyDtoDAsync_v2(address(read), address(sent), 4 * count, r.stream) == 0);
    EXPECT(cuEventRecord(joined, side) == 0 && cuStreamWaitEvent(r.stream, joined, 0) == 0);
    EXPECT(cuMemcpyDtoDAsync_v2(address(sent), address(got), 4 * count, r.stream) == 0);
  });

  for (int launch = 1; launch <= 3; ++launch) {
    set(r, mine, float(10 * launch + r.number));
    EXPECT(cuGraphLaunch(graph, r.stream) == 0 && r.wait() == ncclSuccess);
    EXPECT(r.read(sent, count) == filled(count, float(10 * launch + peer)));
    EXPECT(r.read(read, count) == filled(count, float(10 * launch + r.number)));
  }
  cuGraphExecDestroy(graph);
  EXPECT(cuStreamDestroy_v2(side) == 0 && cuEventDestroy_v2(forked) == 0);
  EXPECT(cuEventDestroy_v2(joined) == 0);
  r.leave();
}

// The join comes after the read of what arrives: the branches of a graph are as lazy as streams. A
// few launches, because whoever looks after work that stands still may have been first.
void a_join_too_late_is_seen(rank& r) {
  cudaStream_t side;
  void* event;
  EXPECT(cuStreamCreate(&side, 1) == 0 && cuEventCreate(&event, 2) == 0);
  float *const mine = r.floats(filled(count, 7)), *const got = r.floats(filled(count, -1));
  float* const read = r.floats(filled(count, -1));
  void* const graph = captured(r, [&] {
    EXPECT(cuEventRecord(event, r.stream) == 0 && cuStreamWaitEvent(side, event, 0) == 0);
    ncclGroupStart();
    ncclSend(mine, count, ncclFloat32, 0, r.comm, side);
    ncclRecv(got, count, ncclFloat32, 0, r.comm, side);
    EXPECT(r.settle(ncclGroupEnd()) == ncclSuccess);
    EXPECT(cuMemcpyDtoDAsync_v2(address(read), address(got), 4 * count, r.stream) == 0);
    EXPECT(cuEventRecord(event, side) == 0 && cuStreamWaitEvent(r.stream, event, 0) == 0);
  });
  bool is_seen = false;
  for (int launch = 0; launch < 10 && !is_seen; ++launch) {
    set(r, got, -1);
    EXPECT(cuGraphLaunch(graph, r.stream) == 0 && r.wait() == ncclSuccess);
    EXPECT(r.read(got, 1)[0] == 7);
    is_seen = r.read(read, 1)[0] == -1;
  }

  EXPECT(is_seen);
  cuGraphExecDestroy(graph);
  EXPECT(cuStreamDestroy_v2(side) == 0 && cuEventDestroy_v2(event) == 0);
  r.leave();
}

std::mutex the_mutex;
std::string the_words;

// Captures two graphs of an all-reduce on two ranks and gives the errors in which `run` ends.
std::vector<ncclResult_t> outcomes(
    const std::function<void(rank&, void* first, void* second, float* p)>& run) {
  std::vector<ncclResult_t> results(2);
  the_words.clear();
  on_ranks(2, [&](rank& r) {
    float* const p = r.floats(filled(count, 1));
    const auto sum = [&] { EXPECT(r.all_reduce(p, count) == ncclSuccess); };
    void *const first = captured(r, sum), *const second = captured(r, sum);
    run(r, first, second, p);
    ncclResult_t result = r.wait();
    cuGraphExecDestroy(first);
    cuGraphExecDestroy(second);
    if (result == ncclSuccess) result = r.settle(ncclCommFinalize(r.comm));
    std::lock_guard lock(the_mutex);
    results[r.number] = result;
    if (result != ncclSuccess) the_words += ncclGetLastError(r.comm) + std::string("; ");
  });
  return results;
}

void must_be_found(const char* what, ncclResult_t error, const char* words,
                   const std::function<void(rank&, void*, void*, float*)>& run) {
  const auto results = outcomes(run);
  const bool is_found = std::find(results.begin(), results.end(), error) != results.end() &&
                        the_words.find(words) != std::string::npos;
  if (!is_found)
    std::printf("%s: found %d %d, %s\n", what, results[0], results[1], the_words.c_str());
  EXPECT(is_found);
}

void ranks_must_launch_alike() {
  const std::vector<ncclResult_t> right(2, ncclSuccess);
  EXPECT(outcomes([](rank& r, void* first, void* second, float*) {
           EXPECT(cuGraphLaunch(first, r.stream) == 0 && cuGraphLaunch(second, r.stream) == 0);
         }) == right);
  must_be_found("a stale graph", ncclInvalidUsage, "in a graph of capture 2",
                [](rank& r, void* first, void* second, float*) {
                  EXPECT(cuGraphLaunch(r.number == 0 ? second : first, r.stream) == 0);
                });
  must_be_found("a direct call", ncclInvalidUsage, "in a graph of capture 1",
                [](rank& r, void* first, void*, float* p) {
                  if (r.number == 0) EXPECT(r.all_reduce(p, count) == ncclSuccess);
                  if (r.number == 1) EXPECT(cuGraphLaunch(first, r.stream) == 0);
                });
  must_be_found("a launch left out", ncclRemoteError, "rank 1 left",
                [](rank& r, void* first, void*, float*) {
                  if (r.number == 0) EXPECT(cuGraphLaunch(first, r.stream) == 0);
                });
}

void an_error_is_planted_in_a_launch() {
  setenv("TREEATTN_EMULATION_NCCL_FAULT", "1:3:2", 1);
  std::vector<ncclResult_t> results(3);
  on_ranks(3, [&](rank& r) {
    float* const p = r.floats(filled(count, 1));
    void* const graph = captured(r, [&] { EXPECT(r.all_reduce(p, count) == ncclSuccess); });
    for (int launch = 1; launch <= 3; ++launch) {
      EXPECT(cuGraphLaunch(graph, r.stream) == 0);
      results[r.number] = r.wait();
      EXPECT(launch == 3 || results[r.number] == ncclSuccess);
    }
    cuGraphExecDestroy(graph);
  });
  unsetenv("TREEATTN_EMULATION_NCCL_FAULT");
  EXPECT(results == std::vector<ncclResult_t>({ncclRemoteError, ncclSystemError, ncclRemoteError}));
}

// NCCL waits for the graphs that hold operations of a communicator before it ends; so nothing may
// wait for that end that has a graph to destroy.
void graphs_go_before_the_communicator(rank& r) {
  float* const p = r.floats(filled(count, 1));
  void* graph = captured(r, [&] { EXPECT(r.all_reduce(p, count) == ncclSuccess); });
  EXPECT(cuGraphLaunch(graph, r.stream) == 0 && r.wait() == ncclSuccess);
  EXPECT(ncclCommFinalize(r.comm) == ncclInvalidUsage);

  std::atomic<bool> has_ended = false;
  std::thread aborting([&] {
    EXPECT(ncclCommAbort(r.comm) == ncclSuccess);
    has_ended = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT(!has_ended);
  cuGraphExecDestroy(graph);
  aborting.join();
  r.comm = nullptr;
}

void a_capture_must_not_end_before_its_calls(rank& r) {
  float* const p = r.floats(filled(count, 1));
  void* graph = nullptr;
  EXPECT(cuStreamBeginCapture_v2(r.stream, thread_mode) == 0);
  EXPECT(ncclAllReduce(p, p, count, ncclFloat32, ncclSum, r.comm, r.stream) == ncclInProgress);
  EXPECT(cuStreamEndCapture(r.stream, &graph) == 0);
  EXPECT(r.settle() == ncclUnhandledCudaError);
  cuGraphDestroy(graph);
}

// A process dies while the others wait in a launch.
int run_process(const ncclUniqueId& id, int number) {
  EXPECT(cuInit(0) == 0);
  rank r(id, number, 3, number);
  EXPECT(r.settle() == ncclSuccess);
  float* const p = r.floats(filled(count, 1));
  void* const graph = captured(r, [&] { EXPECT(r.all_reduce(p, count) == ncclSuccess); });
  EXPECT(cuGraphLaunch(graph, r.stream) == 0 && r.wait() == ncclSuccess);
  if (number == 2) _exit(0);
  EXPECT(cuGraphLaunch(graph, r.stream) == 0);
  const ncclResult_t waited = r.wait();
  cuGraphExecDestroy(graph);
  return failures ? 1 : waited;
}

void a_rank_dies_in_a_replay() {
  const ncclUniqueId id = new_id();
  std::vector<pid_t> children;
  for (int number = 0; number < 3; ++number) {
    const pid_t child = fork();
    if (child == 0) _exit(run_process(id, number));
    children.push_back(child);
  }
  for (int ended = 0; ended < 3; ++ended) {
    int status = 0;
    const pid_t child = wait(&status);
    EXPECT(WEXITSTATUS(status) == (child == children[2] ? 0 : ncclRemoteError));
  }
}

}  // namespace

int main() {
  a_rank_dies_in_a_replay();
  EXPECT(cuInit(0) == 0);
  for (const int ranks : {1, 2, 3})
    on_ranks(ranks, each_launch_communicates);
  on_ranks(2, a_second_stream_forks_and_joins);
  const char* const seed = std::getenv("TREEATTN_EMULATION_SEED");
  if (!seed || std::atoi(seed) % 2 == 0) on_ranks(1, a_join_too_late_is_seen);
  ranks_must_launch_alike();
  an_error_is_planted_in_a_launch();
  on_ranks(2, graphs_go_before_the_communicator);
  on_ranks(1, a_capture_must_not_end_before_its_calls);
  std::printf("%d failures\n", failures.load());
  return failures != 0;
}
