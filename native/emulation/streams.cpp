// Streams and events of the emulated driver. Streams are lazy: work runs only when something waits
// for it, streams taking turns in an order drawn from the seed, so that a wait that was forgotten
// gives wrong results. Threads that wait at the same time run different streams side by side.
#include <unistd.h>

#include <chrono>
#include <utility>

#include "driver.hpp"

namespace emulation {

CUresult driver::put(stream* on, operation what) {
  // The null stream has no handle here either: the host code never uses it.
  if (!on && refuse_while_capturing() != success) return capture_implicit;
  if (!streams.contains(on)) return invalid_handle;
  if (on->home->broken) return on->home->broken;
  if (on->recording) {
    if (on->recording->is_invalid) return capture_invalidated;
    capture::part& part = on->recording->part_of(on);
    ++part.told;
    on->recording->work.push_back({part.branch, std::move(what), 0, 0});
    return success;
  }
  on->queue.push_back(std::move(what));
  return success;
}

CUresult driver::progress(std::unique_lock<std::mutex>& lock, const context* home,
                          const std::function<bool()>& done, stream* favourite) {
  while (!done()) {
    if (home->broken) return home->broken;
    std::vector<stream*> able;
    bool any_running = false, any_awaits_others = false;
    for (auto* s : streams) {
      any_running |= s->is_running;
      if (s->queue.empty() || s->is_running || s->home->broken) continue;
      const operation& next = s->queue.front();
      if (!next.is_ready || next.is_ready()) {
        able.push_back(s);
      } else {
        any_awaits_others |= next.awaits_others;
      }
    }
    if (able.empty() && any_awaits_others) {
      changed.wait_for(lock, std::chrono::microseconds(100));  // another process tells nobody
      continue;
    }
    if (able.empty() && any_running) {
      changed.wait(lock);
      continue;
    }
    if (able.empty()) {
      message = "streams wait for each other, or for a context that has failed";
      return const_cast<context*>(home)->broken = launch_timeout;
    }
    if (std::erase(able, favourite) && (seed % 2 == 0 || able.empty())) able = {favourite};
    stream* const s = able[random() % able.size()];
    s->is_running = true;
    std::string why;
    lock.unlock();
    CUresult result = s->queue.front().run(why);
    lock.lock();
    if (result == success && s->home->planted && s->home->planted_after-- == 0) {
      result = std::exchange(s->home->planted, success);
      why = "planted";
    }
    s->is_running = false;
    s->queue.pop_front();
    if (result) {
      s->home->broken = result;
      message = why;
    }
    if (s->is_abandoned && s->queue.empty()) {
      streams.erase(s);
      delete s;
    }
    changed.notify_all();
  }
  return home->broken;
}

}  // namespace emulation

using namespace emulation;

namespace {

// A stream that records cannot be waited for; trying to loses what it has recorded.
bool loses_capture(stream* s) {
  if (s->recording) s->recording->is_invalid = true;
  return s->recording != nullptr;
}

}  // namespace

CUDA_API cuStreamCreate(stream** s, unsigned) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(has_context(), invalid_context);
  the_driver.streams.insert(*s = new stream{current_context, {}});
  return success;
}

CUDA_API cuStreamDestroy_v2(stream* s) {
  std::unique_lock lock(the_driver.mutex);
  REQUIRE(the_driver.streams.contains(s), invalid_handle);
  if (const auto lost = s->recording) lost->is_invalid = true;
  const CUresult result = the_driver.progress(lock, s->home, [=] { return s->queue.empty(); });
  the_driver.changed.wait(lock, [=] { return !s->is_running; });
  the_driver.streams.erase(s);
  delete s;
  return result;
}

CUDA_API cuStreamSynchronize(stream* s) {
  std::unique_lock lock(the_driver.mutex);
  REQUIRE(the_driver.streams.contains(s), invalid_handle);
  REQUIRE(!loses_capture(s), capture_unsupported);
  return the_driver.progress(
      lock, s->home, [=] { return s->queue.empty(); }, s);
}

// Asking again and again is waiting too, so every question does one piece of work.
CUDA_API cuStreamQuery(stream* s) {
  std::unique_lock lock(the_driver.mutex);
  REQUIRE(the_driver.streams.contains(s), invalid_handle);
  REQUIRE(!loses_capture(s), capture_unsupported);
  bool is_asked = false;
  const CUresult result = the_driver.progress(
      lock, s->home, [&] { return s->queue.empty() || std::exchange(is_asked, true); }, s);
  return result || s->queue.empty() ? result : not_ready;
}

CUDA_API cuStreamWaitEvent(stream* s, event* e, unsigned) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(the_driver.events.contains(e), invalid_handle);
  if (e->captured || (the_driver.streams.contains(s) && s->recording)) return join_capture(s, e);
  const auto counts = e->counts;
  const unsigned turn = counts->recorded;
  return the_driver.put(s, {[=] { return counts->reached >= turn; },
                            [](std::string&) { return success; }, e->is_foreign});
}

CUDA_API cuEventCreate(event** e, unsigned flags) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(has_context(), invalid_context);
  REQUIRE(!(flags & interprocess) || flags & without_timing, invalid_value);
  the_driver.events.insert(*e = new event{current_context, flags});
  return success;
}

CUDA_API cuEventDestroy_v2(event* e) {
  std::unique_lock lock(the_driver.mutex);
  REQUIRE(the_driver.events.contains(e), invalid_handle);
  REQUIRE(has_context(), invalid_context);
  const CUresult result = the_driver.progress(lock, current_context, [=] {
    return e->is_foreign || e->counts->reached == e->counts->recorded;
  });
  if (e->shared_file >= 0) close(e->shared_file);
  the_driver.events.erase(e);
  delete e;
  return result;
}

CUDA_API cuEventSynchronize(event* e) {
  std::unique_lock lock(the_driver.mutex);
  REQUIRE(the_driver.events.contains(e), invalid_handle);
  REQUIRE(has_context(), invalid_context);
  REQUIRE(!e->captured, captured_event);
  const unsigned turn = e->counts->recorded;
  return the_driver.progress(lock, current_context, [=] { return e->counts->reached >= turn; });
}

CUDA_API cuEventQuery(event* e) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(the_driver.events.contains(e), invalid_handle);
  if (const CUresult error = the_driver.refuse_while_capturing()) return error;
  REQUIRE(!e->captured, captured_event);
  return e->counts->reached == e->counts->recorded ? success : not_ready;
}

CUDA_API cuEventElapsedTime(float* milliseconds, event* from, event* to) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(the_driver.events.contains(from) && the_driver.events.contains(to), invalid_handle);
  REQUIRE(!((from->flags | to->flags) & without_timing), invalid_handle);
  REQUIRE(from->counts->recorded > 0 && to->counts->recorded > 0, invalid_handle);
  REQUIRE(from->counts->reached == from->counts->recorded &&
              to->counts->reached == to->counts->recorded,
          not_ready);
  *milliseconds = std::chrono::duration<float, std::milli>(to->passed - from->passed).count();
  return success;
}
