// Graphs of the emulated driver: a stream that captures records what it is told instead of doing
// it, and a launch of the graph puts it all on a stream. What a capture forbids is refused by the
// driver's codes, and loses the capture as there.
#include <algorithm>
#include <utility>

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

capture::part& capture::part_of(stream* s) {
  const auto [found, is_new] = streams.try_emplace(s, part{homes.size()});
  if (is_new) homes.push_back(s->home);
  return found->second;
}

CUresult capture_event(event* e, stream* s) {
  if (s->recording->is_invalid) return capture_invalidated;
  e->captured = s->recording;
  e->captured_on = s;
  e->captured_after = s->recording->part_of(s).told;
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
  capture& made = *s->recording;
  capture::part& awaited = made.part_of(e->captured_on);
  if (s == made.origin) awaited.joined = std::max(awaited.joined, e->captured_after);
  if (s == e->captured_on) return success;
  capture::part& mine = made.part_of(s);
  ++mine.told;
  made.work.push_back({mine.branch, {}, awaited.branch, e->captured_after});
  return success;
}

}  // namespace emulation

using namespace emulation;

CUDA_API cuStreamBeginCapture_v2(stream* s, int mode) {
  static unsigned long captures = 0;
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(the_driver.streams.contains(s), invalid_handle);
  REQUIRE(mode >= 0 && mode <= 2, invalid_value);
  if (s->recording) {
    s->recording->is_invalid = true;
    return invalid_value;
  }
  s->recording =
      std::make_shared<capture>(capture{s, mode, std::this_thread::get_id(), ++captures});
  s->recording->part_of(s);
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
    const capture::part& part = made->part_of(other);
    is_joined &= other == s || part.told == part.joined;
    other->recording = nullptr;
  }
  // Events keep the capture; what it recorded goes with the graph, or at once.
  graph recorded{std::move(made->work), made->homes};
  REQUIRE(!std::exchange(made->is_invalid, true), capture_invalidated);
  REQUIRE(is_joined, capture_unjoined);
  *g = new graph{std::move(recorded)};
  return success;
}

CUDA_API cuGraphInstantiateWithFlags(graph** ready, graph* g, unsigned long long) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(g, invalid_value);
  if (const CUresult error = the_driver.refuse_while_capturing()) return error;
  *ready = new graph{*g};
  for (std::size_t branch = 1; branch < g->homes.size(); ++branch) {
    stream* const made = new stream{g->homes[branch], {}};
    the_driver.streams.insert(made);
    (*ready)->branches.push_back(made);
  }
  return success;
}

namespace {

using progress_of_branches = std::shared_ptr<std::vector<std::atomic<std::size_t>>>;

// The operation, after which its branch has passed one more of what it was told.
operation counted(operation what, const progress_of_branches& passed, std::size_t branch) {
  what.run = [run = std::move(what.run), passed, branch](std::string& why) {
    const CUresult result = run ? run(why) : success;
    ++(*passed)[branch];
    return result;
  };
  return what;
}

}  // namespace

// Branches are streams of the graph's own: the first operation of a launch lets them begin, and
// what the capture joined makes its stream wait for them.
CUDA_API cuGraphLaunch(graph* ready, stream* s) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(ready, invalid_value);
  REQUIRE(the_driver.streams.contains(s), invalid_handle);
  REQUIRE(!s->recording, not_supported);
  const std::size_t branches = ready->homes.size();
  const auto passed = std::make_shared<std::vector<std::atomic<std::size_t>>>(branches);
  CUresult error = branches == 1 ? success : the_driver.put(s, counted({}, passed, 0));
  for (const recorded& r : ready->work) {
    operation what = r.what.renew ? r.what.renew() : r.what;
    if (r.is_wait()) {
      what.is_ready = [passed, branch = r.awaited, turn = r.passed + (r.awaited == 0)] {
        return (*passed)[branch] >= turn;
      };
    }
    if (error) return error;
    error = the_driver.put(r.branch == 0 ? s : ready->branches[r.branch - 1],
                           branches == 1 ? what : counted(std::move(what), passed, r.branch));
  }
  return error;
}

// What was launched goes on.
CUDA_API cuGraphExecDestroy(graph* ready) {
  std::lock_guard lock(the_driver.mutex);
  for (stream* const s : ready->branches) {
    if (!the_driver.streams.contains(s)) continue;
    s->is_abandoned = true;
    if (!s->queue.empty()) continue;
    the_driver.streams.erase(s);
    delete s;
  }
  delete ready;
  return success;
}

CUDA_API cuGraphDestroy(graph* g) {
  std::lock_guard lock(the_driver.mutex);
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
  REQUIRE(e->home == s->home, invalid_handle);
  REQUIRE(flags == 0 || (flags == external && s->recording), invalid_value);
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
