// The device's queue of work, and its memory. Work runs when the host waits for it, so that a wait that was forgotten
// shows.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <mutex>

#include "block.h"

namespace on_cpu {

// Held by every function of the runtime that looks at the queue or at the allocations.
inline std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

// Queued, or, while the stream captures, recorded.
cudaError_t launch(Kernel kernel, const void* function, cudaStream_t stream);
cudaError_t enqueue(std::function<void()> work, cudaStream_t stream);

// Runs what is queued. After a fault the rest is dropped.
cudaError_t flush();

// The next flush fails with this: owners of memory do not look whether freeing it failed.
void report_later(cudaError_t error);

// Remembers the error for cudaGetLastError.
cudaError_t remember(cudaError_t error);

bool is_capturing(cudaStream_t stream);
bool is_any_capturing();

bool is_device_memory(const void* p, size_t n_bytes);
// While it lives, device memory may be touched: by the work of the queue, and by nothing else.
class OpenDeviceMemory {
   public:
    OpenDeviceMemory();
    ~OpenDeviceMemory();
};
// Whether anything among a kernel's arguments looks like the address of host memory that is not pinned.
bool holds_host_address(const void* arguments, size_t n_bytes);
bool is_pinned_memory(const void* p, size_t n_bytes);

}  // namespace on_cpu
