// fasa.h: GGUF files.
#include <memory>

#include "backend/cpu/quant.h"
#include "base/dtype.h"
#include "capi/guard.h"
#include "capi/handles.h"

using namespace fasa;

namespace {

unsigned long long number(uint64_t value) { return value; }

void check_index(uint64_t i, uint64_t n, const char* what) {
    if (i >= n) fail(FASA_ERROR_ARGUMENT, "%s %llu asked of a file that has %llu", what, number(i), number(n));
}

}  // namespace

extern "C" {

fasa_status fasa_gguf_open(fasa_gguf** out, const char* path) {
    return guard([&] {
        require(out, "out");
        *out = nullptr;
        require(path, "path");
        auto handle = std::make_unique<fasa_gguf>();
        handle->file = gguf::File::open(path);
        *out = handle.release();
    });
}

void fasa_gguf_free(fasa_gguf* file) { delete file; }

void fasa_gguf_info_get(fasa_gguf_info* out, const fasa_gguf* file) {
    if (!out || !file) return;
    const gguf::File& f = *file->file;
    *out = {f.version(), f.alignment(), f.n_files(), f.entries().size(), f.tensors().size(), f.n_bytes()};
}

fasa_status fasa_gguf_meta(fasa_meta* out, const fasa_gguf* file, uint64_t i) {
    return guard([&] {
        require(out, "out");
        require(file, "file");
        check_index(i, file->file->entries().size(), "metadata entry");
        const gguf::Meta& meta = file->file->entries()[i];
        *out = {meta.key.c_str(), meta.type, meta.elem_type,
                meta.n,           meta.data, meta.elem_type == FASA_META_STRING ? meta.offsets.data() : nullptr};
    });
}

fasa_status fasa_gguf_tensor(fasa_tensor* out, const fasa_gguf* file, uint64_t i) {
    return guard([&] {
        require(out, "out");
        require(file, "file");
        check_index(i, file->file->tensors().size(), "tensor");
        const gguf::Tensor& t = file->file->tensors()[i];
        *out = {t.name.c_str(), t.dtype, dtype_traits(t.dtype).name, t.n_dims, {}, t.n_bytes, t.offset, t.file, t.data};
        std::copy(std::begin(t.dims), std::end(t.dims), out->dims);
    });
}

fasa_status fasa_dequantize(float* out, fasa_dtype dtype, const void* data, uint64_t n_bytes, uint64_t n) {
    return guard([&] {
        require(out, "out");
        require(data, "data");
        const DTypeTraits traits = dtype_traits(static_cast<uint32_t>(dtype));
        if (!traits.name) {
            fail(FASA_ERROR_UNSUPPORTED, "tensor type number %d is not supported. Supported: %s", dtype,
                 dtype_supported_names());
        }
        const uint64_t block = static_cast<uint64_t>(traits.block_values), n_blocks = n / block;
        if (n % block != 0 || n_bytes % traits.block_bytes != 0 || n_bytes / traits.block_bytes != n_blocks) {
            fail(FASA_ERROR_ARGUMENT, "%llu bytes do not hold %llu %s values, of which %d lie in a block of %zu bytes",
                 number(n_bytes), number(n), traits.name, traits.block_values, traits.block_bytes);
        }
        cpu::dequantize_row(dtype, data, out, static_cast<int64_t>(n));
    });
}

}  // extern "C"
