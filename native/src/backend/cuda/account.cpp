#include "backend/cuda/account.h"

#include <limits>

#include "base/error.h"

namespace fasa::cuda {

void Account::take(uint64_t n_bytes, const char* what) {
    const std::lock_guard lock(mutex_);
    if (limit_ > 0 && n_bytes > limit_ - taken_) {
        fail(FASA_ERROR_MEMORY, "%s: %llu bytes of device memory needed, the limit of %llu leaves %llu", what,
             static_cast<unsigned long long>(n_bytes), static_cast<unsigned long long>(limit_),
             static_cast<unsigned long long>(limit_ - taken_));
    }
    taken_ += n_bytes;
}

void Account::give_back(uint64_t n_bytes) noexcept {
    const std::lock_guard lock(mutex_);
    taken_ -= n_bytes;
}

uint64_t Account::taken() const {
    const std::lock_guard lock(mutex_);
    return taken_;
}

uint64_t Account::left() const {
    const std::lock_guard lock(mutex_);
    return limit_ > 0 ? limit_ - taken_ : std::numeric_limits<uint64_t>::max();
}

}  // namespace fasa::cuda
