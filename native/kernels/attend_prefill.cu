// Partial attention on tensor cores for many query rows: the same states as attend_tensor, which
// has the shapes and the rules of storage.
//
// A block takes 128 rows of a KV head, neighbours in the order of queries, the heads of a query
// side by side: so few tiles of keys are partly visible under a causal mask, and all heads of the
// group share each tile. 4 warps have 32 rows each (8 have 16 where values are wider than 128):
// what a warp loads of keys and values meets two fragments of rows, half the bytes a multiply of
// attend_tensor, which shared memory bounds. Weights stay in registers, where the accumulators of
// scores are the left operands of values.
//
// Keys and values have a buffer each: values arrive while scores are made, the next keys while the
// values are added; two blocks of a multiprocessor fill each other's gaps. Tiles that no row sees
// are not loaded, a warp passes over those that none of its rows sees, and asks single keys only
// where its rows differ or rules begin.
//
// Scores stay products of the scaled queries: 2^((product - largest) * step) with the scale and
// log2 e in `step`, a difference and a product a weight. Where scores are capped or biased
// (`has_rules`) they are brought to natural units first.
#include "tensor_tiles.cuh"

constexpr int prefill_rows = 128;

template <int value_tile>
constexpr int prefill_warps = value_tile > 128 ? 8 : 4;

// Which rows, keys and split a block takes. Blocks start in the order of their numbers: of 16 KV
// heads together, the rows that see most under a causal mask first, so that the last blocks to
// end are short; of these heads, many blocks read the same keys from the second-level cache.
struct block_place {
  int split;
  int kv_head;
  int batch;
  int first_row;  // in the order of queries
};

__device__ __forceinline__ block_place place_of_block(int splits) {
  constexpr unsigned together = 16;
  const unsigned heads = gridDim.y * gridDim.z, blocks = gridDim.x;
  const unsigned number = blockIdx.x + blocks * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned first_head = number / (blocks * together) * together;
  const unsigned width = min(together, heads - first_head);
  const unsigned rest = number - first_head * blocks, head = first_head + rest % width;
  const int step = int(rest / width), tiles = int(blocks) / splits;
  return {step % splits, int(head % gridDim.y), int(head / gridDim.y),
          (tiles - 1 - step / splits) * prefill_rows};
}

// A tile of keys as all warps find it in shared memory, where it costs no registers.
template <int tile_keys>
struct shared_tile {
  tile_walk<tile_keys> walk;
  int first_place;
  int last_place;  // of the tile's last key; the largest int where the page ends before it

  __device__ __forceinline__ void look_up(const attend_arguments& a) {
    if (walk.is_over()) return;
    const page_entry page = a.pages[walk.page];
    first_place = position_in(page, walk.key);
    const int last = walk.key + tile_keys - 1;
    last_place = last < page.count ? position_in(page, last) : 0x7fffffff;
  }
};

// What the rows of a warp see.
struct warp_sight {
  row_hull any;
  row_core all;
};

template <class element, int head_tile, int value_tile, int tile_keys, bool has_rules>
__global__ void __launch_bounds__(32 * prefill_warps<value_tile>, value_tile > 128 ? 1 : 2)
    attend_prefill(const __grid_constant__ attend_arguments a) {
  using arithmetic = typename arithmetic_of<element>::type;
  constexpr int warps = prefill_warps<value_tile>, threads = 32 * warps;
  constexpr int warp_rows = prefill_rows / warps, fragments = warp_rows / 16;
  constexpr bool is_narrow = sizeof(element) == 1;
  // What a load of four matrices holds: groups of 8 keys, steps of 16 values.
  constexpr int key_groups = is_narrow ? 4 : 2, value_steps = is_narrow ? 2 : 1;
  static_assert(value_tile <= 256 && value_tile % 64 == 0, "the output stays in registers");
  static_assert(tile_keys % 32 == 0 && head_tile % 64 == 0, "whole tensor-core tiles");

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const block_place place = place_of_block(a.splits);
  const int kv_head = place.kv_head, batch = place.batch;
  const int rows_per_head = a.group * a.query_count;
  const int row_count = min(prefill_rows, rows_per_head - place.first_row);
  const size_t head_row = (size_t(batch) * a.kv_heads + kv_head) * rows_per_head;
  // Row of the block -> row of the KV head as states have it.
  auto number_of = [&](int row) {
    const int number = place.first_row + row;
    return number % a.group * a.query_count + number / a.group;
  };

  arithmetic* const queries = static_cast<arithmetic*>(shared_memory());  // [rows][head_tile]
  element* const keys =
      reinterpret_cast<element*>(queries + prefill_rows * head_tile);  // [tile_keys][head_tile]
  element* const values = keys + tile_keys * head_tile;                // [tile_keys][value_tile]
  interval* const visible =
      reinterpret_cast<interval*>(values + tile_keys * value_tile);          // [rows] places
  interval* const own_keys = visible + prefill_rows;                         // [rows] of the page
  float* const factors = reinterpret_cast<float*>(own_keys + prefill_rows);  // [rows]
  float* const steps = factors + prefill_rows;                               // [rows]
  shared_tile<tile_keys>* const tiles =
      reinterpret_cast<shared_tile<tile_keys>*>(steps + prefill_rows);  // [2]
  warp_sight* const sights = reinterpret_cast<warp_sight*>(tiles + 2);  // [warps]

  auto fetch_keys = [&](const tile_walk<tile_keys>& walk) {
    const page_entry page = a.pages[walk.page];
    const size_t head = size_t(kv_head) * page.capacity;
    copy_tile_in_steps<element, head_tile, threads>(
        keys, static_cast<const element*>(a.contents) + page.key_offset + head * a.head_dim,
        a.head_dim, a.head_dim, walk, a.contents);
  };
  auto fetch_values = [&](const tile_walk<tile_keys>& walk) {
    const page_entry page = a.pages[walk.page];
    const size_t head = size_t(kv_head) * page.capacity;
    copy_tile_in_steps<element, value_tile, threads>(
        values, static_cast<const element*>(a.contents) + page.value_offset + head * a.value_stride,
        a.value_dim, a.value_stride, walk, a.contents);
  };

  const row_hull block_hull = hull_of(a, batch, kv_head, row_count, number_of);
  if (threadIdx.x == 0) {
    tiles[0].walk = start_walk<tile_keys>(a, batch, place.split, block_hull);
    tiles[0].look_up(a);
  }
  __syncthreads();  // the first tile is known
  if (!tiles[0].walk.is_over()) fetch_keys(tiles[0].walk);
  copy_async_commit();
  load_queries<arithmetic, head_tile, is_narrow>(
      a, row_count, prefill_rows, [&](int row) { return head_row + number_of(row); }, queries,
      factors);
  __syncthreads();  // all factors are there

  const float key_scale = key_scale_of(a, kv_head);
  const int warp_row = warp * warp_rows, warp_count = min(warp_rows, row_count - warp_row);
  auto warp_number_of = [&](int row) { return number_of(warp_row + row); };
  const warp_sight own_sight = {hull_of(a, batch, kv_head, warp_count, warp_number_of),
                                core_of(a, batch, kv_head, warp_count, warp_number_of)};
  if (lane == 0) sights[warp] = own_sight;
  if (lane < warp_rows) {
    const int row = warp_row + lane;
    visible[row] =
        row < row_count ? make_row(a, batch, kv_head, number_of(row)).visible : interval{0, 0};
    // Bounds keep products with 0 and infinity what they are.
    const double step = double(factors[row]) * key_scale * (double(a.scale) + a.scale_rest);
    const double bounded = fmin(fmax(step * 1.4426950408889634, 0x1p-126), 0x1.fffffep127);
    steps[row] = has_rules ? log2_e : float(bounded);
  }

  const int local_row = warp_row + lane / 4;  // and every eighth from there
  // A lane's rows of what load_matrix takes; 16 columns further is one exclusive or.
  const int query_place = tile_offset<arithmetic, head_tile>(warp_row + lane % 16, lane / 16);
  const int key_place =
      is_narrow ? tile_offset<element, head_tile>(lane, 0)
                : tile_offset<element, head_tile>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const int value_place =
      tile_offset<element, value_tile>(lane % (16 * value_steps), is_narrow ? 0 : lane / 16);
  float out[fragments][value_tile / 8][4] = {}, peak[fragments][2], sum[fragments][2] = {};
#pragma unroll
  for (int m = 0; m < fragments; ++m)
    peak[m][0] = peak[m][1] = minus_infinity();

  for (int t = 0; !tiles[t % 2].walk.is_over(); ++t) {
    const shared_tile<tile_keys>& tile = tiles[t % 2];
    shared_tile<tile_keys>& next = tiles[(t + 1) % 2];
    copy_async_wait<0>();
    __syncthreads();  // the keys have arrived, and no warp reads the values of the tile before
    fetch_values(tile.walk);
    copy_async_commit();
    if (threadIdx.x == 0) {
      next.walk = tile.walk;
      next.walk.advance(a);
      next.look_up(a);
    }
    __syncwarp();  // tensor-core products are the whole warp's

    const warp_sight& sight = sights[warp];
    const bool is_seen = tile.first_place < sight.any.end && tile.last_place >= sight.any.first;
    unsigned pairs[fragments][tile_keys / 8][2];  // weights as multiply_add wants them
    if (is_seen) {
      float score[fragments][tile_keys / 8][4] = {};
#pragma unroll 2
      for (int d = 0; d < head_tile / 16; ++d) {
        unsigned left[fragments][4];
#pragma unroll
        for (int m = 0; m < fragments; ++m)
          load_matrix(left[m], queries + (query_place ^ d * 16) + m * 16 * head_tile);
#pragma unroll
        for (int n = 0; n < tile_keys / 8 / key_groups; ++n) {
          unsigned right[4], b[2];
          load_matrix(right, keys + (key_place ^ d * 16) + n * 8 * key_groups * head_tile);
#pragma unroll
          for (int g = 0; g < key_groups; ++g) {
            key_operand(element(), right, g, b);
#pragma unroll
            for (int m = 0; m < fragments; ++m)
              multiply_add(arithmetic(), score[m][n * key_groups + g], left[m], b[0], b[1]);
          }
        }
      }

      const bool is_whole = tile.first_place >= sight.all.first && tile.last_place < sight.all.end;
      const bool is_ruled = has_rules && tile.last_place >= sight.all.rules;
      const tile_walk<tile_keys>& walk = tile.walk;
      if (has_rules || !is_whole) {
        if (lane < warp_rows) {
          own_keys[warp_row + lane] = keys_in(a.pages[walk.page], visible[warp_row + lane]);
        }
        __syncwarp();  // every lane reads the intervals of its rows
#pragma unroll
        for (int m = 0; m < fragments; ++m) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int local = local_row + m * 16 + h * 8;
            const interval own = own_keys[local];
            const float factor = factors[local] * key_scale;
            query_row row;
            if (is_ruled && local < row_count) row = make_row(a, batch, kv_head, number_of(local));
#pragma unroll
            for (int n = 0; n < tile_keys / 8; ++n) {
#pragma unroll
              for (int i = 2 * h; i < 2 * h + 2; ++i) {
                const int key = walk.key + n * 8 + lane % 4 * 2 + i % 2;
                float value = minus_infinity();
                if (key >= own.first && key < own.end) {
                  value = score[m][n][i];
                  if constexpr (has_rules) {
                    value = scale_score(a, value * factor);
                    if (is_ruled) {
                      const int position = position_in(a.pages[walk.page], key);
                      value = apply_key_rules(a, row, position, value);
                    }
                  }
                }
                score[m][n][i] = value;
              }
            }
          }
        }
      }

      float correction[fragments][2];
      bool is_corrected = false;
#pragma unroll
      for (int m = 0; m < fragments; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float step = steps[local_row + m * 16 + h * 8];
          float top = peak[m][h];
#pragma unroll
          for (int n = 0; n < tile_keys / 8; ++n)
            top = fmaxf(top, fmaxf(score[m][n][2 * h], score[m][n][2 * h + 1]));
          top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
          top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
          const float base = top == minus_infinity() ? 0.f : top;  // no key seen yet
          correction[m][h] = exp2_fast((peak[m][h] - base) * step);
          is_corrected |= peak[m][h] != top;
          peak[m][h] = top;
          float total = 0;
#pragma unroll
          for (int n = 0; n < tile_keys / 8; ++n) {
            const float low = exp2_fast((score[m][n][2 * h] - base) * step);
            const float high = exp2_fast((score[m][n][2 * h + 1] - base) * step);
            total += low + high;
            pairs[m][n][h] = pack(arithmetic(), low, high);
          }
          sum[m][h] = sum[m][h] * correction[m][h] + total;
        }
      }
      if (__any_sync(0xffffffffu, is_corrected)) {
#pragma unroll
        for (int m = 0; m < fragments; ++m) {
#pragma unroll
          for (int n = 0; n < value_tile / 8; ++n) {
            for (int i = 0; i < 4; ++i)
              out[m][n][i] *= correction[m][i / 2];
          }
        }
      }
    }

    copy_async_wait<0>();
    __syncthreads();  // the values have arrived, the next tile is known, and no warp reads the keys
    if (!next.walk.is_over()) fetch_keys(next.walk);
    copy_async_commit();
    if (is_seen) {
#pragma unroll
      for (int k = 0; k < tile_keys / 16; k += value_steps) {
#pragma unroll
        for (int n = 0; n < value_tile / 16; ++n) {
          unsigned right[4], b[2][2];
          load_matrix_transposed(right, values + (value_place ^ n * 16) + k * 16 * value_tile);
#pragma unroll
          for (int s = 0; s < value_steps; ++s) {
            value_operands(element(), right, s, b);
#pragma unroll
            for (int m = 0; m < fragments; ++m) {
              const unsigned left[4] = {pairs[m][2 * (k + s)][0], pairs[m][2 * (k + s)][1],
                                        pairs[m][2 * (k + s) + 1][0], pairs[m][2 * (k + s) + 1][1]};
              multiply_add(arithmetic(), out[m][2 * n], left, b[0][0], b[0][1]);
              multiply_add(arithmetic(), out[m][2 * n + 1], left, b[1][0], b[1][1]);
            }
          }
        }
      }
    }
  }

  const size_t all_rows = size_t(gridDim.z) * a.kv_heads * rows_per_head;
  float* const output = a.states + place.split * a.state_stride;
  float* const maxima = output + all_rows * a.value_dim;
#pragma unroll
  for (int m = 0; m < fragments; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[m][h];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      const int local = local_row + m * 16 + h * 8;
      if (local >= row_count) continue;
      const float inverse = total > 0 ? value_scale_of(a, kv_head) / total : 0.f;
      const size_t target = head_row + number_of(local);
#pragma unroll
      for (int n = 0; n < value_tile / 8; ++n) {
        for (int i = 0; i < 2; ++i) {
          const int column = n * 8 + lane % 4 * 2 + i;  // in the tensor core's order
          const int place_in_row = is_narrow ? n / 2 * 16 + (lane % 4 * 2 + i) * 2 + n % 2 : column;
          if (place_in_row < a.value_dim)
            output[target * a.value_dim + place_in_row] = out[m][n][2 * h + i] * inverse;
        }
      }
      if (lane % 4 == 0) {
        const bool is_raw = !has_rules && peak[m][h] != minus_infinity();
        maxima[target] =
            is_raw ? scale_score(a, peak[m][h] * (factors[local] * key_scale)) : peak[m][h];
        maxima[all_rows + target] = total;
      }
    }
  }
}
