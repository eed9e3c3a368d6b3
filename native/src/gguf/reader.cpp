#include "gguf/reader.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <set>

#include "base/error.h"
#include "gguf/cursor.h"
#include "gguf/utf8.h"

namespace fasa::gguf {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF values are read in place, as little-endian");

constexpr uint64_t longest_key = 65535, longest_tensor_name = 64;  // bytes; the specification's limits
constexpr uint32_t default_alignment = 32;
// Metadata entries, and tensors, of one file. Real ones have some hundreds to some ten thousand; without a limit, the
// tables in memory could become ten times as large as the file.
constexpr uint64_t most_entries = 65536;
// The least a metadata entry (length, 1 byte of key, type, value) and a tensor's row in the table take.
constexpr uint64_t min_meta_bytes = 8 + 1 + 4 + 1, min_tensor_bytes = 8 + 1 + 4 + 8 + 4 + 8;

// Bytes of an element; 0 for those without a fixed size.
uint64_t meta_type_bytes(fasa_meta_type type) {
    switch (type) {
        case FASA_META_U8:
        case FASA_META_I8:
        case FASA_META_BOOL:
            return 1;
        case FASA_META_U16:
        case FASA_META_I16:
            return 2;
        case FASA_META_U32:
        case FASA_META_I32:
        case FASA_META_F32:
            return 4;
        case FASA_META_U64:
        case FASA_META_I64:
        case FASA_META_F64:
            return 8;
        default:
            return 0;
    }
}

unsigned long long number(uint64_t value) { return value; }

class Reader {
   public:
    Reader(std::span<const uint8_t> bytes, const std::string& file)
        : bytes_(bytes), file_(file), cursor_(bytes, file), metadata_(file) {}

    Part read() {
        const uint32_t version = read_version();
        const uint64_t n_tensors = cursor_.read<uint64_t>("the number of tensors");
        const uint64_t n_meta = cursor_.read<uint64_t>("the number of metadata entries");
        check_table(n_meta, min_meta_bytes, "metadata entries");
        for (uint64_t i = 0; i < n_meta; ++i) read_meta(i);
        const uint32_t alignment = read_alignment();
        check_table(n_tensors, min_tensor_bytes, "tensors");
        for (uint64_t i = 0; i < n_tensors; ++i) read_tensor(i);
        place_tensors(alignment);
        return {version, alignment, bytes_.size(), std::move(metadata_), std::move(tensors_)};
    }

   private:
    [[noreturn]] void bad_meta(std::string_view key, const std::string& what) const {
        fail(FASA_ERROR_FORMAT, "%s: metadata key %s: %s", file_.c_str(), printable(key).c_str(), what.c_str());
    }

    [[noreturn]] void bad_tensor(std::string_view name, const std::string& what) const {
        fail(FASA_ERROR_FORMAT, "%s: tensor %s: %s", file_.c_str(), printable(name).c_str(), what.c_str());
    }

    void check_table(uint64_t n, uint64_t min_bytes, const char* what) const {
        if (cursor_.checked_count(n, min_bytes, what) > most_entries) {
            fail(FASA_ERROR_UNSUPPORTED, "%s: %llu %s; supported are up to %llu", file_.c_str(), number(n), what,
                 number(most_entries));
        }
    }

    uint32_t read_version() {
        const std::string_view magic(reinterpret_cast<const char*>(cursor_.take(4, "the magic \"GGUF\"")), 4);
        if (magic != "GGUF") {
            fail(FASA_ERROR_FORMAT, "%s: not a GGUF file: it starts with \"%s\", not \"GGUF\"", file_.c_str(),
                 printable(magic).c_str());
        }
        const uint32_t version = cursor_.read<uint32_t>("the version");
        if (version == 2 || version == 3) return version;
        if ((version & 0xffffu) == 0 && version != 0) {
            fail(FASA_ERROR_UNSUPPORTED, "%s: a big-endian GGUF file; only little-endian ones are supported",
                 file_.c_str());
        }
        fail(FASA_ERROR_UNSUPPORTED, "%s: GGUF version %u; supported are 2 and 3. Convert the model again",
             file_.c_str(), version);
    }

    void read_meta(uint64_t i) {
        const std::string_view key = cursor_.string("a metadata key");
        const std::string place = "metadata key " + std::to_string(i);
        check_text(key, longest_key, place);
        if (metadata_.has(key)) bad_meta(key, "occurs twice");
        Meta& meta = metadata_.add(key);
        meta.type = meta.elem_type = read_meta_type(key);
        if (meta.is_array()) {
            meta.elem_type = read_meta_type(key);
            if (meta.elem_type == FASA_META_ARRAY) {
                fail(FASA_ERROR_UNSUPPORTED, "%s: metadata key %s: an array of arrays, which is not supported",
                     file_.c_str(), printable(key).c_str());
            }
            meta.n = cursor_.read<uint64_t>("the length of an array");
        }
        if (meta.elem_type == FASA_META_STRING) {
            read_strings(meta);
        } else {
            read_numbers(meta);
        }
    }

    fasa_meta_type read_meta_type(std::string_view key) {
        const uint32_t type = cursor_.read<uint32_t>("the type of a metadata value");
        if (type > FASA_META_F64) bad_meta(key, "unknown value type " + std::to_string(type));
        return static_cast<fasa_meta_type>(type);
    }

    void read_numbers(Meta& meta) {
        const uint64_t size = meta_type_bytes(meta.elem_type);
        cursor_.checked_count(meta.n, size, "array elements");
        meta.data = cursor_.take(meta.n * size, "a metadata value");
        if (meta.elem_type != FASA_META_BOOL) return;
        for (uint64_t i = 0; i < meta.n; ++i) {
            if (meta.data[i] > 1) bad_meta(meta.key, "a bool is " + std::to_string(meta.data[i]) + ", not 0 or 1");
        }
    }

    void read_strings(Meta& meta) {
        if (!meta.is_array()) {
            const std::string_view value = cursor_.string("a metadata string");
            meta.data = reinterpret_cast<const uint8_t*>(value.data());
            meta.offsets = {0, value.size()};
            return;
        }
        cursor_.checked_count(meta.n, sizeof(uint64_t), "strings");
        meta.offsets.reserve(meta.n + 1);
        meta.offsets.push_back(0);
        for (uint64_t i = 0; i < meta.n; ++i) {
            meta.strings += cursor_.string("a metadata string");
            meta.offsets.push_back(meta.strings.size());
        }
        meta.data = reinterpret_cast<const uint8_t*>(meta.strings.data());
    }

    // Keys and tensor names: C strings to callers, and text in their messages.
    void check_text(std::string_view text, uint64_t longest, const std::string& place) const {
        const char* flaw = text.empty()                                ? "is empty"
                           : text.size() > longest                     ? "is too long"
                           : text.find('\0') != std::string_view::npos ? "contains a zero byte"
                           : !is_utf8(text)                            ? "is not valid UTF-8"
                                                                       : nullptr;
        if (flaw) {
            fail(FASA_ERROR_FORMAT, "%s: %s (\"%s\") %s; allowed are 1 to %llu bytes of UTF-8", file_.c_str(),
                 place.c_str(), printable(text).c_str(), flaw, number(longest));
        }
    }

    uint32_t read_alignment() const {
        const Meta* meta = metadata_.find("general.alignment");
        if (!meta) return default_alignment;
        if (meta->type != FASA_META_U32) bad_meta(meta->key, "is not a u32");
        const uint32_t alignment = metadata_.u32(meta->key);
        if (!std::has_single_bit(alignment) || alignment < 8) {
            bad_meta(meta->key, "is " + std::to_string(alignment) + ", not a power of two from 8");
        }
        return alignment;
    }

    void read_tensor(uint64_t i) {
        const std::string_view name = cursor_.string("a tensor name");
        check_text(name, longest_tensor_name, "the name of tensor " + std::to_string(i));
        if (!names_.insert(name).second) bad_tensor(name, "occurs twice");
        Tensor& tensor = tensors_.emplace_back();
        tensor.name = name;
        const uint32_t n_dims = cursor_.read<uint32_t>("the number of dims of a tensor");
        if (n_dims < 1 || n_dims > FASA_MAX_DIMS) {
            bad_tensor(name, "has " + std::to_string(n_dims) + " dims; allowed are 1 to 4");
        }
        tensor.n_dims = static_cast<int32_t>(n_dims);
        for (uint32_t d = 0; d < n_dims; ++d) tensor.dims[d] = cursor_.read<int64_t>("a dim of a tensor");
        tensor.dtype = read_dtype(name);
        tensor.n_bytes = checked_bytes(tensor);
        tensor.offset = cursor_.read<uint64_t>("the offset of a tensor");
    }

    DType read_dtype(std::string_view name) {
        const uint32_t type = cursor_.read<uint32_t>("the type of a tensor");
        if (dtype_traits(type).name) return static_cast<DType>(type);
        const char* known = dtype_known_name(type);
        fail(FASA_ERROR_UNSUPPORTED, "%s: tensor %s has type %s (number %u), which is not supported. Supported: %s",
             file_.c_str(), printable(name).c_str(), known ? known : "unknown", type, dtype_supported_names());
    }

    uint64_t checked_bytes(const Tensor& tensor) const {
        const DTypeTraits traits = dtype_traits(tensor.dtype);
        std::optional<int64_t> values = 1;
        std::string shape;
        for (int32_t d = 0; d < tensor.n_dims; ++d) {
            const int64_t dim = tensor.dims[d];
            if (dim < 1) bad_tensor(tensor.name, "dim " + std::to_string(d) + " is " + std::to_string(dim));
            if (values) values = checked_mul(*values, dim);
            shape += (d ? " x " : "") + std::to_string(dim);
        }
        if (tensor.dims[0] % traits.block_values != 0) {
            bad_tensor(tensor.name, "rows of " + std::to_string(tensor.dims[0]) + " values are no multiple of the " +
                                        traits.name + " block of " + std::to_string(traits.block_values));
        }
        std::optional<uint64_t> n_bytes;
        if (values)
            n_bytes = checked_mul<uint64_t>(static_cast<uint64_t>(*values / traits.block_values), traits.block_bytes);
        if (!n_bytes) bad_tensor(tensor.name, "the size of " + shape + " values overflows");
        return *n_bytes;
    }

    // Offsets in the table count from the aligned end of the table.
    void place_tensors(uint32_t alignment) {
        const uint64_t start = (cursor_.position() + alignment - 1) / alignment * alignment;
        for (Tensor& tensor : tensors_) {
            if (tensor.offset % alignment != 0) {
                bad_tensor(tensor.name, "offset " + std::to_string(tensor.offset) +
                                            " is no multiple of the alignment " + std::to_string(alignment));
            }
            const std::optional<uint64_t> first = checked_add(start, tensor.offset);
            const std::optional<uint64_t> end = first ? checked_add(*first, tensor.n_bytes) : std::nullopt;
            if (!end || *end > bytes_.size()) {
                bad_tensor(tensor.name, "its " + std::to_string(tensor.n_bytes) + " bytes at offset " +
                                            std::to_string(tensor.offset) + " end outside the file of " +
                                            std::to_string(bytes_.size()) +
                                            " bytes: truncated or damaged, download it again");
            }
            tensor.offset = *first;
            tensor.data = bytes_.data() + *first;
        }
        refuse_overlap();
    }

    void refuse_overlap() const {
        std::vector<const Tensor*> sorted;
        for (const Tensor& tensor : tensors_) sorted.push_back(&tensor);
        std::sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return a->offset < b->offset; });
        for (size_t i = 1; i < sorted.size(); ++i) {
            if (sorted[i]->offset < sorted[i - 1]->offset + sorted[i - 1]->n_bytes) {
                bad_tensor(sorted[i]->name, "overlaps tensor " + printable(sorted[i - 1]->name));
            }
        }
    }

    std::span<const uint8_t> bytes_;
    const std::string& file_;
    Cursor cursor_;
    Metadata metadata_;
    std::vector<Tensor> tensors_;
    std::set<std::string_view> names_;
};

}  // namespace

Part read_part(std::span<const uint8_t> bytes, const std::string& file) { return Reader(bytes, file).read(); }

}  // namespace fasa::gguf
