// What a GGUF file says about its network: numbers read from the metadata and checked. Architectures are data.
#pragma once

#include <cstdint>
#include <string>

#include "backend/views.h"
#include "gguf/file.h"
#include "select/chunks.h"

namespace fasa {

// What sets one architecture apart from the others of its family.
struct Arch {
    const char* name;  // general.architecture
    RopeLayout rope_layout;
    bool qkv_bias;  // attn_{q,k,v}.bias must exist (elsewhere they are used when they do)
    bool qk_norm;   // attn_{q,k}_norm.weight over each head must exist
};

enum class RopeScaling { none, linear, yarn };

struct Hparams {
    const Arch* arch;
    int32_t n_layer, n_head, n_head_kv, head_dim, n_rot, n_embd, n_ff, n_vocab, n_ctx_train;
    float norm_eps;
    float rope_freq_base;
    RopeScaling rope_scaling;
    float rope_factor;       // context extension: positions are divided by it
    int32_t rope_ctx_orig;   // yarn: context before the extension
    float rope_attn_factor;  // yarn: extra factor on cos and sin
    float yarn_ext_factor, yarn_beta_fast, yarn_beta_slow;
};

// The chunks of one head.
ChunkLayout chunk_layout(const Hparams& h);

// Throws FORMAT naming the key, or UNSUPPORTED naming the architecture or feature.
Hparams read_hparams(const gguf::File& file);

// "llama, qwen2, qwen3"
const char* supported_archs();

}  // namespace fasa
