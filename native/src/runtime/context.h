// A context: sequences of tokens with their KV cache, and the work of a decode call.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kv/store.h"
#include "model/forward.h"
#include "model/model.h"
#include "runtime/config.h"
#include "runtime/tap.h"
#include "select/sparsity.h"

namespace fasa {

class Context {
   public:
    using Progress = std::function<bool(float)>;

    // Takes all memory that the context will ever use. Throws MEMORY, with what would fit, when the plan does not.
    // table: nullptr for the file's own.
    Context(std::shared_ptr<const Model> model, const fasa_context_params& params,
            std::shared_ptr<const Table> table = nullptr);
    ~Context();

    // See fasa_decode and fasa_score.
    void decode(int32_t seq, std::span<const int32_t> tokens, const Progress& progress);
    void score(float* logprob, int32_t seq, std::span<const int32_t> tokens, const Progress& progress);
    const float* logits() const { return logits_; }

    std::span<const int32_t> tokens(int32_t seq) const;
    void truncate(int32_t seq, int32_t n_tokens);
    void copy(int32_t dst, int32_t src, int32_t n_tokens);
    void save(int32_t seq, const std::string& path) const;
    void load(int32_t seq, const std::string& path);

    void cancel() { cancelled_ = true; }
    // Forgets earlier cancels; to be asked now and then by a long call, throws CANCELLED.
    Poll& start_polling();
    void set_abort(fasa_abort_fn fn, void* user);
    const fasa_plan& plan() const { return plan_; }
    const Model& model() const { return *model_; }
    const ContextConfig& config() const { return config_; }
    void set_method(const fasa_method_params& params);
    fasa_stats stats() const;
    void reset_stats();

    // Queries and selections of the next n_steps decode steps; 0: no more.
    void start_tap(int32_t n_steps);
    const Tap* tap() const { return tap_.get(); }
    const KvStore& kv() const { return kv_; }
    // Keys and values of a KV head as floats, dims as in the file: [n][head_dim]; either may be nullptr.
    void read_kv(float* k, float* v, int32_t seq, int32_t layer, int32_t head_kv, int32_t first, int32_t n) const;

   private:
    class CancelPoll;
    class SparseHook;

    std::unique_ptr<Sparsity> make_sparsity(const SelectConfig& select);
    void check_seq(int32_t seq) const;
    void check_tokens(int32_t seq, std::span<const int32_t> tokens) const;
    // Runs one batch and appends it to its sequence. The hidden states stay in activations_.x.
    void run_batch(int32_t seq, std::span<const int32_t> tokens);
    // One token and its logits.
    void step(Rows rows);
    void keep_runs();
    // Until nothing of a batch that failed is under way any more.
    void abandon(int32_t seq, int32_t pos0);
    void count_rows(fasa_stats& stats) const;
    RowCounts row_counts() const;
    // What tells kept runs apart; 0: not to be kept.
    uint64_t run_key(Rows rows) const;
    template <class AfterBatch>
    void run(int32_t seq, std::span<const int32_t> tokens, const Progress& progress, AfterBatch&& after_batch);

    std::shared_ptr<const Model> model_;
    ContextConfig config_;
    fasa_plan plan_;
    KvStore kv_;
    Buffer memory_;         // of the device
    Buffer logits_memory_;  // of the host, and the device reaches it
    Buffer history_memory_;
    std::unique_ptr<Ops> ops_;
    Activations activations_;
    float* logits_;                // [n_score_rows][n_vocab]; row 0 is what logits() shows
    int32_t* history_;             // [n_seq][n_ctx]
    std::vector<int32_t> length_;  // [n_seq]
    int32_t logits_seq_ = -1;      // whose last token the logits follow; -1: none
    bool prefilling_ = false;      // the call in progress brought several tokens: they attend to everything
    std::atomic<bool> cancelled_ = false;
    fasa_stats stats_ = {};
    RowCounts rows_before_;  // when stats_ began
    SelectScratch select_scratch_;
    std::unique_ptr<Sparsity> sparsity_;
    std::unique_ptr<Tap> tap_;
    std::unique_ptr<SparseHook> hook_;
    std::unique_ptr<CancelPoll> poll_;
};

}  // namespace fasa
