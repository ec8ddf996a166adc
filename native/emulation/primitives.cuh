// CPU twin of kernels/device/primitives.cuh: the same interface, exact bodies.
#pragma once

#include <array>

#include "emulation.hpp"

struct bfloat16 {
  unsigned short bits;
};
struct float16 {
  unsigned short bits;
};
struct float8_e4m3 {
  unsigned char bits;
};
struct int8 {
  unsigned char bits;
};

inline float to_float(float x) {
  return x;
}
inline float to_float(bfloat16 x) {
  return __uint_as_float(unsigned(x.bits) << 16);
}
inline float to_float(float16 x) {  // _Float16 converts correctly too, but by a slow library call
  const unsigned magnitude = x.bits & 0x7fffu, sign = (x.bits & 0x8000u) << 16;
  if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | magnitude << 13);
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f));
}

inline float to_float(float8_e4m3 x) {
  const unsigned exponent = x.bits >> 3 & 0xfu, fraction = x.bits & 7u;
  const float magnitude = exponent == 0xfu && fraction == 7u ? __uint_as_float(0x7fffffffu)
                          : exponent == 0                    ? float(fraction) * 0x1p-9f
                                          : std::ldexp(float(8 + fraction), int(exponent) - 10);
  return x.bits & 0x80u ? -magnitude : magnitude;
}
inline float to_float(int8 x) {
  return x.bits == 0x80u ? __uint_as_float(0x7fffffffu) : float(std::int8_t(x.bits));
}

inline unsigned pack(bfloat16, float low, float high) {
  auto round = [](float x) -> unsigned {  // to nearest even
    const unsigned bits = __float_as_uint(x);
    return std::isnan(x) ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}
inline unsigned pack(float16, float low, float high) {
  return unsigned(__builtin_bit_cast(std::uint16_t, _Float16(low))) |
         unsigned(__builtin_bit_cast(std::uint16_t, _Float16(high))) << 16;
}
template <int low, int high, class element>
unsigned widen(element, unsigned four) {
  static const auto halves = [] {
    std::array<unsigned, 256> all;
    for (unsigned bits = 0; bits < 256; ++bits)
      all[bits] = pack(float16(), to_float(element{std::uint8_t(bits)}), 0) & 0xffffu;
    return all;
  }();
  return halves[four >> 8 * low & 0xffu] | halves[four >> 8 * high & 0xffu] << 16;
}

inline float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.f : y;
}

inline void* shared_memory() {
  return emulation::shared_memory();
}

// The target is NaN from the start of a copy to the wait that completes it, so
// that both a wait too few and a buffer refilled too early give wrong results.
inline void copy_async_16(void* shared, const void* global, bool valid,
                          emulation::where at = emulation::where::current()) {
  emulation::check_shared(shared, 16, 16, "copy_async_16", at);
  if (reinterpret_cast<std::uintptr_t>(global) % 16)
    emulation::fail("copy_async_16 from an address that is not a multiple of 16", at);
  *static_cast<uint4*>(shared) = {~0u, ~0u, ~0u, ~0u};
  emulation::copy_started(shared, global, valid);
}
inline void copy_async_commit() {
  emulation::copies_committed();
}
template <int pending>
void copy_async_wait() {
  void* to;
  const void* from;
  bool valid;
  while (emulation::next_finished_copy(pending, to, from, valid))
    *static_cast<uint4*>(to) = valid ? *static_cast<const uint4*>(from) : uint4{};
}

inline void load_matrix(unsigned (&r)[4], const void* row, bool transposed, emulation::where at) {
  emulation::check_shared(row, 16, 16, "load_matrix", at);
  // The device reads a row on behalf of the lane that names it: a race with that lane must show.
  for (unsigned i = 0; i < 8; ++i)
    static_cast<void>(static_cast<const volatile std::uint16_t*>(row)[i]);
  const emulation::payload* rows = emulation::exchange(
      ~0u, transposed ? "load_matrix_transposed" : "load_matrix", emulation::wrap(row), at);
  emulation::count_matrix_load(rows);
  auto at_row = [&](unsigned matrix, unsigned i) {
    return emulation::unwrap<const std::uint16_t*>(rows[matrix * 8 + i]);
  };
  const unsigned lane = emulation::lane(), major = lane / 4, minor = lane % 4 * 2;
  for (unsigned m = 0; m < 4; ++m)
    r[m] = transposed ? at_row(m, minor)[major] | unsigned(at_row(m, minor + 1)[major]) << 16
                      : at_row(m, major)[minor] | unsigned(at_row(m, major)[minor + 1]) << 16;
}
inline void load_matrix(unsigned (&r)[4], const void* row,
                        emulation::where at = emulation::where::current()) {
  load_matrix(r, row, false, at);
}
inline void load_matrix_transposed(unsigned (&r)[4], const void* row,
                                   emulation::where at = emulation::where::current()) {
  load_matrix(r, row, true, at);
}

// Sums in double and rounds once; the hardware's sum may differ in the last bits.
template <class element>
void multiply_add(element, float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                  emulation::where at = emulation::where::current()) {
  struct fragments {
    unsigned a[4], b[2];
  };
  const emulation::payload* all = emulation::exchange(
      ~0u, "multiply_add", emulation::wrap(fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}}), at);
  auto half = [](unsigned pair, unsigned i) {
    return to_float(element{std::uint16_t(pair >> 16 * i)});
  };
  const unsigned lane = emulation::lane(), row = lane / 4, column = lane % 4 * 2;
  double sum[4] = {d[0], d[1], d[2], d[3]};
  for (unsigned quad = 0; quad < 4;
       ++quad) {  // the lanes that hold columns quad * 2 + {0, 1, 8, 9} of `a`
    const auto left = emulation::unwrap<fragments>(all[row * 4 + quad]);
    const auto right0 = emulation::unwrap<fragments>(all[column * 4 + quad]),
               right1 = emulation::unwrap<fragments>(all[(column + 1) * 4 + quad]);
    for (unsigned k = 0; k < 2; ++k)  // k and k + 8
      for (unsigned i = 0; i < 2; ++i) {
        const double top = half(left.a[2 * k], i), bottom = half(left.a[2 * k + 1], i);
        const double b_left = half(right0.b[k], i), b_right = half(right1.b[k], i);
        sum[0] += top * b_left, sum[1] += top * b_right, sum[2] += bottom * b_left,
            sum[3] += bottom * b_right;
      }
  }
  for (int i = 0; i < 4; ++i)
    d[i] = float(sum[i]);
}
