// The other instances: every head and value tile, row warps, tile of keys and stage count.
#include "instances.hpp"

static const bool registered = [] {
  add_tensor<bfloat16, 64, 64, false, 2, 32, 2>("bfloat16");
  add_tensor<float16, 64, 64, false, 1, 32, 2>("float16");
  add_tensor<bfloat16, 128, 128, false, 1, 64, 3>("bfloat16");
  add_tensor<float16, 128, 128, false, 4, 64, 2>("float16");
  add_tensor<bfloat16, 128, 64, false, 2, 64, 2>("bfloat16");
  add_tensor<float16, 64, 128, false, 1, 64, 4>("float16");
  add_tensor<bfloat16, 256, 256, false, 4, 32, 2>("bfloat16");
  add_tensor<float16, 256, 128, false, 1, 64, 2>("float16");
  add_tensor<bfloat16, 576, 576, true, 1, 32, 2>("bfloat16");
  add_tensor<bfloat16, 576, 576, true, 1, 64, 2>("bfloat16");
  add_tensor<float16, 576, 576, false, 1, 32, 2>("float16");
  add_tensor<float16, 128, 64, true, 1, 64, 2>("float16");
  add_tensor<float8_e4m3, 64, 64, false, 4, 64, 2>("float8_e4m3");
  add_tensor<float8_e4m3, 128, 128, false, 1, 64, 3>("float8_e4m3");
  add_tensor<float8_e4m3, 128, 128, false, 2, 32, 2>("float8_e4m3");
  add_tensor<float8_e4m3, 256, 256, false, 2, 64, 2>("float8_e4m3");
  add_tensor<float8_e4m3, 576, 576, true, 1, 32, 2>("float8_e4m3");
  add_tensor<float8_e4m3, 128, 64, true, 1, 64, 2>("float8_e4m3");
  add_tensor<int8, 64, 64, false, 4, 64, 2>("int8");
  add_tensor<int8, 128, 128, false, 2, 32, 2>("int8");
  add_tensor<int8, 256, 256, false, 2, 64, 2>("int8");
  add_tensor<int8, 576, 576, true, 1, 32, 2>("int8");
  add_plain<float, 640>("float");
  add_plain<float, 256>("float");
  add_plain<float16, 128>("float16");
  add_plain<bfloat16, 128>("bfloat16");
  add_plain<float8_e4m3, 128>("float8_e4m3");
  add_plain<int8, 128>("int8");
  return true;
}();
