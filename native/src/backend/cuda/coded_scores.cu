#include "backend/cuda/coded_scores.h"

#include <algorithm>

#include "backend/cuda/coded_tiles.cuh"
#include "backend/cuda/launch.cuh"

namespace fasa::cuda {
namespace {

using namespace scoring;

// What a block has in shared memory besides its rings.
template <class T>
struct Rest {
    uint32_t counts[n_rank_bin];
    float sample[n_rank_sample];
    QueryDigits<T> digits[n_warp];
};

// How a kernel takes its tiles: from rings in shared memory, where asynchronous copies bring them. They are not loaded
// into registers ahead since the compiler then waits for the last load where it needs the first.
template <class T>
struct Plan {
    // Three blocks of 256 threads have about 96 KiB of a multiprocessor's under way, several times what it takes to
    // cover the memory's latency: what is asked for before the kernels ahead end also covers the time that the query
    // takes. All that a block has still fits the 64 KiB of any GPU.
    static constexpr int n_resident = 3, ring_bytes = 64 * 1024 - sizeof(Rest<T>);

    static constexpr int n_batch = T::n_row * T::n_alike;  // rows of a batch
    static constexpr int stride = n_warp * n_batch;        // rows from a batch to the warp's next one
    static constexpr int n_result = 2 * T::n_mine;         // of a lane in a batch
    // Strips lie an odd number of pieces apart, so that 8 of them meet in no bank.
    static constexpr int strip_bytes = (T::n_piece | 1) * 16, tile_bytes = T::n_strip * strip_bytes;
    // A stage of a warp's ring: a tile, and room for a batch's scales, which come with its last tile.
    static constexpr int stage_bytes = tile_bytes + 2 * n_batch, n_stage = ring_bytes / (n_warp * stage_bytes);
    static_assert(n_stage >= 2);
    static constexpr int n_ahead = n_stage - 1;  // tiles under way
    static constexpr size_t shared_bytes = size_t{n_warp} * n_stage * stage_bytes;

    // Rows from the first of a lane's results in a batch to number i.
    __device__ static constexpr int result(int i) { return i / T::n_mine * 8 * T::n_together + i % T::n_mine * 4; }
    // Where in a stage number i of a tile's 16-byte pieces lies.
    __device__ static constexpr int piece(int i) { return 16 * (T::n_piece % 2 == 0 ? i + i / T::n_piece : i); }
    // Whether number 32 i + j lies where number j does, apart from what depends on i.
    static constexpr bool repeats = T::n_piece % 2 == 1 || 32 % T::n_piece == 0;
};

// The rows of a block: n from position `begin` on.
struct BlockRows {
    int32_t begin, n;

    __device__ explicit BlockRows(int32_t n_pos) {
        constexpr int32_t alignment = 64;  // whose scales are a line
        const int32_t n_part = static_cast<int32_t>(gridDim.x) * alignment;
        const int32_t share = (n_pos + n_part - 1) / n_part * alignment;
        begin = min(share * static_cast<int32_t>(blockIdx.x), n_pos);
        n = min(share, n_pos - begin);
    }
};

// The batches of a warp as one of its lanes sees them: tiles come ahead of their scores.
template <class T>
class Batches {
   public:
    using P = Plan<T>;

    __device__ Batches(const KeyCodes& codes, const BlockRows& rows, float* scores, uint8_t* shared) {
        const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int32_t first = warp * P::n_batch, begin = rows.begin + first;
        const int32_t result = t / T::n_together * T::n_row + g * T::n_together + t % T::n_together;
        next_ = shared + warp * P::n_stage * P::stage_bytes;
        free_ = next_ + P::n_ahead * P::stage_bytes;
        piece_ = P::piece(lane);
        matrix_row_ = lane % 16 * P::strip_bytes + lane / 16 * 16;
        n_left_ = rows.n - first;
        codes_ = codes.code + int64_t{begin} * T::row_bytes + 16 * lane;
        n_bytes_ = n_left_ * T::row_bytes - 16 * lane;
        scales_ = codes.scale + begin + 2 * lane;
        n_scales_ = n_left_ - 2 * lane;
        score_ = scores + begin + result;
        result_ = result;
        end_ = rows.begin + rows.n;
    }

    __device__ bool has_next() const { return n_left_ > 0; }
    // How far copy_first() reaches: rows from the next batch's first one on.
    __device__ int32_t reach() const { return min((P::n_ahead - 1) / T::n_alike * P::stride + P::n_batch, n_left_); }
    __device__ void copy_first() {
#pragma unroll
        for (int i = 0; i < P::n_ahead; ++i) copy_tile(next_ + i * P::stage_bytes, i);
    }
    // The next batch.
    __device__ void score(const TileQuery<T>& query, const Counter& counter) {
        float kept[2][T::n_value];
#pragma unroll
        for (int i = 0; i < T::n_alike; ++i) {
            ptx::copy_async_wait<P::n_ahead - 1>();
            __syncwarp();  // all lanes' copies of this tile are here, and the tile before is done with
            copy_tile(free_, i + P::n_ahead);
            T tile;
#pragma unroll
            for (int j = 0; j < T::n_pair; ++j) ptx::load_matrix(tile.words[j], next_ + matrix_row_ + 32 * j);
            free_ = next_;
            const bool wraps = ++slot_ == P::n_stage;
            slot_ = wraps ? 0 : slot_;
            next_ += wraps ? -P::n_ahead * P::stage_bytes : P::stage_bytes;
            float sums[2][T::n_value];
            query.multiply(tile, sums);
            const bool is_mine = static_cast<int>(threadIdx.x) % 4 / T::n_together == i;
#pragma unroll
            for (int j = 0; j < 2 * T::n_value; ++j) {
                float& to = kept[j / T::n_value][j % T::n_value];
                to = i == 0 || is_mine ? sums[j / T::n_value][j % T::n_value] : to;
            }
        }
        const auto* scales = reinterpret_cast<const uint16_t*>(free_ + P::tile_bytes) + result_;
        float scores[P::n_result];
#pragma unroll
        for (int i = 0; i < P::n_result; ++i) {
            scores[i] = query.score(kept[i / T::n_mine] + i % T::n_mine * n_digit) *
                        __half2float(__ushort_as_half(scales[P::result(i)]));
            if (n_left_ > result_ + P::result(i)) score_[P::result(i)] = scores[i];
        }
        if (counter.n > 0) {
#pragma unroll
            for (int i = 0; i < P::n_result; ++i) {
                const int32_t row = result_ + P::result(i);
                if (n_left_ > row) counter.count(end_ - n_left_ + row, scores[i]);
            }
        }
        score_ += P::stride;
        n_left_ -= P::stride;
    }

   private:
    // The next one, number i of a batch or of one after it, to a stage.
    __device__ void copy_tile(uint8_t* stage, int i) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int first = 0; first < T::n_bytes; first += 512) {
            const bool valid = n_bytes_ > first && (first + 512 <= T::n_bytes || lane < T::n_bytes % 512 / 16);
            const int at = P::repeats ? P::piece(first / 16) + piece_ : P::piece(first / 16 + lane);
            if (valid) ptx::copy_async_16(stage + at, codes_ + first);
        }
        const bool is_last = i % T::n_alike == T::n_alike - 1;
        constexpr int jump = P::stride * T::row_bytes - (T::n_alike - 1) * T::n_bytes;  // to the next batch
        codes_ += is_last ? jump : T::n_bytes;
        n_bytes_ -= is_last ? jump : T::n_bytes;
        if (is_last) {
#pragma unroll
            for (int row = 0; row < P::n_batch; row += 64) {
                if (n_scales_ > row) ptx::copy_async_4(stage + P::tile_bytes + 2 * row + 4 * lane, scales_ + row);
            }
            scales_ += P::stride;
            n_scales_ -= P::stride;
        }
        ptx::copy_async_commit();
    }

    // Stages of the warp's ring: of the next tile, whose number is slot_, and of the tile before, which the next copy
    // takes.
    uint8_t *next_, *free_;
    int slot_ = 0;
    // In a stage: the first piece that this lane copies, and what it names when matrices are loaded.
    int piece_, matrix_row_;
    const uint8_t* codes_;    // this lane's first bytes of the next tile to copy
    int32_t n_bytes_;         // from there to the end of the block's rows, fewer than 2^24
    const uint16_t* scales_;  // this lane's of the next batch to copy
    int32_t n_scales_;        // rows from those on
    int32_t n_left_;          // rows from the next batch's first one on
    float* score_;            // this lane's first result in the next batch
    int32_t result_;          // rows from a batch's first one to this lane's first result
    int32_t end_;             // position behind the block's last one
};

// Scores of rows spread over the whole past, one by four lanes; they tell the bins of all blocks of a set.
template <class T>
class Sample {
   public:
    __device__ explicit Sample(const Ranked& ranked)
        : number_(static_cast<int>(threadIdx.x) / 4), t_(threadIdx.x % 4), has_rows_(ranked.end > ranked.first) {
        static_assert(n_rank_sample == n_thread / 4);
        if (has_rows_) pos_ = ranked.sample(number_);
    }
    __device__ void load(const KeyCodes& codes, int32_t n_pos) {
        const int32_t strip = pos_ / T::n_together * T::n_together;
        const uint8_t* from = codes.code + int64_t{strip} * T::row_bytes + 4 * t_;
#pragma unroll
        for (int piece = 0; piece < 2 * T::n_pair; ++piece) {
            const bool valid = piece < T::n_piece && strip + (16 * piece + 4 * t_) / T::row_bytes < n_pos;
            const uint32_t word = valid ? *reinterpret_cast<const uint32_t*>(from + 16 * piece) : 0;
            tile_.words[piece / 2][piece % 2 * 2] = tile_.words[piece / 2][piece % 2 * 2 + 1] = word;
        }
        scale_ = codes.scale[pos_];
    }
    __device__ void score(const TileQuery<T>& query, float* scores) const {
        float sums[2][T::n_value];
        query.multiply(tile_, sums);
#pragma unroll
        for (int i = 0; i < T::n_mine; ++i) {
            if (t_ + 4 * i != pos_ % T::n_together) continue;
            const float score = query.score(sums[0] + n_digit * i) * __half2float(__ushort_as_half(scale_));
            scores[number_] = has_rows_ ? score : 0.0f;
        }
    }

   private:
    T tile_;
    int number_, t_;
    bool has_rows_;
    int32_t pos_ = 0;
    uint16_t scale_;
};

template <class T>
__global__ void __launch_bounds__(n_thread, Plan<T>::n_resident) coded_scores_kernel(ScoreTask task) {
    FASA_DYNAMIC_SHARED(shared);
    __shared__ Rest<T> rest;
    ptx::start_next();
    const int lane = threadIdx.x % 32, set = blockIdx.y;
    const KeyCodes codes = keys_of(task, set).codes;
    const int32_t n_pos = n_past(task.past);
    const Ranked ranked(task.count.budget, n_pos);
    const BlockRows rows(n_pos);
    Batches<T> batches(codes, rows, task.scores + set * task.row_stride, shared);
    Sample<T> sample(ranked);
    const int32_t sample_end = task.counted ? ranked.sample(n_rank_sample - 1) + 1 : 0;
    const int32_t end = rows.begin + threadIdx.x / 32 * Plan<T>::n_batch + batches.reach();
    if (max(end, sample_end) + old_distance > n_pos) ptx::wait_for_previous();
    batches.copy_first();
    if (task.counted) sample.load(codes, n_pos);
    ptx::wait_for_previous();

    QueryDigits<T>& digits = rest.digits[threadIdx.x / 32];
    const float unit = digits.split(task.queries, task.kv.head_dim, set);
    TileQuery<T> query;
    query.load(digits, unit);
    Bins bins = {};
    if (task.counted) {
        clear_counts(rest.counts);
        sample.score(query, rest.sample);
        __syncthreads();
        bins = bins_for(rest.sample[lane], rest.sample[lane + 32]);
        if (blockIdx.x == 0 && threadIdx.x == 0) task.count.scratch.bins[set] = bins;
    }
    const Counter counter(task, ranked, bins, rest.counts);
    while (batches.has_next()) batches.score(query, counter);
    finish_counts(task, rest.counts);
}

// The kernel for rows of n_codes, if one was built: multiples of 16 from `least` on, of bytes up to 64 multiples of 8
// too.
template <DomType type, int least = 16>
ScoreKernel kernel_for(int n_codes) {
    if constexpr (least <= max_codes) {
        constexpr int step = type == DomType::int8 && least < 64 ? 8 : 16;
        if (n_codes > least) return kernel_for<type, least + step>(n_codes);
        if (n_codes < least) return {};
        using T = CodeTile<type, static_cast<int>(code_bytes(type, least))>;
        return {coded_scores_kernel<T>, Plan<T>::n_batch, Plan<T>::n_resident, Plan<T>::shared_bytes};
    }
    return {};
}

}  // namespace

ScoreKernel coded_scores(const KvView& kv) {
    const KeyCodes& codes = kv.codes;
    const bool lies_well = reinterpret_cast<uintptr_t>(codes.code) % 16 == 0 &&
                           reinterpret_cast<uintptr_t>(codes.scale) % 4 == 0 && kv.n_ctx % 2 == 0;
    if (!lies_well) return {};
    return codes.type == DomType::q4 ? kernel_for<DomType::q4>(codes.n) : kernel_for<DomType::int8>(codes.n);
}

}  // namespace fasa::cuda
