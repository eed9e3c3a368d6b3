// The narrow interface between the forward pass and a device: a dozen coarse ops, each leaving room for fusion behind
// it. Activations are float, rows contiguous; shapes are in the comments, slowest dimension first.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "backend/views.h"
#include "base/buffer.h"

namespace fasa {

// The largest shapes that the ops of a context will see; all workspace follows from them.
struct OpsLimits {
    int n_batch;       // rows in one call
    int64_t n_in_max;  // values in an input row of `linear`
    int n_head, n_head_kv, head_dim;
    int n_ctx;
    int64_t n_weight_max = 0;     // values of the largest matrix; 0: unknown
    int32_t host_row_values = 0;  // values of a row of the KV cache in host memory; 0: none lie there
    int n_layer = 0;              // of the model, for runs that are kept; 0: none are
    // Of the KV cache in host memory: layers whose rows lie there, and rows that a cache on the device has of every
    // such layer and KV head.
    int32_t n_host_layer = 0, n_cache_row = 0;
    int32_t n_seq = 1;
};

// What ops take.
struct OpsBytes {
    uint64_t device, host;
    uint64_t runs;           // device memory for the runs that they keep
    uint64_t row_cache = 0;  // the part of `device` that a cache of rows takes
};

// Rows of the KV cache in host memory that decode steps asked the device's cache of rows for, and the bytes of rows
// that other steps brought to the device.
struct RowCounts {
    uint64_t hit = 0, missed = 0, other_bytes = 0;
};

// Ops on one device with their workspace, taken once. Used by one thread at a time. They may return before they are
// done; each sees what those before it did. Pointers are to memory of the device, or host memory that it can reach.
class Ops {
   public:
    virtual ~Ops() = default;

    // What the ops of the next run work on.
    virtual void begin(const Batch& batch) = 0;
    // Runs ops that body calls. A device may keep what they came to, and do it again, for the begun batch, when a run
    // of the same key comes: so body must call the same ops with the same arguments, rows apart, whenever it has that
    // key. Key 0: never kept.
    virtual void run(uint64_t key, const std::function<void()>& body) = 0;
    // Keeps what body calls for the begun batch, unless it is kept already, without doing it. A later run of this key
    // then finds it. Where nothing is ever kept, nothing happens.
    virtual void keep(uint64_t key, const std::function<void()>& body) = 0;
    // Whether ops that are called now are being kept: nothing else may happen on the device meanwhile.
    virtual bool is_keeping() const { return false; }
    // What is kept of a run serves batches whose n_pos_max is greater too, up to this.
    virtual int32_t last_length(int32_t n_pos_max) const = 0;
    // Forgets what was kept of runs.
    virtual void forget_runs() = 0;
    // Returns when everything asked for is done.
    virtual void wait() = 0;
    // Rows of the KV cache from a position on of a sequence are not what they were.
    virtual void forget_rows(int32_t /*seq*/, int32_t /*first_pos*/) {}
    // So far.
    virtual RowCounts row_counts() { return {}; }
    // n values for the host to read, once everything asked for is done; valid until the next call of an op.
    virtual const float* on_host(const float* x, int64_t n) = 0;
    virtual const int32_t* on_host(const int32_t* x, int64_t n) = 0;
    // to[0 .. n) = from[0 .. n), both on the device.
    virtual void copy(float* to, const float* from, int64_t n) = 0;

    // x[i] = row token[i] of w for the tokens of the batch. x [n][n_embd]
    virtual void embed(float* x, const WeightView& w) = 0;
    // Does what has to be done once for a matrix of `linear`, which else its first product does.
    virtual void prepare(const WeightView& w) = 0;
    // Products that share their input of n rows: y = x wᵀ (+ bias) (+ y).
    virtual void linear(const LinearOut* out, int n_products, const LinearIn& in, int n) = 0;
    // gate.y = silu(gate) * up, products of the same input. up.y may be written too.
    virtual void linear_glu(const LinearOut& gate, const LinearOut& up, const LinearIn& in, int n) = 0;
    // Norms and rotates q [n][n_head][head_dim] in place and k [n][n_head_kv][head_dim] into the cache with v (same
    // shape); both get their dims in the order of the cache. By the angles of the batch.
    virtual void rope_store(float* q, const float* k, const float* v, int n_head, const HeadNorm& norm,
                            const KvView& kv, Rows rows) = 0;
    // Causal attention of rotated q over everything cached up to each row's position. y, q [n][n_head][head_dim]
    virtual void attend_dense(float* y, const float* q, int n_head, float scale, const KvView& kv, Rows rows) = 0;
    // The same for one row over the positions of a selection, whose sets are the KV heads or the query heads.
    virtual void attend_selected(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                                 const Selection& selection) = 0;
    // scores[set][pos] = the set's query · key of pos for the first n_pos positions; scores [n_set][n_ctx], sets spread
    // evenly over the KV heads. Only the dominant dims count unless whole_key. next: what topk will be asked of these
    // scores, or nullptr.
    virtual void token_scores(float* scores, const SetQueries& queries, const KvView& kv, int32_t seq, int32_t n_pos,
                              bool whole_key, const Budget* next) = 0;
    // The `keep` best positions below n_pos of every row of scores [n_set][n_ctx]; the lower position first among
    // equals. NaN counts as the lowest.
    virtual void topk(const float* scores, int32_t n_pos, const Budget& budget, Selection& selection) = 0;
    // token_scores of a ranking for the first n_pos positions, topk and attend_selected, as one: for the row of
    // position n_pos - 1.
    virtual void attend_best(float* y, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                             int32_t n_pos, const Ranking& ranking, Selection& selection) {
        token_scores(ranking.scores, ranking.queries, kv, seq, n_pos, ranking.whole_key, &ranking.budget);
        topk(ranking.scores, n_pos, ranking.budget, selection);
        attend_selected(y, q, n_head, scale, kv, seq, selection);
    }
    // mass[set][pos] += the softmax weights that the rows' queries give to pos, summed over rows and the set's heads:
    // rotated q [n][n_head][head_dim] over everything cached up to each row's position. mass [n_set][n_ctx], the sets
    // being the KV heads or the query heads.
    virtual void attention_mass(float* mass, int n_set, const float* q, int n_head, float scale, const KvView& kv,
                                Rows rows) = 0;
    // The same for one row, each set over its positions of a selection.
    virtual void selected_mass(float* mass, const float* q, int n_head, float scale, const KvView& kv, int32_t seq,
                               const Selection& selection) = 0;
    // High and low bounds of the keys in pages of `page` positions, from first_page to the last one below n_pos. bounds
    // [n_head_kv][pages of n_ctx][2][head_dim], half precision, dims in the order of the cache.
    virtual void page_bounds(uint16_t* bounds, const KvView& kv, int32_t seq, int32_t page, int32_t first_page,
                             int32_t n_pos, PageBounds kind) = 0;
    // similarity[head_kv][pos] = mean cosine between the key at pos and the others below n_pos; [n_head_kv][n_ctx]. A
    // key of zeros is similar to none.
    virtual void key_similarity(float* similarity, const KvView& kv, int32_t seq, int32_t n_pos) = 0;

    // Small steps of single methods, on scores [n_set][n_ctx].
    // scores[set][first .. first + n) = 0
    virtual void clear_scores(float* scores, int n_set, int32_t first, int32_t n) = 0;
    // scores[set][pos] = -infinity for the positions below n_pos that are not in the set's list.
    virtual void keep_listed(float* scores, int32_t n_pos, const Selection& selection) = 0;
    // scores[set][i] = the mean over page i, for all pages of `page` positions that begin below n_pos.
    virtual void average_pages(float* scores, int n_set, int32_t page, int32_t n_pos) = 0;
    // Lists of pages, that of position n_pos - 1 the last of each, become lists of their positions.
    virtual void expand_pages(Selection& selection, int32_t page, int32_t n_pos) = 0;
    // bounds[set] = the sums of the set's heads' max(q, 0), then of min(q, 0): [n_set][2][head_dim].
    virtual void bound_queries(float* bounds, int n_set, const float* q, int n_head, int head_dim) = 0;
};

class Device {
   public:
    virtual ~Device() = default;
    virtual std::string name() const = 0;  // "cpu (avx512, 8 threads)"
    virtual int n_threads() const = 0;
    // Cached positions below which sparse attention costs more than it saves (docs/performance.md); kv_bytes: of a
    // position in a layer.
    virtual int32_t break_even(uint64_t kv_bytes) const = 0;

    // Zeroed memory of the device, and host memory that its ops reach too; throw MEMORY naming `what`.
    virtual Buffer buffer(size_t n_bytes, const char* what) const = 0;
    virtual Buffer host_buffer(size_t n_bytes, const char* what) const = 0;
    // Bytes between any two kinds of memory; done on return.
    virtual void copy(void* to, const void* from, size_t n_bytes) const = 0;
    // Whether `buffer` is memory apart from the host's.
    virtual bool has_own_memory() const = 0;
    // Bytes that the device itself needs of its memory, outside all buffers.
    virtual uint64_t system_bytes() const = 0;
    // Bytes that there are now for new buffers and for system_bytes, together.
    virtual uint64_t memory_available() const = 0;
    // Bytes that a matrix takes on the device; 0: it is used where it lies.
    virtual size_t weight_bytes(const WeightView& w) const = 0;
    // Puts matrices of the file on a device that does not use them where they lie; their views are then for ops. Calls
    // progress with the bytes of the file done since its last call; what it throws ends the upload.
    struct Upload {
        WeightView* w;
        void* to;
    };
    virtual void upload(std::span<const Upload> matrices, const std::function<void(size_t)>& progress) const = 0;

    virtual std::unique_ptr<Ops> make_ops(const OpsLimits& limits) const = 0;
    virtual OpsBytes ops_bytes(const OpsLimits& limits) const = 0;
};

std::unique_ptr<Device> make_cpu_device(int n_threads);
#if FASA_HAS_CUDA
// How many GPUs can be seen; when none, why, in `reason`.
int n_visible_gpus(std::string* reason);
// Throws ARGUMENT for an index that is not there, DEVICE.
fasa_gpu_info describe_gpu(int index);
// memory_max: bytes of its memory that may be taken, 0: all that is free. Throws ARGUMENT for an index that is not
// there, DEVICE when the GPU cannot be used.
std::unique_ptr<Device> make_cuda_device(int index, int n_threads, uint64_t memory_max);
// A GPU with so much memory that is not there: for plans only.
std::unique_ptr<Device> make_assumed_gpu(int n_threads, uint64_t memory);
#endif

}  // namespace fasa
