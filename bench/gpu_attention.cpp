// Speed of attention, dense and sparse: a part of bench/gpu_ops.cu.
#include "backend/cuda/attend_best.h"
#include "backend/cuda/attention_decode.h"
#include "backend/cuda/attention_prefill.h"
#include "backend/cuda/scores.h"
#include "backend/cuda/topk.h"
#include "gpu_lab.h"

namespace fasa::bench {
namespace {

class AttentionMemory {
   public:
    explicit AttentionMemory(const Lab& lab)
        : memory_([&] {
              Arena measure;
              cuda::AttentionDecode::Scratch::take(measure, lab.gpu.n_sm, lab.s.head_dim);
              return measure.used();
          }()),
          op([&] {
              Arena arena(memory_.data());
              return cuda::AttentionDecode({lab.gpu.n_sm, lab.gpu.shared_bytes},
                                           cuda::AttentionDecode::Scratch::take(arena, lab.gpu.n_sm, lab.s.head_dim));
          }()) {}

   private:
    Array<uint8_t> memory_;

   public:
    cuda::AttentionDecode op;
};

// Selection among the positions of a cache, as a sparse step does it.
class Chooser {
   public:
    Chooser(const Lab& lab, const ColdCache& cache, int32_t n_ctx, const Budget& budget)
        : n_set_(lab.s.n_head_kv),
          n_ctx_(n_ctx),
          budget_(budget),
          stream_(lab.stream()),
          cache_(cache),
          queries_{cache.q(), nullptr, lab.s.n_head, n_set_},
          scores_(static_cast<size_t>(n_set_) * n_ctx),
          positions_(static_cast<size_t>(n_set_) * budget.keep),
          count_(static_cast<size_t>(n_set_)),
          memory_([&] {
              Arena measure;
              cuda::RankScratch::take(measure, n_set_, n_ctx);
              return measure.used();
          }()) {
        Arena arena(memory_.data());
        scratch_ = cuda::RankScratch::take(arena, n_set_, n_ctx);
        cuda::check(cudaDeviceSynchronize(), "clearing");
        scratch_.clear(n_set_, stream_);
    }

    // `count`: for the choice that follows.
    void score(int layer, bool count) const {
        const cuda::CountFor next{budget_, scratch_};
        cuda::token_scores(scores_.data(), queries_, cache_.layer(layer), past(), false, count ? &next : nullptr,
                           stream_);
    }
    void choose(bool counted) const {
        Selection to = selection();
        cuda::topk(to, scores_.data(), n_ctx_, past(), budget_, scratch_, counted, stream_);
    }
    Selection selection() const { return {positions_.data(), count_.data(), n_set_, budget_.keep}; }
    // What follows the scores in a sparse layer, as one kernel.
    cuda::BestTask best(int layer) const {
        return {cache_.y(),     cache_.q(),          cache_.scale(), queries_.n_head, n_set_,
                scores_.data(), cache_.layer(layer), past(),         budget_,         selection()};
    }
    void attend_best(const cuda::AttendBest& op, int layer) const { op.run(best(layer), stream_); }
    const float* scores() const { return scores_.data(); }
    int64_t n_scores() const { return int64_t{n_set_} * n_ctx_; }

   private:
    cuda::Past past() const { return {cache_.step(), 0, -1, n_ctx_}; }

    int32_t n_set_, n_ctx_;
    Budget budget_;
    cudaStream_t stream_;
    const ColdCache& cache_;
    SetQueries queries_;
    Array<float> scores_;
    Array<int32_t> positions_, count_;
    Array<uint8_t> memory_;
    cuda::RankScratch scratch_;
};

// Many selections of n_set lists that spread `keep` positions over the whole cache: so many that their rows are cold.
class Selections {
   public:
    Selections(int n, int32_t n_set, int32_t keep, int32_t n_ctx)
        : n_set_(n_set),
          keep_(keep),
          positions_([&] {
              std::mt19937 rng(11);
              std::vector<int32_t> all;
              const uint32_t step = static_cast<uint32_t>(n_ctx / keep);
              for (int list = 0; list < n * n_set; ++list) {
                  for (int32_t i = 0; i < keep; ++i) all.push_back(static_cast<int32_t>(i * step + rng() % step));
              }
              return all;
          }()),
          count_(std::vector<int32_t>(static_cast<size_t>(n_set), keep)) {}
    Selection at(int i) const {
        return {positions_.data() + int64_t{i} * n_set_ * keep_, count_.data(), n_set_, keep_};
    }

   private:
    int32_t n_set_, keep_;
    Array<int32_t> positions_, count_;
};

// The same in two kernels, by clusters of several sizes. Says how many selections the bins of scores did not suit.
void measure_attend_best(Lab& lab, const Chooser& chooser, const ColdCache& cache, const std::string& at,
                         const Cost& cost) {
    for (int n_sm = lab.gpu.n_sm; n_sm >= lab.gpu.n_sm / 4; n_sm /= 2) {
        const Array<unsigned> n_slow(std::vector<unsigned>{0});
        const cuda::AttendBest op({n_sm, lab.gpu.shared_bytes}, {n_slow.data()});
        if (!op.takes(chooser.best(0))) {
            std::printf("sparse layer %s: this GPU has no clusters\n", at.c_str());
            return;
        }
        lab.bench.measure("sparse layer", at + ", two kernels on " + std::to_string(n_sm) + " multiprocessors", cost,
                          cache.n_layers(), cache.y(), cache.row_values(), [&](int i) {
                              chooser.score(i, false);
                              chooser.attend_best(op, i);
                          });
        unsigned slow = 0;
        cuda::check(cudaMemcpy(&slow, n_slow.data(), sizeof(slow), cudaMemcpyDeviceToHost), "reading a count");
        if (slow > 0) std::printf("    %u selections took the slow way\n", slow);
    }
}

}  // namespace

void measure_attention(Lab& lab) {
    const Sizes& s = lab.s;
    const AttentionMemory attention(lab);
    for (const int32_t n_ctx : s.contexts) {
        for (const auto& [n_dom, n] : {std::pair{0, 1}, {s.n_dom, 1}, {0, 4}, {0, 8}}) {
            const ColdCache cache(lab, n_ctx, n, n_dom);
            const std::string what = number(n_ctx) + " positions, " + std::to_string(n) + (n == 1 ? " row" : " rows") +
                                     (n_dom > 0 ? ", split cache" : "");
            lab.bench.measure("attend_dense", what, {static_cast<double>(s.kv_bytes(n_ctx)), 0}, cache.n_layers(),
                              cache.y(), n * cache.row_values(), [&](int i) {
                                  attention.op.dense(cache.y(), cache.q(), s.n_head, cache.scale(), cache.layer(i),
                                                     cache.step(), n, n_ctx, lab.stream());
                              });
        }
    }
}

// What a sparse step does in a layer: scores by the dominant dims, the best positions of each KV head, attention to
// them.
void measure_sparse(Lab& lab) {
    const Sizes& s = lab.s;
    const AttentionMemory attention(lab);
    const Budget budget{std::min(256, s.contexts.front() / 2), 4, 32};
    for (const int32_t n_ctx : s.contexts) {
        for (const auto& [type, name] : {std::pair{DomType::int8, "int8"}, {DomType::q4, "q4"}}) {
            const ColdCache cache(lab, n_ctx, 1, s.n_dom, type);
            const Chooser chooser(lab, cache, n_ctx, budget);
            const double scores = 4.0 * static_cast<double>(chooser.n_scores());
            const double dom = static_cast<double>(cache.dom_bytes());
            const std::string at = number(n_ctx) + " positions, " + name;
            lab.bench.measure("token_scores", at, {dom + scores, 0}, cache.n_layers(), chooser.scores(),
                              chooser.n_scores(), [&](int i) { chooser.score(i, false); });
            lab.bench.measure("scores, topk", at, {dom + scores, 0}, cache.n_layers(), chooser.scores(),
                              chooser.n_scores(), [&](int i) {
                                  chooser.score(i, true);
                                  chooser.choose(true);
                              });
        }
        const ColdCache cache(lab, n_ctx, 1, s.n_dom);
        const Chooser chooser(lab, cache, n_ctx, budget);
        const auto attend = [&](int layer, const Selection& selection) {
            attention.op.selected(cache.y(), cache.q(), s.n_head, cache.scale(), cache.layer(layer), cache.step(),
                                  selection, budget.keep, lab.stream());
        };
        const std::string at = number(n_ctx) + " positions";
        const int n = cache.n_layers();
        const double dom = 2.0 * s.n_head_kv * n_ctx * s.n_dom, scores = 4.0 * static_cast<double>(chooser.n_scores()),
                     kept = 4.0 * s.n_head_kv * budget.keep * s.head_dim;
        lab.bench.measure("token_scores", at, {dom + scores, 0}, n, chooser.scores(), chooser.n_scores(),
                          [&](int i) { chooser.score(i, false); });
        lab.bench.measure("topk", at + ", not counted before", {scores, 0}, n, nullptr, 0,
                          [&](int) { chooser.choose(false); });
        lab.bench.measure("scores, topk", at, {dom + scores, 0}, n, chooser.scores(), chooser.n_scores(), [&](int i) {
            chooser.score(i, true);
            chooser.choose(true);
        });
        const Selections selections(s.n_calls_max, s.n_head_kv, budget.keep, n_ctx);
        const std::string lists = std::to_string(s.n_head_kv) + " x " + std::to_string(budget.keep);
        lab.bench.measure("attend_selected", lists + " of " + at, {kept, 0}, s.n_calls_max, cache.y(),
                          cache.row_values(), [&](int i) { attend(i % n, selections.at(i)); });
        lab.bench.measure("sparse layer", at + ", in three kernels", {dom + kept, 0}, n, cache.y(), cache.row_values(),
                          [&](int i) {
                              chooser.score(i, true);
                              chooser.choose(true);
                              attend(i, chooser.selection());
                          });
        measure_attend_best(lab, chooser, cache, at, {dom + kept, 0});
    }
}

void measure_attend_prefill(Lab& lab) {
    const Sizes& s = lab.s;
    const int n = *std::max_element(s.prefill_rows.begin(), s.prefill_rows.end());
    const auto tuning = cuda::PrefillTuning::of_device();
    for (const int32_t n_ctx : s.contexts) {
        const OpsLimits limits{n, s.n_embd, s.n_head, s.n_head_kv, s.head_dim, n_ctx};
        Arena measure;
        cuda::PrefillScratch::take(measure, limits);
        const Array<uint8_t> memory(measure.used());
        Arena arena(memory.data());
        const auto scratch = cuda::PrefillScratch::take(arena, limits);
        for (const int n_dom : {0, s.n_dom}) {
            const ColdCache cache(lab, n_ctx, n, n_dom);
            // A row looks back on n_ctx - n / 2 positions in the mean: a product with keys, one with values.
            const double flop = 4.0 * s.n_head * s.head_dim * n * (n_ctx - 0.5 * n + 0.5);
            lab.bench.measure("attend_prefill",
                              std::to_string(n) + " rows at " + number(n_ctx) + (n_dom > 0 ? ", split cache" : ""),
                              {0, flop}, 1, cache.y(), n * cache.row_values(), [&](int i) {
                                  cuda::attend_prefill(cache.y(), cache.q(), s.n_head, cache.scale(), cache.layer(i),
                                                       cache.step(), n, n_ctx, {}, scratch, tuning, lab.stream());
                              });
        }
    }
}

}  // namespace fasa::bench
