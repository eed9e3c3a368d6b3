// Whether bytes are well-formed UTF-8 (Unicode 15, table 3-7).
#pragma once

#include <cstdint>
#include <string_view>

namespace fasa::gguf {

inline bool is_utf8(std::string_view text) {
    const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
    const auto in = [&](size_t i, uint8_t low, uint8_t high) { return byte(i) >= low && byte(i) <= high; };
    for (size_t i = 0; i < text.size();) {
        const uint8_t lead = byte(i);
        size_t n = 1;  // bytes of this character
        if (lead >= 0x80) {
            n = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
            if (lead < 0xc2 || lead > 0xf4) return false;
            // Shortest form only, no surrogates, nothing above U+10FFFF.
            const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
            const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
            if (!in(i + 1, low, high)) return false;
            for (size_t k = 2; k < n; ++k) {
                if (!in(i + k, 0x80, 0xbf)) return false;
            }
        }
        i += n;
    }
    return true;
}

}  // namespace fasa::gguf
