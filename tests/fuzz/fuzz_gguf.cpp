// libFuzzer target: any bytes are a GGUF file that can be read through and loaded as a model, or an Error that says why
// not.
#include <cstdint>
#include <cstdlib>

#include "base/error.h"
#include "gguf/file.h"
#include "model/model.h"

using namespace fasa;

namespace {

volatile uint8_t sink;

void touch(const void* data, uint64_t n) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    for (uint64_t i = 0; i < n; ++i) sink = bytes[i];
}

// An Error about the file with a text; anything else is a bug, and so is any other exception.
template <class Body>
void allow_error(Body body) {
    try {
        body();
    } catch (const Error& error) {
        const bool about_file = error.status() == FASA_ERROR_FORMAT || error.status() == FASA_ERROR_UNSUPPORTED;
        if (!about_file || !*error.what()) std::abort();
    }
}

void read_strings(const gguf::Meta& meta) {
    for (uint64_t i = 0; i < meta.n; ++i) touch(meta.string(i).data(), meta.string(i).size());
}

void read_everything(const gguf::File& file) {
    for (const gguf::Meta& meta : file.entries()) {
        if (file.find(meta.key) != &meta) std::abort();
        if (meta.elem_type == FASA_META_STRING) read_strings(meta);
        allow_error([&] { file.u32(meta.key); });
        allow_error([&] { file.f32(meta.key); });
        allow_error([&] { file.boolean(meta.key); });
        allow_error([&] { file.string(meta.key); });
        allow_error([&] { file.find_array_size(meta.key); });
    }
    for (const gguf::Tensor& tensor : file.tensors()) {
        if (&file.tensor(tensor.name) != &tensor) std::abort();
        touch(tensor.data, tensor.n_bytes);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    allow_error([&] {
        const auto file = gguf::File::open_memory({data, size}, "fuzz");
        read_everything(*file);
        load_model(file, make_cpu_device(1), LoadOptions{}, [](float) { return true; });
    });
    return 0;
}
