// What a device can do at most, for benchmarks to stand beside: read memory, and multiply and add.
#include "arguments.cuh"
#include "primitives.cuh"

// Reads `count` words of 16 bytes once, in order, and leaves the sum of each thread's, so that no
// read can be left out.
//
//   in   [count] 16 bytes each
//   out  [threads of the grid]
//
// Memory-bound: four independent 16-byte reads under way a thread; a warp reads 512 bytes in a row.
__global__ void __launch_bounds__(512) read_stream(const __grid_constant__ ceiling_arguments a) {
  const long long threads = (long long)gridDim.x * blockDim.x;
  const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  auto* const in = static_cast<const uint4*>(a.in);
  unsigned sum = 0;
  long long i = thread;
  for (; i + 3 * threads < a.count; i += 4 * threads) {
    const uint4 w0 = __ldg(in + i), w1 = __ldg(in + i + threads);
    const uint4 w2 = __ldg(in + i + 2 * threads), w3 = __ldg(in + i + 3 * threads);
    sum += w0.x + w0.y + w0.z + w0.w + w1.x + w1.y + w1.z + w1.w;
    sum += w2.x + w2.y + w2.z + w2.w + w3.x + w3.y + w3.z + w3.w;
  }
  for (; i < a.count; i += threads) {
    const uint4 w = __ldg(in + i);
    sum += w.x + w.y + w.z + w.w;
  }
  a.out[thread] = sum;
}

constexpr int chains = 8;  // independent sums, so that no multiplication waits for the one before

// A warp's steps of a type: `chains` products of tiles each, 16 x 16 by 16 x 8, in tensor cores.
template <class element>
__device__ float multiply_steps(element, long long steps) {
  unsigned left[4], right[2];
  float sum[chains][4] = {};
  const float x = 0.001f * float(threadIdx.x % 32 + 1);
  for (int i = 0; i < 4; ++i)
    left[i] = pack(element(), x, -x * 0.7f);
  for (int i = 0; i < 2; ++i)
    right[i] = pack(element(), 1.f - x, 0.3f + x);
  for (long long step = 0; step < steps; ++step)
    for (int c = 0; c < chains; ++c)
      multiply_add(element(), sum[c], left, right[0], right[1]);
  float total = 0;
  for (int c = 0; c < chains; ++c)
    total += sum[c][0] + sum[c][1] + sum[c][2] + sum[c][3];
  return total;
}

// fp32: four times `chains` multiply-adds a step and thread.
__device__ __forceinline__ float multiply_steps(float, long long steps) {
  float sum[4 * chains];
  const float by = 0.999f, plus = 1e-4f * float(threadIdx.x % 32);
  for (int c = 0; c < 4 * chains; ++c)
    sum[c] = plus * float(c);
  for (long long step = 0; step < steps; ++step)
    for (int c = 0; c < 4 * chains; ++c)
      sum[c] = fmaf(sum[c], by, plus);
  float total = 0;
  for (int c = 0; c < 4 * chains; ++c)
    total += sum[c];
  return total;
}

// Multiplies and adds in registers for `count` steps; out [threads of the grid].
template <class element>
__global__ void __launch_bounds__(256) multiply_rate(const __grid_constant__ ceiling_arguments a) {
  const float total = multiply_steps(element(), a.count);
  a.out[(long long)blockIdx.x * blockDim.x + threadIdx.x] = __float_as_uint(total);
}
