// The methods by name. A new one is a file with its class and a line here.
#include "base/error.h"
#include "select/methods.h"

namespace fasa {
namespace {

struct Entry {
    const char* name;
    std::unique_ptr<Selector> (*make)(const SelectorSetup&);
};

constexpr Entry entries[] = {
    {"fasa", make_fasa},     {"oracle", make_oracle}, {"streaming", make_streaming},
    {"snapkv", make_snapkv}, {"h2o", make_h2o},       {"quest", make_quest},
    {"rkv", make_rkv},       {"sparq", make_sparq},
};

}  // namespace

std::unique_ptr<Selector> make_selector(const SelectorSetup& setup) {
    if (setup.config.method == "full") return nullptr;
    for (const Entry& entry : entries) {
        if (setup.config.method == entry.name) return entry.make(setup);
    }
    fail(FASA_ERROR_ARGUMENT, "unknown method \"%s\"; there are: %s", setup.config.method.c_str(), selector_names());
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
