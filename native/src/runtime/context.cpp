#include "runtime/context.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "runtime/plan.h"
#include "runtime/state_file.h"

namespace fasa {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

fasa_plan checked_plan(const Model& model, const fasa_context_params& params) {
    const fasa_plan plan = make_plan(model, params);
    if (!plan.fits) {
        fail(FASA_ERROR_MEMORY,
             "out of memory: a context of %d tokens needs %.1f MiB (KV cache %.1f, scratch %.1f), but %.1f MiB are "
             "available beside the weights; n_ctx = %d would fit",
             plan.n_ctx, static_cast<double>(plan.kv_bytes + plan.scratch_bytes) / 0x1p20,
             static_cast<double>(plan.kv_bytes) / 0x1p20, static_cast<double>(plan.scratch_bytes) / 0x1p20,
             static_cast<double>(plan.available_bytes) / 0x1p20, plan.n_ctx_max);
    }
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

// Stops the work when cancel() was called, or when the caller's abort function, asked now and then, says so.
class Context::CancelPoll final : public Poll {
   public:
    explicit CancelPoll(const std::atomic<bool>& cancelled) : cancelled_(cancelled) {}

    void operator()() override {
        if (cancelled_ || ask()) fail(FASA_ERROR_CANCELLED, "the work was cancelled");
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
    Clock::time_point asked_ = Clock::now();
};

Context::Context(std::shared_ptr<const Model> model, const fasa_context_params& params)
    : stats{},
      model_(std::move(model)),
      params_(resolve(*model_, params)),
      plan_(checked_plan(*model_, params_)),
      kv_(kv_shape(model_->h, params_)),
      memory_(plan_.scratch_bytes - model_->device->ops_bytes(ops_limits(model_->h, params_)), "scratch"),
      ops_(model_->device->make_ops(ops_limits(model_->h, params_))),
      length_(static_cast<size_t>(params_.n_seq)),
      poll_(std::make_unique<CancelPoll>(cancelled_)) {
    Arena arena(memory_.data());
    activations_ = Activations::take(arena, model_->h, params_.n_batch);
    logits_ = arena.take<float>(size_t{1} * std::min(n_score_rows, params_.n_batch) * model_->h.n_vocab);
    history_ = arena.take<int32_t>(size_t{1} * params_.n_ctx * params_.n_seq);
}

Context::~Context() = default;

void Context::set_abort(fasa_abort_fn fn, void* user) {
    poll_->fn = fn;
    poll_->user = user;
}

void Context::check_seq(int32_t seq) const {
    if (seq < 0 || seq >= params_.n_seq) {
        fail(FASA_ERROR_ARGUMENT, "sequence %d does not exist: this context has %d", seq, params_.n_seq);
    }
}

void Context::check_tokens(int32_t seq, std::span<const int32_t> tokens) const {
    check_seq(seq);
    if (tokens.empty()) fail(FASA_ERROR_ARGUMENT, "no tokens to process");
    if (tokens.size() > static_cast<size_t>(params_.n_ctx - length_[seq])) {
        fail(FASA_ERROR_CONTEXT_FULL, "%d tokens in the context and %zu new ones exceed its size, n_ctx = %d",
             length_[seq], tokens.size(), params_.n_ctx);
    }
    for (size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] < 0 || tokens[i] >= model_->h.n_vocab) {
            fail(FASA_ERROR_ARGUMENT, "token %d at index %zu is out of range: the vocabulary has %d tokens", tokens[i],
                 i, model_->h.n_vocab);
        }
    }
}

void Context::run_batch(int32_t seq, std::span<const int32_t> tokens) {
    const Clock::time_point start = Clock::now();
    const int32_t pos0 = length_[seq], n = static_cast<int32_t>(tokens.size());
    logits_seq_ = -1;
    forward(*model_, *ops_, kv_, activations_, {seq, pos0, n}, tokens.data(), *poll_);
    std::copy(tokens.begin(), tokens.end(), history_ + int64_t{seq} * params_.n_ctx + pos0);
    length_[seq] = pos0 + n;

    stats.layers_dense += static_cast<uint64_t>(model_->h.n_layer);
    if (n == 1) {
        stats.n_decode += 1;
        stats.decode_s += seconds_since(start);
        stats.decode_bytes += model_->pass_bytes() + kv_.shape().token_bytes() * static_cast<uint64_t>(pos0 + 1);
    } else {
        stats.n_prefill += static_cast<uint64_t>(n);
        stats.prefill_s += seconds_since(start);
    }
}

template <class AfterBatch>
void Context::run(int32_t seq, std::span<const int32_t> tokens, const Progress& progress, AfterBatch&& after_batch) {
    cancelled_ = false;
    const size_t n_batch = static_cast<size_t>(params_.n_batch);
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
        if (done + batch.size() < tokens.size()) return;
        const Clock::time_point start = Clock::now();
        output_logits(*model_, *ops_, activations_, static_cast<int32_t>(batch.size()) - 1, 1, logits_);
        (tokens.size() == 1 ? stats.decode_s : stats.prefill_s) += seconds_since(start);
    });
}

void Context::score(float* logprob, int32_t seq, std::span<const int32_t> tokens, const Progress& progress) {
    check_tokens(seq, tokens);
    const int32_t n_vocab = model_->h.n_vocab, n_rows = std::min(n_score_rows, params_.n_batch);
    logprob[0] =
        logits_seq_ == seq ? log_probability(logits_, n_vocab, tokens[0]) : std::numeric_limits<float>::quiet_NaN();
    run(seq, tokens, progress, [&](size_t done, std::span<const int32_t> batch) {
        const int32_t n = static_cast<int32_t>(batch.size());
        for (int32_t row = 0; row < n; row += n_rows) {
            (*poll_)();
            const int32_t n_part = std::min(n_rows, n - row);
            output_logits(*model_, *ops_, activations_, row, n_part, logits_);
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
    if (seq < 0 || seq >= params_.n_seq) return {};
    return {history_ + int64_t{seq} * params_.n_ctx, static_cast<size_t>(length_[seq])};
}

void Context::truncate(int32_t seq, int32_t n_tokens) {
    check_seq(seq);
    if (n_tokens < 0 || n_tokens > length_[seq]) {
        fail(FASA_ERROR_ARGUMENT, "cannot truncate sequence %d of %d tokens to %d", seq, length_[seq], n_tokens);
    }
    if (n_tokens < length_[seq] && logits_seq_ == seq) logits_seq_ = -1;
    length_[seq] = n_tokens;
}

void Context::copy(int32_t dst, int32_t src, int32_t n_tokens) {
    check_seq(dst);
    check_seq(src);
    if (n_tokens < 0 || n_tokens > length_[src]) {
        fail(FASA_ERROR_ARGUMENT, "cannot copy %d tokens of sequence %d, which has %d", n_tokens, src, length_[src]);
    }
    if (logits_seq_ == dst) logits_seq_ = -1;
    kv_.copy(dst, src, n_tokens);
    std::copy_n(history_ + int64_t{src} * params_.n_ctx, n_tokens, history_ + int64_t{dst} * params_.n_ctx);
    length_[dst] = n_tokens;
}

void Context::save(int32_t seq, const std::string& path) const {
    check_seq(seq);
    write_state(path, model_->fingerprint, kv_, seq, tokens(seq));
}

void Context::load(int32_t seq, const std::string& path) {
    check_seq(seq);
    const StateFile state(path, model_->fingerprint, model_->h.n_vocab, kv_.shape());
    if (logits_seq_ == seq) logits_seq_ = -1;
    state.restore(kv_, seq, history_ + int64_t{seq} * params_.n_ctx);
    length_[seq] = state.n_tokens();
}

}  // namespace fasa
