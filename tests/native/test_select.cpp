// Chunks, tables, budgets and FASA's own selection, against naive computations in double precision.
#include <cstring>
#include <limits>

#include "base/log.h"
#include "check.h"
#include "select_lab.h"

using namespace fasa;

namespace {

// Every dim of a head exactly once, pairs as RoPE turns them.
void check_layout(const ChunkLayout& layout) {
    std::vector<int> seen(static_cast<size_t>(layout.head_dim));
    for (int32_t chunk = 0; chunk < layout.n_chunk(); ++chunk) {
        const auto dims = layout.dims(chunk);
        CHECK(static_cast<int32_t>(dims.size()) == layout.size(chunk));
        for (const int16_t dim : dims) ++seen[dim];
        if (chunk >= layout.n_rot / 2) {
            CHECK(dims.size() == 1 && dims[0] == chunk + layout.n_rot / 2);
        } else if (layout.rope == RopeLayout::interleaved) {
            CHECK(dims[0] == 2 * chunk && dims[1] == 2 * chunk + 1);
        } else {
            CHECK(dims[0] == chunk && dims[1] == chunk + layout.n_rot / 2);
        }
    }
    CHECK(seen == std::vector<int>(seen.size(), 1));
}

std::vector<uint16_t> shuffled(int32_t n, unsigned seed) {
    std::vector<uint16_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), uint16_t{0});
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    return order;
}

constexpr ChunkLayout layouts[] = {{RopeLayout::interleaved, 16, 16}, {RopeLayout::half_split, 16, 16},
                                   {RopeLayout::interleaved, 10, 16}, {RopeLayout::half_split, 6, 20},
                                   {RopeLayout::half_split, 0, 16},   {RopeLayout::interleaved, 14, 16}};

// A GGUF file without tensors, made in memory.
class Gguf {
   public:
    template <class T>
    Gguf& scalar(const char* key, fasa_meta_type type, T value) {
        return head(key, type).raw(value);
    }
    Gguf& u32(const char* key, uint32_t value) { return scalar(key, FASA_META_U32, value); }
    Gguf& string(const char* key, const std::string& value) {
        head(key, FASA_META_STRING);
        return text(value);
    }
    template <class T>
    Gguf& array(const char* key, fasa_meta_type type, const std::vector<T>& values) {
        head(key, FASA_META_ARRAY).raw(static_cast<uint32_t>(type)).raw(uint64_t{values.size()});
        for (const T value : values) raw(value);
        return *this;
    }

    std::optional<Table> read(const TableShape& shape) {
        const std::vector<uint8_t> entries = std::exchange(bytes_, {});
        for (const char c : {'G', 'G', 'U', 'F'}) raw(c);
        raw(uint32_t{3}).raw(uint64_t{0}).raw(n_);
        bytes_.insert(bytes_.end(), entries.begin(), entries.end());
        return read_table(*gguf::File::open_memory(bytes_, "test.gguf"), shape);
    }

   private:
    template <class T>
    Gguf& raw(T value) {
        const auto* p = reinterpret_cast<const uint8_t*>(&value);
        bytes_.insert(bytes_.end(), p, p + sizeof value);
        return *this;
    }
    Gguf& text(const std::string& value) {
        raw(uint64_t{value.size()});
        bytes_.insert(bytes_.end(), value.begin(), value.end());
        return *this;
    }
    Gguf& head(const char* key, fasa_meta_type type) {
        ++n_;
        return text(key).raw(static_cast<uint32_t>(type));
    }

    std::vector<uint8_t> bytes_;
    uint64_t n_ = 0;
};

const TableShape table_shape{3, 4, 2, {RopeLayout::interleaved, 16, 16}};

struct TableFields {
    uint32_t version = 1, n_chunk = 8;
    std::string layout = "interleaved", criterion = "mass";
    Table table = lab::random_table({}, 3);

    std::optional<Table> read() const {
        Gguf file;
        file.u32("fasa.version", version).u32("fasa.n_chunk", n_chunk).string("fasa.chunk_layout", layout);
        file.string("fasa.criterion", criterion).array("fasa.ca_scores", FASA_META_F32, table.ca);
        if (!table.order.empty()) file.array("fasa.chunk_order", FASA_META_U16, table.order);
        if (!table.order_head.empty()) file.array("fasa.chunk_order_head", FASA_META_U16, table.order_head);
        return file.read(table_shape);
    }
};

SelectConfig config(int32_t n_fac) {
    SelectConfig c;
    c.method = "fasa";
    c.n_tip = 2;
    c.n_fac = n_fac;
    c.n_sink = 2;
    c.n_recent = 5;
    return c;
}

// What a list's heads score every cached position, by the definition [FASA §4]; the oracle counts all dims.
std::vector<double> naive_scores(lab::Lab& l, int32_t layer, int32_t seq, int32_t pos, int32_t set) {
    const SelectConfig& c = l.config;
    const int32_t group = l.s.n_head / l.s.n_head_kv, heads = c.tokens_per_head ? 1 : group;
    const int32_t n_dims = c.method == "oracle" ? l.s.head_dim() : 2 * c.n_tip;
    std::vector<double> scores(static_cast<size_t>(pos + 1));
    for (int32_t head = set * heads; head < (set + 1) * heads; ++head) {
        const auto ranking = c.chunks_per_head ? l.table.ranking_of_head(layer, head, c.criterion)
                                               : l.table.ranking(layer, head / group, c.criterion);
        for (const uint16_t chunk : fill_dims(l.s.layout, ranking, n_dims)) {
            for (const int16_t d : l.s.layout.dims(chunk)) {
                for (int32_t i = 0; i <= pos; ++i) {
                    scores[i] += l.query(layer, seq, head, pos, d) * l.key(layer, seq, head / group, i, d);
                }
            }
        }
    }
    return scores;
}

lab::Lists naive_fasa(lab::Lab& l, int32_t layer, int32_t seq, int32_t pos, int32_t budget) {
    lab::Lists lists;
    for (int32_t set = 0; set < l.s.select().n_set(l.config); ++set) {
        lists.push_back(lab::best(naive_scores(l, layer, seq, pos, set), budget, l.config.n_sink, l.config.n_recent));
    }
    return lists;
}

}  // namespace

TEST(chunks_cover_every_dim_once) {
    for (const ChunkLayout& layout : layouts) check_layout(layout);
    CHECK((ChunkLayout{RopeLayout::half_split, 6, 20}).n_chunk() == 17);
}

TEST(chunks_fill_the_dominant_dims_exactly) {
    for (const ChunkLayout& layout : layouts) {
        for (unsigned seed = 0; seed < 50; ++seed) {
            const auto ranking = shuffled(layout.n_chunk(), seed);
            for (int32_t n_dom = 2; n_dom <= layout.head_dim; n_dom += 2) {
                const auto chosen = fill_dims(layout, ranking, n_dom);
                int32_t n_dims = 0;
                for (const uint16_t chunk : chosen) n_dims += layout.size(chunk);
                CHECK(n_dims == n_dom);
                const auto order = dim_order(layout, chosen);
                std::vector<int16_t> sorted(order);
                std::sort(sorted.begin(), sorted.end());
                for (int16_t d = 0; d < layout.head_dim; ++d) CHECK(sorted[d] == d);
                size_t at = 0;
                for (const uint16_t chunk : chosen) {
                    for (const int16_t dim : layout.dims(chunk)) CHECK(order[at++] == dim);
                }
            }
        }
    }
}

TEST(chunks_take_the_best_that_fit) {
    const ChunkLayout partial{RopeLayout::interleaved, 4, 8};  // pairs 0, 1; single dims 2, 3, 4, 5
    using Chosen = std::vector<uint16_t>;
    CHECK(fill_dims(partial, Chosen{1, 0, 2, 3, 4, 5}, 4) == (Chosen{1, 0}));
    CHECK(fill_dims(partial, Chosen{3, 1, 0, 2, 4, 5}, 4) == (Chosen{3, 1, 2}));  // pair 0 would not fit
    CHECK(fill_dims(partial, Chosen{3, 2, 5, 1, 0, 4}, 4) == (Chosen{3, 2, 5, 4}));
    const ChunkLayout one_single{RopeLayout::interleaved, 6, 7};            // pairs 0, 1, 2; single dim 3
    CHECK(fill_dims(one_single, Chosen{3, 2, 0, 1}, 4) == (Chosen{2, 0}));  // the single dim gives way
    CHECK(fill_dims(one_single, Chosen{2, 3, 0, 1}, 6) == (Chosen{2, 0, 1}));
}

TEST(table_ranks_by_the_criterion_asked_for) {
    const Table table = *TableFields{}.read();
    CHECK(table.criterion == Criterion::mass);
    const auto mass = table.ranking(1, 1, Criterion::mass);
    CHECK(std::equal(mass.begin(), mass.end(), table.order.begin() + (1 * 2 + 1) * 8));
    const auto head_mass = table.ranking_of_head(2, 3, Criterion::mass);
    CHECK(std::equal(head_mass.begin(), head_mass.end(), table.order_head.begin() + (2 * 4 + 3) * 8));
    const auto of_head = table.ranking_of_head(2, 3, Criterion::ca), of_group = table.ranking(2, 1, Criterion::ca);
    const auto ca = [&](int32_t head, uint16_t chunk) { return double{table.ca[(2 * 4 + head) * 8 + chunk]}; };
    for (size_t i = 1; i < 8; ++i) {
        CHECK(ca(3, of_head[i - 1]) >= ca(3, of_head[i]));
        CHECK(ca(2, of_group[i - 1]) + ca(3, of_group[i - 1]) >= ca(2, of_group[i]) + ca(3, of_group[i]) - 1e-6);
    }
    TableFields ca_only;
    ca_only.criterion = "ca";
    ca_only.table.order.clear();
    CHECK_THROWS(ca_only.read()->ranking(0, 0, Criterion::mass), FASA_ERROR_ARGUMENT, "calibrate with criterion mass");
    CHECK(ca_only.read()->ranking(0, 0, Criterion::ca).size() == 8);
}

TEST(table_that_does_not_fit_is_refused) {
    const auto refused = [](auto change, const char* text, fasa_status status = FASA_ERROR_FORMAT) {
        TableFields fields;
        change(fields);
        CHECK_THROWS(fields.read(), status, "test.gguf", text);
    };
    CHECK(!Gguf().u32("general.alignment", 32).read(table_shape));  // a file without a table is no error
    refused([](TableFields& f) { f.version = 2; }, "version 2", FASA_ERROR_UNSUPPORTED);
    refused([](TableFields& f) { f.n_chunk = 9; }, "fasa.n_chunk");
    refused([](TableFields& f) { f.n_chunk = 0xffffffffu; }, "fasa.n_chunk");
    refused([](TableFields& f) { f.layout = "half_split"; }, "chunk layout");
    refused([](TableFields& f) { f.layout = std::string(5000, 'x'); }, "chunk layout");
    refused([](TableFields& f) { f.criterion = "best"; }, "fasa.criterion");
    refused([](TableFields& f) { f.table.ca.pop_back(); }, "scores");
    refused([](TableFields& f) { f.table.ca.clear(); }, "scores");
    refused([](TableFields& f) { f.table.ca[17] = std::numeric_limits<float>::quiet_NaN(); }, "score 17");
    refused([](TableFields& f) { f.table.ca[95] = std::numeric_limits<float>::infinity(); }, "score 95");
    refused([](TableFields& f) { f.table.ca[0] = 1.001f; }, "score 0");
    refused([](TableFields& f) { f.table.ca[0] = -0.001f; }, "score 0");
    refused([](TableFields& f) { f.table.order[9] = f.table.order[8]; }, "chunk_order is no permutation");
    refused([](TableFields& f) { f.table.order[47] = 8; }, "entry 47");
    refused([](TableFields& f) { f.table.order.push_back(0); }, "49 entries, expected 48");
    refused([](TableFields& f) { f.table.order.clear(); }, "\"fasa.chunk_order\" is missing");
    refused([](TableFields& f) { std::swap(f.table.order_head[7], f.table.order_head[8]); }, "chunk_order_head");
    refused([](TableFields& f) { f.table.order_head.resize(8); }, "chunk_order_head has 8 entries");
}

TEST(table_keys_of_a_wrong_type_are_refused) {
    const Table good = TableFields{}.table;
    const auto start = [](Gguf& file) -> Gguf& {
        return file.u32("fasa.n_chunk", 8).string("fasa.chunk_layout", "interleaved").string("fasa.criterion", "ca");
    };
    Gguf doubles, scalar, no_scores, text_version;
    const std::vector<double> wide(good.ca.begin(), good.ca.end());
    CHECK_THROWS(start(doubles.u32("fasa.version", 1)).array("fasa.ca_scores", FASA_META_F64, wide).read(table_shape),
                 FASA_ERROR_FORMAT, "fasa.ca_scores", "array of f32");
    CHECK_THROWS(start(scalar.u32("fasa.version", 1)).u32("fasa.ca_scores", 1).read(table_shape), FASA_ERROR_FORMAT,
                 "fasa.ca_scores");
    CHECK_THROWS(start(no_scores.u32("fasa.version", 1)).read(table_shape), FASA_ERROR_FORMAT, "0 scores");
    CHECK_THROWS(text_version.string("fasa.version", "1").read(table_shape), FASA_ERROR_FORMAT, "fasa.version");
    Gguf bare;
    CHECK_THROWS(bare.u32("fasa.version", 1).read(table_shape), FASA_ERROR_FORMAT, "fasa.n_chunk");
}

TEST(part_of_a_table_without_its_version_is_refused) {
    CHECK_THROWS(Gguf().u32("fasa.n_chunk", 8).read(table_shape), FASA_ERROR_FORMAT, "test.gguf", "\"fasa.n_chunk\"",
                 "\"fasa.version\" is missing", "calibrate again");
    CHECK(!Gguf().u32("fasan", 8).read(table_shape));
}

TEST(recommended_settings_that_are_not_followed_are_checked_and_logged) {
    std::string seen;
    log_sink_set([](fasa_log_level level, const char* text,
                    void* user) { *static_cast<std::string*>(user) += std::to_string(level) + text; },
                 &seen);
    const auto read = [&](auto add) {
        seen.clear();
        Gguf file;
        file.u32("fasa.version", 1).u32("fasa.n_chunk", 8).string("fasa.chunk_layout", "interleaved");
        file.string("fasa.criterion", "ca").array("fasa.ca_scores", FASA_META_F32, TableFields{}.table.ca);
        add(file);
        return file.read(table_shape).has_value();
    };
    CHECK(read([](Gguf& f) { f.u32("fasa.n_tip", 2); }) && seen.empty());
    CHECK(read([](Gguf& f) { f.u32("fasa.dense_layers", 0); }) && seen.find("give dense_layers=0") != seen.npos);
    CHECK(read([](Gguf& f) { f.u32("fasa.n_fac", 512).u32("fasa.dense_layers", 3); }));
    CHECK(seen ==
          "2test.gguf: its FASA table recommends n_fac=512, dense_layers=3, which is not followed unless set: give "
          "n_fac=512, dense_layers=3");
    CHECK_THROWS(read([](Gguf& f) { f.u32("fasa.n_fac", 0); }), FASA_ERROR_FORMAT, "\"fasa.n_fac\" is 0");
    CHECK_THROWS(read([](Gguf& f) { f.u32("fasa.dense_layers", 4); }), FASA_ERROR_FORMAT, "is 4, expected 0 to 3");
    CHECK_THROWS(read([](Gguf& f) { f.string("fasa.n_fac", "256"); }), FASA_ERROR_FORMAT, "fasa.n_fac");
    log_sink_set(nullptr, nullptr);
}

TEST(fasa_selects_what_the_definition_selects) {
    for (const ChunkLayout& layout : layouts) {
        for (const int32_t n_dom : {0, 4, 6}) {  // not split; split as the method wants it; split otherwise
            lab::Shape shape;
            shape.layout = layout;
            shape.n_dom = n_dom;
            shape.n_dense = n_dom > 0 ? 1 : 0;
            lab::Lab l(shape);
            for (int combination = 0; combination < 8; ++combination) {
                SelectConfig c = config(40);
                c.chunks_per_head = combination & 1;
                c.tokens_per_head = combination & 2;
                c.criterion = combination & 4 ? Criterion::ca : Criterion::mass;
                c.dense_layers = n_dom == 6 ? 0 : 1;
                l.make(c);
                l.append(1, 0, 300);
                const auto lists = l.step(1, 300);
                for (int32_t layer = 0; layer < shape.n_layer; ++layer) {
                    if (layer < c.dense_layers) {
                        CHECK(lists[layer].empty());
                    } else {
                        CHECK(lists[layer] == naive_fasa(l, layer, 1, 300, 40));
                    }
                }
            }
        }
    }
}

// The part of the key that ranking reads is the dominant one only when the store was laid out for just these sets.
TEST(fasa_counts_what_it_reads) {
    for (const bool same_sets : {true, false}) {
        lab::Shape shape;
        shape.n_dom = 4;
        shape.n_dense = 1;
        shape.store_criterion = same_sets ? Criterion::mass : Criterion::ca;
        lab::Lab l(shape);
        l.make(config(40));
        l.append(0, 0, 200);
        l.step(0, 200);
        const uint64_t row = 2 * 2 * 16, n_pos = 201;  // bytes of a position's keys: two KV heads of 16 dims
        const SparsityCounts& counts = l.sparsity->counts;
        CHECK(counts.layers_dense == 1 && counts.layers_sparse == 2);
        CHECK(counts.tokens_selected == 2 * 2 * 40);
        CHECK(counts.value_bytes == n_pos * row + 2 * 40 * row);
        const uint64_t ranking = 2 * n_pos * (same_sets ? row / 4 : row);
        CHECK(counts.key_bytes == n_pos * row + ranking + 2 * 40 * row);
    }
}

TEST(steps_within_the_budget_are_dense) {
    lab::Lab l({});
    for (const char* method : {"fasa", "oracle", "streaming", "snapkv", "h2o", "quest", "rkv", "sparq"}) {
        SelectConfig c = config(64);
        c.method = method;
        c.dense_layers = 0;
        l.make(c);
        l.append(0, 0, 60);
        for (int32_t pos = 60; pos < 66; ++pos) {
            for (const auto& lists : l.step(0, pos)) CHECK(lists.empty() == (pos < 64));
        }
        CHECK(l.sparsity->counts.layers_sparse == 3 * 2);
        c.dense_below = 70;
        l.make(c);
        l.append(1, 0, 66);
        for (int32_t pos = 66; pos < 72; ++pos) {
            for (const auto& lists : l.step(1, pos)) CHECK(lists.empty() == (pos < 70));
        }
    }
    l.make({});  // full
    l.append(0, 0, 300);
    for (const auto& lists : l.step(0, 300)) CHECK(lists.empty());
}

TEST(forced_positions_are_kept_inside_the_budget) {
    lab::Lab l({});
    for (const auto& [n_sink, n_recent] : {std::pair{0, 0}, {4, 0}, {0, 7}, {30, 10}, {25, 90}, {200, 200}}) {
        SelectConfig c = config(40);
        c.n_sink = n_sink;
        c.n_recent = n_recent;
        l.make(c);
        l.append(0, 0, 250);
        const auto lists = l.step(0, 250);
        CHECK(lists[1] == naive_fasa(l, 1, 0, 250, 40));
        for (const auto& list : lists[2]) {
            CHECK(list.size() == 40);
            for (int32_t i = 0; i < std::min(n_sink, 40); ++i) CHECK(list[i] == i);
            for (int32_t i = 0; i < std::min(n_recent, 40 - n_sink); ++i) CHECK(list[39 - i] == 250 - i);
        }
    }
}

TEST(budgets_of_a_pyramid_fall_and_add_up) {
    for (const int32_t n_layer : {1, 2, 3, 8, 33}) {
        for (const int32_t dense_layers : {0, 1}) {
            lab::Shape shape;
            shape.n_layer = n_layer;
            shape.n_ctx = 300;
            lab::Lab l(shape);
            SelectConfig c = config(100);
            c.schedule = BudgetSchedule::pyramid;
            c.dense_layers = dense_layers;
            l.make(c);
            l.append(0, 0, 280);
            const auto lists = l.step(0, 280);
            size_t total = 0, previous = 1000;
            for (int32_t layer = dense_layers; layer < n_layer; ++layer) {
                const size_t n = lists[layer][0].size();
                CHECK(n <= previous && n >= 7 + 93 / 20);
                total += previous = n;
            }
            CHECK(total == size_t{100} * std::max(0, n_layer - dense_layers));
            if (n_layer - dense_layers > 1) {
                CHECK(lists[dense_layers][0].size() == 7 + 2 * 93 - 93 / 20);  // PyramidKV's most: what is left to give
                CHECK(lists[n_layer - 1][0].size() == 7 + 93 / 20);            // and least
            }
        }
    }
}

TEST(budgets_may_be_a_share_of_the_cached_positions) {
    lab::Lab l({});
    SelectConfig c = config(100);
    c.n_fac_fraction = 0.25f;
    l.make(c);
    l.append(0, 0, 99);
    CHECK(l.step(0, 99)[1][0].size() == 25);
    CHECK(l.step(0, 100)[1][0].size() == 26);  // 25.25 positions: rounded up
    c.n_fac_fraction = 1.0f;
    l.make(c);
    l.append(0, 0, 99);
    CHECK(l.step(0, 99)[1].empty());
}

TEST(pages_are_chosen_whole) {
    lab::Lab l({});
    for (const char* method : {"fasa", "oracle"}) {
        for (const int32_t page : {8, 16, 32}) {
            for (const int32_t n_pos : {192, 193, 199}) {
                SelectConfig c = config(90);
                c.method = method;
                c.page = page;
                c.tokens_per_head = page == 8;
                l.make(c);
                l.append(0, 0, n_pos - 1);
                const lab::Lists lists = l.step(0, n_pos - 1)[1];
                const int32_t n_page = (n_pos + page - 1) / page, last_size = n_pos - (n_page - 1) * page;
                const int32_t n_chosen = 1 + (90 - last_size) / page, n_recent = n_page - (n_pos - c.n_recent) / page;
                CHECK(static_cast<int32_t>(lists.size()) == (c.tokens_per_head ? 4 : 2));
                for (size_t set = 0; set < lists.size(); ++set) {
                    const auto scores = naive_scores(l, 1, 0, n_pos - 1, static_cast<int32_t>(set));
                    std::vector<double> mean(static_cast<size_t>(n_page));
                    for (int32_t pos = 0; pos < n_pos; ++pos) {
                        mean[pos / page] += scores[pos] / (pos / page == n_page - 1 ? last_size : page);
                    }
                    lab::Positions expected;
                    for (const int32_t chosen : lab::best(mean, n_chosen, 1, n_recent)) {
                        const int32_t end = std::min(n_pos, (chosen + 1) * page);
                        for (const int32_t pos : lab::range(chosen * page, end)) expected.push_back(pos);
                    }
                    CHECK(lists[set] == expected);
                    CHECK(expected.size() <= 90 && expected.size() + static_cast<size_t>(page) > 90);
                }
            }
        }
    }
}

// A budget below a page, or below the forced pages: the current page whole, then as many of the last as fit.
TEST(pages_beyond_the_budget) {
    lab::Lab l({});
    SelectConfig c = config(10);
    c.page = 32;
    l.make(c);
    l.append(0, 0, 199);
    CHECK(l.step(0, 199)[1] == lab::Lists(2, lab::range(192, 200)));
    c.n_fac = 41;
    c.n_recent = 100;
    l.make(c);
    l.append(0, 0, 199);
    CHECK(l.step(0, 199)[1] == lab::Lists(2, lab::range(160, 200)));
}
