// The kernels of append.cu for the tests.
#include "append.cu"
#include "attention_case.hpp"

extern const emulation::kernel rotate_queries_kernel;
const emulation::kernel rotate_queries_kernel = emulation::describe(
    &rotate_queries, [](void** arguments) { emulation::apply(&rotate_queries, arguments); });

template <class element>
static const emulation::kernel& code() {
  constexpr auto body = &append_tokens<element>;
  static const emulation::kernel code =
      emulation::describe(body, [](void** arguments) { emulation::apply(body, arguments); });
  return code;
}

const emulation::kernel& append_kernel(storage type);
const emulation::kernel& append_kernel(storage type) {
  return type == storage::f32   ? code<float>()
         : type == storage::f16 ? code<float16>()
         : type == storage::f8  ? code<float8_e4m3>()
         : type == storage::i8  ? code<int8>()
                                : code<bfloat16>();
}
