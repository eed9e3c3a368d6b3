// Device memory of a model and its contexts, counted against a limit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace fasa::cuda {

class Account {
   public:
    // Bytes that may be taken at all; 0: no limit.
    explicit Account(uint64_t limit) : limit_(limit) {}

    // Throws Error(MEMORY) naming `what` when the limit does not leave so much.
    void take(uint64_t n_bytes, const char* what);
    void give_back(uint64_t n_bytes) noexcept;
    uint64_t taken() const;
    // What the limit leaves.
    uint64_t left() const;

   private:
    const uint64_t limit_;
    mutable std::mutex mutex_;  // several contexts share a model
    uint64_t taken_ = 0;
};

// A part of an account's memory, given back with this object.
class Share {
   public:
    Share() = default;
    Share(std::shared_ptr<Account> account, uint64_t n_bytes, const char* what)
        : account_(std::move(account)), n_bytes_(n_bytes) {
        if (account_) account_->take(n_bytes_, what);
    }
    ~Share() {
        if (account_) account_->give_back(n_bytes_);
    }
    Share(Share&& other) noexcept : account_(std::move(other.account_)), n_bytes_(other.n_bytes_) {}
    Share& operator=(Share&& other) noexcept {
        std::swap(account_, other.account_);
        std::swap(n_bytes_, other.n_bytes_);
        return *this;
    }

   private:
    std::shared_ptr<Account> account_;
    uint64_t n_bytes_ = 0;
};

}  // namespace fasa::cuda
