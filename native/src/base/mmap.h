// A file mapped into memory, read-only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace fasa {

// Pages are shared with every process that maps the same file and are read when first touched. Shrinking the file
// while it is mapped makes the lost pages fault (SIGBUS): no reader of mapped files can prevent that.
class MappedFile {
   public:
    // Throws Error(IO) naming the path when it is not a regular file that can be opened and mapped.
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::span<const uint8_t> bytes() const { return {data_, size_}; }

   private:
    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

// Brings the pages of a mapping into memory now instead of at their first use. A wish: failure shows nowhere but in
// time.
void read_ahead(const void* data, size_t n_bytes);

}  // namespace fasa
