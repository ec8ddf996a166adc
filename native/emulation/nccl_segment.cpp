// Where the ranks of an emulated communicator meet: a file in /dev/shm, mapped by each rank.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <system_error>

#include "nccl.hpp"

namespace emulation::nccl {

namespace {

std::string path(const std::string& name) {
  return "/dev/shm/treeattn-nccl-" + name;
}

std::size_t host_of_this_process() {
  std::string name = setting_text("NCCL_HOSTID");
  if (name.empty()) {
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    name = host;
  }
  return std::hash<std::string>()(name);
}

bool is_gone(int process) {
  return kill(process, 0) != 0 && errno == ESRCH;
}

}  // namespace

segment::segment(const std::string& name, int ranks)
    : name_(name),
      ranks_(ranks),
      bytes_(ranks * sizeof(rank_slot) + std::size_t(ranks) * ranks * sizeof(channel)) {
  const int file = open(path(name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) throw std::system_error(errno, std::generic_category(), path(name));
  // Grows to the size and never shrinks: the ranks need not agree on who is first.
  const int full = posix_fallocate(file, 0, off_t(bytes_));
  memory_ = full ? MAP_FAILED : mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int error = full ? full : errno;
  close(file);
  if (memory_ == MAP_FAILED) throw std::system_error(error, std::generic_category(), path(name));
  slots_ = static_cast<rank_slot*>(memory_);
  channels_ = reinterpret_cast<channel*>(slots_ + ranks);
}

segment::~segment() {
  munmap(memory_, bytes_);
}

void segment::remove_file() {
  unlink(path(name_).c_str());
}

membership::membership(const std::string& name, int rank, int ranks, context* home)
    : shared(name, ranks), rank(rank), ranks(ranks), home(home), captures(ranks) {
  rank_slot& mine = shared.slot(rank);
  mine.process = getpid();
  mine.device = home->device;
  mine.host = host_of_this_process();
  mine.state = joined;
}

void membership::fail(ncclResult error, const std::string& reason) {
  state = error;
  why = reason;
  shared.slot(rank).state = failed;
}

void membership::connect_if_all_joined() {
  for (int peer = 0; peer < ranks; ++peer) {
    if (shared.slot(peer).state == absent) return;
  }
  rank_slot& mine = shared.slot(rank);
  for (int peer = 0; peer < ranks; ++peer) {
    rank_slot& slot = shared.slot(peer);
    if (peer == rank || slot.host != mine.host || slot.device != mine.device) continue;
    if (setting("NCCL_MULTI_RANK_GPU_ENABLE", 0)) continue;
    fail(nccl_invalid_usage, "Duplicate GPU detected : rank " + std::to_string(rank) +
                                 " and rank " + std::to_string(peer) + " both on CUDA device " +
                                 std::to_string(mine.device));
    return;
  }
  if (rank == 0) shared.remove_file();
  is_connected = true;
  state = nccl_success;
}

std::string membership::lost_peer(const work* under_way) const {
  for (int peer = 0; peer < ranks; ++peer) {
    rank_slot& slot = shared.slot(peer);
    const int its_state = slot.state;
    if (peer == rank || its_state == absent) continue;
    const char* what = its_state == failed                                             ? "failed"
                       : its_state == aborted                                          ? "aborted"
                       : its_state == finalized && under_way && under_way->needs(peer) ? "left"
                       : its_state == joined && is_gone(slot.process)                  ? "is dead"
                                                                                       : nullptr;
    if (what) return "rank " + std::to_string(peer) + " " + what;
  }
  return {};
}

}  // namespace emulation::nccl
