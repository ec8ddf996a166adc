// Memory of the emulated driver. Device memory is host memory filled with 0xFF (NaN in every
// format) and followed by guard bytes that are checked when it is freed.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "driver.hpp"

namespace emulation {

namespace {

constexpr std::size_t guard_bytes = 64, alignment = 256;

void* host(CUdeviceptr p) {
  return reinterpret_cast<void*>(p);
}

CUresult put_copy(stream* on, void* to, const void* from, std::size_t bytes) {
  return the_driver.put(on, {nullptr, [=](std::string&) {
                               std::memmove(to, from, bytes);
                               return success;
                             }});
}

bool is_intact(CUdeviceptr p, std::size_t bytes) {
  const unsigned char* const end = static_cast<unsigned char*>(host(p)) + bytes;
  for (std::size_t i = 0; i < guard_bytes; ++i) {
    if (end[i] != 0xff) return false;
  }
  return true;
}

// Large allocations have pages to themselves, so that processes can share them.
void* take(std::size_t bytes, std::size_t& mapped) {
  constexpr std::size_t large = 64 << 10, page = 4096;
  mapped = bytes < large ? 0 : (bytes + page - 1) / page * page;
  if (mapped == 0) return ::operator new(bytes, std::align_val_t(alignment), std::nothrow);
  void* const memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

}  // namespace

void release(CUdeviceptr p, const allocation& a) {
  if (a.mapped == 0) return ::operator delete(host(p), std::align_val_t(alignment));
  munmap(host(p), a.mapped);
  if (a.shared_file >= 0) close(a.shared_file);
}

bool driver::holds(CUdeviceptr from, std::size_t bytes) const {
  auto after = memory.upper_bound(from);
  if (after == memory.begin()) return false;
  const auto& [base, a] = *std::prev(after);
  return from + bytes <= base + a.bytes;
}

}  // namespace emulation

using namespace emulation;

CUDA_API cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(has_context(), invalid_context);
  *free = device_bytes - current_context->used;
  *total = device_bytes;
  return success;
}

CUDA_API cuMemAlloc_v2(CUdeviceptr* p, std::size_t bytes) {
  std::lock_guard lock(the_driver.mutex);
  if (const CUresult error = the_driver.refuse_while_capturing()) return error;
  REQUIRE(has_context(), invalid_context);
  REQUIRE(!current_context->broken, current_context->broken);
  REQUIRE(bytes, invalid_value);
  REQUIRE(current_context->used + bytes <= device_bytes, out_of_memory);
  std::size_t mapped = 0;
  void* memory = take(bytes + guard_bytes, mapped);
  REQUIRE(memory, out_of_memory);
  std::memset(memory, 0xff, bytes + guard_bytes);
  *p = reinterpret_cast<CUdeviceptr>(memory);
  the_driver.memory[*p] = {bytes, current_context, mapped};
  current_context->used += bytes;
  return success;
}

CUDA_API cuMemFree_v2(CUdeviceptr p) {
  std::unique_lock lock(the_driver.mutex);
  if (const CUresult error = the_driver.refuse_while_capturing()) return error;
  auto found = the_driver.memory.find(p);
  REQUIRE(found != the_driver.memory.end(), invalid_value);
  const allocation a = found->second;
  REQUIRE(!a.is_foreign, invalid_value);
  const CUresult result = the_driver.progress(lock, a.home, [&] {
    for (auto* s : the_driver.streams) {
      if (s->home == a.home && !s->queue.empty()) return false;
    }
    return true;
  });
  const bool intact = is_intact(p, a.bytes);
  a.home->used -= a.bytes;
  the_driver.memory.erase(p);
  release(p, a);
  if (!intact) {
    the_driver.message = "memory was written past its end";
    return a.home->broken = launch_failed;
  }
  return result;
}

CUDA_API cuMemHostAlloc(void** p, std::size_t bytes, unsigned flags) {
  constexpr unsigned all_flags = 7;
  std::lock_guard lock(the_driver.mutex);
  if (const CUresult error = the_driver.refuse_while_capturing()) return error;
  REQUIRE(has_context(), invalid_context);
  REQUIRE(bytes && flags <= all_flags, invalid_value);
  *p = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  REQUIRE(*p, out_of_memory);
  the_driver.locked.insert(*p);
  return success;
}

CUDA_API cuMemFreeHost(void* p) {
  std::lock_guard lock(the_driver.mutex);
  if (const CUresult error = the_driver.refuse_while_capturing()) return error;
  REQUIRE(has_context(), invalid_context);
  REQUIRE(the_driver.locked.erase(p) > 0, invalid_value);
  std::free(p);
  return success;
}

CUDA_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, std::size_t bytes, stream* on) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(has_context(), invalid_context);
  REQUIRE(the_driver.holds(to, bytes), invalid_value);
  return put_copy(on, host(to), from, bytes);
}

CUDA_API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, std::size_t bytes, stream* on) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(has_context(), invalid_context);
  REQUIRE(the_driver.holds(from, bytes), invalid_value);
  return put_copy(on, to, host(from), bytes);
}

CUDA_API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, stream* on) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(has_context(), invalid_context);
  REQUIRE(the_driver.holds(from, bytes) && the_driver.holds(to, bytes), invalid_value);
  return put_copy(on, host(to), host(from), bytes);
}

// By addresses alone; all of them are of devices here.
CUDA_API cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, stream* on) {
  return cuMemcpyDtoDAsync_v2(to, from, bytes, on);
}

CUDA_API cuMemcpyPeerAsync(CUdeviceptr to, context*, CUdeviceptr from, context*, std::size_t bytes,
                           stream* on) {
  return cuMemcpyDtoDAsync_v2(to, from, bytes, on);
}

CUDA_API cuMemsetD8Async(CUdeviceptr to, unsigned char value, std::size_t bytes, stream* on) {
  std::lock_guard lock(the_driver.mutex);
  REQUIRE(has_context(), invalid_context);
  REQUIRE(the_driver.holds(to, bytes), invalid_value);
  return the_driver.put(on, {nullptr, [=](std::string&) {
                               std::memset(host(to), value, bytes);
                               return success;
                             }});
}
