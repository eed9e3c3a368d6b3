// Bytes -> one checked GGUF part. Source: the GGUF specification (docs/gguf.md in the ggml repository), versions 2, 3.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "gguf/metadata.h"

namespace fasa::gguf {

// Fields as in fasa_tensor.
struct Tensor {
    std::string name;
    DType dtype = FASA_DTYPE_F32;
    int32_t n_dims = 0;
    int64_t dims[FASA_MAX_DIMS] = {1, 1, 1, 1};  // dims[0] is contiguous
    uint64_t n_bytes = 0;
    uint64_t offset = 0;  // of the data, from the start of the part
    int32_t file = 0;     // which part
    const void* data = nullptr;
};

struct Part {
    uint32_t version;
    uint32_t alignment;  // bytes
    uint64_t n_bytes;
    Metadata metadata;
    std::vector<Tensor> tensors;
};

// Everything is checked: counts and lengths against the bytes left, names, types, alignment, products of dims, that the
// data lies inside and does not overlap. Takes memory in proportion to the metadata and tensor table, not to what they
// claim. The result points into bytes. Throws Error(FORMAT) or Error(UNSUPPORTED) naming file and place.
Part read_part(std::span<const uint8_t> bytes, const std::string& file);

}  // namespace fasa::gguf
