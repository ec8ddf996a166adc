// The edge of a step whose tensors lie in device memory: a final state becomes the caller's result,
// and numbers of the caller's type become fp32 or come of it.
//
// finish_states: one warp per row, its lanes stride over value_dim; a row is read and written once.
// convert: one thread per element. Both are memory-bound. The arithmetic is that of AttentionEdge,
// in double precision; exp and log are the device's own, so a result may differ from the host's by
// one rounding to fp32.
#include "arguments.cuh"
#include "primitives.cuh"
#include "score_range.cuh"

// What of the weight the keys have, and the logarithm of the whole weight.
struct edge_of_row {
  double share;
  double log_sum_exp;
};

// inf - inf is NaN, so whichever of max and sink is the larger is not subtracted from itself. The
// share of no keys is 1: their output is 0 already.
__device__ __forceinline__ edge_of_row with_sink(float settled, float sum, double sink) {
  const double nothing = __uint_as_float(0xff800000u);
  const double max = restore_score(settled);
  if (sum == 0 && max == max) return {sink == sink ? 1 : sink, sink};
  const double top = max != max || sink != sink ? max + sink : max > sink ? max : sink;
  const double weight = max == top ? sum : sum * exp(max - top);
  const double sink_weight = sink == nothing ? 0 : sink == top ? 1 : exp(sink - top);
  const double whole = weight + sink_weight;
  return {weight / whole, top + log(whole)};
}

// A logarithm in the caller's base, as fp32.
__device__ __forceinline__ float to_caller(const finish_arguments& a, double log_sum_exp) {
  constexpr double log_of_two = 0.69314718055994530942;
  return saturate(a.is_base_two ? log_sum_exp / log_of_two : log_sum_exp);
}

__global__ void __launch_bounds__(128) finish_states(const __grid_constant__ finish_arguments a) {
  const int lane = threadIdx.x % 32;
  const int row = int(blockIdx.x) * int(blockDim.x / 32) + int(threadIdx.x / 32);
  if (row >= a.rows) return;
  const int place = row % a.count, head = row / a.count % a.query_heads;
  const int batch = row / a.count / a.query_heads;
  float* const output =
      a.output + ((size_t(batch) * a.count + place) * a.query_heads + head) * a.value_dim;
  if (a.query_lengths && a.query_indices[place] >= a.query_lengths[batch]) {
    for (int i = lane; i < a.value_dim; i += 32)
      output[i] = 0;
    if (lane == 0) a.lse[row] = __uint_as_float(0xff800000u);
    return;
  }
  const float* const mean = a.state + size_t(row) * a.value_dim;
  const float* const max = a.state + size_t(a.rows) * a.value_dim + row;
  const double sink = a.sinks ? a.sinks[head] : __uint_as_float(0xff800000u);
  const edge_of_row edge = with_sink(*max, max[a.rows], sink);
  for (int i = lane; i < a.value_dim; i += 32)
    output[i] = float(mean[i] * edge.share);
  if (lane == 0) a.lse[row] = to_caller(a, edge.log_sum_exp);
}

__device__ __forceinline__ void narrow(float x, float& to) {
  to = x;
}
template <class element>
__device__ __forceinline__ void narrow(float x, element& to) {
  to = {(unsigned short)(pack(element(), x, 0.f) & 0xffffu)};
}

template <class given, class wanted>
__global__ void __launch_bounds__(256) convert(const __grid_constant__ convert_arguments a) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < a.count)
    narrow(to_float(static_cast<const given*>(a.from)[i]), static_cast<wanted*>(a.to)[i]);
}
