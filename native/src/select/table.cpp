#include "select/table.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "base/log.h"

namespace fasa {
namespace {

constexpr uint32_t table_version = 1;

// The values of an array of one type, as they lie in the file.
template <class T>
std::vector<T> read_array(const gguf::File& file, const char* key, fasa_meta_type type) {
    const gguf::Meta* meta = file.find(key);
    if (!meta) return {};
    if (!meta->is_array() || meta->elem_type != type) {
        fail(FASA_ERROR_FORMAT, "%s: metadata key \"%s\": expected an array of %s", file.path().c_str(), key,
             gguf::meta_type_name(type));
    }
    std::vector<T> values(static_cast<size_t>(meta->n));
    if (!values.empty()) std::memcpy(values.data(), meta->data, values.size() * sizeof(T));
    return values;
}

void check_count(const gguf::File& file, const char* key, uint32_t found, int32_t expected) {
    if (found != static_cast<uint32_t>(expected)) {
        fail(FASA_ERROR_FORMAT, "%s: metadata key \"%s\" is %u, but the model has %d: calibrate this model again",
             file.path().c_str(), key, found, expected);
    }
}

void check_order(const std::vector<uint16_t>& order, int64_t n_set, int32_t n_chunk, const char* name,
                 const std::string& source) {
    if (order.empty()) return;
    if (order.size() != static_cast<size_t>(n_set * n_chunk)) {
        fail(FASA_ERROR_FORMAT, "%s: the FASA table's %s has %zu entries, expected %lld", source.c_str(), name,
             order.size(), static_cast<long long>(n_set * n_chunk));
    }
    std::vector<int64_t> seen_in(static_cast<size_t>(n_chunk), -1);
    for (size_t i = 0; i < order.size(); ++i) {
        const int64_t set = static_cast<int64_t>(i) / n_chunk;
        if (order[i] >= n_chunk || seen_in[order[i]] == set) {
            fail(FASA_ERROR_FORMAT, "%s: the FASA table's %s is no permutation of %d chunks at entry %zu",
                 source.c_str(), name, n_chunk, i);
        }
        seen_in[order[i]] = set;
    }
}

void refuse_rest_of_a_table(const gguf::File& file) {
    for (const gguf::Meta& meta : file.entries()) {
        if (meta.key.starts_with("fasa.")) {
            fail(FASA_ERROR_FORMAT,
                 "%s: metadata key \"%s\" belongs to a FASA table, but \"fasa.version\" is missing: calibrate again",
                 file.path().c_str(), meta.key.c_str());
        }
    }
}

// A recommended setting that the caller decides about: "name=value, " or nothing.
std::string advice(const gguf::File& file, const char* name, uint32_t least, uint32_t most) {
    const std::string key = std::string("fasa.") + name;
    const auto value = file.find_u32(key);
    if (!value) return {};
    if (*value < least || *value > most) {
        fail(FASA_ERROR_FORMAT, "%s: metadata key \"%s\" is %u, expected %u to %u", file.path().c_str(), key.c_str(),
             *value, least, most);
    }
    return std::string(name).append("=").append(std::to_string(*value)).append(", ");
}

void log_advice(const gguf::File& file, const TableShape& shape) {
    std::string settings = advice(file, "n_fac", 1, std::numeric_limits<int32_t>::max()) +
                           advice(file, "dense_layers", 0, static_cast<uint32_t>(shape.n_layer));
    if (settings.empty()) return;
    settings.resize(settings.size() - 2);
    log_message(FASA_LOG_WARN, "%s: its FASA table recommends %s, which is not followed unless set: give %s",
                file.path().c_str(), settings.c_str(), settings.c_str());
}

std::vector<uint16_t> by_score(const std::vector<float>& score) {
    std::vector<uint16_t> ranking(score.size());
    std::iota(ranking.begin(), ranking.end(), uint16_t{0});
    std::stable_sort(ranking.begin(), ranking.end(), [&](uint16_t a, uint16_t b) { return score[a] > score[b]; });
    return ranking;
}

std::vector<uint16_t> slice(const std::vector<uint16_t>& order, int64_t set, int32_t n_chunk) {
    if (order.empty()) {
        fail(FASA_ERROR_ARGUMENT,
             "the FASA table holds no sets chosen by mass at this granularity: calibrate with criterion mass, or use "
             "ca");
    }
    return {order.begin() + set * n_chunk, order.begin() + (set + 1) * n_chunk};
}

}  // namespace

const char* layout_name(RopeLayout layout) { return layout == RopeLayout::interleaved ? "interleaved" : "half_split"; }

std::vector<uint16_t> Table::ranking(int32_t layer, int32_t head_kv, Criterion by) const {
    if (by == Criterion::mass) return slice(order, int64_t{layer} * n_head_kv + head_kv, n_chunk);
    const int32_t group = n_head / n_head_kv;
    std::vector<float> mean(static_cast<size_t>(n_chunk));
    for (int32_t h = 0; h < group; ++h) {
        const int64_t row = int64_t{layer} * n_head + head_kv * group + h;
        for (int32_t i = 0; i < n_chunk; ++i) mean[i] += ca[row * n_chunk + i] / static_cast<float>(group);
    }
    return by_score(mean);
}

std::vector<uint16_t> Table::ranking_of_head(int32_t layer, int32_t head, Criterion by) const {
    const int64_t row = int64_t{layer} * n_head + head;
    if (by == Criterion::mass) return slice(order_head, row, n_chunk);
    return by_score({ca.begin() + row * n_chunk, ca.begin() + (row + 1) * n_chunk});
}

void check_table(const Table& t, const std::string& source) {
    const size_t n = size_t{1} * t.n_layer * t.n_head * t.n_chunk;
    if (t.ca.size() != n) {
        fail(FASA_ERROR_FORMAT, "%s: the FASA table has %zu scores, the model needs %zu (layers x heads x chunks)",
             source.c_str(), t.ca.size(), n);
    }
    for (size_t i = 0; i < n; ++i) {
        if (!(t.ca[i] >= 0 && t.ca[i] <= 1)) {
            fail(FASA_ERROR_FORMAT, "%s: the FASA table's score %zu is %g, expected 0 to 1", source.c_str(), i,
                 static_cast<double>(t.ca[i]));
        }
    }
    check_order(t.order, int64_t{t.n_layer} * t.n_head_kv, t.n_chunk, "chunk_order", source);
    check_order(t.order_head, int64_t{t.n_layer} * t.n_head, t.n_chunk, "chunk_order_head", source);
}

std::optional<Table> read_table(const gguf::File& file, const TableShape& shape) {
    const auto version = file.find_u32("fasa.version");
    if (!version) {
        refuse_rest_of_a_table(file);
        return std::nullopt;
    }
    if (*version != table_version) {
        fail(FASA_ERROR_UNSUPPORTED,
             "%s: its FASA table has version %u, this library reads version %u: calibrate again", file.path().c_str(),
             *version, table_version);
    }
    check_count(file, "fasa.n_chunk", file.u32("fasa.n_chunk"), shape.layout.n_chunk());
    const auto layout = file.string("fasa.chunk_layout");
    if (layout != layout_name(shape.layout.rope)) {
        fail(FASA_ERROR_FORMAT, "%s: its FASA table was made for the chunk layout \"%s\", this model's is \"%s\"",
             file.path().c_str(), std::string(layout.substr(0, 40)).c_str(), layout_name(shape.layout.rope));
    }
    const auto criterion = file.string("fasa.criterion");
    if (criterion != "ca" && criterion != "mass") {
        fail(FASA_ERROR_FORMAT, "%s: metadata key \"fasa.criterion\" is neither \"ca\" nor \"mass\"",
             file.path().c_str());
    }
    Table table{shape.n_layer,
                shape.n_head,
                shape.n_head_kv,
                shape.layout.n_chunk(),
                criterion == "mass" ? Criterion::mass : Criterion::ca,
                read_array<float>(file, "fasa.ca_scores", FASA_META_F32),
                read_array<uint16_t>(file, "fasa.chunk_order", FASA_META_U16),
                read_array<uint16_t>(file, "fasa.chunk_order_head", FASA_META_U16)};
    check_table(table, file.path());
    if (const auto n_tip = file.find_u32("fasa.n_tip")) {
        if (*n_tip < 1 || *n_tip > static_cast<uint32_t>(shape.layout.head_dim / 2)) {
            fail(FASA_ERROR_FORMAT, "%s: metadata key \"fasa.n_tip\" is %u, expected 1 to half of the head's %d dims",
                 file.path().c_str(), *n_tip, shape.layout.head_dim);
        }
        table.n_tip = static_cast<int32_t>(*n_tip);
    }
    if (table.criterion == Criterion::mass && table.order.empty()) {
        fail(FASA_ERROR_FORMAT, "%s: \"fasa.criterion\" is mass, but \"fasa.chunk_order\" is missing",
             file.path().c_str());
    }
    log_advice(file, shape);
    return table;
}

}  // namespace fasa
