#include "base/buffer.h"

#include <sys/mman.h>

#include "base/error.h"

namespace fasa {

Buffer::Buffer(size_t n_bytes, const char* what)
    : n_bytes_(n_bytes), release_([](void* data, size_t n) { munmap(data, n); }) {
    if (n_bytes == 0) return;
    void* p = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        fail(FASA_ERROR_MEMORY, "out of memory: the system refused %.1f MiB for the %s",
             static_cast<double>(n_bytes) / 0x1p20, what);
    }
#ifdef MADV_HUGEPAGE
    madvise(p, n_bytes, MADV_HUGEPAGE);  // a wish: fewer TLB misses when streaming the KV cache
#endif
    data_ = p;
}

}  // namespace fasa
