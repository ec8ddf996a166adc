// Prefill instances of every build: sanitizers and planted defects take these alone.
#include "instances.hpp"

static const bool registered = [] {
  add_prefill<bfloat16, 64, 64, 64, false>("bfloat16");
  add_prefill<float16, 64, 64, 32, true>("float16");
  return true;
}();
