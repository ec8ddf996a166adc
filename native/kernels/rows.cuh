// What kernels that walk over rows share.
#pragma once

// The score of a key that is not seen, and the largest score of a row that sees none.
__device__ __forceinline__ float minus_infinity() {
  return __uint_as_float(0xff800000u);
}

// Of kernels with a warp for each row: which one this warp has.
__device__ __forceinline__ int row_of_warp() {
  return int(blockIdx.x) * int(blockDim.x / 32) + int(threadIdx.x / 32);
}
