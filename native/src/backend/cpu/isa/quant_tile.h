// Quantised blocks of LANES rows at once, one row a lane: the columns of the file's blocks are gathered, and the bits
// are taken apart for all rows alike. A format is seen as value = scale * q + offset with signed bytes q, per group of
// 16 or 32 values; the offset is only there for formats with a minimum of their own, whose q are never negative.
#pragma once

#include "backend/cpu/isa/vector_ints.h"
#include "backend/cpu/quant.h"

namespace fasa::cpu::FASA_ISA {

// Bits n and up of every byte, masked.
inline vi field(vi bytes, int n, uint32_t mask) { return bit_and(shift_right(bytes, n), splat(mask * 0x01010101u)); }
inline vf floats(vi a, int shift, uint32_t mask) { return to_floats(bit_and(shift_right(a, shift), splat(mask))); }
inline vi minus(vi bytes, uint32_t x) { return sub_bytes(bytes, splat(x * 0x01010101u)); }
inline vi iq4_values(vi index) {
    return shuffle_table(_mm_loadu_si128(reinterpret_cast<const __m128i*>(IQ4_VALUES)), index);
}
// Bits n to n + 3 of each lane's word, each as the fifth bit of a byte.
inline vi fifth_bits(vi word, int n) {
    const vi four = bit_and(shift_right(word, n), splat(15));
    return shift_left(bit_and(mul_ints(four, splat(0x00204081)), splat(0x01010101)), 4);
}

// The same block of LANES rows.
template <class Block>
struct Column {
    const uint8_t* p;  // of the first row
    vi offsets;        // bytes from there to each row

    // Four bytes at an offset within the block.
    vi at(size_t offset) const { return gather(p + offset, offsets); }
};

// unpack(column, out) calls out.bytes(g, c, q) with values 4 c .. 4 c + 3 of group g, and out.scale(g, scale) or
// out.scale(g, scale, offset), for every group of a block. `largest` is the largest |q|.

template <class Block>
struct Tiled;

template <class Block, class Out, class Convert>
inline void unpack_nibbles(const Column<Block>& b, Out& out, Convert convert) {
    for (int c = 0; c < 4; ++c) {
        const vi two = b.at(offsetof(Block, qs) + 4 * c);
        out.bytes(0, c, convert(field(two, 0, 15), c));
        out.bytes(0, c + 4, convert(field(two, 4, 15), c + 4));
    }
}

template <>
struct Tiled<BlockQ4_0> {
    static constexpr int size = QK, group = QK;
    static constexpr int largest = 8;
    static constexpr bool has_offset = false;
    template <class Out>
    static void unpack(const Column<BlockQ4_0>& b, Out& out) {
        out.scale(0, half_floats(b.at(0)));
        unpack_nibbles(b, out, [](vi q, int) { return minus(q, 8); });
    }
};

template <>
struct Tiled<BlockQ4_1> {
    static constexpr int size = QK, group = QK;
    static constexpr int largest = 15;
    static constexpr bool has_offset = true;
    template <class Out>
    static void unpack(const Column<BlockQ4_1>& b, Out& out) {
        const vi dm = b.at(0);
        out.scale(0, half_floats(dm), half_floats(shift_right(dm, 16)));
        unpack_nibbles(b, out, [](vi q, int) { return q; });
    }
};

template <>
struct Tiled<BlockQ5_0> {
    static constexpr int size = QK, group = QK;
    static constexpr int largest = 16;
    static constexpr bool has_offset = false;
    template <class Out>
    static void unpack(const Column<BlockQ5_0>& b, Out& out) {
        out.scale(0, half_floats(b.at(0)));
        const vi high = b.at(offsetof(BlockQ5_0, qh));
        unpack_nibbles(b, out, [&](vi q, int c) { return minus(bit_or(q, fifth_bits(high, 4 * c)), 16); });
    }
};

template <>
struct Tiled<BlockQ5_1> {
    static constexpr int size = QK, group = QK;
    static constexpr int largest = 31;
    static constexpr bool has_offset = true;
    template <class Out>
    static void unpack(const Column<BlockQ5_1>& b, Out& out) {
        const vi dm = b.at(0), high = b.at(offsetof(BlockQ5_1, qh));
        out.scale(0, half_floats(dm), half_floats(shift_right(dm, 16)));
        unpack_nibbles(b, out, [&](vi q, int c) { return bit_or(q, fifth_bits(high, 4 * c)); });
    }
};

template <>
struct Tiled<BlockQ8_0> {
    static constexpr int size = QK, group = QK;
    static constexpr int largest = 128;
    static constexpr bool has_offset = false;
    template <class Out>
    static void unpack(const Column<BlockQ8_0>& b, Out& out) {
        out.scale(0, half_floats(b.at(0)));
        for (int c = 0; c < 8; ++c) out.bytes(0, c, b.at(offsetof(BlockQ8_0, qs) + 4 * c));
    }
};

template <>
struct Tiled<BlockIQ4_NL> {
    static constexpr int size = QK, group = QK;
    static constexpr int largest = 127;
    static constexpr bool has_offset = false;
    template <class Out>
    static void unpack(const Column<BlockIQ4_NL>& b, Out& out) {
        out.scale(0, half_floats(b.at(0)));
        unpack_nibbles(b, out, [](vi q, int) { return iq4_values(q); });
    }
};

template <>
struct Tiled<BlockQ2_K> {
    static constexpr int size = QK_K, group = 16;
    static constexpr int largest = 3;
    static constexpr bool has_offset = true;
    template <class Out>
    static void unpack(const Column<BlockQ2_K>& b, Out& out) {
        const vi dm = b.at(offsetof(BlockQ2_K, d));
        const vf d = half_floats(dm), dmin = sub(zero(), half_floats(shift_right(dm, 16)));
        for (int i = 0; i < 4; ++i) {
            const vi four = b.at(offsetof(BlockQ2_K, scales) + 4 * i);
            for (int j = 0; j < 4; ++j) {
                out.scale(4 * i + j, mul(d, floats(four, 8 * j, 15)), mul(dmin, floats(four, 8 * j + 4, 15)));
            }
        }
        for (int c = 0; c < 16; ++c) {
            const vi q = b.at(offsetof(BlockQ2_K, qs) + 4 * c);
            for (int run = 0; run < 4; ++run) out.bytes(c / 8 * 8 + run * 2 + c % 8 / 4, c % 4, field(q, 2 * run, 3));
        }
    }
};

template <>
struct Tiled<BlockQ3_K> {
    static constexpr int size = QK_K, group = 16;
    static constexpr int largest = 4;
    static constexpr bool has_offset = false;
    template <class Out>
    static void unpack(const Column<BlockQ3_K>& b, Out& out) {
        const vf d = half_floats(shift_right(b.at(offsetof(BlockQ3_K, d) - 2), 16));
        const vi high = b.at(offsetof(BlockQ3_K, scales) + 8);
        for (int i = 0; i < 2; ++i) {
            const vi low = b.at(offsetof(BlockQ3_K, scales) + 4 * i);
            for (int top = 0; top < 2; ++top) {  // which nibble
                const vi s = minus(bit_or(field(low, 4 * top, 15), shift_left(field(high, 4 * top + 2 * i, 3), 4)), 32);
                for (int j = 0; j < 4; ++j) {
                    const vi byte = shift_left(shift_right(s, 8 * j), 24);
                    out.scale(8 * top + 4 * i + j, mul(mul(d, set1(0x1p-24f)), to_floats(byte)));
                }
            }
        }
        for (int c = 0; c < 8; ++c) {
            const vi mask = b.at(offsetof(BlockQ3_K, hmask) + 4 * c);
            for (int run = 0; run < 8; ++run) {
                const vi q = b.at(offsetof(BlockQ3_K, qs) + run / 4 * 32 + 4 * c);
                const vi value = bit_or(field(q, run % 4 * 2, 3), shift_left(field(mask, run, 1), 2));
                out.bytes(run * 2 + c / 4, c % 4, minus(value, 4));
            }
        }
    }
};

// The 6-bit scales and mins of Q4_K and Q5_K.
template <class Block, class Out>
inline void unpack_scales_k45(const Column<Block>& b, Out& out) {
    const vi dm = b.at(offsetof(Block, d));
    const vf d = half_floats(dm), dmin = sub(zero(), half_floats(shift_right(dm, 16)));
    const vi low = b.at(offsetof(Block, scales)), mid = b.at(offsetof(Block, scales) + 4);
    const vi high = b.at(offsetof(Block, scales) + 8);
    const vi s[2] = {field(low, 0, 63), bit_or(field(high, 0, 15), shift_left(field(low, 6, 3), 4))};
    const vi m[2] = {field(mid, 0, 63), bit_or(field(high, 4, 15), shift_left(field(mid, 6, 3), 4))};
    for (int g = 0; g < 8; ++g) {
        const int shift = g % 4 * 8;
        out.scale(g, mul(d, floats(s[g / 4], shift, 63)), mul(dmin, floats(m[g / 4], shift, 63)));
    }
}

template <>
struct Tiled<BlockQ4_K> {
    static constexpr int size = QK_K, group = 32;
    static constexpr int largest = 15;
    static constexpr bool has_offset = true;
    template <class Out>
    static void unpack(const Column<BlockQ4_K>& b, Out& out) {
        unpack_scales_k45(b, out);
        for (int c = 0; c < 32; ++c) {
            const vi two = b.at(offsetof(BlockQ4_K, qs) + 4 * c);
            out.bytes(c / 8 * 2, c % 8, field(two, 0, 15));
            out.bytes(c / 8 * 2 + 1, c % 8, field(two, 4, 15));
        }
    }
};

template <>
struct Tiled<BlockQ5_K> {
    static constexpr int size = QK_K, group = 32;
    static constexpr int largest = 31;
    static constexpr bool has_offset = true;
    template <class Out>
    static void unpack(const Column<BlockQ5_K>& b, Out& out) {
        unpack_scales_k45(b, out);
        for (int c = 0; c < 8; ++c) {
            const vi high = b.at(offsetof(BlockQ5_K, qh) + 4 * c);
            for (int g = 0; g < 8; g += 2) {
                const vi two = b.at(offsetof(BlockQ5_K, qs) + 16 * g + 4 * c);
                out.bytes(g, c, bit_or(field(two, 0, 15), shift_left(field(high, g, 1), 4)));
                out.bytes(g + 1, c, bit_or(field(two, 4, 15), shift_left(field(high, g + 1, 1), 4)));
            }
        }
    }
};

template <>
struct Tiled<BlockQ6_K> {
    static constexpr int size = QK_K, group = 16;
    static constexpr int largest = 32;
    static constexpr bool has_offset = false;
    template <class Out>
    static void unpack(const Column<BlockQ6_K>& b, Out& out) {
        const vf d = mul(half_floats(shift_right(b.at(offsetof(BlockQ6_K, d) - 2), 16)), set1(0x1p-24f));
        for (int g = 0; g < 16; ++g) {
            const vi four = b.at(offsetof(BlockQ6_K, scales) + g / 4 * 4);
            out.scale(g, mul(d, to_floats(shift_left(shift_right(four, g % 4 * 8), 24))));
        }
        for (int c = 0; c < 16; ++c) {  // 8 columns of each half of the block
            const int first_run = c / 8 * 4, column = c % 8 * 4;
            const vi high = b.at(offsetof(BlockQ6_K, qh) + c / 8 * 32 + column);
            for (int run = 0; run < 2; ++run) {
                const vi low = b.at(offsetof(BlockQ6_K, ql) + c / 8 * 64 + run * 32 + column);
                for (int top = 0; top < 4; top += 2) {
                    const vi q = bit_or(field(low, 2 * top, 15), shift_left(field(high, 2 * (run + top), 3), 4));
                    out.bytes((first_run + run + top) * 2 + c % 8 / 4, c % 4, minus(q, 32));
                }
            }
        }
    }
};

template <>
struct Tiled<BlockIQ4_XS> {
    static constexpr int size = QK_K, group = 32;
    static constexpr int largest = 127;
    static constexpr bool has_offset = false;
    template <class Out>
    static void unpack(const Column<BlockIQ4_XS>& b, Out& out) {
        const vi head = b.at(0), low = b.at(offsetof(BlockIQ4_XS, scales_l));
        const vf d = half_floats(head);
        for (int g = 0; g < 8; ++g) {
            const vi s = bit_or(bit_and(shift_right(low, 4 * g), splat(15)),
                                shift_left(bit_and(shift_right(head, 16 + 2 * g), splat(3)), 4));
            out.scale(g, mul(d, to_floats(sub_ints(s, splat(32)))));
        }
        for (int c = 0; c < 32; ++c) {
            const vi two = b.at(offsetof(BlockIQ4_XS, qs) + 4 * c);
            out.bytes(c / 4, c % 4, iq4_values(field(two, 0, 15)));
            out.bytes(c / 4, c % 4 + 4, iq4_values(field(two, 4, 15)));
        }
    }
};

}  // namespace fasa::cpu::FASA_ISA
