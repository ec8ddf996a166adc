// Storage types as the host sees them: rounding, and the bytes of an element.
#include <algorithm>
#include <array>
#include <cmath>

#include "attention_case.hpp"
#include "primitives.cuh"

namespace {

std::uint16_t half_bits(storage type, float x) {
  return std::uint16_t(type == storage::f16 ? pack(float16(), x, 0) : pack(bfloat16(), x, 0));
}

// The nearest, ties to even; the last of the positive numbers is 448.
std::uint8_t to_e4m3(float x) {
  static const auto numbers = [] {
    std::array<float, 127> all;
    for (unsigned bits = 0; bits < all.size(); ++bits)
      all[bits] = to_float(float8_e4m3{std::uint8_t(bits)});
    return all;
  }();
  const std::uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return sign | 0x7f;
  const float magnitude = std::abs(x);
  unsigned above =
      unsigned(std::lower_bound(numbers.begin(), numbers.end(), magnitude) - numbers.begin());
  if (above == 0) return sign;
  if (above == numbers.size()) return sign | 0x7e;
  const float down = magnitude - numbers[above - 1], up = numbers[above] - magnitude;
  if (down < up || (down == up && above % 2 == 1)) --above;
  return sign | std::uint8_t(above);
}

// Whole numbers of ±127, ties to even.
std::uint8_t to_int8(float x) {
  if (std::isnan(x)) return 0x80;
  return std::uint8_t(int(std::nearbyint(std::clamp(x, -127.f, 127.f))));
}

std::uint8_t eight_bits(storage type, float x) {
  return type == storage::f8 ? to_e4m3(x) : to_int8(x);
}

}  // namespace

float rounded(storage type, float x, float scale) {
  switch (type) {
    case storage::f32:
      return x;
    case storage::f16:
      return to_float(float16{half_bits(type, x)});
    case storage::bf16:
      return to_float(bfloat16{half_bits(type, x)});
    case storage::f8:
      return to_float(float8_e4m3{to_e4m3(x / scale)}) * scale;
    default:
      return to_float(int8{to_int8(x / scale)}) * scale;
  }
}

void append_element(std::vector<unsigned char>& bytes, storage type, float x, float scale) {
  const std::uint16_t half = half_bits(type, x);
  const std::uint8_t eighth = eight_bits(type, x / scale);
  const void* const source = type == storage::f32 ? static_cast<const void*>(&x)
                             : has_scales(type)   ? static_cast<const void*>(&eighth)
                                                  : static_cast<const void*>(&half);
  const auto* const first = static_cast<const unsigned char*>(source);
  bytes.insert(bytes.end(), first, first + size_of(type));
}
