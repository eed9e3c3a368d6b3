// Streams, events and graphs of the runtime. All streams share one queue, in the order of the calls.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "queue.h"

using Work = std::function<void()>;

struct CUgraph_st {
    std::vector<Work> work;
};
struct CUgraphExec_st {
    std::vector<Work> work;
};
struct CUstream_st {
    CUgraph_st* capture = nullptr;  // where work is recorded
    bool began_capture = false;
};
struct CUevent_st {
    CUgraph_st* capture = nullptr;  // recorded in this capture
    std::chrono::steady_clock::time_point time = {};
};

namespace on_cpu {

namespace {

constexpr size_t SHARED_BY_DEFAULT = 48 << 10;

std::set<cudaStream_t> streams;
std::deque<Work> queue;
std::map<const void*, size_t> allowed_shared;
cudaError_t last_error = cudaSuccess, unreported = cudaSuccess;
bool is_broken = false;  // by FASA_ON_CPU_FAULT: as a GPU's context after a fault, for good
std::string fault_text = "a kernel failed";

}  // namespace

cudaError_t remember(cudaError_t error) {
    last_error = error;
    return error;
}

void report_later(cudaError_t error) { unreported = error; }

bool is_capturing(cudaStream_t stream) { return stream && stream->capture; }

bool is_any_capturing() {
    const Lock lock(mutex);
    return std::any_of(streams.begin(), streams.end(), is_capturing);
}

cudaError_t flush() {
    const Lock lock(mutex);
    if (is_any_capturing()) return remember(cudaErrorStreamCaptureUnsupported);
    if (is_broken) return remember(cudaErrorLaunchFailure);
    if (unreported != cudaSuccess) return remember(std::exchange(unreported, cudaSuccess));
    if (queue.empty()) return cudaSuccess;
    const OpenDeviceMemory open;
    try {
        while (!queue.empty()) {
            const Work work = std::move(queue.front());
            queue.pop_front();
            work();
        }
    } catch (const Fault& fault) {
        queue.clear();
        fault_text = fault.what();
        is_broken = std::getenv("FASA_ON_CPU_FAULT");
        return remember(cudaErrorLaunchFailure);
    }
    return cudaSuccess;
}

cudaError_t enqueue(Work work, cudaStream_t stream) {
    const Lock lock(mutex);
    if (is_capturing(stream)) {
        stream->capture->work.push_back(std::move(work));
    } else if (!stream && is_any_capturing()) {
        return remember(cudaErrorStreamCaptureImplicit);
    } else {
        queue.push_back(std::move(work));
    }
    return cudaSuccess;
}

cudaError_t launch(Kernel kernel, const void* function, cudaStream_t stream) {
    const Lock lock(mutex);
    if (is_broken) return remember(cudaErrorLaunchFailure);
    if (kernel.takes_host_address) {
        fault_text = "kernel " + kernel.name + ": an argument is the address of host memory that is not pinned";
        return remember(cudaErrorLaunchFailure);
    }
    const auto allowed = allowed_shared.find(function);
    if (kernel.shared_bytes > (allowed == allowed_shared.end() ? SHARED_BY_DEFAULT : allowed->second) ||
        !has_valid_shape(kernel)) {
        return remember(cudaErrorInvalidConfiguration);
    }
    return enqueue([kernel = std::move(kernel)] { run(kernel); }, stream);
}

}  // namespace on_cpu

using namespace on_cpu;

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorLaunchFailure:
            return fault_text.c_str();
        case cudaErrorStreamCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureImplicit:
            return "operation would make the legacy stream depend on a capturing blocking stream";
        case cudaErrorStreamCaptureUnjoined:
            return "capture was not ended by the stream that began it";
        default:
            return "unknown error";
    }
}
const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceCount(int* n) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    const char* asked = std::getenv("FASA_ON_CPU_GPUS");
    *n = driver < runtime || (asked && std::string(asked) == "0") ? 0 : 1;
    if (driver < runtime) return remember(cudaErrorInsufficientDriver);
    return *n > 0 ? cudaSuccess : remember(cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device != 0) return remember(cudaErrorInvalidDevice);
    *properties = {};
    std::snprintf(properties->name, sizeof(properties->name), "CUDA on the CPU");
    size_t free_bytes = 0;
    cudaMemGetInfo(&free_bytes, &properties->totalGlobalMem);
    properties->sharedMemPerBlock = SHARED_BY_DEFAULT;
    properties->sharedMemPerBlockOptin = 227 << 10;
    properties->sharedMemPerMultiprocessor = 228 << 10;
    properties->multiProcessorCount = 4;  // few, so that tests reach the paths of a full device with little work
    properties->major = 9;
    properties->warpSize = WARP;
    properties->regsPerBlock = 65536;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->l2CacheSize = 1 << 20;
    properties->canMapHostMemory = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return cudaErrorInvalidDevice;
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount:
            *value = properties.multiProcessorCount;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMajor:
            *value = properties.major;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
            *value = properties.minor;
            return cudaSuccess;
        case cudaDevAttrMemoryClockRate: {  // 0: unknown
            const char* clock = std::getenv("FASA_ON_CPU_CLOCK");
            *value = clock ? std::atoi(clock) : 0;
            return cudaSuccess;
        }
        case cudaDevAttrGlobalMemoryBusWidth:
            *value = 128;
            return cudaSuccess;
        case cudaDevAttrCanUseHostPointerForRegisteredMem:
        case cudaDevAttrHostRegisterSupported:
            *value = 1;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = static_cast<int>(properties.sharedMemPerBlockOptin);
            return cudaSuccess;
    }
    return remember(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetPCIBusId(char*, int, int) { return remember(cudaErrorNotSupported); }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : remember(cudaErrorInvalidDevice); }
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return flush(); }
cudaError_t cudaDeviceReset() { return flush(); }
cudaError_t cudaDriverGetVersion(int* version) {
    const char* asked = std::getenv("FASA_ON_CPU_DRIVER");
    if (!asked) return cudaRuntimeGetVersion(version);
    *version = std::atoi(asked);
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    const Lock lock(mutex);
    *stream = new CUstream_st;
    streams.insert(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const Lock lock(mutex);
    if (streams.erase(stream) == 0) return remember(cudaErrorInvalidValue);
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return flush(); }
cudaError_t cudaStreamQuery(cudaStream_t) { return flush(); }

// The queue is in order already; but in a capture the waiting stream joins it.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (event->capture) {
        if (!stream) return remember(cudaErrorStreamCaptureImplicit);
        stream->capture = event->capture;
    }
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
    *event = new CUevent_st;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const cudaError_t status = is_any_capturing() ? cudaSuccess : flush();  // the queue may still record it
    delete event;
    return status;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    event->capture = is_capturing(stream) ? stream->capture : nullptr;
    if (event->capture) return cudaSuccess;
    return enqueue([event] { event->time = std::chrono::steady_clock::now(); }, stream);
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return flush(); }
cudaError_t cudaEventQuery(cudaEvent_t) { return flush(); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream || stream->capture) return remember(cudaErrorStreamCaptureUnsupported);
    stream->capture = new CUgraph_st;
    stream->began_capture = true;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    const Lock lock(mutex);
    *graph = nullptr;
    if (!is_capturing(stream) || !stream->began_capture) return remember(cudaErrorStreamCaptureUnjoined);
    *graph = stream->capture;
    stream->began_capture = false;
    for (const cudaStream_t other : streams) {
        if (other->capture == *graph) other->capture = nullptr;
    }
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    *status = is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{graph->work};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    const Lock lock(mutex);
    for (const Work& work : exec->work) {
        if (const cudaError_t status = enqueue(work, stream); status != cudaSuccess) return status;
    }
    return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, void*, size_t* n) {
    *n = graph->work.size();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    const Lock lock(mutex);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > 227 << 10) return remember(cudaErrorInvalidValue);
    allowed_shared[kernel] = static_cast<size_t>(value);
    return cudaSuccess;
}
