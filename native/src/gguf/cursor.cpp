#include "gguf/cursor.h"

#include <cstdio>

namespace fasa::gguf {

std::string printable(std::string_view text) {
    constexpr size_t longest = 100;
    std::string out;
    for (const char c : text.substr(0, longest)) {
        if (c >= ' ' && c <= '~') {
            out += c;
        } else {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned>(static_cast<uint8_t>(c)));
            out += escape;
        }
    }
    if (text.size() > longest) out += "... (" + std::to_string(text.size()) + " bytes)";
    return out;
}

}  // namespace fasa::gguf
