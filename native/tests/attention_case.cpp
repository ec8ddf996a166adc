#include "attention_case.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "primitives.cuh"

std::vector<kernel_instance>& kernel_instances() {
  static std::vector<kernel_instance> instances;
  return instances;
}

namespace {

bool is_tight(int tile, int dim, int smallest) {
  const int before = tile == 576 ? 256 : tile / 2;
  return tile >= dim && (tile == smallest || before < dim);
}

}  // namespace

bool kernel_instance::fits(const attention_case& c) const {
  if (type != c.type) return false;
  if (!is_tensor) return value_tile >= c.value_dim && value_tile - 128 < c.value_dim;
  // Prefill loads values from their own place, wherever that is.
  return (is_prefill || values_in_keys == c.values_in_keys) && (has_rules || !c.has_rules()) &&
         is_tight(head_tile, c.head_dim, 64) && is_tight(value_tile, c.value_dim, 64);
}

unsigned kernel_instance::shared_bytes(const attention_case& c) const {
  if (!is_tensor) return 4 * (16 * c.head_dim + 32 * 65 + 16 * 32) + 128;
  const int tile = tile_keys * (head_tile + (values_in_keys ? 0 : value_tile));
  if (is_prefill) return 2 * rows() * head_tile + size_of(type) * tile + 24 * rows() + 512;
  return size_of(type) * stages * tile + 2 * (rows() * head_tile + rows() * tile_keys) + 768;
}

case_data::case_data(const attention_case& chosen, std::uint64_t seed)
    : c(chosen), random(unsigned(seed * 7919 + 17)) {
  std::normal_distribution<float> normal;
  for (int i = c.first_query; i < c.queries; i += c.query_step)
    query_indices.push_back(i);
  make_options();
  make_scales();
  queries.resize(std::size_t(c.batch) * c.kv_heads * c.group * query_indices.size() * c.head_dim);
  for (auto& x : queries)
    x = (c.around_one < 0 ? normal(random) : 1 + c.around_one * normal(random)) * c.query_size;
  for (std::size_t row = 0; c.loud_every > 0 && row < queries.size() / c.head_dim;
       row += c.loud_every) {
    for (int d = 0; d < c.head_dim; ++d)
      queries[row * c.head_dim + d] *= 1e4f;
  }
  keys.resize(std::size_t(c.batch) * c.keys * c.kv_heads * c.head_dim);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const float x = c.around_one < 0 ? normal(random) : 1 + c.around_one * normal(random);
    keys[i] = rounded(c.type, x, scale_of(false, int(i / c.head_dim % c.kv_heads)));
  }
  values.resize(std::size_t(c.batch) * c.keys * c.kv_heads * c.value_dim);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float scale = scale_of(true, int(i / c.value_dim % c.kv_heads));
    values[i] = c.values_in_keys ? keys[i / c.value_dim * c.head_dim + i % c.value_dim]
                                 : rounded(c.type, normal(random) * c.value_size, scale);
    largest_value = std::max(largest_value, std::abs(values[i]));
  }
  make_shard();
  make_limits();
}

void case_data::make_options() {
  auto below = [&](int end) { return int(random() % unsigned(end)); };
  const int heads = c.kv_heads * c.group;
  for (int b = 0; b < c.batch; ++b) {
    // The first row is whole, another may be empty.
    key_lengths.push_back(b == 0 ? c.keys : below(c.keys + 1));
    query_lengths.push_back(b == 0 ? c.queries : below(c.queries + 1));
  }
  make_places();
  if (c.alibi) {
    slopes.resize(c.alibi_per_batch ? std::max(c.batch, c.sequences) * heads : heads);
    for (auto& x : slopes)
      x = 0.01f * float(1 + below(30));
  }
  if (c.depth_first) {
    for (int n = 0; n < c.batch * c.queries; ++n)
      dfs_start.push_back(below(8));
    // Of each three blocks of 64 keys one is hidden from every row, whole.
    for (int n = 0; n < c.batch * c.keys; ++n)
      dfs_end.push_back(n % c.keys / 64 % 3 == 1 ? -1 - below(3) : below(12));
    for (int n = 0; n < c.batch * c.keys; ++n) {
      if (n % c.keys % 64 == 0) dfs_peaks.push_back(dfs_end[n]);
      dfs_peaks.back() = std::max(dfs_peaks.back(), dfs_end[n]);
    }
  }
  tail_mask.resize(std::size_t(c.batch) * c.queries * c.tail_mask);
  for (auto& x : tail_mask)
    x = below(3) > 0;
  tail_bias.resize(std::size_t(c.tail_bias_per_batch ? c.batch : 1) * c.queries * c.tail_bias);
  for (auto& x : tail_bias)
    x = below(5) == 0 ? -INFINITY : 0.1f * float(below(40) - 20);
}

// Where queries stand among the keys, beside lengths.
void case_data::make_places() {
  auto below = [&](int end) { return int(random() % unsigned(end)); };
  for (int b = 0; c.left_padding && b < c.batch; ++b)
    key_starts.push_back(below(key_length(b) + 1));
  // A query's parent in the token tree is any before it.
  for (int b = 0; c.depths && b < (c.depths_per_batch ? c.batch : 1); ++b) {
    const std::size_t root = query_depths.size();
    for (int i = 0; i < c.queries; ++i)
      query_depths.push_back(i == 0 ? 0 : query_depths[root + below(i)] + 1);
  }
  // Bounds of packed sequences, some of them empty.
  auto cut = [&](int total) {
    std::vector<int> bounds = {0, total};
    for (int s = 1; s < c.sequences; ++s)
      bounds.push_back(below(total + 1));
    std::sort(bounds.begin(), bounds.end());
    return bounds;
  };
  if (c.sequences == 0) return;
  sequence_queries = cut(c.queries);
  sequence_keys = cut(c.keys);
  for (int s = 0; s < c.sequences; ++s) {
    for (int i = sequence_queries[s]; i < sequence_queries[s + 1]; ++i)
      places.push_back({sequence_keys[s], sequence_keys[s + 1],
                        sequence_keys[s + 1] - sequence_queries[s + 1] + i, s});
  }
}

// Scales of few digits, so that no number of the reference is rounded; heads do not share one.
void case_data::make_scales() {
  for (int i = 0; has_scales(c.type) && i < 2 * c.kv_heads; ++i)
    scales.push_back(c.values_in_keys && i >= c.kv_heads
                         ? scales[i - c.kv_heads]
                         : float(3 + 2 * (i % 3)) / (c.type == storage::i8 ? 128 : 16));
}

void case_data::make_shard() {
  const int block = c.block == 0 ? std::max(1, c.keys) : c.block;
  const int stride = c.block == 0 ? block : c.block * c.ranks, first = c.rank * c.block;
  for (int p = first; p < c.keys;
       p = (p - first) % stride == block - 1 ? p + stride - block + 1 : p + 1) {
    positions.push_back(p);
  }
  const int count = int(positions.size());
  const int bytes = int(size_of(c.type));
  std::vector<unsigned char> value_contents;
  auto store = [&](std::vector<unsigned char>& into, const std::vector<float>& from, int b, int h,
                   int offset, int size, int capacity, int width) {
    for (int n = 0; n < capacity; ++n) {
      const bool is_absent = n >= size || positions[offset + n] >= key_length(b) ||
                             (c.left_padding && positions[offset + n] < key_starts[b]);
      for (int d = 0; d < width; ++d) {
        const float x = is_absent ? NAN : element(from, b, positions[offset + n], h, d, width);
        append_element(into, c.type, x, scale_of(&from == &values, h));
      }
    }
  };
  for (int b = 0; b < c.batch; ++b) {
    page_ranges.push_back(int(pages.size()));
    for (int offset = 0; offset < count; offset += c.page_keys) {
      const int size = std::min(c.page_keys, count - offset);
      const int capacity = size + (b + 1 < c.batch ? 3 : 0);  // a cache's pages have room
      pages.push_back({(long long)contents.size() / bytes, (long long)value_contents.size() / bytes,
                       first, offset, block, stride, size, capacity});
      for (int h = 0; h < c.kv_heads; ++h) {
        store(contents, keys, b, h, offset, size, capacity, c.head_dim);
        if (!c.values_in_keys) {
          store(value_contents, values, b, h, offset, size, capacity, c.value_dim);
        }
      }
    }
  }
  for (page_entry& page : pages) {
    page.value_offset =
        c.values_in_keys ? page.key_offset : page.value_offset + (long long)contents.size() / bytes;
  }
  contents.insert(contents.end(), value_contents.begin(), value_contents.end());
  contents.shrink_to_fit();
  page_ranges.push_back(int(pages.size()));
}

float case_data::element(const std::vector<float>& of, int batch, int position, int kv_head,
                         int dim, int width) const {
  return of[((std::size_t(batch) * c.keys + position) * c.kv_heads + kv_head) * width + dim];
}

attend_arguments case_data::arguments(std::vector<float>& states, int splits) const {
  const double scale = c.scale == 0 ? 1 / std::sqrt(double(c.head_dim)) : c.scale;
  attend_arguments a{};
  a.queries = queries.data();
  a.contents = contents.data();
  a.scales = scales.empty() ? nullptr : scales.data();
  a.pages = pages.data();
  a.page_ranges = page_ranges.data();
  a.states = states.data();
  a.query_indices = query_indices.data();
  a.key_lengths = c.ragged_keys ? key_lengths.data() : nullptr;
  a.query_lengths = c.ragged_queries ? query_lengths.data() : nullptr;
  a.alibi_slopes = c.alibi ? slopes.data() : nullptr;
  a.key_starts = c.left_padding ? key_starts.data() : nullptr;
  a.places = c.sequences > 0 ? places.data() : nullptr;
  a.query_depths = c.depths ? query_depths.data() : nullptr;
  a.depths_per_batch = c.depths_per_batch;
  a.dfs_start = c.depth_first ? dfs_start.data() : nullptr;
  a.dfs_end = c.depth_first ? dfs_end.data() : nullptr;
  a.dfs_peaks = c.depth_first ? dfs_peaks.data() : nullptr;
  a.tail_mask = c.tail_mask > 0 ? tail_mask.data() : nullptr;
  a.tail_bias = c.tail_bias > 0 ? tail_bias.data() : nullptr;
  a.state_stride = (long long)states.size() / splits;
  a.kv_heads = c.kv_heads;
  a.group = c.group;
  a.query_count = int(query_indices.size());
  a.query_length = c.queries;
  a.key_length = c.keys;
  a.head_dim = c.head_dim;
  a.value_dim = c.value_dim;
  a.value_stride = c.values_in_keys ? c.head_dim : c.value_dim;
  a.splits = splits;
  a.pages_per_split = c.pages_per_split;
  a.causal = c.causal || c.chunk > 0;
  a.local_chunk = c.chunk;
  a.chunk_origin = c.chunk == 0 ? 0 : (c.queries + c.chunk - 1) / c.chunk * c.chunk;
  a.window_left = c.left;
  a.window_right = c.right;
  a.alibi_per_batch = c.alibi_per_batch;
  a.tail_mask_length = c.tail_mask;
  a.tail_bias_length = c.tail_bias;
  a.tail_bias_per_batch = c.tail_bias_per_batch;
  a.scale = float(scale);
  a.scale_rest = float(scale - a.scale);
  a.softcap = c.softcap;
  return a;
}

std::vector<float> case_data::run(const kernel_instance& instance, std::uint64_t seed,
                                  std::string& error, emulation::counters* count,
                                  const emulation::kernel* precise) {
  const int rows_per_head = c.group * int(query_indices.size());
  const int rows = c.batch * c.kv_heads * rows_per_head;
  const int most = int(pages.size()) / c.batch;
  // One split more than there are pages for: it must be an identity. Where the kernel deals the
  // pages, there are some such splits too, unless each gets one.
  const int splits =
      c.pages_per_split == 0 ? most - 2 : (most + c.pages_per_split - 1) / c.pages_per_split + 1;
  const std::size_t floats = std::size_t(rows) * (c.value_dim + 2);
  std::vector<float> states(floats * splits, NAN);
  attend_arguments a = arguments(states, splits);
  void* attend_parameters[] = {&a};
  const unsigned tiles = unsigned((rows_per_head + instance.rows() - 1) / instance.rows());
  emulation::launch_shape shape{{unsigned(splits) * tiles, unsigned(c.kv_heads), unsigned(c.batch)},
                                {instance.threads(), 1, 1},
                                instance.shared_bytes(c),
                                seed};
  error = emulation::launch(instance.code, shape, attend_parameters, count);
  if (error.empty() && precise) error = run_precise(*precise, a, seed + 1);
  if (!error.empty()) return {};
  merge_arguments m{
      states.data(), states.data() + floats, (long long)floats, rows, c.value_dim, splits - 1, {}};
  void* merge_parameters[] = {&m};
  error =
      emulation::launch(merge_states_kernel, {{unsigned(rows + 3) / 4, 1, 1}, {128, 1, 1}, 0, seed},
                        merge_parameters);
  states.resize(floats);
  return states;
}

std::string case_data::check(const kernel_instance& instance, std::uint64_t seed,
                             emulation::counters* count) {
  std::string error;
  const std::vector<float> state = run(instance, seed, error, count);
  return error.empty() ? compare(instance, state) : error;
}

case_data case_data::narrowed(int query) const {
  case_data one = *this;
  const std::size_t count = query_indices.size();
  one.query_indices = {query_indices[query]};
  one.queries.clear();
  for (std::size_t row = query; row < queries.size() / c.head_dim; row += count) {
    const auto first = queries.begin() + row * c.head_dim;
    one.queries.insert(one.queries.end(), first, first + c.head_dim);
  }
  return one;
}

bool case_data::has_rows_of(const std::vector<float>& whole, const std::vector<float>& one,
                            int query) const {
  const std::size_t count = query_indices.size(), heads = c.batch * c.kv_heads * c.group;
  const std::size_t dim = c.value_dim, rows = heads * count;
  bool same = true;
  for (std::size_t head = 0; head < heads; ++head) {
    const std::size_t row = head * count + query;
    same &= !std::memcmp(&whole[row * dim], &one[head * dim], dim * sizeof(float));
    same &= whole[rows * dim + row] == one[heads * dim + head];
    same &= whole[rows * dim + rows + row] == one[heads * dim + heads + head];
  }
  return same;
}
