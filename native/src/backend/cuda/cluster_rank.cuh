// Exact selection of a set's best positions by the blocks of a cluster, each of which has a share of the positions;
// what they must know of each other they write into one another's shared memory. One pass over the scores leaves
// candidates, those near the expected cut and above it, which are counted into bins; the counts of all blocks tell in
// which bin the last chosen position lies, and only that bin's few positions, the open ones, are compared. Where the
// bins do not tell them apart (they are far from the scores' distribution, or many scores are equal) the last chosen
// one is found digit by digit instead.
#pragma once

#include <cstdint>

#include "backend/cuda/ptx.cuh"
#include "backend/cuda/rank.cuh"

namespace fasa::cuda::cluster {

inline constexpr int n_warp = 8, n_thread = 32 * n_warp;  // of a block
inline constexpr int max_blocks = 16;                     // of a cluster
inline constexpr int n_bin = 256;                         // as many as a digit has values, and a block threads
inline constexpr int n_even = 128;                        // bins of equal width; those above grow, 16 an octave
inline constexpr int max_open = 512;
inline constexpr int max_candidates = 2048;  // of a block; with more, its share is read again instead
inline constexpr int32_t max_share = 65504;  // positions of a block: counts have 16 bits

// Where a score lies among the bins. Any values give exact selections; good ones give fast ones.
struct Scale {
    float centre, per_unit, base;

    __device__ float place(float score) const { return fmaf(score - centre, per_unit, base); }
};

// Grows with the place. Bin 0 is for what lies below all others, NaN too; it is never counted.
__device__ inline int bin_of(float place) {
    if (!(place >= 1)) return 0;
    if (place < n_even) return static_cast<int>(place);
    const uint32_t above = (__float_as_uint(place) - __float_as_uint(static_cast<float>(n_even))) >> 19;
    return static_cast<int>(min(n_even + above, n_bin - 1u));
}
// The lowest place of a bin, so that places from it on are those of this bin and higher ones. NaN past the last bin.
__device__ inline float edge_of(int bin) {
    if (bin >= n_bin) return NAN;
    if (bin <= n_even) return static_cast<float>(bin);
    return __uint_as_float(__float_as_uint(static_cast<float>(n_even)) + (static_cast<uint32_t>(bin - n_even) << 19));
}

// How many mean deviations above the mean the best of normally distributed scores begin [Abramowitz-Stegun 26.2.23].
__device__ inline float expected_cut(const Ranked& ranked) {
    const int32_t n = max(ranked.end - ranked.first, 1);
    const float share = static_cast<float>(ranked.n_best) / static_cast<float>(n), tail = fminf(share, 1 - share);
    const float u = sqrtf(-2 * logf(fmaxf(tail, 1e-9f)));
    const float z =
        u - (2.515517f + u * (0.802853f + u * 0.010328f)) / (1 + u * (1.432788f + u * (0.189269f + u * 0.001308f)));
    return 1.2533f * (share < 0.5f ? z : -z);
}

// The even bins reach from 1.5 mean deviations below the expected cut to 2.5 above, by a sample of the scores, two a
// lane; all threads of all blocks get the same.
__device__ inline Scale scale_for(float a, float b, float cut) {
    constexpr float per_deviation = 32, below = 1.5f;
    const Bins bins = bins_for(a, b);
    const float per_unit = bins.per_unit * (per_deviation / bins_per_deviation);
    return {bins.centre, per_unit, (below - cut) * per_deviation};
}

// The bin, or value of a digit, of the last chosen position.
struct Cut {
    int32_t bin;               // -1: the counted bins hold too few
    int32_t n_left, n_inside;  // positions to choose in it, and that are in it
    int32_t n_above_before;    // positions above it in the blocks before this one
    int32_t n_inside_before;   // and in it
    __device__ bool is_whole() const { return n_left == n_inside; }
};

// What blocks send to each other, each kind to a mailbox of its own.
enum Mail { counts_mail, other_counts_mail, open_mail, chosen_mail, merge_mail, n_mail };

// At the start of a block's dynamic shared memory.
struct Shared {
    uint16_t counts_of_blocks[2][max_blocks][n_bin];  // in turns, so that nobody overwrites what another still reads
    uint64_t open[max_open];                          // of all blocks, in any order
    uint32_t counts[n_bin];
    uint16_t candidates[max_candidates];  // in the share, in any order
    uint64_t chosen_of_blocks[max_blocks];
    uint64_t totals[n_warp];
    uint64_t mailbox[n_mail];
    Cut cut;
    int32_t n_candidates;           // more than max_candidates: not listed
    int32_t n_open, n_open_before;  // of this block; chosen ones in blocks before this one
};

// A block's share of a set.
struct Share {
    const float* scores;  // [n] as far as there are positions
    uint32_t* mask;       // [n / 32], shared memory: the chosen ones of the ranked positions
    int32_t begin, n;     // its first position, and how many, a multiple of 32
    int32_t n_pos;        // of the set
    unsigned rank, n_block;

    __device__ void choose(int32_t pos) const { atomicOr(&mask[(pos - begin) / 32], 1u << (pos - begin) % 32); }
    // f(score, pos) for every ranked position of the share, by the block.
    template <class F>
    __device__ void for_ranked(const Ranked& ranked, F f) const {
        const int32_t first = max(ranked.first - begin, 0), end = min(ranked.end - begin, n);
        for (int32_t i = first + static_cast<int32_t>(threadIdx.x); i < end; i += n_thread) f(scores[i], begin + i);
    }
};

// Before anything else, by the block; then its threads must meet.
__device__ inline void clear(Shared& shared, const Share& share) {
    shared.counts[threadIdx.x] = 0;
    if (threadIdx.x == 0) shared.n_candidates = shared.n_open = shared.n_open_before = 0;
    for (int32_t i = threadIdx.x; i < share.n / 32; i += n_thread) share.mask[i] = 0;
}

// The sum of x over the threads before this one, and over all. Both halves of x are sums of their own.
__device__ inline uint64_t exclusive_sum(uint64_t x, uint64_t* totals, uint64_t& total) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint64_t sum = x;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const uint64_t before = __shfl_up_sync(full_warp, sum, distance);
        if (lane >= distance) sum += before;
    }
    if (lane == 31) totals[warp] = sum;
    __syncthreads();
    uint64_t before = 0;
    total = 0;
#pragma unroll
    for (int i = 0; i < n_warp; ++i) {
        if (i < warp) before += totals[i];
        total += totals[i];
    }
    __syncthreads();
    return before + sum - x;
}

// By one thread, before it arrives at the cluster's barrier.
__device__ inline void open_mailboxes(Shared& shared) {
    for (uint64_t& box : shared.mailbox) ptx::open_mailbox(&box);
}

// This block's counts go to all blocks; those of all come, and meanwhile() is called. Before it, the block's threads
// must have met. Calls are numbered from 0, and take turns in where the counts go.
template <class Meanwhile>
__device__ void share_counts(Shared& shared, int call, const Share& share, Meanwhile meanwhile) {
    const int turn = call % 2;
    uint64_t* const box = &shared.mailbox[counts_mail + turn];
    if (threadIdx.x == 0) ptx::expect_mail(box, share.n_block * sizeof(shared.counts_of_blocks[0][0]));
    constexpr int n_word = n_bin / 8;
    for (int i = threadIdx.x; i < static_cast<int>(share.n_block) * n_word; i += n_thread) {
        const uint32_t* c = shared.counts + i % n_word * 8;
        uint16_t* to = &shared.counts_of_blocks[turn][share.rank][i % n_word * 8];
        ptx::send(reinterpret_cast<uint4*>(to),
                  make_uint4(c[0] | c[1] << 16, c[2] | c[3] << 16, c[4] | c[5] << 16, c[6] | c[7] << 16), box,
                  static_cast<uint32_t>(i / n_word));
    }
    meanwhile();
    ptx::wait_for_mail(box, call / 2);
}

// Where n_best positions of the cluster, counted from the highest bin down, end.
__device__ inline Cut find_cut(Shared& shared, int call, int32_t n_best, const Share& share) {
    const int bin = n_bin - 1 - static_cast<int>(threadIdx.x);
    uint32_t here = 0, before = 0;
#pragma unroll
    for (unsigned block = 0; block < max_blocks; ++block) {
        const uint32_t n = block < share.n_block ? shared.counts_of_blocks[call % 2][block][bin] : 0;
        here += n;
        if (block < share.rank) before += n;
    }
    if (threadIdx.x == 0) shared.cut = {-1, 0, 0, 0, 0};
    uint64_t total;
    const uint64_t above = exclusive_sum(uint64_t{before} << 32 | here, shared.totals, total);
    const int32_t n_above = static_cast<int32_t>(above), n_here = static_cast<int32_t>(here);
    if (n_above < n_best && n_best <= n_above + n_here) {
        shared.cut = {bin, n_best - n_above, n_here, static_cast<int32_t>(above >> 32), static_cast<int32_t>(before)};
    }
    __syncthreads();
    return shared.cut;
}

// f(score, pos) for the candidates, or for every ranked position where they are too many to be listed.
template <class F>
__device__ void for_candidates(const Shared& shared, const Ranked& ranked, const Share& share, F f) {
    if (shared.n_candidates > max_candidates) return share.for_ranked(ranked, f);
    for (int32_t i = threadIdx.x; i < shared.n_candidates; i += n_thread) {
        const int32_t at = shared.candidates[i];
        f(share.scores[at], share.begin + at);
    }
}

// Lists the candidates of the share, scores with places from 1 on, and counts those that are ranked by their bins. By
// the block.
__device__ inline Scale count_candidates(Shared& shared, const Ranked& ranked, const Share& share) {
    constexpr int n_ahead = 8, n_tile = 4 * n_thread * n_ahead;
    float4 x[n_ahead];
    const auto place_of = [&](int k) { return 4 * (k * n_thread + static_cast<int32_t>(threadIdx.x)); };
    const auto load = [&](int32_t tile) {
#pragma unroll
        for (int k = 0; k < n_ahead; ++k) {
            const int32_t i = tile + place_of(k);
            const bool is_valid = i < share.n && share.begin + i < share.n_pos;
            x[k] = is_valid ? *reinterpret_cast<const float4*>(share.scores + i) : make_float4(NAN, NAN, NAN, NAN);
        }
    };
    load(0);
    const float* all = share.scores - share.begin;
    const int lane = threadIdx.x % 32;
    const Scale scale = scale_for(all[ranked.sample(lane)], all[ranked.sample(lane + 32)], expected_cut(ranked));
    for (int32_t tile = 0;;) {
        uint32_t found = 0;
#pragma unroll
        for (int k = 0; k < n_ahead; ++k) {
            const float score[4] = {x[k].x, x[k].y, x[k].z, x[k].w};
#pragma unroll
            for (int j = 0; j < 4; ++j) found |= (scale.place(score[j]) >= 1 ? 1u : 0u) << (4 * k + j);
        }
        int32_t at = found ? atomicAdd(&shared.n_candidates, __popc(found)) : 0;
        for (; found; found &= found - 1) {
            const int bit = __ffs(static_cast<int>(found)) - 1;
            const int32_t i = tile + place_of(bit / 4) + bit % 4;
            if (at < max_candidates) shared.candidates[at++] = static_cast<uint16_t>(i);
        }
        tile += n_tile;
        if (tile >= share.n) break;
        load(tile);
    }
    __syncthreads();
    for_candidates(shared, ranked, share, [&](float score, int32_t pos) {
        const int bin = bin_of(scale.place(score));
        if (bin > 0 && ranked.holds(pos)) atomicAdd(&shared.counts[bin], 1u);
    });
    __syncthreads();
    return scale;
}

// A better position has a higher value: higher scores first, then lower positions. NaN equals -infinity, -0 equals 0.
__device__ inline uint64_t value_of(float score, int32_t pos) {
    const uint32_t bits = __float_as_uint(score != score ? -INFINITY : score + 0.0f);
    const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return uint64_t{key} << 32 | ~static_cast<uint32_t>(pos);
}
__device__ inline int32_t position_of(uint64_t value) { return static_cast<int32_t>(~static_cast<uint32_t>(value)); }

// Of the open positions of all blocks, the cut's n_left best join the mask.
__device__ inline void choose_open(Shared& shared, const Cut& cut, const Share& share) {
    for (int i = threadIdx.x; i < cut.n_inside; i += n_thread) {
        const uint64_t mine = shared.open[i];
        int n_better = 0;
#pragma unroll 4
        for (int j = 0; j < cut.n_inside; ++j) n_better += shared.open[j] > mine;
        if (n_better >= cut.n_left) continue;
        const int32_t pos = position_of(mine);
        if (pos < share.begin) {
            atomicAdd(&shared.n_open_before, 1);
        } else if (pos < share.begin + share.n) {
            share.choose(pos);
        }
    }
    __syncthreads();
}

// The value of the n_best-th best position, told digit by digit.
__device__ inline uint64_t last_chosen(Shared& shared, const Ranked& ranked, const Share& share) {
    uint64_t value = 0, known = 0;  // the digits so far, and their bits
    int32_t n_left = ranked.n_best;
    int call = 1;  // of share_counts; choose made the first
    for (int shift = 56;; shift -= 8, ++call) {
        shared.counts[threadIdx.x] = 0;
        __syncthreads();
        share.for_ranked(ranked, [&](float score, int32_t pos) {
            const uint64_t v = value_of(score, pos);
            if ((v & known) == value) atomicAdd(&shared.counts[v >> shift & (n_bin - 1)], 1u);
        });
        __syncthreads();
        share_counts(shared, call, share, [] {});
        const Cut cut = find_cut(shared, call, n_left, share);
        value |= static_cast<uint64_t>(cut.bin) << shift;
        known |= uint64_t{n_bin - 1} << shift;
        n_left = cut.n_left;
        if (cut.is_whole()) return value;
    }
}

// The same for any scores. Returns how many chosen, ranked positions lie in the blocks before this one.
__device__ inline int32_t choose_slowly(Shared& shared, const Ranked& ranked, const Share& share) {
    const uint64_t last = last_chosen(shared, ranked, share);
    int n = 0;
    share.for_ranked(ranked, [&](float score, int32_t pos) {
        if (value_of(score, pos) < last) return;
        share.choose(pos);
        ++n;
    });
    uint64_t total;
    exclusive_sum(static_cast<uint64_t>(n), shared.totals, total);
    uint64_t* const box = &shared.mailbox[chosen_mail];
    if (threadIdx.x == 0) ptx::expect_mail(box, share.n_block * sizeof(total));
    if (threadIdx.x < share.n_block) ptx::send(&shared.chosen_of_blocks[share.rank], total, box, threadIdx.x);
    ptx::wait_for_mail(box, 0);
    int32_t before = 0;
    for (unsigned block = 0; block < share.rank; ++block)
        before += static_cast<int32_t>(shared.chosen_of_blocks[block]);
    return before;
}

struct Chosen {
    int32_t n_before;  // ranked ones in the blocks before this one
    bool slowly;
};

// Where all ranked positions are to be chosen, or none. Returns how many lie in the blocks before this one. Afterwards
// the block's threads have met.
__device__ inline int32_t choose_all_or_none(const Ranked& ranked, const Share& share) {
    const int32_t n_before = min(max(share.begin, ranked.first), ranked.end) - ranked.first;
    if (ranked.n_best > 0) share.for_ranked(ranked, [&](float, int32_t pos) { share.choose(pos); });
    __syncthreads();
    return ranked.n_best > 0 ? n_before : 0;
}

// Chooses the share's part of the n_best ranked positions, by the candidates that all blocks have counted. fetch(pos)
// is called early, by some thread, for positions that are chosen or might be, meanwhile() while other blocks are waited
// for. Afterwards the block's threads have met.
template <class Fetch, class Meanwhile>
__device__ Chosen choose_best(Shared& shared, const Ranked& ranked, const Scale& scale, const Share& share, Fetch fetch,
                              Meanwhile meanwhile) {
    share_counts(shared, 0, share, meanwhile);
    const Cut cut = find_cut(shared, 0, ranked.n_best, share);
    if (cut.bin < 0 || (!cut.is_whole() && cut.n_inside > max_open)) {
        const int32_t before = choose_slowly(shared, ranked, share);
        __syncthreads();
        return {before, true};
    }
    uint64_t* const box = &shared.mailbox[open_mail];
    if (threadIdx.x == 0 && !cut.is_whole()) ptx::expect_mail(box, cut.n_inside * sizeof(uint64_t));
    const float sure = edge_of(cut.is_whole() ? cut.bin : cut.bin + 1), open = edge_of(cut.bin);
    for_candidates(shared, ranked, share, [&](float score, int32_t pos) {
        const float place = scale.place(score);
        if (!(place >= open) || !ranked.holds(pos)) return;
        fetch(pos);
        if (place >= sure) return share.choose(pos);
        const int at = cut.n_inside_before + atomicAdd(&shared.n_open, 1);
        const uint64_t value = value_of(score, pos);
        for (unsigned block = 0; block < share.n_block; ++block) ptx::send(&shared.open[at], value, box, block);
    });
    __syncthreads();
    if (cut.is_whole()) return {cut.n_above_before + cut.n_inside_before, false};
    ptx::wait_for_mail(box, 0);
    choose_open(shared, cut, share);
    return {cut.n_above_before + shared.n_open_before, false};
}

}  // namespace fasa::cuda::cluster
