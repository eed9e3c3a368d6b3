// XXH64, the 64-bit hash of the xxHash specification (seed 0): checksums of state files, fingerprints of models.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fasa {

class Hash64 {
   public:
    void update(const void* data, size_t n);
    uint64_t digest() const;

   private:
    static constexpr uint64_t p1 = 0x9E3779B185EBCA87u, p2 = 0xC2B2AE3D27D4EB4Fu;

    uint64_t lane_[4] = {p1 + p2, p2, 0, 0 - p1};
    uint8_t tail_[32] = {};
    uint64_t n_total_ = 0;
};

uint64_t hash64(const void* data, size_t n);

}  // namespace fasa
