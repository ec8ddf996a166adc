// Which keys a query row sees and what is added to its scores: the rules of AttentionMask, and the
// walk over the tiles of keys that follows from them.
//
// i is a query's index on the query axis, j a key's place on the key axis; where they stand to each
// other follows from the row's lengths, the packed sequence, or the depths of a token tree. A row's
// visible keys are an interval of places, from which depth-first order, tail mask and depths may
// take single keys away. Places ascend inside a page, so an interval of places is an interval of
// the page's keys.
#pragma once

#include "arguments.cuh"
#include "rows.cuh"

struct interval {  // first <= x < end
  int first;
  int end;
};

// One row of a KV head's query rows: query `index` of query head `head`.
struct query_row {
  int batch;
  int head;
  int index;
  int position;      // where causal, window, chunks and ALiBi count from
  int key_end;       // one past the keys of its sequence
  interval visible;  // places; empty for a row of padding
};

__device__ __forceinline__ int key_length_of(const attend_arguments& a, int batch) {
  return a.key_lengths ? __ldg(a.key_lengths + batch) : a.key_length;
}

__device__ __forceinline__ int query_length_of(const attend_arguments& a, int batch) {
  return a.query_lengths ? __ldg(a.query_lengths + batch) : a.query_length;
}

__device__ __forceinline__ int shift_of(const attend_arguments& a, int batch) {
  return key_length_of(a, batch) - query_length_of(a, batch);
}

// How far behind the first query of its batch row a query stands.
__device__ __forceinline__ int depth_of(const attend_arguments& a, int batch, int index) {
  if (!a.query_depths) return index;
  return __ldg(a.query_depths + (a.depths_per_batch ? size_t(batch) * a.query_length : 0) + index);
}

// The query of the token tree that a key belongs to; -1 for any other key.
__device__ __forceinline__ int query_of_key(const attend_arguments& a, int batch, int place) {
  if (!a.query_depths) return -1;
  const int query = place - shift_of(a, batch);
  return query >= 0 && query < query_length_of(a, batch) ? query : -1;
}

__device__ __forceinline__ query_place place_of(const attend_arguments& a, int batch, int index) {
  if (a.places) return a.places[index];
  const int first = a.key_starts ? __ldg(a.key_starts + batch) : 0;
  const int position = shift_of(a, batch) + depth_of(a, batch, index);
  return {first, key_length_of(a, batch), position, batch};
}

// How far before a query its chunk of local attention begins. Chunks count from the sequence's
// first key: one that began before it is cut short, and a node of a tree may stand there, but no
// further away than there are queries.
__device__ __forceinline__ int behind_chunk_start(const attend_arguments& a, int position,
                                                  int sequence_first) {
  const unsigned distance = unsigned(position - sequence_first) + unsigned(a.chunk_origin);
  return int(distance % unsigned(a.local_chunk));
}

// `number` counts the rows of a KV head: query number % query_count of head number / query_count.
__device__ __forceinline__ query_row make_row(const attend_arguments& a, int batch, int kv_head,
                                              int number) {
  query_row row = {batch, 0, 0, 0, 0, {0, 0}};
  if (number >= a.group * a.query_count) return row;
  row.head = kv_head * a.group + number / a.query_count;
  row.index = __ldg(a.query_indices + number % a.query_count);
  if (row.index >= query_length_of(a, batch)) return row;
  const query_place place = place_of(a, batch, row.index);
  row.position = place.position;
  row.key_end = place.end;
  const long long position = place.position;
  long long first = a.window_left >= 0 ? position - a.window_left : place.first;
  if (a.local_chunk > 0) {
    first = max(first, position - behind_chunk_start(a, place.position, place.first));
  }
  long long end = place.end;
  if (a.query_depths) {
    first = min(first, (long long)shift_of(a, batch));  // keys of the tree stand in any order
  } else {
    if (a.causal || a.dfs_start) end = min(end, position + 1);
    if (a.window_right >= 0) end = min(end, position + a.window_right + 1);
  }
  first = max(first, (long long)place.first);
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
  return a.alibi_slopes || a.dfs_start || a.tail_mask || a.tail_bias || a.query_depths;
}

// Whether causal, window and chunks keep a key of the token tree, `behind` positions before the
// query.
__device__ __forceinline__ bool keeps_depth(const attend_arguments& a, const query_row& row,
                                            int behind) {
  if (a.local_chunk > 0) {
    const int first = a.key_starts ? __ldg(a.key_starts + row.batch) : 0;
    if (behind > behind_chunk_start(a, row.position, first)) return false;
  }
  return (!a.causal || behind >= 0) && (a.window_left < 0 || behind <= a.window_left) &&
         (a.window_right < 0 || -behind <= a.window_right);
}

// How far behind a query its key at a place stands; a key of the token tree stands at its depth.
__device__ __forceinline__ int distance_of(const attend_arguments& a, const query_row& row,
                                           int place) {
  const int query = query_of_key(a, row.batch, place);
  const int position = query < 0 ? place : shift_of(a, row.batch) + depth_of(a, row.batch, query);
  return row.position - position;
}

// The head's ALiBi slope.
__device__ __forceinline__ float alibi_slope(const attend_arguments& a, const query_row& row) {
  const int heads = a.kv_heads * a.group;
  const int line = !a.alibi_per_batch ? 0 : a.places ? a.places[row.index].sequence : row.batch;
  return __ldg(a.alibi_slopes + line * heads + row.head);
}

// The score with biases added; -inf where the row's rules hide the key at this place, which lies
// inside the visible interval. `number` is float, or double where scores are.
template <class number>
__device__ __forceinline__ number apply_key_rules(const attend_arguments& a, const query_row& row,
                                                  int place, number score) {
  const size_t query = size_t(row.batch) * a.query_length + row.index;
  if (query_of_key(a, row.batch, place) >= 0 && !keeps_depth(a, row, distance_of(a, row, place))) {
    return minus_infinity();
  }
  if (a.alibi_slopes) {
    const number slope = alibi_slope(a, row);
    const int distance = distance_of(a, row, place);
    score -= slope * number(distance < 0 ? -distance : distance);
  }
  const int from_end = place - row.key_end;
  if (a.tail_bias) {
    const int column = from_end + a.tail_bias_length;
    const size_t line = a.tail_bias_per_batch ? query : size_t(row.index);
    const float bias = column < 0 ? 0.f : __ldg(a.tail_bias + line * a.tail_bias_length + column);
    if (bias == minus_infinity()) return minus_infinity();  // whatever its score
    if (column >= 0) score += bias;
  }
  if (a.tail_mask) {
    const int column = from_end + a.tail_mask_length;
    if (column >= 0 && !__ldg(a.tail_mask + query * a.tail_mask_length + column)) {
      return minus_infinity();
    }
  }
  if (a.dfs_start &&
      __ldg(a.dfs_start + query) > __ldg(a.dfs_end + size_t(row.batch) * a.key_length + place)) {
    return minus_infinity();
  }
  return score;
}

// The most that biases can raise a score over the page's keys: tail biases of either sign, ALiBi of
// a negative slope. NaN and +inf count, -inf hides a key.
__device__ __forceinline__ double largest_bias(const attend_arguments& a, const query_row& row,
                                               const page_entry& page) {
  const int first = position_in(page, 0);
  const int last = min(position_in(page, page.count - 1), row.key_end - 1);
  const double position = row.position;
  const double tree = a.query_depths ? a.query_length : 0;  // no key is further from its place
  const double distance = fmax(fabs(position - first), fabs(position - last)) + tree;
  const double alibi = a.alibi_slopes ? fmax(0.0, -double(alibi_slope(a, row)) * distance) : 0;
  if (!a.tail_bias) return alibi;
  const int from_end = a.tail_bias_length - row.key_end;
  const int end = min(a.tail_bias_length, last + from_end + 1);
  const size_t query = size_t(row.batch) * a.query_length + row.index;
  const size_t line = a.tail_bias_per_batch ? query : size_t(row.index);
  float tail = 0;
  for (int column = max(0, first + from_end); column < end && tail == tail; ++column) {
    const float bias = __ldg(a.tail_bias + line * a.tail_bias_length + column);
    const float magnitude = bias == minus_infinity() ? 0.f : fabsf(bias);
    tail = magnitude <= tail ? tail : magnitude;  // a NaN stays
  }
  return alibi + tail;
}

// As largest_bias, of the one key at a place that the row sees.
__device__ __forceinline__ double largest_bias_at(const attend_arguments& a, const query_row& row,
                                                  int place) {
  const double behind = distance_of(a, row, place);
  const double alibi = a.alibi_slopes ? fmax(0.0, -double(alibi_slope(a, row)) * fabs(behind)) : 0;
  const int column = place - row.key_end + a.tail_bias_length;
  if (!a.tail_bias || column < 0) return alibi;
  const size_t query = size_t(row.batch) * a.query_length + row.index;
  const size_t line = a.tail_bias_per_batch ? query : size_t(row.index);
  const double bias = __ldg(a.tail_bias + line * a.tail_bias_length + column);
  return bias == minus_infinity() ? alibi : alibi + fabs(bias);
}

// What a stored element of a key is multiplied by, and one of a value.
__device__ __forceinline__ float key_scale_of(const attend_arguments& a, int kv_head) {
  return a.scales ? __ldg(a.scales + kv_head) : 1.f;
}

__device__ __forceinline__ float value_scale_of(const attend_arguments& a, int kv_head) {
  return a.scales ? __ldg(a.scales + a.kv_heads + kv_head) : 1.f;
}

// A product of query and key as a score: scaled with more than fp32's digits, then capped.
__device__ __forceinline__ float scale_score(const attend_arguments& a, float product) {
  const float score = fmaf(product, a.scale, product * a.scale_rest);
  return a.softcap > 0 ? a.softcap * tanhf(score / a.softcap) : score;
}

// What the rows of a block see together.
struct row_hull : interval {  // places that any row may see
  int dfs_start;              // the earliest depth-first start of the rows
};

// A walk over the tiles of `tile_keys` keys that any row of a block may see. Tiles start at
// multiples of tile_keys in their page, so what a row computes does not depend on the other rows.
template <int tile_keys>
struct tile_walk {
  int batch;
  int page;       // the tile's page; last_page when the walk is over
  int last_page;  // one past the last page
  int key;        // the tile's first key in the page
  interval seen;  // keys of the page that any row may see
  row_hull hull;

  __device__ __forceinline__ bool is_over() const { return page >= last_page; }

  __device__ __forceinline__ void advance(const attend_arguments& a) {
    do {
      key += tile_keys;
      while (key >= seen.end && ++page < last_page) {
        seen = keys_in(a.pages[page], hull);
        key = seen.first / tile_keys * tile_keys;
      }
    } while (a.dfs_peaks && page < last_page && is_hidden(a));
  }

  // Depth-first order hides the whole tile from every row. Tiles spread over many blocks of keys
  // are not looked at.
  __device__ __forceinline__ bool is_hidden(const attend_arguments& a) const {
    constexpr int block = 64, most_blocks = 16;
    const page_entry& entry = a.pages[page];
    const int first = position_in(entry, max(key, seen.first)) / block;
    const int last = position_in(entry, min(key + tile_keys, seen.end) - 1) / block;
    if (last - first >= most_blocks) return false;
    const int* const peaks = a.dfs_peaks + size_t(batch) * ((a.key_length + block - 1) / block);
    for (int i = first; i <= last; ++i) {
      if (__ldg(peaks + i) >= hull.dfs_start) return false;
    }
    return true;
  }
};

// Pages of each split of a batch row: those that the host asked for, or the row's dealt evenly.
__device__ __forceinline__ int pages_per_split_of(const attend_arguments& a, int batch) {
  if (a.pages_per_split > 0) return a.pages_per_split;
  const int pages = __ldg(a.page_ranges + batch + 1) - __ldg(a.page_ranges + batch);
  return (pages + a.splits - 1) / a.splits;
}

// The first page of a split of a batch row.
__device__ __forceinline__ int first_page_of(const attend_arguments& a, int batch, int split) {
  return __ldg(a.page_ranges + batch) + a.first_page + split * pages_per_split_of(a, batch);
}

// The walk of the block's split of a batch row, at its first tile.
template <int tile_keys>
__device__ __forceinline__ tile_walk<tile_keys> start_walk(const attend_arguments& a, int batch,
                                                           int split, row_hull hull) {
  const int first = first_page_of(a, batch, split);
  const int last = min(first + pages_per_split_of(a, batch), __ldg(a.page_ranges + batch + 1));
  tile_walk<tile_keys> walk = {batch, first - 1, last, 0, {0, 0}, hull};
  if (hull.end <= hull.first) {
    walk.page = last;
  } else {
    walk.advance(a);
  }
  return walk;
}

// What one row sees.
__device__ __forceinline__ row_hull hull_of(const attend_arguments& a, const query_row& row) {
  const size_t query = size_t(row.batch) * a.query_length + row.index;
  return {row.visible, a.dfs_start ? __ldg(a.dfs_start + query) : 0x7fffffff};
}

// The hull of what `count` rows of a KV head see; row i of them is row `number_of(i)` of the
// head's.
template <class numbering>
__device__ __forceinline__ row_hull hull_of(const attend_arguments& a, int batch, int kv_head,
                                            int count, numbering number_of) {
  const int lane = threadIdx.x % 32;
  row_hull hull = {{0x7fffffff, 0}, 0x7fffffff};
  for (int i = lane; i < count; i += 32) {
    const row_hull own = hull_of(a, make_row(a, batch, kv_head, number_of(i)));
    if (own.end <= own.first) continue;
    hull.first = min(hull.first, own.first);
    hull.end = max(hull.end, own.end);
    hull.dfs_start = min(hull.dfs_start, own.dfs_start);
  }
  for (int d = 16; d > 0; d /= 2) {
    hull.first = min(hull.first, __shfl_xor_sync(0xffffffffu, hull.first, d));
    hull.end = max(hull.end, __shfl_xor_sync(0xffffffffu, hull.end, d));
    hull.dfs_start = min(hull.dfs_start, __shfl_xor_sync(0xffffffffu, hull.dfs_start, d));
  }
  return hull;
}

// Where nothing has to be asked of single rows and keys: the places that every row sees, and of
// those the ones before `rules`, where no key has a rule of its own. Rows that see nothing leave no
// such place.
struct row_core : interval {
  int rules;
};

// The first place from which apply_key_rules may change a score of the row.
__device__ __forceinline__ int rules_of(const attend_arguments& a, const query_row& row) {
  if (a.alibi_slopes || a.dfs_start) return 0;
  int first = a.query_depths ? shift_of(a, row.batch) : 0x7fffffff;
  if (a.tail_bias) first = min(first, row.key_end - a.tail_bias_length);
  if (a.tail_mask) first = min(first, row.key_end - a.tail_mask_length);
  return first;
}

// The core of what `count` rows see.
template <class numbering>
__device__ __forceinline__ row_core core_of(const attend_arguments& a, int batch, int kv_head,
                                            int count, numbering number_of) {
  const int lane = threadIdx.x % 32;
  row_core core = {{0, 0x7fffffff}, 0x7fffffff};
  for (int i = lane; i < count; i += 32) {
    const query_row row = make_row(a, batch, kv_head, number_of(i));
    core.first = max(core.first, row.visible.first);
    core.end = min(core.end, row.visible.end);
    core.rules = min(core.rules, rules_of(a, row));
  }
  for (int d = 16; d > 0; d /= 2) {
    core.first = max(core.first, __shfl_xor_sync(0xffffffffu, core.first, d));
    core.end = min(core.end, __shfl_xor_sync(0xffffffffu, core.end, d));
    core.rules = min(core.rules, __shfl_xor_sync(0xffffffffu, core.rules, d));
  }
  return core;
}
