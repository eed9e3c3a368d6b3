#include "gguf/metadata.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "gguf/cursor.h"

namespace fasa::gguf {
namespace {

template <class T>
T load(const Meta& meta) {
    T value;
    std::memcpy(&value, meta.data, sizeof value);
    return value;
}

std::string describe(const Meta& meta) {
    const std::string elem = meta_type_name(meta.elem_type);
    return meta.is_array() ? "an array of " + std::to_string(meta.n) + " " + elem : elem;
}

}  // namespace

const char* meta_type_name(fasa_meta_type type) {
    static constexpr const char* names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                            "bool", "string", "array", "u64", "i64", "f64"};
    return static_cast<size_t>(type) < std::size(names) ? names[type] : "unknown";
}

const Meta* Metadata::find(std::string_view key) const {
    const auto found = index_.find(key);
    return found == index_.end() ? nullptr : found->second;
}

Meta& Metadata::add(std::string_view key) {
    Meta& meta = entries_.emplace_back();
    meta.key = key;
    index_.emplace(meta.key, &meta);
    return meta;
}

const Meta& Metadata::get(std::string_view key, const char* expected) const {
    if (const Meta* meta = find(key)) return *meta;
    fail(FASA_ERROR_FORMAT, "%s: metadata key %s (%s) is missing", path_.c_str(), printable(key).c_str(), expected);
}

void Metadata::wrong_type(const Meta& meta, const char* expected) const {
    fail(FASA_ERROR_FORMAT, "%s: metadata key %s: expected %s, found %s", path_.c_str(), printable(meta.key).c_str(),
         expected, describe(meta).c_str());
}

uint32_t Metadata::integer(const Meta& meta) const {
    const auto in_range = [&](auto value) {
        if (value < 0 || static_cast<uint64_t>(value) > std::numeric_limits<uint32_t>::max()) {
            fail(FASA_ERROR_FORMAT, "%s: metadata key %s: expected an integer from 0 to 4294967295, found %s",
                 path_.c_str(), printable(meta.key).c_str(), std::to_string(value).c_str());
        }
        return static_cast<uint32_t>(value);
    };
    switch (meta.type) {
        case FASA_META_U8:
            return in_range(load<uint8_t>(meta));
        case FASA_META_I8:
            return in_range(load<int8_t>(meta));
        case FASA_META_U16:
            return in_range(load<uint16_t>(meta));
        case FASA_META_I16:
            return in_range(load<int16_t>(meta));
        case FASA_META_U32:
            return in_range(load<uint32_t>(meta));
        case FASA_META_I32:
            return in_range(load<int32_t>(meta));
        case FASA_META_U64:
            return in_range(load<uint64_t>(meta));
        case FASA_META_I64:
            return in_range(load<int64_t>(meta));
        default:
            wrong_type(meta, "an integer");
    }
}

float Metadata::finite(const Meta& meta) const {
    if (meta.type != FASA_META_F32 && meta.type != FASA_META_F64) wrong_type(meta, "a float");
    const double value = meta.type == FASA_META_F32 ? static_cast<double>(load<float>(meta)) : load<double>(meta);
    const float narrowed = static_cast<float>(value);
    if (!std::isfinite(narrowed)) {
        fail(FASA_ERROR_FORMAT, "%s: metadata key %s: expected a finite 32-bit float, found %g", path_.c_str(),
             printable(meta.key).c_str(), value);
    }
    return narrowed;
}

std::optional<uint32_t> Metadata::find_u32(std::string_view key) const {
    const Meta* meta = find(key);
    if (!meta) return {};
    return integer(*meta);
}

std::optional<float> Metadata::find_f32(std::string_view key) const {
    const Meta* meta = find(key);
    if (!meta) return {};
    return finite(*meta);
}

std::optional<bool> Metadata::find_boolean(std::string_view key) const {
    const Meta* meta = find(key);
    if (!meta) return {};
    if (meta->type != FASA_META_BOOL) wrong_type(*meta, "a bool");
    return *meta->data != 0;
}

std::optional<std::string_view> Metadata::find_string(std::string_view key) const {
    const Meta* meta = find(key);
    if (!meta) return {};
    if (meta->type != FASA_META_STRING) wrong_type(*meta, "a string");
    return meta->string(0);
}

uint32_t Metadata::u32(std::string_view key) const {
    get(key, "an integer");
    return *find_u32(key);
}

float Metadata::f32(std::string_view key) const {
    get(key, "a float");
    return *find_f32(key);
}

bool Metadata::boolean(std::string_view key) const {
    get(key, "a bool");
    return *find_boolean(key);
}

std::string_view Metadata::string(std::string_view key) const {
    get(key, "a string");
    return *find_string(key);
}

std::optional<uint64_t> Metadata::find_array_size(std::string_view key) const {
    const Meta* meta = find(key);
    if (!meta) return {};
    if (!meta->is_array()) wrong_type(*meta, "an array");
    return meta->n;
}

}  // namespace fasa::gguf
