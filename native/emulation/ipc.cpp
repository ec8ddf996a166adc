// Memory and events that processes share: a handle names a file of the process that made it, which
// others map through /proc. Memory becomes such a file when its handle is asked for.
// TREEATTN_EMULATION_IPC=0 refuses, as devices do that cannot.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "driver.hpp"

namespace emulation {

namespace {

constexpr std::size_t event_bytes = 4096;

struct ipc_handle {  // 64 bytes, as the driver's
  int process, file;
  std::size_t bytes, mapped;
  char unused[40];
};
static_assert(sizeof(ipc_handle) == 64);

// The file of another process; -1 where it is gone.
int open_file(const ipc_handle& h) {
  const std::string path = "/proc/" + std::to_string(h.process) + "/fd/" + std::to_string(h.file);
  return open(path.c_str(), O_RDWR | O_CLOEXEC);
}

void* map_file(int file, std::size_t bytes, void* at = nullptr) {
  return mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (at ? MAP_FIXED : 0), file, 0);
}

// Moves an allocation into a file, at the addresses that it has.
bool share(CUdeviceptr p, allocation& a) {
  if (a.shared_file >= 0) return true;
  const int file = memfd_create("treeattn-emulated-memory", MFD_CLOEXEC);
  if (file < 0) return false;
  void* const memory = reinterpret_cast<void*>(p);
  std::size_t written = 0;
  while (written < a.mapped) {
    const ssize_t n = write(file, static_cast<char*>(memory) + written, a.mapped - written);
    if (n <= 0) break;
    written += std::size_t(n);
  }
  if (written < a.mapped || map_file(file, a.mapped, memory) == MAP_FAILED) {
    close(file);
    return false;
  }
  a.shared_file = file;
  return true;
}

// The counts of an event in shared memory, which goes with the last that looks at it.
std::shared_ptr<event_counts> counts_in(void* memory) {
  return {static_cast<event_counts*>(memory), [](event_counts* c) { munmap(c, event_bytes); }};
}

bool is_refused() {
  return setting("TREEATTN_EMULATION_IPC", 1) == 0;
}

}  // namespace
}  // namespace emulation

using namespace emulation;

CUDA_API cuIpcGetMemHandle(ipc_handle* handle, CUdeviceptr p) {
  std::unique_lock lock(the_driver.mutex);
  REQUIRE(!is_refused(), not_supported);
  auto found = the_driver.memory.find(p);
  REQUIRE(found != the_driver.memory.end() && found->second.mapped > 0, invalid_value);
  allocation& a = found->second;
  const CUresult waited = the_driver.progress(lock, a.home, [&] {
    return std::none_of(the_driver.streams.begin(), the_driver.streams.end(),
                        [&](stream* s) { return s->home == a.home && !s->queue.empty(); });
  });
  if (waited) return waited;
  REQUIRE(share(p, a), out_of_memory);
  *handle = {getpid(), a.shared_file, a.bytes, a.mapped, {}};
  return success;
}

CUDA_API cuIpcOpenMemHandle_v2(CUdeviceptr* p, ipc_handle handle, unsigned flags) {
  constexpr unsigned lazy_peer_access = 1;
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(!is_refused(), not_supported);
  REQUIRE(has_context(), invalid_context);
  REQUIRE(flags == lazy_peer_access, invalid_value);
  REQUIRE(handle.process != getpid(), invalid_context);  // the process has the memory itself
  const int file = open_file(handle);
  REQUIRE(file >= 0, invalid_handle);
  void* const memory = map_file(file, handle.mapped);
  close(file);
  REQUIRE(memory != MAP_FAILED, out_of_memory);
  *p = reinterpret_cast<CUdeviceptr>(memory);
  the_driver.memory[*p] = {handle.bytes, current_context, handle.mapped, -1, true};
  return success;
}

CUDA_API cuIpcCloseMemHandle(CUdeviceptr p) {
  std::lock_guard lock(the_driver.mutex);
  auto found = the_driver.memory.find(p);
  REQUIRE(found != the_driver.memory.end() && found->second.is_foreign, invalid_value);
  munmap(reinterpret_cast<void*>(p), found->second.mapped);
  the_driver.memory.erase(found);
  return success;
}

CUDA_API cuIpcGetEventHandle(ipc_handle* handle, event* e) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(!is_refused(), not_supported);
  REQUIRE(the_driver.events.contains(e) && !e->is_foreign, invalid_handle);
  REQUIRE(e->flags & interprocess, invalid_value);
  if (e->shared_file < 0) {
    const int file = memfd_create("treeattn-emulated-event", MFD_CLOEXEC);
    REQUIRE(file >= 0, out_of_memory);
    void* const memory =
        ftruncate(file, event_bytes) == 0 ? map_file(file, event_bytes) : MAP_FAILED;
    if (memory == MAP_FAILED) {
      close(file);
      return out_of_memory;
    }
    new (memory) event_counts{e->counts->recorded.load(), e->counts->reached.load()};
    e->counts = counts_in(memory);
    e->shared_file = file;
  }
  *handle = {getpid(), e->shared_file, event_bytes, event_bytes, {}};
  return success;
}

CUDA_API cuIpcOpenEventHandle(event** e, ipc_handle handle) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(!is_refused(), not_supported);
  REQUIRE(has_context(), invalid_context);
  REQUIRE(handle.process != getpid(), invalid_context);
  const int file = open_file(handle);
  REQUIRE(file >= 0, invalid_handle);
  void* const memory = map_file(file, event_bytes);
  close(file);
  REQUIRE(memory != MAP_FAILED, out_of_memory);
  the_driver.events.insert(*e = new event{current_context, without_timing | interprocess});
  (*e)->counts = counts_in(memory);
  (*e)->is_foreign = true;
  return success;
}
