// The emulated driver and NVRTC through their entry points, as a host calls them: the kernels'
// sources are compiled, launched, awaited; errors stick to their context until it ends.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arguments.cuh"

extern "C" {
int cuInit(unsigned);
int cuDeviceGetCount(int*);
int cuDevicePrimaryCtxRetain(void**, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(void*);
int cuMemAlloc_v2(std::uint64_t*, std::size_t);
int cuMemFree_v2(std::uint64_t);
int cuMemHostAlloc(void**, std::size_t, unsigned);
int cuMemFreeHost(void*);
int cuMemcpyHtoDAsync_v2(std::uint64_t, const void*, std::size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, std::uint64_t, std::size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamDestroy_v2(void*);
int cuStreamSynchronize(void*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, void*);
int cuEventRecordWithFlags(void*, void*, unsigned);
int cuEventElapsedTime(float*, void*, void*);
int cuEventDestroy_v2(void*);
int cuModuleLoadData(void**, const void*);
int cuModuleUnload(void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                   void*, void**, void**);
int cuGetErrorString(int, const char**);
int nvrtcCreateProgram(void**, const char*, const char*, int, const char* const*,
                       const char* const*);
int nvrtcDestroyProgram(void**);
int nvrtcAddNameExpression(void*, const char*);
int nvrtcCompileProgram(void*, int, const char* const*);
int nvrtcGetLoweredName(void*, const char*, const char**);
int nvrtcGetProgramLogSize(void*, std::size_t*);
int nvrtcGetProgramLog(void*, char*);
int nvrtcGetCUBINSize(void*, std::size_t*);
int nvrtcGetCUBIN(void*, char*);
}

namespace {

int failures = 0;

#define EXPECT(...)                                         \
  do {                                                      \
    if (!(__VA_ARGS__)) {                                   \
      ++failures;                                           \
      std::printf("line %d: %s\n", __LINE__, #__VA_ARGS__); \
    }                                                       \
  } while (0)

std::string read(const std::string& name) {
  std::ostringstream text;
  text << std::ifstream(std::string(KERNELS_FOLDER "/") + name).rdbuf();
  return text.str();
}

struct compiled {
  std::string image, name, log;
  int result;
};

compiled compile(const std::string& source, const char* expression) {
  const std::string texts[] = {read("device/primitives.cuh"), read("arguments.cuh"),
                               read("visibility.cuh"), read("tensor_tiles.cuh"), read("rows.cuh")};
  const char* const headers[] = {texts[0].c_str(), texts[1].c_str(), texts[2].c_str(),
                                 texts[3].c_str(), texts[4].c_str()};
  const char* const names[] = {"primitives.cuh", "arguments.cuh", "visibility.cuh",
                               "tensor_tiles.cuh", "rows.cuh"};
  const char* const options[] = {"--gpu-architecture=sm_90", "--std=c++17", "-DUNUSED=1"};
  void* program;
  EXPECT(nvrtcCreateProgram(&program, source.c_str(), "test.cu", 5, headers, names) == 0);
  EXPECT(nvrtcAddNameExpression(program, expression) == 0);
  compiled c;
  c.result = nvrtcCompileProgram(program, 3, options);
  std::size_t size = 0;
  nvrtcGetProgramLogSize(program, &size);
  c.log.resize(size);
  nvrtcGetProgramLog(program, c.log.data());
  const char* name = "";
  EXPECT(nvrtcGetLoweredName(program, expression, &name) == 0);
  c.name = name;
  nvrtcGetCUBINSize(program, &size);
  c.image.resize(size);
  nvrtcGetCUBIN(program, c.image.data());
  EXPECT(nvrtcDestroyProgram(&program) == 0);
  return c;
}

// A device with one stream and one kernel, as a rank has them.
struct rank {
  void *context = nullptr, *stream = nullptr, *module = nullptr, *function = nullptr;
  int device;

  rank(int device, const compiled& c) : device(device) {
    EXPECT(cuDevicePrimaryCtxRetain(&context, device) == 0);
    EXPECT(cuCtxSetCurrent(context) == 0);
    EXPECT(cuStreamCreate(&stream, 1) == 0);
    EXPECT(cuModuleLoadData(&module, c.image.data()) == 0);
    EXPECT(cuModuleGetFunction(&function, module, c.name.c_str()) == 0);
  }
  rank(const rank&) = delete;
  ~rank() {
    cuStreamDestroy_v2(stream);
    cuModuleUnload(module);
    cuDevicePrimaryCtxRelease_v2(device);
  }

  template <class arguments>
  int launch(arguments a, unsigned grid, unsigned shared = 0) {
    void* parameters[] = {&a};
    return cuLaunchKernel(function, grid, 1, 1, 128, 1, 1, shared, stream, parameters, nullptr);
  }
  std::uint64_t allocate(std::size_t bytes) {
    std::uint64_t p = 0;
    EXPECT(cuMemAlloc_v2(&p, bytes) == 0);
    return p;
  }
};

void clears_a_state(rank& r) {
  constexpr int rows = 9, dim = 70;
  std::vector<float> state(rows * (dim + 2), 5.f);
  const std::uint64_t memory = r.allocate(state.size() * 4);

  EXPECT(r.launch(clear_arguments{reinterpret_cast<float*>(memory), rows, dim}, 3) == 0);
  EXPECT(cuMemcpyDtoHAsync_v2(state.data(), memory, state.size() * 4, r.stream) == 0);
  EXPECT(state[0] == 5.f);  // streams are lazy
  EXPECT(cuStreamSynchronize(r.stream) == 0);

  EXPECT(state[0] == 0 && state[rows * dim] == -INFINITY && state.back() == 0);
  EXPECT(cuMemFree_v2(memory) == 0);
}

void attends() {
  const compiled c =
      compile(read("attend_tensor.cu"), "attend_tensor<bfloat16, 64, 64, false, 1, 64, 2>");
  EXPECT(c.result == 0);
  if (c.result != 0) {
    std::printf("%s\n", c.log.c_str());
    return;
  }
  rank r(0, c);
  // Keys of zeros weigh the same: the output is the mean of the values 1 and 3.
  std::vector<std::uint16_t> contents(4 * 64);
  for (int i = 0; i < 64; ++i)
    contents[2 * 64 + i] = 0x3f80, contents[3 * 64 + i] = 0x4040;
  const std::vector<float> query(64, 1.f);
  const page_entry page{0, 128, 0, 0, 2, 2, 2, 2};
  const std::vector<int> numbers{0, 1, 0};  // page range, query index
  std::vector<float> state(66);
  const std::uint64_t contents_memory = r.allocate(512), query_memory = r.allocate(256),
                      page_memory = r.allocate(40), numbers_memory = r.allocate(12),
                      state_memory = r.allocate(264);
  cuMemcpyHtoDAsync_v2(contents_memory, contents.data(), 512, r.stream);
  cuMemcpyHtoDAsync_v2(query_memory, query.data(), 256, r.stream);
  cuMemcpyHtoDAsync_v2(page_memory, &page, 40, r.stream);
  cuMemcpyHtoDAsync_v2(numbers_memory, numbers.data(), 12, r.stream);
  attend_arguments a{};
  a.queries = reinterpret_cast<const float*>(query_memory);
  a.contents = reinterpret_cast<const void*>(contents_memory);
  a.pages = reinterpret_cast<const page_entry*>(page_memory);
  a.page_ranges = reinterpret_cast<const int*>(numbers_memory);
  a.query_indices = a.page_ranges + 2;
  a.states = reinterpret_cast<float*>(state_memory);
  a.state_stride = 66;
  a.kv_heads = a.group = a.query_count = a.query_length = a.splits = a.pages_per_split = 1;
  a.key_length = 2;
  a.head_dim = a.value_dim = a.value_stride = 64;
  a.window_left = a.window_right = -1;
  a.scale = 1;
  const unsigned shared = 2 * (2 * 64 * 128 + 16 * 64 + 16 * 64) + 768;

  // Above 48 KiB a kernel must ask; the driver refuses the launch otherwise.
  EXPECT(r.launch(a, 1, 49 << 10) == 1);
  EXPECT(cuFuncSetAttribute(r.function, 8, 49 << 10) == 0);
  EXPECT(r.launch(a, 1, shared) == 0);
  cuMemcpyDtoHAsync_v2(state.data(), state_memory, 264, r.stream);
  EXPECT(cuStreamSynchronize(r.stream) == 0);

  EXPECT(state[0] == 2 && state[63] == 2 && state[64] == 0 && state[65] == 2);
}

void compile_errors_are_in_the_log() {
  const compiled c =
      compile("#include \"primitives.cuh\"\n__global__ void k(int x) { return y; }", "k");

  EXPECT(c.result == 6 && c.log.find("y") != std::string::npos &&
         c.log.find("test.cu:2") != std::string::npos);
}

void modules_are_kept_on_disk() {
  const std::filesystem::path folder = std::getenv("TREEATTN_EMULATION_CACHE");
  auto files = [&] {
    return std::distance(std::filesystem::directory_iterator(folder),
                         std::filesystem::directory_iterator());
  };
  const compiled first = compile(read("states.cu"), "weigh");
  const auto before = files();

  const compiled again = compile(read("states.cu"), "weigh");
  EXPECT(again.result == 0 && again.image == first.image && files() == before);
  const compiled other = compile(read("states.cu") + "\n// changed", "weigh");
  EXPECT(other.result == 0 && files() == before + 1);
  std::filesystem::remove_all(folder);
}

void images_of_another_build_are_refused(const compiled& c) {
  void *context, *module;
  EXPECT(cuDevicePrimaryCtxRetain(&context, 0) == 0 && cuCtxSetCurrent(context) == 0);
  std::string image = c.image;
  image[10] ^= 1;

  EXPECT(cuModuleLoadData(&module, image.data()) == 200);
  cuDevicePrimaryCtxRelease_v2(0);
}

// A kernel that reads past its memory's end breaks its context, not its neighbour's.
void an_error_sticks_to_its_context() {
  const compiled bad = compile(
      "#include \"primitives.cuh\"\n"
      "__global__ void k(int x) {\n  if (threadIdx.x < 64) __syncthreads();\n"
      "  else __syncwarp(1u << x);\n}",
      "k");
  EXPECT(bad.result == 0);
  const compiled good = compile(read("states.cu"), "clear_state");
  {
    rank broken(1, bad), healthy(2, good);
    cuCtxSetCurrent(broken.context);
    EXPECT(broken.launch(3, 1) == 0);
    EXPECT(cuStreamSynchronize(broken.stream) == 719);
    const char* text;
    EXPECT(cuGetErrorString(719, &text) == 0 &&
           std::string(text).find("test.cu:4") != std::string::npos);
    EXPECT(broken.launch(3, 1) == 719);
    std::uint64_t p;
    EXPECT(cuMemAlloc_v2(&p, 4) == 719);
    cuCtxSetCurrent(healthy.context);
    clears_a_state(healthy);
  }
  rank renewed(1, good);  // the last release forgot the error
  clears_a_state(renewed);
}

void writes_past_the_end_are_found(const compiled& c) {
  rank r(3, c);
  const std::uint64_t memory = r.allocate(10 * 4);
  EXPECT(r.launch(clear_arguments{reinterpret_cast<float*>(memory), 1, 9}, 1) == 0);
  EXPECT(cuMemFree_v2(memory) == 719);
}

// Work of another stream must be waited for by an event; without one the copy is early or late.
void events_order_streams(const compiled& c) {
  rank r(0, c);
  void *other, *done;
  EXPECT(cuStreamCreate(&other, 1) == 0 && cuEventCreate(&done, 0) == 0);
  std::vector<float> state(12, 7.f);
  const std::uint64_t memory = r.allocate(48);
  cuMemcpyHtoDAsync_v2(memory, state.data(), 48, r.stream);
  EXPECT(r.launch(clear_arguments{reinterpret_cast<float*>(memory), 1, 10}, 1) == 0);
  EXPECT(cuEventRecord(done, r.stream) == 0);

  EXPECT(cuStreamWaitEvent(other, done, 0) == 0);
  EXPECT(cuMemcpyDtoHAsync_v2(state.data(), memory, 48, other) == 0);
  EXPECT(cuStreamSynchronize(other) == 0);

  EXPECT(state[0] == 0 && state[10] == -INFINITY);
  EXPECT(cuEventDestroy_v2(done) == 0 && cuStreamDestroy_v2(other) == 0 &&
         cuMemFree_v2(memory) == 0);
}

// A stream, an event and a kernel belong to the context in which they were made.
void work_of_another_context_is_refused(const compiled& c) {
  rank far(5, c), near(4, c);
  void* timed = nullptr;
  EXPECT(cuEventCreate(&timed, 0) == 0);
  const clear_arguments a{reinterpret_cast<float*>(near.allocate(48)), 1, 10};

  EXPECT(cuEventRecord(timed, far.stream) == 400);
  cuCtxSetCurrent(far.context);
  EXPECT(near.launch(a, 1) == 400);
  std::swap(near.stream, far.stream);
  EXPECT(far.launch(a, 1) == 400 && near.launch(a, 1) == 400);
  cuCtxSetCurrent(near.context);
  EXPECT(near.launch(a, 1) == 400);
  std::swap(near.stream, far.stream);
  EXPECT(near.launch(a, 1) == 0 && cuStreamSynchronize(near.stream) == 0);
  EXPECT(cuEventDestroy_v2(timed) == 0);
}

void a_context_must_be_entered_and_not_released() {
  void *context = nullptr, *memory = nullptr;
  EXPECT(cuCtxSetCurrent(nullptr) == 0 && cuMemHostAlloc(&memory, 64, 1) == 201);
  EXPECT(cuDevicePrimaryCtxRetain(&context, 6) == 0 && cuCtxSetCurrent(context) == 0);
  void* const entered = context;
  EXPECT(cuMemHostAlloc(&context, 0, 1) == 1 && cuMemHostAlloc(&memory, 64, 1) == 0);
  EXPECT(cuMemFreeHost(&memory) == 1 && cuMemFreeHost(memory) == 0 && cuMemFreeHost(memory) == 1);
  EXPECT(cuDevicePrimaryCtxRelease_v2(6) == 0);
  EXPECT(cuMemHostAlloc(&memory, 64, 1) == 201 && cuCtxSetCurrent(entered) == 201);
}

void events_keep_time_only_where_they_were_made_to(const compiled& c) {
  rank r(0, c);
  void *timed, *timeless;
  float milliseconds;
  EXPECT(cuEventCreate(&timed, 0) == 0 && cuEventCreate(&timeless, 2) == 0);
  EXPECT(cuEventRecord(timed, r.stream) == 0 && cuEventRecord(timeless, r.stream) == 0);
  EXPECT(cuStreamSynchronize(r.stream) == 0);

  EXPECT(cuEventElapsedTime(&milliseconds, timed, timeless) == 400);
  EXPECT(cuEventElapsedTime(&milliseconds, timed, timed) == 0);
  EXPECT(cuEventRecordWithFlags(timed, r.stream, 1) == 1);  // external: of captures alone
  EXPECT(cuEventDestroy_v2(timed) == 0 && cuEventDestroy_v2(timeless) == 0);
}

void options_that_nvrtc_does_not_know_are_refused() {
  for (const char* option : {"--gpu-architecture=sm_100", "--gpu_architecture=sm_90", "--fast"}) {
    void* program = nullptr;
    EXPECT(nvrtcCreateProgram(&program, "", "test.cu", 0, nullptr, nullptr) == 0);
    EXPECT(nvrtcCompileProgram(program, 1, &option) == 5);
    EXPECT(nvrtcDestroyProgram(&program) == 0);
  }
}

void ranks_run_side_by_side(const compiled& c) {
  std::vector<std::thread> threads;
  for (int device = 0; device < 4; ++device) {
    threads.emplace_back([&c, device] {
      rank r(device, c);
      for (int i = 0; i < 5; ++i)
        clears_a_state(r);
    });
  }
  for (auto& thread : threads)
    thread.join();
}

}  // namespace

int main() {
  int devices = 0;
  EXPECT(cuInit(0) == 0 && cuDeviceGetCount(&devices) == 0 && devices == 8);
  const compiled clear = compile(read("states.cu"), "clear_state");
  EXPECT(clear.result == 0);
  {
    rank r(0, clear);
    clears_a_state(r);
  }
  attends();
  compile_errors_are_in_the_log();
  images_of_another_build_are_refused(clear);
  an_error_sticks_to_its_context();
  writes_past_the_end_are_found(clear);
  events_order_streams(clear);
  work_of_another_context_is_refused(clear);
  a_context_must_be_entered_and_not_released();
  events_keep_time_only_where_they_were_made_to(clear);
  options_that_nvrtc_does_not_know_are_refused();
  ranks_run_side_by_side(clear);
  modules_are_kept_on_disk();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
