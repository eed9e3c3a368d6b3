// An open GGUF model: one file, or all files of a split set.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mmap.h"
#include "gguf/metadata.h"
#include "gguf/reader.h"

namespace fasa::gguf {

// Its metadata (that of the first file of a set) and its tensors (of all files). Immutable, so free to share.
class File : public Metadata {
   public:
    // Any file of a set opens the whole set ("name-00001-of-00003.gguf", keys split.*). Throws Error: IO naming a path
    // that cannot be opened, FORMAT or UNSUPPORTED naming file and place.
    static std::shared_ptr<const File> open(const std::string& path);
    // A single file that lies in memory; bytes must outlive the File. name is for error messages.
    static std::shared_ptr<const File> open_memory(std::span<const uint8_t> bytes, const std::string& name);

    uint32_t version() const { return version_; }
    uint32_t alignment() const { return alignment_; }  // bytes; of the first file
    int32_t n_files() const { return n_files_; }
    uint64_t n_bytes() const { return n_bytes_; }  // of all files

    const std::vector<Tensor>& tensors() const { return tensors_; }
    // nullptr when there is none.
    const Tensor* find_tensor(std::string_view name) const;
    // Throws Error(FORMAT) when there is none.
    const Tensor& tensor(std::string_view name) const;

   private:
    // A part and the mapping it points into; none when the bytes are the caller's.
    struct Loaded {
        std::optional<MappedFile> map;
        Part part;
    };
    static Loaded load(const std::string& path);
    static std::vector<Loaded> load_all(const std::string& path);
    explicit File(std::vector<Loaded> parts);

    uint32_t version_, alignment_;
    int32_t n_files_;
    uint64_t n_bytes_ = 0;
    std::vector<MappedFile> maps_;
    std::vector<Tensor> tensors_;
    std::map<std::string_view, const Tensor*> index_;
};

}  // namespace fasa::gguf
