// One small attention call: shape, shard and options, random data from a seed, the launch over the
// emulation, and the double-precision reference that judges it.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "arguments.cuh"
#include "emulation.hpp"

enum class storage { f32, f16, bf16, f8, i8 };

// Elements of 8 bits, which are multiplied by scales.
inline bool has_scales(storage type) {
  return type == storage::f8 || type == storage::i8;
}

inline unsigned size_of(storage type) {
  return type == storage::f32 ? 4 : has_scales(type) ? 1 : 2;
}

// The number that is stored for x, which types of 8 bits store divided by its scale.
float rounded(storage type, float x, float scale = 1);

// Appends the bytes of a stored number.
void append_element(std::vector<unsigned char>& bytes, storage type, float x, float scale);

struct attention_case {
  const char* name;
  storage type = storage::bf16;
  int batch = 1, kv_heads = 1, group = 1;
  int queries = 1;  // of the whole call
  int keys = 1;     // of the whole call, over all ranks
  int head_dim = 64, value_dim = 64;
  bool values_in_keys = false;
  // The shard: blocks of `block` keys dealt to `ranks` in turn, and this rank's; block 0: all keys.
  int block = 0, ranks = 1, rank = 0;
  int page_keys = 512, pages_per_split = 1 << 20;
  int first_query = 0, query_step = 1;  // which queries of the call: every step-th from the first
  bool causal = false;
  int left = -1, right = -1;
  int chunk = 0;  // positions of a chunk of local attention; 0: none
  float softcap = 0;
  bool alibi = false, alibi_per_batch = false;
  bool ragged_keys = false, ragged_queries = false;
  bool left_padding = false;                      // keys start anywhere in a row
  int sequences = 0;                              // packed in one batch row; 0: none
  bool depths = false, depths_per_batch = false;  // the queries are a token tree
  bool depth_first = false;
  int tail_mask = 0, tail_bias = 0;
  bool tail_bias_per_batch = false;
  double scale = 0;      // 0: 1 / sqrt(head_dim)
  float query_size = 1;  // the queries' standard deviation
  float value_size = 1;  // the values'
  int loud_every = 0;    // every so many rows of queries are 10,000 times as large; 0: none
  float around_one =
      -1;  // elements of keys and queries: 1 and so much normal noise; negative: 0, 1

  // Scores are capped or single keys have rules.
  bool has_rules() const {
    return softcap > 0 || alibi || depth_first || depths || tail_mask > 0 || tail_bias > 0;
  }
};

// A kernel that was compiled into this program.
struct kernel_instance {
  std::string name;
  storage type = storage::f32;
  bool is_tensor = false, is_prefill = false, has_rules = true;
  int head_tile = 0, value_tile = 0;
  bool values_in_keys = false;
  int row_warps = 0, tile_keys = 0, stages = 0;
  emulation::kernel code{};

  bool fits(const attention_case&) const;
  int rows() const { return is_prefill ? 128 : is_tensor ? 16 * row_warps : 16; }
  unsigned threads() const { return is_prefill && value_tile > 128 ? 256 : 128; }
  unsigned shared_bytes(const attention_case&) const;
};

std::vector<kernel_instance>& kernel_instances();
// attend_precise of a storage type, where a program has it.
const emulation::kernel& precise_kernel(storage type);

extern const emulation::kernel merge_states_kernel, fold_states_kernel, weigh_kernel,
    unweigh_kernel, clear_state_kernel;

struct instance_registration {
  explicit instance_registration(kernel_instance i) { kernel_instances().push_back(std::move(i)); }
};

// The inputs of a case, each as long as it must be and not an element more: AddressSanitizer guards
// the ends. Absent keys hold NaN.
class case_data {
 public:
  case_data(const attention_case& c, std::uint64_t seed);

  // Runs the case and folds the splits; an error of the emulation or of the result, or "".
  std::string check(const kernel_instance& instance, std::uint64_t seed,
                    emulation::counters* count = nullptr);

  // The same with attend_precise after the kernel.
  std::string check_precise(const kernel_instance& instance, const emulation::kernel& precise,
                            std::uint64_t seed);

  // The state that a run gives, splits folded; `error` says why there is none.
  std::vector<float> run(const kernel_instance& instance, std::uint64_t seed, std::string& error,
                         emulation::counters* count = nullptr,
                         const emulation::kernel* precise = nullptr);

  // The same call for one of its queries alone.
  case_data narrowed(int query) const;

  // Whether the rows of a state of this call and of a narrowed one have the same bits.
  bool has_rows_of(const std::vector<float>& whole, const std::vector<float>& one, int query) const;

 private:
  struct expected_row {
    std::vector<double> output;
    double max, sum;
  };

  // What causal, window, ALiBi and the tail count from, and which keys are the query's.
  struct standing {
    int first, end, position, sequence;
  };

  void make_options();
  void make_places();
  void make_scales();
  float scale_of(bool value, int kv_head) const {
    return scales.empty() ? 1 : scales[(value ? c.kv_heads : 0) + kv_head];
  }
  void make_shard();
  void make_limits();
  attend_arguments arguments(std::vector<float>& states, int splits) const;
  std::string run_precise(const emulation::kernel& kernel, const attend_arguments& a,
                          std::uint64_t seed) const;
  expected_row expect(int batch, int head, int query, bool is_rounded) const;
  double score(int batch, int head, int index, int position, const std::vector<float>& q) const;
  standing stands(int batch, int index) const;
  int depth_of(int batch, int index) const;
  int position_of_key(int batch, int j) const;
  bool keeps(int batch, int index, int position) const;
  float element(const std::vector<float>& of, int batch, int position, int kv_head, int dim,
                int width) const;
  std::string compare(const kernel_instance& instance, const std::vector<float>& state) const;
  int key_length(int b) const { return c.ragged_keys ? key_lengths[b] : c.keys; }
  int query_length(int b) const { return c.ragged_queries ? query_lengths[b] : c.queries; }

  attention_case c;
  std::mt19937 random;
  std::vector<float> queries, keys, values;  // keys [batch, keys, kv_heads, dim], rounded
  std::vector<unsigned char> contents;
  std::vector<float> scales;  // [2, kv_heads] of keys, then values; empty: 1
  std::vector<page_entry> pages;
  std::vector<page_limits> limits;  // [pages, kv_heads]
  std::vector<int> page_ranges, query_indices, key_lengths, query_lengths, dfs_start, dfs_end;
  std::vector<int> dfs_peaks, key_starts, query_depths, sequence_queries, sequence_keys;
  std::vector<query_place> places;
  std::vector<int> positions;  // of the shard
  std::vector<float> slopes, tail_bias;
  std::vector<unsigned char> tail_mask;
  float largest_value = 0;
};
