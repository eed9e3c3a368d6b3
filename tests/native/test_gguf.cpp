// The GGUF reader on bytes in memory: accessors, limits, every prefix of a file.
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "gguf/cursor.h"
#include "gguf/file.h"
#include "gguf/utf8.h"

using namespace fasa;
using gguf::File;

namespace {

class Bytes {
   public:
    template <class T>
    Bytes& put(T value) {
        const auto* start = reinterpret_cast<const uint8_t*>(&value);
        data_.insert(data_.end(), start, start + sizeof value);
        return *this;
    }
    Bytes& text(const std::string& value) {
        put<uint64_t>(value.size());
        data_.insert(data_.end(), value.begin(), value.end());
        return *this;
    }
    Bytes& pad(size_t multiple) {
        while (data_.size() % multiple) data_.push_back(0);
        return *this;
    }
    Bytes& header(uint64_t n_tensors, uint64_t n_meta) {
        data_.insert(data_.end(), {'G', 'G', 'U', 'F'});
        return put<uint32_t>(3).put(n_tensors).put(n_meta);
    }
    template <class T>
    Bytes& meta(const std::string& key, fasa_meta_type type, T value) {
        return text(key).put<uint32_t>(type).put(value);
    }
    template <class T>
    Bytes& array(const std::string& key, fasa_meta_type type, const std::vector<T>& values) {
        text(key).put<uint32_t>(FASA_META_ARRAY).put<uint32_t>(type).put<uint64_t>(values.size());
        for (const T& value : values) put(value);
        return *this;
    }
    const std::vector<uint8_t>& data() const { return data_; }

   private:
    std::vector<uint8_t> data_;
};

Bytes small_model() {
    Bytes bytes;
    bytes.header(2, 4)
        .meta<uint16_t>("count", FASA_META_U16, 7)
        .array<float>("scores", FASA_META_F32, {1.5f, -2.0f})
        .text("name")
        .put<uint32_t>(FASA_META_STRING)
        .text("small")
        .text("tokens")
        .put<uint32_t>(FASA_META_ARRAY)
        .put<uint32_t>(FASA_META_STRING)
        .put<uint64_t>(2);
    bytes.text("a").text("");
    bytes.text("w").put<uint32_t>(2).put<int64_t>(4).put<int64_t>(2).put<uint32_t>(FASA_DTYPE_F32).put<uint64_t>(0);
    bytes.text("q").put<uint32_t>(1).put<int64_t>(32).put<uint32_t>(FASA_DTYPE_Q8_0).put<uint64_t>(32);
    bytes.pad(32);
    for (int i = 0; i < 8; ++i) bytes.put(static_cast<float>(i));
    for (int i = 0; i < 17; ++i) bytes.put<uint16_t>(0x3c00);
    return bytes;
}

std::shared_ptr<const File> open(const Bytes& bytes) { return File::open_memory(bytes.data(), "memory"); }

template <class T>
Bytes one(fasa_meta_type type, T value) {
    Bytes bytes;
    return bytes.header(0, 1).meta("key", type, value);
}

}  // namespace

TEST(gguf_reads_a_small_model) {
    const Bytes bytes = small_model();
    const auto file = open(bytes);
    CHECK(file->version() == 3 && file->alignment() == 32 && file->n_files() == 1);
    CHECK(file->n_bytes() == bytes.data().size());
    CHECK(file->u32("count") == 7);
    CHECK(file->string("name") == "small");
    CHECK(file->find_array_size("tokens") == 2u);
    CHECK(file->find("tokens")->string(0) == "a" && file->find("tokens")->string(1).empty());
    const gguf::Tensor& w = file->tensor("w");
    CHECK(w.n_dims == 2 && w.dims[0] == 4 && w.dims[1] == 2 && w.dims[2] == 1 && w.n_bytes == 32);
    float last;
    std::memcpy(&last, static_cast<const uint8_t*>(w.data) + 28, sizeof last);
    CHECK(last == 7.0f);
    CHECK(file->tensor("q").n_bytes == 34 && file->tensor("q").offset == w.offset + 32);
    CHECK(file->find_tensor("missing") == nullptr);
    CHECK_THROWS(file->tensor("missing"), FASA_ERROR_FORMAT, "memory", "missing");
}

TEST(gguf_refuses_every_prefix) {
    const std::vector<uint8_t> whole = small_model().data();
    for (size_t n = 0; n < whole.size(); ++n) {
        const std::vector<uint8_t> prefix(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(n));
        CHECK_THROWS(File::open_memory(prefix, "cut"), FASA_ERROR_FORMAT, "cut");
    }
}

// Whatever a byte becomes, the file opens or is refused with an Error; the sanitizers see the rest.
TEST(gguf_survives_every_changed_byte) {
    const std::vector<uint8_t> whole = small_model().data();
    int opened = 0, refused = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
        for (const int value : {0x00, 0x01, 0x7f, 0x80, 0xff, whole[i] ^ 0x20}) {
            std::vector<uint8_t> changed = whole;
            changed[i] = static_cast<uint8_t>(value);
            try {
                File::open_memory(changed, "changed");
                ++opened;
            } catch (const Error& error) {
                CHECK(error.status() == FASA_ERROR_FORMAT || error.status() == FASA_ERROR_UNSUPPORTED);
                ++refused;
            }
        }
    }
    CHECK(opened > 0 && refused > 0);
}

TEST(gguf_integers_of_any_type) {
    CHECK(open(one<uint8_t>(FASA_META_U8, 200))->u32("key") == 200);
    CHECK(open(one<int8_t>(FASA_META_I8, 100))->u32("key") == 100);
    CHECK(open(one<int16_t>(FASA_META_I16, 30000))->u32("key") == 30000);
    CHECK(open(one<uint32_t>(FASA_META_U32, 0xffffffffu))->u32("key") == 0xffffffffu);
    CHECK(open(one<int32_t>(FASA_META_I32, 5))->u32("key") == 5);
    CHECK(open(one<uint64_t>(FASA_META_U64, 1u << 31))->u32("key") == 1u << 31);
    CHECK(open(one<int64_t>(FASA_META_I64, 6))->find_u32("key") == 6u);
    CHECK_THROWS(open(one<int8_t>(FASA_META_I8, -1))->u32("key"), FASA_ERROR_FORMAT, "key", "-1");
    CHECK_THROWS(open(one<int64_t>(FASA_META_I64, int64_t{1} << 32))->u32("key"), FASA_ERROR_FORMAT, "4294967296");
    CHECK_THROWS(open(one<uint64_t>(FASA_META_U64, ~uint64_t{0}))->find_u32("key"), FASA_ERROR_FORMAT, "key");
    CHECK_THROWS(open(one<float>(FASA_META_F32, 1.0f))->u32("key"), FASA_ERROR_FORMAT, "an integer", "f32");
    CHECK_THROWS(open(one<uint8_t>(FASA_META_BOOL, 1))->u32("key"), FASA_ERROR_FORMAT, "bool");
    CHECK_THROWS(open(one<uint8_t>(FASA_META_U8, 1))->u32("other"), FASA_ERROR_FORMAT, "other", "missing");
    CHECK(!open(one<uint8_t>(FASA_META_U8, 1))->find_u32("other"));
}

TEST(gguf_floats_are_finite) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    CHECK(open(one<float>(FASA_META_F32, 1e-5f))->f32("key") == 1e-5f);
    CHECK(open(one<double>(FASA_META_F64, 0.5))->find_f32("key") == 0.5f);
    CHECK_THROWS(open(one<float>(FASA_META_F32, std::nanf("")))->f32("key"), FASA_ERROR_FORMAT, "key", "nan");
    CHECK_THROWS(open(one<double>(FASA_META_F64, infinity))->f32("key"), FASA_ERROR_FORMAT, "key", "inf");
    CHECK_THROWS(open(one<double>(FASA_META_F64, 1e300))->f32("key"), FASA_ERROR_FORMAT, "key", "1e+300");
    CHECK_THROWS(open(one<uint32_t>(FASA_META_U32, 1))->f32("key"), FASA_ERROR_FORMAT, "a float", "u32");
}

TEST(gguf_other_accessors_check_the_type) {
    CHECK(open(one<uint8_t>(FASA_META_BOOL, 1))->boolean("key"));
    CHECK(open(one<uint8_t>(FASA_META_BOOL, 0))->find_boolean("key") == false);
    CHECK_THROWS(open(one<uint8_t>(FASA_META_U8, 1))->boolean("key"), FASA_ERROR_FORMAT, "a bool", "u8");
    CHECK_THROWS(open(one<uint8_t>(FASA_META_U8, 1))->string("key"), FASA_ERROR_FORMAT, "a string", "u8");
    CHECK_THROWS(open(one<uint8_t>(FASA_META_U8, 1))->find_array_size("key"), FASA_ERROR_FORMAT, "an array", "u8");
    Bytes bytes;
    bytes.header(0, 1).array<uint8_t>("key", FASA_META_U8, {1, 2, 3});
    CHECK(open(bytes)->find_array_size("key") == 3u);
    CHECK_THROWS(open(bytes)->u32("key"), FASA_ERROR_FORMAT, "an integer", "an array of 3 u8");
    CHECK_THROWS(open(bytes)->string("key"), FASA_ERROR_FORMAT, "a string", "an array of 3 u8");
}

TEST(gguf_checked_arithmetic) {
    constexpr uint64_t top = std::numeric_limits<uint64_t>::max();
    CHECK(gguf::checked_add<uint64_t>(top - 1, 1) == top);
    CHECK(!gguf::checked_add<uint64_t>(top, 1));
    CHECK(gguf::checked_mul<int64_t>(1 << 30, 1 << 30) == int64_t{1} << 60);
    CHECK(!gguf::checked_mul<int64_t>(int64_t{1} << 32, int64_t{1} << 31));
}

TEST(gguf_printable_is_one_short_line) {
    CHECK(gguf::printable("plain key") == "plain key");
    CHECK(gguf::printable(std::string("a\nb\0", 4)) == "a\\x0ab\\x00");
    CHECK(gguf::printable(std::string(1000, 'x')).size() < 130);
}

TEST(utf8_well_formed) {
    for (const char* good : {"", "a", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
                             "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "x\xe2\x82\xacy"}) {
        CHECK(gguf::is_utf8(good));
    }
    for (const char* bad :
         {"\x80", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xe2\x82",
          "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "a\xf0\x90\x80"}) {
        CHECK(!gguf::is_utf8(bad));
    }
}
