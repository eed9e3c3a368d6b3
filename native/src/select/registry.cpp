// The methods by name. A new one is a file with its class and a line here.
#include "base/error.h"
#include "select/methods.h"

namespace fasa {
namespace {

struct Entry {
    const char* name;
    std::unique_ptr<Selector> (*make)(const SelectorSetup&);
    size_t (*n_bytes)(const SelectConfig&, const SelectShape&);
};

size_t nothing(const SelectConfig&, const SelectShape&) { return 0; }

constexpr Entry entries[] = {
    {"fasa", make_fasa, fasa_bytes},       {"oracle", make_oracle, nothing}, {"streaming", make_streaming, nothing},
    {"snapkv", make_snapkv, snapkv_bytes}, {"h2o", make_h2o, h2o_bytes},     {"quest", make_quest, quest_bytes},
    {"rkv", make_rkv, rkv_bytes},          {"sparq", make_sparq, nothing},
};

const Entry& entry_of(const std::string& method) {
    for (const Entry& entry : entries) {
        if (method == entry.name) return entry;
    }
    fail(FASA_ERROR_ARGUMENT, "unknown method \"%s\"; there are: %s", method.c_str(), selector_names());
}

}  // namespace

std::unique_ptr<Selector> make_selector(const SelectorSetup& setup) {
    return setup.config.method == "full" ? nullptr : entry_of(setup.config.method).make(setup);
}

size_t selector_bytes(const SelectConfig& config, const SelectShape& shape) {
    return config.method == "full" ? 0 : entry_of(config.method).n_bytes(config, shape);
}

const char* selector_names() {
    static const std::string names = [] {
        std::string text = "full";
        for (const Entry& entry : entries) text += std::string(", ") + entry.name;
        return text;
    }();
    return names.c_str();
}

}  // namespace fasa
