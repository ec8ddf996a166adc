// Attention kernels against the double reference, over awkward shapes and all options. Arguments:
// the number of seeds, and "grid" for the full grid.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "attend_cases.hpp"

namespace {

// A row's bits depend on its query, its keys and the split alone: calls of one query each give what
// the call of all gives.
std::string compare_with_single_queries(const attention_case& c, const kernel_instance& instance,
                                        std::uint64_t seed) {
  case_data all(c, seed);
  std::string error;
  const std::vector<float> whole = all.run(instance, seed, error);
  for (int query = 0; query < c.queries && error.empty(); query += 5) {
    const std::vector<float> one = all.narrowed(query).run(instance, seed + 1, error);
    if (error.empty() && !all.has_rows_of(whole, one, query)) {
      error = "query " + std::to_string(query) + " has other bits alone";
    }
  }
  return error;
}

// What attend_prefill moves for 256 queries over 256 keys under a causal mask, counted by hand:
// each block copies the tiles up to its last row, each warp loads those up to its own. Of the bytes
// from shared memory a multiply takes 160, of which 128 are keys and values: half of
// attend_tensor's 256.
std::string check_reads(const kernel_instance& instance) {
  const int head = instance.head_tile, value = instance.value_tile, tile = instance.tile_keys;
  const int warps = int(instance.threads()) / 32, warp_rows = 128 / warps;
  attention_case c{
      .name = "reads", .type = instance.type, .queries = 256, .keys = 256, .causal = true};
  c.head_dim = head;
  c.value_dim = value;
  emulation::counters count;
  case_data data(c, 3);
  std::string error;
  data.run(instance, 3, error, &count);
  std::uint64_t copies = 0, warp_tiles = 0;
  for (int last_row = warp_rows - 1; last_row < 256; last_row += warp_rows) {
    warp_tiles += last_row / tile + 1;
    if (last_row % 128 == 127) copies += (last_row + 1) * (head + value) * size_of(c.type) / 16;
  }
  const int steps = tile / 16 * value / 16 + tile / 16 * head / 16;  // of 16 by 16 keys or values
  const std::uint64_t loads = warp_tiles * 4 * (steps + head / 16 * warp_rows / 16);
  const std::uint64_t multiplies = warp_tiles * steps * 2 * warp_rows / 16;
  if (count.copies != copies) {
    error = std::to_string(count.copies) + " copies instead of " + std::to_string(copies);
  } else if (count.matrix_loads != loads) {
    error =
        std::to_string(count.matrix_loads) + " matrix loads instead of " + std::to_string(loads);
  } else if (head == value && tile == 64 && warps == 4 && 128 * loads > 160 * multiplies) {
    error = "more than 160 bytes a multiply";
  }
  return error;
}

}  // namespace

int main(int argc, char** argv) {
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 2;
  const bool is_grid = argc > 2 && !std::strcmp(argv[2], "grid");
  const bool needs_all = argc > 2 && !std::strcmp(argv[2], "all");
  int failed = 0, passed = 0;
  emulation::counters count;
  const auto start = std::chrono::steady_clock::now();
  auto note = [&](const char* name, const kernel_instance& instance, const std::string& error) {
    if (error.empty()) {
      ++passed;
    } else if (++failed <= 20) {
      std::printf("%s, %s: %s\n", name, instance.name.c_str(), error.c_str());
    }
  };
  auto check_all = [&](const std::vector<attention_case>& cases, int least_rows) {
    for (attention_case c : cases) {
      bool has_run = false;
      for (auto& instance : kernel_instances()) {
        c.type = instance.type;
        if (!instance.fits(c) || instance.rows() < least_rows) continue;
        has_run = true;
        for (int seed = 0; seed < seeds; ++seed)
          note(c.name, instance, case_data(c, seed).check(instance, seed, &count));
      }
      if (needs_all && !has_run) {
        std::printf("%s: no instance fits\n", c.name);
        ++failed;
      }
    }
  };
  for (auto& instance : kernel_instances()) {
    // Bytes are those of 16-bit elements.
    if (instance.is_prefill && !has_scales(instance.type))
      note("reads", instance, check_reads(instance));
  }
  check_all(is_grid ? grid() : attend_cases, 0);
  if (!is_grid) check_all(prefill_cases, 64);
  for (auto& instance : kernel_instances()) {
    for (attention_case c : row_cases) {
      c.type = instance.type;
      if (instance.fits(c)) note(c.name, instance, compare_with_single_queries(c, instance, 5));
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%d passed, %d failed in %.1f s; %llu copies, %llu matrix loads, %llu conflicts\n",
              passed, failed, seconds.count(), (unsigned long long)count.copies,
              (unsigned long long)count.matrix_loads, (unsigned long long)count.bank_conflicts);
  // The swizzle of every tile must leave no conflict: a right result alone does not show it.
  return failed > 0 || passed == 0 || count.bank_conflicts > 0;
}
