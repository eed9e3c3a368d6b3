#include "base/mmap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace fasa {
namespace {

struct Descriptor {
    int fd;
    ~Descriptor() {
        if (fd >= 0) ::close(fd);
    }
};

}  // namespace

MappedFile::MappedFile(const std::string& path) {
    // O_NONBLOCK: opening a named pipe must not wait for a writer.
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.fd < 0) fail(FASA_ERROR_IO, "cannot open %s: %s", path.c_str(), std::strerror(errno));
    struct stat info;
    if (::fstat(file.fd, &info) != 0) fail(FASA_ERROR_IO, "cannot read %s: %s", path.c_str(), std::strerror(errno));
    if (!S_ISREG(info.st_mode)) fail(FASA_ERROR_IO, "cannot read %s: not a regular file", path.c_str());
    if (info.st_size == 0) return;
    const size_t size = static_cast<size_t>(info.st_size);
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd, 0);
    if (data == MAP_FAILED) fail(FASA_ERROR_IO, "cannot map %s: %s", path.c_str(), std::strerror(errno));
    data_ = static_cast<const uint8_t*>(data);
    size_ = size;
}

MappedFile::~MappedFile() {
    if (data_) ::munmap(const_cast<uint8_t*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

void read_ahead(const void* data, size_t n_bytes) {
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
    const size_t length = reinterpret_cast<uintptr_t>(data) + n_bytes - begin;
#ifdef MADV_POPULATE_READ
    if (::madvise(reinterpret_cast<void*>(begin), length, MADV_POPULATE_READ) == 0) return;
#endif
    ::madvise(reinterpret_cast<void*>(begin), length, MADV_WILLNEED);
}

}  // namespace fasa
