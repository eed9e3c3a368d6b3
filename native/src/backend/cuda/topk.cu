#include "backend/cuda/topk.h"

#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/rank.cuh"
#include "base/error.h"

namespace fasa::cuda {
namespace {

constexpr int n_warp = 16, n_thread = 32 * n_warp;
constexpr int n_at_once = 8;                 // words that a warp makes or a thread reads at a time
constexpr int32_t one_block_limit = 8192;    // up to so many positions a block a set does everything
constexpr int32_t positions_a_block = 2048;  // at least, of the blocks that share a set
constexpr int max_blocks = 256;              // two a multiprocessor on the largest GPUs
constexpr int max_listed = 2048;             // positions that are told apart in shared memory
constexpr int n_digit = 256;

static_assert(n_rank_bin == 2 * n_thread && n_rank_sample == 64);

struct TopKTask {
    const float* scores;
    int64_t row_stride;
    Past past;
    Budget budget;
    RankScratch scratch;
    Selection selection;
};

// One set of a task.
struct Row {
    const float* scores;
    int32_t n_pos, n_word;
    uint32_t *sure, *maybe;

    __device__ Row(const TopKTask& task, int set)
        : scores(task.scores + set * task.row_stride),
          n_pos(n_past(task.past)),
          n_word((n_pos + 31) / 32),
          sure(task.scratch.sure + int64_t{set} * task.scratch.n_word),
          maybe(task.scratch.maybe + int64_t{set} * task.scratch.n_word) {}
};

// The bin of the last chosen position.
struct Cut {
    int32_t bin;
    int32_t n_left, n_inside;  // positions to choose in it, and that are in it

    __device__ bool is_whole() const { return n_left == n_inside; }
};

// A better position has a higher value: higher scores first, then lower positions. NaN equals -infinity, -0 equals 0.
__device__ uint64_t value_of(float score, int32_t pos) {
    const uint32_t bits = __float_as_uint(score != score ? -INFINITY : score + 0.0f);
    const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return uint64_t{key} << 32 | ~static_cast<uint32_t>(pos);
}
__device__ int32_t position_of(uint64_t value) { return static_cast<int32_t>(~static_cast<uint32_t>(value)); }

// The sum of x over the threads before this one, and over all; totals [n_warp] in shared memory.
__device__ int exclusive_sum(int x, int* totals, int& total) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int sum = x;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(full_warp, sum, distance);
        if (lane >= distance) sum += before;
    }
    if (lane == 31) totals[warp] = sum;
    __syncthreads();
    int before = 0;
    total = 0;
#pragma unroll
    for (int i = 0; i < n_warp; ++i) {
        if (i < warp) before += totals[i];
        total += totals[i];
    }
    __syncthreads();
    return before + sum - x;
}

// Where n_best positions, counted from the highest bin down, end.
__device__ void find_cut(const uint32_t* histogram, int32_t n_best, Cut* cut, int* totals) {
    const int bin = n_rank_bin - 1 - 2 * threadIdx.x;
    const int here = static_cast<int>(histogram[bin]), below = static_cast<int>(histogram[bin - 1]);
    if (threadIdx.x == 0) *cut = {n_rank_bin, 0, 0};
    int total;
    const int before = exclusive_sum(here + below, totals, total), between = before + here;
    if (before < n_best && n_best <= between) *cut = {bin, n_best - before, here};
    if (between < n_best && n_best <= between + below) *cut = {bin - 1, n_best - between, below};
    __syncthreads();
}

__device__ Bins sample_bins(const Row& row, const Ranked& ranked) {
    const int lane = threadIdx.x % 32;
    if (ranked.end == ranked.first) return bins_for(0, 0);
    return bins_for(row.scores[ranked.sample(lane)], row.scores[ranked.sample(lane + 32)]);
}

__device__ void count_positions(const Row& row, const Ranked& ranked, const Bins& bins, int32_t begin, int32_t end,
                                uint32_t* counts) {
    begin = max(begin, ranked.first);
    end = min(end, ranked.end);
#pragma unroll 8
    for (int32_t pos = begin + static_cast<int32_t>(threadIdx.x); pos < end; pos += n_thread) {
        atomicAdd(&counts[bin_of(row.scores[pos], bins)], 1u);
    }
}

// Words [begin, end) of both masks.
__device__ void make_masks(const Row& row, const Ranked& ranked, const Bins& bins, const Cut& cut, int32_t begin,
                           int32_t end) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_sure = cut.is_whole() ? cut.bin : cut.bin + 1;
    for (int32_t word = begin + warp * n_at_once; word < end; word += n_warp * n_at_once) {
        float score[n_at_once];
#pragma unroll
        for (int i = 0; i < n_at_once; ++i) {
            const int32_t pos = (word + i) * 32 + lane;
            score[i] = pos < row.n_pos ? row.scores[pos] : 0.0f;
        }
        uint32_t sure = 0, maybe = 0;
#pragma unroll
        for (int i = 0; i < n_at_once; ++i) {
            const int32_t pos = (word + i) * 32 + lane;
            const int bin = bin_of(score[i], bins);
            const bool is_ranked = ranked.holds(pos);
            const uint32_t chosen = __ballot_sync(full_warp, is_ranked ? bin >= first_sure : pos < row.n_pos);
            const uint32_t open = __ballot_sync(full_warp, is_ranked && bin == cut.bin && bin < first_sure);
            if (lane == i) {
                sure = chosen;
                maybe = open;
            }
        }
        if (lane < n_at_once && word + lane < end) {
            row.sure[word + lane] = sure;
            row.maybe[word + lane] = maybe;
        }
    }
}

// Calls f for the positions of a mask that other blocks wrote, four words at a time.
template <class F>
__device__ void for_mask(const uint32_t* mask, int32_t n_word, F&& f) {
    for (int32_t word = 4 * static_cast<int32_t>(threadIdx.x); word < n_word; word += 4 * n_thread) {
        const uint4 four = __ldcg(reinterpret_cast<const uint4*>(mask + word));
        const uint32_t bits[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            for (uint32_t left = word + i < n_word ? bits[i] : 0; left; left &= left - 1) {
                f((word + i) * 32 + __ffs(static_cast<int>(left)) - 1);
            }
        }
    }
}

struct Prefix {
    uint64_t value;
    int32_t n_left, n_inside;  // as in Cut
};

// Some value between the n_left-th highest and the next; for_each(f) calls f with all values, which are distinct, by
// all threads of the block together.
template <class ForEach>
__device__ uint64_t last_chosen(ForEach&& for_each, int32_t n_left, uint32_t* counts, Prefix* next) {
    uint64_t value = 0, known = 0;  // the digits so far, and their bits
    for (int shift = 64 - 8;; shift -= 8) {
        if (threadIdx.x < n_digit) counts[threadIdx.x] = 0;
        __syncthreads();
        for_each([&](uint64_t v) {
            if ((v & known) == value) atomicAdd(&counts[v >> shift & (n_digit - 1)], 1u);
        });
        __syncthreads();
        if (threadIdx.x < 32) {
            const int lane = threadIdx.x;
            int count[n_digit / 32], sum = 0;
#pragma unroll
            for (int i = 0; i < n_digit / 32; ++i) {
                sum += count[i] = static_cast<int>(counts[n_digit - 1 - (lane * (n_digit / 32) + i)]);
            }
            int before = sum;
#pragma unroll
            for (int distance = 1; distance < 32; distance *= 2) {
                const int other = __shfl_up_sync(full_warp, before, distance);
                if (lane >= distance) before += other;
            }
            before -= sum;
#pragma unroll
            for (int i = 0; i < n_digit / 32; ++i) {
                const uint64_t digit = n_digit - 1 - (lane * (n_digit / 32) + i);
                if (before < n_left && n_left <= before + count[i]) {
                    *next = {value | digit << shift, n_left - before, count[i]};
                }
                before += count[i];
            }
        }
        __syncthreads();
        value = next->value;
        n_left = next->n_left;
        known |= uint64_t{n_digit - 1} << shift;
        if (n_left == next->n_inside) return value;
    }
}

struct Shared {
    uint64_t listed[max_listed];
    uint32_t counts[n_rank_bin];
    int totals[n_warp];
    int n_listed;
    bool is_last;
    Cut cut;
    Prefix prefix;
};

// Moves the best positions of the cut's bin into the mask of chosen ones.
__device__ void settle_maybe(const Row& row, const Cut& cut, Shared& shared) {
    const auto choose = [&](auto&& for_each) {
        const uint64_t last = last_chosen(for_each, cut.n_left, shared.counts, &shared.prefix);
        for_each([&](uint64_t value) {
            const int32_t pos = position_of(value);
            if (value >= last) atomicOr(&row.sure[pos / 32], 1u << pos % 32);
        });
    };
    if (cut.n_inside > max_listed) {
        choose([&](auto&& f) {
            for_mask(row.maybe, row.n_word, [&](int32_t pos) { f(value_of(row.scores[pos], pos)); });
        });
    } else {
        if (threadIdx.x == 0) shared.n_listed = 0;
        __syncthreads();
        for_mask(row.maybe, row.n_word,
                 [&](int32_t pos) { shared.listed[atomicAdd(&shared.n_listed, 1)] = value_of(row.scores[pos], pos); });
        __syncthreads();
        choose([&](auto&& f) {
            for (int i = threadIdx.x; i < cut.n_inside; i += n_thread) f(shared.listed[i]);
        });
    }
    __syncthreads();
}

// The positions of the mask of chosen ones, ascending.
__device__ void write_positions(const Row& row, int32_t* positions, int32_t* count, int* totals) {
    int n_written = 0;
    for (int32_t tile = 0; tile < row.n_word; tile += n_thread * n_at_once) {
        const int32_t word = tile + static_cast<int32_t>(threadIdx.x) * n_at_once;
        uint32_t mask[n_at_once] = {};
        int n = 0;
#pragma unroll
        for (int i = 0; i < n_at_once; i += 4) {
            if (word + i >= row.n_word) continue;
            const uint4 four = __ldcg(reinterpret_cast<const uint4*>(row.sure + word + i));
            const uint32_t bits[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (word + i + j < row.n_word) mask[i + j] = bits[j];
                n += __popc(mask[i + j]);
            }
        }
        int total;
        int at = n_written + exclusive_sum(n, totals, total);
#pragma unroll
        for (int i = 0; i < n_at_once; ++i) {
            for (uint32_t left = mask[i]; left; left &= left - 1) {
                positions[at++] = (word + i) * 32 + __ffs(static_cast<int>(left)) - 1;
            }
        }
        n_written += total;
    }
    if (threadIdx.x == 0) *count = n_written;
}

__device__ void finish(const TopKTask& task, const Row& row, int set, Shared& shared) {
    const Cut cut = shared.cut;
    if (!cut.is_whole()) settle_maybe(row, cut, shared);
    write_positions(row, task.selection.positions + int64_t{set} * task.selection.capacity, task.selection.count + set,
                    shared.totals);
}

// A block a set.
__global__ void __launch_bounds__(n_thread, 2) topk_one_block_kernel(TopKTask task) {
    __shared__ Shared shared;
    ptx::start_next();
    clear_counts(shared.counts);
    ptx::wait_for_previous();
    const int set = blockIdx.x;
    const Row row(task, set);
    const Ranked ranked(task.budget, row.n_pos);
    const Bins bins = sample_bins(row, ranked);
    __syncthreads();
    count_positions(row, ranked, bins, 0, row.n_pos, shared.counts);
    __syncthreads();
    find_cut(shared.counts, ranked.n_best, &shared.cut, shared.totals);
    make_masks(row, ranked, bins, shared.cut, 0, row.n_word);
    __syncthreads();
    finish(task, row, set, shared);
}

// Words that a block takes of n, one of gridDim.x: from share * blockIdx.x on.
__device__ int32_t share_of(int32_t n_word) {
    constexpr int32_t step = n_at_once;
    return (n_word + gridDim.x * step - 1) / (gridDim.x * step) * step;
}

// Blocks share a set; for scores that were not counted where they were made.
__global__ void __launch_bounds__(n_thread, 2) count_scores_kernel(TopKTask task) {
    __shared__ uint32_t counts[n_rank_bin];
    ptx::start_next();
    clear_counts(counts);
    ptx::wait_for_previous();
    const int set = blockIdx.y;
    const Row row(task, set);
    const Ranked ranked(task.budget, row.n_pos);
    const Bins bins = sample_bins(row, ranked);
    if (blockIdx.x == 0 && threadIdx.x == 0) task.scratch.bins[set] = bins;
    __syncthreads();
    const int32_t share = 32 * share_of(row.n_word), begin = share * static_cast<int32_t>(blockIdx.x);
    count_positions(row, ranked, bins, begin, begin + share, counts);
    __syncthreads();
    add_counts(task.scratch.histogram + int64_t{set} * n_rank_bin, counts);
}

// Blocks share a set; the last one to be done has all masks and finishes.
__global__ void __launch_bounds__(n_thread, 2) topk_kernel(TopKTask task) {
    __shared__ Shared shared;
    ptx::start_next();
    ptx::wait_for_previous();
    const int set = blockIdx.y;
    const Row row(task, set);
    const Ranked ranked(task.budget, row.n_pos);
    uint32_t* histogram = task.scratch.histogram + int64_t{set} * n_rank_bin;
    find_cut(histogram, ranked.n_best, &shared.cut, shared.totals);
    const int32_t share = share_of(row.n_word), begin = share * static_cast<int32_t>(blockIdx.x);
    make_masks(row, ranked, task.scratch.bins[set], shared.cut, begin, min(begin + share, row.n_word));

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) shared.is_last = atomicAdd(&task.scratch.n_done[set], 1u) == gridDim.x - 1;
    __syncthreads();
    if (!shared.is_last) return;
    __threadfence();
    clear_counts(histogram);
    if (threadIdx.x == 0) task.scratch.n_done[set] = 0;
    finish(task, row, set, shared);
}

}  // namespace

bool counts_first(int32_t n_pos_max) { return n_pos_max > one_block_limit; }

RankScratch RankScratch::take(Arena& arena, int32_t n_set, int32_t n_ctx) {
    const size_t n = static_cast<size_t>(n_set);
    RankScratch s;
    s.n_word = (n_ctx + 32 * n_at_once - 1) / (32 * n_at_once) * n_at_once;
    s.histogram = arena.take<uint32_t>(n * n_rank_bin);
    s.n_done = arena.take<uint32_t>(n);
    s.bins = arena.take<Bins>(n);
    s.sure = arena.take<uint32_t>(n * static_cast<size_t>(s.n_word));
    s.maybe = arena.take<uint32_t>(n * static_cast<size_t>(s.n_word));
    return s;
}

void RankScratch::clear(int32_t n_set, cudaStream_t stream) const {
    const size_t n_bytes = static_cast<size_t>(n_set) * sizeof(uint32_t);
    check(cudaMemsetAsync(histogram, 0, n_bytes * n_rank_bin, stream), "clearing the counts of scores");
    check(cudaMemsetAsync(n_done, 0, n_bytes, stream), "clearing the counts of scores");
}

void topk(Selection& selection, const float* scores, int64_t row_stride, const Past& past, const Budget& budget,
          const RankScratch& scratch, bool counted, cudaStream_t stream) {
    TopKTask task = {scores, row_stride, past, budget, scratch, selection};
    if (budget.keep > selection.capacity) {
        if (counted)
            fail(FASA_ERROR_ARGUMENT, "%d positions were to be kept in lists of %d", budget.keep, selection.capacity);
        task.budget.keep = selection.capacity;
    }
    const unsigned n_set = static_cast<unsigned>(selection.n_set);
    Launch how = {.name = "topk", .grid = dim3(n_set), .block = dim3(n_thread), .stream = stream, .overlap = true};
    if (!counts_first(past.n_pos_max)) return launch(how, topk_one_block_kernel, task);
    const int most = std::max(1, max_blocks / selection.n_set);
    const int n_block = std::clamp((past.n_pos_max + positions_a_block - 1) / positions_a_block, 1, most);
    how.grid = dim3(static_cast<unsigned>(n_block), n_set);
    if (!counted) {
        how.name = "count_scores";
        launch(how, count_scores_kernel, task);
        how.name = "topk";
    }
    launch(how, topk_kernel, task);
}

}  // namespace fasa::cuda
