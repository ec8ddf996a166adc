// Graphs of the emulated driver: a stream that captures records what it is told instead of doing
// it, and a launch of the graph puts it all on a stream. What a capture forbids is refused by the
// driver's codes, and loses the capture as there.
#include <algorithm>

#include "driver.hpp"

namespace emulation {

namespace {

constexpr int global = 0, thread_local_mode = 1;

bool is_forbidden(const stream* s) {
  return s->recording &&
         (s->recording->mode == global || (s->recording->mode == thread_local_mode &&
                                           s->recording->thread == std::this_thread::get_id()));
}

}  // namespace

CUresult driver::refuse_while_capturing() {
  CUresult result = success;
  for (auto* s : streams) {
    if (!is_forbidden(s)) continue;
    s->recording->is_invalid = true;
    result = capture_unsupported;
  }
  return result;
}

CUresult capture_event(event* e, stream* s) {
  if (s->recording->is_invalid) return capture_invalidated;
  e->captured = s->recording;
  e->captured_on = s;
  e->captured_after = s->recording->streams[s].first;
  return success;
}

// A stream that waits for an event of a capture takes part in it; where the origin waits, what came
// before the event has joined again.
CUresult join_capture(stream* s, event* e) {
  if (!the_driver.streams.contains(s)) return invalid_handle;
  if (!e->captured || (s->recording && s->recording != e->captured)) {
    s->recording->is_invalid = true;
    return capture_isolation;
  }
  if (e->captured->is_invalid) return capture_invalidated;
  s->recording = e->captured;
  auto& work = s->recording->streams;
  work.try_emplace(s);
  if (s == s->recording->origin) {
    work[e->captured_on].second = std::max(work[e->captured_on].second, e->captured_after);
  }
  return success;
}

}  // namespace emulation

using namespace emulation;

CUDA_API cuStreamBeginCapture_v2(stream* s, int mode) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(the_driver.streams.contains(s), invalid_handle);
  REQUIRE(mode >= 0 && mode <= 2, invalid_value);
  if (s->recording) {
    s->recording->is_invalid = true;
    return invalid_value;
  }
  s->recording = std::make_shared<capture>(
      capture{s, mode, std::this_thread::get_id(), false, {}, {{s, {0, 0}}}});
  return success;
}

CUDA_API cuStreamEndCapture(stream* s, graph** g) {
  std::lock_guard lock(the_driver.mutex);
  *g = nullptr;
  REQUIRE(the_driver.streams.contains(s), invalid_handle);
  const std::shared_ptr<capture> made = s->recording;
  REQUIRE(made, invalid_value);
  REQUIRE(made->origin == s, capture_unmatched);
  REQUIRE(made->mode == 2 || made->thread == std::this_thread::get_id(), capture_wrong_thread);
  bool is_joined = true;
  for (auto* other : the_driver.streams) {
    if (other->recording != made) continue;
    const auto [all, joined] = made->streams[other];
    is_joined &= other == s || all == joined;
    other->recording = nullptr;
  }
  REQUIRE(!made->is_invalid, capture_invalidated);
  REQUIRE(is_joined, capture_unjoined);
  *g = new graph{made->work};
  return success;
}

CUDA_API cuGraphInstantiateWithFlags(graph** ready, graph* g, unsigned long long) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(g, invalid_value);
  if (const CUresult error = the_driver.refuse_while_capturing()) return error;
  *ready = new graph{*g};
  return success;
}

CUDA_API cuGraphLaunch(graph* ready, stream* s) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(ready, invalid_value);
  for (const operation& recorded : ready->work) {
    const bool is_done = the_driver.streams.contains(s) && !s->recording;
    if (const CUresult error =
            the_driver.put(s, recorded.renew && is_done ? recorded.renew() : recorded)) {
      return error;
    }
  }
  return success;
}

CUDA_API cuGraphExecDestroy(graph* ready) {
  delete ready;
  return success;
}

CUDA_API cuGraphDestroy(graph* g) {
  delete g;
  return success;
}

namespace {

// A recording that has been put on a stream.
operation record(event* e) {
  const unsigned turn = ++e->counts->recorded;
  return {nullptr, [=](std::string&) {
            std::lock_guard inner(the_driver.mutex);
            e->counts->reached = turn;
            e->passed = std::chrono::steady_clock::now();
            return success;
          }};
}

}  // namespace

// The external flag makes a recording inside a capture a part of the graph: every launch records
// anew, and the event can be asked for time.
CUDA_API cuEventRecordWithFlags(event* e, stream* s, unsigned flags) {
  constexpr unsigned external = 1;
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(the_driver.events.contains(e), invalid_handle);
  REQUIRE(the_driver.streams.contains(s), invalid_handle);
  if (s->home->broken) return s->home->broken;
  if (s->recording && flags != external) return capture_event(e, s);
  e->captured = nullptr;
  operation recorded;
  recorded.renew = [=] { return record(e); };
  return the_driver.put(s, s->recording ? std::move(recorded) : record(e));
}

CUDA_API cuEventRecord(event* e, stream* s) {
  return cuEventRecordWithFlags(e, s, 0);
}
