// Registers attention kernels with the tests: one line an instance, as in the kernels' README.
#pragma once

#include "attend_plain.cu"
#include "attend_prefill.cu"
#include "attend_tensor.cu"
#include "attention_case.hpp"

template <class element>
constexpr storage storage_of = storage::f32;
template <>
constexpr storage storage_of<float16> = storage::f16;
template <>
constexpr storage storage_of<bfloat16> = storage::bf16;
template <>
constexpr storage storage_of<float8_e4m3> = storage::f8;
template <>
constexpr storage storage_of<int8> = storage::i8;

template <auto body>
kernel_instance instance_of(kernel_instance i) {
  i.code = emulation::describe(body, [](void** arguments) { emulation::apply(body, arguments); });
  return i;
}

template <class element, int head_tile, int value_tile, bool values_in_keys, int row_warps,
          int tile_keys, int stages>
void add_tensor(const char* type) {
  const std::string name = std::string("tensor<") + type + ", " + std::to_string(head_tile) + ", " +
                           std::to_string(value_tile) +
                           (values_in_keys ? ", true, " : ", false, ") + std::to_string(row_warps) +
                           ", " + std::to_string(tile_keys) + ", " + std::to_string(stages) + ">";
  kernel_instance made{.name = name,
                       .type = storage_of<element>,
                       .is_tensor = true,
                       .head_tile = head_tile,
                       .value_tile = value_tile,
                       .values_in_keys = values_in_keys,
                       .row_warps = row_warps,
                       .tile_keys = tile_keys,
                       .stages = stages};
  kernel_instances().push_back(
      instance_of<&attend_tensor<element, head_tile, value_tile, values_in_keys, row_warps,
                                 tile_keys, stages>>(std::move(made)));
}

template <class element, int head_tile, int value_tile, int tile_keys, bool has_rules>
void add_prefill(const char* type) {
  const std::string name = std::string("prefill<") + type + ", " + std::to_string(head_tile) +
                           ", " + std::to_string(value_tile) + ", " + std::to_string(tile_keys) +
                           (has_rules ? ", true>" : ", false>");
  kernel_instance made{.name = name,
                       .type = storage_of<element>,
                       .is_tensor = true,
                       .is_prefill = true,
                       .has_rules = has_rules,
                       .head_tile = head_tile,
                       .value_tile = value_tile,
                       .tile_keys = tile_keys};
  kernel_instances().push_back(
      instance_of<&attend_prefill<element, head_tile, value_tile, tile_keys, has_rules>>(
          std::move(made)));
}

template <class element, int value_tile>
void add_plain(const char* type) {
  kernel_instance made{
      .name = std::string("plain<") + type + ", " + std::to_string(value_tile) + ">",
      .type = storage_of<element>,
      .value_tile = value_tile};
  kernel_instances().push_back(instance_of<&attend_plain<element, value_tile>>(std::move(made)));
}
