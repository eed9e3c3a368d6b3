// Memory taken once and kept: zeroed, page-aligned, freed with its owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

namespace fasa {

class Buffer {
   public:
    using Release = std::function<void(void* data, size_t n_bytes)>;

    Buffer() = default;
    // Host memory. Throws Error(MEMORY) naming `what` and the size when the system refuses.
    Buffer(size_t n_bytes, const char* what);
    // Memory of another kind, which release gives back.
    Buffer(void* data, size_t n_bytes, Release release)
        : data_(data), n_bytes_(n_bytes), release_(std::move(release)) {}
    ~Buffer() {
        if (data_) release_(data_, n_bytes_);
    }
    Buffer(Buffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)),
          n_bytes_(std::exchange(other.n_bytes_, 0)),
          release_(std::move(other.release_)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(n_bytes_, other.n_bytes_);
        std::swap(release_, other.release_);
        return *this;
    }

    void* data() const { return data_; }
    size_t n_bytes() const { return n_bytes_; }

   private:
    void* data_ = nullptr;
    size_t n_bytes_ = 0;
    Release release_;
};

// Hands out 64-byte aligned arrays from one buffer. A first pass without memory measures, a second one hands out, so
// that a plan and an allocation cannot disagree.
class Arena {
   public:
    Arena() = default;
    explicit Arena(void* base) : base_(static_cast<uint8_t*>(base)) {}

    template <class T>
    T* take(size_t n) {
        T* at = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
        used_ += (n * sizeof(T) + 63) & ~size_t{63};
        return at;
    }
    size_t used() const { return used_; }

   private:
    uint8_t* base_ = nullptr;
    size_t used_ = 0;
};

}  // namespace fasa
