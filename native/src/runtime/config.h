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
    int32_t n_batch_max = 0;  // n_batch where n_ctx does not bound it
    int32_t n_cache_row = 0;  // of a device's cache of rows in host memory; 0: none
};

// Throws ARGUMENT, UNSUPPORTED, or MEMORY when no context fits. table: the caller's, or nullptr for the file's own.
ContextConfig resolve(const Model& model, const fasa_context_params& params, std::shared_ptr<const Table> table);

// method "auto" becomes fasa or full.
SelectConfig resolve_method(const Model& model, const fasa_method_params& params, const Table* table);
// Where rows lie in host memory apart from the device's, dense steps read few of them: lowers the default dense_below
// to what the cache of rows has room for, or throws ARGUMENT for one that was asked for.
void limit_dense_steps(const Model& model, const fasa_method_params& params, ContextConfig& config);
fasa_method_params default_method();
fasa_method_params describe_method(const SelectConfig& config);

SelectShape select_shape(const Hparams& h, const ContextConfig& config);

// Which dim of the file lies where in the cache: [n_layer][n_head_kv][head_dim]; empty when nothing is split.
std::vector<int16_t> cache_order(const Hparams& h, const ContextConfig& config);

}  // namespace fasa
