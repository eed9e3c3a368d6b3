#include "base/hash.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace fasa {
namespace {

constexpr uint64_t p1 = 0x9E3779B185EBCA87u, p2 = 0xC2B2AE3D27D4EB4Fu, p3 = 0x165667B19E3779F9u;
constexpr uint64_t p4 = 0x85EBCA77C2B2AE63u, p5 = 0x27D4EB2F165667C5u;

template <class T>
uint64_t load(const uint8_t* p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

uint64_t round(uint64_t lane, uint64_t input) { return std::rotl(lane + input * p2, 31) * p1; }

void consume(uint64_t (&lane)[4], const uint8_t* stripe) {
    for (int i = 0; i < 4; ++i) lane[i] = round(lane[i], load<uint64_t>(stripe + 8 * i));
}

}  // namespace

void Hash64::update(const void* data, size_t n) {
    if (n == 0) return;
    const auto* p = static_cast<const uint8_t*>(data);
    const size_t filled = n_total_ % 32;
    n_total_ += n;
    if (filled > 0) {
        const size_t take = std::min(n, 32 - filled);
        std::memcpy(tail_ + filled, p, take);
        if (filled + take < 32) return;
        consume(lane_, tail_);
        p += take;
        n -= take;
    }
    for (; n >= 32; p += 32, n -= 32) consume(lane_, p);
    std::memcpy(tail_, p, n);
}

uint64_t Hash64::digest() const {
    uint64_t h = p5;
    if (n_total_ >= 32) {
        h = std::rotl(lane_[0], 1) + std::rotl(lane_[1], 7) + std::rotl(lane_[2], 12) + std::rotl(lane_[3], 18);
        for (const uint64_t lane : lane_) h = (h ^ round(0, lane)) * p1 + p4;
    }
    h += n_total_;
    const uint8_t* p = tail_;
    const uint8_t* end = tail_ + n_total_ % 32;
    for (; p + 8 <= end; p += 8) h = std::rotl(h ^ round(0, load<uint64_t>(p)), 27) * p1 + p4;
    for (; p + 4 <= end; p += 4) h = std::rotl(h ^ (load<uint32_t>(p) * p1), 23) * p2 + p3;
    for (; p < end; ++p) h = std::rotl(h ^ (*p * p5), 11) * p1;
    h = (h ^ (h >> 33)) * p2;
    h = (h ^ (h >> 29)) * p3;
    return h ^ (h >> 32);
}

uint64_t hash64(const void* data, size_t n) {
    Hash64 hash;
    hash.update(data, n);
    return hash.digest();
}

}  // namespace fasa
