#include "backend/cuda/runtime.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace fasa::cuda {

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // a failure that was reported must not be found again by a later call
    const fasa_status kind = status == cudaErrorMemoryAllocation ? FASA_ERROR_MEMORY : FASA_ERROR_DEVICE;
    fail(kind, "CUDA: %s: %s", what, cudaGetErrorString(status));
}

bool is_synchronous() {
    static const bool asked = [] {
        const char* value = std::getenv("FASA_CUDA_SYNC");
        return value && std::strcmp(value, "1") == 0;
    }();
    return asked;
}

void launched(cudaStream_t stream, const char* name) {
    if (!is_synchronous()) return;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &capture), name);
    if (capture == cudaStreamCaptureStatusNone) check(cudaStreamSynchronize(stream), name);
}

DeviceBuffer::DeviceBuffer(size_t n_bytes, const char* what, std::shared_ptr<Account> account)
    : share_(std::move(account), n_bytes, what), n_bytes_(n_bytes) {
    if (n_bytes == 0) return;
    void* p = nullptr;
    const cudaError_t status = cudaMalloc(&p, n_bytes);
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        size_t n_free = 0, n_total = 0;
        check(cudaMemGetInfo(&n_free, &n_total), what);
        fail(FASA_ERROR_MEMORY, "%s: %zu bytes of device memory needed, %zu of %zu free", what, n_bytes, n_free,
             n_total);
    }
    check(status, what);
    data_.reset(p);
}

PinnedBuffer::PinnedBuffer(size_t n_bytes, const char* what) : n_bytes_(n_bytes) {
    if (n_bytes == 0) return;
    void* p = nullptr;
    const cudaError_t status = cudaHostAlloc(&p, n_bytes, cudaHostAllocMapped | cudaHostAllocPortable);
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        fail(FASA_ERROR_MEMORY, "%s: %zu bytes of page-locked host memory refused", what, n_bytes);
    }
    check(status, what);
    data_.reset(p);
    std::memset(p, 0, n_bytes);
    check(cudaHostGetDevicePointer(&on_device_, p, 0), what);
}

Stream::Stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    stream_.reset(stream);
}

void Stream::wait() const {
    check(cudaStreamSynchronize(get()),
          is_synchronous() ? "waiting for the device" : "waiting for the device (FASA_CUDA_SYNC=1 names the kernel)");
}

Event::Event(bool keeps_time) {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, keeps_time ? cudaEventDefault : cudaEventDisableTiming), "making an event");
    event_.reset(event);
}

void Event::record(cudaStream_t stream) { check(cudaEventRecord(event_.get(), stream), "recording an event"); }

void Event::wait() const { check(cudaEventSynchronize(event_.get()), "waiting for the device"); }

void Event::hold(cudaStream_t stream) const {
    check(cudaStreamWaitEvent(stream, event_.get(), 0), "ordering two streams");
}

float Event::milliseconds_since(const Event& begin) const {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin.event_.get(), event_.get()), "measuring time");
    return milliseconds;
}

namespace {

struct DestroyGraph {
    void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};

// What a stream records while this lives.
class Capture {
   public:
    explicit Capture(cudaStream_t stream) : stream_(stream) {
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording a graph");
    }
    ~Capture() {
        // Given up: the exception under way says more than what ending it may return.
        if (stream_ && end() != cudaSuccess) cudaGetLastError();
    }
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;

    cudaError_t end() {
        cudaGraph_t graph = nullptr;
        const cudaError_t status = cudaStreamEndCapture(std::exchange(stream_, nullptr), &graph);
        graph_.reset(graph);
        return status;
    }
    cudaGraph_t graph() const { return graph_.get(); }

   private:
    cudaStream_t stream_;
    std::unique_ptr<CUgraph_st, DestroyGraph> graph_;
};

}  // namespace

Graph::Graph(const Stream& stream, const std::function<void()>& work) {
    Capture capture(stream.get());
    work();
    check(capture.end(), "recording a graph");
    check(cudaGraphGetNodes(capture.graph(), nullptr, &n_nodes_), "looking at a graph");
    cudaGraphExec_t exec = nullptr;
    check(cudaGraphInstantiate(&exec, capture.graph(), 0), "building a graph");
    exec_.reset(exec);
    check(cudaGraphUpload(exec, stream.get()), "uploading a graph");
}

void Graph::launch(cudaStream_t stream) const { check(cudaGraphLaunch(exec_.get(), stream), "launching a graph"); }

}  // namespace fasa::cuda
