#include "runtime/context.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"
#include "runtime/plan.h"
#include "runtime/state_file.h"

namespace fasa {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

fasa_plan checked_plan(const Model& model, const ContextConfig& config) {
    if (model.plan_only)
        fail(FASA_ERROR_ARGUMENT, "the model was loaded for plans only: no context can be made with it");
    const fasa_plan plan = make_plan(model, config);
    check_plan(plan);
    return plan;
}

// Tokens of the next batch of a prompt. The last batch is never a few rows alone, so that a prompt's logits do not
// depend on where its batches end: what a prefix reused leaves to process gives the same bits as the whole.
size_t next_batch(size_t n_batch, size_t n_left) {
    if (n_left <= n_batch) return n_left;
    return n_left - n_batch >= n_rows_alike ? n_batch : n_batch - n_rows_alike;
}

float log_probability(const float* logits, int32_t n_vocab, int32_t token) {
    const float top = *std::max_element(logits, logits + n_vocab);
    double sum = 0;
    for (int32_t i = 0; i < n_vocab; ++i) sum += std::exp(logits[i] - top);
    return static_cast<float>(logits[token] - top - std::log(sum));
}

}  // namespace

// Stops the work when cancel() was called, or when the caller's abort function, asked now and then, says so. Ops that
// are being kept are not stopped: recording is short, and the caller's function might free device memory, which must
// not happen meanwhile.
class Context::CancelPoll final : public Poll {
   public:
    CancelPoll(const std::atomic<bool>& cancelled, const Ops& ops) : cancelled_(cancelled), ops_(ops) {}

    void operator()() override {
        if (!ops_.is_keeping() && (cancelled_ || ask())) fail(FASA_ERROR_CANCELLED, "the work was cancelled");
    }

    fasa_abort_fn fn = nullptr;
    void* user = nullptr;

   private:
    bool ask() {
        if (!fn || seconds_since(asked_) < 0.02) return false;
        asked_ = Clock::now();
        return fn(user);
    }

    const std::atomic<bool>& cancelled_;
    const Ops& ops_;
    Clock::time_point asked_ = Clock::now();
};

// Attends to the chosen positions of a layer, and shows the step to the tap.
class Context::SparseHook final : public LayerHook {
   public:
    explicit SparseHook(Context& context) : context_(context) {}

    bool attend(float* y, int32_t layer, Rows rows, const float* q, float scale, const KvView& kv) override {
        context_.sparsity_->observe(layer, rows, q, scale, kv);
        if (context_.prefilling_) return false;
        const Selection* selection = context_.sparsity_->attend(y, layer, rows, q, scale, kv);
        if (context_.tap_) show(layer, rows, q, selection);
        return selection != nullptr;
    }

   private:
    void show(int32_t layer, Rows rows, const float* q, const Selection* selection) {
        const Hparams& h = context_.model_->h;
        std::vector<float> queries(size_t{1} * h.n_head * h.head_dim);
        const float* read = context_.ops_->on_host(q, static_cast<int64_t>(queries.size()));
        std::copy_n(read, queries.size(), queries.begin());
        std::vector<std::vector<int32_t>> positions;
        if (selection) positions = lists(*selection);
        context_.tap_->record(layer, rows, queries, context_.kv_, std::move(positions));
    }

    // On the host, by two copies.
    std::vector<std::vector<int32_t>> lists(const Selection& selection) const {
        const Device& device = *context_.model_->device;
        const size_t n_set = static_cast<size_t>(selection.n_set), capacity = static_cast<size_t>(selection.capacity);
        std::vector<int32_t> counts(n_set), all(n_set * capacity);
        context_.ops_->wait();
        device.copy(counts.data(), selection.count, sizeof(int32_t) * counts.size());
        device.copy(all.data(), selection.positions, sizeof(int32_t) * all.size());
        std::vector<std::vector<int32_t>> lists;
        for (size_t set = 0; set < n_set; ++set) {
            const auto list = all.begin() + static_cast<std::ptrdiff_t>(set * capacity);
            lists.emplace_back(list, list + counts[set]);
        }
        return lists;
    }

    Context& context_;
};

Context::Context(std::shared_ptr<const Model> model, const fasa_context_params& params,
                 std::shared_ptr<const Table> table)
    : model_(std::move(model)),
      config_(resolve(*model_, params, std::move(table))),
      plan_(checked_plan(*model_, config_)),
      kv_(kv_shape(model_->h, config_), cache_order(model_->h, config_), *model_->device),
      memory_(model_->device->buffer(device_scratch(*model_, config_, nullptr).n_bytes, "scratch")),
      logits_memory_(model_->device->host_buffer(logits_bytes(*model_, config_), "logits")),
      history_memory_(history_bytes(config_), "tokens"),
      ops_(model_->device->make_ops(ops_limits(model_->h, config_))),
      logits_(static_cast<float*>(logits_memory_.data())),
      history_(static_cast<int32_t*>(history_memory_.data())),
      length_(static_cast<size_t>(config_.n_seq)),
      hook_(std::make_unique<SparseHook>(*this)),
      poll_(std::make_unique<CancelPoll>(cancelled_, *ops_)) {
    const DeviceScratch device = device_scratch(*model_, config_, memory_.data());
    activations_ = device.activations;
    select_scratch_ = device.select;
    sparsity_ = make_sparsity(config_.select);
    for_each_matrix(*model_, [&](const WeightView& w) { ops_->prepare(w); });
    keep_runs();
}

// Decode steps of all lengths, sparse and dense, so that none has to be recorded while generating, which would take
// time and memory then: a few milliseconds each on a GPU, for two to nine lengths of either kind.
void Context::keep_runs() {
    prefilling_ = false;
    const int32_t token = 0;
    const auto keep = [&](int32_t n_pos) {
        const Rows rows{0, n_pos - 1, 1};
        ops_->begin({rows, &token, n_pos, model_->rope_view()});
        ops_->keep(run_key(rows), [&] { step(rows); });
    };
    for (int32_t n_pos = 1, last; n_pos <= config_.n_ctx; n_pos = last + 1) {
        last = ops_->last_length(n_pos);
        keep(n_pos);
        keep(last);  // steps become sparse somewhere between
    }
}

void Context::step(Rows rows) {
    forward(*model_, *ops_, kv_, activations_, rows, *hook_, *poll_);
    output_logits(*model_, *ops_, activations_, 0, 1, logits_);
}

std::unique_ptr<Sparsity> Context::make_sparsity(const SelectConfig& select) {
    return std::make_unique<Sparsity>(SelectorSetup{select, select_shape(model_->h, config_), config_.table.get(),
                                                    kv_.order(), *model_->device, *ops_, select_scratch_});
}

void Context::set_method(const fasa_method_params& params) {
    ContextConfig config = config_;
    config.select = resolve_method(*model_, params, config_.table.get());
    limit_dense_steps(*model_, params, config);
    const SelectConfig& asked = config.select;
    if (config_.host_rest && asked.method == "fasa" && asked.chunks_per_head) {
        fail(FASA_ERROR_UNSUPPORTED,
             "dominant sets per query head need whole keys on the device, but this cache is split between device and "
             "host");
    }
    std::unique_ptr<Sparsity> sparsity = make_sparsity(asked);
    sparsity->counts = sparsity_->counts;
    std::swap(sparsity_, sparsity);
    const SelectConfig before = std::exchange(config_.select, asked);
    ops_->forget_runs();
    try {
        keep_runs();
    } catch (...) {
        std::swap(sparsity_, sparsity);
        config_.select = before;
        ops_->forget_runs();
        throw;
    }
}

fasa_stats Context::stats() const {
    const SparsityCounts& c = sparsity_->counts;
    fasa_stats stats = stats_;
    stats.layers_dense = c.layers_dense;
    stats.layers_sparse = c.layers_sparse;
    stats.tokens_selected = c.tokens_selected;
    stats.key_bytes = c.key_bytes;
    stats.value_bytes = c.value_bytes;
    count_rows(stats);
    stats.decode_bytes = stats_.n_decode * model_->pass_bytes() + c.key_bytes + c.value_bytes;
    return stats;
}

// On a device whose memory is the host's nothing crosses a bus.
void Context::count_rows(fasa_stats& stats) const {
    if (!config_.host_rest || !model_->device->has_own_memory()) return;
    const KvShape& shape = kv_.shape();
    const RowCounts rows = row_counts();
    stats.rows_hit = rows.hit - rows_before_.hit;
    stats.rows_missed = config_.n_cache_row > 0 ? rows.missed - rows_before_.missed : sparsity_->counts.host_rows;
    const uint64_t row_bytes = sizeof(uint16_t) * static_cast<uint64_t>(shape.host_row_values());
    const uint64_t rows_a_token = static_cast<uint64_t>(shape.n_split()) * static_cast<uint64_t>(shape.n_head_kv);
    const uint64_t n_written = rows_a_token * (stats_.n_prefill + stats_.n_decode);
    stats.pcie_bytes = row_bytes * (stats.rows_missed + n_written) + rows.other_bytes - rows_before_.other_bytes;
}

// On a device that has failed none are counted since stats_ began: this must not throw, and the next step says what
// failed.
RowCounts Context::row_counts() const {
    try {
        return ops_->row_counts();
    } catch (const Error&) {
        return rows_before_;
    }
}

void Context::reset_stats() {
    rows_before_ = row_counts();
    stats_ = {};
    sparsity_->counts = {};
}

void Context::start_tap(int32_t n_steps) {
    if (n_steps < 0 || n_steps > (1 << 20)) fail(FASA_ERROR_ARGUMENT, "n_steps is %d, expected 0 to 1048576", n_steps);
    tap_ = n_steps > 0 ? std::make_unique<Tap>(model_->h.n_layer, model_->h.n_head, n_steps) : nullptr;
}

void Context::read_kv(float* k, float* v, int32_t seq, int32_t layer, int32_t head_kv, int32_t first, int32_t n) const {
    check_seq(seq);
    const Hparams& h = model_->h;
    if (layer < 0 || layer >= h.n_layer || head_kv < 0 || head_kv >= h.n_head_kv || first < 0 || n < 0 ||
        first > length_[seq] - n) {
        fail(FASA_ERROR_ARGUMENT, "no keys at layer %d, KV head %d, positions %d to %d: the sequence has %d", layer,
             head_kv, first, first + n, length_[seq]);
    }
    const KvRows rows = kv_.read(seq, layer, head_kv, first, n);
    for (int32_t i = 0; i < n; ++i) {
        if (k) rows.key(i, k + int64_t{i} * h.head_dim);
        if (v) rows.value(i, v + int64_t{i} * h.head_dim);
    }
}

Context::~Context() = default;

void Context::set_abort(fasa_abort_fn fn, void* user) {
    poll_->fn = fn;
    poll_->user = user;
}

Poll& Context::start_polling() {
    cancelled_ = false;
    return *poll_;
}

void Context::check_seq(int32_t seq) const {
    if (seq < 0 || seq >= config_.n_seq) {
        fail(FASA_ERROR_ARGUMENT, "sequence %d does not exist: this context has %d", seq, config_.n_seq);
    }
}

void Context::check_tokens(int32_t seq, std::span<const int32_t> tokens) const {
    check_seq(seq);
    if (tokens.empty()) fail(FASA_ERROR_ARGUMENT, "no tokens to process");
    if (tokens.size() > static_cast<size_t>(config_.n_ctx - length_[seq])) {
        fail(FASA_ERROR_CONTEXT_FULL, "%d tokens in the context and %zu new ones exceed its size, n_ctx = %d",
             length_[seq], tokens.size(), config_.n_ctx);
    }
    for (size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] < 0 || tokens[i] >= model_->h.n_vocab) {
            fail(FASA_ERROR_ARGUMENT, "token %d at index %zu is out of range: the vocabulary has %d tokens", tokens[i],
                 i, model_->h.n_vocab);
        }
    }
}

// The failure that is being thrown says more than another.
void Context::abandon(int32_t seq, int32_t pos0) {
    try {
        ops_->wait();
        ops_->forget_rows(seq, pos0);
    } catch (const Error&) {
    }
}

// Runs differ by the ops of a step: all the same as long as it stays sparse or dense. A device whose ops depend on the
// length tells lengths apart itself.
uint64_t Context::run_key(Rows rows) const {
    if (prefilling_ || tap_ || !sparsity_->replayable()) return 0;
    return sparsity_->is_sparse(rows.pos0 + 1) ? 2 : 1;
}

void Context::run_batch(int32_t seq, std::span<const int32_t> tokens) {
    const Clock::time_point start = Clock::now();
    const int32_t pos0 = length_[seq], n = static_cast<int32_t>(tokens.size());
    const Rows rows{seq, pos0, n};
    logits_seq_ = -1;
    try {
        ops_->begin({rows, tokens.data(), pos0 + n, model_->rope_view()});
        ops_->run(run_key(rows), [&] {
            if (!prefilling_) return step(rows);
            forward(*model_, *ops_, kv_, activations_, rows, *hook_, *poll_);
        });
        ops_->wait();
    } catch (...) {
        abandon(seq, pos0);
        sparsity_->forget(seq, pos0);
        throw;
    }
    if (!prefilling_ && sparsity_->replayable()) sparsity_->count_step(rows, kv_);
    std::copy(tokens.begin(), tokens.end(), history_ + int64_t{seq} * config_.n_ctx + pos0);
    length_[seq] = pos0 + n;

    if (!prefilling_) {
        stats_.n_decode += 1;
        stats_.decode_s += seconds_since(start);
    } else {
        stats_.n_prefill += static_cast<uint64_t>(n);
        stats_.prefill_s += seconds_since(start);
    }
}

template <class AfterBatch>
void Context::run(int32_t seq, std::span<const int32_t> tokens, const Progress& progress, AfterBatch&& after_batch) {
    cancelled_ = false;
    prefilling_ = tokens.size() > 1;
    const size_t n_batch = static_cast<size_t>(config_.n_batch);
    for (size_t done = 0; done < tokens.size();) {
        const auto batch = tokens.subspan(done, next_batch(n_batch, tokens.size() - done));
        run_batch(seq, batch);
        after_batch(done, batch);
        done += batch.size();
        if (!progress(static_cast<float>(done) / static_cast<float>(tokens.size())) && done < tokens.size()) {
            fail(FASA_ERROR_CANCELLED, "the work was cancelled after %zu of %zu tokens", done, tokens.size());
        }
    }
    logits_seq_ = seq;
}

void Context::decode(int32_t seq, std::span<const int32_t> tokens, const Progress& progress) {
    check_tokens(seq, tokens);
    run(seq, tokens, progress, [&](size_t done, std::span<const int32_t> batch) {
        if (!prefilling_ || done + batch.size() < tokens.size()) return;  // a single token has its logits already
        const Clock::time_point start = Clock::now();
        output_logits(*model_, *ops_, activations_, static_cast<int32_t>(batch.size()) - 1, 1, logits_);
        ops_->wait();
        stats_.prefill_s += seconds_since(start);
    });
}

void Context::score(float* logprob, int32_t seq, std::span<const int32_t> tokens, const Progress& progress) {
    check_tokens(seq, tokens);
    const int32_t n_vocab = model_->h.n_vocab, n_rows = std::min(n_score_rows, config_.n_batch);
    logprob[0] =
        logits_seq_ == seq ? log_probability(logits_, n_vocab, tokens[0]) : std::numeric_limits<float>::quiet_NaN();
    run(seq, tokens, progress, [&](size_t done, std::span<const int32_t> batch) {
        const int32_t n = static_cast<int32_t>(batch.size());
        for (int32_t row = 0; row < n; row += n_rows) {
            (*poll_)();
            const int32_t n_part = std::min(n_rows, n - row);
            if (prefilling_) {  // a single token has its logits already
                output_logits(*model_, *ops_, activations_, row, n_part, logits_);
                ops_->wait();
            }
            for (int32_t i = 0; i < n_part; ++i) {
                const size_t next = done + static_cast<size_t>(row + i) + 1;
                if (next == tokens.size()) {  // the last row's logits are those that logits() shows
                    std::copy_n(logits_ + int64_t{i} * n_vocab, n_vocab, logits_);
                } else {
                    logprob[next] = log_probability(logits_ + int64_t{i} * n_vocab, n_vocab, tokens[next]);
                }
            }
        }
    });
}

std::span<const int32_t> Context::tokens(int32_t seq) const {
    if (seq < 0 || seq >= config_.n_seq) return {};
    return {history_ + int64_t{seq} * config_.n_ctx, static_cast<size_t>(length_[seq])};
}

void Context::truncate(int32_t seq, int32_t n_tokens) {
    check_seq(seq);
    if (n_tokens < 0 || n_tokens > length_[seq]) {
        fail(FASA_ERROR_ARGUMENT, "cannot truncate sequence %d of %d tokens to %d", seq, length_[seq], n_tokens);
    }
    if (n_tokens < length_[seq]) {
        if (logits_seq_ == seq) logits_seq_ = -1;
        ops_->forget_rows(seq, n_tokens);
    }
    length_[seq] = n_tokens;
    sparsity_->forget(seq, n_tokens);
}

void Context::copy(int32_t dst, int32_t src, int32_t n_tokens) {
    check_seq(dst);
    check_seq(src);
    if (n_tokens < 0 || n_tokens > length_[src]) {
        fail(FASA_ERROR_ARGUMENT, "cannot copy %d tokens of sequence %d, which has %d", n_tokens, src, length_[src]);
    }
    if (logits_seq_ == dst) logits_seq_ = -1;
    ops_->forget_rows(dst, dst == src ? n_tokens : 0);
    kv_.copy(dst, src, n_tokens);
    std::copy_n(history_ + int64_t{src} * config_.n_ctx, n_tokens, history_ + int64_t{dst} * config_.n_ctx);
    length_[dst] = n_tokens;
    sparsity_->forget(dst, dst == src ? n_tokens : 0);
}

void Context::save(int32_t seq, const std::string& path) const {
    check_seq(seq);
    write_state(path, model_->fingerprint, kv_, seq, tokens(seq));
}

void Context::load(int32_t seq, const std::string& path) {
    check_seq(seq);
    StateFile state(path, model_->fingerprint, model_->h.n_vocab, kv_);
    if (logits_seq_ == seq) logits_seq_ = -1;
    ops_->forget_rows(seq, 0);
    state.restore(kv_, seq, history_ + int64_t{seq} * config_.n_ctx);
    length_[seq] = state.n_tokens();
    sparsity_->forget(seq, 0);
}

}  // namespace fasa
