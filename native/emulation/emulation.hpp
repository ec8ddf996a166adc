// Runs CUDA C++ kernels on the CPU, for tests. Every CUDA thread is a fiber; a
// fiber runs until it meets others at a barrier or warp operation, and the seed
// of a launch decides which runs next. Include before the kernel's source.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>
#include <type_traits>
#include <utility>
using std::max, std::min;

// The vocabulary of CUDA C++.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;

namespace emulation {

using where = std::source_location;

struct kernel {  // made by EMULATED_KERNEL
  void (*run)(void** arguments);
  unsigned argument_count;
  const unsigned* argument_bytes;
};

struct launch_shape {
  dim3 grid, block;
  unsigned shared_bytes = 0;
  std::uint64_t seed = 0;  // 0: blocks, warps and lanes in order; else shuffled
};

// What a launch counted; a conflict is an extra pass of an ldmatrix over the banks.
struct counters {
  std::uint64_t switches = 0, matrix_loads = 0, bank_conflicts = 0, copies = 0;
};

// Runs the kernel to its end. Returns the error that stopped it, or "".
std::string launch(const kernel&, const launch_shape&, void** arguments, counters* = nullptr);

// For the definitions below and in primitives.cuh.
struct payload {
  std::uint64_t word[3];
};
[[noreturn]] void fail(const char* message, where);
void block_barrier(where);
void warp_barrier(unsigned mask, where);
// Meets the other lanes of `mask`; returns all 32 lanes' payloads, valid until this lane's next
// meeting.
const payload* exchange(unsigned mask, const char* operation, const payload&, where);
unsigned lane();
void yield();
void* shared_memory();
void check_shared(const void*, std::size_t bytes, std::size_t alignment, const char* operation,
                  where);
void count_matrix_load(const payload* rows);
void count_copy();
void copy_started(void* to, const void* from, bool valid);
void copies_committed();
bool next_finished_copy(int pending_groups, void*& to, const void*& from, bool& valid);

template <class T>
payload wrap(const T& value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(payload));
  payload p{};
  std::memcpy(&p, &value, sizeof value);
  return p;
}
template <class T>
T unwrap(const payload& p) {
  T value;
  std::memcpy(&value, &p, sizeof value);
  return value;
}
template <class T>
T shuffle(unsigned mask, T value, unsigned source, where at) {
  const payload* all = exchange(mask, "shuffle", wrap(value), at);
  if (!(mask >> source & 1)) fail("a shuffle reads a lane that its mask leaves out", at);
  return unwrap<T>(all[source]);
}

template <class... P>
struct signature {
  static constexpr unsigned bytes[] = {sizeof(P)..., 0};
};
template <class... P>
constexpr kernel describe(void (*)(P...), void (*run)(void**)) {
  return {run, sizeof...(P), signature<P...>::bytes};
}
template <class... P>
void apply(void (*body)(P...), void** arguments) {
  [&]<std::size_t... i>(std::index_sequence<i...>) {
    body(*static_cast<std::remove_cvref_t<P>*>(arguments[i])...);
  }
  (std::index_sequence_for<P...>{});
}

}  // namespace emulation

// Makes `name` an emulation::kernel that runs a __global__ function or template instance.
#define EMULATED_KERNEL(name, ...)                                   \
  extern "C" const emulation::kernel name;                           \
  extern "C" constexpr emulation::kernel name = emulation::describe( \
      &__VA_ARGS__, [](void** arguments) { emulation::apply(&__VA_ARGS__, arguments); })

inline void __syncthreads(emulation::where at = emulation::where::current()) {
  emulation::block_barrier(at);
}
inline void __syncwarp(unsigned mask = ~0u, emulation::where at = emulation::where::current()) {
  emulation::warp_barrier(mask, at);
}
inline void __threadfence() {}
inline void __nanosleep(unsigned) {
  emulation::yield();
}
[[noreturn]] inline void __trap(emulation::where at = emulation::where::current()) {
  emulation::fail("__trap", at);
}

template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32,
              emulation::where at = emulation::where::current()) {
  return emulation::shuffle(
      mask, v, (emulation::lane() & -unsigned(width)) | (unsigned(source) & (width - 1)), at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32,
                  emulation::where at = emulation::where::current()) {
  const unsigned lane = emulation::lane(), source = lane ^ unsigned(bits);
  return emulation::shuffle(mask, v, source < (lane & -unsigned(width)) + width ? source : lane,
                            at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32,
                   emulation::where at = emulation::where::current()) {
  const unsigned lane = emulation::lane();
  return emulation::shuffle(
      mask, v, (lane & (width - 1)) + delta < unsigned(width) ? lane + delta : lane, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32,
                 emulation::where at = emulation::where::current()) {
  const unsigned lane = emulation::lane();
  return emulation::shuffle(mask, v, (lane & (width - 1)) >= delta ? lane - delta : lane, at);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              emulation::where at = emulation::where::current()) {
  const emulation::payload* all =
      emulation::exchange(mask, "ballot", emulation::wrap(predicate), at);
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) votes |= unsigned(all[i].word[0]) << i;
  return votes;
}
inline bool __any_sync(unsigned mask, bool p, emulation::where at = emulation::where::current()) {
  return __ballot_sync(mask, p, at) != 0;
}
inline bool __all_sync(unsigned mask, bool p, emulation::where at = emulation::where::current()) {
  return __ballot_sync(mask, p, at) == mask;
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
// Rounded on their own, never fused with a neighbour.
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __uint_as_float(unsigned x) {
  return __builtin_bit_cast(float, x);
}
inline unsigned __float_as_uint(float x) {
  return __builtin_bit_cast(unsigned, x);
}
inline long long __double_as_longlong(double x) {
  return __builtin_bit_cast(long long, x);
}
inline double __longlong_as_double(long long x) {
  return __builtin_bit_cast(double, x);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}

// Atomics order memory as if fences stood around them.
inline unsigned atomicAdd(unsigned* p, unsigned x) {
  return __atomic_fetch_add(p, x, __ATOMIC_ACQ_REL);
}
inline int atomicAdd(int* p, int x) {
  return __atomic_fetch_add(p, x, __ATOMIC_ACQ_REL);
}
inline unsigned atomicExch(unsigned* p, unsigned x) {
  return __atomic_exchange_n(p, x, __ATOMIC_ACQ_REL);
}
inline unsigned atomicCAS(unsigned* p, unsigned expected, unsigned x) {
  __atomic_compare_exchange_n(p, &expected, x, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
  return expected;
}
inline float atomicAdd(float* p, float x) {
  float old, sum;
  __atomic_load(p, &old, __ATOMIC_ACQUIRE);
  do
    sum = old + x;
  while (!__atomic_compare_exchange(p, &old, &sum, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
  return old;
}
inline int atomicMax(int* p, int x) {
  int old = __atomic_load_n(p, __ATOMIC_ACQUIRE);
  while (old < x &&
         !__atomic_compare_exchange_n(p, &old, x, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
  }
  return old;
}
