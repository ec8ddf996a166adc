// The kernels of states.cu against the arithmetic of PartialMerge, to the bit where exp() is not in
// between, and their laws.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "attention_case.hpp"

namespace {

int failures = 0, checks = 0;

void expect(bool holds, const char* what, int row = -1) {
  ++checks;
  if (!holds && ++failures <= 20) std::printf("%s (row %d)\n", what, row);
}

template <class arguments>
void run(const emulation::kernel& kernel, arguments a, int rows, std::uint64_t seed) {
  void* parameters[] = {&a};
  const std::string error =
      emulation::launch(kernel, {{unsigned(rows + 3) / 4, 1, 1}, {128, 1, 1}, 0, seed}, parameters);
  expect(error.empty(), error.c_str());
}

struct state {
  int rows, dim;
  std::vector<float> floats;

  state(int rows, int dim) : rows(rows), dim(dim), floats(std::size_t(rows) * (dim + 2)) {}
  float* output(int row) { return &floats[std::size_t(row) * dim]; }
  float& max(int row) { return floats[std::size_t(rows) * dim + row]; }
  float& sum(int row) { return floats[std::size_t(rows) * (dim + 1) + row]; }
};

// Every eighth row is empty, another has a huge maximum, another extreme outputs, another zeros of
// both signs.
state random_state(int rows, int dim, std::mt19937& random) {
  state s(rows, dim);
  std::normal_distribution<float> normal;
  for (int row = 0; row < rows; ++row) {
    const unsigned kind = random() % 8;
    for (int i = 0; i < dim; ++i)
      s.output(row)[i] = normal(random);
    s.max(row) = kind == 1 ? 1e30f : kind == 2 ? (random() % 2 ? 0.f : -0.f) : 3 * normal(random);
    s.sum(row) = 1 + std::abs(normal(random)) * 100;
    if (kind == 3) {
      for (int i = 0; i < dim; ++i)
        s.output(row)[i] = random() % 2 ? 3e38f : -3e38f;
    }
    if (kind == 4) {
      for (int i = 0; i < dim; ++i)
        s.output(row)[i] = random() % 2 ? 0.f : -0.f;
    }
    if (kind == 0) {
      for (int i = 0; i < dim; ++i)
        s.output(row)[i] = 0;
      s.max(row) = -INFINITY;
      s.sum(row) = 0;
    }
  }
  return s;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

// PartialMerge.Fold, row by row.
state folded(state a, state b) {
  for (int row = 0; row < a.rows; ++row) {
    if (b.sum(row) == 0) continue;
    if (a.sum(row) == 0) {
      std::copy(b.output(row), b.output(row) + b.dim, a.output(row));
      a.max(row) = b.max(row);
      a.sum(row) = b.sum(row);
      continue;
    }
    const float top = std::max(a.max(row), b.max(row));
    auto weight = [&](state& s) {
      return s.max(row) == top ? s.sum(row) : s.sum(row) * std::exp(s.max(row) - top);
    };
    const float mine = weight(a), other = weight(b), whole = mine + other;
    for (int i = 0; i < a.dim; ++i) {
      const float x = a.output(row)[i], y = b.output(row)[i];
      const float left = x * (mine / whole), right = y * (other / whole);
      a.output(row)[i] = std::min(std::max(left + right, std::min(x, y)), std::max(x, y));
    }
    a.max(row) = top;
    a.sum(row) = whole;
  }
  return a;
}

state merged(state into, const std::vector<float>& from, int count, std::uint64_t seed) {
  run(merge_states_kernel,
      merge_arguments{into.floats.data(),
                      from.data(),
                      (long long)into.floats.size(),
                      into.rows,
                      into.dim,
                      count,
                      {}},
      into.rows, seed);
  return into;
}

void check_merges(int rows, int dim, std::mt19937& random, std::uint64_t seed) {
  const state a = random_state(rows, dim, random), b = random_state(rows, dim, random);
  state expected = folded(a, b), ab = merged(a, b.floats, 1, seed),
        ba = merged(b, a.floats, 1, seed);

  expect(same_bits(ab.floats, ba.floats), "merge(a, b) and merge(b, a) differ");
  expect(same_bits(merged(a, b.floats, 0, seed).floats, a.floats),
         "a merge of nothing changes bits");
  for (int row = 0; row < rows; ++row) {
    expect(ab.sum(row) == expected.sum(row) && (ab.max(row) == expected.max(row)),
           "max or sum of a merge", row);
    for (int i = 0; i < dim; ++i) {
      expect(ab.output(row)[i] == expected.output(row)[i], "output of a merge", row);
    }
  }
}

void check_equal_outputs(std::mt19937& random, std::uint64_t seed) {
  const state a = random_state(40, 33, random);
  state b = a;
  for (int row = 0; row < b.rows; ++row)
    b.max(row) += b.sum(row) == 0 ? 0 : 0.7f;
  state both = merged(a, b.floats, 1, seed);
  for (int row = 0; row < a.rows; ++row) {
    expect(!std::memcmp(both.output(row), b.output(row), 33 * sizeof(float)),
           "equal outputs do not stay equal", row);
  }
}

void check_not_a_number(std::uint64_t seed) {
  state a(1, 8), b(1, 8);
  a.sum(0) = b.sum(0) = 1;
  a.output(0)[3] = NAN;
  b.max(0) = 2;
  state both = merged(a, b.floats, 1, seed), turned = merged(b, a.floats, 1, seed);
  expect(std::isnan(both.output(0)[3]) && std::isnan(turned.output(0)[3]), "a NaN output is lost");
  expect(both.output(0)[2] == 0, "a NaN spreads to its neighbours");
  a.max(0) = NAN;
  both = merged(a, b.floats, 1, seed);
  expect(std::isnan(both.max(0)) && std::isnan(both.sum(0)), "a NaN maximum is lost");
}

// A list of folds is the same merges one after another, to the bit.
void check_folds(int rows, int dim, std::mt19937& random, std::uint64_t seed) {
  constexpr int count = 6;
  std::vector<state> states;
  std::vector<float> all;
  for (int i = 0; i < count; ++i) {
    states.push_back(random_state(rows, dim, random));
    all.insert(all.end(), states[i].floats.begin(), states[i].floats.end());
  }
  // Lane 0 of three pages, lane 1 of two, lane 2 of one; then the tree.
  const std::vector<fold_step> steps{{0, 1}, {0, 2}, {3, 4}, {0, 3}, {0, 5}};
  run(fold_states_kernel,
      fold_arguments{all.data(), steps.data(), (long long)states[0].floats.size(), rows, dim,
                     int(steps.size()), 0},
      rows, seed);
  for (auto step : steps) {
    states[step.into] = merged(states[step.into], states[step.from].floats, 1, seed);
  }
  for (int i : {0, 3}) {
    const auto first = all.begin() + i * long(states[i].floats.size());
    expect(same_bits({first, first + long(states[i].floats.size())}, states[i].floats),
           "a list of folds differs from the merges");
  }
}

void check_weights(int rows, int dim, float unit, std::mt19937& random, std::uint64_t seed) {
  state a = random_state(rows, dim, random), back(rows, dim);
  std::vector<float> top(rows), numerator(std::size_t(rows) * dim, NAN), denominator(rows, NAN);
  for (int row = 0; row < rows; ++row) {
    top[row] = row % 3 == 0 || a.sum(row) == 0 ? a.max(row) : a.max(row) + 1;
  }
  run(weigh_kernel,
      weigh_arguments{a.floats.data(), top.data(), numerator.data(), denominator.data(), rows, dim,
                      unit, 0},
      rows, seed);
  std::fill(back.floats.begin(), back.floats.end(), NAN);
  run(unweigh_kernel,
      unweigh_arguments{top.data(), numerator.data(), denominator.data(), back.floats.data(), rows,
                        dim, unit, 0},
      rows, seed);
  for (int row = 0; row < rows; ++row) {
    const float share = a.max(row) == top[row] ? 1 : std::exp(a.max(row) - top[row]);
    const float weight = a.sum(row) == 0 ? 0 : unit * a.sum(row) * share;
    expect(denominator[row] == weight, "a denominator", row);
    expect(back.sum(row) == weight / unit, "a sum from a denominator", row);
    expect(back.max(row) == (weight == 0 ? -INFINITY : top[row]), "a maximum that comes back", row);
    for (int i = 0; i < dim; ++i) {
      const float x = a.output(row)[i];
      expect(numerator[std::size_t(row) * dim + i] == x * weight, "a numerator", row);
      const float y = back.output(row)[i];
      expect(std::isinf(x * weight) || std::abs(x - y) <= 2e-7f * std::abs(x),
             "an output that comes back", row);
    }
  }
}

void check_clear(int rows, int dim, std::uint64_t seed) {
  state a(rows, dim);
  std::fill(a.floats.begin(), a.floats.end(), NAN);
  run(clear_state_kernel, clear_arguments{a.floats.data(), rows, dim}, rows, seed);
  for (int row = 0; row < rows; ++row) {
    expect(a.max(row) == -INFINITY && a.sum(row) == 0, "max and sum of the identity", row);
    for (int i = 0; i < dim; ++i)
      expect(a.output(row)[i] == 0, "output of the identity", row);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 4;
  for (int seed = 0; seed < seeds; ++seed) {
    std::mt19937 random(seed);
    for (int dim : {1, 31, 64, 100, 576}) {
      for (int rows : {1, 4, 13}) {
        check_merges(rows, dim, random, seed);
        check_folds(rows, dim, random, seed);
        check_weights(rows, dim, seed % 2 ? 1 : 0x1p-20f, random, seed);
        check_clear(rows, dim, seed);
      }
    }
    check_equal_outputs(random, seed);
    check_not_a_number(seed);
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures != 0;
}
