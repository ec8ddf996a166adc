// Every primitive and warp operation of the emulation, the layout of tensor-core fragments against
// CuTe's published strides, and the errors that it must place.
#include "primitives.cuh"
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

__global__ void warp_operations(unsigned* out) {
  const unsigned t = threadIdx.x, lane = t % 32;
  unsigned* o = out + t * 8;
  o[0] = __shfl_down_sync(~0u, lane, 3);
  o[1] = __shfl_up_sync(~0u, lane, 1, 8);
  o[2] = __shfl_xor_sync(~0u, lane, 17);
  o[3] = __shfl_sync(~0u, lane, 5, 16);
  o[4] = __ballot_sync(~0u, lane % 3 == 0);
  if (lane < 16)
    o[5] = __shfl_xor_sync(0xffffu, lane, 1);  // halves of a warp apart
  else
    o[5] = __ballot_sync(0xffff0000u, lane & 1);
  __syncwarp();
  o[6] = __any_sync(~0u, lane == 7);
  o[7] = __all_sync(~0u, lane < 31);
}
// Block sums, the last block adds them up: tickets by an atomic.
__global__ void last_block(const int* in, int* partial, unsigned* ticket, int* out, int n) {
  int* const sums = static_cast<int*>(shared_memory());
  int v = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    v += in[i];
  for (int d = 16; d; d /= 2)
    v += __shfl_down_sync(~0u, v, d);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < blockDim.x / 32; ++w)
      v += sums[w];
    partial[blockIdx.x] = v;
    __threadfence();
    if (atomicAdd(ticket, 1u) == gridDim.x - 1) {
      int total = 0;
      for (unsigned b = 0; b < gridDim.x; ++b)
        total += partial[b];
      *out = total;
    }
  }
}
__global__ void half_of_the_block_waits() {
  if (threadIdx.x != 3)
    __syncthreads();
  else
    __syncwarp();
}
__global__ void exits_early(int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void two_barriers() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void misaligned() {
  unsigned r[4];
  load_matrix(r, static_cast<char*>(shared_memory()) + 8);
}
__global__ void beyond() {
  unsigned r[4];
  load_matrix(r, static_cast<char*>(shared_memory()) + threadIdx.x * 16);
}
__global__ void adds(float* sum) {
  atomicAdd(sum, 1.f);
}
__global__ void uninitialised(float* out) {
  out[threadIdx.x] = static_cast<float*>(shared_memory())[threadIdx.x];
}

// a[16][16] b[16][8] with the fragments filled by CuTe's strides for
// SM80_16x8x16_F32BF16BF16F32_TN.
template <class element>
__global__ void one_multiply(const float* a, const float* b, float* out) {
  const unsigned t = threadIdx.x;
  unsigned left[4], right[2];
  float d[4] = {};
  auto a_at = [&](unsigned v) {
    const unsigned i = t % 4 * 32 + t / 4 + (v & 1) * 16 + (v >> 1 & 1) * 8 + (v >> 2) * 128;
    return a[i % 16 * 16 + i / 16];
  };
  auto b_at = [&](unsigned v) {
    const unsigned i = t % 4 * 16 + t / 4 + (v & 1) * 8 + (v >> 1) * 64;
    return b[i / 8 * 8 + i % 8];
  };
  for (int r = 0; r < 4; ++r)
    left[r] = pack(element(), a_at(2 * r), a_at(2 * r + 1));
  for (int r = 0; r < 2; ++r)
    right[r] = pack(element(), b_at(2 * r), b_at(2 * r + 1));
  multiply_add(element(), d, left, right[0], right[1]);
  for (unsigned v = 0; v < 4; ++v) {
    const unsigned i = t % 4 * 32 + t / 4 + (v & 1) * 16 + (v >> 1) * 8;
    out[i % 16 * 8 + i / 16] = d[v];
  }
}
// Matrices of 16-bit numbers, straight and transposed.
__global__ void two_loads(unsigned* out) {
  auto* const rows = static_cast<unsigned short*>(shared_memory());
  for (int i = threadIdx.x; i < 256; i += 32)
    rows[i] = i;
  __syncwarp();
  unsigned r[4];
  load_matrix(r, rows + threadIdx.x * 8);
  for (int i = 0; i < 4; ++i)
    out[threadIdx.x * 8 + i] = r[i];
  load_matrix_transposed(r, rows + threadIdx.x * 8);
  for (int i = 0; i < 4; ++i)
    out[threadIdx.x * 8 + 4 + i] = r[i];
}
// 16 bytes of each thread arrive at the wait, zeros where not valid.
__global__ void copies(const uint4* from, uint4* out, bool waits) {
  auto* const shared = static_cast<uint4*>(shared_memory());
  copy_async_16(shared + threadIdx.x, from + threadIdx.x, threadIdx.x % 2 == 0);
  copy_async_commit();
  if (waits) copy_async_wait<0>();
  out[threadIdx.x] = shared[threadIdx.x];
}
EMULATED_KERNEL(k_multiply_bf16, one_multiply<bfloat16>);
EMULATED_KERNEL(k_multiply_f16, one_multiply<float16>);
EMULATED_KERNEL(k_loads, two_loads);
EMULATED_KERNEL(k_copies, copies);
EMULATED_KERNEL(k_warp, warp_operations);
EMULATED_KERNEL(k_last, last_block);
EMULATED_KERNEL(k_half, half_of_the_block_waits);
EMULATED_KERNEL(k_exit, exits_early);
EMULATED_KERNEL(k_two, two_barriers);
EMULATED_KERNEL(k_misaligned, misaligned);
EMULATED_KERNEL(k_beyond, beyond);
EMULATED_KERNEL(k_adds, adds);
EMULATED_KERNEL(k_uninitialised, uninitialised);

int failures = 0;
#define EXPECT(...)                                                                       \
  do                                                                                      \
    if (!(__VA_ARGS__)) ++failures, std::printf("line %d: %s\n", __LINE__, #__VA_ARGS__); \
  while (0)
template <class... A>
std::string run(const emulation::kernel& k, emulation::launch_shape s, A... a) {
  void* arguments[] = {&a..., nullptr};
  return emulation::launch(k, s, arguments);
}
void check_tensor_core(const emulation::kernel& kernel, unsigned seed) {
  std::vector<float> a(256), b(128), out(128, NAN);
  unsigned state = 1;
  for (auto* v : {&a, &b})
    for (auto& x : *v)
      x = float(int((state = state * 1664525 + 1013904223) >> 27) - 16);
  EXPECT(run(kernel, {{1}, {32}, 0, seed}, (const float*)a.data(), (const float*)b.data(),
             out.data()) == "");
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float x = 0;
      for (int q = 0; q < 16; ++q)
        x += a[i * 16 + q] * b[q * 8 + j];
      EXPECT(x == out[i * 8 + j]);
    }
}
void check_conversions() {
  // Every f16 there and back; bf16 ties go to even.
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float x = to_float(float16{std::uint16_t(bits)});
    if (!std::isnan(x)) EXPECT((pack(float16(), x, 0) & 0xffff) == bits);
  }
  // Every 8-bit pattern as a sum of powers of two, as a float and widened to f16 from each place.
  for (unsigned bits = 0; bits < 0x100; ++bits) {
    double exact = bits & 0x78 ? 0x1p-6 : 0;
    for (unsigned bit = 0; bit < 3; ++bit)
      exact += bits >> bit & 1 ? 0x1p-9 * (1 << bit) : 0;
    for (unsigned exponent = 1; exponent < (bits >> 3 & 15); ++exponent)
      exact *= 2;
    if (bits & 0x80) exact = -exact;
    const float x = to_float(float8_e4m3{std::uint8_t(bits)});
    if ((bits & 0x7f) == 0x7f) {
      EXPECT(std::isnan(x));
      continue;
    }
    EXPECT(x == exact && std::signbit(x) == (bits > 0x7f));
    const unsigned half = pack(float16(), float(exact), 0), one = 0x38;  // 0x38 is 1, 0x3c00 as f16
    EXPECT(widen<0, 1>(float8_e4m3(), bits | one << 8) == (half | 0x3c000000u));
    EXPECT(widen<2, 3>(float8_e4m3(), one << 16 | bits << 24) == (half << 16 | 0x3c00u));
    EXPECT(widen<0, 2>(float8_e4m3(), one | bits << 16) == (half << 16 | 0x3c00u));
    EXPECT(widen<1, 3>(float8_e4m3(), bits << 8 | one << 24) == (half | 0x3c000000u));
  }
  for (unsigned bits = 0; bits < 0x100; ++bits) {
    const float x = to_float(int8{std::uint8_t(bits)});
    if (bits == 0x80) {
      EXPECT(std::isnan(x));
      continue;
    }
    EXPECT(x == float(std::int8_t(bits)));
    const unsigned half = pack(float16(), x, 0);
    EXPECT(widen<0, 1>(int8(), bits | 1u << 8) == (half | 0x3c000000u));
    EXPECT(widen<1, 3>(int8(), bits << 8 | 1u << 24) == (half | 0x3c000000u));
    EXPECT(widen<0, 2>(int8(), 1u | bits << 16) == (half << 16 | 0x3c00u));
  }
  EXPECT((pack(bfloat16(), __uint_as_float(0x3f808000), 0) & 0xffff) == 0x3f80);
  EXPECT((pack(bfloat16(), __uint_as_float(0x3f818000), 0) & 0xffff) == 0x3f82);
  EXPECT(pack(bfloat16(), 1, 2) == 0x40003f80u && pack(float16(), 1, 2) == 0x40003c00u);
  EXPECT(exp2_fast(-INFINITY) == 0 && exp2_fast(3) == 8 && exp2_fast(-127) == 0);
}
int main() {
  check_conversions();
  for (unsigned seed = 0; seed < 5; ++seed) {
    std::vector<unsigned> o(64 * 8);
    EXPECT(run(k_warp, {{1}, {64}, 0, seed}, o.data()) == "");
    for (unsigned t = 0; t < 64; ++t) {
      const unsigned l = t % 32, *x = &o[t * 8];
      EXPECT(x[0] == (l + 3 < 32 ? l + 3 : l));
      EXPECT(x[1] == (l % 8 ? l - 1 : l));
      EXPECT(x[2] == (l ^ 17));
      EXPECT(x[3] == l / 16 * 16 + 5);
      EXPECT(x[4] == 0x49249249u);
      EXPECT(x[5] == (l < 16 ? l ^ 1 : 0xaaaa0000u));
      EXPECT(x[6] == 1 && x[7] == 0);
    }
    check_tensor_core(k_multiply_bf16, seed);
    check_tensor_core(k_multiply_f16, seed);
    std::vector<unsigned> loaded(256);
    EXPECT(run(k_loads, {{1}, {32}, 512, seed}, loaded.data()) == "");
    for (unsigned t = 0; t < 32; ++t)
      for (unsigned m = 0; m < 4; ++m) {
        const unsigned straight = m * 64 + t / 4 * 8 + t % 4 * 2,
                       turned = m * 64 + t % 4 * 16 + t / 4;
        EXPECT(loaded[t * 8 + m] == (straight | (straight + 1) << 16));
        EXPECT(loaded[t * 8 + 4 + m] == (turned | (turned + 8) << 16));
      }
    std::vector<uint4> source(32, {1, 2, 3, 4}), copied(32);
    EXPECT(run(k_copies, {{1}, {32}, 512, seed}, (const uint4*)source.data(), copied.data(),
               true) == "");
    EXPECT(copied[6].w == 4 && copied[7].w == 0);
    EXPECT(run(k_copies, {{1}, {32}, 512, seed}, (const uint4*)source.data(), copied.data(),
               false) != "");
    // NaN until the wait: whichever thread came first has read its own.
    EXPECT(std::any_of(copied.begin(), copied.end(), [](uint4 x) { return x.w == ~0u; }));
    std::vector<int> in(1000), partial(7), out(1);
    std::iota(in.begin(), in.end(), 1);
    unsigned ticket = 0;
    EXPECT(run(k_last, {{7}, {96}, 12, seed}, (const int*)in.data(), partial.data(), &ticket,
               out.data(), 1000) == "" &&
           out[0] == 500500);
    std::vector<int> early(64);
    EXPECT(run(k_exit, {{1}, {64}, 0, seed}, early.data()) == "" &&
           std::accumulate(early.begin(), early.end(), 0) == 40);
    float sum = 0;
    EXPECT(run(k_adds, {{3}, {100}, 0, seed}, &sum) == "" && sum == 300);
    std::vector<float> poison(32);
    EXPECT(run(k_uninitialised, {{1}, {32}, 128, seed}, poison.data()) == "" &&
           std::isnan(poison[9]));
    for (auto error :
         {run(k_half, {{1}, {64}, 0, seed}), run(k_two, {{1}, {64}, 0, seed}),
          run(k_misaligned, {{1}, {32}, 1024, seed}), run(k_beyond, {{1}, {32}, 496, seed})}) {
      EXPECT(error != "");
      if (seed == 1) std::printf("  %s\n", error.c_str());
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
