// The scheduler behind emulation.hpp. Built without sanitizers: AddressSanitizer
// and ThreadSanitizer see the kernels' own accesses, and learn of fibers and of
// barriers through the hooks in fibers.hpp.
#include "emulation.hpp"

#include <numeric>

#include "block_run.hpp"

constinit thread_local uint3 threadIdx{}, blockIdx{};
constinit thread_local dim3 blockDim{}, gridDim{};

namespace emulation {

std::string launch(const kernel& k, const launch_shape& shape, void** arguments, counters* count) {
  counters unused;
  block_run run(k, shape, arguments, count ? *count : unused);
  running = &run;
  blockDim = shape.block, gridDim = shape.grid;
  const std::uint64_t blocks = std::uint64_t(shape.grid.x) * shape.grid.y * shape.grid.z;
  // In shuffled order: a random start, and a stride prime to the number of blocks.
  std::mt19937_64 random(shape.seed);
  const std::uint64_t start = shape.seed ? random() % blocks : 0;
  std::uint64_t stride = 1;
  if (shape.seed) do
      stride = random() % blocks + 1;
    while (std::gcd(stride, blocks) != 1);
  try {
    for (std::uint64_t i = 0, b = start; i < blocks; ++i, b = (b + stride) % blocks) {
      blockIdx = {unsigned(b % shape.grid.x), unsigned(b / shape.grid.x % shape.grid.y),
                  unsigned(b / shape.grid.x / shape.grid.y)};
      run.run();
    }
  } catch (const failure& f) {
    return f.message;
  }
  return "";
}

void fail(const char* message, where at) {
  running->fail(message, at);
}
void block_barrier(where at) {
  running->block_barrier(at);
}
void warp_barrier(unsigned mask, where at) {
  running->exchange(mask, "__syncwarp", {}, true, at);
}
const payload* exchange(unsigned mask, const char* operation, const payload& mine, where at) {
  return running->exchange(mask, operation, mine, false, at);
}
unsigned lane() {
  return running->current().lane;
}
void yield() {
  running->yield();
}
void* shared_memory() {
  return running->shared();
}

void check_shared(const void* p, std::size_t bytes, std::size_t alignment, const char* operation,
                  where at) {
  const auto offset = static_cast<const unsigned char*>(p) - running->shared();
  if (offset < 0 || offset + bytes > running->shape().shared_bytes)
    running->fail(std::string(operation) + " outside of shared memory", at);
  if (offset % alignment)
    running->fail(std::string(operation) + " at an address that is not a multiple of " +
                      std::to_string(alignment),
                  at);
}

void count_matrix_load(const payload* rows) {
  if (lane()) return;
  auto& c = running->count();
  for (unsigned m = 0; m < 4; ++m) {
    std::set<std::uint64_t> banks[8];  // groups of four banks: one row's 16 bytes
    std::size_t passes = 1;
    for (unsigned i = 0; i < 8; ++i) {
      auto& bank = banks[rows[m * 8 + i].word[0] / 16 % 8];
      bank.insert(rows[m * 8 + i].word[0]);
      passes = max(passes, bank.size());
    }
    ++c.matrix_loads, c.bank_conflicts += passes - 1;
  }
}

void copy_started(void* to, const void* from, bool valid) {
  ++running->count().copies;
  running->current().copies.push_back({to, from, valid}), ++running->current().uncommitted;
}
void copies_committed() {
  fiber& f = running->current();
  f.groups.push_back(f.uncommitted), f.uncommitted = 0;
}
bool next_finished_copy(int pending_groups, void*& to, const void*& from, bool& valid) {
  fiber& f = running->current();
  while (f.groups.size() > std::size_t(pending_groups)) {
    if (f.groups.front() == 0) {
      f.groups.pop_front();
      continue;
    }
    --f.groups.front();
    to = f.copies.front().to, from = f.copies.front().from, valid = f.copies.front().valid;
    f.copies.pop_front();
    return true;
  }
  return false;
}

}  // namespace emulation
