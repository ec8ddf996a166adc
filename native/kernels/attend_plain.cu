// Partial attention by fp32 multiply-adds: the state of 16 query rows of one batch row and KV head
// over one range of its pages. Tensors as in attend_tensor.cu, keys and values of any type; nothing
// is rounded but fp32 itself.
//
// A block is 4 warps over tiles of 32 keys. For the scores a lane owns a key and a warp four rows;
// keys pass through shared memory in slabs of 64 columns. For the output a thread owns columns and
// reads their values straight from global memory, which neighbours do together. Bound by
// arithmetic: 16 * (head_dim + value_dim) multiply-adds a key and block.
#include "primitives.cuh"
#include "visibility.cuh"

constexpr int plain_rows = 16, plain_keys = 32, slab_columns = 64;
constexpr int slab_stride = slab_columns + 1;  // odd: lanes that read a column meet 32 banks

template <class element, int value_tile>
__global__ void __launch_bounds__(128) attend_plain(const __grid_constant__ attend_arguments a) {
  constexpr int warps = 4, warp_rows = plain_rows / warps, columns = value_tile / 128;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int split = blockIdx.x % a.splits, kv_head = blockIdx.y, batch = blockIdx.z;
  const int rows_per_head = a.group * a.query_count;
  const int first_row = (int(gridDim.x / a.splits) - 1 - int(blockIdx.x) / a.splits) * plain_rows;
  const int row_count = min(plain_rows, rows_per_head - first_row);
  const size_t head_row = (size_t(batch) * a.kv_heads + kv_head) * rows_per_head + first_row;

  float* const queries = static_cast<float*>(shared_memory());   // [16][head_dim]
  float* const slab = queries + plain_rows * a.head_dim;         // [32][65]
  float* const weights = slab + plain_keys * slab_stride;        // [16][32]
  float* const corrections = weights + plain_rows * plain_keys;  // [16]
  float* const sums = corrections + plain_rows;                  // [16]

  for (int i = threadIdx.x; i < plain_rows * a.head_dim; i += blockDim.x) {
    queries[i] = i < row_count * a.head_dim ? __ldg(a.queries + head_row * a.head_dim + i) : 0.f;
  }
  query_row row[warp_rows];
  float peak[warp_rows], sum[warp_rows], out[plain_rows][columns] = {};
#pragma unroll
  for (int r = 0; r < warp_rows; ++r) {
    row[r] = make_row(a, batch, kv_head, first_row + warp * warp_rows + r);
    peak[r] = minus_infinity();
    sum[r] = 0;
  }
  const bool key_rules = has_key_rules(a);
  const float key_scale = key_scale_of(a, kv_head), value_scale = value_scale_of(a, kv_head);
  const row_hull hull =
      hull_of(a, batch, kv_head, row_count, [&](int row) { return first_row + row; });

  for (tile_walk<plain_keys> walk = start_walk<plain_keys>(a, batch, split, hull); !walk.is_over();
       walk.advance(a)) {
    const page_entry page = a.pages[walk.page];
    const size_t head = size_t(kv_head) * page.capacity;
    const element* const contents = static_cast<const element*>(a.contents);
    const element* const keys = contents + page.key_offset + head * a.head_dim;
    const element* const values = contents + page.value_offset + head * a.value_stride;
    const int first = max(walk.key, walk.seen.first);
    const int end = min(walk.key + plain_keys, walk.seen.end);

    float product[warp_rows] = {};
    for (int from = 0; from < a.head_dim; from += slab_columns) {
      __syncthreads();  // no warp reads the slab before, or the weights of the tile before
      for (int i = threadIdx.x; i < plain_keys * slab_columns; i += blockDim.x) {
        const int column = i % slab_columns, key = walk.key + i / slab_columns;
        const bool is_seen = key >= first && key < end && from + column < a.head_dim;
        slab[i / slab_columns * slab_stride + column] =
            is_seen ? to_float(keys[size_t(key) * a.head_dim + from + column]) : 0.f;
      }
      __syncthreads();  // the slab is filled
      const int width = min(slab_columns, a.head_dim - from);
      for (int i = 0; i < width; ++i) {
        const float key = slab[lane * slab_stride + i];
#pragma unroll
        for (int r = 0; r < warp_rows; ++r) {
          const float query = queries[(warp * warp_rows + r) * a.head_dim + from + i];
          product[r] = fmaf(query, key, product[r]);
        }
      }
    }

    const int key = walk.key + lane;
#pragma unroll
    for (int r = 0; r < warp_rows; ++r) {
      const interval seen = keys_in(page, row[r].visible);
      float score = minus_infinity();
      if (key >= seen.first && key < seen.end) {
        score = scale_score(a, product[r] * key_scale);
        if (key_rules) score = apply_key_rules(a, row[r], position_in(page, key), score);
      }
      float highest = fmaxf(peak[r], score);
      for (int d = 16; d > 0; d /= 2) {
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, d));
      }
      const float base = highest == minus_infinity() ? 0.f : highest;  // no key seen yet
      const float correction = expf(peak[r] - base);
      const float weight = expf(score - base);
      float total = weight;
      for (int d = 16; d > 0; d /= 2)
        total += __shfl_xor_sync(0xffffffffu, total, d);
      peak[r] = highest;
      sum[r] = sum[r] * correction + total;
      weights[(warp * warp_rows + r) * plain_keys + lane] = weight;
      if (lane == 0) corrections[warp * warp_rows + r] = correction;
    }
    __syncthreads();  // the weights and corrections of all rows are there

#pragma unroll
    for (int c = 0; c < columns; ++c) {
      const int column = c * 128 + threadIdx.x;
      if (column >= a.value_dim) break;
#pragma unroll
      for (int r = 0; r < plain_rows; ++r)
        out[r][c] *= corrections[r];
      for (int k = first; k < end; ++k) {
        const float value = to_float(values[size_t(k) * a.value_stride + column]);
#pragma unroll
        for (int r = 0; r < plain_rows; ++r) {
          out[r][c] = fmaf(weights[r * plain_keys + k - walk.key], value, out[r][c]);
        }
      }
    }
  }

  const size_t all_rows = size_t(gridDim.z) * a.kv_heads * rows_per_head;
  float* const output = a.states + split * a.state_stride;
  float* const maxima = output + all_rows * a.value_dim;
#pragma unroll
  for (int r = 0; r < warp_rows; ++r) {
    const int local = warp * warp_rows + r;
    if (lane != 0) continue;
    sums[local] = sum[r];
    if (local < row_count) {
      maxima[head_row + local] = peak[r];
      maxima[all_rows + head_row + local] = sum[r];
    }
  }
  __syncthreads();  // the sums of all rows are there

#pragma unroll
  for (int c = 0; c < columns; ++c) {
    const int column = c * 128 + threadIdx.x;
#pragma unroll
    for (int r = 0; r < plain_rows; ++r) {
      if (r < row_count && column < a.value_dim) {
        const float total = sums[r];
        output[(head_row + r) * a.value_dim + column] =
            total > 0 ? out[r][c] / total * value_scale : 0.f;
      }
    }
  }
}
