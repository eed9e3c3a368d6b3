// Memory of the runtime: allocations between guards, copies, fills.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <vector>

#include "queue.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) (static_cast<void>(p), static_cast<void>(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) (static_cast<void>(p), static_cast<void>(n))
#endif

namespace on_cpu {

namespace {

constexpr size_t GUARD = 64 << 10, ALIGNMENT = 256;
// Device memory is closed to the host after every so many waits, but for large allocations: closing takes its time.
constexpr size_t CLOSED_EVERY = 8, MAX_CLOSED = 1 << 20;

// The data end fewer than ALIGNMENT bytes before memory that nobody may touch; the bytes between stay 0xff.
struct Allocation {
    uint8_t *base, *data;
    size_t n_bytes, mapped;
    bool on_device;

    bool may_close() const { return on_device && n_bytes <= MAX_CLOSED; }
    uint8_t* end() const { return base + mapped - GUARD; }
    void protect(int how) const { mprotect(base + GUARD, mapped - 2 * GUARD, how); }
};

std::map<const void*, Allocation> allocations;  // by data
std::map<const void*, size_t> registered;       // host memory pinned by its owner
size_t device_bytes = 0, n_waits = 0;
bool is_closed = false;

size_t device_limit() {
    const char* limit = std::getenv("FASA_ON_CPU_MEMORY");
    return limit ? std::strtoull(limit, nullptr, 10) : size_t{4} << 30;
}

bool is_allocated(const void* p, size_t n_bytes, bool on_device) {
    const Lock lock(mutex);
    const auto next = allocations.upper_bound(p);
    if (next == allocations.begin()) return false;
    const Allocation& a = std::prev(next)->second;
    return a.on_device == on_device && static_cast<const uint8_t*>(p) + n_bytes <= a.data + a.n_bytes;
}

cudaError_t allocate(void** p, size_t n_bytes, bool on_device) {
    const Lock lock(mutex);
    *p = nullptr;
    if (is_any_capturing()) return remember(cudaErrorStreamCaptureUnsupported);
    if (n_bytes == 0) return cudaSuccess;
    if (on_device && (n_bytes > device_limit() || device_bytes + n_bytes > device_limit())) {
        return remember(cudaErrorMemoryAllocation);
    }
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t whole = (n_bytes + page - 1) / page * page, mapped = whole + 2 * GUARD;
    void* at = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return remember(cudaErrorMemoryAllocation);
    uint8_t* base = static_cast<uint8_t*>(at);
    if (mprotect(base + GUARD, whole, PROT_READ | PROT_WRITE) != 0) {
        munmap(base, mapped);
        return remember(cudaErrorMemoryAllocation);
    }
    const size_t rounded = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const Allocation a{base, base + GUARD + whole - rounded, n_bytes, mapped, on_device};
    std::memset(base + GUARD, 0xff, whole);
    ASAN_POISON_MEMORY_REGION(a.data + n_bytes, rounded - n_bytes);
    ASAN_POISON_MEMORY_REGION(base + GUARD, whole - rounded);
    allocations[a.data] = a;
    if (is_closed && a.may_close()) a.protect(PROT_NONE);
    if (on_device) device_bytes += n_bytes;
    *p = a.data;
    return cudaSuccess;
}

void protect_device_memory(int how) {
    for (const auto& [data, a] : allocations) {
        if (a.may_close()) a.protect(how);
    }
}

bool is_untouched(const uint8_t* from, const uint8_t* to) {
    while (from < to && *from == 0xff) ++from;
    return from == to;
}

cudaError_t release(void* p, bool on_device) {
    const Lock lock(mutex);
    if (is_any_capturing()) return remember(cudaErrorStreamCaptureUnsupported);
    const cudaError_t status = flush();  // as cudaFree, which waits for the device
    if (status != cudaSuccess) report_later(status);
    if (!p) return status;
    const auto found = allocations.find(p);
    if (found == allocations.end() || found->second.on_device != on_device) return remember(cudaErrorInvalidValue);
    const Allocation a = found->second;
    allocations.erase(found);
    if (on_device) device_bytes -= a.n_bytes;
    a.protect(PROT_READ | PROT_WRITE);
    ASAN_UNPOISON_MEMORY_REGION(a.base + GUARD, a.mapped - 2 * GUARD);
    const bool intact = is_untouched(a.base + GUARD, a.data) && is_untouched(a.data + a.n_bytes, a.end());
    munmap(a.base, a.mapped);
    if (intact) return status;
    std::fprintf(stderr, "%zu bytes of %s memory: something was written beside them\n", a.n_bytes,
                 on_device ? "device" : "pinned host");
    std::abort();
}

// Whether the addresses are of the kind that a copy says.
bool copy_is_valid(const void* to, const void* from, size_t n_bytes, cudaMemcpyKind kind) {
    const bool to_device = is_device_memory(to, n_bytes), from_device = is_device_memory(from, n_bytes);
    switch (kind) {
        case cudaMemcpyHostToHost:
            return !to_device && !from_device;
        case cudaMemcpyHostToDevice:
            return to_device && !from_device;
        case cudaMemcpyDeviceToHost:
            return !to_device && from_device;
        case cudaMemcpyDeviceToDevice:
            return to_device && from_device;
        default:
            return true;
    }
}

}  // namespace

bool is_device_memory(const void* p, size_t n_bytes) { return is_allocated(p, n_bytes, true); }

bool is_pinned_memory(const void* p, size_t n_bytes) {
    const Lock lock(mutex);
    if (is_allocated(p, n_bytes, false)) return true;
    const auto next = registered.upper_bound(p);
    if (next == registered.begin()) return false;
    const auto& [base, size] = *std::prev(next);
    return static_cast<const uint8_t*>(p) + n_bytes <= static_cast<const uint8_t*>(base) + size;
}

OpenDeviceMemory::OpenDeviceMemory() {
    if (is_closed) protect_device_memory(PROT_READ | PROT_WRITE);
    is_closed = false;
}

OpenDeviceMemory::~OpenDeviceMemory() {
    is_closed = ++n_waits % CLOSED_EVERY == 0;
    if (is_closed) protect_device_memory(PROT_NONE);
}

bool holds_host_address(const void* arguments, size_t n_bytes) {
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    for (size_t at = 0; at + sizeof(uintptr_t) <= n_bytes; at += sizeof(uintptr_t)) {
        uintptr_t word;
        std::memcpy(&word, static_cast<const uint8_t*>(arguments) + at, sizeof(word));
        if (word >> 40 < 0x55 || word >> 40 > 0x7f) continue;  // where Linux puts programs, heaps, libraries and stacks
        // A small number of four bytes before another one, or before padding: GCC's __builtin_clear_padding does not
        // clear what comes after an array of structs that are padded themselves.
        if (static_cast<uint32_t>(word) < 1 << 16) continue;
        const void* address = reinterpret_cast<const void*>(word);
        if (is_device_memory(address, 0) || is_pinned_memory(address, 0)) continue;
        unsigned char resident;
        if (mincore(reinterpret_cast<void*>(word / page * page), 1, &resident) == 0) return true;
    }
    return false;
}

}  // namespace on_cpu

using namespace on_cpu;

cudaError_t cudaMalloc(void** p, size_t n_bytes) { return allocate(p, n_bytes, true); }
cudaError_t cudaFree(void* p) { return release(p, true); }
cudaError_t cudaHostAlloc(void** p, size_t n_bytes, unsigned) { return allocate(p, n_bytes, false); }
cudaError_t cudaFreeHost(void* p) { return release(p, false); }

cudaError_t cudaHostRegister(void* p, size_t n_bytes, unsigned) {
    const Lock lock(mutex);
    const char* limit = std::getenv("FASA_ON_CPU_LOCK_LIMIT");
    if (limit && n_bytes > std::strtoull(limit, nullptr, 10)) return remember(cudaErrorOperatingSystem);
    if (!registered.emplace(p, n_bytes).second) return remember(cudaErrorInvalidValue);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* p) {
    const Lock lock(mutex);
    flush();
    return registered.erase(p) == 1 ? cudaSuccess : remember(cudaErrorInvalidValue);
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
    if (!is_pinned_memory(host, 1)) return remember(cudaErrorInvalidValue);
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    *total_bytes = device_limit();
    *free_bytes = device_limit() - std::min(device_limit(), device_bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t n_bytes, cudaMemcpyKind kind) {
    const cudaError_t status = cudaMemcpyAsync(to, from, n_bytes, kind, nullptr);
    return status == cudaSuccess ? flush() : status;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n_bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return cudaMemcpy2DAsync(to, n_bytes, from, n_bytes, n_bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    if (width == 0 || height == 0) return cudaSuccess;
    const size_t to_bytes = to_pitch * (height - 1) + width, from_bytes = from_pitch * (height - 1) + width;
    if (to_pitch < width || from_pitch < width || !copy_is_valid(to, from, width, kind) ||
        !copy_is_valid(static_cast<uint8_t*>(to) + to_bytes - width,
                       static_cast<const uint8_t*>(from) + from_bytes - width, width, kind)) {
        return remember(cudaErrorInvalidValue);
    }
    const auto copy = [=](const void* source) {
        for (size_t i = 0; i < height; ++i) {
            std::memmove(static_cast<uint8_t*>(to) + i * to_pitch, static_cast<const uint8_t*>(source) + i * from_pitch,
                         width);
        }
    };
    const bool pageable_from = !is_device_memory(from, from_bytes) && !is_pinned_memory(from, from_bytes);
    if (pageable_from && !is_capturing(stream)) {  // taken at once, as the driver stages it
        const auto* bytes = static_cast<const uint8_t*>(from);
        const std::vector<uint8_t> staged(bytes, bytes + from_bytes);
        return enqueue([=] { copy(staged.data()); }, stream);
    }
    const cudaError_t status = enqueue([=] { copy(from); }, stream);
    const bool pageable_to = !is_device_memory(to, to_bytes) && !is_pinned_memory(to, to_bytes);
    return status == cudaSuccess && pageable_to && !is_capturing(stream) ? flush() : status;
}

cudaError_t cudaMemset(void* p, int value, size_t n_bytes) { return cudaMemsetAsync(p, value, n_bytes, nullptr); }

cudaError_t cudaMemsetAsync(void* p, int value, size_t n_bytes, cudaStream_t stream) {
    if (!is_device_memory(p, n_bytes) && !is_pinned_memory(p, n_bytes)) return remember(cudaErrorInvalidValue);
    return enqueue([=] { std::memset(p, value, n_bytes); }, stream);
}
