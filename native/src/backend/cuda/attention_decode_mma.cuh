// Decode's attention on tensor cores. Every warp streams its own tiles of 16 positions through its own ring in shared
// memory, so nobody waits for anybody until the end. A matrix of 16 rows holds 8 queries twice: rows 0..7 the high
// halves of their numbers, rows 8..15 what is left of them, so that products are as exact as in single precision; the
// weights of the values likewise.
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "backend/cuda/attention_decode.cuh"

namespace fasa::cuda::decode {

// A warp's ring. Eight of them (four with head_dim 256) have 100 to 200 KiB on their way.
template <int head_dim>
struct Ring {
    static constexpr int row_bytes = 4 * head_dim + 16;  // key, value, and what keeps rows out of each other's banks
    static constexpr int tile_bytes = n_tile * row_bytes;
    static constexpr int n_wanted = 27000 / tile_bytes, n_stages = n_wanted < 3 ? 3 : n_wanted > 5 ? 5 : n_wanted;
    static constexpr size_t n_bytes = size_t{n_stages} * tile_bytes;
};

// Brings a warp's tiles, first, first + stride, ..., into its ring. wide: rows of the cache are whole 16-byte words.
template <int head_dim, bool wide>
class Feed {
   public:
    __device__ Feed(const Args& a, const Unit& u, const CachedRows& cached, uint8_t* ring, int first, int stride)
        : args_(a), unit_(u), cached_(cached), ring_(ring), next_(first), stride_(stride) {
        const int n_dom = a.kv.n_dom, n_rest = 2 * head_dim - n_dom;
        const int lane = threadIdx.x % 32;
        in_use_ = lane < row_lanes * rows_at_once;
        row_ = lane / row_lanes;
        word_ = lane % row_lanes;
        const uint16_t *dom = a.kv.dom + u.row * n_dom, *rest = a.kv.rest + u.row * n_rest;
        for (int i = 0; i < row_words / row_lanes; ++i) {
            const int at = 8 * (word_ + i * row_lanes);
            from_[i] = at < n_dom ? dom + at : rest + (at - n_dom);
            step_[i] = at < n_dom ? n_dom : n_rest;
        }
        look_up();
    }

    // The next tile has positions below n only.
    __device__ bool next_is_below(int n) const { return (next_ + 1) * n_tile <= n; }

    // Starts copying the next tile, if there is one, and ends a group of copies.
    __device__ void copy_next() {
        const int n_valid = unit_.n_pos - next_ * n_tile;
        if (n_valid > 0) {
            uint8_t* to = ring_ + slot_ * Ring<head_dim>::tile_bytes;
            if constexpr (wide) {
                copy_wide(to, n_valid);
            } else {
                copy_narrow(to, n_valid);
            }
            slot_ = slot_ + 1 == Ring<head_dim>::n_stages ? 0 : slot_ + 1;
            next_ += stride_;
            look_up();
        }
        ptx::copy_async_commit();
    }

   private:
    static constexpr int row_words = head_dim / 4;  // of 16 bytes
    static constexpr int row_lanes = row_words < 32 ? row_words : 32, rows_at_once = 32 / row_lanes;
    static_assert(row_words % row_lanes == 0 && n_tile % rows_at_once == 0);

    // Lane i keeps the next tile's position i, and where its row lies if that is not in the cache of keys and values.
    __device__ void look_up() {
        const int j = next_ * n_tile + threadIdx.x % n_tile;
        position_ = position(args_, unit_, j);
        if (cached_.are_on()) moved_ = reinterpret_cast<uint64_t>(cached_.look_up(j, position_));
    }

    // The row of position i of the next tile, whose dim n_dom it begins with, if it lies elsewhere.
    __device__ const uint16_t* moved(int i) const {
        if (!cached_.are_on()) return nullptr;
        return reinterpret_cast<const uint16_t*>(__shfl_sync(all_lanes, moved_, i));
    }

    __device__ void copy_wide(uint8_t* to, int n_valid) {
#pragma unroll
        for (int i = 0; i < n_tile; i += rows_at_once) {
            const int row = i + row_;
            const int64_t pos = __shfl_sync(all_lanes, position_, row % n_tile);
            const uint16_t* elsewhere = moved(row % n_tile);
            if (!in_use_) continue;
#pragma unroll
            for (int k = 0; k < row_words / row_lanes; ++k) {
                const int word = word_ + k * row_lanes, in_rest = 8 * word - args_.kv.n_dom;
                const uint16_t* from = elsewhere && in_rest >= 0 ? elsewhere + in_rest : from_[k] + pos * step_[k];
                ptx::copy_async_16(to + row * Ring<head_dim>::row_bytes + 16 * word, from, row < n_valid);
            }
        }
    }

    // For rows that are not aligned: n_dom is even, so they consist of 4-byte words.
    __device__ void copy_narrow(uint8_t* to, int n_valid) {
        constexpr int n_words = (head_dim + 31) / 32, n_rows = n_words < 5 ? 4 : 2;  // read together
        const int lane = threadIdx.x % 32, n_dom = args_.kv.n_dom / 2, n_rest = head_dim - n_dom;
        const auto* dom = reinterpret_cast<const uint32_t*>(args_.kv.dom) + unit_.row * n_dom;
        const auto* rest = reinterpret_cast<const uint32_t*>(args_.kv.rest) + unit_.row * n_rest;
#pragma unroll 1
        for (int first = 0; first < n_tile; first += n_rows) {
            uint32_t word[n_rows][n_words] = {};
#pragma unroll
            for (int i = 0; i < n_rows; ++i) {
                const int64_t pos = __shfl_sync(all_lanes, position_, first + i);
                const auto* elsewhere = reinterpret_cast<const uint32_t*>(moved(first + i));
                const uint32_t *in_dom = dom + pos * n_dom,
                               *in_rest = (elsewhere ? elsewhere : rest + pos * n_rest) - n_dom;
#pragma unroll
                for (int k = 0; k < n_words; ++k) {
                    const int at = lane + 32 * k;
                    if (first + i < n_valid && at < head_dim) word[i][k] = at < n_dom ? in_dom[at] : in_rest[at];
                }
            }
#pragma unroll
            for (int i = 0; i < n_rows * n_words; ++i) {
                const int at = lane + i % n_words * 32;
                uint8_t* row = to + (first + i / n_words) * Ring<head_dim>::row_bytes;
                if (at < head_dim) reinterpret_cast<uint32_t*>(row)[at] = word[i / n_words][i % n_words];
            }
        }
    }

    const Args& args_;
    const Unit& unit_;
    const CachedRows& cached_;
    uint8_t* ring_;
    int next_, stride_, slot_ = 0, position_ = 0;
    uint64_t moved_ = 0;
    int row_, word_;
    bool in_use_;
    const uint16_t* from_[row_words / row_lanes];
    int step_[row_words / row_lanes];
};

__device__ inline uint32_t bits(__half2 x) {
    uint32_t result;
    memcpy(&result, &x, sizeof(result));
    return result;
}

// x = high + low, to about 22 bits.
__device__ inline void split(float2 x, uint32_t& high, uint32_t& low) {
    const __half2 h = __float22half2_rn(x);
    const float2 back = __half22float2(h);
    high = bits(h);
    low = bits(__float22half2_rn({x.x - back.x, x.y - back.y}));
}

// 8 queries of a unit with their unfinished softmax. A thread has query lane / 4, of it the dims and positions that
// matrix instructions give it: 2 * (lane % 4) + {0, 1} of every 8. value_dim: how many of the values' dims it sums up.
template <int head_dim, int value_dim = head_dim>
class Queries {
   public:
    // Queries first .. first + 7 of the unit; those past its end are zero.
    __device__ void load(const Args& a, const Unit& u, int first) {
        const int lane = threadIdx.x % 32, query = first + lane / 4;
        const bool is_query = query < u.n;
        const float* q = a.q + (is_query ? offset(a, u, query) : 0) + 2 * (lane % 4);
        float2 x[head_dim / 8];
        float magnitude = 0;
#pragma unroll
        for (int i = 0; i < head_dim / 8; ++i) {
            x[i] = is_query ? *reinterpret_cast<const float2*>(q + 8 * i) : float2{0, 0};
            magnitude = fmaxf(magnitude, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
        }
        magnitude = fmaxf(magnitude, __shfl_xor_sync(all_lanes, magnitude, 1));
        magnitude = fmaxf(magnitude, __shfl_xor_sync(all_lanes, magnitude, 2));
        // A power of two brings the numbers into the range of halves, to below 2.
        const unsigned exponent = min(max(__float_as_uint(magnitude) >> 23, 27u), 253u);
        const float small = __uint_as_float((254 - exponent) << 23);
#pragma unroll
        for (int i = 0; i < head_dim / 8; ++i) {
            uint32_t* at = &q_[i / 2][i % 2 * 2];
            split({x[i].x * small, x[i].y * small}, at[0], at[1]);
        }
        scale_ = a.scale * __uint_as_float(exponent << 23);
        n_visible_ = is_query ? visible(a, u, query) : u.n_pos;
    }
    // All queries see just the unit's first n positions, which was not known when they were loaded.
    __device__ void see(int n) { n_visible_ = n; }

    // Dims 16 * step .. of the product of queries and a tile's keys: [i] for positions 8 * i .. of the tile.
    __device__ void add_scores(float (&product)[2][4], const uint32_t (&keys)[4], int step) const {
        ptx::mma_f16(product[0], q_[step], {keys[0], keys[1]});
        ptx::mma_f16(product[1], q_[step], {keys[2], keys[3]});
    }

    // Scores of a tile that starts at position `first` become weights, ready to multiply values.
    __device__ void soften(uint32_t (&weights)[4], const float (&product)[2][4], int first, bool all_visible) {
        float score[4];
        const int pos = first + threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            score[i] = (product[i / 2][i % 2] + product[i / 2][i % 2 + 2]) * scale_;
            if (!all_visible && pos + i / 2 * 8 + i % 2 >= n_visible_) score[i] = -INFINITY;
        }
        float top = fmaxf(fmaxf(score[0], score[1]), fmaxf(score[2], score[3]));
        top = fmaxf(top, __shfl_xor_sync(all_lanes, top, 1));
        top = fmaxf(top, __shfl_xor_sync(all_lanes, top, 2));
        raise(top);
        const float base = finite_top(state_.top);
#pragma unroll
        for (int i = 0; i < 4; ++i) score[i] = exp2f(score[i] - base);
        state_.sum += (score[0] + score[1]) + (score[2] + score[3]);
        split({score[0], score[1]}, weights[0], weights[1]);
        split({score[2], score[3]}, weights[2], weights[3]);
    }

    // Dims 16 * step .. of the tile's values.
    __device__ void add_values(const uint32_t (&weights)[4], const uint32_t (&values)[4], int step) {
        ptx::mma_f16(y_[2 * step], weights, {values[0], values[1]});
        ptx::mma_f16(y_[2 * step + 1], weights, {values[2], values[3]});
    }

    // state [8], values [8][stride]
    __device__ void write(SoftmaxState* state, float* values, int stride) {
        float sum = state_.sum;
        sum += __shfl_xor_sync(all_lanes, sum, 1);
        sum += __shfl_xor_sync(all_lanes, sum, 2);
        const int query = threadIdx.x % 32 / 4, part = threadIdx.x % 4;
        if (part == 0) state[query] = {state_.top, sum};
        float* to = values + query * stride + 2 * part;
#pragma unroll
        for (int i = 0; i < value_dim / 8; ++i) {
            *reinterpret_cast<float2*>(to + 8 * i) = {y_[i][0] + y_[i][2], y_[i][1] + y_[i][3]};
        }
    }

   private:
    // Larger scores came: what was summed so far counts less. Rare once a few tiles were seen.
    __device__ void raise(float top) {
        if (!__any_sync(all_lanes, top > state_.top)) return;
        const float higher = fmaxf(top, state_.top), factor = exp2f(state_.top - finite_top(higher));
        state_ = {higher, state_.sum * factor};
#pragma unroll
        for (auto& y : y_) {
            for (float& part : y) part *= factor;
        }
    }

    uint32_t q_[head_dim / 16][4];
    float y_[value_dim / 8][4] = {};
    SoftmaxState state_ = {-INFINITY, 0};  // sum: this thread's positions
    float scale_;
    int n_visible_;
};

// A tile of rows in a ring, whose first position is the unit's number `first`, counts for n_set sets of 8 queries, with
// the values' dims from first_dim on.
template <int head_dim, int value_dim, int n_set>
__device__ inline void add_tile(Queries<head_dim, value_dim> (&queries)[n_set], const uint8_t* rows, int first,
                                bool all_visible, int first_dim = 0) {
    // Rows that this lane names in matrix loads: of keys as they lie, of values to be transposed.
    constexpr int row_bytes = Ring<head_dim>::row_bytes;
    const int lane = threadIdx.x % 32;
    const int key_at = (lane / 16 * 8 + lane % 8) * row_bytes + lane / 8 % 2 * 16;
    const int value_at = lane % 16 * row_bytes + lane / 16 * 16 + 2 * (head_dim + first_dim);
    float product[n_set][2][4] = {};
#pragma unroll
    for (int step = 0; step < head_dim / 16; ++step) {
        uint32_t keys[4];
        ptx::load_matrix(keys, rows + key_at + 32 * step);
#pragma unroll
        for (int i = 0; i < n_set; ++i) queries[i].add_scores(product[i], keys, step);
    }
    uint32_t weights[n_set][4];
#pragma unroll
    for (int i = 0; i < n_set; ++i) queries[i].soften(weights[i], product[i], first, all_visible);
#pragma unroll
    for (int step = 0; step < value_dim / 16; ++step) {
        uint32_t values[4];
        ptx::load_matrix_transposed(values, rows + value_at + 32 * step);
#pragma unroll
        for (int i = 0; i < n_set; ++i) queries[i].add_values(weights[i], values, step);
    }
}

// Leaves the rows of a tile behind that were not in the cache of rows.
template <int head_dim, bool wide>
__device__ inline void leave_rows(const CachedRows& cached, const uint8_t* tile, int first, int n_dom) {
    using Word = std::conditional_t<wide, uint4, uint32_t>;
    const int lane = threadIdx.x % 32, n_words = (2 * head_dim - n_dom) * 2 / static_cast<int>(sizeof(Word));
    const auto place = reinterpret_cast<uint64_t>(lane < n_tile ? cached.place(first + lane) : nullptr);
    for (unsigned left = __ballot_sync(all_lanes, place != 0); left; left &= left - 1) {
        const int row = __ffs(static_cast<int>(left)) - 1;
        Word* to = reinterpret_cast<Word*>(__shfl_sync(all_lanes, place, row));
        const Word* from = reinterpret_cast<const Word*>(tile + row * Ring<head_dim>::row_bytes + 2 * n_dom);
        for (int i = lane; i < n_words; i += 32) to[i] = from[i];
    }
}

// n_set sets of 8 queries are a unit.
template <int head_dim, int n_set, bool wide>
__global__ void __launch_bounds__(max_warps * 32, 1) attend(const Args a) {
    constexpr int stages = Ring<head_dim>::n_stages;
    FASA_DYNAMIC_SHARED(shared);
    __shared__ SoftmaxState state[max_warps * max_queries];
    const int warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    if (a.selection.positions) ptx::wait_for_previous();
    const Unit u = unit_of(a);
    const int first = blockIdx.x * n_warps + warp, stride = gridDim.x * n_warps;
    uint8_t* ring = shared + warp * Ring<head_dim>::n_bytes;
    const CachedRows cached = cached_rows(a, u);
    Feed<head_dim, wide> feed(a, u, cached, ring, first, stride);
    const int n_block = n_busy(u);
    if (static_cast<int>(blockIdx.x) >= n_block) return;

#pragma unroll 1
    for (int i = 0; i < stages - 1; ++i) {
        // Positions below pos0 were there before this step.
        if (!u.list && !feed.next_is_below(u.pos0)) ptx::wait_for_previous();
        feed.copy_next();
    }
    ptx::start_next();
    ptx::wait_for_previous();

    Queries<head_dim> queries[n_set];
#pragma unroll
    for (int i = 0; i < n_set; ++i) queries[i].load(a, u, 8 * i);
    int slot = 0;
    for (int tile = first; tile * n_tile < u.n_pos; tile += stride) {
        ptx::copy_async_wait<stages - 2>();
        __syncwarp();  // all lanes' copies of this tile are here, and the tile before is done with
        feed.copy_next();
        const uint8_t* rows = ring + slot * Ring<head_dim>::tile_bytes;
        slot = slot + 1 == stages ? 0 : slot + 1;
        if (cached.are_on()) leave_rows<head_dim, wide>(cached, rows, tile * n_tile, a.kv.n_dom);
        add_tile(queries, rows, tile * n_tile, (tile + 1) * n_tile <= u.n_pos_all);
    }
    __syncwarp();

    // The ring of each warp becomes the place of its sums.
    constexpr int query_stride = head_dim + 8;  // whose rows do not meet in the same banks
    static_assert(8 * n_set * query_stride * sizeof(float) <= Ring<head_dim>::n_bytes);
#pragma unroll
    for (int i = 0; i < n_set; ++i) {
        queries[i].write(state + warp * max_queries + 8 * i, reinterpret_cast<float*>(ring) + 8 * i * query_stride,
                         query_stride);
    }
    finish<4>(a, u, head_dim, n_block, state, reinterpret_cast<const float*>(shared),
              static_cast<int64_t>(Ring<head_dim>::n_bytes / sizeof(float)), query_stride, shared);
}

}  // namespace fasa::cuda::decode
