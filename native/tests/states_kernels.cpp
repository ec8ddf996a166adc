// The kernels of states.cu for the tests.
#include "attention_case.hpp"
#include "states.cu"

#define STATE_KERNEL(name)                \
  const emulation::kernel name##_kernel = \
      emulation::describe(&name, [](void** arguments) { emulation::apply(&name, arguments); })

STATE_KERNEL(merge_states);
STATE_KERNEL(fold_states);
STATE_KERNEL(weigh);
STATE_KERNEL(unweigh);
STATE_KERNEL(clear_state);
