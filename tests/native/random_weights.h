// Random weights of any type: arbitrary bits, with scales of a sensible size.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "backend/views.h"
#include "base/error.h"
#include "base/half.h"

namespace fasa::test {

inline constexpr DType ALL_DTYPES[] = {
    FASA_DTYPE_F32,  FASA_DTYPE_F16,  FASA_DTYPE_BF16, FASA_DTYPE_Q4_0,   FASA_DTYPE_Q4_1,
    FASA_DTYPE_Q5_0, FASA_DTYPE_Q5_1, FASA_DTYPE_Q8_0, FASA_DTYPE_Q2_K,   FASA_DTYPE_Q3_K,
    FASA_DTYPE_Q4_K, FASA_DTYPE_Q5_K, FASA_DTYPE_Q6_K, FASA_DTYPE_IQ4_NL, FASA_DTYPE_IQ4_XS,
};

// Byte offsets of the half-precision fields of a block; -1: none.
struct HalfFields {
    int d, m;
};

inline HalfFields half_fields(DType type) {
    switch (type) {
        case FASA_DTYPE_Q4_1:
            return {offsetof(BlockQ4_1, d), offsetof(BlockQ4_1, m)};
        case FASA_DTYPE_Q5_1:
            return {offsetof(BlockQ5_1, d), offsetof(BlockQ5_1, m)};
        case FASA_DTYPE_Q2_K:
            return {offsetof(BlockQ2_K, d), offsetof(BlockQ2_K, dmin)};
        case FASA_DTYPE_Q3_K:
            return {offsetof(BlockQ3_K, d), -1};
        case FASA_DTYPE_Q4_K:
            return {offsetof(BlockQ4_K, d), offsetof(BlockQ4_K, dmin)};
        case FASA_DTYPE_Q5_K:
            return {offsetof(BlockQ5_K, d), offsetof(BlockQ5_K, dmin)};
        case FASA_DTYPE_Q6_K:
            return {offsetof(BlockQ6_K, d), -1};
        default:
            return {0, -1};  // the simple types and IQ4_XS begin with d
    }
}

// Memory that ends where a page begins that nobody may touch, as a file's last tensor may.
class GuardedMemory {
   public:
    explicit GuardedMemory(size_t n_bytes) : n_bytes_(n_bytes), mapped_((n_bytes + PAGE - 1) / PAGE * PAGE + PAGE) {
        void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(static_cast<uint8_t*>(p) + mapped_ - PAGE, PAGE, PROT_NONE) != 0) {
            fail(FASA_ERROR_MEMORY, "no memory for the weights of a test");
        }
        base_ = static_cast<uint8_t*>(p);
    }
    ~GuardedMemory() { munmap(base_, mapped_); }
    GuardedMemory(const GuardedMemory&) = delete;
    GuardedMemory& operator=(const GuardedMemory&) = delete;

    size_t size() const { return n_bytes_; }
    uint8_t* data() const { return base_ + mapped_ - PAGE - n_bytes_; }
    uint8_t& operator[](size_t i) const { return data()[i]; }

   private:
    static constexpr size_t PAGE = size_t{1} << 16;  // a multiple of any page size in use
    size_t n_bytes_, mapped_;
    uint8_t* base_ = nullptr;
};

class RandomWeights {
   public:
    RandomWeights(DType type, int64_t n_out, int64_t n_in, uint32_t seed)
        : rng_(seed), data_(static_cast<size_t>(n_out) * dtype_row_bytes(type, n_in)) {
        const DTypeTraits traits = dtype_traits(type);
        const size_t row_bytes = dtype_row_bytes(type, n_in);
        if (traits.block_values == 1) {
            fill_floats(type, n_out * n_in);
        } else {
            for (size_t i = 0; i < data_.size(); i += 4) {
                const uint32_t bits = static_cast<uint32_t>(rng_());
                std::memcpy(&data_[i], &bits, std::min<size_t>(4, data_.size() - i));
            }
            const HalfFields fields = half_fields(type);
            for (size_t block = 0; block < data_.size(); block += traits.block_bytes) {
                for (const int field : {fields.d, fields.m}) {
                    if (field >= 0) put_half(block + static_cast<size_t>(field), uniform());
                }
            }
        }
        view_ = {type, data_.data(), n_in, n_out, row_bytes};
    }
    const WeightView& view() const { return view_; }

   private:
    float uniform() { return std::uniform_real_distribution<float>(-0.1f, 0.1f)(rng_); }
    void put_half(size_t at, float value) {
        const uint16_t bits = float_to_half(value);
        std::memcpy(&data_[at], &bits, sizeof(bits));
    }
    void fill_floats(DType type, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
            const float value = uniform();
            const uint16_t top = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
            if (type == FASA_DTYPE_F32) std::memcpy(&data_[static_cast<size_t>(i) * 4], &value, 4);
            if (type == FASA_DTYPE_F16) put_half(static_cast<size_t>(i) * 2, value);
            if (type == FASA_DTYPE_BF16) std::memcpy(&data_[static_cast<size_t>(i) * 2], &top, 2);
        }
    }

    std::mt19937 rng_;
    GuardedMemory data_;
    WeightView view_;
};

inline std::vector<float> random_floats(int64_t n, uint32_t seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = normal(rng);
    return x;
}

}  // namespace fasa::test
