// One block of an emulated launch: its fibers, barriers, meetings of warps and asynchronous copies,
// and the order in which they run.
#pragma once

#include <pthread.h>

#include <bit>
#include <deque>
#include <random>
#include <set>
#include <vector>

#include "emulation.hpp"
#include "fibers.hpp"

namespace emulation {
namespace {

struct copy {
  void* to;
  const void* from;
  bool valid;
};

struct fiber {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan_fiber = nullptr;
  uint3 thread{};
  unsigned lane = 0, warp = 0;
  bool finished = false;
  const char* waiting_for = "";
  where waiting_at;
  std::deque<copy> copies;         // started and not yet complete
  std::deque<std::size_t> groups;  // sizes of committed groups, oldest first
  std::size_t uncommitted = 0;
};

struct meeting {  // of the lanes in `mask`
  unsigned mask = 0, arrived = 0, round = 0;
  const char* operation = "";
  payload lanes[2][32];  // alternating, as a lane may be one meeting ahead of another's reading
  char order[2];
};

struct warp {
  unsigned ready = 0;  // lanes that can run
  unsigned masks = 0;
  meeting
      meetings[4];  // by mask; allocated before the fibers, or ThreadSanitizer takes it for a race
};

struct failure {
  std::string message;
};

class block_run {
 public:
  block_run(const kernel& k, const launch_shape& s, void** arguments, counters& c)
      : k_(k),
        shape_(s),
        arguments_(arguments),
        counters_(c),
        random_(s.seed),
        fibers_(s.block.x * s.block.y * s.block.z),
        warps_((fibers_.size() + 31) / 32) {
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    void* bottom;
    pthread_attr_getstack(&attributes, &bottom, &host_.bytes);
    host_.bottom = bottom;
    pthread_attr_destroy(&attributes);
    while (stacks_.size() < fibers_.size())
      stacks_.emplace_back();
    if (__tsan_get_current_fiber) host_.tsan_fiber = __tsan_get_current_fiber();
  }

  void run() {
    shared_ =
        static_cast<unsigned char*>(::operator new(shape_.shared_bytes, std::align_val_t(128)));
    std::memset(shared_, 0xff, shape_.shared_bytes);  // NaN in every format
    waiting_ = 0, live_ = fibers_.size();
    for (auto& w : warps_)
      w.masks = w.ready = 0;
    for (std::size_t i = 0; i < fibers_.size(); ++i)
      prepare(i);
    release(&start_);
    go(host_, *next());
    acquire(&end_);
    ::operator delete(shared_, std::align_val_t(128));
    if (!error_.empty()) throw failure{error_};
  }

  void block_barrier(where at) {
    const unsigned round = round_;
    if (waiting_ == 0)
      barrier_at_ = at;
    else if (barrier_at_.line() != at.line())
      fail("threads of a block meet at different __syncthreads", at);
    release(&order_[round & 1]);
    ++waiting_;
    if (waiting_ == live_) open_barrier();
    while (round_ == round)
      park("__syncthreads", at);
    acquire(&order_[round & 1]);
  }

  const payload* exchange(unsigned mask, const char* operation, const payload& mine, bool ordered,
                          where at) {
    fiber& f = *current_;
    warp& w = warps_[f.warp];
    if (!(mask >> f.lane & 1)) fail("a lane calls a warp operation whose mask leaves it out", at);
    meeting* m = w.meetings;
    while (m < w.meetings + w.masks && m->mask != mask)
      ++m;
    if (m == w.meetings + w.masks) {
      if (++w.masks > std::size(w.meetings)) fail("a warp uses too many masks", at);
      m->mask = mask, m->arrived = 0;
    }
    if (m->arrived && m->operation != operation)
      fail("lanes of a warp meet at different operations", at);
    const unsigned round = m->round, half = round & 1;
    m->operation = operation;
    m->lanes[half][f.lane] = mine;
    if (ordered) release(&m->order[half]);
    m->arrived |= 1u << f.lane;
    if (m->arrived == mask) m->arrived = 0, ++m->round, w.ready |= mask;
    while (m->round == round)
      park(operation, at);
    if (ordered) acquire(&m->order[half]);
    return m->lanes[half];
  }

  void yield() {
    warps_[current_->warp].ready |= 1u << current_->lane;
    fiber& from = *current_;
    fiber* to = next();
    if (to && to != &from) go(from, *to);
  }

  // The fibers are left as they are: their stacks hold nothing that needs destroying.
  [[noreturn]] void fail(std::string message, where at) {
    const fiber& f = *current_;
    error_ = std::move(message) + at_text(at) + ", thread (" + std::to_string(f.thread.x) + ", " +
             std::to_string(f.thread.y) + ", " + std::to_string(f.thread.z) + ") of block (" +
             std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
             std::to_string(blockIdx.z) + ")";
    release(&end_);
    go(*current_, host_);
    __builtin_unreachable();
  }

  fiber& current() { return *current_; }
  unsigned char* shared() { return shared_; }
  const launch_shape& shape() { return shape_; }
  counters& count() { return counters_; }

 private:
  static std::string at_text(where at) {
    std::string file = at.file_name();
    return " at " + file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line());
  }

  void prepare(std::size_t i) {
    fiber& f = fibers_[i];
    f = {};
    f.thread = {unsigned(i % shape_.block.x), unsigned(i / shape_.block.x % shape_.block.y),
                unsigned(i / shape_.block.x / shape_.block.y)};
    f.lane = i % 32, f.warp = i / 32;
    warps_[f.warp].ready |= 1u << f.lane;
    f.bottom = stacks_[i].base + page, f.bytes = stack_bytes;
    f.tsan_fiber = stacks_[i].tsan_fiber;
    void** top = reinterpret_cast<void**>(stacks_[i].base + page + stack_bytes);
    top[-2] = reinterpret_cast<void*>(
        &body);  // where emulation_switch returns to; the stack is then as after a call
    f.stack_pointer = top - 8;
  }

  static void body();

  void go(fiber& from, fiber& to) {
    ++counters_.switches;
    current_ = &to;
    threadIdx = to.thread;
    if (__sanitizer_start_switch_fiber)
      __sanitizer_start_switch_fiber(from.finished ? nullptr : &from.fake_stack, to.bottom,
                                     to.bytes);
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.tsan_fiber, without_order);
    emulation_switch(&from.stack_pointer, to.stack_pointer);
    if (__sanitizer_finish_switch_fiber)
      __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
  }

  // Stays in a warp while one of its lanes can run; that drives warps as far apart as the barriers
  // allow.
  fiber* next() {
    std::size_t w = warp_;
    const bool in_order = shape_.seed == 0;
    if (!warps_[w].ready) {
      const std::size_t start = in_order ? 0 : random_() % warps_.size();
      for (std::size_t i = 0; i < warps_.size() && !warps_[w].ready; ++i)
        w = (start + i) % warps_.size();
      if (!warps_[w].ready) return nullptr;
      warp_ = w;
    }
    const unsigned turn = in_order ? 0 : random_() % 32;
    const unsigned lane = (std::countr_zero(std::rotr(warps_[w].ready, int(turn))) + turn) % 32;
    return &fibers_[w * 32 + lane];
  }

  void park(const char* operation, where at) {
    fiber& f = *current_;
    f.waiting_for = operation, f.waiting_at = at;
    warps_[f.warp].ready &= ~(1u << f.lane);
    fiber* to = next();
    if (!to) fail(stuck(), at);
    go(f, *to);
  }

  void open_barrier() {
    waiting_ = 0, ++round_;
    for (auto& f : fibers_)
      if (!f.finished) warps_[f.warp].ready |= 1u << f.lane;
  }

  void finish() {
    fiber& f = *current_;
    if (!f.copies.empty())
      fail("a thread ends with an asynchronous copy under way", where::current());
    f.finished = true;
    warps_[f.warp].ready &= ~(1u << f.lane);
    release(&end_);
    --live_;
    if (live_ == 0) go(f, host_);
    if (waiting_ && waiting_ == live_) open_barrier();
    fiber* to = next();
    if (!to) f.finished = false, fail(stuck(), where::current());
    go(f, *to);
    __builtin_unreachable();
  }

  std::string stuck() {
    std::set<std::string> places;
    for (auto& f : fibers_)
      if (!f.finished)
        places.insert(std::string(f.waiting_for) + at_text(f.waiting_at) + " (warp " +
                      std::to_string(f.warp) + ")");
    std::string text = "deadlock: threads wait for";
    for (auto& place : places)
      text += " " + place + ",";
    return text + " and no thread can run; seen";
  }

  const kernel& k_;
  const launch_shape& shape_;
  void** const arguments_;
  counters& counters_;
  std::minstd_rand random_;
  static thread_local std::deque<stack> stacks_;
  std::vector<fiber> fibers_;
  std::vector<warp> warps_;
  fiber host_;
  fiber* current_ = &host_;
  std::size_t warp_ = 0, live_ = 0, waiting_ = 0;
  unsigned round_ = 0;
  where barrier_at_;
  char order_[2], start_ = 0, end_ = 0;
  unsigned char* shared_ = nullptr;
  std::string error_;
};

thread_local std::deque<stack> block_run::stacks_;
thread_local block_run* running;

void block_run::body() {
  block_run& run = *running;
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  acquire(&run.start_);
  run.k_.run(run.arguments_);
  run.finish();
}

}  // namespace
}  // namespace emulation
