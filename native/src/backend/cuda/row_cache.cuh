// How kernels of decode's attention use the cache of rows.
#pragma once

#include <cstdint>

#include "backend/cuda/row_cache.h"

namespace fasa::cuda {

// Tells the rows of all sequences and positions apart; never 0.
__device__ inline uint32_t tag_of(int32_t seq, int32_t n_ctx, int32_t pos) {
    return static_cast<uint32_t>(seq) * static_cast<uint32_t>(n_ctx) + static_cast<uint32_t>(pos) + 1;
}

// The first place of the set that a tag belongs to. Neighbouring positions lie in different sets.
__device__ inline int32_t set_of_row(uint32_t tag, int32_t n_row) {
    return static_cast<int32_t>(tag % static_cast<uint32_t>(n_row / n_row_way)) * n_row_way;
}

// The place of a tag in its KV head's part of the cache; -1: it is not there.
__device__ inline int32_t find_row(const uint32_t* tags, int32_t n_row, uint32_t tag) {
    const int32_t first = set_of_row(tag, n_row);
    const uint4* at = reinterpret_cast<const uint4*>(tags + first);
    uint4 four[n_row_way / 4];
#pragma unroll
    for (int i = 0; i < n_row_way / 4; ++i) four[i] = at[i];
    int32_t found = -1;
#pragma unroll
    for (int i = 0; i < n_row_way / 4; ++i) {
        if (four[i].x == tag) found = first + 4 * i;
        if (four[i].y == tag) found = first + 4 * i + 1;
        if (four[i].z == tag) found = first + 4 * i + 2;
        if (four[i].w == tag) found = first + 4 * i + 3;
    }
    return found;
}

// One list of positions of a decode step, and what the cache has of it.
class CachedRows {
   public:
    // The list is that of a set, of which each KV head has sets_a_head, and has n positions; pos0 is the step's own. Of
    // the units that go through the same list only the first counts and leaves rows behind.
    __device__ CachedRows(const RowCacheView& cache, const KvView& kv, int32_t seq, int set, int sets_a_head, int32_t n,
                          int32_t pos0, bool is_first)
        : cache_(cache), n_(n), is_first_(is_first) {
        if (!cache.rows) return;
        head_ = set / sets_a_head;
        row_values_ = 2 * kv.head_dim - kv.n_dom;
        tag0_ = tag_of(seq, kv.n_ctx, 0);
        now_ = cache.now[head_];
        // Where there is no room for the whole list, steps take turns with its parts.
        n_room_ = is_first ? cache.n_staged / sets_a_head : 0;
        if (n_room_ > 0) first_staged_ = pos0 % ((n + n_room_ - 1) / n_room_) * n_room_;
        staged_at_ = head_ * cache.n_staged + set % sets_a_head * n_room_ - first_staged_;
    }

    __device__ bool are_on() const { return cache_.rows != nullptr; }

    // The row of the list's j-th position, pos, in the cache; nullptr: it is not there. By a warp, of which lanes i and
    // i + 16 ask the same.
    __device__ const uint16_t* look_up(int32_t j, int32_t pos) const {
        const int32_t found = j < n_ ? find(j, pos) : nowhere;
        const uint16_t* row = found >= 0 ? row_at(found) : nullptr;
        if (!is_first_) return row;
        const bool counts = j < n_ && threadIdx.x % 32 < 16;
        const int n_found = __popc(__ballot_sync(0xffffffffu, counts && row)),
                  n_all = __popc(__ballot_sync(0xffffffffu, counts));
        if (threadIdx.x % 32 == 0) count(n_found, n_all - n_found);
        return row;
    }

    // The same for j < n by any thread, uncounted: the number of the row in cache.rows. If it is not there, ~ of its
    // number in cache.staged, where it is to be left behind, or nowhere.
    static constexpr int32_t nowhere = INT32_MIN;
    __device__ int32_t find(int32_t j, int32_t pos) const {
        const int32_t first = head_ * cache_.n_row;
        const uint32_t tag = tag0_ + static_cast<uint32_t>(pos);
        const int32_t at = find_row(cache_.tag + first, cache_.n_row, tag);
        if (at >= 0) {
            cache_.used[first + at] = now_;
            return first + at;
        }
        if (!has_room(j)) return nowhere;
        cache_.staged_tag[staged_at_ + j] = tag;
        return ~(staged_at_ + j);
    }
    __device__ const uint16_t* row_at(int32_t found) const { return cache_.rows + found * row_values_; }
    // Where a row is to be left behind of which find said this; nullptr: nowhere.
    __device__ uint16_t* staged_at(int32_t found) const {
        return found >= 0 || found == nowhere ? nullptr : cache_.staged + ~found * row_values_;
    }
    __device__ void count(int n_found, int n_missing) const {
        unsigned long long* counts = cache_.counts + 2 * head_;
        if (n_found > 0) atomicAdd(counts, static_cast<unsigned long long>(n_found));
        if (n_missing > 0) atomicAdd(counts + 1, static_cast<unsigned long long>(n_missing));
    }

    // Where the row of the j-th position is to be left behind; nullptr: nowhere. To be asked by a thread that has
    // looked it up.
    __device__ uint16_t* place(int32_t j) const {
        if (!has_room(j) || cache_.staged_tag[staged_at_ + j] == 0) return nullptr;
        return cache_.staged + int64_t{staged_at_ + j} * row_values_;
    }

   private:
    __device__ bool has_room(int32_t j) const { return j < n_ && j >= first_staged_ && j < first_staged_ + n_room_; }

    const RowCacheView& cache_;
    int32_t n_, head_ = 0, n_room_ = 0, first_staged_ = 0, staged_at_ = 0;
    bool is_first_;
    int64_t row_values_ = 0;
    uint32_t tag0_ = 0, now_ = 0;
};

}  // namespace fasa::cuda
