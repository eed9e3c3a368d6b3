// The key-value part of a GGUF file, with accessors that check type and range.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fasa.h"

namespace fasa::gguf {

// One entry; fields as in fasa_meta. Bytes of numbers and of single strings stay in the file; the strings of an array
// lie there between their lengths and are copied out, once.
struct Meta {
    std::string key;
    fasa_meta_type type = FASA_META_U8, elem_type = FASA_META_U8;
    uint64_t n = 1;
    const uint8_t* data = nullptr;
    std::vector<uint64_t> offsets;
    std::string strings;

    bool is_array() const { return type == FASA_META_ARRAY; }
    // Element i of a string or an array of strings.
    std::string_view string(uint64_t i) const {
        return {reinterpret_cast<const char*>(data) + offsets[i], static_cast<size_t>(offsets[i + 1] - offsets[i])};
    }
};

// "u32", "string", ...
const char* meta_type_name(fasa_meta_type type);

// Every accessor throws Error(FORMAT) that names the file, the key, what was expected and what was found. The plain
// ones need the key, find_* give nullopt without it. Integers may be stored as any GGUF integer type, floats as f32 or
// f64; the value must fit, and a float must be finite.
class Metadata {
   public:
    explicit Metadata(std::string path) : path_(std::move(path)) {}
    Metadata(Metadata&&) = default;

    const std::string& path() const { return path_; }
    const std::deque<Meta>& entries() const { return entries_; }
    // nullptr when there is none.
    const Meta* find(std::string_view key) const;
    bool has(std::string_view key) const { return find(key) != nullptr; }

    uint32_t u32(std::string_view key) const;
    float f32(std::string_view key) const;
    bool boolean(std::string_view key) const;
    std::string_view string(std::string_view key) const;
    std::optional<uint32_t> find_u32(std::string_view key) const;
    std::optional<float> find_f32(std::string_view key) const;
    std::optional<bool> find_boolean(std::string_view key) const;
    std::optional<std::string_view> find_string(std::string_view key) const;

    // Elements of an array of any type.
    std::optional<uint64_t> find_array_size(std::string_view key) const;

    // A new entry under a key that is not there yet; the reader fills the rest.
    Meta& add(std::string_view key);

   private:
    const Meta& get(std::string_view key, const char* expected) const;
    [[noreturn]] void wrong_type(const Meta& meta, const char* expected) const;
    uint32_t integer(const Meta& meta) const;
    float finite(const Meta& meta) const;

    std::string path_;
    std::deque<Meta> entries_;  // in file order; elements never move
    // An ordered map, as for tensors: a file cannot choose keys that make it slow.
    std::map<std::string_view, const Meta*> index_;
};

}  // namespace fasa::gguf
