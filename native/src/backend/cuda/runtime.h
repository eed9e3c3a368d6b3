// Calls of the CUDA runtime, as C++: failures are Errors, memory and handles have an owner.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "backend/cuda/account.h"
#include "base/buffer.h"

namespace fasa::cuda {

// Throws MEMORY when memory is short, else DEVICE with the runtime's text and `what` was attempted.
void check(cudaError_t status, const char* what);

// Whether FASA_CUDA_SYNC=1 asks for it: every launch is then waited for and nothing is kept as a graph, so that a
// failure names the kernel that it came from. Slow.
bool is_synchronous();
// To be called after a launch of a kernel, with what it returned; the name must last. Throws what went wrong: with the
// launch, or, where launches are waited for, with the kernel. Elsewhere that is found when the host waits for the
// stream, and the error names all kernels launched since it did last.
void launched(cudaError_t status, cudaStream_t stream, const char* name);

// Where the rows of the batch in progress lie. Kernels read it from device memory, so that a captured graph serves
// every later step.
struct Step {
    int32_t seq, pos0;
};

// The owners below forget the device that they were made on: free them where they were made.
struct Release {
    void operator()(cudaStream_t stream) const;
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
struct ReleaseDevice {
    void operator()(void* p) const { cudaFree(p); }
};

// Device memory, not zeroed, 256-byte aligned.
class DeviceBuffer {
   public:
    DeviceBuffer() = default;
    // Throws Error(MEMORY) naming `what`, the size and what is free. account: that it is counted in; nullptr: none.
    DeviceBuffer(size_t n_bytes, const char* what, std::shared_ptr<Account> account = nullptr);

    void* data() const { return data_.get(); }
    size_t n_bytes() const { return n_bytes_; }

   private:
    Share share_;
    std::unique_ptr<void, ReleaseDevice> data_;
    size_t n_bytes_ = 0;
};

// Page-locked host memory that kernels may reach too; zeroed. Large ones come as huge pages, where the system has them,
// that several threads touch before they are locked: gigabytes are there ten times sooner.
class PinnedBuffer {
   public:
    static constexpr size_t large_bytes = size_t{64} << 20;

    PinnedBuffer() = default;
    // n_threads: that touch a large one. Throws Error(MEMORY) naming `what`, the size and what there is.
    PinnedBuffer(size_t n_bytes, const char* what, int n_threads = 1);

    void* data() const { return pinned_.data(); }
    void* on_device() const { return on_device_; }  // the same memory, as kernels address it
    size_t n_bytes() const { return pinned_.n_bytes(); }

   private:
    Buffer pages_;   // of a large one; that of others is the runtime's
    Buffer pinned_;  // the same memory, let go of before the pages are
    void* on_device_ = nullptr;
};

// Of its own: it does not wait for the default stream.
class Stream {
   public:
    Stream();

    cudaStream_t get() const { return stream_.get(); }
    // Until all its work is done. Throws what a kernel on it did wrong, with the names of those it may have been.
    void wait() const;

   private:
    std::unique_ptr<CUstream_st, Release> stream_;
};

class Event {
   public:
    // Only one that keeps time serves milliseconds_since; it costs a little more.
    explicit Event(bool keeps_time = false);

    void record(cudaStream_t stream);
    void wait() const;                     // the host
    void hold(cudaStream_t stream) const;  // what follows on the stream
    float milliseconds_since(const Event& begin) const;

   private:
    std::unique_ptr<CUevent_st, Release> event_;
};

// Work that was recorded once and runs with one launch.
class Graph {
   public:
    Graph() = default;
    // Records what `work` puts on the stream, instead of running it, and uploads it. `work` must not allocate or wait.
    Graph(const Stream& stream, const std::function<void()>& work);

    void launch(cudaStream_t stream) const;
    size_t n_nodes() const { return n_nodes_; }
    explicit operator bool() const { return exec_ != nullptr; }

   private:
    std::unique_ptr<CUgraphExec_st, Release> exec_;
    size_t n_nodes_ = 0;
    std::vector<const char*> names_;  // of its kernels
};

}  // namespace fasa::cuda
