// How fast a GPU reads rows of a KV cache where they lie in host memory, by how that memory was got:
//
//   nvcc -std=c++20 -O3 -arch=native -Inative/include -Inative/src -o build/host_memory bench/host_memory.cu
//       native/src/backend/cuda/{account.cpp,runtime.cu} native/src/base/*.cpp && build/host_memory [GiB]
//
// Needs CUDA 12.5 or newer. "pinned" is cudaHostAlloc; "huge pages" is as the library has large memory (PinnedBuffer);
// "created" is memory of the driver's own pages (cuMemCreate). Rows are gathered as a layer of decode does it: 2,048
// random rows of one layer's region (131,072 positions of 8 KV heads). Each of 48 steps asks for other rows, 1.4 GB of
// them before one comes again, and between layers 147 MB of weights are read, as other kernels of a step do: no cache
// of the host or the device has a row already. "one region" has all layers gather from the region of the first, so that
// far fewer pages are asked for. "16 rows a warp" asks from few multiprocessors for much at once, "1 row a warp" from
// all of them, as attend_best does. "touched" has a word of every row read while the weights before it are, so that the
// GPU has found the rows' pages when it gathers them; what the touching itself takes is left out.
#include <cuda.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "backend/cuda/launch.cuh"

using fasa::cuda::check;

namespace {

constexpr int n_pos = 131072, n_head_kv = 8, n_rows = 2048, n_layer_max = 32, n_step = 48, n_warp = 4;
constexpr int64_t region_rows = int64_t{n_pos} * n_head_kv;

// to[i] = row at[i], whole 16-byte words; all loads of a warp's rows are under way at once.
template <int rows_a_warp>
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

// Reads n words, and before them the first word of the n_touched rows at touched[i].
__global__ void read_all(uint4* to, const uint4* from, size_t n, const uint4* rows, const int64_t* touched,
                         int n_touched, int row_words) {
    uint4 sum = {0, 0, 0, 0};
    const int own = static_cast<int>(threadIdx.x * gridDim.x + blockIdx.x);
    if (own < n_touched) sum = rows[touched[own] * row_words];
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
    static fasa::cuda::PinnedBuffer memory;
    memory = fasa::cuda::PinnedBuffer(n_bytes, "host memory", 16);
    return memory.data();
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

// The rows of a region in random order, over and over.
class Shuffled {
   public:
    explicit Shuffled(uint64_t seed) : row_(region_rows) {
        std::iota(row_.begin(), row_.end(), 0);
        std::shuffle(row_.begin(), row_.end(), std::mt19937_64(seed));
    }
    int64_t next() { return row_[next_++ % row_.size()]; }

   private:
    std::vector<int32_t> row_;
    size_t next_ = 0;
};

// [n_step][n_layer][n_rows]: layer i asks for rows of region i, or of the last one if there are fewer.
std::vector<int64_t> rows_of_steps(int n_layer, int n_region) {
    std::vector<Shuffled> regions;
    for (int i = 0; i < n_region; ++i) regions.emplace_back(i);
    std::vector<int64_t> at;
    for (int i = 0; i < n_step * n_layer * n_rows; ++i) {
        const int region = std::min(i / n_rows % n_layer, n_region - 1);
        at.push_back(region * region_rows + regions[region].next());
    }
    return at;
}

// Where the steps of a measurement work.
struct Lab {
    static constexpr size_t layer_bytes = 147 << 20;
    fasa::cuda::Stream stream;
    fasa::cuda::DeviceBuffer weights{n_layer_max * layer_bytes, "weights"}, rows{size_t{n_rows} * 512, "rows"},
        places{size_t{n_layer_max} * n_rows * sizeof(int64_t), "places"};

    // A step that reads weights and gathers rows (unless rows_a_warp is 0), layer by layer.
    fasa::cuda::Graph step(const uint4* host, int n_layer, int row_words, int rows_a_warp, bool touches) const {
        auto* to = static_cast<uint4*>(rows.data());
        return fasa::cuda::Graph(stream, [&] {
            for (int layer = 0; layer < n_layer; ++layer) {
                const auto* at = static_cast<const int64_t*>(places.data()) + layer * n_rows;
                fasa::cuda::launch({.name = "read_all", .grid = dim3(264), .block = dim3(512), .stream = stream.get()},
                                   read_all, to, static_cast<const uint4*>(weights.data()) + layer * (layer_bytes / 16),
                                   layer_bytes / 16, host, at, touches ? n_rows : 0, row_words);
                if (rows_a_warp == 0) continue;
                fasa::cuda::launch({.name = "gather",
                                    .grid = dim3(n_rows / rows_a_warp / n_warp),
                                    .block = dim3(32 * n_warp),
                                    .stream = stream.get()},
                                   rows_a_warp == 1 ? gather<1> : gather<16>, to, host, at, row_words);
            }
        });
    }

    // at: n_step times the places that a step asks for. The steps' times in ms, ascending.
    std::vector<float> run(const fasa::cuda::Graph& step, const fasa::cuda::DeviceBuffer& at) const {
        const size_t n_bytes = at.n_bytes() / n_step;
        std::vector<float> ms;
        for (int i = 0; i < n_step; ++i) {
            check(cudaMemcpyAsync(places.data(), static_cast<const uint8_t*>(at.data()) + i * n_bytes, n_bytes,
                                  cudaMemcpyDeviceToDevice, stream.get()),
                  "copying");
            fasa::cuda::Event begin(true), end(true);
            begin.record(stream.get());
            step.launch(stream.get());
            end.record(stream.get());
            stream.wait();
            ms.push_back(end.milliseconds_since(begin));
        }
        std::sort(ms.begin(), ms.end());
        return ms;
    }
};

struct Variant {
    const char* name;
    bool one_region;
    int rows_a_warp;
    bool touches;
};
constexpr Variant variants[] = {{"16 rows a warp", false, 16, false},
                                {"1 row a warp", false, 1, false},
                                {"1 row a warp, touched", false, 1, true},
                                {"1 row a warp, one region", true, 1, false}};

void measure(const Lab& lab, const char* name, void* (*allocate)(size_t), size_t n_bytes) {
    const double start = now();
    const auto* host = static_cast<const uint4*>(allocate(n_bytes));
    if (!host) return static_cast<void>(std::printf("%s: refused\n", name));
    std::printf("%s: %.1f GiB in %.2f s\n", name, static_cast<double>(n_bytes) / 0x1p30, now() - start);
    for (const int row_words : {28, 32}) {
        const int64_t region_bytes = region_rows * row_words * 16;
        const int n_region =
            static_cast<int>(std::min<int64_t>(n_layer_max, static_cast<int64_t>(n_bytes) / region_bytes));
        if (n_region == 0) continue;
        for (const Variant& v : variants) {
            const std::vector<int64_t> at = rows_of_steps(n_region, v.one_region ? 1 : n_region);
            const fasa::cuda::DeviceBuffer lists(at.size() * sizeof(int64_t), "places of all steps");
            check(cudaMemcpy(lists.data(), at.data(), lists.n_bytes(), cudaMemcpyHostToDevice), "copying");
            const float without = lab.run(lab.step(host, n_region, row_words, 0, v.touches), lists)[n_step / 2];
            const std::vector<float> with =
                lab.run(lab.step(host, n_region, row_words, v.rows_a_warp, v.touches), lists);
            const auto us_a_layer = [&](float ms) { return (ms - without) * 1e3 / n_region; };
            const double us = us_a_layer(with[n_step / 2]);
            std::printf("  %d rows of %d bytes, %2d layers, %-24s: %5.1f us a layer (%.1f to %.1f), %4.1f GB/s\n",
                        n_rows, row_words * 16, n_region, v.name, us, us_a_layer(with[n_step / 10]),
                        us_a_layer(with[n_step * 9 / 10]), n_rows * row_words * 16 / us * 1e-3);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const size_t n_bytes = static_cast<size_t>((argc > 1 ? std::atof(argv[1]) : 15) * 0x1p30);
    const Lab lab;
    measure(lab, "pinned", pinned, n_bytes);
    measure(lab, "huge pages", huge_pages, n_bytes);
    measure(lab, "created", created, n_bytes);
}
