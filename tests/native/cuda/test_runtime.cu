// Owners of memory, streams, events and graphs; errors.
#include <algorithm>
#include <cstring>
#include <utility>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/runtime.h"
#include "check.h"

namespace fasa::cuda {
namespace {

__global__ void add_kernel(int* sum, const int* x) {
    ptx::wait_for_previous();
    if (threadIdx.x == 0) *sum += *x;
    ptx::start_next();
}

TEST(cuda_graph_replay) {
    const Stream stream;
    const PinnedBuffer pinned(2 * sizeof(int), "two numbers");
    const DeviceBuffer memory(2 * sizeof(int), "two numbers");
    int* host = static_cast<int*>(pinned.data());
    int* device = static_cast<int*>(memory.data());
    check(cudaMemsetAsync(device, 0, 2 * sizeof(int), stream.get()), "zeros");
    const Graph graph(stream, [&] {
        check(cudaMemcpyAsync(device, host, sizeof(int), cudaMemcpyHostToDevice, stream.get()), "copy");
        for (int i = 0; i < 2; ++i) launch({"add", 1, 32, 0, stream.get(), true}, add_kernel, device + 1, device);
        check(cudaMemcpyAsync(host + 1, device + 1, sizeof(int), cudaMemcpyDeviceToHost, stream.get()), "copy");
    });
    stream.wait();
    CHECK(host[1] == 0);  // recording runs nothing
    for (int i = 1; i <= 3; ++i) {
        host[0] = i;  // each replay reads it anew
        graph.launch(stream.get());
        stream.wait();
        CHECK(host[1] == i * (i + 1));
    }
}

// A second stream may join a recording through events.
TEST(cuda_graph_of_two_streams) {
    const Stream first, second;
    Event fork, join;
    const PinnedBuffer pinned(3 * sizeof(int), "three numbers");
    int* x = static_cast<int*>(pinned.on_device());
    const Graph graph(first, [&] {
        fork.record(first.get());
        fork.hold(second.get());
        launch({"add", 1, 32, 0, first.get()}, add_kernel, x + 1, x);
        launch({"add", 1, 32, 0, second.get()}, add_kernel, x + 2, x);
        join.record(second.get());
        join.hold(first.get());
        launch({"add", 1, 32, 0, first.get()}, add_kernel, x + 2, x + 1);
    });
    int* host = static_cast<int*>(pinned.data());
    host[0] = 5;
    graph.launch(first.get());
    first.wait();
    CHECK(host[1] == 5);
    CHECK(host[2] == 10);
}

TEST(cuda_recording_that_fails) {
    const Stream stream;
    const auto give_up = [&] { Graph(stream, [] { fail(FASA_ERROR_ARGUMENT, "something else"); }); };
    CHECK_THROWS(give_up(), FASA_ERROR_ARGUMENT, "something else");
    const DeviceBuffer memory(4, "a number");  // the stream records no longer
    check(cudaMemsetAsync(memory.data(), 0, 4, stream.get()), "zeros");
    stream.wait();
}

TEST(cuda_events_keep_time) {
    const Stream stream;
    const DeviceBuffer memory(1 << 20, "a megabyte");
    Event begin(true), end(true);
    begin.record(stream.get());
    check(cudaMemsetAsync(memory.data(), 0, memory.n_bytes(), stream.get()), "zeros");
    end.record(stream.get());
    end.wait();
    CHECK(end.milliseconds_since(begin) > 0);
}

TEST(cuda_errors_name_what_failed) {
    CHECK_THROWS(launch({"too_wide", 1, 2048}, add_kernel, nullptr, nullptr), FASA_ERROR_DEVICE, "too_wide");
    CHECK_THROWS(check(cudaErrorMemoryAllocation, "weights"), FASA_ERROR_MEMORY, "weights", "out of memory");
    CHECK_THROWS(DeviceBuffer(size_t{1} << 60, "all of it"), FASA_ERROR_MEMORY, "all of it", "1152921504606846976",
                 "free");
    for (const cudaError_t status : {cudaErrorNoKernelImageForDevice, cudaErrorInvalidDeviceFunction}) {
        CHECK_THROWS(check(status, "kernel"), FASA_ERROR_UNSUPPORTED, "kernel", "no code for this GPU",
                     "CMAKE_CUDA_ARCHITECTURES");
    }
    check(cudaGetLastError(), "an error that was reported is forgotten");
}

TEST(cuda_owners_move) {
    DeviceBuffer a(100, "a"), b;
    void* p = a.data();
    b = std::move(a);
    CHECK(b.data() == p && b.n_bytes() == 100 && a.data() == nullptr);
    const PinnedBuffer zeros(64, "zeros"), none(0, "nothing");
    const char expected[64] = {};
    CHECK(std::memcmp(zeros.data(), expected, 64) == 0);
    CHECK(none.data() == nullptr);
}

// Kernels write to any place of it, and copies take it as page-locked memory.
TEST(cuda_large_pinned_memory) {
    constexpr size_t n_bytes = PinnedBuffer::large_bytes + 1000, n = n_bytes / sizeof(int);
    const Stream stream;
    PinnedBuffer first(n_bytes, "first"), memory;
    memory = std::move(first);
    CHECK(memory.n_bytes() == n_bytes && first.data() == nullptr);
    int* host = static_cast<int*>(memory.data());
    CHECK(host == memory.on_device());  // views of the KV cache are for both
    CHECK(std::all_of(host, host + n, [](int x) { return x == 0; }));
    host[0] = 3;
    launch({"add", 1, 32, 0, stream.get()}, add_kernel, host + n - 1, host);
    stream.wait();
    CHECK(host[n - 1] == 3);
    const DeviceBuffer device(sizeof(int), "a number");
    check(cudaMemcpyAsync(device.data(), host, sizeof(int), cudaMemcpyDefault, stream.get()), "copy");
    check(cudaMemcpyAsync(host + n / 2, device.data(), sizeof(int), cudaMemcpyDefault, stream.get()), "copy");
    stream.wait();
    CHECK(host[n / 2] == 3);
    memory = PinnedBuffer();
    const PinnedBuffer again(n_bytes, "again");  // at the same place, most likely
    CHECK(static_cast<int*>(again.data())[0] == 0);
    CHECK_THROWS(PinnedBuffer(size_t{1} << 60, "all of it"), FASA_ERROR_MEMORY, "all of it", "1152921504606846976");
}

}  // namespace
}  // namespace fasa::cuda
