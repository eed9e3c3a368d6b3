// The params of a context with every default filled in.
#pragma once

#include <memory>

#include "model/model.h"
#include "select/selector.h"

namespace fasa {

struct ContextConfig {
    int32_t n_ctx, n_batch, n_seq;
    SelectConfig select;
    std::shared_ptr<const Table> table;  // nullptr: none
    int32_t n_dom, n_dense;              // layout of the KV cache, see KvShape
    bool host_rest;                      // FASA-M: only dominant keys on the device
    DomType dom_type = DomType::f16;
    int32_t n_batch_max = 0;             // n_batch where n_ctx does not bound it
};

// Throws ARGUMENT, UNSUPPORTED, or MEMORY when no context fits. table: the caller's, or nullptr for the file's own.
ContextConfig resolve(const Model& model, const fasa_context_params& params, std::shared_ptr<const Table> table);

// method "auto" becomes fasa or full.
SelectConfig resolve_method(const Model& model, const fasa_method_params& params, const Table* table);
fasa_method_params default_method();
fasa_method_params describe_method(const SelectConfig& config);

SelectShape select_shape(const Hparams& h, const ContextConfig& config);

// Which dim of the file lies where in the cache: [n_layer][n_head_kv][head_dim]; empty when nothing is split.
std::vector<int16_t> cache_order(const Hparams& h, const ContextConfig& config);

}  // namespace fasa
