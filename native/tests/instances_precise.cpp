// attend_precise of each storage type, and the plain kernels that run before it.
#include "attend_precise.cu"
#include "instances.hpp"

static const bool registered = [] {
  add_plain<float16, 128>("float16");
  add_plain<bfloat16, 128>("bfloat16");
  add_plain<float8_e4m3, 128>("float8_e4m3");
  add_plain<int8, 128>("int8");
  return true;
}();

template <class element>
static const emulation::kernel& code() {
  constexpr auto body = &attend_precise<element>;
  static const emulation::kernel code =
      emulation::describe(body, [](void** arguments) { emulation::apply(body, arguments); });
  return code;
}

const emulation::kernel& precise_kernel(storage type) {
  return type == storage::f32   ? code<float>()
         : type == storage::f16 ? code<float16>()
         : type == storage::f8  ? code<float8_e4m3>()
         : type == storage::i8  ? code<int8>()
                                : code<bfloat16>();
}
