// What reductions do with states: fold one into another (an edge of the tree), turn them into
// numerators and denominators that can be added, and back.
//
//   output  [rows, value_dim] fp32, row-major, normalised
//   max     [rows] fp32, largest score; -inf marks a row that saw no key
//   sum     [rows] fp32, sum of e^(score - max)
//
// One warp per row; its lanes stride over value_dim. Memory-bound: a fold reads two rows and writes
// one. The arithmetic is that of PartialMerge: products are rounded before they are added and no
// multiply-add is fused, so exchanging the operands changes no bit.
#include "arguments.cuh"
#include "primitives.cuh"
#include "rows.cuh"

constexpr int most_lane_columns = 18;  // of a value dimension up to 576

// The larger; NaN when one is NaN, and +0 of +0 and -0, whatever the order.
__device__ __forceinline__ float larger(float a, float b) {
  if (a > b) return a;
  if (b > a) return b;
  return a == b ? __uint_as_float(__float_as_uint(a) & __float_as_uint(b)) : __fadd_rn(a, b);
}

// +inf - +inf is NaN, but equal maxima always weigh their sums as they are.
__device__ __forceinline__ float weight_of(float sum, float max, float top) {
  return max == top ? sum : __fmul_rn(sum, expf(__fadd_rn(max, -top)));
}

// A weighted mean lies between its operands; holding it there keeps equal outputs equal to the bit
// and extreme ones finite. A NaN goes through.
__device__ __forceinline__ float blend(float a, float share_a, float b, float share_b) {
  const float mean = __fadd_rn(__fmul_rn(a, share_a), __fmul_rn(b, share_b));
  const float least = a < b ? a : b, most = a < b ? b : a;
  return mean < least ? least : mean > most ? most : mean;
}

// What a fold does to max and sum, and how it weighs the two outputs. A side that saw no key is not
// computed with: `keeps` leaves the state as it is, `takes` replaces it.
struct fold_plan {
  bool keeps;
  bool takes;
  float share, other_share;
  float max, sum;
};

__device__ __forceinline__ fold_plan plan_fold(float max, float sum, float other_max,
                                               float other_sum) {
  if (other_sum == 0) return {true, false, 1, 0, max, sum};
  if (sum == 0) return {false, true, 0, 1, other_max, other_sum};
  const float top = larger(max, other_max);
  const float weight = weight_of(sum, max, top);
  const float other_weight = weight_of(other_sum, other_max, top);
  const float whole = __fadd_rn(weight, other_weight);
  return {false, false, weight / whole, other_weight / whole, top, whole};
}

// The state stays in registers while all others fold into it.
__global__ void __launch_bounds__(128) merge_states(const __grid_constant__ merge_arguments a) {
  const int lane = threadIdx.x % 32, row = row_of_warp();
  if (row >= a.rows) return;
  float* const into = a.into + size_t(row) * a.value_dim;
  float* const into_max = a.into + size_t(a.rows) * a.value_dim + row;
  float max = *into_max, sum = into_max[a.rows], output[most_lane_columns];
#pragma unroll
  for (int i = 0; i < most_lane_columns; ++i) {
    output[i] = lane + 32 * i < a.value_dim ? into[lane + 32 * i] : 0.f;
  }
  for (int n = 0; n < a.count; ++n) {
    const float* const state = a.from + n * a.from_stride;
    const float* const from = state + size_t(row) * a.value_dim;
    const float* const from_max = state + size_t(a.rows) * a.value_dim + row;
    const fold_plan plan = plan_fold(max, sum, __ldg(from_max), __ldg(from_max + a.rows));
    max = plan.max;
    sum = plan.sum;
    if (plan.keeps) continue;
#pragma unroll
    for (int i = 0; i < most_lane_columns; ++i) {
      if (lane + 32 * i < a.value_dim) {
        const float other = __ldg(from + lane + 32 * i);
        output[i] = plan.takes ? other : blend(output[i], plan.share, other, plan.other_share);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < most_lane_columns; ++i) {
    if (lane + 32 * i < a.value_dim) into[lane + 32 * i] = output[i];
  }
  __syncwarp();  // every lane has read max and sum
  if (lane == 0) {
    *into_max = max;
    into_max[a.rows] = sum;
  }
}

__global__ void __launch_bounds__(128) fold_states(const __grid_constant__ fold_arguments a) {
  const int lane = threadIdx.x % 32, row = row_of_warp();
  if (row >= a.rows) return;
  const size_t row_output = size_t(row) * a.value_dim, row_max = size_t(a.rows) * a.value_dim + row;
  for (int n = 0; n < a.count; ++n) {
    const fold_step step = a.steps[n];
    float* const into = a.states + step.into * a.state_stride;
    const float* const from = a.states + step.from * a.state_stride;
    const fold_plan plan =
        plan_fold(into[row_max], into[row_max + a.rows], from[row_max], from[row_max + a.rows]);
    for (int i = lane; i < a.value_dim && !plan.keeps; i += 32) {
      const float other = from[row_output + i];
      into[row_output + i] =
          plan.takes ? other : blend(into[row_output + i], plan.share, other, plan.other_share);
    }
    __syncwarp();  // every lane has read max and sum
    if (lane == 0) {
      into[row_max] = plan.max;
      into[row_max + a.rows] = plan.sum;
    }
    __syncwarp();  // the next step may read what lane 0 wrote
  }
}

__global__ void __launch_bounds__(128) weigh(const __grid_constant__ weigh_arguments a) {
  const int lane = threadIdx.x % 32, row = row_of_warp();
  if (row >= a.rows) return;
  const float* const max = a.state + size_t(a.rows) * a.value_dim + row;
  const float sum = max[a.rows], top = a.top[row];
  const float share = *max == top ? 1.f : expf(__fadd_rn(*max, -top));
  const float weight = sum == 0 ? 0.f : __fmul_rn(__fmul_rn(a.unit, sum), share);
  const size_t first = size_t(row) * a.value_dim;
  for (int i = lane; i < a.value_dim; i += 32) {
    a.numerator[first + i] = __fmul_rn(a.state[first + i], weight);
  }
  if (lane == 0) a.denominator[row] = weight;
}

__global__ void __launch_bounds__(128) unweigh(const __grid_constant__ unweigh_arguments a) {
  const int lane = threadIdx.x % 32, row = row_of_warp();
  if (row >= a.rows) return;
  const float denominator = a.denominator[row];
  const bool is_empty = denominator == 0;
  const size_t first = size_t(row) * a.value_dim;
  for (int i = lane; i < a.value_dim; i += 32) {
    a.state[first + i] = is_empty ? 0.f : a.numerator[first + i] / denominator;
  }
  if (lane == 0) {
    float* const max = a.state + size_t(a.rows) * a.value_dim + row;
    *max = is_empty ? minus_infinity() : a.top[row];
    max[a.rows] = denominator / a.unit;
  }
}

__global__ void __launch_bounds__(128) clear_state(const __grid_constant__ clear_arguments a) {
  const int lane = threadIdx.x % 32, row = row_of_warp();
  if (row >= a.rows) return;
  for (int i = lane; i < a.value_dim; i += 32)
    a.state[size_t(row) * a.value_dim + i] = 0.f;
  if (lane == 0) {
    float* const max = a.state + size_t(a.rows) * a.value_dim + row;
    *max = minus_infinity();
    max[a.rows] = 0.f;
  }
}
