// A stream of a device works by itself; an emulated one when it is waited for. Where other
// processes wait for work that nobody here waits for, they would wait for ever: so a thread looks
// after work that has stood still for a while, and no earlier, because lazy streams show forgotten
// waits.
#include <chrono>
#include <thread>

#include "nccl_communicator.hpp"

namespace emulation::nccl {

namespace {

constexpr auto pause = std::chrono::milliseconds(5);

// Work stands still when it did so at the last look too.
std::shared_ptr<membership> standing_still() {
  std::shared_ptr<membership> found;
  for (const communicator* c : the_communicators) {
    if (!c->mine || c->mine->state != nccl_success) continue;
    membership& m = *c->mine;
    if (m.finished < m.queued && m.finished == m.seen_finished && m.seen_queued > m.finished) {
      found = c->mine;
    }
    m.seen_finished = m.finished;
    m.seen_queued = m.queued;
  }
  return found;
}

void run() {
  std::unique_lock lock(the_driver.mutex);
  while (true) {
    lock.unlock();
    std::this_thread::sleep_for(pause);
    lock.lock();
    if (const auto m = standing_still()) {
      const unsigned long before = m->finished;
      the_driver.progress(lock, m->home, [&] {
        return m->finished > before || m->is_aborted || m->state != nccl_success;
      });
    }
  }
}

}  // namespace

void start_engine() {
  static std::once_flag once;
  std::call_once(once, [] { std::thread(run).detach(); });
}

}  // namespace emulation::nccl
