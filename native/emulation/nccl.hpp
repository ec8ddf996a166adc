// The emulated NCCL: what its files share. Ranks are threads or processes of one machine; they meet
// in a segment of shared memory named by the unique id, in which every ordered pair of ranks has a
// channel. An operation is a list of transfers over channels; it moves on whenever someone waits
// for a stream. All state of this process is guarded by the driver's mutex.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "driver.hpp"

namespace emulation::nccl {

using ncclResult = int;

// The values of ncclResult_t.
enum : ncclResult {
  nccl_success = 0,
  nccl_unhandled_cuda_error = 1,
  nccl_system_error = 2,
  nccl_internal_error = 3,
  nccl_invalid_argument = 4,
  nccl_invalid_usage = 5,
  nccl_remote_error = 6,
  nccl_in_progress = 7,
};

struct ncclUniqueId {
  char internal[128];
};

// The fields that have been in ncclConfig_t since its beginning.
struct ncclConfig {
  std::size_t size;
  unsigned magic, version;
  int blocking;
};

constexpr std::size_t ring_bytes = 32 << 10;
constexpr int most_splits = 32;

// What goes before the bytes of every transfer: both ends must have called the same.
struct message {
  enum : int { send, all_reduce, all_gather, broadcast };
  int kind, type, operation, root;
  std::size_t count;
  // 0, or which of the captures that both ends have in common recorded it: a launch of a graph is
  // collective over those that captured it, and direct calls do not match those of graphs.
  std::size_t capture = 0;
  bool operator==(const message&) const = default;
};

std::string describe(const message& m);

// One direction between two ranks: a ring that one writes and one reads.
struct channel {
  alignas(64) std::atomic<std::size_t> written;
  alignas(64) std::atomic<std::size_t> read;
  alignas(64) char ring[ring_bytes];
};

enum : int { absent = 0, joined, finalized, failed, aborted };

// What a rank tells the others. A segment begins as zeros.
struct alignas(64) rank_slot {
  std::atomic<int> state, process, device;
  std::atomic<std::size_t> host;
  struct split {
    std::atomic<int> posted, color, key;
  } splits[most_splits];
};

// The shared memory of one communicator. The file goes as soon as all ranks are in.
class segment {
 public:
  segment(const std::string& name, int ranks);  // throws std::system_error
  segment(const segment&) = delete;
  ~segment();

  rank_slot& slot(int rank) const { return slots_[rank]; }
  channel& between(int from, int to) const { return channels_[from * ranks_ + to]; }
  const std::string& name() const { return name_; }
  void remove_file();

 private:
  std::string name_;
  int ranks_;
  std::size_t bytes_;
  void* memory_;
  rank_slot* slots_;
  channel* channels_;
};

struct transfer {
  int peer;
  bool leaves;
  message header;
  char* data;
  std::size_t bytes, done = 0;  // done counts the header too

  bool is_done() const { return done == sizeof(message) + bytes; }
};

// The operations of one group on one communicator: they progress together.
struct work {
  std::vector<transfer> transfers;
  std::vector<std::function<void()>> endings;  // when all transfers are done, in order
  unsigned long turn = 0;
  unsigned polls = 0;
  bool is_done = false, has_planted_error = false;

  bool needs(int peer) const;
};

// The error that TREEATTN_EMULATION_NCCL_FAULT plants in one operation of one rank; what a graph
// launches counts each time.
struct planted_error {
  int rank = -1, operation = 0;
  ncclResult error = nccl_success;
  planted_error();
};

// A rank's part of a communicator; it lives as long as a stream holds work of it.
struct membership {
  segment shared;
  const int rank, ranks;
  context* const home;
  const planted_error planted;
  ncclResult state = nccl_in_progress;
  std::string why;  // it failed
  bool is_connected = false, is_leaving = false, is_aborted = false;
  unsigned long queued = 0, finished = 0;            // works: they run one after the other
  unsigned long seen_queued = 0, seen_finished = 0;  // by the engine
  int operations = 0, splits = 0;
  int recorded = 0;  // works that graphs hold, or streams that record: they keep it from ending
  struct captured_with {
    unsigned long last = 0;  // capture::number
    std::size_t count = 0;
  };
  std::vector<captured_with> captures;  // [ranks]
  struct deferred_work {
    stream* on;
    std::shared_ptr<work> w;
    std::shared_ptr<capture> recording;  // of the stream by then
  };
  std::vector<deferred_work> deferred;  // until the next poll

  membership(const std::string& name, int rank, int ranks, context* home);

  void fail(ncclResult error, const std::string& reason);

  // What is wrong with a peer that cannot answer any more; empty when all is well. One that has
  // left in order is lost only to work that still needs it.
  std::string lost_peer(const work* under_way = nullptr) const;

  // All ranks are there: connected, unless two of them are on one device.
  void connect_if_all_joined();
};

// Moves what can be moved without waiting; true when the work is done. Work of a communicator that
// has failed never is; after an abort it counts as done though nothing was moved.
bool advance(membership& m, work& w);

// Puts the work on the stream, after all earlier work of the communicator.
CUresult submit(const std::shared_ptr<membership>& m, stream* on, const std::shared_ptr<work>& w);

// A call refused, with the reason for ncclGetLastError.
ncclResult refuse(ncclResult error, const std::string& why);
const std::string& last_error();

}  // namespace emulation::nccl

#define NCCL_API extern "C" [[gnu::visibility("default")]] int
