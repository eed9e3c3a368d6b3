// Scores of coded dominant keys (KeyCodes) by tensor cores: codes, as they are or as unsigned nibbles, times bytes that
// the query is split into. All sums are exact, so that the query's 22 bits are all that is rounded.
#pragma once

#include <cstdint>

#include "backend/cuda/score_task.cuh"

namespace fasa::cuda::scoring {

inline constexpr int n_digit = 3;      // bytes of a query dim
inline constexpr int max_codes = 128;  // of a row; sums of up to 256 digits times codes stay below 2^22

// What is multiplied at a time: 16 strips of n_together rows, each of n_piece times 16 bytes. Lane 4 g + t gets the
// scores of row t mod n_together of strips g and g + 8, and of row t + 4 if there are more than 4.
template <DomType type_, int row_bytes_>
struct CodeTile {
    static constexpr DomType type = type_;
    static constexpr bool nibbles = type == DomType::q4;
    static constexpr int row_bytes = row_bytes_, n_codes = nibbles ? 2 * row_bytes : row_bytes;
    static_assert(row_bytes % 8 == 0 && n_codes <= max_codes);
    static constexpr int n_together = row_bytes <= 16 ? 64 / row_bytes : row_bytes == 32 ? 4 : row_bytes <= 64 ? 2 : 1;
    static_assert(n_together * row_bytes % 16 == 0);
    static constexpr int n_piece = n_together * row_bytes / 16, n_pair = (n_piece + 1) / 2;
    static constexpr int n_strip = 16, n_row = n_strip * n_together, n_bytes = n_row * row_bytes;
    static constexpr int n_mine = n_together > 4 ? n_together / 4 : 1;  // rows of a strip whose scores a lane gets
    // Lanes that get the same scores. So many tiles are a batch, and each of the lanes keeps those of one.
    static constexpr int n_alike = n_together < 4 ? 4 / n_together : 1;
    static constexpr int n_value = n_mine * n_digit, n_product = (n_value + 1) / 2;
    static constexpr int n_step = nibbles ? n_piece : n_pair;

    // Bytes [4 t, 4 t + 4) of pieces 2 i and 2 i + 1 of strips g and g + 8: [i][2 (piece mod 2) + (strip >= 8)].
    uint32_t words[n_pair][4];

    // What a step multiplies: 32 codes of a strip, two pieces or the low nibbles of one and its high ones.
    __device__ void factor(int step, uint32_t (&a)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint32_t word = nibbles ? words[step / 2][step % 2 * 2 + i % 2] : words[step][i];
            a[i] = nibbles ? word >> i / 2 * 4 & 0x0f0f0f0fu : word;
        }
    }
};

// A set's query: dim d is worth (65536 digit[2] + 256 digit[1] + digit[0]) times a unit. A warp has its own.
template <class Tile>
struct QueryDigits {
    // int8: in the order of dims; q4: first the low nibbles', then the high ones'.
    alignas(4) int8_t digit[n_digit][Tile::n_codes];

    // By the warp; returns the unit: the power of two that makes the largest dim 22 bits long, but at least 2^-126,
    // which matters where no dim reaches 2^-105. NaN if a dim is not finite.
    __device__ float split(const SetQueries& queries, int head_dim, int set) {
        constexpr int n = (Tile::n_codes + 31) / 32;
        const int lane = threadIdx.x % 32;
        float q[n];
        sum_queries(q, queries, head_dim, set, lane, Tile::n_codes);
        uint32_t top = 0;  // magnitudes as bits grow with the number, and NaN is above infinity
#pragma unroll
        for (const float dim : q) top = max(top, __float_as_uint(fabsf(dim)));
#pragma unroll
        for (int bit = 16; bit > 0; bit /= 2) top = max(top, __shfl_xor_sync(full_warp, top, bit));
        const bool is_finite = top < 0x7f800000u;
        const uint32_t exponent = max(top >> 23, 22u);
        const float per_unit = __uint_as_float((275 - exponent) << 23);
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const int d = lane + 32 * i;
            if (d >= Tile::n_codes) continue;
            int left = is_finite ? __float2int_rn(q[i] * per_unit) : 0;
#pragma unroll
            for (auto& of_digit : digit) {
                const auto low = static_cast<int8_t>(left);
                of_digit[Tile::nibbles ? d % 2 * Tile::row_bytes + d / 2 : d] = low;
                left = (left - low) >> 8;
            }
        }
        __syncwarp();
        return is_finite ? __uint_as_float((exponent - 21) << 23) : NAN;
    }
};

// What tiles are multiplied with.
template <class Tile>
struct TileQuery {
    // A float of these bits plus i, for |i| < 2^22, is 1.5 * 2^23 + i: sums that start with them need no conversion.
    static constexpr int magic_bits = 0x4b400000;
    static constexpr float magic = 0x1.8p23f;

    uint32_t b[Tile::n_step][Tile::n_product][2];
    float zero[n_digit];  // the sums of codes that stand for zero
    float unit;

    // Column g of product i has digit x mod 3 of the row that lanes g / 2 get first or, from x = 3 on, second, where
    // x = 2 i + g mod 2; zeros where other rows of the strip lie.
    __device__ void load(const QueryDigits<Tile>& q, float its_unit) {
        unit = its_unit;
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < Tile::n_product; ++i) {
            const int x = 2 * i + g % 2, row = g / 2 % Tile::n_together + x / n_digit * 4;
            const int first = 4 * t - row * Tile::row_bytes;
            const int8_t* digits = q.digit[x % n_digit];
#pragma unroll
            for (int step = 0; step < Tile::n_step; ++step) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const unsigned at = first + 16 * (Tile::nibbles ? step : 2 * step + j);
                    const int half = Tile::nibbles ? j * Tile::row_bytes : 0;
                    b[step][i][j] = 0;
                    if (x < Tile::n_value && at < Tile::row_bytes) {
                        b[step][i][j] = *reinterpret_cast<const uint32_t*>(digits + half + at);
                    }
                }
            }
        }
        if constexpr (Tile::nibbles) {
            Tile zeros;
#pragma unroll
            for (auto& pair : zeros.words) {
#pragma unroll
                for (uint32_t& word : pair) word = 0x88888888u;
            }
            float sums[2][Tile::n_value];
            multiply(zeros, sums);
#pragma unroll
            for (int digit = 0; digit < n_digit; ++digit) zero[digit] = sums[0][digit];
        }
    }

    // Sums of codes times digits, plus magic, of the lane's rows in strips g and g + 8. By whole warps.
    __device__ void multiply(const Tile& tile, float (&sums)[2][Tile::n_value]) const {
        int32_t d[Tile::n_product][4];
#pragma unroll
        for (auto& product : d) {
#pragma unroll
            for (int32_t& sum : product) sum = magic_bits;
        }
#pragma unroll
        for (int step = 0; step < Tile::n_step; ++step) {
            uint32_t a[4];
            tile.factor(step, a);
#pragma unroll
            for (int i = 0; i < Tile::n_product; ++i) ptx::mma_i8<Tile::nibbles>(d[i], a, b[step][i]);
        }
#pragma unroll
        for (int strip = 0; strip < 2; ++strip) {
#pragma unroll
            for (int x = 0; x < Tile::n_value; ++x) sums[strip][x] = __int_as_float(d[x / 2][2 * strip + x % 2]);
        }
    }
    // The score by the n_digit sums of a row, its scale left out.
    __device__ float score(const float* sums) const {
        const auto sum = [&](int digit) { return sums[digit] - (Tile::nibbles ? zero[digit] : magic); };
        float score = sum(n_digit - 1);
#pragma unroll
        for (int digit = n_digit - 2; digit >= 0; --digit) score = fmaf(score, 256.0f, sum(digit));
        return score * unit;
    }
};

}  // namespace fasa::cuda::scoring
