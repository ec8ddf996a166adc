// Partial attention on tensor cores: the state of a block of query rows of one batch row and KV
// head over one range of its pages.
//
//   queries   [batch, query_heads, query_count, head_dim] fp32, unscaled
//   keys      per page [kv_heads, capacity, head_dim] f16, bf16 or f8e4m3, at any alignment
//   values    per page [kv_heads, capacity, value_stride], or the first elements of the keys
//   states    per split output [rows, value_dim] | max [rows] | sum [rows], fp32
//
// A block is 4 warps over a tile of 16 * row_warps rows. Keys and values go through shared memory
// in tiles of tile_keys, `stages` of them in flight by cp.async, padded there (never in global
// memory) to head_tile and value_tile and swizzled so that ldmatrix meets no bank conflict. For
// each tile a warp scores its 16 rows against its share of the keys; the warps of a row exchange
// maxima and weights, then each adds all keys to its share of the output's columns. A warp that
// has its rows to itself keeps the weights in registers.
//
// Decode reads every key and value once and is bound by that: 2 bytes * (head_dim + value_dim) a
// key, 1 of f8e4m3. That type stays as it is in shared memory and is widened to f16 in registers,
// where a lane finds the same four bytes of a row that it would of 16-bit elements: so key columns
// meet the tensor cores in another order, which queries follow, and value columns even ones first,
// which the output undoes. Weights are rounded to the type of the arithmetic before they meet the
// values, sums are not. Where results are reproducible a row adds up its weights by quarters of a
// tile, and the quarters in their order (`has_quarters`): as a block of 16 rows does of itself, so
// that a row's bits are the same however many rows a block has.
#include "tensor_tiles.cuh"

template <class element, int head_tile, int value_tile, bool values_in_keys, int row_warps,
          int tile_keys, int stages, bool has_quarters = false>
__global__ void __launch_bounds__(128, 2)
    attend_tensor(const __grid_constant__ attend_arguments a) {
  using arithmetic = typename arithmetic_of<element>::type;
  constexpr int warps = 4, key_warps = warps / row_warps, rows = 16 * row_warps;
  constexpr bool is_narrow = sizeof(element) == 1;
  constexpr int key_steps = is_narrow ? 4 : 2, value_steps = is_narrow ? 2 : 1;  // of 16, a load
  constexpr int warp_keys = tile_keys / key_warps, warp_columns = value_tile / key_warps;
  constexpr int quarters = has_quarters ? row_warps : 1;  // of a tile that a warp has
  constexpr int quarter_groups = warp_keys / 8 / quarters;
  constexpr int key_elements = tile_keys * head_tile;
  constexpr int stage = key_elements + (values_in_keys ? 0 : tile_keys * value_tile);
  constexpr int value_columns = values_in_keys ? head_tile : value_tile;
  static_assert(warp_columns <= 256 && warp_columns % 16 == 0, "the output stays in registers");
  static_assert(warp_keys % 8 == 0 && tile_keys % 32 == 0 && head_tile % 64 == 0 && stages >= 2,
                "whole tensor-core tiles, and one stage to fill beside the one in use");
  static_assert(!values_in_keys || value_tile <= head_tile, "values are a part of the keys");

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row_warp = warp / key_warps, key_warp = warp % key_warps;
  const int split = blockIdx.x % a.splits, kv_head = blockIdx.y, batch = blockIdx.z;
  const int rows_per_head = a.group * a.query_count;
  // Under a causal mask the last rows see most keys: they go first.
  const int first_row = (int(gridDim.x / a.splits) - 1 - int(blockIdx.x) / a.splits) * rows;
  const int row_count = min(rows, rows_per_head - first_row);
  const size_t head_row = (size_t(batch) * a.kv_heads + kv_head) * rows_per_head + first_row;

  element* const tiles = static_cast<element*>(shared_memory());  // [stages][keys, values]
  arithmetic* const queries =
      reinterpret_cast<arithmetic*>(tiles + stages * stage);                    // [rows][head_tile]
  arithmetic* const weights = queries + rows * head_tile;                       // [rows][tile_keys]
  float* const factors = reinterpret_cast<float*>(weights + rows * tile_keys);  // [rows]
  float* const tops = factors + 64;                                             // [key_warps][rows]
  float* const sums = reinterpret_cast<float*>(weights);  // [4 at most][rows], after the last tile

  auto fetch = [&](const tile_walk<tile_keys>& walk, int into) {
    const page_entry page = a.pages[walk.page];
    const element* const contents = static_cast<const element*>(a.contents);
    const size_t head = size_t(kv_head) * page.capacity;
    element* const target = tiles + into * stage;
    copy_tile<element, head_tile>(target, contents + page.key_offset + head * a.head_dim,
                                  a.head_dim, a.head_dim, walk, a.contents);
    if constexpr (!values_in_keys) {
      copy_tile<element, value_tile>(target + key_elements,
                                     contents + page.value_offset + head * a.value_stride,
                                     a.value_dim, a.value_stride, walk, a.contents);
    }
  };

  auto number_of = [&](int row) { return first_row + row; };
  const row_hull hull = hull_of(a, batch, kv_head, row_count, number_of);
  tile_walk<tile_keys> walk = start_walk<tile_keys>(a, batch, split, hull), ahead = walk;
#pragma unroll
  for (int s = 0; s < stages - 1; ++s) {
    if (!ahead.is_over()) {
      fetch(ahead, s);
      ahead.advance(a);
    }
    copy_async_commit();
  }
  load_queries<arithmetic, head_tile, is_narrow>(
      a, row_count, rows, [&](int row) { return head_row + row; }, queries, factors);

  // Rows lane / 4 and lane / 4 + 8 of the warp's 16.
  const int local_row = row_warp * 16 + lane / 4;
  const query_row row[2] = {make_row(a, batch, kv_head, first_row + local_row),
                            make_row(a, batch, kv_head, first_row + local_row + 8)};
  const bool key_rules = has_key_rules(a);
  const float key_scale = key_scale_of(a, kv_head);
  float out[warp_columns / 8][4] = {}, peak[2] = {minus_infinity(), minus_infinity()};
  float sum[2][quarters] = {};
  interval seen[2];
  int known_page = -1;

  for (int t = 0; !walk.is_over(); ++t, walk.advance(a)) {
    copy_async_wait<stages - 2>();
    __syncthreads();  // tile t has arrived, and no warp reads tile t - 1 or its weights any more
    if (!ahead.is_over()) {
      fetch(ahead, (t + stages - 1) % stages);
      ahead.advance(a);
    }
    copy_async_commit();
    const element* const keys = tiles + t % stages * stage;
    const element* const values = values_in_keys ? keys : keys + key_elements;

    float score[warp_keys / 8][4] = {};
#pragma unroll 2
    for (int d = 0; d < head_tile / 16 / key_steps; ++d) {
      unsigned left[key_steps][4];
      for (int i = 0; i < key_steps; ++i) {
        const int chunk = (d * key_steps + i) * 2 + lane / 16;
        load_matrix(left[i],
                    queries + tile_offset<arithmetic, head_tile>(row_warp * 16 + lane % 16, chunk));
      }
#pragma unroll
      for (int n = 0; n < warp_keys / 8; ++n) {
        unsigned right[4], b[2];
        load_matrix(right, keys + tile_offset<element, head_tile>(
                                      key_warp * warp_keys + n * 8 + lane % 8, d * 4 + lane / 8));
#pragma unroll
        for (int i = 0; i < key_steps; ++i) {
          key_operand(element(), right, i, b);
          multiply_add(arithmetic(), score[n], left[i], b[0], b[1]);
        }
      }
    }

    if (walk.page != known_page) {
      known_page = walk.page;
      for (int h = 0; h < 2; ++h)
        seen[h] = keys_in(a.pages[walk.page], row[h].visible);
    }
    float top[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float factor = factors[local_row + h * 8] * key_scale;
      top[h] = minus_infinity();
#pragma unroll
      for (int n = 0; n < warp_keys / 8; ++n) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          const int key = walk.key + key_warp * warp_keys + n * 8 + lane % 4 * 2 + i % 2;
          float value = minus_infinity();
          if (key >= seen[h].first && key < seen[h].end) {
            value = scale_score(a, score[n][i] * factor);
            if (key_rules) {
              const int position = position_in(a.pages[walk.page], key);
              value = apply_key_rules(a, row[h], position, value);
            }
          }
          score[n][i] = value;
          top[h] = fmaxf(top[h], value);
        }
      }
      top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
      top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
      if (key_warps > 1 && lane % 4 == 0) tops[key_warp * rows + local_row + h * 8] = top[h];
    }
    if constexpr (key_warps > 1) {
      __syncthreads();  // the maxima of all keys of the tile are there
    }

    float correction[2];
    unsigned pairs[warp_keys / 8][2];  // weights as multiply_add wants them
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float highest = fmaxf(peak[h], top[h]);
      if constexpr (key_warps > 1) {
        for (int w = 0; w < key_warps; ++w) {
          highest = fmaxf(highest, tops[w * rows + local_row + h * 8]);
        }
      }
      const float base = highest == minus_infinity() ? 0.f : highest;  // no key seen yet
      correction[h] = exp2_fast((peak[h] - base) * log2_e);
      peak[h] = highest;
#pragma unroll
      for (int q = 0; q < quarters; ++q) {
        float total = 0;
#pragma unroll
        for (int n = q * quarter_groups; n < (q + 1) * quarter_groups; ++n) {
          const float low = exp2_fast((score[n][2 * h] - base) * log2_e);
          const float high = exp2_fast((score[n][2 * h + 1] - base) * log2_e);
          total += low + high;
          pairs[n][h] = pack(arithmetic(), low, high);
          if constexpr (key_warps > 1) {
            const int chunk = key_warp * (warp_keys / 8) + n;
            const int place = tile_offset<arithmetic, tile_keys>(local_row + h * 8, chunk);
            *reinterpret_cast<unsigned*>(weights + place + lane % 4 * 2) = pairs[n][h];
          }
        }
        sum[h][q] = sum[h][q] * correction[h] + total;
      }
    }
    if constexpr (key_warps > 1) {
      __syncthreads();  // the weights of all keys of the tile are there
    }

#pragma unroll
    for (int n = 0; n < warp_columns / 8; ++n) {
      for (int i = 0; i < 4; ++i)
        out[n][i] *= correction[i / 2];
    }
#pragma unroll
    for (int k = 0; k < tile_keys / 16; k += value_steps) {
      unsigned left[value_steps][4];
      for (int s = 0; s < value_steps; ++s) {
        if constexpr (key_warps > 1) {
          const int row = row_warp * 16 + lane % 16, chunk = (k + s) * 2 + lane / 16;
          load_matrix(left[s], weights + tile_offset<arithmetic, tile_keys>(row, chunk));
        } else {
          for (int i = 0; i < 4; ++i)
            left[s][i] = pairs[2 * (k + s) + i / 2][i % 2];
        }
      }
#pragma unroll
      for (int n = 0; n < warp_columns / 16; ++n) {
        unsigned right[4], b[2][2];
        const int key = k * 16 + lane % (16 * value_steps);
        const int chunk =
            (key_warp * warp_columns + n * 16) / chunk_size<element> + (is_narrow ? 0 : lane / 16);
        load_matrix_transposed(right, values + tile_offset<element, value_columns>(key, chunk));
#pragma unroll
        for (int s = 0; s < value_steps; ++s) {
          value_operands(element(), right, s, b);
          multiply_add(arithmetic(), out[2 * n], left[s], b[0][0], b[0][1]);
          multiply_add(arithmetic(), out[2 * n + 1], left[s], b[1][0], b[1][1]);
        }
      }
    }
  }

  __syncthreads();  // no warp reads the weights of the last tile any more
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int q = 0; q < quarters; ++q) {
      sum[h][q] += __shfl_xor_sync(0xffffffffu, sum[h][q], 1);
      sum[h][q] += __shfl_xor_sync(0xffffffffu, sum[h][q], 2);
      if (lane % 4 == 0) sums[(key_warp * quarters + q) * rows + local_row + h * 8] = sum[h][q];
    }
  }
  __syncthreads();  // the sums of all warps are there

  const size_t all_rows = size_t(gridDim.z) * a.kv_heads * rows_per_head;
  float* const output = a.states + split * a.state_stride;
  float* const maxima = output + all_rows * a.value_dim;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int local = local_row + h * 8;
    if (local >= row_count) continue;
    float total = 0;
    for (int q = 0; q < key_warps * quarters; ++q)
      total += sums[q * rows + local];
    const float inverse = total > 0 ? value_scale_of(a, kv_head) / total : 0.f;
    const size_t target = head_row + local;
#pragma unroll
    for (int n = 0; n < warp_columns / 8; ++n) {
      for (int i = 0; i < 2; ++i) {
        const int place = lane % 4 * 2 + i;  // in the tensor core's 8 columns
        const int column =
            key_warp * warp_columns + (is_narrow ? n / 2 * 16 + place * 2 + n % 2 : n * 8 + place);
        if (column < a.value_dim) {
          output[target * a.value_dim + column] = out[n][2 * h + i] * inverse;
        }
      }
    }
    if (key_warp == 0 && lane % 4 == 0) {
      maxima[target] = peak[h];
      maxima[all_rows + target] = total;
    }
  }
}
