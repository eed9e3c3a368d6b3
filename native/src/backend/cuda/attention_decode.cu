#include "backend/cuda/attention_decode.h"

#include <algorithm>

#include "backend/cuda/attention_decode_any.cuh"
#include "backend/cuda/attention_decode_mma.cuh"
#include "base/error.h"

namespace fasa::cuda {
namespace {

using decode::Args, decode::max_queries, decode::max_warps, decode::n_tile;

constexpr size_t static_shared = 2048;  // at least what the kernels have besides their dynamic memory
constexpr float log2_e = 1.4426950408889634f;

struct Kernel {
    int head_dim;       // at most, for the kernels of any head_dim
    bool wide;          // rows of the cache are whole 16-byte words
    int n_query;        // of a unit
    size_t warp_bytes;  // dynamic shared memory of a warp
    void (*body)(Args);
};

template <int head_dim, int n_set, bool wide>
constexpr Kernel on_tensor_cores = {head_dim, wide, 8 * n_set, decode::Ring<head_dim>::n_bytes,
                                    decode::attend<head_dim, n_set, wide>};

// Those that take more queries at once come later.
const Kernel kernels[] = {
    on_tensor_cores<64, 1, true>,   on_tensor_cores<64, 2, true>,   on_tensor_cores<80, 1, true>,
    on_tensor_cores<80, 2, true>,   on_tensor_cores<96, 1, true>,   on_tensor_cores<96, 2, true>,
    on_tensor_cores<128, 1, true>,  on_tensor_cores<128, 2, true>,  on_tensor_cores<256, 1, true>,
    on_tensor_cores<64, 1, false>,  on_tensor_cores<64, 2, false>,  on_tensor_cores<80, 1, false>,
    on_tensor_cores<80, 2, false>,  on_tensor_cores<96, 1, false>,  on_tensor_cores<96, 2, false>,
    on_tensor_cores<128, 1, false>, on_tensor_cores<128, 2, false>, on_tensor_cores<256, 1, false>,
};
const Kernel any_kernels[] = {
    {64, false, 1, 64 * sizeof(float), decode::attend_any<1, 2>},
    {256, false, 1, 256 * sizeof(float), decode::attend_any<4, 2>},
    {max_head_dim, false, 1, max_head_dim * sizeof(float), decode::attend_any<max_head_dim / 64, 2>},
};
// For rows that are no pairs.
const Kernel odd_kernel = {max_head_dim, false, 1, max_head_dim * sizeof(float),
                           decode::attend_any<max_head_dim / 32, 1>};

int warps_that_fit(const Kernel& kernel, size_t shared_bytes) {
    const size_t room = shared_bytes > static_shared ? shared_bytes - static_shared : 0;
    return static_cast<int>(std::min<size_t>(max_warps, room / kernel.warp_bytes));
}

// The smallest one that takes all queries of a set at once, else the largest.
const Kernel& kernel_for(const KvView& kv, bool wide, int n_query, size_t shared_bytes) {
    const int head_dim = kv.head_dim;
    if (head_dim <= max_head_dim && (head_dim % 2 != 0 || kv.n_dom % 2 != 0)) return odd_kernel;
    const Kernel* found = nullptr;
    for (const Kernel& kernel : kernels) {
        if (kernel.head_dim != head_dim || kernel.wide != wide || warps_that_fit(kernel, shared_bytes) == 0) continue;
        if (!found || found->n_query < n_query) found = &kernel;
    }
    if (found) return *found;
    for (const Kernel& kernel : any_kernels) {
        if (head_dim <= kernel.head_dim) return kernel;
    }
    fail(FASA_ERROR_ARGUMENT, "attention: head_dim %d, of at most %d", head_dim, max_head_dim);
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

int divide_up(int a, int b) { return (a + b - 1) / b; }

}  // namespace

struct AttentionDecode::Work {
    const char* name;
    float* y;
    const float* q;
    int n_head;
    float scale;
    const KvView& kv;
    const Step* step;
    Selection selection;
    int n_set, n, n_pos_max;
    cudaStream_t stream;
    const RowCacheView& cache;
};

AttentionDecode::Scratch AttentionDecode::Scratch::take(Arena& arena, int n_sm, int head_dim) {
    const size_t n_state = static_cast<size_t>(n_sm) * max_queries;
    return {arena.take<float>(n_state * static_cast<size_t>(head_dim)), arena.take<SoftmaxState>(n_state),
            arena.take<unsigned>(static_cast<size_t>(n_sm))};
}

AttentionDecode::AttentionDecode(const Gpu& gpu, const Scratch& scratch) : gpu_(gpu), scratch_(scratch) {
    for (const Kernel& kernel : kernels) {
        const int n_warps = warps_that_fit(kernel, gpu.shared_bytes);
        if (n_warps) allow_shared(kernel.body, static_cast<size_t>(n_warps) * kernel.warp_bytes, "attention of decode");
    }
}

void AttentionDecode::dense(float* y, const float* q, int n_head, float scale, const KvView& kv, const Step* step,
                            int n, int n_pos_max, cudaStream_t stream, const RowCacheView& cache) const {
    start({"attend_dense", y, q, n_head, scale, kv, step, {}, kv.n_head_kv, n, n_pos_max, stream, cache});
}

void AttentionDecode::selected(float* y, const float* q, int n_head, float scale, const KvView& kv, const Step* step,
                               const Selection& selection, int n_pos_max, cudaStream_t stream,
                               const RowCacheView& cache) const {
    start({"attend_selected", y, q, n_head, scale, kv, step, selection, selection.n_set, 1, n_pos_max, stream, cache});
}

void AttentionDecode::start(const Work& w) const {
    const KvView& kv = w.kv;
    if (w.n < 1 || w.n_set < 1 || w.n_head % w.n_set != 0 || w.n_set % kv.n_head_kv != 0 || kv.head_dim < 1) {
        fail(FASA_ERROR_ARGUMENT, "%s: %d rows, %d query heads in %d sets over %d KV heads, head_dim %d (%d dominant)",
             w.name, w.n, w.n_head, w.n_set, kv.n_head_kv, kv.head_dim, kv.n_dom);
    }
    const int group = w.n_head / w.n_set, n_query = w.n * group;
    const bool wide = kv.n_dom % 8 == 0 && kv.head_dim % 8 == 0 && is_aligned(kv.dom) && is_aligned(kv.rest);
    const Kernel& kernel = kernel_for(kv, wide, n_query, gpu_.shared_bytes);

    // As many blocks as run at once share the work. Short caches take small blocks, which fetch through more SMs.
    const int n_part = divide_up(n_query, kernel.n_query), n_unit = w.n_set * n_part,
              n_tiles = divide_up(std::max(w.n_pos_max, 1), n_tile);
    int n_warps = warps_that_fit(kernel, gpu_.shared_bytes);
    if (n_unit * divide_up(n_tiles, max_warps / 2) <= gpu_.n_sm) n_warps = std::min(n_warps, max_warps / 2);
    const int n_split = std::clamp(gpu_.n_sm / n_unit, 1, divide_up(n_tiles, n_warps));

    const Args args = {.y = w.y,
                       .q = w.q,
                       .kv = kv,
                       .step = w.step,
                       .selection = w.selection,
                       .n_head = w.n_head,
                       .group = group,
                       .sets_a_head = w.n_set / kv.n_head_kv,
                       .n = w.n,
                       .n_unit_queries = kernel.n_query,
                       .scale = w.scale * log2_e,
                       .scratch = scratch_,
                       .cache = w.cache};
    const size_t weights = static_cast<size_t>(n_split) * max_queries * sizeof(float);
    launch({.name = w.name,
            .grid = dim3(static_cast<unsigned>(n_split), static_cast<unsigned>(n_part), static_cast<unsigned>(w.n_set)),
            .block = dim3(static_cast<unsigned>(n_warps) * 32),
            .shared_bytes = std::max(static_cast<size_t>(n_warps) * kernel.warp_bytes, weights),
            .stream = w.stream,
            .overlap = true},
           kernel.body, args);
}

}  // namespace fasa::cuda
