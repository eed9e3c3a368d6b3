// The ops of a context on a GPU. All work of a batch goes to one stream; a decode step is kept as a graph.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "backend/backend.h"
#include "backend/cuda/attend_best.h"
#include "backend/cuda/attention_decode.h"
#include "backend/cuda/attention_prefill.h"
#include "backend/cuda/host_rows.h"
#include "backend/cuda/linear_decode.h"
#include "backend/cuda/linear_prefill.h"
#include "backend/cuda/observe.h"
#include "backend/cuda/row_cache.h"
#include "backend/cuda/topk.h"

namespace fasa::cuda {

struct GpuInfo {
    int index, n_sm;
    size_t shared_bytes;  // a block may have at most, when it asks for it
};

class CudaOps final : public Ops {
   public:
    CudaOps(const OpsLimits& limits, const GpuInfo& gpu, std::shared_ptr<Account> account);
    ~CudaOps() override;
    static OpsBytes n_bytes(const OpsLimits& limits, const GpuInfo& gpu);
    // Launches of a decode step are no more than these: what a graph of it is planned to hold.
    static constexpr int n_launches_max(int n_layer) { return 16 * n_layer + 16; }

    void begin(const Batch& batch) override;
    void run(uint64_t key, const std::function<void()>& body) override;
    void keep(uint64_t key, const std::function<void()>& body) override;
    bool is_keeping() const override { return keeping_; }
    int32_t last_length(int32_t n_pos_max) const override;
    void forget_runs() override { runs_.clear(); }
    void wait() override;
    void forget_rows(int32_t seq, int32_t first_pos) override;
    RowCounts row_counts() override;
    const float* on_host(const float* x, int64_t n) override;
    const int32_t* on_host(const int32_t* x, int64_t n) override;
    void copy(float* to, const float* from, int64_t n) override;

    void prepare(const WeightView& w) override { linear_.add(w, stream_.get()); }
    void embed(float* x, const WeightView& w) override;
    void linear(const LinearOut* out, int n_products, const LinearIn& in, int n) override;
    void linear_glu(const LinearOut& gate, const LinearOut& up, const LinearIn& in, int n) override;
    void rope_store(float* q, const float* k, const float* v, int n_head, const HeadNorm& norm, const KvView& kv,
                    Rows rows) override;
    void attend_dense(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows) override;
    void attend_selected(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                         const Selection& selection) override;
    void token_scores(float* scores, const SetQueries& queries, const KvView& kv, int32_t seq, int32_t n_pos,
                      bool whole_key, const Budget* next) override;
    void topk(const float* scores, int32_t n_pos, const Budget& budget, Selection& selection) override;
    void attend_best(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq, int32_t n_pos,
                     const Ranking& ranking, Selection& selection) override;
    void attention_mass(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv,
                        Rows rows) override;
    void selected_mass(float* mass, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                       const Selection& selection) override;
    void page_bounds(uint16_t* bounds, const KvView& kv, int32_t seq, int32_t page, int32_t first_page, int32_t n_pos,
                     PageBounds kind) override;
    void key_similarity(float* similarity, const KvView& kv, int32_t seq, int32_t n_pos) override;
    void clear_scores(float* scores, int n_set, int32_t first, int32_t n) override;
    void keep_listed(float* scores, int32_t n_pos, const Selection& selection) override;
    void average_pages(float* scores, int n_set, int32_t page, int32_t n_pos) override;
    void expand_pages(Selection& selection, int32_t page, int32_t n_pos) override;
    void bound_queries(float* bounds, int n_set, const float* q, int n_head, int head_dim) override;

   private:
    // What a batch brings to the device, in one copy.
    struct Input {
        Step step;
        int32_t token[1];  // [n_batch]
    };
    struct Memory {
        Input* input;
        DecodeScratch decode;
        AttentionDecode::Scratch attention;
        AttendBest::Scratch best;
        PrefillScratch prefill;
        HostRows::Memory host_rows;
        RowCacheView row_cache;
        uint8_t* linear;
        RankScratch rank;
        ObserveScratch observe;

        static Memory take(Arena& arena, const OpsLimits& limits, const GpuInfo& gpu);
    };
    static size_t device_bytes(const OpsLimits& limits, const GpuInfo& gpu);
    static size_t host_bytes(const OpsLimits& limits);
    static size_t row_cache_bytes(const OpsLimits& limits);  // the part of device_bytes that the cache of rows takes
    static size_t input_bytes(const OpsLimits& limits);
    static LinearPrefill::Limits linear_limits(const OpsLimits& limits);

    void send_input();
    // Ends a decode step.
    void keep_rows() const;
    const Graph& kept(uint64_t key, const std::function<void()>& body);
    // Rows of the cache in host memory are read next.
    void see_rows(const KvView& kv) const;
    // Of a decode step's layer.
    RowCacheView row_cache(const KvView& kv) const;
    void use_gpu() const;
    // The positions up to the row in progress while a step is kept; else those that the caller names.
    Past past(int32_t seq, int32_t n_pos) const;
    const void* read(const void* x, size_t n_bytes);

    OpsLimits limits_;
    GpuInfo gpu_;
    Share run_memory_;  // of runs_
    Stream stream_;
    DeviceBuffer device_memory_;
    PinnedBuffer host_memory_;
    Memory memory_;
    Input* input_;   // on the host
    uint8_t* read_;  // what on_host shows
    AttentionDecode attention_;
    AttendBest best_;
    std::optional<HostRows> host_rows_;
    std::optional<RowCache> row_cache_;
    uint64_t read_bytes_ = 0;  // of rows in host memory, by attention of a few rows
    PrefillTuning tuning_;
    LinearPrefill linear_;
    Batch batch_;
    int32_t n_pos_max_ = 0;
    bool keeping_ = false;
    bool counted_ = false;  // the scores made last were counted for the topk that comes next
    std::map<std::pair<uint64_t, int32_t>, Graph> runs_;  // by key and bound of positions
};

}  // namespace fasa::cuda
