// Tensor-core instances of every build: sanitizers and planted defects take these alone.
#include "instances.hpp"

static const bool registered = [] {
  add_tensor<bfloat16, 64, 64, false, 1, 64, 2>("bfloat16");
  add_tensor<float16, 64, 64, false, 4, 32, 3>("float16");
  add_tensor<float8_e4m3, 64, 64, false, 1, 64, 3>("float8_e4m3");
  add_tensor<int8, 64, 64, false, 1, 64, 3>("int8");
  return true;
}();
