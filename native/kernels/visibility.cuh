// Which keys a query row sees and what is added to its scores: the rules of AttentionMask, and the
// walk over the tiles of keys that follows from them.
//
// i is a query's index in its sequence, j a key's position, shift = key length - query length of
// the batch row. A row's visible keys are an interval of positions (causal, window, lengths), from
// which depth-first order and tail mask may take single keys away. Positions ascend inside a page,
// so an interval of positions is an interval of the page's keys.
#pragma once

#include "arguments.cuh"

__device__ __forceinline__ float minus_infinity() {
  return __uint_as_float(0xff800000u);
}

struct interval {  // first <= x < end
  int first;
  int end;
};

// One row of a KV head's query rows: query `index` of query head `head`.
struct query_row {
  int batch;
  int head;
  int index;
  interval visible;  // positions; empty for a row of padding
};

__device__ __forceinline__ int key_length_of(const attend_arguments& a, int batch) {
  return a.key_lengths ? __ldg(a.key_lengths + batch) : a.key_length;
}

__device__ __forceinline__ int query_length_of(const attend_arguments& a, int batch) {
  return a.query_lengths ? __ldg(a.query_lengths + batch) : a.query_length;
}

// Position of the row's query among the keys.
__device__ __forceinline__ int position_of(const attend_arguments& a, const query_row& row) {
  return row.index + key_length_of(a, row.batch) - query_length_of(a, row.batch);
}

// `number` counts the rows of a KV head: query number % query_count of head number / query_count.
__device__ __forceinline__ query_row make_row(const attend_arguments& a, int batch, int kv_head,
                                              int number) {
  query_row row = {batch, 0, 0, {0, 0}};
  if (number >= a.group * a.query_count) return row;
  row.head = kv_head * a.group + number / a.query_count;
  row.index = __ldg(a.query_indices + number % a.query_count);
  if (row.index >= query_length_of(a, batch)) return row;
  const long long position = position_of(a, row);
  long long first = a.window_left >= 0 ? position - a.window_left : 0;
  long long end = key_length_of(a, batch);
  if (a.causal || a.dfs_start) end = min(end, position + 1);
  if (a.window_right >= 0) end = min(end, position + a.window_right + 1);
  first = max(first, 0ll);
  row.visible = {int(min(first, 0x7fffffffll)), int(max(end, 0ll))};
  return row;
}

__device__ __forceinline__ int position_in(const page_entry& page, int key) {
  const int index = page.run_offset + key;
  return page.run_first + index / page.run_block * page.run_stride + index % page.run_block;
}

// How many of the page's keys stand below a position.
__device__ __forceinline__ int count_below(const page_entry& page, int position) {
  if (position <= page.run_first) return 0;
  const int distance = position - page.run_first;
  const long long below = (long long)(distance / page.run_stride) * page.run_block +
                          min(page.run_block, distance % page.run_stride);
  return int(max(0ll, min((long long)page.count, below - page.run_offset)));
}

// The page's keys whose positions lie in the interval.
__device__ __forceinline__ interval keys_in(const page_entry& page, interval positions) {
  if (positions.end <= positions.first) return {0, 0};
  return {count_below(page, positions.first), count_below(page, positions.end)};
}

// What single keys need beyond the interval: a bias or a rule of their own.
__device__ __forceinline__ bool has_key_rules(const attend_arguments& a) {
  return a.alibi_slopes || a.dfs_start || a.tail_mask || a.tail_bias;
}

// The head's ALiBi slope; 0 without ALiBi.
__device__ __forceinline__ float alibi_slope(const attend_arguments& a, const query_row& row) {
  if (!a.alibi_slopes) return 0;
  const int heads = a.kv_heads * a.group;
  return __ldg(a.alibi_slopes + (a.alibi_per_batch ? row.batch * heads : 0) + row.head);
}

// The row's tail biases, of which the last belongs to the last key of the sequence.
__device__ __forceinline__ const float* tail_bias_of(const attend_arguments& a,
                                                     const query_row& row) {
  const size_t query = size_t(row.batch) * a.query_length + row.index;
  const size_t line = a.tail_bias_per_batch ? query : size_t(row.index);
  return a.tail_bias + line * a.tail_bias_length;
}

// The score with ALiBi and tail bias added. `number` is float, or double where scores are.
template <class number>
__device__ __forceinline__ number add_biases(const attend_arguments& a, const query_row& row,
                                             int position, number score) {
  if (a.alibi_slopes) {
    const int distance = position_of(a, row) - position;
    score -= number(alibi_slope(a, row)) * number(distance < 0 ? -distance : distance);
  }
  if (a.tail_bias) {
    const int column = position - key_length_of(a, row.batch) + a.tail_bias_length;
    if (column >= 0) score += __ldg(tail_bias_of(a, row) + column);
  }
  return score;
}

// Whether the row's rules leave the key at this position, which lies inside the visible interval.
__device__ __forceinline__ bool keeps_key(const attend_arguments& a, const query_row& row,
                                          int position) {
  const size_t query = size_t(row.batch) * a.query_length + row.index;
  if (a.tail_mask) {
    const int column = position - key_length_of(a, row.batch) + a.tail_mask_length;
    if (column >= 0 && !__ldg(a.tail_mask + query * a.tail_mask_length + column)) return false;
  }
  return !a.dfs_start || __ldg(a.dfs_start + query) <=
                             __ldg(a.dfs_end + size_t(row.batch) * a.key_length + position);
}

// The score with biases added; -inf where the row's rules hide the key at this position, which
// lies inside the visible interval.
__device__ __forceinline__ float apply_key_rules(const attend_arguments& a, const query_row& row,
                                                 int position, float score) {
  const float biased = add_biases(a, row, position, score);
  return keeps_key(a, row, position) ? biased : minus_infinity();
}

// The most that biases can raise a score over the page's keys: tail biases of either sign, ALiBi of
// a negative slope. NaN and +inf count, -inf hides a key.
__device__ __forceinline__ double largest_bias(const attend_arguments& a, const query_row& row,
                                               const page_entry& page) {
  const int first = position_in(page, 0), last = position_in(page, page.count - 1);
  const double position = position_of(a, row);
  const double distance = fmax(fabs(position - first), fabs(position - last));
  const double alibi = fmax(0.0, -double(alibi_slope(a, row)) * distance);
  if (!a.tail_bias) return alibi;
  const int from_end = a.tail_bias_length - key_length_of(a, row.batch);
  const int end = min(a.tail_bias_length, last + from_end + 1);
  float tail = 0;
  for (int column = max(0, first + from_end); column < end && tail == tail; ++column) {
    const float bias = __ldg(tail_bias_of(a, row) + column);
    const float magnitude = bias == minus_infinity() ? 0.f : fabsf(bias);
    tail = magnitude <= tail ? tail : magnitude;  // a NaN stays
  }
  return alibi + tail;
}

// A product of query and key as a score: scaled with more than fp32's digits, then capped.
__device__ __forceinline__ float scale_score(const attend_arguments& a, float product) {
  const float score = fmaf(product, a.scale, product * a.scale_rest);
  return a.softcap > 0 ? a.softcap * tanhf(score / a.softcap) : score;
}

// A walk over the tiles of `tile_keys` keys that any row of a block may see. Tiles start at
// multiples of tile_keys in their page, so what a row computes does not depend on the other rows.
template <int tile_keys>
struct tile_walk {
  int page;       // the tile's page; last_page when the walk is over
  int last_page;  // one past the last page
  int key;        // the tile's first key in the page
  interval seen;  // keys of the page that any row may see
  interval hull;  // positions that any row may see

  __device__ __forceinline__ bool is_over() const { return page >= last_page; }

  __device__ __forceinline__ void advance(const attend_arguments& a) {
    key += tile_keys;
    while (key >= seen.end && ++page < last_page) {
      seen = keys_in(a.pages[page], hull);
      key = seen.first / tile_keys * tile_keys;
    }
  }
};

// The first page of a split of a batch row.
__device__ __forceinline__ int first_page_of(const attend_arguments& a, int batch, int split) {
  return __ldg(a.page_ranges + batch) + a.first_page + split * a.pages_per_split;
}

// The walk of the block's split of a batch row, at its first tile.
template <int tile_keys>
__device__ __forceinline__ tile_walk<tile_keys> start_walk(const attend_arguments& a, int batch,
                                                           int split, interval hull) {
  const int first = first_page_of(a, batch, split);
  const int last = min(first + a.pages_per_split, __ldg(a.page_ranges + batch + 1));
  tile_walk<tile_keys> walk = {first - 1, last, 0, {0, 0}, hull};
  if (hull.end <= hull.first) {
    walk.page = last;
  } else {
    walk.advance(a);
  }
  return walk;
}

// The hull of what `count` rows of a KV head see, from row `first` on.
__device__ __forceinline__ interval hull_of(const attend_arguments& a, int batch, int kv_head,
                                            int first, int count) {
  const int lane = threadIdx.x % 32;
  interval hull = {0x7fffffff, 0};
  for (int i = lane; i < count; i += 32) {
    const interval seen = make_row(a, batch, kv_head, first + i).visible;
    if (seen.end > seen.first) hull = {min(hull.first, seen.first), max(hull.end, seen.end)};
  }
  for (int d = 16; d > 0; d /= 2) {
    hull.first = min(hull.first, __shfl_xor_sync(0xffffffffu, hull.first, d));
    hull.end = max(hull.end, __shfl_xor_sync(0xffffffffu, hull.end, d));
  }
  return hull;
}
