// Tiles of keys, values and queries in shared memory, as tensor cores take them: what attend_tensor
// and attend_prefill have in common.
#pragma once

#include "primitives.cuh"
#include "visibility.cuh"

constexpr float log2_e = 1.4426950408889634f;

// What tensor cores multiply keys and values of a storage type as: those of 8 bits as f16.
template <class element, int size = sizeof(element)>
struct arithmetic_of {
  using type = element;
};
template <class element>
struct arithmetic_of<element, 1> {
  using type = float16;
};

template <class element>
constexpr int chunk_size = 16 / sizeof(element);  // elements of 16 bytes

// Element of a swizzled tile: rows of `columns` elements in chunks of 16 bytes.
template <class element, int columns>
__device__ __forceinline__ int tile_offset(int row, int chunk) {
  constexpr int size = chunk_size<element>, chunks = columns / size;
  static_assert(chunks % 4 == 0, "eight rows must meet eight different banks");
  const int swizzled = chunks % 8 == 0 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
  return row * columns + swizzled * size;
}

// The right operands of a warp's multiply_add from what load_matrix gave it. A row of keys holds
// as many steps of 16 columns as fit in 64 bytes.
template <class element>
__device__ __forceinline__ void key_operand(element type, const unsigned (&r)[4], int step,
                                            unsigned (&b)[2]) {
  if constexpr (sizeof(element) == 1) {
    b[0] = widen<0, 1>(type, r[step]);
    b[1] = widen<2, 3>(type, r[step]);
  } else {
    b[0] = r[2 * step];
    b[1] = r[2 * step + 1];
  }
}

// The same for values: 16 columns of 16 keys are two operands, of 8-bit elements even and odd
// columns, for as many steps of 16 keys as fit in a load.
template <class element>
__device__ __forceinline__ void value_operands(element type, const unsigned (&r)[4], int step,
                                               unsigned (&b)[2][2]) {
  if constexpr (sizeof(element) == 1) {
    for (int i = 0; i < 2; ++i) {
      b[0][i] = widen<0, 2>(type, r[2 * step + i]);
      b[1][i] = widen<1, 3>(type, r[2 * step + i]);
    }
  } else {
    b[0][0] = r[0], b[0][1] = r[1];
    b[1][0] = r[2], b[1][1] = r[3];
  }
}

// Copies up to 16 bytes of a row; what lies past `count` elements becomes zero. Copies are
// asynchronous where the source is a multiple of 16 bytes.
template <class element>
__device__ __forceinline__ void copy_chunk(element* target, const element* source, int count,
                                           const void* contents) {
  if (count <= 0) {
    copy_async_16(target, contents, false);
  } else if (count >= chunk_size<element> && reinterpret_cast<size_t>(source) % 16 == 0) {
    copy_async_16(target, source, true);
  } else {
    unsigned words[4] = {};
#pragma unroll
    for (int i = 0; i < chunk_size<element>; ++i) {
      const unsigned bits = i < count ? source[i].bits : 0u;
      words[i * sizeof(element) / 4] |= bits << i * sizeof(element) % 4 * 8;
    }
    *reinterpret_cast<uint4*>(target) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// Copies the tile that the walk stands at; keys that no row sees become zeros and are not read.
template <class element, int tile, int tile_keys>
__device__ __forceinline__ void copy_tile(element* target, const element* page, int dim, int stride,
                                          const tile_walk<tile_keys>& walk, const void* contents) {
  constexpr int size = chunk_size<element>, chunks = tile / size;
  for (int i = threadIdx.x; i < tile_keys * chunks; i += blockDim.x) {
    const int row = i / chunks, chunk = i % chunks, key = walk.key + row;
    const bool is_seen = key >= walk.seen.first && key < walk.seen.end;
    copy_chunk(target + tile_offset<element, tile>(row, chunk),
               page + size_t(key) * stride + chunk * size, is_seen ? dim - chunk * size : 0,
               contents);
  }
}

// The same, where a block has time for little else: inside an aligned page a copy is one
// instruction, its addresses steps from the first.
template <class element, int tile, int threads, int tile_keys>
__device__ __forceinline__ void copy_tile_in_steps(element* target, const element* page, int dim,
                                                   int stride, const tile_walk<tile_keys>& walk,
                                                   const void* contents) {
  constexpr int size = chunk_size<element>, chunks = tile / size, count = tile_keys * chunks;
  const element* const source = page + size_t(walk.key) * stride;
  const bool is_whole = walk.key >= walk.seen.first && walk.key + tile_keys <= walk.seen.end;
  const bool is_aligned = reinterpret_cast<size_t>(page) % 16 == 0 && stride % size == 0;
  if (!is_whole || !is_aligned || dim % size != 0) {
    copy_tile<element, tile>(target, page, dim, stride, walk, contents);
    return;
  }
#pragma unroll 4
  for (int i = 0; i < (count + threads - 1) / threads; ++i) {
    const int place = threadIdx.x + i * threads, row = place / chunks, chunk = place % chunks;
    if (count % threads != 0 && place >= count) break;
    const bool is_inside = chunk * size < dim;
    copy_async_16(target + tile_offset<element, tile>(row, chunk),
                  is_inside ? source + row * stride + chunk * size : contents, is_inside);
  }
}

// Loads the block's query rows, row i from line `line_of(i)` of the queries, each divided by a
// power of two that brings it to [1, 2), so that rounding to f16 neither overflows nor loses small
// rows; the divisor has the sign of the scale, so that larger products are larger scores. Columns
// and rows past the end are zero. Beside 8-bit keys, columns 4 n to 4 n + 3 of 16 stand where a
// lane meets its four bytes of a key: at 2 n, 2 n + 1, 2 n + 8, 2 n + 9.
template <class element, int head_tile, bool are_keys_narrow, class numbering>
__device__ __forceinline__ void load_queries(const attend_arguments& a, int row_count, int rows,
                                             numbering line_of, element* queries, float* factors) {
  constexpr int pairs = head_tile / 64;              // of a lane and row
  constexpr int together = head_tile > 256 ? 1 : 4;  // rows in flight
  const int lane = threadIdx.x % 32;
  for (int first = threadIdx.x / 32 * together; first < rows; first += blockDim.x / 32 * together) {
    float number[together][pairs][2], largest[together] = {};
#pragma unroll
    for (int r = 0; r < together; ++r) {
      const int dim = first + r < row_count ? a.head_dim : 0;
      const float* const source = a.queries + line_of(first + r) * a.head_dim;
#pragma unroll
      for (int p = 0; p < pairs; ++p) {
        for (int i = 0; i < 2; ++i) {
          const int column = p * 64 + lane * 2 + i;
          number[r][p][i] = column < dim ? __ldg(source + column) : 0.f;
          largest[r] = fmaxf(largest[r], fabsf(number[r][p][i]));
        }
      }
    }
#pragma unroll
    for (int r = 0; r < together; ++r) {
      for (int d = 16; d > 0; d /= 2) {
        largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffffu, largest[r], d));
      }
      const unsigned exponent = min(max(__float_as_uint(largest[r]) >> 23, 1u), 253u);
      const unsigned sign = a.scale < 0 ? 0x80000000u : 0u;
      const float factor = __uint_as_float(sign | (254u - exponent) << 23);
#pragma unroll
      for (int p = 0; p < pairs; ++p) {
        const int i = p * 64 + lane * 2;
        const int place = are_keys_narrow ? i / 16 * 16 + i % 4 / 2 * 8 + i % 16 / 4 * 2 : i;
        *reinterpret_cast<unsigned*>(
            queries + tile_offset<element, head_tile>(first + r, place / 8) + place % 8) =
            pack(element(), number[r][p][0] * factor, number[r][p][1] * factor);
      }
      if (lane == 0) factors[first + r] = __uint_as_float(sign | exponent << 23);
    }
  }
}
