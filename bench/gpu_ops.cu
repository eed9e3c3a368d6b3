// Speed of the CUDA backend's ops on this GPU, each against the limit measured in the same run: GB/s against a copy
// kernel (bytes read and written) where memory bounds it, TFLOP/s against cuBLASLt's half-precision product where
// arithmetic does. Whether results are right is the tests' matter; here they only have to be finite.
//
//     fasa_gpu_ops [--json FILE] [--types Q4_K,F16] [--smoke] [SECTION...]
//
// Ops run as in a model: replayed as a graph, on data that is not in the cache (512 MiB in turns) where a model would
// not find it there. --smoke takes tiny shapes, to try the program itself.
#include <set>

#include "backend/cuda/gemm.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/position.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/quantize.h"
#include "gpu_lab.h"

using namespace fasa;
using namespace fasa::bench;

namespace {

__global__ void copy_kernel(uint4* to, const uint4* from, int64_t n) {
    const int64_t n_threads = int64_t{gridDim.x} * blockDim.x;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += n_threads) to[i] = from[i];
}

// Writes a sum that no data has, so that the loads must be made.
__global__ void read_kernel(uint32_t* never, const uint4* from, int64_t n) {
    const int64_t n_threads = int64_t{gridDim.x} * blockDim.x;
    uint32_t sum = 0;
#pragma unroll 4
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += n_threads) {
        const uint4 v = cuda::ptx::load_once(from + i);
        sum |= v.x & v.y & v.z & v.w;
    }
    if (sum == 0xffffffffu) *never = sum;
}

__global__ void empty_kernel() {}

__global__ void overlapping_kernel() {
    cuda::ptx::wait_for_previous();
    cuda::ptx::start_next();
}

void measure_limits(Lab& lab) {
    const size_t half = lab.s.pool_bytes / 2;
    const int64_t n = static_cast<int64_t>(half / sizeof(uint4));
    fill_with_halves(lab, lab.s.pool_bytes);
    uint4* const from = reinterpret_cast<uint4*>(lab.pool.data());
    uint4* const to = from + n;
    const auto grid = [&](int per_sm) { return dim3(static_cast<unsigned>(lab.gpu.n_sm * per_sm)); };
    const Cost both{2.0 * static_cast<double>(half), 0}, one{static_cast<double>(half), 0};

    double best = 1e9;
    for (const int per_sm : {4, 8, 16, 32}) {
        best = std::min(best, lab.bench.seconds(1, [&](int) {
            cuda::launch({"copy", grid(per_sm), dim3(512), 0, lab.stream()}, copy_kernel, to, from, n);
        }));
    }
    lab.bench.set_copy(both.bytes / best);
    lab.bench.add({"limits", "copy by a kernel, read + written", best, both, true});
    const double read = lab.bench.seconds(1, [&](int) {
        cuda::launch({"read", grid(8), dim3(512), 0, lab.stream()}, read_kernel,
                     reinterpret_cast<uint32_t*>(lab.pool.data()), from, n);
    });
    lab.bench.add({"limits", "read by a kernel", read, one, true});

    const size_t n_pinned = std::min(half, size_t{256} << 20);
    const cuda::PinnedBuffer host(n_pinned, "host memory");
    for (const bool up : {true, false}) {
        const double t = lab.bench.seconds(1, [&](int) {
            void* const device = lab.pool.data();
            cuda::check(cudaMemcpyAsync(up ? device : host.data(), up ? host.data() : device, n_pinned,
                                        up ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, lab.stream()),
                        "copying");
        });
        lab.bench.add({"limits",
                       up ? "pinned host to device" : "device to pinned host",
                       t,
                       {static_cast<double>(n_pinned), 0},
                       true});
    }
    for (const bool overlap : {false, true}) {
        const double t = lab.bench.seconds(lab.s.n_calls_max, [&](int) {
            cuda::launch({.name = "empty", .grid = 1, .block = 32, .stream = lab.stream(), .overlap = overlap},
                         overlap ? overlapping_kernel : empty_kernel);
        });
        lab.bench.add({"limits", overlap ? "an empty kernel, overlapping the next" : "an empty kernel", t, {}, true});
    }

    cuda::Gemm gemm;
    const int64_t side = lab.s.n_gemm;
    const int plan = gemm.plan({side, side, side, side});
    const Array<float> y(static_cast<size_t>(side * side));
    const Array<uint8_t> workspace(cuda::Gemm::workspace_bytes);
    fill_with_halves(lab, lab.s.pool_bytes);
    const uint16_t* const w = reinterpret_cast<uint16_t*>(lab.pool.data());
    const double flop = 2.0 * static_cast<double>(side) * static_cast<double>(side) * static_cast<double>(side);
    const double t = lab.bench.seconds(1, [&](int) {
        gemm.run(plan, y.data(), w, w + side * side, static_cast<int>(side), 1, 0, workspace.data(), lab.stream());
    });
    lab.bench.set_tensor(flop / t);
    lab.bench.add({"limits", "half-precision product, " + number(side) + " cubed", t, {0, flop}, true});
}

// Ops that work on rows one by one.
void measure_rows(Lab& lab) {
    const Sizes& s = lab.s;
    const int n_max = *std::max_element(s.prefill_rows.begin(), s.prefill_rows.end());
    std::vector<double> frequency;
    for (int i = 0; i < s.head_dim / 2; ++i) frequency.push_back(std::pow(5e5, -2.0 * i / s.head_dim));
    const Array<double> on_device(frequency);
    const RopeView rope{RopeLayout::half_split, s.head_dim, on_device.data(), 1};
    const int64_t q_row = int64_t{s.n_head} * s.head_dim, kv_row = int64_t{s.n_head_kv} * s.head_dim;
    const Array<float> k(test::random_floats(n_max * kv_row, 1)), v(test::random_floats(n_max * kv_row, 2));
    std::vector<int32_t> ids(static_cast<size_t>(n_max));
    std::mt19937 rng(4);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % static_cast<uint32_t>(s.n_vocab));
    const Array<int32_t> tokens(ids);
    const int64_t widest = std::max(s.n_embd, s.n_ff);
    const Array<float> x(test::random_floats(n_max * widest, 6)), y(static_cast<size_t>(n_max * widest)),
        weight(std::vector<float>(static_cast<size_t>(s.n_embd), 1.0f));

    for (const int n : {1, n_max}) {
        const std::string rows = std::to_string(n) + (n == 1 ? " row" : " rows");
        const ColdCache cache(lab, std::max(s.contexts.front(), n_max), n, s.n_dom);
        Array<float> q(test::random_floats(n * q_row, 8));
        const double bytes = n * (8.0 * static_cast<double>(q_row) + 12.0 * static_cast<double>(kv_row));
        lab.bench.measure("rope_store", rows, {bytes, 0}, 1, q.data(), n * q_row, [&](int i) {
            cuda::rope_store(q.data(), k.data(), v.data(), s.n_head, rope, {}, cache.layer(i), cache.step(), n,
                             lab.stream());
        });
        const double embd = static_cast<double>(n * s.n_embd), ff = static_cast<double>(n * s.n_ff);
        lab.bench.measure("rms_norm", rows, {8 * embd, 0}, 1, y.data(), n * s.n_embd, [&](int) {
            cuda::rms_norm(y.data(), {}, x.data(), weight.data(), n, static_cast<int>(s.n_embd), 1e-5f, lab.stream());
        });
        lab.bench.measure("glu", rows, {8 * ff, 0}, 1, y.data(), n * s.n_ff,
                          [&](int) { cuda::glu(y.data(), {}, x.data(), x.data(), n * s.n_ff, lab.stream()); });
        const ColdMatrices table(lab, FASA_DTYPE_Q4_K, s.n_embd);
        const WeightView w = table.view(0, s.n_vocab);
        lab.bench.measure("embed", rows + " of Q4_K", {n * static_cast<double>(w.row_bytes) + 4 * embd, 0}, 1, y.data(),
                          n * s.n_embd, [&](int) { cuda::embed(y.data(), w, tokens.data(), n, lab.stream()); });
    }
}

struct Section {
    const char* name;
    void (*measure)(Lab& lab);
};
constexpr Section sections[] = {
    {"limits", measure_limits},
    {"layer", measure_layer},
    {"linear", measure_linear},
    {"glu", measure_glu},
    {"attention", measure_attention},
    {"sparse", measure_sparse},
    {"linear_prefill", measure_linear_prefill},
    {"attend_prefill", measure_attend_prefill},
    {"rows", measure_rows},
};

std::vector<DType> types_of(const std::string& names) {
    std::vector<DType> types;
    for (const DType type : test::ALL_DTYPES) {
        const std::string name = dtype_traits(type).name;
        if (names.empty() || ("," + names + ",").find("," + name + ",") != std::string::npos) types.push_back(type);
    }
    return types;
}

int usage() {
    std::fprintf(stderr, "usage: fasa_gpu_ops [--json FILE] [--types Q4_K,F16] [--smoke] [SECTION...]; sections:");
    for (const Section& section : sections) std::fprintf(stderr, " %s", section.name);
    std::fprintf(stderr, "\n");
    return 2;
}

int run(int argc, char** argv) {
    bool is_smoke = false;
    const char* json = nullptr;
    std::string types;
    std::set<std::string> wanted;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (arg == "--smoke") {
            is_smoke = true;
        } else if (arg == "--json" && i + 1 < argc) {
            json = argv[++i];
        } else if (arg == "--types" && i + 1 < argc) {
            types = argv[++i];
        } else if (std::any_of(std::begin(sections), std::end(sections),
                               [&](const Section& s) { return arg == s.name; })) {
            wanted.insert(arg);
        } else {
            return usage();
        }
    }
    Lab lab(is_smoke ? Sizes::smoke() : Sizes(), is_smoke, types_of(types));
    if (lab.types.empty()) return usage();
    std::printf("%s, %d multiprocessors, L2 %.0f MiB; shares are of the copy and of the product measured first\n",
                lab.gpu.name.c_str(), lab.gpu.n_sm, static_cast<double>(lab.gpu.l2_bytes) / 0x1p20);
    measure_limits(lab);
    const auto save = [&] {
        if (json) lab.bench.write_json(json, lab.gpu.name);
    };
    save();
    for (const Section& section : sections) {
        if (section.measure == measure_limits || (!wanted.empty() && !wanted.count(section.name))) continue;
        std::printf("\n");
        section.measure(lab);
        save();  // a run that is stopped leaves what it has
    }
    return lab.bench.finite() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "fasa_gpu_ops: %s\n", error.what());
        return 1;
    }
}
