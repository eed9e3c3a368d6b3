// Speed of matrix products: a part of bench/gpu_ops.cu.
#include <map>

#include "backend/cuda/linear_decode.h"
#include "backend/cuda/linear_prefill.h"
#include "gpu_lab.h"

namespace fasa::bench {
namespace {

struct DecodeMemory {
    explicit DecodeMemory(const Sizes& s)
        : n_in_max(std::max(s.n_embd, s.n_ff)),
          n_out_max(std::max(n_in_max, s.n_vocab)),
          x(test::random_floats(cuda::n_decode_max * n_in_max, 3)),
          norm(std::vector<float>(static_cast<size_t>(n_in_max), 1.0f)),
          y(static_cast<size_t>(cuda::n_decode_max * n_out_max)),
          memory([&] {
              Arena measure;
              cuda::DecodeScratch::take(measure, n_in_max);
              return measure.used();
          }()),
          scratch([&] {
              Arena arena(memory.data());
              return cuda::DecodeScratch::take(arena, n_in_max);
          }()) {}
    int64_t n_in_max, n_out_max;
    Array<float> x, norm, y;
    Array<uint8_t> memory;
    cuda::DecodeScratch scratch;
};

std::string described(DType type, const Matrix& m, int n) {
    return std::string(dtype_traits(type).name) + " " + std::to_string(m.n_in) + " -> " + std::to_string(m.n_out) +
           ", " + std::to_string(n) + (n == 1 ? " row" : " rows");
}

Cost linear_cost(size_t weight_bytes, const Matrix& m, int n, bool bound_by_memory) {
    const double values = static_cast<double>(m.n_in) * static_cast<double>(m.n_out);
    if (!bound_by_memory) return {0, 2 * values * n};
    return {static_cast<double>(weight_bytes) + 4.0 * n * static_cast<double>(m.n_in + m.n_out), 0};
}

}  // namespace

void measure_linear(Lab& lab) {
    const DecodeMemory memory(lab.s);
    for (const DType type : lab.types) {
        std::map<int64_t, std::vector<Matrix>> by_n_in;
        for (const Matrix& m : lab.s.matrices) by_n_in[m.n_in].push_back(m);
        for (const auto& [n_in, matrices] : by_n_in) {
            const ColdMatrices cold(lab, type, n_in);
            for (const Matrix& m : matrices) {
                for (const int n : lab.s.rows) {
                    lab.bench.measure(
                        "linear_decode", described(type, m, n), linear_cost(cold.n_bytes(m.n_out), m, n, true),
                        lab.s.n_cold(cold.n_bytes(m.n_out)), memory.y.data(), n * m.n_out, [&](int i) {
                            const LinearOut out{cold.view(i, m.n_out), nullptr, memory.y.data(), false};
                            cuda::linear_decode(&out, 1, {memory.x.data()}, n, memory.scratch, lab.stream());
                        });
                }
            }
        }
    }
}

void measure_glu(Lab& lab) {
    const DecodeMemory memory(lab.s);
    const Matrix m{lab.s.n_embd, lab.s.n_ff};
    for (const DType type : lab.types) {
        const ColdMatrices cold(lab, type, m.n_in);
        const size_t n_bytes = 2 * cold.n_bytes(m.n_out);
        for (const int n : lab.s.rows) {
            lab.bench.measure("glu_decode", described(type, m, n) + ", norm", linear_cost(n_bytes, m, n, true),
                              lab.s.n_cold(n_bytes), memory.y.data(), n * m.n_out, [&](int i) {
                                  cuda::linear_glu_decode(
                                      memory.y.data(), cold.view(2 * i, m.n_out), cold.view(2 * i + 1, m.n_out),
                                      {memory.x.data(), memory.norm.data(), 1e-5f}, n, memory.scratch, lab.stream());
                              });
        }
    }
}

// The products of a token, as the forward pass asks for them: norms inside, sums onto the residual.
void measure_layer(Lab& lab) {
    const DecodeMemory memory(lab.s);
    const Sizes& s = lab.s;
    struct Call {
        const char* name;
        DType type;
        int64_t n_in;
        std::vector<int64_t> n_out;
        bool norm, add;
    };
    const Call calls[] = {
        {"queries, keys, values",
         FASA_DTYPE_Q4_K,
         s.n_embd,
         {int64_t{s.n_head} * s.head_dim, s.n_kv, s.n_kv},
         true,
         false},
        {"attention output", FASA_DTYPE_Q4_K, int64_t{s.n_head} * s.head_dim, {s.n_embd}, false, true},
        {"down", FASA_DTYPE_Q4_K, s.n_ff, {s.n_embd}, false, true},
        {"down", FASA_DTYPE_Q6_K, s.n_ff, {s.n_embd}, false, true},
        {"output", FASA_DTYPE_Q6_K, s.n_embd, {s.n_vocab}, true, false},
    };
    for (const Call& c : calls) {
        const ColdMatrices cold(lab, c.type, c.n_in);
        int64_t n_out = 0;
        for (const int64_t n : c.n_out) n_out += n;
        const Matrix m{c.n_in, n_out};
        lab.bench.measure("layer", std::string(c.name) + ": " + described(c.type, m, 1),
                          linear_cost(cold.n_bytes(n_out), m, 1, true), s.n_cold(cold.n_bytes(n_out)), memory.y.data(),
                          n_out, [&](int i) {
                              std::vector<LinearOut> out;
                              WeightView all = cold.view(i, n_out);
                              float* y = memory.y.data();
                              for (const int64_t n : c.n_out) {
                                  out.push_back({{c.type, all.data, c.n_in, n, all.row_bytes}, nullptr, y, c.add});
                                  all.data = static_cast<const uint8_t*>(all.data) + out.back().w.n_bytes();
                                  y += n;
                              }
                              cuda::linear_decode(out.data(), static_cast<int>(out.size()),
                                                  {memory.x.data(), c.norm ? memory.norm.data() : nullptr, 1e-5f}, 1,
                                                  memory.scratch, lab.stream());
                          });
    }
}

void measure_linear_prefill(Lab& lab) {
    const Sizes& s = lab.s;
    const int n_max = *std::max_element(s.prefill_rows.begin(), s.prefill_rows.end());
    const int64_t widest = std::max(s.n_embd, s.n_ff);
    const Array<float> x(test::random_floats(n_max * widest, 5)), y(static_cast<size_t>(n_max * widest));
    const cuda::LinearPrefill::Limits limits{n_max, widest, cuda::LinearPrefill::n_unpacked_max};
    const Array<uint8_t> scratch(cuda::LinearPrefill::scratch_bytes(limits));
    for (const DType type : lab.types) {
        for (const Matrix& m : s.matrices) {
            const ColdMatrices cold(lab, type, m.n_in);
            cuda::LinearPrefill op(limits, scratch.data());  // it knows matrices by their address
            const int n_matrices = std::min(2, s.n_cold(cold.n_bytes(m.n_out)));
            for (int i = 0; i < n_matrices; ++i) op.add(cold.view(i, m.n_out), lab.stream());
            for (const int n : s.prefill_rows) {
                lab.bench.measure("linear_prefill", described(type, m, n), linear_cost(0, m, n, false), n_matrices,
                                  y.data(), n * m.n_out, [&](int i) {
                                      const LinearOut out{cold.view(i, m.n_out), nullptr, y.data(), false};
                                      op.run(&out, 1, x.data(), n, lab.stream());
                                  });
            }
        }
    }
}

}  // namespace fasa::bench
