// Partial attention in double precision, for the query rows and page ranges whose numbers are too
// large for fp32, or not finite: runs over the same splits after another attend kernel and
// overwrites those rows' states. Nobody asks the host which rows those are.
//
// A warp per query row and split, four to a block; warps never meet. A warp first measures its
// query and looks at the limits of the split's pages, and returns where fp32 is exact enough: then
// it has read one query and 8 bytes a page. Where results are reproducible (`by_row`), a page that
// is beyond its limits is measured once more, over the keys that the row sees: limits also tell of
// keys that are hidden, or gone. Else the warp walks over tiles of 32 keys: for the scores a
// lane owns a key, for the output columns. Scores, weights and sums are doubles, rounded once when
// they leave; a finite output that fp32 cannot hold becomes the largest it can. A hidden key is not
// computed with. A score of NaN makes the row NaN, one of +inf its output NaN and its max +inf.
#include "primitives.cuh"
#include "score_range.cuh"
#include "visibility.cuh"

constexpr int precise_rows = 4, precise_keys = 32;
constexpr int precise_columns = 18;  // of a lane: of a value dimension up to 576

__device__ __forceinline__ double sum_of_warp(double x) {
  for (int d = 16; d > 0; d /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

// The larger; NaN when one is.
__device__ __forceinline__ double larger(double a, double b) {
  return a != a || a > b ? a : b;
}

// Whether fp32 holds the weights of the row's keys in spite of ALiBi: some key that it sees has a
// bias of at most this size, or all do. The warp looks from the nearest key outwards.
__device__ bool has_near_keys(const attend_arguments& a, const query_row& row, int lane) {
  constexpr double most_bias = 64;  // added to scores of ordinary size, costs no digit that counts
  const double slope = alibi_slope(a, row);
  const interval seen = row.visible;
  if (seen.end <= seen.first || !(slope > 0)) return true;
  const long long position = row.position;
  const long long below = position - seen.first, above = seen.end - 1 - position;
  const long long nearest = max(0ll, max(-below, -above)), furthest = max(below, above);
  for (long long from = nearest; from <= furthest; from += 32) {
    if (!(slope * double(from) <= most_bias)) return false;
    const long long distance = from + lane;
    bool is_near = false;
    for (int side = -1; side <= 1; side += 2) {
      const long long key = position + side * distance;
      if (key < seen.first || key >= seen.end || !(slope * double(distance) <= most_bias)) continue;
      is_near |= apply_key_rules(a, row, int(key), 0.0) >= -most_bias;
    }
    if (__any_sync(0xffffffffu, is_near)) return true;
  }
  return slope * double(furthest) <= most_bias && !a.query_depths;
}

// Whether fp32 is exact enough for the keys of a page that the row sees. What it finds is never
// more than the page's limits say, so limits that let a page pass decide as this does.
template <class element>
__device__ bool is_exact_for_seen(const precise_arguments& p, const query_row& row, int kv_head,
                                  double magnitude, const page_entry& page, int lane) {
  const attend_arguments& a = p.attend;
  const interval seen = keys_in(page, row.visible);
  const size_t head = size_t(kv_head) * page.capacity;
  const element* const contents = static_cast<const element*>(a.contents);
  const element* const keys = contents + page.key_offset + head * a.head_dim;
  const element* const values = contents + page.value_offset + head * a.value_stride;
  const bool has_rules = has_key_rules(a);
  double squares = 0, largest = 0, bias = 0;
  for (int key = seen.first + lane; key < seen.end; key += 32) {
    const int place = position_in(page, key);
    if (has_rules && apply_key_rules(a, row, place, 0.0) == minus_infinity()) continue;
    double own = 0;
#pragma unroll 1  // registers are scarce
    for (int i = 0; i < a.head_dim; ++i) {
      const double number = to_float(keys[size_t(key) * a.head_dim + i]);
      own = fma(number, number, own);
    }
    squares = larger(squares, own);
#pragma unroll 1
    for (int i = 0; i < a.value_dim; ++i)
      largest = larger(largest, fabs(double(to_float(values[size_t(key) * a.value_stride + i]))));
    if (a.alibi_slopes || a.tail_bias) bias = larger(bias, largest_bias_at(a, row, place));
  }
  for (int d = 16; d > 0; d /= 2) {
    squares = larger(squares, __shfl_xor_sync(0xffffffffu, squares, d));
    largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, d));
    bias = larger(bias, __shfl_xor_sync(0xffffffffu, bias, d));
  }
  const double bound = magnitude * (sqrt(squares) * key_scale_of(a, kv_head)) + bias;
  return bound <= p.score_limit && largest * value_scale_of(a, kv_head) <= p.value_limit;
}

// Whether the fast kernel's state of the row over pages `first` to `last` - 1 is not exact enough.
// Looks at the row's own numbers and the pages alone, so a row's bits depend on no other row.
template <class element>
__device__ bool needs_precision(const precise_arguments& p, const query_row& row, int kv_head,
                                const float* query, int first, int last, int lane) {
  const attend_arguments& a = p.attend;
  double squares = 0;
  for (int i = lane; i < a.head_dim; i += 32)
    squares = fma(double(__ldg(query + i)), double(__ldg(query + i)), squares);
  const double magnitude = fabs(p.scale) * sqrt(sum_of_warp(squares));
  bool is_needed = false;
  // All lanes look at the same page where they may measure it together.
  const int stride = p.by_row ? 1 : 32;
  for (int n = first + (p.by_row ? 0 : lane); n < last; n += stride) {
    const page_limits limits = p.limits[size_t(p.slots[n]) * a.kv_heads + kv_head];
    const page_entry page = a.pages[n];
    const double bias = a.alibi_slopes || a.tail_bias ? largest_bias(a, row, page) : 0;
    // Written so that NaN is not exact. Zero times a number that is not finite spoils rows that do
    // not see it too.
    const bool is_exact = magnitude * limits.largest_key_norm + bias <= p.score_limit &&
                          limits.largest_value <= p.value_limit;
    const bool is_finite = limits.largest_key_norm - limits.largest_key_norm == 0 &&
                           limits.largest_value - limits.largest_value == 0;
    if (is_exact) continue;
    if (p.by_row) {
      if (!is_exact_for_seen<element>(p, row, kv_head, magnitude, page, lane)) return true;
      continue;
    }
    const interval seen = keys_in(page, row.visible);
    is_needed |= !is_finite || seen.end > seen.first;
  }
  if (__any_sync(0xffffffffu, is_needed)) return true;
  return a.alibi_slopes && !has_near_keys(a, row, lane);
}

template <class element>
__global__ void __launch_bounds__(128, 4)
    attend_precise(const __grid_constant__ precise_arguments p) {
  const attend_arguments& a = p.attend;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int split = blockIdx.x % a.splits, kv_head = blockIdx.y, batch = blockIdx.z;
  const int rows_per_head = a.group * a.query_count;
  const int number = int(blockIdx.x) / a.splits * precise_rows + warp;
  if (number >= rows_per_head) return;
  const query_row row = make_row(a, batch, kv_head, number);
  const size_t place = (size_t(batch) * a.kv_heads + kv_head) * rows_per_head + number;
  const float* const query = a.queries + place * a.head_dim;
  const int first_page = first_page_of(a, batch, split);
  const int last_page =
      min(first_page + pages_per_split_of(a, batch), __ldg(a.page_ranges + batch + 1));
  if (!needs_precision<element>(p, row, kv_head, query, first_page, last_page, lane)) return;
  tile_walk<precise_keys> walk = start_walk<precise_keys>(a, batch, split, hull_of(a, row));

  double* const own = static_cast<double*>(shared_memory()) + warp * (a.head_dim + precise_keys);
  double* const weights = own + a.head_dim;  // [32]
  for (int i = lane; i < a.head_dim; i += 32)
    own[i] = __ldg(query + i);
  __syncwarp();  // every lane reads the whole query
  const double key_scale = key_scale_of(a, kv_head), value_scale = value_scale_of(a, kv_head);
  double peak = minus_infinity(), sum = 0, out[precise_columns] = {};

  for (; !walk.is_over(); walk.advance(a)) {
    const page_entry page = a.pages[walk.page];
    const size_t head = size_t(kv_head) * page.capacity;
    const element* const contents = static_cast<const element*>(a.contents);
    const element* const keys = contents + page.key_offset + head * a.head_dim;
    const element* const values = contents + page.value_offset + head * a.value_stride;
    const int first = max(walk.key, walk.seen.first);
    const int end = min(walk.key + precise_keys, walk.seen.end);

    const int key = walk.key + lane;
    double score = minus_infinity();
    if (key >= first && key < end) {
      double product = 0;
#pragma unroll 2  // registers are scarce
      for (int i = 0; i < a.head_dim; ++i)
        product = fma(double(to_float(keys[size_t(key) * a.head_dim + i])), own[i], product);
      score = p.scale * key_scale * product;
      if (a.softcap > 0) score = a.softcap * tanh(score / a.softcap);
      score = settle_score(apply_key_rules(a, row, position_in(page, key), score));
    }
    const bool is_hidden = score == minus_infinity();
    double top = score;
    for (int d = 16; d > 0; d /= 2)
      top = larger(top, __shfl_xor_sync(0xffffffffu, top, d));
    top = float(larger(top, peak));  // as a partial holds it
    if (top == minus_infinity()) continue;
    const double correction = top == peak ? 1 : exp(peak - top);
    const double weight = is_hidden ? 0 : exp(score - top);
    const double total = sum_of_warp(weight);
    sum = top == -double(minus_infinity()) ? 1 : sum * correction + total;
    peak = top;
    weights[lane] = is_hidden ? -1 : weight;
    __syncwarp();  // the weights of all keys are there
#pragma unroll
    for (int c = 0; c < precise_columns; ++c) {
      const int column = c * 32 + lane;
      if (c * 32 >= a.value_dim) break;
      out[c] *= correction;
      for (int n = first; n < end; ++n) {
        const double share = weights[n - walk.key];
        // A hidden key is not computed with: its value may be anything.
        if (share == -1 || column >= a.value_dim) continue;
        out[c] = fma(share, double(to_float(values[size_t(n) * a.value_stride + column])), out[c]);
      }
    }
    __syncwarp();  // every lane has read the weights
  }

  const size_t all_rows = size_t(gridDim.z) * a.kv_heads * rows_per_head;
  float* const output = a.states + split * a.state_stride;
  float* const maximum = output + all_rows * a.value_dim + place;
#pragma unroll
  for (int c = 0; c < precise_columns; ++c) {
    const int column = c * 32 + lane;
    if (column < a.value_dim) {
      output[place * a.value_dim + column] = sum == 0 ? 0.f : saturate(out[c] / sum * value_scale);
    }
  }
  if (lane == 0) {
    *maximum = float(peak);
    maximum[all_rows] = float(sum);
  }
}
