// The kernels of edge.cu for the tests.
#include "attention_case.hpp"
#include "edge.cu"

extern const emulation::kernel finish_states_kernel;
const emulation::kernel finish_states_kernel = emulation::describe(
    &finish_states, [](void** arguments) { emulation::apply(&finish_states, arguments); });

template <class given, class wanted>
static const emulation::kernel& code() {
  constexpr auto body = &convert<given, wanted>;
  static const emulation::kernel code =
      emulation::describe(body, [](void** arguments) { emulation::apply(body, arguments); });
  return code;
}

const emulation::kernel& widen_kernel(storage from);
const emulation::kernel& widen_kernel(storage from) {
  return from == storage::f16 ? code<float16, float>() : code<bfloat16, float>();
}

const emulation::kernel& narrow_kernel(storage to);
const emulation::kernel& narrow_kernel(storage to) {
  return to == storage::f16 ? code<float, float16>() : code<float, bfloat16>();
}
