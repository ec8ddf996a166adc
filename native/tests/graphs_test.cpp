// Captures, graphs and planted faults of the emulated driver through its entry points: what is
// recorded is done by each launch, what a capture forbids is refused by the driver's codes.
#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuCtxSynchronize();
int cuMemAlloc_v2(std::uint64_t*, std::size_t);
int cuMemcpyHtoDAsync_v2(std::uint64_t, const void*, std::size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, std::uint64_t, std::size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamSynchronize(void*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, void*);
int cuGraphDestroy(void*);
int cuGraphExecDestroy(void*);
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, void*);
int cuEventRecordWithFlags(void*, void*, unsigned);
int cuEventQuery(void*);
int cuEventSynchronize(void*);
int cuMemFreeHost(void*);
int cuEventElapsedTime(float*, void*, void*);
int emulation_plant_fault(int, int, int);
}

namespace {

constexpr int thread_mode = 1;
int failures = 0;

#define EXPECT(...)                                         \
  do {                                                      \
    if (!(__VA_ARGS__)) {                                   \
      ++failures;                                           \
      std::printf("line %d: %s\n", __LINE__, #__VA_ARGS__); \
    }                                                       \
  } while (0)

void* make_stream() {
  void* s = nullptr;
  EXPECT(cuStreamCreate(&s, 1) == 0);
  return s;
}

void* make_event() {
  void* e = nullptr;
  EXPECT(cuEventCreate(&e, 0) == 0);
  return e;
}

void each_launch_does_what_was_recorded(std::uint64_t memory) {
  void *const s = make_stream(), *graph = nullptr, *ready = nullptr;
  int source = 1, target = 0;
  EXPECT(cuStreamBeginCapture_v2(s, thread_mode) == 0);
  EXPECT(cuMemcpyHtoDAsync_v2(memory, &source, 4, s) == 0);
  EXPECT(cuMemcpyDtoHAsync_v2(&target, memory, 4, s) == 0);
  EXPECT(cuStreamEndCapture(s, &graph) == 0 && graph);
  EXPECT(cuGraphInstantiateWithFlags(&ready, graph, 0) == 0);
  EXPECT(cuGraphDestroy(graph) == 0);
  EXPECT(cuStreamSynchronize(s) == 0 && target == 0);  // recorded, not done

  for (source = 5; source < 7; ++source) {
    EXPECT(cuGraphLaunch(ready, s) == 0);
    EXPECT(cuStreamSynchronize(s) == 0 && target == source);
  }
  EXPECT(cuGraphExecDestroy(ready) == 0);
}

// Returns the code of the refusal; the capture must be lost by it.
template <class call>
int refused(call forbidden) {
  void *const s = make_stream(), *graph = nullptr;
  EXPECT(cuStreamBeginCapture_v2(s, thread_mode) == 0);
  const int code = forbidden(s);
  EXPECT(cuStreamEndCapture(s, &graph) == 901 && !graph);
  EXPECT(cuStreamSynchronize(s) == 0);
  return code;
}

void what_a_capture_forbids_is_refused(std::uint64_t memory) {
  std::uint64_t p = 0;
  int number = 0;
  void* const before = make_event();
  EXPECT(cuEventRecord(before, make_stream()) == 0);

  EXPECT(refused([](void* s) { return cuStreamSynchronize(s); }) == 900);
  EXPECT(refused([](void*) { return cuCtxSynchronize(); }) == 900);
  EXPECT(refused([&](void*) { return cuMemAlloc_v2(&p, 64); }) == 900);
  EXPECT(refused([&](void*) { return cuEventQuery(before); }) == 900);
  EXPECT(refused([&](void*) { return cuMemFreeHost(&number); }) == 900);
  EXPECT(refused([&](void*) { return cuMemcpyHtoDAsync_v2(memory, &number, 4, nullptr); }) == 906);
  EXPECT(refused([&](void* s) { return cuStreamWaitEvent(s, before, 0); }) == 905);
  EXPECT(cuMemAlloc_v2(&p, 64) == 0);  // nothing captures any more
}

void other_streams_join_by_events_and_must_come_back(std::uint64_t memory) {
  void *const s = make_stream(), *const side = make_stream(), *const fork = make_event(),
              *const join = make_event();
  void *graph = nullptr, *ready = nullptr;
  int source = 3, target = 0;
  for (const bool comes_back : {false, true}) {
    EXPECT(cuStreamBeginCapture_v2(s, thread_mode) == 0);
    EXPECT(cuEventRecord(fork, s) == 0);
    EXPECT(cuStreamWaitEvent(side, fork, 0) == 0);
    EXPECT(cuMemcpyHtoDAsync_v2(memory, &source, 4, side) == 0);
    EXPECT(cuEventRecord(join, side) == 0);
    EXPECT(cuEventSynchronize(join) == 907);
    if (comes_back) EXPECT(cuStreamWaitEvent(s, join, 0) == 0);
    EXPECT(cuMemcpyDtoHAsync_v2(&target, memory, 4, s) == 0);
    EXPECT(cuStreamEndCapture(s, &graph) == (comes_back ? 0 : 904));
  }
  EXPECT(cuGraphInstantiateWithFlags(&ready, graph, 0) == 0);
  EXPECT(cuGraphLaunch(ready, s) == 0 && cuStreamSynchronize(s) == 0 && target == 3);
}

void external_events_are_recorded_by_each_launch() {
  void *const s = make_stream(), *const first = make_event(), *const last = make_event();
  void *graph = nullptr, *ready = nullptr;
  float milliseconds = -1;
  EXPECT(cuStreamBeginCapture_v2(s, thread_mode) == 0);
  EXPECT(cuEventRecordWithFlags(first, s, 1) == 0 && cuEventRecordWithFlags(last, s, 1) == 0);
  EXPECT(cuStreamEndCapture(s, &graph) == 0);
  EXPECT(cuGraphInstantiateWithFlags(&ready, graph, 0) == 0);
  EXPECT(cuEventElapsedTime(&milliseconds, first, last) == 400);  // never recorded
  EXPECT(cuGraphLaunch(ready, s) == 0);
  EXPECT(cuEventElapsedTime(&milliseconds, first, last) == 600);  // not yet passed
  EXPECT(cuStreamSynchronize(s) == 0);
  EXPECT(cuEventElapsedTime(&milliseconds, first, last) == 0 && milliseconds >= 0);
}

void a_planted_fault_sticks(std::uint64_t memory) {
  void* const s = make_stream();
  const int number = 0;
  EXPECT(emulation_plant_fault(0, 1, 700) == 0);
  EXPECT(cuMemcpyHtoDAsync_v2(memory, &number, 4, s) == 0 && cuStreamSynchronize(s) == 0);
  EXPECT(cuMemcpyHtoDAsync_v2(memory, &number, 4, s) == 0 && cuStreamSynchronize(s) == 700);
  EXPECT(cuMemcpyHtoDAsync_v2(memory, &number, 4, s) == 700);
}

}  // namespace

int main() {
  void* context = nullptr;
  std::uint64_t memory = 0;
  EXPECT(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0);
  EXPECT(cuCtxSetCurrent(context) == 0 && cuMemAlloc_v2(&memory, 64) == 0);
  each_launch_does_what_was_recorded(memory);
  what_a_capture_forbids_is_refused(memory);
  other_streams_join_by_events_and_must_come_back(memory);
  external_events_are_recorded_by_each_launch();
  a_planted_fault_sticks(memory);
  std::printf("%d failed\n", failures);
  return failures > 0;
}
