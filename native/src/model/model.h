// The weights of a model, by their GGUF names, and everything derived from them once.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "gguf/file.h"
#include "model/hparams.h"
#include "model/rope.h"
#include "select/table.h"

namespace fasa {

// Floats of the model, on its device; none: nullptr.
struct Vector {
    const float* data = nullptr;
    int64_t n = 0;
};

// A matrix with its optional bias.
struct Projection {
    WeightView w;
    Vector bias;  // [n_out] or none

    LinearOut into(float* y, bool add = false) const { return {w, bias.data, y, add}; }
};

struct Layer {
    Vector attn_norm, ffn_norm;       // [n_embd]
    Vector attn_q_norm, attn_k_norm;  // [head_dim] or none
    Projection attn_q, attn_k, attn_v, attn_output;
    Projection ffn_gate, ffn_up, ffn_down;
};

struct Model {
    std::shared_ptr<const gguf::File> file;  // on a CPU the matrices are views of its mapping
    std::unique_ptr<Device> device;
    Buffer memory;            // of the device: what does not stay in the file
    size_t memory_bytes = 0;  // of memory
    bool plan_only = false;   // nothing lies there: no context can be made
    Hparams h;
    Rope rope;
    const double* rope_frequency = nullptr;  // rope.frequency, on the device
    bool rope_freqs = false;                 // the file carries frequency factors
    WeightView token_embd;                   // [n_vocab][n_embd]
    WeightView output;                       // [n_vocab][n_embd]; token_embd when tied
    Vector output_norm;
    std::vector<Layer> layers;
    std::shared_ptr<const Table> table;  // the file's FASA table, if it carries one
    uint64_t n_params = 0, n_bytes = 0;
    uint64_t fingerprint = 0;  // of shapes, settings and sampled weight bytes: refuses another model's state

    int32_t n_embd_q() const { return h.n_head * h.head_dim; }
    int32_t n_embd_kv() const { return h.n_head_kv * h.head_dim; }
    // Weight bytes that one token's pass reads.
    uint64_t pass_bytes() const;
    RopeView rope_view() const { return {rope.layout, rope.n_rot, rope_frequency, rope.magnitude}; }
};

// f(matrix) over all of a Model or const Model. Tied embeddings come once.
template <class M, class F>
void for_each_matrix(M& model, F&& f) {
    f(model.token_embd);
    for (auto& l : model.layers) {
        for (auto* p : {&l.attn_q, &l.attn_k, &l.attn_v, &l.attn_output, &l.ffn_gate, &l.ffn_up, &l.ffn_down}) f(p->w);
    }
    if (model.output.data && model.output.data != model.token_embd.data) f(model.output);
}

struct LoadOptions {
    bool ignore_table;  // the file's FASA table is not looked at
    bool plan_only;     // nothing is put on the device
};

// progress(fraction) returns false to cancel. Throws FORMAT for a missing tensor or a wrong shape, MEMORY before
// anything is put on a device that cannot hold it.
std::shared_ptr<const Model> load_model(std::shared_ptr<const gguf::File> file, std::unique_ptr<Device> device,
                                        const LoadOptions& options, const std::function<bool(float)>& progress);

}  // namespace fasa
