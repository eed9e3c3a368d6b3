// A function with a stack of its own, run piece by piece.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace on_cpu {

class Fiber {
   public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next resume() calls body(argument). A fiber that has not returned yet is given up.
    void start(void (*body)(void*), void* argument);
    // Runs until the body pauses or returns.
    void resume();
    // Called by the body: back to the caller of resume().
    static void pause();

   private:
    static void enter();

#if defined(__x86_64__)
    using Context = void*;  // the stack pointer; everything else lies on the stack
#else
    using Context = ucontext_t;
#endif
    static void switch_to(Context& from, Context& to);

    char* stack_ = nullptr;
    Context own_ = {}, caller_ = {};
    void (*body_)(void*) = nullptr;
    void* argument_ = nullptr;
};

}  // namespace on_cpu
