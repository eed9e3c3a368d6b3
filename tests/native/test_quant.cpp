// Dequantisation against values worked out by hand from the formats' definitions; the comparison with gguf-py over
// random blocks is in the Python tests.
#include <cstring>

#include "backend/cpu/quant.h"
#include "check.h"
#include "random_weights.h"

using namespace fasa;

namespace {

template <class Block>
std::vector<float> values(DType type, const Block& block) {
    std::vector<float> y(static_cast<size_t>(dtype_traits(type).block_values));
    cpu::dequantize_row(type, &block, y.data(), static_cast<int64_t>(y.size()));
    return y;
}

const uint16_t HALF = float_to_half(0.5f), TWO = float_to_half(2.0f);

}  // namespace

TEST(dequantise_simple_types) {
    BlockQ4_0 q4_0{HALF, {}};
    q4_0.qs[3] = 0xf1;
    CHECK(values(FASA_DTYPE_Q4_0, q4_0)[3] == 0.5f * (1 - 8));
    CHECK(values(FASA_DTYPE_Q4_0, q4_0)[19] == 0.5f * (15 - 8));

    BlockQ4_1 q4_1{HALF, TWO, {}};
    q4_1.qs[15] = 0x3c;
    CHECK(values(FASA_DTYPE_Q4_1, q4_1)[15] == 0.5f * 12 + 2);
    CHECK(values(FASA_DTYPE_Q4_1, q4_1)[31] == 0.5f * 3 + 2);

    BlockQ5_0 q5_0{HALF, {0, 0, 0x20, 0}, {}};
    q5_0.qs[5] = 0x7a;
    CHECK(values(FASA_DTYPE_Q5_0, q5_0)[5] == 0.5f * (10 - 16));
    CHECK(values(FASA_DTYPE_Q5_0, q5_0)[21] == 0.5f * (7 + 16 - 16));

    BlockQ5_1 q5_1{HALF, TWO, {0x20, 0, 0, 0}, {}};
    q5_1.qs[5] = 0x7a;
    CHECK(values(FASA_DTYPE_Q5_1, q5_1)[5] == 0.5f * (10 + 16) + 2);
    CHECK(values(FASA_DTYPE_Q5_1, q5_1)[21] == 0.5f * 7 + 2);

    BlockQ8_0 q8_0{HALF, {}};
    q8_0.qs[31] = -128;
    CHECK(values(FASA_DTYPE_Q8_0, q8_0)[31] == -64);

    BlockIQ4_NL iq4_nl{HALF, {}};
    iq4_nl.qs[0] = 0xf8;
    CHECK(values(FASA_DTYPE_IQ4_NL, iq4_nl)[0] == 0.5f * 1);
    CHECK(values(FASA_DTYPE_IQ4_NL, iq4_nl)[16] == 0.5f * 113);
}

TEST(dequantise_k_types) {
    BlockQ2_K q2{};
    q2.d = HALF, q2.dmin = TWO;
    q2.scales[9] = 0x53;  // values 144 to 159: scale 3, min 5
    q2.qs[32 + 17] = 2;   // lowest two bits: value 128 + 17
    CHECK(values(FASA_DTYPE_Q2_K, q2)[145] == 0.5f * 3 * 2 - 2.0f * 5);
    CHECK(values(FASA_DTYPE_Q2_K, q2)[144] == -10);

    BlockQ3_K q3{};
    q3.d = HALF;
    q3.scales[1] = 0x70, q3.scales[8 + 1] = 0x20;  // group 9: low bits 7, high bits 2
    q3.qs[32 + 17] = 3;
    q3.hmask[17] = 0x10;  // run 4: values 128 to 159
    CHECK(values(FASA_DTYPE_Q3_K, q3)[145] == 0.5f * (7 + 32 - 32) * 3);
    CHECK(values(FASA_DTYPE_Q3_K, q3)[146] == 0.5f * (7 + 32 - 32) * -4);

    BlockQ4_K q4{};
    q4.d = HALF, q4.dmin = TWO;
    q4.scales[1] = 0x80, q4.scales[5] = 0x40, q4.scales[9] = 0x9a;  // group 5: scale 10 + 2 * 16, min 9 + 1 * 16
    q4.qs[64 + 7] = 0xb0;                                           // value 128 + 32 + 7
    CHECK(values(FASA_DTYPE_Q4_K, q4)[167] == 0.5f * 42 * 11 - 2.0f * 25);

    BlockQ5_K q5{};
    q5.d = HALF, q5.dmin = TWO;
    q5.scales[2] = 9, q5.scales[6] = 3;  // group 2
    q5.qs[32 + 7] = 0x04, q5.qh[7] = 4;  // value 64 + 7, fifth bit set
    CHECK(values(FASA_DTYPE_Q5_K, q5)[71] == 0.5f * 9 * 20 - 2.0f * 3);

    BlockQ6_K q6{};
    q6.d = HALF;
    q6.scales[14] = -7;                           // values 224 to 239
    q6.ql[64 + 32 + 1] = 0xc0, q6.qh[33] = 0x80;  // value 128 + 96 + 1: low 12, high 2
    CHECK(values(FASA_DTYPE_Q6_K, q6)[225] == 0.5f * -7 * (12 + 32 - 32));
    CHECK(values(FASA_DTYPE_Q6_K, q6)[226] == 0.5f * -7 * -32);

    BlockIQ4_XS iq4{};
    iq4.d = HALF;
    iq4.scales_l[1] = 0x50, iq4.scales_h = 3 << 6;  // group 3: 5 + 3 * 16 - 32
    iq4.qs[48 + 2] = 0xf0;
    CHECK(values(FASA_DTYPE_IQ4_XS, iq4)[96 + 18] == 0.5f * 21 * 113);
    CHECK(values(FASA_DTYPE_IQ4_XS, iq4)[96 + 2] == 0.5f * 21 * -127);
}

TEST(dequantise_a_row_is_its_blocks_one_after_the_other) {
    for (const DType type : test::ALL_DTYPES) {
        const int64_t block = dtype_traits(type).block_values;
        const test::RandomWeights w(type, 1, 3 * block, 1);
        std::vector<float> row(static_cast<size_t>(3 * block)), one(static_cast<size_t>(block));
        cpu::dequantize_row(type, w.view().data, row.data(), 3 * block);
        for (size_t b = 0; b < 3; ++b) {
            const auto* data = static_cast<const uint8_t*>(w.view().data) + b * dtype_traits(type).block_bytes;
            cpu::dequantize_row(type, data, one.data(), block);
            CHECK(std::memcmp(one.data(), row.data() + b * one.size(), one.size() * sizeof(float)) == 0);
        }
    }
}

TEST(dequantise_refuses_an_unknown_type) {
    float y = 0;
    CHECK_THROWS(cpu::dequantize_row(static_cast<DType>(31), &y, &y, 1), FASA_ERROR_UNSUPPORTED, "31");
}
