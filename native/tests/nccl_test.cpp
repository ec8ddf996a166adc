// The emulated NCCL through its entry points, as host code calls it: every rank is a thread, or a
// process, with a device of its own. Operations are in stream order, calls that are in progress
// must be polled, and what the ranks do not do alike is an error.
#include <sys/wait.h>
#include <unistd.h>

#include "nccl_rank.hpp"

namespace {

void collectives(rank& r) {
  float* sum = r.floats(filled(long_count, float(r.number + 1)));
  float* all = r.floats(filled(7 * r.ranks, -1));
  float* mine = r.floats(filled(7, float(r.number)));
  float* root = r.floats(filled(long_count, float(r.number)));

  EXPECT(r.all_reduce(sum, long_count) == ncclSuccess);
  EXPECT(r.settle(ncclAllGather(mine, all, 7, ncclFloat32, r.comm, r.stream)) == ncclSuccess);
  EXPECT(r.settle(ncclBroadcast(root, root, long_count, ncclFloat32, r.ranks - 1, r.comm,
                                r.stream)) == ncclSuccess);

  EXPECT(r.read(sum, long_count) == filled(long_count, r.ranks * (r.ranks + 1) / 2.f));
  EXPECT(r.read(root, long_count) == filled(long_count, r.ranks - 1.f));
  const std::vector<float> gathered = r.read(all, 7 * r.ranks);
  for (int peer = 0; peer < r.ranks; ++peer)
    EXPECT(gathered[7 * peer] == float(peer) && gathered[7 * peer + 6] == float(peer));
  r.leave();
}

// Every rank sends to the next and takes from the previous, in one group; on one rank to itself.
void a_ring_of_groups(rank& r) {
  float* out = r.floats(filled(long_count, float(r.number)));
  float* in = r.floats(filled(long_count, -1));
  const int next = (r.number + 1) % r.ranks, previous = (r.number + r.ranks - 1) % r.ranks;

  ncclGroupStart();
  EXPECT(ncclSend(out, long_count, ncclFloat32, next, r.comm, r.stream) == ncclSuccess);
  EXPECT(ncclRecv(in, long_count, ncclFloat32, previous, r.comm, r.stream) == ncclSuccess);
  EXPECT(r.settle(ncclGroupEnd()) == ncclSuccess);

  EXPECT(r.read(in, long_count) == filled(long_count, float(previous)));
  r.leave();
}

void splits(rank& r) {
  ncclComm_t part = nullptr;
  ncclConfig_t config = nonblocking();
  EXPECT(r.settle(ncclCommSplit(r.comm, r.number % 2, -r.number, &part, &config)) == ncclSuccess);
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress)
    EXPECT(ncclCommGetAsyncError(part, &state) == ncclSuccess);
  const int members = (r.ranks + 1 - r.number % 2) / 2;
  float* all = r.floats(filled(members, -1));
  float* mine = r.floats(filled(1, float(r.number)));

  ncclResult_t result = ncclAllGather(mine, all, 1, ncclFloat32, part, r.stream);
  while (result == ncclInProgress)
    EXPECT(ncclCommGetAsyncError(part, &result) == ncclSuccess);

  const std::vector<float> gathered = r.read(all, members);
  for (int i = 0; i + 1 < members; ++i)
    EXPECT(gathered[i] == gathered[i + 1] + 2);  // the highest key is the lowest rank
  EXPECT(gathered[members - 1] == float(r.number % 2));
  EXPECT(ncclCommAbort(part) == ncclSuccess);
  r.leave();
}

void calls_in_progress_must_be_polled(rank& r) {
  float* p = r.floats(filled(4, 1));
  const ncclResult_t first = ncclAllReduce(p, p, 4, ncclFloat32, ncclSum, r.comm, r.stream);
  EXPECT(first == ncclInProgress);

  EXPECT(ncclAllReduce(p, p, 4, ncclFloat32, ncclSum, r.comm, r.stream) == ncclInvalidUsage);

  EXPECT(r.settle() == ncclSuccess && r.all_reduce(p, 4) == ncclSuccess);
  EXPECT(r.read(p, 4) == filled(4, float(r.ranks * r.ranks)));
  r.leave();
}

void arguments_are_looked_at(rank& r) {
  float* p = r.floats(filled(4, 1));
  float on_host[4] = {};
  const cudaStream_t none = nullptr;

  EXPECT(ncclAllReduce(on_host, p, 4, ncclFloat32, ncclSum, r.comm, r.stream) ==
         ncclInvalidArgument);
  EXPECT(ncclAllReduce(p, p, 5, ncclFloat32, ncclSum, r.comm, r.stream) == ncclInvalidArgument);
  EXPECT(ncclAllReduce(p, p, 4, ncclFloat32, ncclSum, r.comm, none) == ncclInvalidArgument);
  EXPECT(ncclSend(p, 4, ncclFloat32, r.ranks, r.comm, r.stream) == ncclInvalidArgument);
  EXPECT(ncclGroupEnd() == ncclInvalidUsage);
  EXPECT(ncclCommDestroy(r.comm) == ncclInvalidUsage);  // not finalized
  ncclComm_t blocking;
  ncclConfig_t config = nonblocking();
  config.blocking = 1;
  EXPECT(ncclCommInitRankConfig(&blocking, 1, new_id(), 0, &config) == ncclInvalidArgument);
  r.leave();
}

// Ranks that are processes, forked before anything is loaded into use.
int run_process(const ncclUniqueId& id, int number, int ranks, bool dies) {
  EXPECT(cuInit(0) == 0);
  rank r(id, number, ranks, number);
  EXPECT(r.settle() == ncclSuccess);
  float* p = r.floats(filled(long_count, float(number)));
  if (dies) _exit(0);
  const ncclResult_t called = r.all_reduce(p, long_count);
  const ncclResult_t waited = called == ncclSuccess ? r.wait() : called;
  if (waited == ncclRemoteError) return 6;
  EXPECT(r.read(p, long_count) == filled(long_count, ranks * (ranks - 1) / 2.f));
  r.leave();
  return failures != 0;
}

std::vector<int> run_processes(int ranks, int dying) {
  const ncclUniqueId id = new_id();
  std::vector<pid_t> children;
  for (int number = 0; number < ranks; ++number) {
    const pid_t child = fork();
    if (child == 0) _exit(run_process(id, number, ranks, number == dying));
    children.push_back(child);
  }
  std::vector<int> codes(ranks);
  for (int ended = 0; ended < ranks; ++ended) {
    int status = 0;
    const pid_t child = wait(&status);  // in any order: who is not waited for is not gone
    for (int number = 0; number < ranks; ++number) {
      if (children[number] == child) codes[number] = WEXITSTATUS(status);
    }
  }
  return codes;
}

// Two processes on one device, each under its own name of the machine, and what they end in.
std::vector<int> share_a_device(const char* first_host, const char* second_host) {
  const ncclUniqueId id = new_id();
  std::vector<pid_t> children;
  for (const char* host : {first_host, second_host}) {
    const int number = int(children.size());
    const pid_t child = fork();
    if (child == 0) {
      setenv("NCCL_HOSTID", host, 1);
      EXPECT(cuInit(0) == 0);
      rank r(id, number, 2, 0);
      const ncclResult_t connected = r.settle();
      if (connected == ncclSuccess) collectives(r);
      _exit(failures ? 1 : connected);
    }
    children.push_back(child);
  }
  std::vector<int> codes;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    codes.push_back(WEXITSTATUS(status));
  }
  return codes;
}

}  // namespace

int main() {
  EXPECT(share_a_device("one", "two") == std::vector<int>({0, 0}));
  EXPECT(share_a_device("one", "one") == std::vector<int>({ncclInvalidUsage, ncclInvalidUsage}));
  EXPECT(run_processes(3, -1) == std::vector<int>({0, 0, 0}));
  EXPECT(run_processes(3, 1) == std::vector<int>({6, 0, 6}));
  EXPECT(cuInit(0) == 0);
  for (const int ranks : {1, 2, 3, 5}) {
    on_ranks(ranks, collectives);
    on_ranks(ranks, a_ring_of_groups);
    on_ranks(ranks, splits);
  }
  on_ranks(2, calls_in_progress_must_be_polled);
  on_ranks(2, arguments_are_looked_at);
  std::printf("%d failures\n", failures.load());
  return failures != 0;
}
