// The kernels of append.cu: stored bytes, limits and arranged queries against arithmetic in double,
// to the bit.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "attention_case.hpp"
#include "primitives.cuh"

extern const emulation::kernel rotate_queries_kernel;
const emulation::kernel& append_kernel(storage type);

namespace {

int failures = 0, checks = 0;

void expect(bool holds, const char* what, int token, int head) {
  ++checks;
  if (!holds && ++failures <= 20) std::printf("token %d, head %d: %s\n", token, head, what);
}

template <class arguments>
void run(const emulation::kernel& kernel, arguments a, int rows, std::uint64_t seed) {
  void* parameters[] = {&a};
  const std::string error =
      emulation::launch(kernel, {{unsigned(rows + 3) / 4, 1, 1}, {128, 1, 1}, 0, seed}, parameters);
  if (!error.empty()) ++failures, std::printf("%s\n", error.c_str());
}

std::vector<float> normal_numbers(std::size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> numbers(count);
  std::generate(numbers.begin(), numbers.end(), [&] { return normal(random); });
  return numbers;
}

// cos and sin of arbitrary angles for each token and pair.
struct rotation {
  int pairs;
  bool is_interleaved;
  std::vector<float> cosine, sine;

  rotation(int tokens, int pairs, bool is_interleaved, std::mt19937& random)
      : pairs(pairs), is_interleaved(is_interleaved) {
    std::uniform_real_distribution<double> angles(-3, 3);
    for (int i = 0; i < tokens * pairs; ++i) {
      const double angle = angles(random);
      cosine.push_back(float(std::cos(angle)));
      sine.push_back(float(std::sin(angle)));
    }
  }

  // Doubles hold products of floats exactly, and their sums to more than twice the digits, so that
  // each rounding to float is that of one operation.
  void turn(float* row, int token) const {
    for (int pair = 0; pair < pairs; ++pair) {
      float& a = row[is_interleaved ? 2 * pair : pair];
      float& b = row[is_interleaved ? 2 * pair + 1 : pair + pairs];
      const double c = cosine[token * pairs + pair], s = sine[token * pairs + pair];
      const double first = double(float(a * c)) - float(b * s);
      const double second = double(float(b * c)) + float(a * s);
      a = float(first), b = float(second);
    }
  }
};

// The nearest f8e4m3 to x / scale, ties to even; NaN for what rounds beyond the last.
std::uint8_t nearest_e4m3(float x, float scale) {
  const double exact = std::abs(double(x) / scale);
  const std::uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (!(exact <= 464)) return sign | 0x7f;
  unsigned best = 0;
  for (unsigned bits = 1; bits < 127; ++bits) {
    const double now = std::abs(to_float(float8_e4m3{std::uint8_t(bits)}) - exact);
    const double before = std::abs(to_float(float8_e4m3{std::uint8_t(best)}) - exact);
    if (now < before || (now == before && bits % 2 == 0)) best = bits;
  }
  return sign | std::uint8_t(best);
}

// The nearest of -127 to 127, ties to even; -128 for what rounds beyond the last.
std::uint8_t nearest_int8(float x, float scale) {
  const double exact = double(x) / scale;
  return std::abs(exact) < 127.5 ? std::uint8_t(int(std::nearbyint(exact))) : 0x80;
}

std::vector<unsigned char> stored_bytes(storage type, float x, float scale) {
  std::vector<unsigned char> bytes;
  if (type == storage::f8) {
    bytes.push_back(nearest_e4m3(x, scale));
  } else if (type == storage::i8) {
    bytes.push_back(nearest_int8(x, scale));
  } else {
    append_element(bytes, type, x, 1);
  }
  return bytes;
}

double number_of(storage type, const std::vector<unsigned char>& bytes, float scale) {
  if (type == storage::f8) return double(to_float(float8_e4m3{bytes[0]})) * scale;
  if (type == storage::i8) return double(to_float(int8{bytes[0]})) * scale;
  std::uint16_t half;
  float whole;
  std::memcpy(type == storage::f32 ? static_cast<void*>(&whole) : &half, bytes.data(),
              bytes.size());
  return type == storage::f32   ? whole
         : type == storage::f16 ? to_float(float16{half})
                                : to_float(bfloat16{half});
}

struct append_case {
  storage type;
  int head_dim, value_dim, pairs;
  bool is_interleaved, values_in_keys;
  int tokens = 7, kv_heads = 3, slots = 3, capacity = 5;
  bool not_finite = false;
};

constexpr unsigned char untouched = 0xa5;
constexpr float earlier_limit = 1e6f;

// A cache of few short pages; every third token belongs to another rank, the others go to two of
// the three slots. The last slot has larger limits from before.
class append_run {
 public:
  append_run(const append_case& c, std::uint64_t seed)
      : c(c),
        random(seed),
        angles(c.tokens, c.pairs, c.is_interleaved, random),
        keys(normal_numbers(std::size_t(c.tokens) * c.kv_heads * c.head_dim, random)),
        values(normal_numbers(
            c.values_in_keys ? 0 : std::size_t(c.tokens) * c.kv_heads * c.value_dim, random)),
        limits(std::size_t(c.slots) * c.kv_heads) {
    for (int head = 0; head < c.kv_heads; ++head)
      limits[std::size_t(c.slots - 1) * c.kv_heads + head] = {earlier_limit, earlier_limit};
    for (int i = 0; i < 2 * c.kv_heads && has_scales(c.type); ++i)
      scales.push_back(0.013f * float(1 + (c.values_in_keys ? i % c.kv_heads : i)));
    // Next to ties, on either side, where a quotient rounded to float first would be one.
    for (std::size_t row = 0; row < values.size() / c.value_dim && !scales.empty(); ++row) {
      const float scale = scale_of(true, int(row) % c.kv_heads);
      values[row * c.value_dim] =
          scale * (c.type == storage::f8 ? float(17 + 2 * int(row % 8)) : 16.5f + float(row % 8));
    }
    const int value_page = c.kv_heads * c.capacity * c.value_dim;
    const int key_page = c.kv_heads * c.capacity * c.head_dim;
    for (int token = 0; token < c.tokens; ++token) {
      const int slot = token % 2 ? 0 : c.slots - 1, index = (token + 1) / 2;
      places.push_back(token % 3 == 2 ? token_place{-1, -1, -1, 0}
                                      : token_place{(long long)slot * key_page + index * c.head_dim,
                                                    (long long)c.slots * key_page +
                                                        slot * value_page + index * c.value_dim,
                                                    slot, 0});
    }
    if (c.not_finite) {
      keys[std::size_t(c.kv_heads + 1) * c.head_dim] = NAN;
      if (!c.values_in_keys) values[std::size_t(c.kv_heads + 2) * c.value_dim] = -INFINITY;
    }
    const int elements = c.slots * (key_page + (c.values_in_keys ? 0 : value_page));
    contents.assign(std::size_t(elements) * size_of(c.type), untouched);
    expected = contents;
  }

  void check(std::uint64_t seed) {
    append_arguments a{keys.data(),        c.values_in_keys ? nullptr : values.data(),
                       places.data(),      angles.cosine.data(),
                       angles.sine.data(), scales.empty() ? nullptr : scales.data(),
                       contents.data(),    limits.data(),
                       c.tokens,           c.kv_heads,
                       c.head_dim,         c.value_dim,
                       c.capacity,         c.pairs,
                       c.is_interleaved,   0};
    std::vector<double> norms(limits.size()), largest(limits.size());
    for (std::size_t i = limits.size() - c.kv_heads; i < limits.size(); ++i)
      norms[i] = largest[i] = earlier_limit;
    run(append_kernel(c.type), a, c.tokens * c.kv_heads, seed);
    for (int token = 0; token < c.tokens; ++token) {
      for (int head = 0; head < c.kv_heads && places[token].slot >= 0; ++head)
        expect_token(token, head, norms, largest);
    }
    expect(contents == expected, "an element that no token has was written", -1, -1);
    for (std::size_t i = 0; i < limits.size(); ++i) {
      const double norm = limits[i].largest_key_norm, value = limits[i].largest_value;
      expect(std::isnan(norms[i]) ? std::isnan(norm)
                                  : norm >= norms[i] && norm <= norms[i] * (1 + 2e-7),
             "limit of the norm", int(i) / c.kv_heads, int(i) % c.kv_heads);
      expect(std::isnan(largest[i]) ? std::isnan(value) : value == float(largest[i]),
             "limit of values", int(i) / c.kv_heads, int(i) % c.kv_heads);
    }
  }

 private:
  float scale_of(bool is_value, int head) const {
    return scales.empty() ? 1 : scales[(is_value ? c.kv_heads : 0) + head];
  }

  void expect_token(int token, int head, std::vector<double>& norms, std::vector<double>& largest) {
    const token_place& place = places[token];
    const std::size_t row = std::size_t(token) * c.kv_heads + head;
    const std::size_t limit = std::size_t(place.slot) * c.kv_heads + head;
    std::vector<float> key(&keys[row * c.head_dim], &keys[row * c.head_dim] + c.head_dim);
    angles.turn(key.data(), token);
    double squares = 0;
    for (int i = 0; i < c.head_dim; ++i) {
      const double number =
          expect_element(key[i], place.key_offset + (long long)head * c.capacity * c.head_dim + i,
                         false, token, head);
      squares += number * number;
      if (c.values_in_keys && i < c.value_dim) grow(largest[limit], std::abs(number));
    }
    grow(norms[limit], std::sqrt(squares));
    for (int i = 0; i < c.value_dim && !c.values_in_keys; ++i) {
      const double number = expect_element(
          values[row * c.value_dim + i],
          place.value_offset + (long long)head * c.capacity * c.value_dim + i, true, token, head);
      grow(largest[limit], std::abs(number));
    }
  }

  static void grow(double& limit, double number) {
    if (std::isnan(number) || number > limit) limit = number;
  }

  // NaN of any bits is as good as another.
  double expect_element(float x, long long element, bool is_value, int token, int head) {
    const float scale = scale_of(is_value, head);
    std::vector<unsigned char> bytes = stored_bytes(c.type, x, scale);
    const double number = number_of(c.type, bytes, scale);
    const auto first = contents.begin() + element * size_of(c.type);
    const std::vector<unsigned char> found(first, first + size_of(c.type));
    const bool is_good =
        std::isnan(number) ? std::isnan(number_of(c.type, found, scale)) : found == bytes;
    expect(is_good, is_value ? "value" : "key", token, head);
    std::copy(found.begin(), found.end(), expected.begin() + element * size_of(c.type));
    return number;
  }

  append_case c;
  std::mt19937 random;
  rotation angles;
  std::vector<float> keys, values, scales;
  std::vector<token_place> places;
  std::vector<page_limits> limits;
  std::vector<unsigned char> contents, expected;
};

void check_queries(int head_dim, int pairs, bool is_interleaved, std::uint64_t seed) {
  constexpr int batch = 2, length = 3, heads = 5;
  std::mt19937 random(seed);
  const rotation angles(batch * length, pairs, is_interleaved, random);
  std::vector<float> from = normal_numbers(std::size_t(batch * length * heads) * head_dim, random);
  std::vector<float> into(from.size(), NAN);
  run(rotate_queries_kernel,
      rotate_arguments{from.data(), into.data(), angles.cosine.data(), angles.sine.data(),
                       batch * length * heads, heads, length, head_dim, pairs, is_interleaved},
      batch * length * heads, seed);
  for (int row = 0; row < batch * length * heads; ++row) {
    const int token = row / heads, head = row % heads;
    const int place = (token / length * heads + head) * length + token % length;
    float* const query = &from[std::size_t(row) * head_dim];
    angles.turn(query, token);
    expect(!std::memcmp(query, &into[std::size_t(place) * head_dim], head_dim * sizeof(float)),
           "query", token, head);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 2;
  for (int seed = 0; seed < seeds; ++seed) {
    for (const storage type :
         {storage::f32, storage::f16, storage::bf16, storage::f8, storage::i8}) {
      for (const bool is_interleaved : {false, true}) {
        append_run({type, 40, 33, 9, is_interleaved, false}, seed).check(seed);
        append_run({type, 128, 100, 64, is_interleaved, false}, seed).check(seed);
        append_run({type, 72, 65, 4, is_interleaved, true}, seed).check(seed);
      }
      append_run({type, 1, 1, 0, false, false}, seed).check(seed);
      append_run({type, 576, 512, 32, true, true, 4, 1}, seed).check(seed);
      append_case broken{type, 40, 33, 9, false, false};
      broken.not_finite = true;
      append_run(broken, seed).check(seed);
    }
    for (const bool is_interleaved : {false, true}) {
      check_queries(40, 9, is_interleaved, seed);
      check_queries(130, 65, is_interleaved, seed);
    }
    check_queries(7, 0, false, seed);
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures != 0;
}
