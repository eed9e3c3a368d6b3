// Bounded reads from a byte span, and arithmetic that notices overflow. Everything read from a file goes through here.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace fasa::gguf {

// nullopt when the result does not fit.
template <class T>
std::optional<T> checked_add(T a, T b) {
    T sum;
    if (__builtin_add_overflow(a, b, &sum)) return {};
    return sum;
}

template <class T>
std::optional<T> checked_mul(T a, T b) {
    T product;
    if (__builtin_mul_overflow(a, b, &product)) return {};
    return product;
}

// Text of a file for an error message: one line, printable, not endless.
std::string printable(std::string_view text);

class Cursor {
   public:
    // file: for error messages; must outlive the cursor.
    Cursor(std::span<const uint8_t> bytes, const std::string& file) : bytes_(bytes), file_(file) {}

    uint64_t position() const { return position_; }
    uint64_t remaining() const { return bytes_.size() - position_; }

    // The next n bytes. Throws Error(FORMAT) naming what is being read when the file ends before.
    const uint8_t* take(uint64_t n, const char* what) {
        if (n > remaining()) {
            fail(FASA_ERROR_FORMAT, "%s: truncated or damaged: %s at byte %llu needs %llu bytes, %llu are left",
                 file_.c_str(), what, static_cast<unsigned long long>(position_), static_cast<unsigned long long>(n),
                 static_cast<unsigned long long>(remaining()));
        }
        const uint8_t* start = bytes_.data() + position_;
        position_ += n;
        return start;
    }

    template <class T>
    T read(const char* what) {
        T value;
        std::memcpy(&value, take(sizeof value, what), sizeof value);
        return value;
    }

    // u64 length, then that many bytes.
    std::string_view string(const char* what) {
        const uint64_t length = read<uint64_t>(what);
        return {reinterpret_cast<const char*>(take(length, what)), static_cast<size_t>(length)};
    }

    // A count of things that take at least min_bytes each: one the rest of the file cannot hold is refused.
    uint64_t checked_count(uint64_t n, uint64_t min_bytes, const char* what) const {
        if (n > remaining() / min_bytes) {
            fail(FASA_ERROR_FORMAT, "%s: %llu %s claimed, but the %llu bytes left hold at most %llu", file_.c_str(),
                 static_cast<unsigned long long>(n), what, static_cast<unsigned long long>(remaining()),
                 static_cast<unsigned long long>(remaining() / min_bytes));
        }
        return n;
    }

   private:
    std::span<const uint8_t> bytes_;
    const std::string& file_;
    uint64_t position_ = 0;
};

}  // namespace fasa::gguf
