// Each primitive of the kernels alone, on numbers that it makes itself: what a device answers is
// held against golden data (probes.golden, made by native/tests/make_probes_golden.py from the
// instructions' definitions) before anything that is built on them. One block each; `out` gets the
// words, a float as its bits and every NaN as the same one.
#include "arguments.cuh"
#include "primitives.cuh"

// Numbers without a pattern (lowbias32, Wellons 2018).
__device__ __forceinline__ unsigned scrambled(unsigned i) {
  i = (i ^ i >> 16) * 0x7feb352du;
  i = (i ^ i >> 15) * 0x846ca68bu;
  return i ^ i >> 16;
}

__device__ __forceinline__ unsigned word_of(float x) {
  return x != x ? 0x7fc00000u : __float_as_uint(x);
}

// Bits of a mantissa that a type keeps.
__device__ __forceinline__ unsigned kept_bits(bfloat16) {
  return 7;
}
__device__ __forceinline__ unsigned kept_bits(float16) {
  return 10;
}

// A float around and beyond what f16 holds; from 128 on a tie between two values of the element.
template <class element>
__device__ float number_to_round(element, unsigned i) {
  const unsigned noise = scrambled(i), sign = noise & 0x80000000u, exponent = (101 + i % 44) << 23;
  const unsigned kept = kept_bits(element());
  const unsigned tie = (noise & 0x7fffffu) >> (23 - kept) << (23 - kept) | 1u << (22 - kept);
  return __uint_as_float(sign | exponent | (i < 128 ? noise & 0x7fffffu : tie));
}

// [256] every 257th pattern of 16 bits, or every one of 8, as a float. 128 threads.
template <class element>
__global__ void probe_to_float(const __grid_constant__ probe_arguments a) {
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x)
    a.out[i] = word_of(to_float(element{static_cast<decltype(element::bits)>(i * 257)}));
}

// [1024] pairs of f16 from every pattern of 8 bits but NaN, in each of the ways that kernels pick
// them out of four. 128 threads.
__global__ void probe_widen(const __grid_constant__ probe_arguments a) {
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) {
    unsigned four = 0;
    for (unsigned byte = 0; byte < 4; ++byte) {
      const unsigned bits = (i + 64 * byte) & 0xffu;
      four |= ((bits & 0x7fu) == 0x7fu ? bits - 1 : bits) << 8 * byte;
    }
    a.out[4 * i] = widen<0, 1>(float8_e4m3(), four);
    a.out[4 * i + 1] = widen<2, 3>(float8_e4m3(), four);
    a.out[4 * i + 2] = widen<0, 2>(float8_e4m3(), four);
    a.out[4 * i + 3] = widen<1, 3>(float8_e4m3(), four);
  }
}

// [1024] the same of int8: every pattern of 8 bits but -128. 128 threads.
__global__ void probe_widen_int8(const __grid_constant__ probe_arguments a) {
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) {
    unsigned four = 0;
    for (unsigned byte = 0; byte < 4; ++byte) {
      const unsigned bits = (i + 64 * byte) & 0xffu;
      four |= (bits == 0x80u ? bits + 1 : bits) << 8 * byte;
    }
    a.out[4 * i] = widen<0, 1>(int8(), four);
    a.out[4 * i + 1] = widen<2, 3>(int8(), four);
    a.out[4 * i + 2] = widen<0, 2>(int8(), four);
    a.out[4 * i + 3] = widen<1, 3>(int8(), four);
  }
}

// [256] pairs of floats rounded to nearest, ties to even. 128 threads.
template <class element>
__global__ void probe_pack(const __grid_constant__ probe_arguments a) {
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x)
    a.out[i] = pack(element(), number_to_round(element(), i), number_to_round(element(), 255 - i));
}

// [256] 2 to the power (i - 128) / 4, then what has no room or no power; compared within a bound.
// 128 threads.
__global__ void probe_exp2(const __grid_constant__ probe_arguments a) {
  const float special[8] = {-126.f,    -127.f, -150.f, 127.f, 128.f, -__uint_as_float(0x7f800000u),
                            0x1p-140f, 0.f};
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x)
    a.out[i] = word_of(exp2_fast(i < 248 ? (float(i) - 128.f) * 0.25f : special[i - 248]));
}

// [512] shuffles and votes of two warps, whole and by halves. 64 threads.
__global__ void probe_warp(const __grid_constant__ probe_arguments a) {
  const unsigned lane = threadIdx.x % 32;
  unsigned* const out = a.out + threadIdx.x * 8;
  out[0] = __shfl_xor_sync(~0u, lane, 17);
  out[1] = __shfl_sync(~0u, lane, 5, 16);
  out[2] = __ballot_sync(~0u, lane % 3 == 0);
  if (lane < 16)
    out[3] = __shfl_xor_sync(0xffffu, lane, 1);
  else
    out[3] = __ballot_sync(0xffff0000u, lane & 1);
  __syncwarp();
  out[4] = __any_sync(~0u, lane == 7);
  out[5] = __all_sync(~0u, lane < 31);
  out[6] = __shfl_xor_sync(~0u, scrambled(threadIdx.x), 1);
  out[7] = __shfl_xor_sync(~0u, scrambled(threadIdx.x), 16);
}

// [256] four matrices of 16-bit numbers, straight and transposed. 32 threads, 512 bytes.
__global__ void probe_load_matrix(const __grid_constant__ probe_arguments a) {
  auto* const rows = static_cast<unsigned short*>(shared_memory());
  for (unsigned i = threadIdx.x; i < 256; i += 32)
    rows[i] = static_cast<unsigned short>(scrambled(i));
  __syncwarp();  // the matrices are there
  unsigned r[4];
  load_matrix(r, rows + threadIdx.x * 8);
  for (int i = 0; i < 4; ++i)
    a.out[threadIdx.x * 8 + i] = r[i];
  load_matrix_transposed(r, rows + threadIdx.x * 8);
  for (int i = 0; i < 4; ++i)
    a.out[threadIdx.x * 8 + 4 + i] = r[i];
}

// [128] c + a b of small integers: exact whatever the order of the sum. Row-major 16 x 8; `a` is 16
// x 16, `b` 16 x 8, with the fragments of mma.m16n8k16 as the PTX ISA draws them. 32 threads.
template <class element>
__global__ void probe_multiply_add(const __grid_constant__ probe_arguments a) {
  const unsigned group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
  auto number = [](unsigned i) { return float(int(scrambled(i) >> 27) - 16); };
  auto left = [&](unsigned row, unsigned k) {
    return pack(element(), number(row * 16 + k), number(row * 16 + k + 1));
  };
  auto right = [&](unsigned k, unsigned column) {
    return pack(element(), number(1000 + k * 8 + column), number(1000 + (k + 1) * 8 + column));
  };
  const unsigned fragment[4] = {left(group, pair), left(group + 8, pair), left(group, pair + 8),
                                left(group + 8, pair + 8)};
  float sum[4];
  for (unsigned i = 0; i < 4; ++i)
    sum[i] = number(2000 + (group + i / 2 * 8) * 8 + pair + i % 2);
  multiply_add(element(), sum, fragment, right(pair, group), right(pair + 8, group));
  for (unsigned i = 0; i < 4; ++i)
    a.out[(group + i / 2 * 8) * 8 + pair + i % 2] = word_of(sum[i]);
}

// [256] 16 bytes of each thread's from `in` [64 x 16 bytes], in two groups; zeros where a copy is
// not valid. 32 threads, 1 KiB.
__global__ void probe_copy_async(const __grid_constant__ probe_arguments a) {
  auto* const shared = static_cast<uint4*>(shared_memory());
  auto* const in = static_cast<const uint4*>(a.in);
  auto* const out = reinterpret_cast<uint4*>(a.out);
  copy_async_16(shared + threadIdx.x, in + threadIdx.x, threadIdx.x % 3 != 0);
  copy_async_commit();
  copy_async_16(shared + 32 + threadIdx.x, in + 32 + threadIdx.x, threadIdx.x % 5 != 0);
  copy_async_commit();
  copy_async_wait<1>();
  out[threadIdx.x] = shared[threadIdx.x];
  copy_async_wait<0>();
  out[32 + threadIdx.x] = shared[32 + threadIdx.x];
}

// [128] a product and a sum rounded apart, and the same fused: c is minus the rounded product, so
// the first is 0 and the second what the rounding lost. 64 threads.
__global__ void probe_rounding(const __grid_constant__ probe_arguments a) {
  const float x = __uint_as_float(0x3f800000u | scrambled(threadIdx.x) >> 9);
  const float y = __uint_as_float(0x3f800000u | scrambled(threadIdx.x + 64) >> 9);
  const float product = __fmul_rn(x, y);
  a.out[2 * threadIdx.x] = word_of(__fadd_rn(__fmul_rn(x, y), -product));
  a.out[2 * threadIdx.x + 1] = word_of(fmaf(x, y, -product));
}

// [128] numbers that every warp reads from another, behind a barrier. 128 threads, 512 bytes.
__global__ void probe_barrier(const __grid_constant__ probe_arguments a) {
  auto* const shared = static_cast<unsigned*>(shared_memory());
  shared[threadIdx.x] = scrambled(threadIdx.x);
  __syncthreads();  // the numbers of all warps are there
  a.out[threadIdx.x] = shared[127 - threadIdx.x];
}
