// The entry points of the emulated NCCL: communicators. They are nonblocking, and the emulation is
// strict: a call on a communicator that is still in progress is an error, and so is an operation
// that the ranks did not call alike, which the real one would hang or garble on.
#include "nccl.hpp"

#include <unistd.h>

#include <cstdlib>
#include <random>
#include <system_error>

#include "nccl_communicator.hpp"

namespace emulation::nccl {

std::set<communicator*>& the_communicators = *new std::set<communicator*>;

namespace {

constexpr unsigned config_magic = 0xcafebeef;
constexpr int unset = -2147483647 - 1;
constexpr auto patience = std::chrono::seconds(10);
constexpr const char* graphs_first =
    "a graph holds operations of the communicator, and NCCL waits for its end: destroy it first";

bool is_nonblocking(const ncclConfig* config) {
  return config && config->magic == config_magic &&
         config->size >= offsetof(ncclConfig, blocking) + sizeof(int) && config->blocking == 0;
}

// Members of the caller's colour in the order of their keys; empty until all ranks have posted.
std::vector<int> members_of(const membership& parent, int split, int color) {
  std::vector<std::pair<int, int>> sorted;
  for (int rank = 0; rank < parent.ranks; ++rank) {
    const auto& posted = parent.shared.slot(rank).splits[split];
    if (!posted.posted) return {};
    if (posted.color == color) sorted.emplace_back(posted.key, rank);
  }
  std::sort(sorted.begin(), sorted.end());
  std::vector<int> members;
  for (const auto& [key, rank] : sorted)
    members.push_back(rank);
  return members;
}

void found_split(communicator& c) {
  const std::vector<int> members = members_of(*c.parent, c.split, c.color);
  if (members.empty()) return;
  const auto me = std::find(members.begin(), members.end(), c.parent->rank) - members.begin();
  const std::string name =
      c.parent->shared.name() + "-" + std::to_string(c.split) + "-" + std::to_string(c.color);
  c.mine = std::make_shared<membership>(name, int(me), int(members.size()), c.parent->home);
}

void leave_if_all_left(membership& m) {
  for (int peer = 0; peer < m.ranks; ++peer) {
    if (m.shared.slot(peer).state != finalized) return;
  }
  for (int peer = 0; peer < m.ranks; ++peer) {
    const channel& c = m.shared.between(peer, m.rank);
    if (c.written != c.read) {
      m.fail(nccl_invalid_usage, "nobody received what rank " + std::to_string(peer) + " sent");
      return;
    }
  }
  m.state = nccl_success;
}

void submit_deferred(membership& m, const std::shared_ptr<membership>& shared) {
  m.state = nccl_success;
  for (const auto& [on, w, recording] : std::exchange(m.deferred, {})) {
    if (on->recording != recording) {
      m.fail(nccl_unhandled_cuda_error, "the capture ended while the call was in progress");
      return;
    }
    submit(shared, on, w);
  }
}

// One look at what is in progress.
void poll(communicator& c) {
  if (!c.mine) found_split(c);
  if (!c.mine || c.mine->state != nccl_in_progress) return;
  membership& m = *c.mine;
  if (!m.is_connected) {
    m.connect_if_all_joined();
  } else if (!m.deferred.empty()) {
    submit_deferred(m, c.mine);
    return;
  } else if (m.is_leaving) {
    leave_if_all_left(m);
  }
  if (m.state == nccl_in_progress && ++c.polls % 256 == 0) {
    const std::string lost = m.lost_peer();
    if (!lost.empty()) m.fail(nccl_remote_error, lost);
  }
}

void end(communicator* c) {
  if (c->mine) {
    membership& m = *c->mine;
    const bool has_left = m.is_leaving && m.state == nccl_success;
    if (!has_left && m.shared.slot(m.rank).state != failed) {
      m.shared.slot(m.rank).state = nccl::aborted;
    }
    m.is_aborted = true;
  }
  the_communicators.erase(c);
  delete c;
  the_driver.changed.notify_all();
}

}  // namespace

}  // namespace emulation::nccl

using namespace emulation;
using namespace emulation::nccl;

NCCL_API ncclGetVersion(int* version) {
  *version = int(setting("TREEATTN_EMULATION_NCCL_VERSION", 22203));
  return nccl_success;
}

NCCL_API ncclGetUniqueId(ncclUniqueId* id) {
  std::random_device random;
  std::snprintf(id->internal, sizeof id->internal, "%08x%08x%08x%08x", unsigned(getpid()), random(),
                random(), random());
  return nccl_success;
}

NCCL_API ncclCommInitRankConfig(communicator** c, int ranks, ncclUniqueId id, int rank,
                                const ncclConfig* config) {
  std::lock_guard lock(the_driver.mutex);
  *c = nullptr;
  if (!is_nonblocking(config)) return refuse(nccl_invalid_argument, "config: only blocking = 0");
  if (rank < 0 || rank >= ranks) return refuse(nccl_invalid_argument, "no such rank");
  if (!has_context()) return refuse(nccl_unhandled_cuda_error, "no current context");
  id.internal[sizeof id.internal - 1] = 0;
  if (std::string(id.internal).find_first_not_of("0123456789abcdef") != std::string::npos ||
      !id.internal[0]) {
    return refuse(nccl_invalid_argument, "the unique id is not one");
  }
  try {
    *c = new communicator{std::make_shared<membership>(id.internal, rank, ranks, current_context)};
  } catch (const std::system_error& error) {
    return refuse(nccl_system_error, error.what());
  }
  the_communicators.insert(*c);
  start_engine();
  return nccl_in_progress;
}

NCCL_API ncclCommSplit(communicator* c, int color, int key, communicator** made,
                       const ncclConfig* config) {
  std::lock_guard lock(the_driver.mutex);
  *made = nullptr;
  if (const ncclResult state = usable(c)) return state;
  if (config && !is_nonblocking(config) && config->blocking != unset) {
    return refuse(nccl_invalid_argument, "config: only blocking = 0");
  }
  membership& m = *c->mine;
  if (color < 0 || m.splits == most_splits) return refuse(nccl_invalid_argument, "color or splits");
  const int number = int(m.splits++);
  auto& post = m.shared.slot(m.rank).splits[number];
  post.color = color;
  post.key = key;
  post.posted = 1;
  *made = new communicator{nullptr, c->mine, number, color};
  the_communicators.insert(*made);
  return nccl_in_progress;
}

NCCL_API ncclCommGetAsyncError(communicator* c, ncclResult* state) {
  std::lock_guard lock(the_driver.mutex);
  if (!the_communicators.contains(c)) return refuse(nccl_invalid_argument, "no communicator");
  try {
    poll(*c);
  } catch (const std::system_error& error) {
    return refuse(nccl_system_error, error.what());
  }
  *state = c->mine ? c->mine->state : nccl_in_progress;
  return nccl_success;
}

// Every rank calls it; what was enqueued must be done before.
NCCL_API ncclCommFinalize(communicator* c) {
  std::lock_guard lock(the_driver.mutex);
  if (const ncclResult state = usable(c)) return state;
  membership& m = *c->mine;
  if (m.finished != m.queued) return refuse(nccl_invalid_usage, "operations are under way");
  if (m.recorded > 0) return refuse(nccl_invalid_usage, graphs_first);
  m.is_leaving = true;
  m.state = nccl_in_progress;
  m.shared.slot(m.rank).state = finalized;
  return nccl_in_progress;
}

NCCL_API ncclCommDestroy(communicator* c) {
  std::lock_guard lock(the_driver.mutex);
  if (const ncclResult state = usable(c)) return state;
  if (!c->mine->is_leaving) return refuse(nccl_invalid_usage, "it was not finalized");
  end(c);
  return nccl_success;
}

// It returns when no graph holds operations of the communicator, as the real one does.
NCCL_API ncclCommAbort(communicator* c) {
  std::unique_lock lock(the_driver.mutex);
  if (!the_communicators.contains(c)) return refuse(nccl_invalid_argument, "no communicator");
  const std::shared_ptr<membership> ended = c->mine;
  end(c);
  const auto is_free = [&] { return !ended || ended->recorded == 0; };
  if (!the_driver.changed.wait_for(lock, patience, is_free)) {
    std::fprintf(stderr, "emulated ncclCommAbort: %s\n", graphs_first);
    std::abort();
  }
  return nccl_success;
}

extern "C" [[gnu::visibility("default")]] const char* ncclGetErrorString(ncclResult error) {
  static const char* const texts[] = {"no error",
                                      "unhandled cuda error",
                                      "unhandled system error",
                                      "internal error",
                                      "invalid argument",
                                      "invalid usage",
                                      "remote process exited or there was a network error",
                                      "NCCL operation in progress"};
  return error >= 0 && error <= nccl_in_progress ? texts[error] : "unknown result code";
}

extern "C" [[gnu::visibility("default")]] const char* ncclGetLastError(communicator* c) {
  static thread_local std::string kept;
  std::lock_guard lock(the_driver.mutex);
  const bool has_failed = the_communicators.contains(c) && c->mine && !c->mine->why.empty();
  kept = has_failed ? c->mine->why : last_error();
  return kept.c_str();
}

NCCL_API ncclCommCount(communicator* c, int* ranks) {
  std::lock_guard lock(the_driver.mutex);
  if (const ncclResult state = usable(c)) return state;
  *ranks = c->mine->ranks;
  return nccl_success;
}

NCCL_API ncclCommUserRank(communicator* c, int* rank) {
  std::lock_guard lock(the_driver.mutex);
  if (const ncclResult state = usable(c)) return state;
  *rank = c->mine->rank;
  return nccl_success;
}

NCCL_API ncclCommCuDevice(communicator* c, int* device) {
  std::lock_guard lock(the_driver.mutex);
  if (const ncclResult state = usable(c)) return state;
  *device = c->mine->home->device;
  return nccl_success;
}
