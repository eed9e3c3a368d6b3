// The forward pass: one function, all architectures, all backends.
#pragma once

#include "kv/store.h"
#include "model/model.h"

namespace fasa {

// Activations of a batch, taken once. n is the batch size.
struct Activations {
    float *x, *normed;    // [n][n_embd]
    float *q, *attended;  // [n][n_head][head_dim]
    float *k, *v;         // [n][n_head_kv][head_dim]
    float *gate, *up;     // [n][n_ff]

    static Activations take(Arena& arena, const Hparams& h, int n);
};

// Asked between ops; throws to stop the work.
class Poll {
   public:
    virtual ~Poll() = default;
    virtual void operator()() = 0;
};

// Stands between a layer's keys and its attention.
class LayerHook {
   public:
    virtual ~LayerHook() = default;
    // The layer's rows are in the cache; q [rows.n][n_head][head_dim] is rotated, in the order of the cache. For a
    // single row it may attend to some positions itself, into y of the same shape, and returns true then; false: to
    // all.
    virtual bool attend(float* y, int32_t layer, Rows rows, const float* q, float scale, const KvView& kv) = 0;
};

// Runs the rows of the batch that the ops were told to begin through all layers; a.x holds the final hidden states
// afterwards, not yet normed.
void forward(const Model& model, Ops& ops, const KvStore& kv, const Activations& a, Rows rows, LayerHook& hook,
             Poll& poll);

// Logits [n][n_vocab] of n consecutive rows of a.x, starting at row.
void output_logits(const Model& model, Ops& ops, const Activations& a, int32_t row, int32_t n, float* logits);

}  // namespace fasa
