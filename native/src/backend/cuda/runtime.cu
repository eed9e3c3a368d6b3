#include "backend/cuda/runtime.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/cpu.h"
#include "base/error.h"
#include "base/team.h"

namespace fasa::cuda {

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // a failure that was reported must not be found again by a later call
    if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
        fail(FASA_ERROR_UNSUPPORTED,
             "CUDA: %s: this build has no code for this GPU: build it on this machine, or with the GPU's compute "
             "capability in CMAKE_CUDA_ARCHITECTURES, or use device=\"cpu\"",
             what);
    }
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

namespace {

// The kernels launched on each stream since the host last waited for it, each once: a failure that is found then is of
// one of them.
class Launched {
   public:
    void add(cudaStream_t stream, const std::vector<const char*>& names) {
        const std::lock_guard lock(mutex_);
        std::vector<const char*>& all = of_[stream];
        for (const char* name : names) {
            if (std::find(all.begin(), all.end(), name) == all.end()) all.push_back(name);
        }
    }
    // Those of a stream, which are forgotten.
    std::vector<const char*> take(cudaStream_t stream) {
        const std::lock_guard lock(mutex_);
        return std::exchange(of_[stream], {});
    }
    void forget(cudaStream_t stream) {
        const std::lock_guard lock(mutex_);
        of_.erase(stream);
    }

   private:
    std::mutex mutex_;
    std::map<cudaStream_t, std::vector<const char*>> of_;
};

Launched& all_launched() {
    static Launched& all = *new Launched;  // streams may be destroyed after all else
    return all;
}

// Throws a failure of something that was launched on the stream.
void check_launched(cudaError_t status, cudaStream_t stream) {
    const std::vector<const char*> names = all_launched().take(stream);
    if (status == cudaSuccess) return;
    std::string what = names.size() > 1 ? "one of these kernels (FASA_CUDA_SYNC=1 tells which): " : "";
    for (const char* name : names) what.append(name).append(name == names.back() ? "" : ", ");
    check(status, names.empty() ? "waiting for the device" : what.c_str());
}

}  // namespace

void launched(cudaError_t status, cudaStream_t stream, const char* name) {
    if (status != cudaSuccess) {
        // An earlier kernel's failure stays.
        if (const cudaError_t earlier = cudaStreamQuery(stream); earlier == status) check_launched(earlier, stream);
        check(status, name);
    }
    if (!is_synchronous()) return all_launched().add(stream, {name});
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

namespace {

// Whether memory can be page-locked after it was taken, and kernels reach it by the same addresses as the host.
bool reaches_registered() {
    int device = 0;
    check(cudaGetDevice(&device), "asking for the GPU in use");
    const auto has = [&](cudaDeviceAttr attribute) {
        int value = 0;
        check(cudaDeviceGetAttribute(&value, attribute, device), "asking how the GPU reaches host memory");
        return value != 0;
    };
    return has(cudaDevAttrHostRegisterSupported) && has(cudaDevAttrCanUseHostPointerForRegisteredMem);
}

[[noreturn]] void refuse_pinned(size_t n_bytes, const char* what, const char* reason) {
    constexpr auto mib = [](uint64_t bytes) { return static_cast<double>(bytes) / 0x1p20; };
    rlimit lock = {};
    const bool limited = getrlimit(RLIMIT_MEMLOCK, &lock) == 0 && lock.rlim_cur != RLIM_INFINITY;
    const std::string limit =
        limited ? "; this process may lock " + std::to_string(lock.rlim_cur >> 10) + " KiB: raise that (ulimit -l)"
                : "";
    fail(
        FASA_ERROR_MEMORY,
        "%s: %zu bytes of page-locked host memory were refused (%s); %.1f MiB of the host's memory are available: free "
        "some, or ask for less%s",
        what, n_bytes, reason, mib(memory_available()), limit.c_str());
}

// What a system says that will not lock so many pages, or none.
bool is_refusal(cudaError_t status) {
    return status == cudaErrorMemoryAllocation || status == cudaErrorOperatingSystem ||
           status == cudaErrorNotPermitted || status == cudaErrorNotSupported;
}

// Zeroed memory that is all there, in huge pages where the system has them. Several threads touch it first, which page-
// locking would do with one.
Buffer present_pages(size_t n_bytes, const char* what, int n_threads) {
    constexpr size_t part_bytes = size_t{32} << 20, page_bytes = 4096;
    constexpr int n_threads_max = 16;  // more would wait for memory
    // To touch more than there is ends the process.
    if (n_bytes > memory_available()) refuse_pinned(n_bytes, what, "more than there is");
    auto pages = std::make_shared<Buffer>(n_bytes, what);
    auto* bytes = static_cast<volatile uint8_t*>(pages->data());
#ifdef MADV_DONTFORK
    // A process that forks would have to copy page-locked pages at once, and its child could not use them.
    madvise(pages->data(), n_bytes, MADV_DONTFORK);
#endif
    Team team(std::min(n_threads, n_threads_max));
    team.run(static_cast<int64_t>((n_bytes + part_bytes - 1) / part_bytes), [&](int64_t part, int) {
        const size_t first = static_cast<size_t>(part) * part_bytes;
        for (size_t at = first; at < std::min(first + part_bytes, n_bytes); at += page_bytes) bytes[at] = 0;
    });
    // A forked child does not have them: others may be at their addresses there by now, which are not to be unmapped.
    return {pages->data(), n_bytes, [pages, owner = getpid()](void*, size_t) mutable {
                if (getpid() != owner) new std::shared_ptr<Buffer>(pages);
                pages.reset();
            }};
}

}  // namespace

PinnedBuffer::PinnedBuffer(size_t n_bytes, const char* what, int n_threads) {
    if (n_bytes == 0) return;
    const bool is_large = n_bytes >= large_bytes && reaches_registered();
    void* p = nullptr;
    cudaError_t status = cudaSuccess;
    if (is_large) {
        pages_ = present_pages(n_bytes, what, n_threads);
        p = pages_.data();
        status = cudaHostRegister(p, n_bytes, cudaHostRegisterMapped | cudaHostRegisterPortable);
    } else {
        status = cudaHostAlloc(&p, n_bytes, cudaHostAllocMapped | cudaHostAllocPortable);
    }
    if (is_refusal(status)) {
        cudaGetLastError();
        refuse_pinned(n_bytes, what, cudaGetErrorString(status));
    }
    check(status, what);
    if (is_large) {
        pinned_ = {p, n_bytes, [](void* data, size_t) { cudaHostUnregister(data); }};
    } else {
        pinned_ = {p, n_bytes, [](void* data, size_t) { cudaFreeHost(data); }};
        std::memset(p, 0, n_bytes);
    }
    check(cudaHostGetDevicePointer(&on_device_, p, 0), what);
}

Stream::Stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    stream_.reset(stream);
}

void Release::operator()(cudaStream_t stream) const {
    all_launched().forget(stream);
    cudaStreamDestroy(stream);
}

void Stream::wait() const { check_launched(cudaStreamSynchronize(get()), get()); }

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
    const std::vector<const char*> before = all_launched().take(stream.get());
    Capture capture(stream.get());
    work();
    check(capture.end(), "recording a graph");
    names_ = all_launched().take(stream.get());
    all_launched().add(stream.get(), before);
    check(cudaGraphGetNodes(capture.graph(), nullptr, &n_nodes_), "looking at a graph");
    cudaGraphExec_t exec = nullptr;
    check(cudaGraphInstantiate(&exec, capture.graph(), 0), "building a graph");
    exec_.reset(exec);
    check(cudaGraphUpload(exec, stream.get()), "uploading a graph");
}

void Graph::launch(cudaStream_t stream) const {
    check(cudaGraphLaunch(exec_.get(), stream), "launching a graph");
    all_launched().add(stream, names_);
}

}  // namespace fasa::cuda
