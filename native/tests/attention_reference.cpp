// The double-precision reference that judges attention cases: rules in plain words, key by key.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention_case.hpp"

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// How far an element may be off, of the largest value: weights are rounded to the storage type, or
// to f16 beside 8 bits.
double tolerance_of(const kernel_instance& instance) {
  if (!instance.is_tensor) return 1e-5;
  return instance.type == storage::bf16 ? 1.0 / 128 : 1.0 / 1024;
}

std::string text_of(double x) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", x);
  return text;
}

}  // namespace

case_data::standing case_data::stands(int b, int index) const {
  if (c.sequences > 0) {
    const int s = places[index].sequence;
    return {sequence_keys[s], sequence_keys[s + 1],
            sequence_keys[s + 1] - (sequence_queries[s + 1] - index), s};
  }
  const int end = key_length(b), depth = query_depths.empty() ? index : depth_of(b, index);
  return {c.left_padding ? key_starts[b] : 0, end, end - query_length(b) + depth, b};
}

int case_data::depth_of(int b, int index) const {
  return query_depths[(c.depths_per_batch ? b * c.queries : 0) + index];
}

// Where causal, window and ALiBi find a key.
int case_data::position_of_key(int b, int j) const {
  const int query = j - (key_length(b) - query_length(b));
  const bool is_of_tree = c.depths && query >= 0 && query < query_length(b);
  return is_of_tree ? j - query + depth_of(b, query) : j;
}

bool case_data::keeps(int b, int index, int j) const {
  const standing q = stands(b, index);
  const int key = position_of_key(b, j);
  if (index >= query_length(b) || j < q.first || j >= q.end) return false;
  if (c.causal && key > q.position) return false;
  if (c.left >= 0 && key < q.position - c.left) return false;
  if (c.right >= 0 && key > q.position + c.right) return false;
  if (c.chunk > 0) {
    // Both stand in one chunk; chunks are numbered from the sequence's first key, before it too.
    auto chunk_of = [&](int position) { return std::floor(double(position - q.first) / c.chunk); };
    if (key > q.position || chunk_of(key) != chunk_of(q.position)) return false;
  }
  if (c.depth_first &&
      (key > q.position || dfs_start[b * c.queries + index] > dfs_end[b * c.keys + j])) {
    return false;
  }
  const int column = j - q.end + c.tail_mask;
  return c.tail_mask == 0 || column < 0 ||
         tail_mask[(std::size_t(b) * c.queries + index) * c.tail_mask + column];
}

double case_data::score(int b, int head, int index, int j, const std::vector<float>& q) const {
  double dot = 0;
  for (int d = 0; d < c.head_dim; ++d) {
    dot += double(q[d]) * element(keys, b, j, head / c.group, d, c.head_dim);
  }
  double s = dot * (c.scale == 0 ? 1 / std::sqrt(double(c.head_dim)) : c.scale);
  if (c.softcap > 0) s = c.softcap * std::tanh(s / c.softcap);
  const standing place = stands(b, index);
  if (c.alibi) {
    const int heads = c.kv_heads * c.group;
    const double slope = slopes[(c.alibi_per_batch ? place.sequence * heads : 0) + head];
    s -= slope * std::abs(place.position - position_of_key(b, j));
  }
  const int column = j - place.end + c.tail_bias;
  if (c.tail_bias > 0 && column >= 0) {
    const int line = c.tail_bias_per_batch ? b * c.queries + index : index;
    s += tail_bias[std::size_t(line) * c.tail_bias + column];
  }
  return s;
}

case_data::expected_row case_data::expect(int b, int head, int query, bool is_rounded) const {
  const std::size_t row =
      (std::size_t(b) * c.kv_heads * c.group + head) * query_indices.size() + query;
  std::vector<float> q(queries.begin() + row * c.head_dim,
                       queries.begin() + (row + 1) * c.head_dim);
  float largest = 0;
  for (float x : q)
    largest = std::max(largest, std::abs(x));
  const storage arithmetic = has_scales(c.type) ? storage::f16 : c.type;
  for (float& x : q) {
    int exponent = 0;
    std::frexp(largest, &exponent);
    if (is_rounded) x = std::ldexp(rounded(arithmetic, std::ldexp(x, 1 - exponent)), exponent - 1);
  }
  const int index = query_indices[query];
  expected_row expected{std::vector<double>(c.value_dim), -infinity, 0};
  std::vector<std::pair<int, double>> seen;
  for (int j : positions) {
    if (!keeps(b, index, j)) continue;
    seen.emplace_back(j, score(b, head, index, j, q));
    expected.max = std::max(expected.max, seen.back().second);
  }
  if (expected.max == -infinity) return expected;
  for (auto [j, s] : seen) {
    const double weight = std::exp(s - expected.max);
    expected.sum += weight;
    for (int d = 0; d < c.value_dim; ++d) {
      expected.output[d] += weight * element(values, b, j, head / c.group, d, c.value_dim);
    }
  }
  for (double& x : expected.output)
    x /= expected.sum;
  return expected;
}

std::string case_data::compare(const kernel_instance& instance,
                               const std::vector<float>& state) const {
  const int heads = c.kv_heads * c.group, count = int(query_indices.size());
  const int rows = c.batch * heads * count;
  const float* const max = state.data() + std::size_t(rows) * c.value_dim;
  const float* const sum = max + rows;
  const double allowed = tolerance_of(instance) * largest_value;
  for (int row = 0; row < rows; ++row) {
    const expected_row e =
        expect(row / count / heads, row / count % heads, row % count, instance.is_tensor);
    const std::string place = "row " + std::to_string(row) + ": ";
    if (e.sum == 0 && (max[row] != -INFINITY || sum[row] != 0)) {
      return place + "sees nothing but has max " + text_of(max[row]) + ", sum " + text_of(sum[row]);
    }
    if (e.sum > 0 && !(std::abs(max[row] - e.max) <= 2e-5 * (1 + std::abs(e.max)))) {
      return place + "max " + text_of(max[row]) + " for " + text_of(e.max);
    }
    // The sum is relative to the maximum that was found.
    const double whole = sum[row] * std::exp(e.sum > 0 ? max[row] - e.max : 0.0);
    if (e.sum > 0 && !(std::abs(whole - e.sum) <= 1e-4 * (1 + std::abs(e.max)) * e.sum)) {
      return place + "sum " + text_of(sum[row]) + " for " + text_of(e.sum);
    }
    for (int d = 0; d < c.value_dim; ++d) {
      const float x = state[std::size_t(row) * c.value_dim + d];
      if (!(std::abs(x - e.output[d]) <= (e.sum == 0 ? 0 : allowed))) {
        return place + "element " + std::to_string(d) + " is " + text_of(x) + " for " +
               text_of(e.output[d]);
      }
    }
  }
  return "";
}
