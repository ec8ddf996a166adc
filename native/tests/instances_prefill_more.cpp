// The other prefill instances: every head and value tile, of each type.
#include "instances.hpp"

static const bool registered = [] {
  add_prefill<bfloat16, 128, 128, 64, false>("bfloat16");
  add_prefill<float16, 128, 128, 32, true>("float16");
  add_prefill<bfloat16, 64, 128, 64, false>("bfloat16");
  add_prefill<bfloat16, 128, 64, 64, true>("bfloat16");
  add_prefill<bfloat16, 256, 256, 64, true>("bfloat16");
  add_prefill<float16, 256, 128, 32, false>("float16");
  add_prefill<float8_e4m3, 64, 256, 32, true>("float8_e4m3");
  add_prefill<float8_e4m3, 128, 128, 64, false>("float8_e4m3");
  add_prefill<float8_e4m3, 256, 256, 32, true>("float8_e4m3");
  add_prefill<int8, 128, 128, 64, false>("int8");
  add_prefill<int8, 256, 256, 32, true>("int8");
  return true;
}();
