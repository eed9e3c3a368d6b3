// What bench/gpu_ops.cu measures on: sizes, and data in device memory that no cache holds.
#pragma once

#include <string>
#include <vector>

#include "../tests/native/random_weights.h"
#include "backend/cuda/weights.h"
#include "gpu_bench.h"

namespace fasa::bench {

struct Matrix {
    int64_t n_in, n_out;
};

// Llama-3.1-8B's shapes unless it is only about the program.
struct Sizes {
    std::vector<Matrix> matrices = {{4096, 14336}, {14336, 4096}, {4096, 4096}, {4096, 1024}};
    int64_t n_embd = 4096, n_ff = 14336, n_kv = 1024, n_vocab = 128256, n_gemm = 8192;
    int n_head = 32, n_head_kv = 8, head_dim = 128, n_dom = 32;
    std::vector<int> rows = {1, 2, 4, 8}, prefill_rows = {512, 2048};
    std::vector<int32_t> contexts = {4096, 8192, 16384, 32768, 65536, 131072};
    size_t cold_bytes = size_t{512} << 20;   // read in turns, several times the L2 cache
    size_t pool_bytes = size_t{1280} << 20;  // that, and the largest matrix or cache besides
    int n_calls_max = 256;

    static Sizes smoke() {
        Sizes s;
        s.matrices = {{256, 512}};
        s.n_embd = 256, s.n_ff = 512, s.n_kv = 128, s.n_vocab = 300, s.n_gemm = 64;
        s.n_head = 4, s.n_head_kv = 2, s.head_dim = 64, s.n_dom = 16;
        s.rows = {1, 4}, s.prefill_rows = {16};
        s.contexts = {300, 9000};
        s.cold_bytes = 1 << 20, s.pool_bytes = 10 << 20, s.n_calls_max = 2;
        return s;
    }
    // Of one layer and sequence.
    size_t kv_bytes(int32_t n_ctx) const { return size_t{4} * n_head_kv * head_dim * n_ctx; }
    // How many of what has so many bytes are used in turns.
    int n_cold(size_t n_bytes) const {
        const size_t n = (cold_bytes + n_bytes - 1) / n_bytes;
        return static_cast<int>(std::min(n, static_cast<size_t>(n_calls_max)));
    }
};

struct Gpu {
    Gpu() {
        cudaDeviceProp properties;
        cuda::check(cudaGetDeviceProperties(&properties, 0), "looking at the GPU");
        name = properties.name;
        n_sm = properties.multiProcessorCount;
        shared_bytes = properties.sharedMemPerBlockOptin;
        l2_bytes = static_cast<size_t>(properties.l2CacheSize);
    }
    std::string name;
    int n_sm;
    size_t shared_bytes, l2_bytes;
};

struct Lab {
    Sizes s;
    Gpu gpu;
    std::vector<DType> types;
    Bench bench;
    Pool pool;

    Lab(const Sizes& sizes, bool is_smoke, std::vector<DType> chosen)
        : s(sizes), types(std::move(chosen)), bench(is_smoke), pool(sizes.pool_bytes, bench.stream()) {}

    cudaStream_t stream() const { return bench.stream(); }
};

inline std::vector<uint16_t> random_halves(size_t n) {
    std::mt19937 rng(7);
    std::vector<uint16_t> halves(n);
    for (uint16_t& h : halves) {
        const uint32_t bits = static_cast<uint32_t>(rng());
        h = static_cast<uint16_t>((bits & 0x83ff) | (14 - (bits >> 10 & 3)) << 10);  // of size 1/16 to 1
    }
    return halves;
}

inline void fill_with_halves(const Lab& lab, size_t n_total) {
    const auto host = random_halves(std::min(n_total / 2, size_t{1} << 22));
    cuda::check(cudaMemcpyAsync(lab.pool.data(), host.data(), host.size() * 2, cudaMemcpyHostToDevice, lab.stream()),
                "random halves");
    lab.pool.repeat(host.size() * 2, n_total);
}

// 32768 as 32k.
inline std::string number(int64_t n) { return n % 1024 == 0 ? std::to_string(n / 1024) + "k" : std::to_string(n); }

// Matrices of one type and row length, one behind the other in the pool, as many as are needed for cold reads.
class ColdMatrices {
   public:
    ColdMatrices(const Lab& lab, DType type, int64_t n_in) : lab_(lab), type_(type), n_in_(n_in) {
        constexpr int64_t n_rows = 64;
        const test::RandomWeights weights(type, n_rows, n_in, 1);
        const size_t n_bytes = n_rows * cuda::device_row_bytes(type, n_in);
        const cuda::PinnedBuffer host(1 << 20, "staging");
        const cuda::DeviceBuffer device(1 << 20, "staging");
        row_bytes_ = cuda::upload(lab.pool.data(), weights.view(), {host.data(), device.data(), host.n_bytes()},
                                  lab.stream(), {})
                         .row_bytes;
        lab.pool.repeat(n_bytes, lab.s.pool_bytes);
    }
    WeightView view(int i, int64_t n_out) const {
        return {type_, lab_.pool.data() + static_cast<size_t>(i) * n_bytes(n_out), n_in_, n_out, row_bytes_};
    }
    size_t n_bytes(int64_t n_out) const { return static_cast<size_t>(n_out) * row_bytes_; }

   private:
    const Lab& lab_;
    DType type_;
    int64_t n_in_;
    size_t row_bytes_ = 0;
};

// A cache of as many layers as the pool holds (their dominant planes alone are more than the L2 cache), queries of some
// rows, and the step: the last row is the last position. Layers of coded keys differ in their codes and scales alone,
// as these are small, and share their rows.
class ColdCache {
   public:
    ColdCache(Lab& lab, int32_t n_ctx, int n_rows, int n_dom, DomType type = DomType::f16)
        : s_(lab.s),
          n_ctx_(n_ctx),
          n_dom_(n_dom),
          type_(type),
          layer_bytes_(type == DomType::f16 ? lab.s.kv_bytes(n_ctx) : dom_bytes()),
          n_layers_(static_cast<int>(
              std::min((lab.s.pool_bytes - shared_bytes()) / layer_bytes_, static_cast<size_t>(lab.s.n_calls_max)))),
          base_(lab.pool.data()),
          q_(test::random_floats(int64_t{n_rows} * s_.n_head * s_.head_dim, 9)),
          y_(static_cast<size_t>(n_rows) * s_.n_head * s_.head_dim),
          step_(std::vector<cuda::Step>{{0, n_ctx - n_rows}}) {
        fill_with_halves(lab, static_cast<size_t>(n_layers_) * layer_bytes_ + shared_bytes());
    }
    KvView layer(int i) const {
        KvView view;
        uint8_t* const at = base_ + static_cast<size_t>(i) * layer_bytes_;
        uint8_t* const shared = base_ + static_cast<size_t>(n_layers_) * layer_bytes_;
        view.rest = reinterpret_cast<uint16_t*>(type_ == DomType::f16 ? at + dom_bytes() : shared);
        view.n_ctx = n_ctx_, view.n_head_kv = s_.n_head_kv, view.head_dim = s_.head_dim;
        if (type_ != DomType::f16) {
            const size_t n_code = n_rows_all() * static_cast<size_t>(code_bytes(type_, n_dom_));
            view.codes = {type_, n_dom_, at, reinterpret_cast<uint16_t*>(at + n_code)};
        } else {
            view.dom = n_dom_ > 0 ? reinterpret_cast<uint16_t*>(at) : nullptr;
            view.n_dom = n_dom_;
        }
        return view;
    }
    // Of the dominant plane of a layer, scales included.
    size_t dom_bytes() const {
        const size_t n = static_cast<size_t>(n_dom_);
        return n_rows_all() * (type_ == DomType::f16 ? 2 * n : static_cast<size_t>(code_bytes(type_, n_dom_)) + 2);
    }
    int n_layers() const { return n_layers_; }
    int64_t row_values() const { return int64_t{s_.n_head} * s_.head_dim; }
    float scale() const { return 1 / std::sqrt(static_cast<float>(s_.head_dim)); }
    const float* q() const { return q_.data(); }
    float* y() const { return y_.data(); }
    const cuda::Step* step() const { return step_.data(); }

   private:
    // Of what all layers of coded keys have in common.
    size_t shared_bytes() const { return type_ == DomType::f16 ? 0 : s_.kv_bytes(n_ctx_); }
    size_t n_rows_all() const { return size_t{1} * s_.n_head_kv * n_ctx_; }

    const Sizes& s_;
    int32_t n_ctx_;
    int n_dom_;
    DomType type_;
    size_t layer_bytes_;
    int n_layers_;
    uint8_t* base_;
    Array<float> q_, y_;
    Array<cuda::Step> step_;
};

void measure_linear(Lab& lab);
void measure_glu(Lab& lab);
void measure_layer(Lab& lab);
void measure_linear_prefill(Lab& lab);
void measure_attention(Lab& lab);
void measure_sparse(Lab& lab);
void measure_attend_prefill(Lab& lab);

}  // namespace fasa::bench
