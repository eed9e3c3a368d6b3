#include "backend/cuda/ops.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <utility>

#include "backend/cuda/baselines.h"
#include "backend/cuda/position.h"
#include "backend/cuda/quantize.h"
#include "backend/cuda/scores.h"
#include "backend/cuda/system.h"
#include "backend/cuda/weights.h"
#include "base/error.h"

namespace fasa::cuda {
namespace {

constexpr int32_t least_bound = 1024;  // of the positions that a kept run serves

// A kept run serves all lengths up to a power of two.
int32_t bound_of(int32_t n_pos, int32_t n_ctx) {
    const uint32_t bound = std::bit_ceil(static_cast<uint32_t>(std::max(n_pos, least_bound)));
    return static_cast<int32_t>(std::min<uint32_t>(bound, static_cast<uint32_t>(n_ctx)));
}

// A sparse and a dense step for every bound.
uint64_t run_bytes(const OpsLimits& limits) {
    if (limits.n_layer == 0) return 0;
    int n_bounds = 1;
    for (int32_t bound = bound_of(1, limits.n_ctx); bound < limits.n_ctx; bound = bound_of(bound + 1, limits.n_ctx)) {
        ++n_bounds;
    }
    return 2 * n_bounds * (graph_bytes + graph_node_bytes * CudaOps::n_launches_max(limits.n_layer));
}

}  // namespace

size_t CudaOps::input_bytes(const OpsLimits& limits) {
    return offsetof(Input, token) + sizeof(int32_t) * static_cast<size_t>(limits.n_batch);
}

LinearPrefill::Limits CudaOps::linear_limits(const OpsLimits& limits) {
    const int64_t most = LinearPrefill::n_unpacked_max;
    return {limits.n_batch, limits.n_in_max, limits.n_weight_max > 0 ? std::min(limits.n_weight_max, most) : most};
}

CudaOps::Memory CudaOps::Memory::take(Arena& arena, const OpsLimits& limits, const GpuInfo& gpu) {
    Memory m;
    m.input = reinterpret_cast<Input*>(arena.take<uint8_t>(input_bytes(limits)));
    m.decode = DecodeScratch::take(arena, limits.n_in_max);
    m.attention = AttentionDecode::Scratch::take(arena, gpu.n_sm, limits.head_dim);
    m.best = AttendBest::Scratch::take(arena);
    m.prefill = PrefillScratch::take(arena, limits);
    m.host_rows = HostRows::Memory::take(arena, limits);
    m.row_cache = RowCache::take(arena, limits);
    m.linear = arena.take<uint8_t>(LinearPrefill::scratch_bytes(linear_limits(limits)));
    m.rank = RankScratch::take(arena, limits.n_head, limits.n_ctx);
    m.observe = ObserveScratch::take(arena, limits);
    return m;
}

size_t CudaOps::device_bytes(const OpsLimits& limits, const GpuInfo& gpu) {
    Arena arena;
    Memory::take(arena, limits, gpu);
    return arena.used();
}

size_t CudaOps::row_cache_bytes(const OpsLimits& limits) {
    Arena arena;
    RowCache::take(arena, limits);
    return arena.used();
}

// The input, and the largest of what on_host is asked for: queries, a list of positions.
size_t CudaOps::host_bytes(const OpsLimits& limits) {
    const int64_t n_read = std::max<int64_t>(int64_t{limits.n_head} * limits.head_dim, limits.n_ctx);
    return (input_bytes(limits) + 63) / 64 * 64 + sizeof(float) * static_cast<size_t>(n_read);
}

OpsBytes CudaOps::n_bytes(const OpsLimits& limits, const GpuInfo& gpu) {
    return {device_bytes(limits, gpu), host_bytes(limits), run_bytes(limits), row_cache_bytes(limits)};
}

CudaOps::CudaOps(const OpsLimits& limits, const GpuInfo& gpu, std::shared_ptr<Account> account)
    : limits_(limits),
      gpu_(gpu),
      run_memory_(account, run_bytes(limits), "graphs of decode steps"),
      device_memory_(device_bytes(limits, gpu), "workspace of the ops", std::move(account)),
      host_memory_(host_bytes(limits), "input of the ops"),
      memory_([&] {
          Arena arena(device_memory_.data());
          return Memory::take(arena, limits, gpu);
      }()),
      input_(static_cast<Input*>(host_memory_.data())),
      read_(static_cast<uint8_t*>(host_memory_.data()) + (input_bytes(limits) + 63) / 64 * 64),
      attention_({gpu.n_sm, gpu.shared_bytes}, memory_.attention),
      best_({gpu.n_sm, gpu.shared_bytes}, memory_.best),
      tuning_(PrefillTuning::of_device()),
      linear_(linear_limits(limits), memory_.linear) {
    if (limits.host_row_values > 0) host_rows_.emplace(memory_.host_rows);
    check(cudaMemsetAsync(device_memory_.data(), 0, device_memory_.n_bytes(), stream_.get()), "clearing the workspace");
    memory_.rank.clear(limits.n_head, stream_.get());
    if (memory_.row_cache.rows) row_cache_.emplace(limits, memory_.row_cache, stream_.get());
    stream_.wait();
}

CudaOps::~CudaOps() { cudaStreamSynchronize(stream_.get()); }

void CudaOps::use_gpu() const { check(cudaSetDevice(gpu_.index), "choosing the GPU"); }

void CudaOps::begin(const Batch& batch) {
    use_gpu();
    batch_ = batch;
    input_->step = {batch.rows.seq, batch.rows.pos0};
    std::copy_n(batch.tokens, batch.rows.n, input_->token);
}

void CudaOps::send_input() {
    const size_t n_bytes = offsetof(Input, token) + sizeof(int32_t) * static_cast<size_t>(batch_.rows.n);
    check(cudaMemcpyAsync(memory_.input, input_, n_bytes, cudaMemcpyHostToDevice, stream_.get()), "sending a batch");
}

int32_t CudaOps::last_length(int32_t n_pos_max) const { return bound_of(n_pos_max, limits_.n_ctx); }

const Graph& CudaOps::kept(uint64_t key, const std::function<void()>& body) {
    n_pos_max_ = last_length(batch_.n_pos_max);
    Graph& graph = runs_[{key, n_pos_max_}];
    if (graph) return graph;
    keeping_ = true;
    try {
        graph = Graph(stream_, [&] {
            send_input();
            body();
            keep_rows();
        });
    } catch (...) {
        keeping_ = false;
        throw;
    }
    keeping_ = false;
    const size_t most = static_cast<size_t>(n_launches_max(limits_.n_layer));
    if (graph.n_nodes() > most) {
        fail(FASA_ERROR, "a decode step has %zu launches, but memory was planned for %zu", graph.n_nodes(), most);
    }
    return graph;
}

void CudaOps::keep(uint64_t key, const std::function<void()>& body) {
    if (key != 0 && !is_synchronous()) kept(key, body);
}

void CudaOps::run(uint64_t key, const std::function<void()>& body) {
    if (key != 0 && !is_synchronous()) return kept(key, body).launch(stream_.get());
    n_pos_max_ = batch_.n_pos_max;
    send_input();
    body();
    keep_rows();
}

void CudaOps::keep_rows() const {
    if (row_cache_ && batch_.rows.n == 1) row_cache_->keep(stream_.get());
}

void CudaOps::wait() {
    use_gpu();
    stream_.wait();
    if (host_rows_) host_rows_->wait();
}

void CudaOps::forget_rows(int32_t seq, int32_t first_pos) {
    if (!row_cache_) return;
    use_gpu();
    row_cache_->forget(seq, first_pos, stream_.get());
}

RowCounts CudaOps::row_counts() {
    RowCounts counts;
    if (row_cache_) {
        use_gpu();
        counts = row_cache_->counts(stream_.get());
    }
    counts.other_bytes = read_bytes_ + (host_rows_ ? host_rows_->n_bytes() : 0);
    return counts;
}

RowCacheView CudaOps::row_cache(const KvView& kv) const {
    return row_cache_ && kv.host_layer >= 0 ? row_cache_->layer(kv.host_layer) : RowCacheView{};
}

void CudaOps::see_rows(const KvView& kv) const {
    if (kv.host_layer >= 0 && !keeping_) host_rows_->settle(stream_.get());
}

const void* CudaOps::read(const void* x, size_t n_bytes) {
    check(cudaMemcpyAsync(read_, x, n_bytes, cudaMemcpyDefault, stream_.get()), "reading from the device");
    stream_.wait();
    return read_;
}

const float* CudaOps::on_host(const float* x, int64_t n) {
    return static_cast<const float*>(read(x, sizeof(float) * static_cast<size_t>(n)));
}

const int32_t* CudaOps::on_host(const int32_t* x, int64_t n) {
    return static_cast<const int32_t*>(read(x, sizeof(int32_t) * static_cast<size_t>(n)));
}

void CudaOps::copy(float* to, const float* from, int64_t n) {
    const size_t n_bytes = sizeof(float) * static_cast<size_t>(n);
    check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, stream_.get()), "copying on the device");
}

void CudaOps::embed(float* x, const WeightView& w) {
    cuda::embed(x, w, memory_.input->token, batch_.rows.n, stream_.get());
}

void CudaOps::linear(const LinearOut* out, int n_products, const LinearIn& in, int n) {
    if (n <= n_decode_max) {
        return linear_decode(out, n_products, {in.x, in.norm, in.eps, {}}, n, memory_.decode, stream_.get());
    }
    const int dim = static_cast<int>(out->w.n_in);
    if (in.norm) rms_norm(in.normed, {}, in.x, in.norm, n, dim, in.eps, stream_.get());
    linear_.run(out, n_products, in.norm ? in.normed : in.x, n, stream_.get());
}

void CudaOps::linear_glu(const LinearOut& gate, const LinearOut& up, const LinearIn& in, int n) {
    if (n <= n_decode_max && !gate.bias && !up.bias && glu_fits(gate.w, up.w)) {
        return linear_glu_decode(gate.y, gate.w, up.w, {in.x, in.norm, in.eps, {}}, n, memory_.decode, stream_.get());
    }
    const LinearOut both[] = {gate, up};
    linear(both, 2, in, n);
    glu(gate.y, {}, gate.y, up.y, n * gate.w.n_out, stream_.get());
}

void CudaOps::rope_store(float* q, const float* k, const float* v, int n_head, const HeadNorm& norm, const KvView& kv,
                         Rows rows) {
    const bool staged = kv.host_layer >= 0 && rows.n > n_decode_max;
    uint16_t* rest = staged ? host_rows_->stage(stream_.get()) : nullptr;
    cuda::rope_store(q, k, v, n_head, batch_.rope, norm, kv, &memory_.input->step, rows.n, stream_.get(), rest);
    if (staged) host_rows_->send(kv, rows, stream_.get());
}

void CudaOps::attend_dense(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows) {
    const Step* step = &memory_.input->step;
    if (rows.n <= n_decode_max) {
        attention_.dense(y, q, n_head, scale, kv, step, rows.n, n_pos_max_, stream_.get(),
                         rows.n == 1 ? row_cache(kv) : RowCacheView{});
        if (rows.n > 1 && kv.host_layer >= 0) {
            read_bytes_ +=
                sizeof(uint16_t) * static_cast<uint64_t>(kv.row_values() * kv.n_head_kv * (rows.pos0 + rows.n));
        }
        return;
    }
    const auto attend = [&](const PrefillRange& range) {
        attend_prefill(y, q, n_head, scale, kv, step, rows.n, n_pos_max_, range, memory_.prefill, tuning_,
                       stream_.get());
    };
    if (kv.host_layer >= 0) {
        host_rows_->for_each_tile(kv, rows, stream_.get(), attend);
    } else {
        attend({});
    }
}

void CudaOps::attend_selected(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t,
                              const Selection& selection) {
    attention_.selected(y, q, n_head, scale, kv, &memory_.input->step, selection,
                        std::min(selection.capacity, n_pos_max_), stream_.get(), row_cache(kv));
}

Past CudaOps::past(int32_t seq, int32_t n_pos) const {
    return {&memory_.input->step, seq, keeping_ ? -1 : n_pos, keeping_ ? n_pos_max_ : n_pos};
}

void CudaOps::token_scores(float* scores, const SetQueries& queries, const KvView& kv, int32_t seq, int32_t n_pos,
                           bool whole_key, const Budget* next) {
    const Past p = past(seq, n_pos);
    if (whole_key) see_rows(kv);
    counted_ = next != nullptr;
    CountFor count;
    if (next) count = {*next, memory_.rank};
    cuda::token_scores(scores, queries, kv, p, whole_key, next ? &count : nullptr, stream_.get());
}

void CudaOps::topk(const float* scores, int32_t n_pos, const Budget& budget, Selection& selection) {
    cuda::topk(selection, scores, limits_.n_ctx, past(batch_.rows.seq, n_pos), budget, memory_.rank,
               std::exchange(counted_, false), stream_.get());
}

void CudaOps::attend_best(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                          int32_t n_pos, const Ranking& ranking, Selection& selection) {
    const BestTask task = {y,
                           q,
                           scale,
                           n_head,
                           ranking.queries.n_set,
                           ranking.scores,
                           kv,
                           past(seq, n_pos),
                           ranking.budget,
                           selection,
                           row_cache(kv)};
    if (best_.takes(task)) {
        token_scores(ranking.scores, ranking.queries, kv, seq, n_pos, ranking.whole_key, nullptr);
        return best_.run(task, stream_.get());
    }
    Ops::attend_best(y, q, n_head, scale, kv, seq, n_pos, ranking, selection);
}

void CudaOps::attention_mass(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv,
                             Rows rows) {
    see_rows(kv);
    cuda::attention_mass(mass, n_set, q, n_head, scale, kv, rows, memory_.observe, stream_.get());
}

void CudaOps::selected_mass(float* mass, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                            const Selection& selection) {
    cuda::selected_mass(mass, q, n_head, scale, kv, past(seq, batch_.n_pos_max), selection, stream_.get());
}

void CudaOps::page_bounds(uint16_t* bounds, const KvView& kv, int32_t seq, int32_t page, int32_t first_page,
                          int32_t n_pos, PageBounds kind) {
    see_rows(kv);
    cuda::page_bounds(bounds, kv, past(seq, n_pos), page, first_page, kind, stream_.get());
}

void CudaOps::key_similarity(float* similarity, const KvView& kv, int32_t seq, int32_t n_pos) {
    see_rows(kv);
    cuda::key_similarity(similarity, kv, past(seq, n_pos), memory_.observe, stream_.get());
}

void CudaOps::clear_scores(float* scores, int n_set, int32_t first, int32_t n) {
    cuda::clear_scores(scores, n_set, limits_.n_ctx, first, n, stream_.get());
}

void CudaOps::keep_listed(float* scores, int32_t n_pos, const Selection& selection) {
    cuda::keep_listed(scores, limits_.n_ctx, n_pos, selection, stream_.get());
}

void CudaOps::average_pages(float* scores, int n_set, int32_t page, int32_t n_pos) {
    cuda::average_pages(scores, n_set, limits_.n_ctx, page, n_pos, stream_.get());
}

void CudaOps::expand_pages(Selection& selection, int32_t page, int32_t n_pos) {
    cuda::expand_pages(selection, page, n_pos, stream_.get());
}

void CudaOps::bound_queries(float* bounds, int n_set, const float* q, int n_head, int head_dim) {
    cuda::bound_queries(bounds, n_set, q, n_head, head_dim, stream_.get());
}

}  // namespace fasa::cuda
