#include "model/model.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <string>
#include <type_traits>
#include <unordered_set>

#include "backend/cpu/quant.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/mmap.h"

namespace fasa {
namespace {

class Loader {
   public:
    explicit Loader(const gguf::File& file) : file_(file) {}

    WeightView matrix(const std::string& name, int64_t n_in, int64_t n_out) {
        const gguf::Tensor& t = file_.tensor(name);
        if (t.n_dims > 2 || t.dims[0] != n_in || t.dims[1] != n_out) {
            fail(FASA_ERROR_FORMAT, "%s: tensor \"%s\" has shape [%lld, %lld%s], expected [%lld, %lld]",
                 file_.path().c_str(), name.c_str(), static_cast<long long>(t.dims[0]),
                 static_cast<long long>(t.dims[1]), t.n_dims > 2 ? ", ..." : "", static_cast<long long>(n_in),
                 static_cast<long long>(n_out));
        }
        count(t, n_in * n_out);
        return {t.dtype, t.data, n_in, n_out, dtype_row_bytes(t.dtype, n_in)};
    }

    Vector vector(const std::string& name, int64_t n) {
        const gguf::Tensor& t = file_.tensor(name);
        if (t.n_dims != 1 || t.dims[0] != n) {
            fail(FASA_ERROR_FORMAT, "%s: tensor \"%s\" has %d dims and %lld values in a row, expected one dim of %lld",
                 file_.path().c_str(), name.c_str(), t.n_dims, static_cast<long long>(t.dims[0]),
                 static_cast<long long>(n));
        }
        count(t, n);
        std::vector<float>& values = vectors_.emplace_back(static_cast<size_t>(n));
        cpu::dequantize_row(t.dtype, t.data, values.data(), n);
        return {values.data(), n};
    }

    Vector optional_vector(const std::string& name, int64_t n) {
        return file_.find_tensor(name) ? vector(name, n) : Vector{};
    }

    Projection projection(const std::string& prefix, int64_t n_in, int64_t n_out, bool needs_bias = false) {
        Projection p{matrix(prefix + ".weight", n_in, n_out), {}};
        p.bias = needs_bias ? vector(prefix + ".bias", n_out) : optional_vector(prefix + ".bias", n_out);
        return p;
    }

    // A tensor that nothing asked for would change the result if it were used (a bias, an expert, an extra layer).
    void refuse_unused(const Hparams& h) const {
        for (const gguf::Tensor& t : file_.tensors()) {
            if (!used_.contains(&t)) {
                fail(FASA_ERROR_UNSUPPORTED,
                     "%s: tensor \"%s\" is not used by a %s model of %d layers; ignoring it would change the results",
                     file_.path().c_str(), t.name.c_str(), h.arch->name, h.n_layer);
            }
        }
    }

    uint64_t n_params() const { return n_params_; }
    uint64_t n_bytes() const { return n_bytes_; }
    uint64_t fingerprint() const { return hash_.digest(); }

   private:
    // Every tensor's name, type, shape and its first and last bytes go into the fingerprint: enough to tell models and
    // quantisations apart without reading gigabytes.
    void count(const gguf::Tensor& t, int64_t n) {
        used_.insert(&t);
        n_params_ += static_cast<uint64_t>(n);
        n_bytes_ += t.n_bytes;
        hash_.update(t.name.data(), t.name.size());
        const uint32_t dtype = t.dtype;
        hash_.update(&dtype, sizeof dtype);
        hash_.update(t.dims, sizeof t.dims);
        const size_t sample = std::min<size_t>(t.n_bytes, 1024);
        const auto* bytes = static_cast<const uint8_t*>(t.data);
        hash_.update(bytes, sample);
        hash_.update(bytes + t.n_bytes - sample, sample);
    }

    const gguf::File& file_;
    std::unordered_set<const gguf::Tensor*> used_;
    std::deque<std::vector<float>> vectors_;  // until they are on the device
    uint64_t n_params_ = 0, n_bytes_ = 0;
    Hash64 hash_;
};

Layer load_layer(Loader& load, const Hparams& h, int32_t i) {
    const std::string blk = "blk." + std::to_string(i) + ".";
    const int64_t n_q = static_cast<int64_t>(h.n_head) * h.head_dim,
                  n_kv = static_cast<int64_t>(h.n_head_kv) * h.head_dim;
    Layer l;
    l.attn_norm = load.vector(blk + "attn_norm.weight", h.n_embd);
    l.attn_q = load.projection(blk + "attn_q", h.n_embd, n_q, h.arch->qkv_bias);
    l.attn_k = load.projection(blk + "attn_k", h.n_embd, n_kv, h.arch->qkv_bias);
    l.attn_v = load.projection(blk + "attn_v", h.n_embd, n_kv, h.arch->qkv_bias);
    l.attn_output = load.projection(blk + "attn_output", n_q, h.n_embd);
    if (h.arch->qk_norm) {
        l.attn_q_norm = load.vector(blk + "attn_q_norm.weight", h.head_dim);
        l.attn_k_norm = load.vector(blk + "attn_k_norm.weight", h.head_dim);
    }
    l.ffn_norm = load.vector(blk + "ffn_norm.weight", h.n_embd);
    l.ffn_gate = load.projection(blk + "ffn_gate", h.n_embd, h.n_ff);
    l.ffn_up = load.projection(blk + "ffn_up", h.n_embd, h.n_ff);
    l.ffn_down = load.projection(blk + "ffn_down", h.n_ff, h.n_embd);
    return l;
}

Vector load_rope_freqs(Loader& load, const gguf::File& file, const Hparams& h) {
    const Vector factors = load.optional_vector("rope_freqs.weight", h.n_rot / 2);
    for (int64_t i = 0; i < factors.n; ++i) {
        const float f = factors.data[i];
        if (!(f > 0) || !std::isfinite(f)) {
            fail(FASA_ERROR_FORMAT, "%s: tensor \"rope_freqs.weight\" holds %g, expected positive factors",
                 file.path().c_str(), static_cast<double>(f));
        }
    }
    return factors;
}

uint64_t settings_hash(const Hparams& h, uint64_t weights) {
    Hash64 hash;
    const double settings[] = {
        double(h.n_head),  double(h.n_head_kv),    double(h.head_dim), double(h.n_rot),         h.norm_eps,
        h.rope_freq_base,  double(h.rope_scaling), h.rope_factor,      double(h.rope_ctx_orig), h.rope_attn_factor,
        h.yarn_ext_factor, h.yarn_beta_fast,       h.yarn_beta_slow};
    hash.update(h.arch->name, std::char_traits<char>::length(h.arch->name));
    hash.update(settings, sizeof settings);
    hash.update(&weights, sizeof weights);
    return hash.digest();
}

template <class F>
void for_each_vector(Model& model, F&& f) {
    f(model.output_norm);
    for (Layer& l : model.layers) {
        for (Vector* v : {&l.attn_norm, &l.ffn_norm, &l.attn_q_norm, &l.attn_k_norm}) f(*v);
        for (Projection* p : {&l.attn_q, &l.attn_k, &l.attn_v, &l.attn_output, &l.ffn_gate, &l.ffn_up, &l.ffn_down})
            f(p->bias);
    }
}

// Gives everything its place in memory of the device, from base on: vectors are copied there, matrices that do not stay
// in the file are to be uploaded. base nullptr: only measured. Returns the bytes in all.
size_t lay_out(Model& model, void* base, std::vector<Device::Upload>& uploads) {
    const Device& device = *model.device;
    Arena arena(base);
    const auto take = [&](auto& at, auto* from, size_t n) {
        auto* to = arena.take<std::remove_cvref_t<decltype(*from)>>(n);
        if (!base || n == 0) return;
        device.copy(to, from, n * sizeof(*from));
        at = to;
    };
    take(model.rope_frequency, model.rope.frequency.data(), model.rope.frequency.size());
    for_each_vector(model, [&](Vector& v) { take(v.data, v.data, static_cast<size_t>(v.n)); });
    for_each_matrix(model, [&](WeightView& w) {
        const size_t n_bytes = device.weight_bytes(w);
        void* to = arena.take<uint8_t>(n_bytes);
        if (base && n_bytes > 0) uploads.push_back({&w, to});
    });
    return arena.used();
}

void check_room(const Model& model) {
    const Device& device = *model.device;
    if (!device.has_own_memory()) return;
    const uint64_t needed = model.memory_bytes + device.system_bytes(), available = device.memory_available();
    if (needed <= available) return;
    fail(FASA_ERROR_MEMORY,
         "out of memory: the weights take %.1f MiB and CUDA itself %.1f MiB of device memory, but %.1f MiB are "
         "available on %s: %llu bytes are missing, without any context",
         static_cast<double>(model.memory_bytes) / 0x1p20, static_cast<double>(device.system_bytes()) / 0x1p20,
         static_cast<double>(available) / 0x1p20, device.name().c_str(),
         static_cast<unsigned long long>(needed - available));
}

// Puts everything on the device, taken at once.
void place(Model& model, const std::function<bool(float)>& progress) {
    const Device& device = *model.device;
    check_room(model);
    model.memory = device.buffer(model.memory_bytes, "weights");
    std::vector<Device::Upload> uploads;
    lay_out(model, model.memory.data(), uploads);
    uint64_t done = 0;
    device.upload(uploads, [&](size_t n) {
        done += n;
        if (!progress(static_cast<float>(done) / static_cast<float>(model.n_bytes)))
            fail(FASA_ERROR_CANCELLED, "loading was cancelled");
    });
}

// Reads the whole file now, where the caller sees it progress, instead of during the first tokens. Weights larger than
// the memory stay on disk and are read as they are used.
void read_weights(const Model& model, const std::function<bool(float)>& progress) {
    constexpr uint64_t piece = 64 << 20;  // bytes between two looks at whether to go on
    const bool fits = model.n_bytes < memory_available();
    uint64_t done = 0;
    for (const gguf::Tensor& t : model.file->tensors()) {
        for (uint64_t at = 0; at < t.n_bytes; at += piece) {
            const uint64_t n = std::min(piece, t.n_bytes - at);
            if (fits) read_ahead(static_cast<const uint8_t*>(t.data) + at, n);
            done += n;
            if (!progress(static_cast<float>(done) / static_cast<float>(model.n_bytes))) {
                fail(FASA_ERROR_CANCELLED, "loading was cancelled");
            }
        }
    }
}

}  // namespace

uint64_t Model::pass_bytes() const { return n_bytes - (token_embd.data == output.data ? 0 : token_embd.n_bytes()); }

std::shared_ptr<const Model> load_model(std::shared_ptr<const gguf::File> file, std::unique_ptr<Device> device,
                                        const LoadOptions& options, const std::function<bool(float)>& progress) {
    auto model = std::make_shared<Model>();
    model->file = std::move(file);
    model->device = std::move(device);
    model->h = read_hparams(*model->file);
    const Hparams& h = model->h;

    if (!options.ignore_table) {
        if (auto table = read_table(*model->file, {h.n_layer, h.n_head, h.n_head_kv, chunk_layout(h)})) {
            model->table = std::make_shared<const Table>(std::move(*table));
        }
    }

    Loader load(*model->file);
    model->token_embd = load.matrix("token_embd.weight", h.n_embd, h.n_vocab);
    for (int32_t i = 0; i < h.n_layer; ++i) model->layers.push_back(load_layer(load, h, i));
    model->output_norm = load.vector("output_norm.weight", h.n_embd);
    if (model->file->find_tensor("output.weight")) model->output = load.matrix("output.weight", h.n_embd, h.n_vocab);
    const Vector factors = load_rope_freqs(load, *model->file, h);
    load.refuse_unused(h);
    model->rope_freqs = factors.data != nullptr;
    model->rope = make_rope(h, factors.data);
    model->n_params = load.n_params();
    model->n_bytes = load.n_bytes();
    model->fingerprint = settings_hash(h, load.fingerprint());
    std::vector<Device::Upload> none;
    model->memory_bytes = lay_out(*model, nullptr, none);
    model->plan_only = options.plan_only;
    const bool stays_in_file = model->device->weight_bytes(model->token_embd) == 0;
    if (!options.plan_only) place(*model, progress);
    if (!model->output) model->output = model->token_embd;
    if (stays_in_file && !options.plan_only) read_weights(*model, progress);
    return model;
}

}  // namespace fasa
