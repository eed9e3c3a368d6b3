#include "model/forward.h"

#include <cmath>

namespace fasa {

Activations Activations::take(Arena& arena, const Hparams& h, int n) {
    const size_t rows = static_cast<size_t>(n);
    const size_t n_q = size_t{1} * h.n_head * h.head_dim, n_kv = size_t{1} * h.n_head_kv * h.head_dim;
    Activations a;
    a.x = arena.take<float>(rows * h.n_embd);
    a.normed = arena.take<float>(rows * h.n_embd);
    a.q = arena.take<float>(rows * n_q);
    a.attended = arena.take<float>(rows * n_q);
    a.k = arena.take<float>(rows * n_kv);
    a.v = arena.take<float>(rows * n_kv);
    a.gate = arena.take<float>(rows * h.n_ff);
    a.up = arena.take<float>(rows * h.n_ff);
    return a;
}

void forward(const Model& model, Ops& ops, const KvStore& kv, const Activations& a, Rows rows, LayerHook& hook,
             Poll& poll) {
    const Hparams& h = model.h;
    const int n = rows.n;
    const float scale = 1.0f / std::sqrt(static_cast<float>(h.head_dim));

    ops.embed(a.x, model.token_embd);

    for (int32_t i = 0; i < h.n_layer; ++i) {
        const Layer& l = model.layers[i];
        const KvView cache = kv.layer(i);

        poll();
        const LinearOut qkv[] = {l.attn_q.into(a.q), l.attn_k.into(a.k), l.attn_v.into(a.v)};
        ops.linear(qkv, 3, {a.x, l.attn_norm.data, h.norm_eps, a.normed}, n);
        const HeadNorm norm{l.attn_q_norm.data, l.attn_k_norm.data, h.norm_eps};
        ops.rope_store(a.q, a.k, a.v, h.n_head, norm, cache, rows);

        poll();
        if (!hook.attend(a.attended, i, rows, a.q, scale, cache)) {
            ops.attend_dense(a.attended, a.q, h.n_head, scale, cache, rows);
        }
        const LinearOut attn_output = l.attn_output.into(a.x, true);
        ops.linear(&attn_output, 1, {a.attended}, n);

        poll();
        ops.linear_glu(l.ffn_gate.into(a.gate), l.ffn_up.into(a.up), {a.x, l.ffn_norm.data, h.norm_eps, a.normed}, n);

        poll();
        const LinearOut ffn_down = l.ffn_down.into(a.x, true);
        ops.linear(&ffn_down, 1, {a.gate}, n);
    }
}

void output_logits(const Model& model, Ops& ops, const Activations& a, int32_t row, int32_t n, float* logits) {
    const Hparams& h = model.h;
    const LinearOut output{model.output, nullptr, logits, false};
    ops.linear(&output, 1, {a.x + int64_t{row} * h.n_embd, model.output_norm.data, h.norm_eps, a.normed}, n);
}

}  // namespace fasa
