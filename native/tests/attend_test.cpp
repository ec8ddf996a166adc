// Attention kernels against the double reference, over awkward shapes and all options. Arguments:
// the number of seeds, and "grid" for the full grid.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "attention_case.hpp"

namespace {

// Named by what is awkward about them; the type is set by the instance that runs them.
const std::vector<attention_case> cases = {
    {.name = "one key", .keys = 1},
    {.name = "one key more than a tile", .kv_heads = 2, .group = 3, .keys = 65},
    {.name = "sixteen rows, whole tiles", .group = 16, .keys = 128},
    {.name = "rows past a tile", .group = 5, .queries = 7, .keys = 70, .causal = true},
    {.name = "pages of odd sizes",
     .batch = 2,
     .group = 2,
     .keys = 100,
     .page_keys = 33,
     .pages_per_split = 1},
    {.name = "more splits than keys", .keys = 3, .page_keys = 1, .pages_per_split = 1},
    {.name = "pages share splits", .group = 4, .keys = 200, .page_keys = 30, .pages_per_split = 3},
    {.name = "pages are dealt to the splits",
     .batch = 2,
     .kv_heads = 2,
     .keys = 200,
     .page_keys = 30,
     .pages_per_split = 0},
    {.name = "striped keys, causal",
     .group = 2,
     .queries = 9,
     .keys = 150,
     .block = 1,
     .ranks = 3,
     .rank = 2,
     .page_keys = 40,
     .causal = true},
    {.name = "blocks of 16 keys, causal",
     .queries = 20,
     .keys = 170,
     .block = 16,
     .ranks = 2,
     .rank = 1,
     .page_keys = 64,
     .causal = true},
    {.name = "more queries than keys", .group = 2, .queries = 30, .keys = 12, .causal = true},
    {.name = "window", .queries = 12, .keys = 140, .page_keys = 24, .causal = true, .left = 20},
    {.name = "window on both sides",
     .queries = 6,
     .keys = 90,
     .page_keys = 16,
     .left = 3,
     .right = 5},
    {.name = "window before the keys", .queries = 40, .keys = 10, .left = 2, .right = 0},
    {.name = "ragged keys",
     .batch = 3,
     .group = 2,
     .queries = 3,
     .keys = 80,
     .page_keys = 32,
     .causal = true,
     .ragged_keys = true},
    {.name = "ragged queries",
     .batch = 4,
     .group = 2,
     .queries = 5,
     .keys = 60,
     .causal = true,
     .ragged_keys = true,
     .ragged_queries = true},
    {.name = "softcap", .group = 4, .keys = 75, .softcap = 2.5f, .query_size = 3},
    {.name = "ALiBi", .group = 4, .queries = 3, .keys = 77, .causal = true, .alibi = true},
    {.name = "ALiBi of each row, no mask",
     .batch = 2,
     .group = 2,
     .queries = 4,
     .keys = 50,
     .alibi = true,
     .alibi_per_batch = true,
     .ragged_keys = true},
    {.name = "depth-first tree",
     .batch = 2,
     .queries = 8,
     .keys = 60,
     .page_keys = 25,
     .depth_first = true},
    {.name = "tail mask",
     .batch = 2,
     .group = 2,
     .queries = 7,
     .keys = 71,
     .page_keys = 32,
     .tail_mask = 7},
    {.name = "tail mask longer than the keys",
     .batch = 3,
     .queries = 4,
     .keys = 9,
     .ragged_keys = true,
     .tail_mask = 20},
    {.name = "tail bias", .queries = 6, .keys = 66, .tail_bias = 9},
    {.name = "tail bias of each row, striped",
     .batch = 2,
     .queries = 6,
     .keys = 66,
     .block = 1,
     .ranks = 2,
     .tail_bias = 9,
     .tail_bias_per_batch = true},
    {.name = "every option",
     .batch = 2,
     .kv_heads = 2,
     .group = 2,
     .queries = 10,
     .keys = 90,
     .block = 4,
     .ranks = 2,
     .rank = 1,
     .page_keys = 20,
     .pages_per_split = 2,
     .causal = true,
     .left = 60,
     .softcap = 5,
     .alibi = true,
     .ragged_keys = true,
     .ragged_queries = true,
     .tail_mask = 10,
     .tail_bias = 12},
    {.name = "some of the queries",
     .group = 2,
     .queries = 40,
     .keys = 64,
     .first_query = 3,
     .query_step = 5,
     .causal = true},
    {.name = "rows that are not multiples of 16 bytes",
     .kv_heads = 2,
     .group = 2,
     .keys = 70,
     .head_dim = 19,
     .value_dim = 7},
    {.name = "narrow heads", .group = 4, .keys = 40, .head_dim = 16, .value_dim = 8},
    {.name = "one dimension", .keys = 20, .head_dim = 1, .value_dim = 1},
    {.name = "odd keys, even values", .keys = 33, .head_dim = 33, .value_dim = 40},
    {.name = "scale of its own", .group = 2, .keys = 40, .scale = 0.37},
    {.name = "large queries", .group = 2, .keys = 40, .scale = 1e-6, .query_size = 3e5f},
    {.name = "small queries", .group = 2, .keys = 40, .scale = 1e5, .query_size = 1e-7f},
    {.name = "head of 128", .group = 8, .keys = 150, .head_dim = 128, .value_dim = 128},
    {.name = "prefill of 128",
     .group = 2,
     .queries = 70,
     .keys = 70,
     .head_dim = 128,
     .value_dim = 128,
     .causal = true},
    {.name = "head of 96, values of 64",
     .group = 3,
     .keys = 90,
     .head_dim = 96,
     .value_dim = 64,
     .page_keys = 50},
    {.name = "head of 64, values of 100", .group = 3, .keys = 90, .head_dim = 64, .value_dim = 100},
    {.name = "head of 200",
     .group = 5,
     .queries = 9,
     .keys = 80,
     .head_dim = 200,
     .value_dim = 256,
     .causal = true},
    {.name = "head of 256, values of 128",
     .group = 2,
     .keys = 70,
     .head_dim = 256,
     .value_dim = 128},
    {.name = "MLA",
     .group = 16,
     .keys = 70,
     .head_dim = 576,
     .value_dim = 512,
     .values_in_keys = true},
    {.name = "MLA of odd size",
     .group = 3,
     .queries = 2,
     .keys = 45,
     .head_dim = 301,
     .value_dim = 290,
     .values_in_keys = true,
     .causal = true},
    {.name = "head of 576 with values of its own",
     .group = 2,
     .keys = 40,
     .head_dim = 576,
     .value_dim = 576},
    {.name = "values inside narrow keys",
     .group = 3,
     .keys = 80,
     .head_dim = 120,
     .value_dim = 60,
     .values_in_keys = true},
};

// Shapes crossed with each other: the nightly grid.
std::vector<attention_case> grid() {
  std::vector<attention_case> all;
  for (int dim : {8, 40, 64, 80, 128, 192, 256, 576}) {
    for (int keys : {1, 31, 64, 65, 129, 257}) {
      for (int queries : {1, 3, 20}) {
        for (int group : {1, 5}) {
          for (int variant = 0; variant < 4; ++variant) {
            attention_case c{.name = "grid"};
            c.group = group;
            c.queries = queries;
            c.keys = keys;
            c.head_dim = dim;
            c.value_dim = variant == 3 ? std::max(1, dim / 2) : dim;
            c.values_in_keys = variant == 3;
            c.causal = variant >= 1;
            c.left = variant == 2 ? 40 : -1;
            c.block = variant == 2 ? 1 : 0;
            c.ranks = variant == 2 ? 2 : 1;
            c.page_keys = variant == 0 ? 512 : 48;
            c.pages_per_split = 1 + variant;
            all.push_back(c);
          }
        }
      }
    }
  }
  return all;
}

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

const std::vector<attention_case> row_cases = {
    {.name = "rows alone, window",
     .group = 3,
     .queries = 21,
     .keys = 190,
     .page_keys = 70,
     .causal = true,
     .left = 30},
    {.name = "rows alone, striped pages each for itself",
     .batch = 2,
     .group = 2,
     .queries = 16,
     .keys = 210,
     .block = 1,
     .ranks = 2,
     .rank = 1,
     .page_keys = 50,
     .pages_per_split = 1,
     .causal = true,
     .ragged_keys = true},
};

}  // namespace

int main(int argc, char** argv) {
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 2;
  const bool is_grid = argc > 2 && !std::strcmp(argv[2], "grid");
  const bool needs_all = argc > 2 && !std::strcmp(argv[2], "all");
  int failed = 0, passed = 0;
  emulation::counters count;
  const auto start = std::chrono::steady_clock::now();
  for (attention_case c : is_grid ? grid() : cases) {
    bool has_run = false;
    for (int seed = 0; seed < seeds; ++seed) {
      for (auto& instance : kernel_instances()) {
        c.type = instance.type;
        if (!instance.fits(c)) continue;
        has_run = true;
        const std::string error = case_data(c, seed).check(instance, seed, &count);
        if (error.empty()) {
          ++passed;
        } else if (++failed <= 20) {
          std::printf("%s, %s, seed %d: %s\n", c.name, instance.name.c_str(), seed, error.c_str());
        }
      }
    }
    if (needs_all && !has_run) {
      std::printf("%s: no instance fits\n", c.name);
      ++failed;
    }
  }
  for (attention_case c : row_cases) {
    for (auto& instance : kernel_instances()) {
      c.type = instance.type;
      if (!instance.fits(c)) continue;
      const std::string error = compare_with_single_queries(c, instance, 5);
      if (error.empty()) {
        ++passed;
      } else {
        ++failed;
        std::printf("%s, %s: %s\n", c.name, instance.name.c_str(), error.c_str());
      }
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%d passed, %d failed in %.1f s; %llu copies, %llu matrix loads, %llu conflicts\n",
              passed, failed, seconds.count(), (unsigned long long)count.copies,
              (unsigned long long)count.matrix_loads, (unsigned long long)count.bank_conflicts);
  // The swizzle of every tile must leave no conflict: a right result alone does not show it.
  return failed > 0 || passed == 0 || count.bank_conflicts > 0;
}
