// How an emulated operation moves on: transfers through the rings of the channels, in order on each
// channel, as far as there is room and data; it never waits.
#include <algorithm>
#include <cstdio>

#include "nccl.hpp"

namespace emulation::nccl {

namespace {

constexpr unsigned polls_between_looks = 32;
std::string& the_last_error = *new std::string;

// Copies between a ring and memory; positions count bytes from the beginning of time.
template <class copy>
void around(std::size_t position, std::size_t bytes, copy each) {
  const std::size_t first = std::min(bytes, ring_bytes - position % ring_bytes);
  each(position % ring_bytes, 0, first);
  if (first < bytes) each(0, first, bytes - first);
}

std::size_t push(channel& c, const char* from, std::size_t bytes) {
  const std::size_t written = c.written, room = ring_bytes - (written - c.read);
  bytes = std::min(bytes, room);
  around(written, bytes, [&](std::size_t at, std::size_t offset, std::size_t n) {
    std::memcpy(c.ring + at, from + offset, n);
  });
  c.written = written + bytes;
  return bytes;
}

std::size_t pull(channel& c, char* to, std::size_t bytes) {
  const std::size_t read = c.read, there = c.written - read;
  bytes = std::min(bytes, there);
  around(read, bytes, [&](std::size_t at, std::size_t offset, std::size_t n) {
    std::memcpy(to + offset, c.ring + at, n);
  });
  c.read = read + bytes;
  return bytes;
}

// A header goes and comes whole.
bool push_header(channel& c, const message& header) {
  if (ring_bytes - (c.written - c.read) < sizeof header) return false;
  push(c, reinterpret_cast<const char*>(&header), sizeof header);
  return true;
}

bool check_header(membership& m, channel& c, const transfer& t) {
  if (c.written - c.read < sizeof(message)) return false;
  message header;
  pull(c, reinterpret_cast<char*>(&header), sizeof header);
  if (header == t.header) return true;
  m.fail(nccl_invalid_usage, "rank " + std::to_string(m.rank) + " is in " + describe(t.header) +
                                 ", but rank " + std::to_string(t.peer) + " is in " +
                                 describe(header));
  return false;
}

// True when anything moved.
bool step(membership& m, transfer& t) {
  channel& c = t.leaves ? m.shared.between(m.rank, t.peer) : m.shared.between(t.peer, m.rank);
  const std::size_t before = t.done;
  if (t.done == 0) {
    if (!(t.leaves ? push_header(c, t.header) : check_header(m, c, t))) return false;
    t.done = sizeof(message);
  }
  char* const data = t.data + (t.done - sizeof(message));
  const std::size_t left = sizeof(message) + t.bytes - t.done;
  if (left > 0) t.done += t.leaves ? push(c, data, left) : pull(c, data, left);
  return t.done > before;
}

// An earlier transfer of the same channel goes first.
bool is_next(const std::vector<transfer>& all, std::size_t i) {
  return std::none_of(all.begin(), all.begin() + long(i), [&](const transfer& earlier) {
    return earlier.peer == all[i].peer && earlier.leaves == all[i].leaves && !earlier.is_done();
  });
}

}  // namespace

std::string describe(const message& m) {
  static const char* const kinds[] = {"a send/receive", "an all-reduce", "an all-gather",
                                      "a broadcast"};
  std::string text = kinds[m.kind];
  text += " of " + std::to_string(m.count) + " elements of type " + std::to_string(m.type);
  if (m.kind == message::all_reduce) text += " by operation " + std::to_string(m.operation);
  if (m.kind == message::broadcast) text += " from root " + std::to_string(m.root);
  if (m.capture > 0) text += " in a graph of capture " + std::to_string(m.capture);
  return text;
}

bool work::needs(int peer) const {
  return std::any_of(transfers.begin(), transfers.end(),
                     [=](const transfer& t) { return t.peer == peer && !t.is_done(); });
}

bool advance(membership& m, work& w) {
  if (w.is_done || m.is_aborted) return true;
  if (m.finished != w.turn || m.state > nccl_success) return false;
  if (w.has_planted_error) {
    m.fail(m.planted.error, "planted by TREEATTN_EMULATION_NCCL_FAULT");
    return false;
  }
  // Looked for before anything is moved: what a peer left in the rings before it was lost counts.
  const std::string lost = ++w.polls % polls_between_looks ? "" : m.lost_peer(&w);
  bool moved = false, all_done = true;
  for (std::size_t i = 0; i < w.transfers.size() && m.state == nccl_success; ++i) {
    transfer& t = w.transfers[i];
    if (!t.is_done() && is_next(w.transfers, i)) moved |= step(m, t);
    all_done &= t.is_done();
  }
  if (m.state == nccl_success && all_done) {
    for (const auto& end : w.endings)
      end();
    ++m.finished;
    return w.is_done = true;
  }
  if (!moved && !lost.empty()) m.fail(nccl_remote_error, lost);
  return false;
}

namespace {

operation enqueued(const std::shared_ptr<membership>& m, const std::shared_ptr<work>& w) {
  w->turn = m->queued++;
  w->has_planted_error = m->planted.rank == m->rank && m->planted.operation == int(m->queued);
  operation what;
  what.is_ready = [=] { return advance(*m, *w); };
  what.run = [](std::string&) { return success; };
  what.awaits_others = true;
  return what;
}

void mark_as_captured(membership& m, work& w, unsigned long capture) {
  for (transfer& t : w.transfers) {
    membership::captured_with& common = m.captures[t.peer];
    if (std::exchange(common.last, capture) != capture) ++common.count;
    t.header.capture = common.count;
  }
}

// Held by what recorded it, and by nothing that was launched.
struct recorded_work {
  const std::shared_ptr<membership> m;
  const std::shared_ptr<work> w;

  recorded_work(const std::shared_ptr<membership>& m, const std::shared_ptr<work>& w) : m(m), w(w) {
    ++m->recorded;
  }
  recorded_work(const recorded_work&) = delete;
  ~recorded_work() {
    --m->recorded;
    the_driver.changed.notify_all();
  }
};

}  // namespace

CUresult submit(const std::shared_ptr<membership>& m, stream* on, const std::shared_ptr<work>& w) {
  if (!on->recording) return the_driver.put(on, enqueued(m, w));
  mark_as_captured(*m, *w, on->recording->number);
  operation recorded;
  recorded.renew = [kept = std::make_shared<recorded_work>(m, w)] {
    return enqueued(kept->m, std::make_shared<work>(*kept->w));
  };
  return the_driver.put(on, std::move(recorded));
}

ncclResult refuse(ncclResult error, const std::string& why) {
  the_last_error = why;
  return error;
}

const std::string& last_error() {
  return the_last_error;
}

planted_error::planted_error() {
  const std::string text = setting_text("TREEATTN_EMULATION_NCCL_FAULT");
  if (!text.empty()) std::sscanf(text.c_str(), "%d:%d:%d", &rank, &operation, &error);
}

}  // namespace emulation::nccl
