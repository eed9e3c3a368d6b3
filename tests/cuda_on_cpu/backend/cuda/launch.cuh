// The place of native/src/backend/cuda/launch.cuh: launches join the queue (queue.h).
#pragma once

#include <tuple>

#include "backend/cuda/runtime.h"
#include "block.h"
#include "queue.h"

#define FASA_DYNAMIC_SHARED(name) uint8_t* const name = ::on_cpu::dynamic_shared()

namespace fasa::cuda {

struct Launch {
    const char* name;  // of the kernel, for errors
    dim3 grid, block;
    size_t shared_bytes = 0;
    cudaStream_t stream = nullptr;
    bool overlap = false;
    unsigned cluster = 1;
};

constexpr unsigned max_cluster = 16;

template <class... P>
unsigned largest_cluster(void (*)(P...), unsigned, dim3, size_t, unsigned wanted) {
    return wanted;
}

template <class... P>
void allow_shared(void (*kernel)(P...), size_t n_bytes, const char* name) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(n_bytes)),
          name);
}

// Whether an argument does; false where the compiler cannot clear its padding, which may look like an address.
template <class T>
bool holds_host_address([[maybe_unused]] std::decay_t<T> argument) {
#if __has_builtin(__builtin_clear_padding)
    __builtin_clear_padding(&argument);
    return on_cpu::holds_host_address(&argument, sizeof(argument));
#else
    return false;
#endif
}

template <class... P, class... A>
void launch(const Launch& how, void (*kernel)(P...), A... args) {
    using Arguments = std::tuple<std::decay_t<P>...>;
    static_assert(sizeof(Arguments) <= 4096 && (std::is_trivially_copyable_v<P> && ...));
    const Arguments arguments(static_cast<P>(args)...);
    const bool takes_host_address = (holds_host_address<P>(static_cast<P>(args)) || ...);
    check(on_cpu::launch({how.name, how.grid, how.block, how.shared_bytes, how.overlap, how.cluster,
                          [kernel, arguments] { std::apply(kernel, arguments); }, takes_host_address},
                         reinterpret_cast<const void*>(kernel), how.stream),
          how.name);
    launched(how.stream, how.name);
}

}  // namespace fasa::cuda
