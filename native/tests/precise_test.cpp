// attend_precise after a fast kernel, against the double reference: numbers that fp32 does not
// hold, beside rows that stay as the fast kernel left them. Argument: the number of seeds.
#include <cstdio>
#include <cstdlib>

#include "attention_case.hpp"

namespace {

const std::vector<attention_case> cases = {
    {.name = "ordinary numbers", .kv_heads = 2, .group = 3, .keys = 70},
    {.name = "large scores", .kv_heads = 2, .group = 3, .keys = 130, .query_size = 3e3f},
    {.name = "near ties of 3000", .group = 3, .keys = 70, .query_size = 375, .around_one = 1e-3f},
    {.name = "near ties of 30000", .group = 3, .keys = 70, .query_size = 4000, .around_one = 1e-4f},
    {.name = "loud rows, pages each for itself",
     .batch = 2,
     .kv_heads = 2,
     .group = 2,
     .queries = 5,
     .keys = 100,
     .page_keys = 33,
     .pages_per_split = 1,
     .causal = true,
     .ragged_keys = true,
     .loud_every = 3},
    {.name = "loud rows, pages dealt to the splits",
     .group = 2,
     .keys = 100,
     .page_keys = 15,
     .pages_per_split = 0,
     .loud_every = 2},
    {.name = "loud rows, striped, window",
     .group = 3,
     .queries = 9,
     .keys = 150,
     .block = 1,
     .ranks = 3,
     .rank = 1,
     .page_keys = 20,
     .pages_per_split = 2,
     .causal = true,
     .left = 40,
     .loud_every = 2},
    {.name = "every option, loud",
     .batch = 2,
     .kv_heads = 2,
     .group = 2,
     .queries = 6,
     .keys = 90,
     .head_dim = 19,
     .value_dim = 40,
     .page_keys = 20,
     .causal = true,
     .softcap = 5,
     .alibi = true,
     .ragged_keys = true,
     .ragged_queries = true,
     .tail_mask = 7,
     .tail_bias = 9,
     .loud_every = 2},
    {.name = "depth-first tree, loud",
     .queries = 8,
     .keys = 60,
     .depth_first = true,
     .loud_every = 1},
    {.name = "values inside keys, loud",
     .group = 5,
     .keys = 66,
     .head_dim = 120,
     .value_dim = 60,
     .values_in_keys = true,
     .loud_every = 2},
    {.name = "equal scores of a million",
     .group = 2,
     .keys = 40,
     .query_size = 1.25e5f,
     .around_one = 0},
};

// Values whose sum fp32 does not hold; f16 and 8 bits have none.
const attention_case large_values = {.name = "values near the largest",
                                     .group = 2,
                                     .keys = 80,
                                     .value_size = 6e37f,
                                     .around_one = 0};

}  // namespace

int main(int argc, char** argv) {
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 2;
  int failed = 0, passed = 0;
  auto check = [&](attention_case c, storage type, int seed) {
    c.type = type;
    for (auto& instance : kernel_instances()) {
      if (!instance.fits(c)) continue;
      const std::string error =
          case_data(c, seed).check_precise(instance, precise_kernel(type), seed);
      if (error.empty()) {
        ++passed;
      } else {
        ++failed;
        std::printf("%s, %s, seed %d: %s\n", c.name, instance.name.c_str(), seed, error.c_str());
      }
    }
  };
  for (int seed = 0; seed < seeds; ++seed) {
    for (storage type : {storage::f32, storage::f16, storage::bf16, storage::f8, storage::i8}) {
      for (auto& c : cases)
        check(c, type, seed);
      if (type == storage::f32 || type == storage::bf16) check(large_values, type, seed);
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 || passed == 0;
}
