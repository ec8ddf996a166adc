// The kernels of edge.cu against what AttentionEdge says, in more than double precision, and every
// number of 16 bits against its fields. Argument: the number of seeds.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "attention_case.hpp"
#include "score_range.cuh"

extern const emulation::kernel finish_states_kernel;
const emulation::kernel& widen_kernel(storage from);
const emulation::kernel& narrow_kernel(storage to);

namespace {

int failures = 0, checks = 0;

void expect(bool holds, const char* unit, std::size_t index, const char* what, double found,
            double expected) {
  ++checks;
  if (!holds && ++failures <= 20)
    std::printf("%s %zu: %s is %.9g instead of %.9g\n", unit, index, what, found, expected);
}

template <class arguments>
void run(const emulation::kernel& kernel, arguments a, std::size_t blocks, unsigned threads,
         std::uint64_t seed) {
  void* parameters[] = {&a};
  const std::string error =
      emulation::launch(kernel, {{unsigned(blocks), 1, 1}, {threads, 1, 1}, 0, seed}, parameters);
  if (!error.empty()) ++failures, std::printf("%s\n", error.c_str());
}

// ---- finish_states ----

constexpr float untouched = 0x1.8p77f;

// What a row has seen: the largest of its scores, and the sum of e^(score - largest).
struct row_sight {
  double score;
  float sum;
};

const std::vector<row_sight> sights = {
    {-INFINITY, 0},
    {0, 1},
    {-2.5, 3},
    {7, 1.5f},
    {700, 40},
    {-800, 2},
    {-1e6, 3e4f},
    {0x1p31, 17},
    {1e30f, 2},
    {-1e30f, 9},
    {2e36, 1},
    {-2e36, 5},
    {2e38, 1},
    {1e40, 7},
    {-1e60, 1},
    {1e115, 1000},
    {1, 3e38f},
    {-40, 1e-40f},
    {-0.6931471824645996, 2},
    {INFINITY, 3},
    {NAN, 1},
    {1, NAN},
    {NAN, 0},
};

const std::vector<float> extreme_sinks = {
    0.25f, -INFINITY, 1e30f, -1e30f, 3e38f, -FLT_MAX, INFINITY, NAN, 700, 0x1p31f,
};

struct finish_case {
  int batch, heads, count, value_dim;
  int first_query = 0, query_step = 1;
  bool sinks = false, ragged = false, is_base_two = false;
};

// Inputs and results are as long as they must be and not an element more.
class finish_run {
 public:
  finish_run(const finish_case& c, const std::vector<float>& sinks, std::uint64_t seed)
      : c(c),
        rows(std::size_t(c.batch) * c.heads * c.count),
        sinks(sinks),
        state(rows * (c.value_dim + 2)) {
    std::mt19937 random{unsigned(seed)};
    std::normal_distribution<float> normal;
    for (int place = 0; place < c.count; ++place)
      indices.push_back(c.first_query + place * c.query_step);
    // The first batch row is empty, the last whole, one between ends among the queries.
    for (int batch = 0; batch < c.batch; ++batch)
      lengths.push_back(batch == 0             ? 0
                        : batch == c.batch - 1 ? indices.back() + 1
                                               : indices[std::size_t(c.count) / 2]);
    for (std::size_t row = 0; row < rows; ++row) {
      const row_sight& sight = sights[(row + seed) % sights.size()];
      seen.push_back(sight);
      for (int i = 0; i < c.value_dim; ++i) {
        const float x = i % 9 == 8 ? 3e38f : i % 9 == 7 ? 1e-44f : normal(random);
        mean(row)[i] = sight.score == -INFINITY ? 0 : x;
      }
      state[rows * c.value_dim + row] = float(settle_score(sight.score));
      state[rows * (c.value_dim + 1) + row] = sight.sum;
    }
  }

  void check(std::uint64_t seed) {
    std::vector<float> output(rows * c.value_dim, untouched), lse(rows, untouched);
    run(finish_states_kernel,
        finish_arguments{state.data(), output.data(), lse.data(), c.sinks ? sinks.data() : nullptr,
                         indices.data(), c.ragged ? lengths.data() : nullptr, int(rows), c.heads,
                         c.count, c.value_dim, c.is_base_two, 0},
        (rows + 3) / 4, 128, seed);
    std::size_t row = 0;
    for (int batch = 0; batch < c.batch; ++batch) {
      for (int head = 0; head < c.heads; ++head) {
        for (int place = 0; place < c.count; ++place, ++row) {
          const std::size_t target = (std::size_t(batch) * c.count + place) * c.heads + head;
          check_row(row, batch, head, place, &output[target * c.value_dim], lse[row]);
        }
      }
    }
  }

 private:
  using wide = long double;

  float* mean(std::size_t row) { return &state[row * c.value_dim]; }

  void check_row(std::size_t row, int batch, int head, int place, const float* found, float lse) {
    const bool is_padding = c.ragged && indices[place] >= lengths[batch];
    const wide score = seen[row].score, sum = seen[row].sum;
    const wide sink = c.sinks ? sinks[head] : -INFINITY;
    if (is_padding || (sum == 0 && score == -INFINITY)) {
      expect_lse(row, lse, is_padding ? -INFINITY : sink, 0);
      expect_output(row, found, is_padding || !std::isnan(sink) ? 0 : NAN);
      return;
    }
    // A NaN is never hidden. e^-inf is 0, and the larger of the two is not taken from itself.
    const bool is_nan = std::isnan(score) || std::isnan(sum) || std::isnan(sink);
    const wide top = is_nan ? wide(NAN) : std::max(score, sink);
    const wide keys = sum * (score == top ? 1 : std::exp(score - top));
    const wide whole = keys + (sink == top ? 1 : std::exp(sink - top));
    expect_lse(row, lse, top + std::log(whole), std::abs(top) + std::abs(std::log(whole)));
    expect_output(row, found, keys / whole);
  }

  // Of two roundings, the first to double, the last digit may differ; a squeezed score has lost
  // more. What fp32 cannot hold is the largest that it can.
  void expect_lse(std::size_t row, float found, wide exact, wide magnitude) {
    const wide unit = c.is_base_two ? std::log(wide(2)) : 1;
    exact /= unit;
    magnitude /= unit;
    const wide slack =
        std::isfinite(exact) ? magnitude * (magnitude > 0x1p120 ? 5e-6L : 1e-14L) : 0;
    auto saturated = [&](wide x) {
      return std::isfinite(x) ? float(std::clamp(x, wide(-FLT_MAX), wide(FLT_MAX))) : float(x);
    };
    expect(std::isnan(exact)
               ? std::isnan(found)
               : found >= saturated(exact - slack) && found <= saturated(exact + slack),
           "row", row, "the log-sum-exp", found, double(exact));
  }

  void expect_output(std::size_t row, const float* found, wide share) {
    for (int i = 0; i < c.value_dim; ++i) {
      const wide exact = mean(row)[i] * share, slack = std::abs(exact) * 1e-12L;
      expect(std::isnan(exact)
                 ? std::isnan(found[i])
                 : found[i] >= float(exact - slack) && found[i] <= float(exact + slack),
             "row", row, "the output", found[i], double(exact));
    }
  }

  finish_case c;
  std::size_t rows;
  std::vector<float> sinks, state;  // sinks [heads]
  std::vector<int> indices, lengths;
  std::vector<row_sight> seen;
};

void check_finish(std::uint64_t seed) {
  // Every sight meets every sink.
  const int heads = int(extreme_sinks.size()), count = int(sights.size());
  finish_run({1, heads, count, 10, 0, 1, true}, extreme_sinks, seed).check(seed);
  finish_run({1, 1, count, 10}, {}, seed).check(seed);
  finish_run({1, heads, count, 3, 0, 1, true, true, true}, extreme_sinks, seed).check(seed);
  finish_run({1, 1, count, 3, 0, 1, false, false, true}, {}, seed).check(seed);
  const std::vector<float> sinks = {0.5f, -3, 2};
  for (const int value_dim : {1, 31, 64, 100, 576}) {
    finish_run({3, 3, 5, value_dim, 4, 3, true, true}, sinks, seed).check(seed);
    finish_run({2, 3, 1, value_dim, 0, 1, false, true}, sinks, seed).check(seed);
    finish_run({1, 1, 1, value_dim, 2, 1, true}, sinks, seed + 3).check(seed);
  }
}

// ---- convert ----

int fraction_bits(storage type) {
  return type == storage::f16 ? 10 : 7;
}

// The first bits whose exponent is that of infinity.
unsigned infinity_of(storage type) {
  return 0x7fffu >> fraction_bits(type) << fraction_bits(type);
}

// By its fields; infinity counts as the number that would follow the last.
double magnitude_of(storage type, unsigned bits) {
  const int width = fraction_bits(type), bias = (1 << (14 - width)) - 1;
  const int exponent = int(bits >> width), fraction = int(bits) & ((1 << width) - 1);
  return exponent == 0 ? std::ldexp(fraction, 1 - bias - width)
                       : std::ldexp(fraction + (1 << width), exponent - bias - width);
}

void check_widening(storage type, std::size_t count, std::uint64_t seed) {
  std::vector<std::uint16_t> from(count);
  for (std::size_t i = 0; i < count; ++i)
    from[i] = std::uint16_t(count - 1 - i);
  std::vector<float> to(count, untouched);
  run(widen_kernel(type), convert_arguments{from.data(), to.data(), (long long)count},
      (count + 255) / 256, 256, seed);
  for (std::size_t i = 0; i < count; ++i) {
    const unsigned magnitude = from[i] & 0x7fffu;
    const double exact = magnitude < infinity_of(type)    ? magnitude_of(type, magnitude)
                         : magnitude == infinity_of(type) ? INFINITY
                                                          : NAN;
    const float signed_number = float(from[i] >> 15 ? -exact : exact);
    expect(std::isnan(exact) ? std::isnan(to[i])
                             : std::memcmp(&to[i], &signed_number, sizeof(float)) == 0,
           "element", i, "the number", to[i], signed_number);
  }
}

struct narrowing {
  float from;
  unsigned to;  // bits; beyond infinity's: any NaN
};

// Each number of 16 bits, the tie with the next one and the floats on either side of it.
std::vector<narrowing> narrowings(storage type, std::uint64_t seed) {
  const unsigned infinity = infinity_of(type);
  std::vector<narrowing> all = {{INFINITY, infinity}, {-INFINITY, infinity | 0x8000u},
                                {FLT_MAX, infinity},  {-FLT_MAX, infinity | 0x8000u},
                                {0x1p-149f, 0},       {-0x1p-149f, 0x8000u},
                                {NAN, 0x7fffu},       {-NAN, 0x7fffu}};
  for (unsigned bits = 0; bits < infinity; ++bits) {
    const bool is_negative = (bits / 2 + seed) % 2;
    auto add = [&](float x, unsigned nearest) {
      all.push_back({is_negative ? -x : x, nearest | (is_negative ? 0x8000u : 0u)});
    };
    const float number = float(magnitude_of(type, bits));
    const float tie = float((magnitude_of(type, bits) + magnitude_of(type, bits + 1)) / 2);
    add(number, bits);
    add(tie, bits + bits % 2);
    add(std::nextafter(tie, 0.f), bits);
    add(std::nextafter(tie, INFINITY), bits + 1);
  }
  return all;
}

void check_narrowing(storage type, std::uint64_t seed) {
  const std::vector<narrowing> all = narrowings(type, seed);
  std::vector<float> from(all.size());
  std::transform(all.begin(), all.end(), from.begin(), [](const narrowing& n) { return n.from; });
  std::vector<std::uint16_t> to(all.size(), 0xa5a5u);
  run(narrow_kernel(type), convert_arguments{from.data(), to.data(), (long long)all.size()},
      (all.size() + 255) / 256, 256, seed);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool is_nan = (to[i] & 0x7fffu) > infinity_of(type);
    expect(std::isnan(from[i]) ? is_nan : to[i] == all[i].to, "element", i, "the bits", to[i],
           all[i].to);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 4;
  for (int seed = 0; seed < seeds; ++seed) {
    check_finish(seed);
    for (const storage type : {storage::f16, storage::bf16}) {
      for (const std::size_t count : {1, 255, 257, 65536})
        check_widening(type, count, seed);
      check_narrowing(type, seed);
    }
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures != 0;
}
