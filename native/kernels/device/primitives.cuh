// The few operations that need PTX, as small wrappers: the only inline assembly of the kernels.
// native/emulation/primitives.cuh has the same interface for the CPU; the include path decides
// which of the two a kernel gets. sm_80 and newer.
#pragma once

struct bfloat16 {
  unsigned short bits;
};
struct float16 {
  unsigned short bits;
};
struct float8_e4m3 {  // the "FN" form: no infinity, NaN is all ones behind the sign
  unsigned char bits;
};
struct int8 {  // -127 to 127 in two's complement; -128 stands for NaN
  unsigned char bits;
};

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(bfloat16 x) {
  return __uint_as_float(unsigned(x.bits) << 16);
}
__device__ __forceinline__ float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

__device__ __forceinline__ float to_float(float8_e4m3 x) {
  const unsigned magnitude = x.bits & 0x7fu, sign = (x.bits & 0x80u) << 24;
  const float y = __uint_as_float(sign | magnitude << 20) * 0x1p120f;
  return magnitude == 0x7fu ? __uint_as_float(0x7fffffffu) : y;
}
__device__ __forceinline__ float to_float(int8 x) {
  return x.bits == 0x80u ? __uint_as_float(0x7fffffffu) : float((signed char)x.bits);
}

// Bytes `low` and `high` of four elements, exactly, as two f16; `low` in the low half. Not for NaN.
template <int low, int high>
__device__ __forceinline__ unsigned widen(float8_e4m3, unsigned four) {
  unsigned pair;
#if __CUDA_ARCH__ >= 890
  const unsigned short two = __byte_perm(four, 0, high << 4 | low);
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(two));
#else
  // In the upper bytes of the halves the exponent is a bit too high, and its bias 8 too small.
  const unsigned spread = __byte_perm(four, 0, high << 12 | low << 4 | 0x404);
  const unsigned shifted = (spread & 0x7f007f00u) >> 1 | (spread & 0x80008000u);
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(shifted), "r"(0x5c005c00u));
#endif
  return pair;
}

template <int low, int high>
__device__ __forceinline__ unsigned widen(int8, unsigned four) {
  // Behind the upper byte of 1024 a byte is its own number more, here the element's and 128.
  const unsigned moved =
      __byte_perm(four ^ 0x80808080u, 0x64646464u, 4 << 12 | high << 8 | 4 << 4 | low);
  unsigned pair;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(moved), "r"(0x64806480u));
  return pair;
}

// Two floats rounded to nearest even; `low` in the low half.
__device__ __forceinline__ unsigned pack(bfloat16, float low, float high) {
  unsigned packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ unsigned pack(float16, float low, float high) {
  unsigned packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// 2 to the power x, to about 2 ulp; subnormal results flush to zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The block's dynamic shared memory; the only shared memory a kernel uses.
__device__ __forceinline__ void* shared_memory() {
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  return dynamic_shared;
}

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return unsigned(__cvta_generic_to_shared(p));
}

// Starts copying 16 bytes to shared memory, both addresses multiples of 16; writes zeros, and does
// not read, where not `valid`.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `pending` of this thread's latest groups are unfinished.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrix(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrix_transposed(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a * b for a 16x16 `a` and a 16x8 `b`, the warp together.
__device__ __forceinline__ void multiply_add(bfloat16, float (&d)[4], const unsigned (&a)[4],
                                             unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_add(float16, float (&d)[4], const unsigned (&a)[4],
                                             unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
