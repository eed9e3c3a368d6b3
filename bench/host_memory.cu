// How fast a GPU reads rows of a KV cache where they lie in host memory, by how that memory was got:
//
//   nvcc -std=c++20 -O3 -arch=native -Inative/include -Inative/src -o build/host_memory bench/host_memory.cu
//       native/src/backend/cuda/{account.cpp,runtime.cu} native/src/base/error.cpp && build/host_memory [GiB]
//
// "pinned" is cudaHostAlloc, as the library does it; "huge pages" is anonymous memory of 2 MiB pages, touched by
// several threads and then registered; "created" is memory of the driver's own pages (cuMemCreate). Rows are gathered
// as a layer of decode does it: 2,048 random rows of one layer's region (131,072 positions of 8 KV heads), every warp
// 16 of them at once; between layers 147 MB of weights are read, as other kernels of a step do, so that no cache
// remembers the last step's places.
#include <cuda.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "backend/cuda/launch.cuh"

using fasa::cuda::check;

namespace {

constexpr int n_pos = 131072, n_head_kv = 8, n_rows = 2048, rows_a_warp = 16;

// to[i] = row at[i], whole 16-byte words; all loads of a warp's rows are under way at once.
__global__ void gather(uint4* to, const uint4* from, const int64_t* at, int row_words) {
    const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    uint4 word[rows_a_warp];
#pragma unroll
    for (int i = 0; i < rows_a_warp; ++i) {
        if (lane < row_words) word[i] = from[at[warp * rows_a_warp + i] * row_words + lane];
    }
#pragma unroll
    for (int i = 0; i < rows_a_warp; ++i) {
        if (lane < row_words) to[(warp * rows_a_warp + i) * row_words + lane] = word[i];
    }
}

__global__ void read_all(uint4* to, const uint4* from, size_t n) {
    uint4 sum = {0, 0, 0, 0};
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const uint4 x = from[i];
        sum.x ^= x.x, sum.y ^= x.y, sum.z ^= x.z, sum.w ^= x.w;
    }
    if (sum.x == 1 && sum.y == 2 && sum.z == 3) *to = sum;
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void* pinned(size_t n_bytes) {
    void* p = nullptr;
    check(cudaHostAlloc(&p, n_bytes, cudaHostAllocMapped | cudaHostAllocPortable), "allocating");
    std::memset(p, 0, n_bytes);
    return p;
}

void* huge_pages(size_t n_bytes) {
    void* p = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    madvise(p, n_bytes, MADV_HUGEPAGE);
    const unsigned n_threads = std::clamp(std::thread::hardware_concurrency(), 1u, 16u);
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < n_threads; ++i) {
        threads.emplace_back([=] {
            uint8_t* bytes = static_cast<uint8_t*>(p);
            for (size_t at = n_bytes / n_threads * i; at < n_bytes / n_threads * (i + 1); at += 4096) bytes[at] = 0;
        });
    }
    for (std::thread& thread : threads) thread.join();
    check(cudaHostRegister(p, n_bytes, cudaHostRegisterMapped | cudaHostRegisterPortable), "registering");
    return p;
}

template <class F>
F* driver(const char* name) {
    void* p = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion(name, &p, 12020, cudaEnableDefault, &found), name);
    return reinterpret_cast<F*>(p);
}

void* created(size_t n_bytes) {
    CUmemAllocationProp prop = {};
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location = {CU_MEM_LOCATION_TYPE_HOST_NUMA, 0};
    size_t step = 0;
    CUdeviceptr at = 0;
    CUmemGenericAllocationHandle memory;
    CUmemAccessDesc access[2] = {};
    access[0].location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
    access[1].location = prop.location;
    access[0].flags = access[1].flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    CUresult status = driver<decltype(cuMemGetAllocationGranularity)>("cuMemGetAllocationGranularity")(
        &step, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (status == CUDA_SUCCESS) {
        std::printf("created: pages of %zu bytes\n", step);
        n_bytes = (n_bytes + step - 1) / step * step;
        status = driver<decltype(cuMemCreate)>("cuMemCreate")(&memory, n_bytes, &prop, 0);
    }
    if (status == CUDA_SUCCESS) {
        status = driver<decltype(cuMemAddressReserve)>("cuMemAddressReserve")(&at, n_bytes, 0, 0, 0);
    }
    if (status == CUDA_SUCCESS) status = driver<decltype(cuMemMap)>("cuMemMap")(at, n_bytes, 0, memory, 0);
    if (status == CUDA_SUCCESS) status = driver<decltype(cuMemSetAccess)>("cuMemSetAccess")(at, n_bytes, access, 2);
    if (status != CUDA_SUCCESS) {
        std::printf("created: error %d\n", status);
        return nullptr;
    }
    std::memset(reinterpret_cast<void*>(at), 0, n_bytes);
    return reinterpret_cast<void*>(at);
}

void measure(const char* name, void* (*allocate)(size_t), size_t n_bytes) {
    const double start = now();
    void* host = allocate(n_bytes);
    if (!host) return static_cast<void>(std::printf("%s: refused\n", name));
    std::printf("%s: %.1f GiB in %.2f s\n", name, static_cast<double>(n_bytes) / 0x1p30, now() - start);
    std::mt19937_64 rng(1);
    const fasa::cuda::Stream stream;
    const size_t layer_weights = 147 << 20;
    const fasa::cuda::DeviceBuffer weights(32 * layer_weights, "weights");
    for (const int row_words : {28, 32}) {
        const int64_t layer_rows = int64_t{n_pos} * n_head_kv, layer_bytes = layer_rows * row_words * 16;
        const int n_layer = static_cast<int>(std::min<int64_t>(32, static_cast<int64_t>(n_bytes) / layer_bytes));
        if (n_layer == 0) continue;
        std::vector<int64_t> at(static_cast<size_t>(n_layer) * n_rows);
        for (size_t i = 0; i < at.size(); ++i) {
            at[i] = static_cast<int64_t>(i / n_rows) * layer_rows + static_cast<int64_t>(rng() % layer_rows);
        }
        fasa::cuda::DeviceBuffer to(size_t{n_rows} * row_words * 16, "rows"), places(at.size() * 8, "places");
        check(cudaMemcpy(places.data(), at.data(), at.size() * 8, cudaMemcpyHostToDevice), "copying");
        const auto step_of = [&](bool gathers) {
            return fasa::cuda::Graph(stream, [&, gathers] {
                for (int layer = 0; layer < n_layer; ++layer) {
                    if (gathers) {
                        fasa::cuda::launch({.name = "gather",
                                            .grid = dim3(n_rows / rows_a_warp / 4),
                                            .block = dim3(128),
                                            .stream = stream.get()},
                                           gather, static_cast<uint4*>(to.data()), static_cast<const uint4*>(host),
                                           static_cast<const int64_t*>(places.data()) + layer * n_rows, row_words);
                    }
                    fasa::cuda::launch(
                        {.name = "read_all", .grid = dim3(264), .block = dim3(512), .stream = stream.get()}, read_all,
                        static_cast<uint4*>(to.data()),
                        static_cast<const uint4*>(weights.data()) + layer * (layer_weights / 16), layer_weights / 16);
                }
            });
        };
        const fasa::cuda::Graph steps[] = {step_of(false), step_of(true)};
        std::vector<float> ms[2];
        for (int i = 0; i < 24; ++i) {
            fasa::cuda::Event begin(true), end(true);
            begin.record(stream.get());
            steps[i % 2].launch(stream.get());
            end.record(stream.get());
            stream.wait();
            ms[i % 2].push_back(end.milliseconds_since(begin));
        }
        for (auto& m : ms) std::sort(m.begin(), m.end());
        const double us = (ms[1][6] - ms[0][6]) * 1e3 / n_layer;
        std::printf("  %d rows of %d bytes, %d layers: %.1f us a layer, %.1f GB/s\n", n_rows, row_words * 16, n_layer,
                    us, n_rows * row_words * 16 / us * 1e-3);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const size_t n_bytes = static_cast<size_t>((argc > 1 ? std::atof(argv[1]) : 15) * 0x1p30);
    measure("pinned", pinned, n_bytes);
    measure("huge pages", huge_pages, n_bytes);
    measure("created", created, n_bytes);
}
