// What the emulated driver keeps: devices with one primary context each, streams, events, memory,
// modules. Handles are pointers to these. Everything is guarded by one mutex, which is not held
// while a kernel or a copy runs.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "emulation.hpp"

namespace emulation {

using CUresult = int;
using CUdeviceptr = std::uint64_t;

// The values of CUresult that the emulation returns.
enum : CUresult {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  not_initialized = 3,
  invalid_device = 101,
  invalid_image = 200,
  invalid_context = 201,
  invalid_handle = 400,
  not_found = 500,
  not_ready = 600,
  illegal_address = 700,
  launch_timeout = 702,
  launch_failed = 719,
  not_supported = 801,
  capture_unsupported = 900,
  capture_invalidated = 901,
  capture_unmatched = 903,
  capture_unjoined = 904,
  capture_isolation = 905,
  capture_implicit = 906,
  captured_event = 907,
  capture_wrong_thread = 908,
};

constexpr unsigned without_timing = 2, interprocess = 4;  // flags of events
constexpr std::size_t device_bytes = std::size_t(4) << 30, shared_limit = 227 << 10;
constexpr std::size_t shared_limit_unasked = 48 << 10;

struct context {
  int device;
  int uses = 0;
  std::size_t used = 0;
  CUresult broken = success;   // once a kernel has failed nothing works any more, as on the device
  CUresult planted = success;  // the error of an operation to come,
  long planted_after = 0;      //   and how many operations come before it
};

struct stream;
struct capture;

// How often an event was put on a stream, and how often it was passed.
struct event_counts {
  std::atomic<unsigned> recorded = 0, reached = 0;
};

struct event {
  context* home;
  unsigned flags;  // as it was made
  // Kept by whoever waits for it; in memory that processes share, for events between them.
  std::shared_ptr<event_counts> counts = std::make_shared<event_counts>();
  int shared_file = -1;
  bool is_foreign = false;  // made by another process, which alone records it
  std::chrono::steady_clock::time_point passed = {};
  // Last recorded on a stream that records: where, and after how much of it.
  std::shared_ptr<capture> captured = nullptr;
  stream* captured_on = nullptr;
  std::size_t captured_after = 0;  // of what the stream was told
};

struct operation {
  std::function<bool()> is_ready;              // none: always; called with the mutex held
  std::function<CUresult(std::string&)> run;   // called without; on failure it says why
  bool awaits_others = false;                  // other ranks make it ready, maybe other processes
  std::function<operation()> renew = nullptr;  // of what a graph cannot do twice: makes it anew
};

// What a stream of a capture was told: an operation, or to wait for another stream of it.
struct recorded {
  std::size_t branch;
  operation what;               // none in a wait
  std::size_t awaited, passed;  // a wait: until that branch has passed so much of its own

  bool is_wait() const { return !what.run && !what.renew; }
};

// What the streams of a capture were told, in that order. Each is a branch; the origin is the
// first.
struct capture {
  // Of a stream: how much it was told, and how much of it the origin waits for.
  struct part {
    std::size_t branch, told = 0, joined = 0;
  };

  stream* origin;
  int mode;
  std::thread::id thread;
  unsigned long number;  // no two captures of a process have the same
  bool is_invalid = false;
  std::vector<recorded> work = {};
  std::map<stream*, part> streams = {};
  std::vector<context*> homes = {};  // [branches]

  part& part_of(stream* s);
};

struct graph {
  std::vector<recorded> work;
  std::vector<context*> homes;         // [branches]
  std::vector<stream*> branches = {};  // of an executable one, but for the first
};

struct stream {
  context* home;
  std::deque<operation> queue;  // the front stays until it is done
  bool is_running = false;
  std::shared_ptr<capture> recording = nullptr;  // then nothing is queued
  bool is_abandoned = false;                     // it goes when its queue is empty
};

struct allocation {
  std::size_t bytes;
  context* home;
  std::size_t mapped = 0;   // bytes of the whole pages that it has to itself; 0: it has none
  int shared_file = -1;     // what other processes map, once they were invited to
  bool is_foreign = false;  // another process's, mapped here
};

struct function {
  const kernel* code;
  context* home;
  std::size_t shared_bytes = shared_limit_unasked;
};

struct module {
  void* library;
  context* home;
  std::map<std::string, std::unique_ptr<function>> functions;
};

struct driver {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<context> devices;
  std::set<stream*> streams;
  std::set<event*> events;
  std::map<CUdeviceptr, allocation> memory;
  std::set<void*> locked;  // page-locked host memory
  std::mt19937_64 random;
  long seed = 0;
  std::string message;  // of the last failure

  bool holds(CUdeviceptr from, std::size_t bytes) const;

  // Does streams' work until `done`. With an even seed `favourite` goes first and others only where
  // it waits for them, which shows a wait too few; with an odd seed others go first, which shows
  // memory that is reused too early. Returns the error of `home`.
  CUresult progress(std::unique_lock<std::mutex>& lock, const context* home,
                    const std::function<bool()>& done, stream* favourite = nullptr);

  CUresult put(stream* on, operation what);

  // What a call answers that may not be made while this thread, or any in the global mode,
  // captures: the capture is lost.
  CUresult refuse_while_capturing();
};

extern driver& the_driver;  // never destroyed: threads may outlive the statics
extern thread_local context* current_context;

// The calling thread has entered a context that is not released yet.
inline bool has_context() {
  return current_context && current_context->uses > 0;
}

// An event recorded on, or awaited by, a stream that records.
CUresult capture_event(event* e, stream* s);
CUresult join_capture(stream* s, event* e);

// Gives an allocation's memory back; its entry is the caller's to erase.
void release(CUdeviceptr p, const allocation& a);

long setting(const char* name, long otherwise);
std::string setting_text(const char* name);

}  // namespace emulation

#define CUDA_API extern "C" [[gnu::visibility("default")]] int
#define REQUIRE(condition, error)   \
  do {                              \
    if (!(condition)) return error; \
  } while (0)
