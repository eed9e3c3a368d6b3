#include "model/hparams.h"

#include <cmath>
#include <iterator>

#include "base/error.h"
#include "base/log.h"
#include "gguf/cursor.h"

namespace fasa {
namespace {

constexpr Arch archs[] = {
    {"llama", RopeLayout::interleaved, false, false},
    {"qwen2", RopeLayout::half_split, true, false},
    {"qwen3", RopeLayout::half_split, false, true},
};

// Largest counts accepted. Real models stay far below, and their products fit in 64 bits.
constexpr uint32_t max_layers = 4096, max_width = 1u << 22, max_context = 1u << 28;

class Reader {
   public:
    Reader(const gguf::File& file, const std::string& arch) : file_(file), prefix_(arch + ".") {}

    std::string key(const char* name) const { return prefix_ + name; }

    int32_t count(const char* name, uint32_t max) const { return checked(name, file_.u32(key(name)), max); }
    int32_t count_or(const char* name, int32_t otherwise, uint32_t max) const {
        const auto value = file_.find_u32(key(name));
        return value ? checked(name, *value, max) : otherwise;
    }
    float positive(const char* name) const { return checked(name, file_.f32(key(name))); }
    float positive_or(const char* name, float otherwise) const {
        const auto value = file_.find_f32(key(name));
        return value ? checked(name, *value) : otherwise;
    }
    const gguf::File& file() const { return file_; }

   private:
    int32_t checked(const char* name, uint32_t value, uint32_t max) const {
        if (value == 0 || value > max) {
            fail(FASA_ERROR_FORMAT, "%s: metadata key \"%s\" is %u, expected 1 to %u", file_.path().c_str(),
                 key(name).c_str(), value, max);
        }
        return static_cast<int32_t>(value);
    }
    float checked(const char* name, float value) const {
        if (!(value > 0) || !std::isfinite(value)) {
            fail(FASA_ERROR_FORMAT, "%s: metadata key \"%s\" is %g, expected a positive number", file_.path().c_str(),
                 key(name).c_str(), static_cast<double>(value));
        }
        return value;
    }

    const gguf::File& file_;
    std::string prefix_;
};

const Arch& find_arch(const gguf::File& file) {
    const std::string name(file.string("general.architecture"));
    for (const Arch& arch : archs) {
        if (name == arch.name) return arch;
    }
    fail(FASA_ERROR_UNSUPPORTED, "%s: architecture \"%s\" is not supported; supported are: %s", file.path().c_str(),
         gguf::printable(name).c_str(), supported_archs());
}

void read_rope(Hparams& h, const Reader& r) {
    h.rope_freq_base = r.positive_or("rope.freq_base", 10000.0f);
    h.rope_factor = r.positive_or("rope.scaling.factor", r.positive_or("rope.scale_linear", 1.0f));
    h.rope_ctx_orig = r.count_or("rope.scaling.original_context_length", h.n_ctx_train, max_context);
    h.rope_attn_factor = r.positive_or("rope.scaling.attn_factor", 1.0f);

    const auto type = r.file().find_string(r.key("rope.scaling.type"));
    if (!type) {
        h.rope_scaling = h.rope_factor == 1.0f ? RopeScaling::none : RopeScaling::linear;
    } else if (*type == "none") {
        h.rope_scaling = RopeScaling::none;
    } else if (*type == "linear") {
        h.rope_scaling = RopeScaling::linear;
    } else if (*type == "yarn") {
        h.rope_scaling = RopeScaling::yarn;
    } else {
        fail(FASA_ERROR_UNSUPPORTED, "%s: RoPE scaling \"%s\" is not supported; supported are: none, linear, yarn",
             r.file().path().c_str(), gguf::printable(*type).c_str());
    }
    if (h.rope_scaling == RopeScaling::none) h.rope_factor = 1.0f;

    const auto ext_factor = r.file().find_f32(r.key("rope.scaling.yarn_ext_factor"));
    h.yarn_ext_factor = ext_factor && *ext_factor >= 0 ? *ext_factor : 1.0f;
    h.yarn_beta_fast = r.positive_or("rope.scaling.yarn_beta_fast", 32.0f);
    h.yarn_beta_slow = r.positive_or("rope.scaling.yarn_beta_slow", 1.0f);
}

// The vocabulary's size is that of the embedding; every other place that states it must agree.
int32_t read_n_vocab(const Reader& r) {
    const gguf::File& file = r.file();
    const gguf::Tensor& embedding = file.tensor("token_embd.weight");
    const int64_t n_vocab = embedding.dims[1];
    if (embedding.n_dims != 2 || n_vocab > (1 << 26)) {
        fail(FASA_ERROR_FORMAT, "%s: tensor \"token_embd.weight\" is not an embedding matrix", file.path().c_str());
    }
    const auto n_tokens = file.find_array_size("tokenizer.ggml.tokens");
    const auto stated = file.find_u32(r.key("vocab_size"));
    if (n_tokens && *n_tokens != static_cast<uint64_t>(n_vocab)) {
        fail(FASA_ERROR_FORMAT,
             "%s: \"tokenizer.ggml.tokens\" lists %llu tokens, but \"token_embd.weight\" has %lld rows",
             file.path().c_str(), static_cast<unsigned long long>(*n_tokens), static_cast<long long>(n_vocab));
    }
    if (!n_tokens && stated && *stated != static_cast<uint64_t>(n_vocab)) {
        fail(FASA_ERROR_FORMAT, "%s: metadata key \"%s\" is %u, but \"token_embd.weight\" has %lld rows",
             file.path().c_str(), r.key("vocab_size").c_str(), *stated, static_cast<long long>(n_vocab));
    }
    return static_cast<int32_t>(n_vocab);
}

// Throws when the key is there with another value than the one that the forward pass computes with.
void refuse_unless(const Reader& r, const char* name, double expected, double tolerance) {
    const auto value = r.file().find_f32(r.key(name));
    if (value && !(std::abs(static_cast<double>(*value) - expected) <= tolerance)) {
        fail(FASA_ERROR_UNSUPPORTED, "%s: metadata key \"%s\" is %g; only %g is supported", r.file().path().c_str(),
             r.key(name).c_str(), static_cast<double>(*value), expected);
    }
}

void refuse_other_attention(const Hparams& h, const Reader& r) {
    if (!r.file().find_boolean(r.key("attention.causal")).value_or(true)) {
        fail(FASA_ERROR_UNSUPPORTED, "%s: metadata key \"%s\" is false; only causal attention is supported",
             r.file().path().c_str(), r.key("attention.causal").c_str());
    }
    const auto scale = r.file().find_f32(r.key("attention.scale"));
    if (scale && *scale != 0) {  // 0 means the usual one
        const double usual = 1 / std::sqrt(static_cast<double>(h.head_dim));
        refuse_unless(r, "attention.scale", usual, 1e-5 * usual);
    }
}

// llama.cpp ignores the window for these architectures, and so do we.
void warn_of_window(const Hparams& h, const Reader& r) {
    const auto window = r.file().find_u32(r.key("attention.sliding_window"));
    if (window && *window > 0 && *window < static_cast<uint32_t>(h.n_ctx_train)) {
        log_message(FASA_LOG_WARN, "%s: \"%s\" is %u, but attention looks at the whole context",
                    r.file().path().c_str(), r.key("attention.sliding_window").c_str(), *window);
    }
}

void refuse_unsupported_features(const Hparams& h, const Reader& r) {
    const auto n_expert = r.file().find_u32(r.key("expert_count"));
    if (n_expert && *n_expert > 0) {
        fail(FASA_ERROR_UNSUPPORTED, "%s: mixture-of-experts models (\"%s\" is %u) are not supported",
             r.file().path().c_str(), r.key("expert_count").c_str(), *n_expert);
    }
    const auto value_length = r.file().find_u32(r.key("attention.value_length"));
    if (value_length && *value_length != static_cast<uint32_t>(h.head_dim)) {
        fail(FASA_ERROR_UNSUPPORTED, "%s: value heads of %u dims beside key heads of %d are not supported",
             r.file().path().c_str(), *value_length, h.head_dim);
    }
    refuse_unless(r, "rope.scaling.yarn_attn_factor", 1, 0);
    if (h.rope_scaling == RopeScaling::yarn) refuse_unless(r, "rope.scaling.yarn_log_multiplier", 0, 0);
    refuse_other_attention(h, r);
}

}  // namespace

const char* supported_archs() {
    static const std::string names = [] {
        std::string text;
        for (const Arch& arch : archs) text += (text.empty() ? "" : ", ") + std::string(arch.name);
        return text;
    }();
    return names.c_str();
}

ChunkLayout chunk_layout(const Hparams& h) { return {h.arch->rope_layout, h.n_rot, h.head_dim}; }

Hparams read_hparams(const gguf::File& file) {
    Hparams h{};
    h.arch = &find_arch(file);
    const Reader r(file, h.arch->name);

    h.n_layer = r.count("block_count", max_layers);
    h.n_embd = r.count("embedding_length", max_width);
    h.n_ff = r.count("feed_forward_length", max_width);
    h.n_ctx_train = r.count("context_length", max_context);
    h.n_head = r.count("attention.head_count", 1u << 16);
    h.n_head_kv = r.count_or("attention.head_count_kv", h.n_head, 1u << 16);
    h.norm_eps = r.positive("attention.layer_norm_rms_epsilon");
    if (h.n_head % h.n_head_kv != 0) {
        fail(FASA_ERROR_FORMAT, "%s: %d query heads cannot share %d KV heads evenly (\"%s\", \"%s\")",
             file.path().c_str(), h.n_head, h.n_head_kv, r.key("attention.head_count").c_str(),
             r.key("attention.head_count_kv").c_str());
    }
    h.head_dim = r.count_or("attention.key_length", h.n_embd / h.n_head, max_head_dim);
    if (!file.has(r.key("attention.key_length")) &&
        (h.n_embd % h.n_head != 0 || h.head_dim < 1 || h.head_dim > max_head_dim)) {
        fail(FASA_ERROR_FORMAT, "%s: width %d does not divide into %d heads of at most %d dims (\"%s\")",
             file.path().c_str(), h.n_embd, h.n_head, max_head_dim, r.key("attention.head_count").c_str());
    }
    h.n_rot = r.count_or("rope.dimension_count", h.head_dim, max_head_dim);
    if (h.n_rot > h.head_dim || h.n_rot % 2 != 0) {
        fail(FASA_ERROR_FORMAT,
             "%s: RoPE over %d dims does not fit heads of %d dims: an even number up to that is expected",
             file.path().c_str(), h.n_rot, h.head_dim);
    }
    read_rope(h, r);
    h.n_vocab = read_n_vocab(r);
    refuse_unsupported_features(h, r);
    warn_of_window(h, r);
    return h;
}

}  // namespace fasa
