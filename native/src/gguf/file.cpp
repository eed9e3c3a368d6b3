#include "gguf/file.h"

#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "gguf/cursor.h"

namespace fasa::gguf {
namespace {

// "<prefix>-00002-of-00003.gguf", as llama.cpp's gguf-split names the files of a set; number counts from 1.
struct SplitName {
    std::string prefix;
    uint32_t number, count;

    std::string path(uint32_t n) const {
        char suffix[32];
        std::snprintf(suffix, sizeof suffix, "-%05u-of-%05u.gguf", n, count);
        return prefix + suffix;
    }
};

std::optional<SplitName> split_name(const std::string& path) {
    constexpr size_t suffix_length = 20;  // of "-00002-of-00003.gguf"
    if (path.size() < suffix_length) return {};
    const size_t start = path.size() - suffix_length;
    const auto digits = [&](size_t at) {
        return static_cast<uint32_t>(std::strtoul(path.substr(start + at, 5).c_str(), nullptr, 10));
    };
    const SplitName name{path.substr(0, start), digits(1), digits(10)};
    if (name.path(name.number) != path) return {};
    return name;
}

// Throws unless the keys of a part say that it is the one its name promises.
void check_split(const Metadata& metadata, const SplitName& name, uint32_t number) {
    const uint32_t no = metadata.u32("split.no"), count = metadata.u32("split.count");
    if (no + uint64_t{1} != number || count != name.count) {
        fail(FASA_ERROR_FORMAT, "%s: split.no %u and split.count %u do not fit its name: expected %u and %u",
             metadata.path().c_str(), no, count, number - 1, name.count);
    }
}

}  // namespace

File::Loaded File::load(const std::string& path) {
    MappedFile map(path);
    Part part = read_part(map.bytes(), path);
    return {std::move(map), std::move(part)};
}

std::vector<File::Loaded> File::load_all(const std::string& path) {
    std::vector<Loaded> parts;
    Loaded opened = load(path);
    const uint32_t count = opened.part.metadata.find_u32("split.count").value_or(1);
    if (count <= 1) {
        parts.push_back(std::move(opened));
        return parts;
    }
    const std::optional<SplitName> name = split_name(path);
    if (!name || name->number < 1 || name->number > name->count) {
        fail(FASA_ERROR_FORMAT,
             "%s: one of %u files of a split model, but its name does not end in -00001-of-%05u.gguf or the like, so "
             "the others cannot be found",
             path.c_str(), count, count);
    }
    check_split(opened.part.metadata, *name, name->number);
    for (uint32_t number = 1; number <= count; ++number) {
        if (number == name->number) {
            parts.push_back(std::move(opened));
            continue;
        }
        try {
            parts.push_back(load(name->path(number)));
        } catch (const Error& error) {
            if (error.status() != FASA_ERROR_IO) throw;
            fail(FASA_ERROR_IO, "%s. It is file %u of the %u of a split model, which must lie in one directory",
                 error.what(), number, count);
        }
        check_split(parts.back().part.metadata, *name, number);
    }
    return parts;
}

File::File(std::vector<Loaded> parts)
    : Metadata(std::move(parts.front().part.metadata)),
      version_(parts.front().part.version),
      alignment_(parts.front().part.alignment),
      n_files_(static_cast<int32_t>(parts.size())) {
    for (int32_t i = 0; i < n_files_; ++i) {
        Loaded& loaded = parts[static_cast<size_t>(i)];
        n_bytes_ += loaded.part.n_bytes;
        if (loaded.map) maps_.push_back(std::move(*loaded.map));
        for (Tensor& tensor : loaded.part.tensors) {
            tensor.file = i;
            tensors_.push_back(std::move(tensor));
        }
    }
    for (const Tensor& tensor : tensors_) {
        if (!index_.emplace(tensor.name, &tensor).second) {
            fail(FASA_ERROR_FORMAT, "%s: tensor %s is in two files of the set", path().c_str(),
                 printable(tensor.name).c_str());
        }
    }
    const std::optional<uint32_t> n_tensors = find_u32("split.tensors.count");
    if (n_tensors && *n_tensors != tensors_.size()) {
        fail(FASA_ERROR_FORMAT, "%s: split.tensors.count is %u, but the %d files hold %zu tensors", path().c_str(),
             *n_tensors, n_files_, tensors_.size());
    }
}

std::shared_ptr<const File> File::open(const std::string& path) {
    return std::shared_ptr<const File>(new File(load_all(path)));
}

std::shared_ptr<const File> File::open_memory(std::span<const uint8_t> bytes, const std::string& name) {
    std::vector<Loaded> parts;
    parts.push_back({std::nullopt, read_part(bytes, name)});
    return std::shared_ptr<const File>(new File(std::move(parts)));
}

const Tensor* File::find_tensor(std::string_view name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : found->second;
}

const Tensor& File::tensor(std::string_view name) const {
    if (const Tensor* found = find_tensor(name)) return *found;
    fail(FASA_ERROR_FORMAT, "%s: tensor %s is missing", path().c_str(), printable(name).c_str());
}

}  // namespace fasa::gguf
