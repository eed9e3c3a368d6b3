#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace on_cpu {

namespace {

constexpr size_t GUARD_BYTES = 64 << 10, STACK_BYTES = 256 << 10;

Fiber* current = nullptr;

// AddressSanitizer must know which stack is in use.
#if defined(__SANITIZE_ADDRESS__)
const void* caller_stack = nullptr;
size_t caller_stack_bytes = 0;
void leave_for(void** fake_stack, const void* bottom, size_t n_bytes) {
    __sanitizer_start_switch_fiber(fake_stack, bottom, n_bytes);
}
void arrive(void* fake_stack, const void** bottom, size_t* n_bytes) {
    __sanitizer_finish_switch_fiber(fake_stack, bottom, n_bytes);
}
void forget(const void* stack, size_t n_bytes) { __asan_unpoison_memory_region(stack, n_bytes); }
#else
const void* caller_stack = nullptr;
size_t caller_stack_bytes = 0;
void leave_for(void**, const void*, size_t) {}
void arrive(void*, const void**, size_t*) {}
void forget(const void*, size_t) {}
#endif

}  // namespace

Fiber::Fiber() {
    void* p = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, GUARD_BYTES, PROT_NONE) != 0) {
        std::perror("no memory for the stack of a fiber");
        std::abort();
    }
    stack_ = static_cast<char*>(p) + GUARD_BYTES;
}

Fiber::~Fiber() { munmap(stack_ - GUARD_BYTES, GUARD_BYTES + STACK_BYTES); }

void Fiber::resume() {
    current = this;
    void* fake_stack = nullptr;
    leave_for(&fake_stack, stack_, STACK_BYTES);
    switch_to(caller_, own_);
    arrive(fake_stack, nullptr, nullptr);
    current = nullptr;
}

void Fiber::pause() {
    Fiber* fiber = current;
    void* fake_stack = nullptr;
    leave_for(&fake_stack, caller_stack, caller_stack_bytes);
    switch_to(fiber->own_, fiber->caller_);
    arrive(fake_stack, &caller_stack, &caller_stack_bytes);
}

void Fiber::enter() {
    arrive(nullptr, &caller_stack, &caller_stack_bytes);
    current->body_(current->argument_);
    for (;;) pause();
}

#if defined(__x86_64__)

// Saves what a function must preserve [System V ABI] on the stack in use and takes it back from the other one.
asm(R"(
    .text
    .type on_cpu_switch, @function
on_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size on_cpu_switch, . - on_cpu_switch
)");
extern "C" void on_cpu_switch(void** from, void** to);

void Fiber::switch_to(Context& from, Context& to) { on_cpu_switch(&from, &to); }

void Fiber::start(void (*body)(void*), void* argument) {
    body_ = body;
    argument_ = argument;
    forget(stack_, STACK_BYTES);
    // Six registers, the address to return to, and a word that keeps the stack aligned as after a call.
    uint64_t* top = reinterpret_cast<uint64_t*>(stack_ + STACK_BYTES) - 8;
    for (int i = 0; i < 8; ++i) top[i] = 0;
    top[6] = reinterpret_cast<uint64_t>(&Fiber::enter);
    own_ = top;
}

#else

void Fiber::switch_to(Context& from, Context& to) { swapcontext(&from, &to); }

void Fiber::start(void (*body)(void*), void* argument) {
    body_ = body;
    argument_ = argument;
    forget(stack_, STACK_BYTES);
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_;
    own_.uc_stack.ss_size = STACK_BYTES;
    own_.uc_link = nullptr;
    makecontext(&own_, &Fiber::enter, 0);
}

#endif

}  // namespace on_cpu
