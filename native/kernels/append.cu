// New tokens of a cache, and the queries of a step: rotated by angles that the host made, keys and
// values converted to the storage type and written to their pages.
//
// A warp per row, four to a block; its lanes stride over the row's elements. Memory-bound: a row is
// read once and written once. Products are rounded before they are added and every element once
// more when it is stored, so all devices store the same bits. The limits of a row's page grow by an
// atomic maximum: bits of numbers that are not negative order as the numbers do, NaN above all.
#include "arguments.cuh"
#include "primitives.cuh"
#include "rows.cuh"

// Element i of a row after its first 2 * pairs dimensions were turned.
__device__ __forceinline__ float turned(const float* row, int i, const float* cosine,
                                        const float* sine, int pairs, bool is_interleaved) {
  const float own = __ldg(row + i);
  if (i >= 2 * pairs) return own;
  const int pair = is_interleaved ? i / 2 : i < pairs ? i : i - pairs;
  const bool is_first = is_interleaved ? i % 2 == 0 : i < pairs;
  const int distance = is_interleaved ? 1 : pairs;
  const float other = __ldg(row + (is_first ? i + distance : i - distance));
  const float straight = __fmul_rn(own, __ldg(cosine + pair));
  const float across = __fmul_rn(other, __ldg(sine + pair));
  return is_first ? __fadd_rn(straight, -across) : __fadd_rn(straight, across);
}

// x / scale as a float that still tells on which side of a tie of fewer bits the quotient lies:
// rounded to odd.
__device__ __forceinline__ float quotient_of(float x, float scale) {
  const double exact = double(x) / scale;
  const float nearest = float(exact);
  if (nearest == exact || nearest - nearest != 0) return nearest;
  unsigned bits = __float_as_uint(nearest);
  bits -= fabs(double(nearest)) > fabs(exact);
  return __uint_as_float(bits | 1u);
}

// Rounds to nearest even. Types of 8 bits have scales, and no infinity: what they cannot hold is
// NaN.
__device__ __forceinline__ float narrowed(float, float x, float) {
  return x;
}
__device__ __forceinline__ float16 narrowed(float16 type, float x, float) {
  return {(unsigned short)(pack(type, x, 0.f) & 0xffffu)};
}
__device__ __forceinline__ bfloat16 narrowed(bfloat16 type, float x, float) {
  return {(unsigned short)(pack(type, x, 0.f) & 0xffffu)};
}
__device__ __forceinline__ float8_e4m3 narrowed(float8_e4m3, float x, float scale) {
  constexpr float smallest_normal = 0x1p-6f, most = 464, integers = 0x1p23f;
  const float quotient = quotient_of(x, scale);
  const unsigned bits = __float_as_uint(quotient), magnitude = bits & 0x7fffffffu;
  const unsigned sign = bits >> 24 & 0x80u;
  const float size = __uint_as_float(magnitude);
  if (!(size <= most)) return {(unsigned char)(sign | 0x7fu)};
  // Steps of 1/512 below the smallest normal number, whose encoding is 8: rounding up needs no
  // care.
  if (size < smallest_normal) {
    const float steps = __fadd_rn(__fmul_rn(size, 512.f), integers);
    return {(unsigned char)(sign | (__float_as_uint(steps) & 0xfu))};
  }
  const unsigned rounded = (magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  return {(unsigned char)(sign | (rounded - ((127u - 7u) << 3)))};
}

__device__ __forceinline__ int8 narrowed(int8, float x, float scale) {
  const float quotient = quotient_of(x, scale);
  const int steps = int(rintf(quotient));
  return {(unsigned char)(fabsf(quotient) < 127.5f ? steps : -128)};
}

// For numbers that are not negative, and NaN.
__device__ __forceinline__ void raise(float* limit, float number) {
  atomicMax(reinterpret_cast<int*>(limit), int(__float_as_uint(number) & 0x7fffffffu));
}

// A bound of the norm: the sum of squares is exact to 1e-13, and narrowing rounds up.
__device__ __forceinline__ float norm_bound(double squares) {
  const double bound = sqrt(squares) * (1 + 1e-12);
  const float rounded = float(bound);
  return rounded < bound ? __uint_as_float(__float_as_uint(rounded) + 1) : rounded;
}

template <class element>
__global__ void __launch_bounds__(128) append_tokens(const __grid_constant__ append_arguments a) {
  const int lane = threadIdx.x % 32, row = row_of_warp();
  if (row >= a.tokens * a.kv_heads) return;
  const int token = row / a.kv_heads, head = row % a.kv_heads;
  const token_place place = a.places[token];
  if (place.key_offset < 0) return;
  const float key_scale = a.scales ? __ldg(a.scales + head) : 1.f;
  const float value_scale = a.scales ? __ldg(a.scales + a.kv_heads + head) : 1.f;
  const size_t head_rows = size_t(head) * a.capacity;
  element* const contents = static_cast<element*>(a.contents);

  const float* const key = a.keys + size_t(row) * a.head_dim;
  element* const key_target = contents + place.key_offset + head_rows * a.head_dim;
  const size_t angles = size_t(token) * a.rotary_pairs;
  double squares = 0;
  unsigned largest = 0;  // bits of a magnitude
  for (int i = lane; i < a.head_dim; i += 32) {
    const float number =
        turned(key, i, a.cosine + angles, a.sine + angles, a.rotary_pairs, a.is_interleaved);
    const element stored = narrowed(element(), number, key_scale);
    key_target[i] = stored;
    const float back = to_float(stored);
    squares = fma(double(back), double(back), squares);
    if (!a.values && i < a.value_dim) largest = max(largest, __float_as_uint(back) & 0x7fffffffu);
  }
  if (a.values) {
    const float* const value = a.values + size_t(row) * a.value_dim;
    element* const value_target = contents + place.value_offset + head_rows * a.value_dim;
    for (int i = lane; i < a.value_dim; i += 32) {
      const element stored = narrowed(element(), __ldg(value + i), value_scale);
      value_target[i] = stored;
      largest = max(largest, __float_as_uint(to_float(stored)) & 0x7fffffffu);
    }
  }

  for (int d = 16; d > 0; d /= 2) {
    squares += __shfl_xor_sync(0xffffffffu, squares, d);
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, d));
  }
  if (lane > 0) return;
  page_limits* const limits = a.limits + size_t(place.slot) * a.kv_heads + head;
  raise(&limits->largest_key_norm, norm_bound(squares * key_scale * key_scale));
  raise(&limits->largest_value, __fmul_rn(__uint_as_float(largest), value_scale));
}

__global__ void __launch_bounds__(128) rotate_queries(const __grid_constant__ rotate_arguments a) {
  const int lane = threadIdx.x % 32, row = row_of_warp();
  if (row >= a.rows) return;
  const int token = row / a.query_heads, head = row % a.query_heads;
  const int batch = token / a.query_length, query = token % a.query_length;
  const size_t place = (size_t(batch) * a.query_heads + head) * a.query_length + query;
  const float* const from = a.from + size_t(row) * a.head_dim;
  float* const into = a.into + place * a.head_dim;
  const size_t angles = size_t(token) * a.rotary_pairs;
  for (int i = lane; i < a.head_dim; i += 32) {
    into[i] = turned(from, i, a.cosine + angles, a.sine + angles, a.rotary_pairs, a.is_interleaved);
  }
}
