// What the emulation must find.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "check.h"
#include "device_array.h"

namespace fasa::cuda {
namespace {

using test::DeviceArray;

void wait() { check(cudaDeviceSynchronize(), "waiting"); }

__global__ void half_a_barrier() {
    if (threadIdx.x < 40) __syncthreads();
}
__global__ void two_barriers() {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
__global__ void lane_leaves(float* x) {
    if (threadIdx.x == 7) return;
    x[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}
__global__ void two_shuffles(float* x) {
    x[threadIdx.x] = threadIdx.x < 16 ? __shfl_xor_sync(~0u, 1.0f, 1) : __shfl_down_sync(~0u, 1.0f, 1);
}
__global__ void two_masks(float* x) { x[threadIdx.x] = __shfl_xor_sync(threadIdx.x < 16 ? 0x1ffffu : ~0u, 1.0f, 1); }
__global__ void never_waits() { ptx::start_next(); }

TEST(on_cpu_deadlocks) {
    DeviceArray<float> x(32);
    launch({"half", 1, 64}, half_a_barrier);
    CHECK_THROWS(wait(), FASA_ERROR_DEVICE, "kernel half", "deadlock", "waits in __syncthreads", "has ended");
    launch({"two", 1, 64}, two_barriers);
    CHECK_THROWS(wait(), FASA_ERROR_DEVICE, "kernel two", "is not __syncthreads in line");
    launch({"leaves", 1, 32}, lane_leaves, x.data());
    CHECK_THROWS(wait(), FASA_ERROR_DEVICE, "kernel leaves", "deadlock", "thread (7, 0, 0) has ended");
    launch({"shuffles", 1, 32}, two_shuffles, x.data());
    CHECK_THROWS(wait(), FASA_ERROR_DEVICE, "__shfl_xor_sync", "__shfl_down_sync");
    launch({"masks", 1, 32}, two_masks, x.data());
    CHECK_THROWS(wait(), FASA_ERROR_DEVICE, "0001ffff", "ffffffff");
    launch({"never", 1, 32, 0, nullptr, true}, never_waits);
    CHECK_THROWS(wait(), FASA_ERROR_DEVICE, "kernel never", "never waits");
    wait();
}

TEST(on_cpu_pinned_memory_is_refused) {
    setenv("FASA_ON_CPU_LOCK_LIMIT", "1000", 1);
    CHECK_THROWS(PinnedBuffer(PinnedBuffer::large_bytes, "rows"), FASA_ERROR_MEMORY, "rows: 67108864 bytes",
                 "page-locked", "MiB of the host's memory are available", "ask for less");
    unsetenv("FASA_ON_CPU_LOCK_LIMIT");
    const PinnedBuffer memory(PinnedBuffer::large_bytes, "rows");
    CHECK(memory.data() != nullptr);
}

// A child lacks large page-locked memory, and lets go of it without touching what is at its addresses by then.
TEST(on_cpu_pinned_memory_and_fork) {
    PinnedBuffer memory(PinnedBuffer::large_bytes, "rows", 2);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        void* other = mmap(memory.data(), memory.n_bytes(), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        bool good = other == memory.data();
        if (good) *static_cast<volatile char*>(other) = 7;
        memory = PinnedBuffer();
        good = good && *static_cast<volatile char*>(other) == 7;
        _exit(good ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    static_cast<char*>(memory.data())[100] = 1;
}

// Two blocks; block 0 waits for n_bytes, while block 1 sends it 8, or it sends them itself and ends.
__global__ void get_mail(uint32_t n_bytes, bool is_open, bool waits) {
    FASA_DYNAMIC_SHARED(shared);
    uint64_t *const box = reinterpret_cast<uint64_t*>(shared), *const letter = box + 1;
    if (is_open) ptx::open_mailbox(box);
    ptx::cluster_arrive();
    ptx::cluster_wait();
    if ((blockIdx.x == 1) == waits) ptx::send(letter, uint64_t{7}, box, 0);
    if (blockIdx.x == 1 || !waits) return;
    ptx::expect_mail(box, n_bytes);
    ptx::wait_for_mail(box, 0);
}

TEST(on_cpu_mail) {
    const auto run = [](uint32_t n_bytes, bool is_open, bool waits) {
        launch({.name = "mail", .grid = 2, .block = 1, .shared_bytes = 16, .cluster = 2}, get_mail, n_bytes, is_open,
               waits);
        wait();
    };
    run(8, true, true);
    CHECK_THROWS(run(16, true, true), FASA_ERROR_DEVICE, "kernel mail", "does not come");
    CHECK_THROWS(run(4, true, true), FASA_ERROR_DEVICE, "4 bytes more than it expects");
    CHECK_THROWS(run(8, false, true), FASA_ERROR_DEVICE, "not open");
    CHECK_THROWS(run(8, true, false), FASA_ERROR_DEVICE, "block 0 of its cluster, which has ended");
    run(8, true, true);
}

__global__ void read_shared(float* x, const float* from) {
    __shared__ float fixed[4];
    FASA_DYNAMIC_SHARED(shared);
    float* given = reinterpret_cast<float*>(shared);
    x[0] = fixed[threadIdx.x];
    x[1] = given[threadIdx.x];
    ptx::copy_async_16(given, from);
    ptx::copy_async_commit();
    x[2] = given[3];  // too early
    ptx::copy_async_wait<0>();
    x[3] = given[3];
    fixed[threadIdx.x] = given[0] = 1;
}

TEST(on_cpu_poison) {
    DeviceArray<float> x(5), from({4.0f, 4.0f, 4.0f, 4.0f});
    CHECK(std::isnan(x.host()[4]));
    for (int i = 0; i < 2; ++i) {
        launch({"read", 1, 1, 16}, read_shared, x.data(), static_cast<const float*>(from.data()));
        const std::vector<float> found = x.host();
        CHECK(std::isnan(found[0]));
        CHECK(std::isnan(found[1]));
        CHECK(std::isnan(found[2]));
        CHECK(found[3] == 4);
    }
}

__global__ void write_at(uint8_t* x, int64_t at) { x[at] = 1; }
__global__ void read_vector(uint4* x, const void* from) { *x = ptx::load_once(from); }

struct TwoNumbers {
    int first, second;
};
__global__ void add_numbers(int* x, TwoNumbers numbers) { *x = numbers.first + numbers.second; }

TEST(on_cpu_numbers_are_not_taken_for_an_address) {
    DeviceArray<int> x(1);
    void* const address = reinterpret_cast<void*>(uintptr_t{0x7e12} << 32);
    void* const there =
        mmap(address, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(there == address);
    launch({"add", 1, 1}, add_numbers, x.data(), TwoNumbers{3, 0x7e12});
    CHECK(x.host()[0] == 0x7e15);
    munmap(there, 4096);
}

// The function does not return, but ends the process with an error: of ours, or of AddressSanitizer.
template <class F>
bool is_fatal(F f) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        if (!std::freopen("/dev/null", "w", stderr)) _exit(0);
        f();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

TEST(on_cpu_memory) {
    DeviceArray<uint8_t> x(1000);
    DeviceArray<uint4> y(1);
    CHECK(is_fatal([] {
        uint8_t* p = nullptr;
        check(cudaMalloc(&p, 1000), "memory");
        launch({"write", 1, 1}, write_at, p, 1000);  // just beyond: found when freed
        check(cudaFree(p), "free");
    }));
    launch({"write", 1, 1}, write_at, x.data(), 5000);
    CHECK_THROWS(wait(), FASA_ERROR_DEVICE, "kernel write", "thread (0, 0, 0)", "memory that is not there");
    launch({"vector", 1, 1}, read_vector, y.data(), static_cast<const void*>(x.data() + 8));
    CHECK_THROWS(wait(), FASA_ERROR_DEVICE, "kernel vector", "16-byte aligned");
    float host[4] = {};
    CHECK(cudaMemcpy(host, x.data(), 16, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, x.data() + 992, 16, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(is_fatal([&] {
        for (int i = 0; i < 8; ++i) {
            y.host();  // waits
            x.data()[0] = 1;
        }
    }));
#if __has_builtin(__builtin_clear_padding)
    CHECK_THROWS((launch({"vector", 1, 1}, read_vector, y.data(), static_cast<const void*>(host))), FASA_ERROR_DEVICE,
                 "kernel vector", "not pinned");
#endif
    void* p = nullptr;
    CHECK(cudaMalloc(&p, size_t{1} << 40) == cudaErrorMemoryAllocation && p == nullptr);
}

TEST(on_cpu_capture) {
    DeviceArray<float> x(1);
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    check(cudaStreamCreate(&stream), "stream");
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
    void* p = nullptr;
    CHECK(cudaMalloc(&p, 16) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaMemset(x.data(), 0, 4) == cudaErrorStreamCaptureImplicit);
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(cudaGraphDestroy(graph), "graph");
    check(cudaStreamDestroy(stream), "stream");
    cudaGetLastError();
}

}  // namespace
}  // namespace fasa::cuda
