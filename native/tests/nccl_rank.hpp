// A rank over the emulated NCCL, as host code is one, for the tests of it.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "nccl.h"

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(void*);
int cuMemAlloc_v2(std::uint64_t*, std::size_t);
int cuMemFree_v2(std::uint64_t);
int cuMemcpyHtoDAsync_v2(std::uint64_t, const void*, std::size_t, cudaStream_t);
int cuMemcpyDtoHAsync_v2(void*, std::uint64_t, std::size_t, cudaStream_t);
int cuStreamCreate(cudaStream_t*, unsigned);
int cuStreamDestroy_v2(cudaStream_t);
int cuStreamQuery(cudaStream_t);
int cuStreamWaitEvent(cudaStream_t, void*, unsigned);
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, cudaStream_t);
int cuEventDestroy_v2(void*);
int cuStreamSynchronize(cudaStream_t);
}

inline std::atomic<int> failures = 0;

#define EXPECT(...)                                         \
  do {                                                      \
    if (!(__VA_ARGS__)) {                                   \
      ++failures;                                           \
      std::printf("line %d: %s\n", __LINE__, #__VA_ARGS__); \
    }                                                       \
  } while (0)

inline ncclConfig_t nonblocking() {
  ncclConfig_t config{};
  config.size = sizeof config;
  config.magic = 0xcafebeef;
  config.version = 21801;
  return config;
}

inline ncclUniqueId new_id() {
  ncclUniqueId id;
  EXPECT(ncclGetUniqueId(&id) == ncclSuccess);
  return id;
}

// A rank as host code is one: a device, a stream, a communicator, memory for floats.
struct rank {
  const int number, ranks;
  void* context = nullptr;
  cudaStream_t stream = nullptr;
  ncclComm_t comm = nullptr;
  std::vector<std::uint64_t> memory;

  rank(const ncclUniqueId& id, int number, int ranks, int device) : number(number), ranks(ranks) {
    EXPECT(cuDevicePrimaryCtxRetain(&context, device) == 0 && cuCtxSetCurrent(context) == 0);
    EXPECT(cuStreamCreate(&stream, 1) == 0);
    ncclConfig_t config = nonblocking();
    EXPECT(ncclCommInitRankConfig(&comm, ranks, id, number, &config) == ncclInProgress);
    device_ = device;
  }
  rank(const rank&) = delete;
  ~rank() {
    if (comm) ncclCommAbort(comm);
    cuStreamDestroy_v2(stream);
    for (const std::uint64_t p : memory)
      cuMemFree_v2(p);
    cuDevicePrimaryCtxRelease_v2(device_);
  }

  // Polls until the communicator is no longer in progress.
  ncclResult_t settle() const {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress) {
      EXPECT(ncclCommGetAsyncError(comm, &state) == ncclSuccess);
      std::this_thread::yield();
    }
    return state;
  }

  ncclResult_t settle(ncclResult_t called) const {
    return called == ncclInProgress ? settle() : called;
  }

  float* floats(std::vector<float> values) {
    std::uint64_t p;
    EXPECT(cuMemAlloc_v2(&p, 4 * values.size()) == 0);
    EXPECT(cuMemcpyHtoDAsync_v2(p, values.data(), 4 * values.size(), stream) == 0);
    EXPECT(cuStreamSynchronize(stream) == 0);
    memory.push_back(p);
    return reinterpret_cast<float*>(p);
  }

  std::vector<float> read(const float* p, std::size_t count) const {
    std::vector<float> values(count);
    cuMemcpyDtoHAsync_v2(values.data(), reinterpret_cast<std::uint64_t>(p), 4 * count, stream);
    EXPECT(cuStreamSynchronize(stream) == 0);
    return values;
  }

  // Waits for the stream and for errors of the communicator, as host code must.
  ncclResult_t wait() const {
    ncclResult_t state = ncclSuccess;
    while (cuStreamQuery(stream) == 600 && state == ncclSuccess) {
      EXPECT(ncclCommGetAsyncError(comm, &state) == ncclSuccess);
    }
    return state;
  }

  ncclResult_t all_reduce(float* p, std::size_t count) const {
    return settle(ncclAllReduce(p, p, count, ncclFloat32, ncclSum, comm, stream));
  }

  void leave() {
    EXPECT(settle(ncclCommFinalize(comm)) == ncclSuccess);
    EXPECT(ncclCommDestroy(comm) == ncclSuccess);
    comm = nullptr;
  }

 private:
  int device_;
};

inline void on_ranks(int ranks, const std::function<void(rank&)>& body) {
  const ncclUniqueId id = new_id();
  std::vector<std::thread> threads;
  for (int number = 0; number < ranks; ++number) {
    threads.emplace_back([&, number] {
      rank r(id, number, ranks, number);
      EXPECT(r.settle() == ncclSuccess);
      body(r);
    });
  }
  for (std::thread& thread : threads)
    thread.join();
}

inline std::vector<float> filled(std::size_t count, float value) {
  return std::vector<float>(count, value);
}

// Longer than a ring, and no multiple of anything.
constexpr std::size_t long_count = 30011;
