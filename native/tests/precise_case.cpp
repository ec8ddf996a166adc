// What cases of attend_precise have beside others: the limits of their pages, and a second launch.
#include <algorithm>
#include <cmath>

#include "attention_case.hpp"

void case_data::make_limits() {
  for (std::size_t page = 0; page < pages.size(); ++page) {
    const int batch = int(page / (pages.size() / c.batch));
    for (int head = 0; head < c.kv_heads; ++head) {
      double norm = 0;
      float largest = 0;
      for (int n = 0; n < pages[page].count; ++n) {
        const int p = positions[pages[page].run_offset + n];
        if (p >= key_length(batch)) continue;
        double squares = 0;
        for (int d = 0; d < c.head_dim; ++d)
          squares += std::pow(double(element(keys, batch, p, head, d, c.head_dim)), 2);
        for (int d = 0; d < c.value_dim; ++d)
          largest = std::max(largest, std::abs(element(values, batch, p, head, d, c.value_dim)));
        norm = std::max(norm, squares);
      }
      limits.push_back({float(std::sqrt(norm)), largest});
    }
  }
}

std::string case_data::run_precise(const emulation::kernel& kernel, const attend_arguments& a,
                                   std::uint64_t seed) const {
  // Slots in another order than pages, as in a cache.
  std::vector<page_limits> by_slot(limits.size());
  std::vector<int> slots(pages.size());
  for (std::size_t page = 0; page < pages.size(); ++page) {
    slots[page] = int(pages.size() - 1 - page);
    std::copy_n(limits.begin() + long(page) * c.kv_heads, c.kv_heads,
                by_slot.begin() + long(slots[page]) * c.kv_heads);
  }
  precise_arguments p{};
  p.attend = a;
  p.limits = by_slot.data();
  p.slots = slots.data();
  p.scale = c.scale == 0 ? 1 / std::sqrt(double(c.head_dim)) : c.scale;
  p.score_limit = c.type == storage::f32 ? 48 : 2048;
  p.value_limit = 1e30f;
  void* parameters[] = {&p};
  const unsigned tiles = unsigned(a.group * a.query_count + 3) / 4;
  return emulation::launch(kernel,
                           {{unsigned(a.splits) * tiles, unsigned(c.kv_heads), unsigned(c.batch)},
                            {128, 1, 1},
                            unsigned(4 * 8 * (c.head_dim + 32)),
                            seed},
                           parameters);
}

std::string case_data::check_precise(const kernel_instance& instance,
                                     const emulation::kernel& precise, std::uint64_t seed) {
  std::string error;
  const std::vector<float> state = run(instance, seed, error, nullptr, &precise);
  return error.empty() ? compare(instance, state) : error;
}
