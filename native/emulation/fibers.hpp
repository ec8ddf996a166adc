// Fibers, the threads of an emulated block: stacks, the switch from one to another, and what the
// sanitizers must know of both. Their hooks are absent in ordinary builds.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom,
                                                  std::size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old,
                                                   std::size_t* size_old);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void*);
[[gnu::weak]] void __tsan_switch_to_fiber(void*, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void*);
[[gnu::weak]] void __tsan_release(void*);

// Saves the callee's registers and the stack pointer, and goes on on the other stack.
void emulation_switch(void** save, void* restore);
asm(R"(
.text
.type emulation_switch, @function
emulation_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");
}

namespace emulation {
namespace {

constexpr std::size_t stack_bytes = 256 << 10, page = 4096;
constexpr unsigned without_order = 1;  // __tsan_switch_to_fiber_no_sync

void acquire(void* order) {
  if (__tsan_acquire) __tsan_acquire(order);
}
void release(void* order) {
  if (__tsan_release) __tsan_release(order);
}

struct stack {  // with a page below that must not be touched; kept for later fibers
  void* const tsan_fiber = __tsan_create_fiber ? __tsan_create_fiber(0) : nullptr;
  char* const base = static_cast<char*>(mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  stack() {
    if (base == MAP_FAILED) throw std::bad_alloc();
    mprotect(base, page, PROT_NONE);
  }
  ~stack() {
    if (tsan_fiber) __tsan_destroy_fiber(tsan_fiber);
    munmap(base, stack_bytes + page);
  }
};

}  // namespace
}  // namespace emulation
