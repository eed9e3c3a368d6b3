// Every baseline against a naive implementation in double precision, and what becomes of its state.
#include "check.h"
#include "select_lab.h"

using namespace fasa;
using lab::Lab;
using lab::Lists;
using lab::Positions;

namespace {

SelectConfig config(const char* method, bool per_head) {
    SelectConfig c;
    c.method = method;
    c.n_tip = 3;
    c.n_fac = 48;
    c.n_sink = 3;
    c.n_recent = 6;
    c.observe_window = 12;
    c.refresh_every = 5;
    c.tokens_per_head = per_head;
    return c;
}

// Stores of both kinds.
std::vector<lab::Shape> shapes() {
    lab::Shape whole, split;
    whole.n_head = 6;
    split.layout = {RopeLayout::half_split, 6, 20};
    split.n_dom = 6;
    split.n_dense = 1;
    return {whole, split};
}

int32_t n_set(Lab& l) { return l.s.select().n_set(l.config); }
Positions heads_of(Lab& l, int32_t set) {
    return lab::range(set * l.s.n_head / n_set(l), (set + 1) * l.s.n_head / n_set(l));
}
int32_t kv_of(Lab& l, int32_t head) { return head * l.s.n_head_kv / l.s.n_head; }

// f(set) -> the expected list, for every list of a layer.
template <class F>
void check_lists(Lab& l, const Lists& found, F&& f) {
    CHECK(static_cast<int32_t>(found.size()) == n_set(l));
    for (int32_t set = 0; set < static_cast<int32_t>(found.size()); ++set) CHECK(found[set] == f(set));
}

// f(lab) for both stores and both granularities.
template <class F>
void with_labs(const char* method, F&& f) {
    for (const lab::Shape& shape : shapes()) {
        for (const bool per_head : {false, true}) {
            Lab l(shape);
            l.make(config(method, per_head));
            f(l);
        }
    }
}

Positions naive_quest(Lab& l, int32_t layer, int32_t pos, int32_t set, int32_t page) {
    const int32_t n_pos = pos + 1, n_page = (n_pos + page - 1) / page;
    std::vector<double> scores(static_cast<size_t>(n_page));
    for (const int32_t head : heads_of(l, set)) {
        for (int32_t p = 0; p < n_page; ++p) {
            const Positions in_page = lab::range(p * page, std::min(n_pos, (p + 1) * page));
            for (int32_t d = 0; d < l.s.head_dim(); ++d) {
                double high = -1e9, low = 1e9, sum = 0, squares = 0;
                for (const int32_t i : in_page) {
                    const double k = l.key(layer, 1, kv_of(l, head), i, d);
                    high = std::max(high, k);
                    low = std::min(low, k);
                    sum += k;
                    squares += k * k;
                }
                if (l.config.quest_bounds == PageBounds::mean_std) {
                    const double n = static_cast<double>(in_page.size()), mean = sum / n;
                    const double deviation = std::sqrt(std::max(0.0, squares / n - mean * mean));
                    high = mean + deviation;
                    low = mean - deviation;
                }
                const double q = l.query(layer, 1, head, pos, d);
                scores[p] += std::max(q * high, q * low);
            }
        }
    }
    const int32_t n_chosen = 1 + (l.config.n_fac - (n_pos - (n_page - 1) * page)) / page;
    Positions out;
    for (const int32_t p : lab::best(scores, n_chosen, 1, n_page - (n_pos - l.config.n_recent) / page)) {
        for (const int32_t i : lab::range(p * page, std::min(n_pos, (p + 1) * page))) out.push_back(i);
    }
    return out;
}

// Votes of the last queries up to the one at pos, pooled: of the positions before the voters.
std::vector<double> naive_votes(Lab& l, int32_t layer, int32_t pos, int32_t set) {
    const int32_t window = l.config.observe_window, first = pos + 1 - window;
    std::vector<double> votes(static_cast<size_t>(first)), pooled;
    for (const int32_t head : heads_of(l, set)) {
        for (int32_t row = first; row <= pos; ++row) {
            const auto weights = l.weights(layer, 1, head, row, lab::range(0, row + 1));
            for (int32_t i = 0; i < first; ++i) votes[i] += weights[i];
        }
    }
    for (int32_t i = 0; i < first; ++i) {
        pooled.push_back(*std::max_element(votes.begin() + std::max(0, i - 3), votes.begin() + std::min(first, i + 4)));
    }
    return pooled;
}

std::vector<double> naive_worth(Lab& l, int32_t layer, int32_t pos, int32_t set) {
    std::vector<double> worth = naive_votes(l, layer, pos, set), similarity(static_cast<size_t>(pos + 1));
    const auto dot = [&](int32_t a, int32_t b) {
        double sum = 0;
        for (int32_t d = 0; d < l.s.head_dim(); ++d) {
            const int32_t head_kv = kv_of(l, heads_of(l, set)[0]);
            sum += l.key(layer, 1, head_kv, a, d) * l.key(layer, 1, head_kv, b, d);
        }
        return sum;
    };
    double total = 0;
    for (int32_t a = 0; a <= pos; ++a) {
        for (int32_t b = 0; b <= pos; ++b) {
            if (a != b) similarity[a] += dot(a, b) / std::sqrt(dot(a, a) * dot(b, b)) / pos;
        }
        total += std::exp(similarity[a]);
    }
    const double lambda = 1 - double{l.config.redundancy_weight};
    const double n_votes = l.config.observe_window * static_cast<double>(heads_of(l, set).size());
    for (size_t i = 0; i < worth.size(); ++i) {
        worth[i] = lambda * worth[i] / n_votes - (1 - lambda) * std::exp(similarity[i]) / total;
    }
    return worth;
}

// What a vote at pos keeps: the voters' positions, the sinks and the best of the others.
Positions keep_best(Lab& l, std::vector<double> worth, int32_t pos) {
    worth.resize(static_cast<size_t>(pos + 1), -1e9);
    return lab::best(worth, l.config.n_fac, l.config.n_sink, l.config.observe_window);
}

template <class Worth>
void check_voting(Lab& l, Worth&& worth) {
    l.append(1, 0, 200);
    std::vector<Lists> kept(static_cast<size_t>(l.s.n_layer));
    for (int32_t pos = 200, voted_at = 0; pos < 213; ++pos) {
        const auto lists = l.step(1, pos);
        const bool votes = voted_at == 0 || pos - voted_at >= 5;
        if (votes) voted_at = pos;
        CHECK(votes == (pos % 5 == 0));
        for (int32_t layer = 1; layer < l.s.n_layer; ++layer) {
            for (int32_t set = 0; votes && set < n_set(l); ++set) {
                kept[layer].resize(static_cast<size_t>(n_set(l)));
                kept[layer][set] = keep_best(l, worth(l, layer, pos, set), pos);
                CHECK(kept[layer][set].size() == 48);
            }
            check_lists(l, lists[layer], [&](int32_t set) {
                Positions expected = kept[layer][set];
                for (const int32_t newer : lab::range(voted_at + 1, pos + 1)) expected.push_back(newer);
                return expected;
            });
        }
    }
}

}  // namespace

TEST(oracle_ranks_by_whole_keys) {
    with_labs("oracle", [](Lab& l) {
        l.append(1, 0, 250);
        const Lists lists = l.step(1, 250)[2];
        check_lists(l, lists, [&](int32_t set) {
            std::vector<double> scores(251);
            for (const int32_t head : heads_of(l, set)) {
                for (int32_t i = 0; i <= 250; ++i) scores[i] += l.score(2, 1, head, 250, i);
            }
            return lab::best(scores, 48, 3, 6);
        });
    });
}

TEST(sparq_ranks_by_the_largest_query_dims) {
    with_labs("sparq", [](Lab& l) {
        l.append(1, 0, 250);
        const Lists lists = l.step(1, 250)[2];
        check_lists(l, lists, [&](int32_t set) {
            std::vector<double> magnitude(static_cast<size_t>(l.s.head_dim())), scores(251);
            for (const int32_t head : heads_of(l, set)) {
                for (int32_t d = 0; d < l.s.head_dim(); ++d) magnitude[d] += std::fabs(l.query(2, 1, head, 250, d));
            }
            for (const int32_t d : lab::best(magnitude, 6, 0, 0)) {
                for (const int32_t head : heads_of(l, set)) {
                    for (int32_t i = 0; i <= 250; ++i) {
                        scores[i] += l.query(2, 1, head, 250, d) * l.key(2, 1, kv_of(l, head), i, d);
                    }
                }
            }
            return lab::best(scores, 48, 3, 6);
        });
    });
}

TEST(streaming_keeps_the_first_and_the_last) {
    with_labs("streaming", [](Lab& l) {
        l.append(1, 0, 250);
        const Lists lists = l.step(1, 250)[1];
        check_lists(l, lists, [&](int32_t) {
            Positions expected = lab::range(0, 8);
            for (const int32_t pos : lab::range(211, 251)) expected.push_back(pos);
            return expected;
        });
    });
}

TEST(quest_ranks_pages_by_their_bounds) {
    with_labs("quest", [](Lab& l) {
        for (const PageBounds bounds : {PageBounds::min_max, PageBounds::mean_std}) {
            for (const int32_t page : {1, 8}) {
                SelectConfig c = l.config;
                c.quest_bounds = bounds;
                c.page = page;
                l.make(c);
                l.append(1, 0, 200);
                for (int32_t pos = 200; pos < 219; ++pos) {
                    const Lists lists = l.step(1, pos)[1];
                    check_lists(l, lists,
                                [&](int32_t set) { return naive_quest(l, 1, pos, set, page > 1 ? page : 16); });
                }
            }
        }
    });
}

TEST(quest_follows_what_the_sequence_holds) {
    with_labs("quest", [](Lab& l) {
        const auto check = [&](int32_t pos) {
            const Lists lists = l.step(1, pos)[2];
            check_lists(l, lists, [&](int32_t set) { return naive_quest(l, 2, pos, set, 16); });
        };
        l.append(1, 0, 200);
        check(200);
        l.append(1, 201, 90);
        check(291);
        for (const int32_t n_tokens : {290, 256, 113, 0}) {  // cut back, then other tokens
            l.sparsity->forget(1, n_tokens);
            l.append(1, n_tokens, 200);
            check(n_tokens + 200);
        }
        l.append(1, 0, 150);  // another sequence copied over it
        l.sparsity->forget(1, 0);
        check(150);
        l.make(config("quest", l.config.tokens_per_head));  // set on a filled cache
        check(151);
    });
}

TEST(snapkv_keeps_what_the_last_queries_attend_to) {
    with_labs("snapkv", [](Lab& l) { check_voting(l, naive_votes); });
}

TEST(rkv_weighs_votes_against_redundancy) {
    with_labs("rkv", [](Lab& l) { check_voting(l, naive_worth); });
}

TEST(votes_need_the_last_queries) {
    for (const char* method : {"snapkv", "rkv"}) {
        Lab l({});
        const SelectConfig c = config(method, false);
        l.append(1, 0, 200);
        l.make(c);  // set on a filled cache: nothing was observed
        CHECK_THROWS(l.step(1, 200), FASA_ERROR_ARGUMENT, method, "truncate the sequence to 189 tokens");
        l.make(c);
        const auto check = [&](int32_t pos) {
            const Lists lists = l.step(1, pos)[1];
            check_lists(l, lists, [&](int32_t set) {
                const bool snapkv = c.method == "snapkv";
                return keep_best(l, snapkv ? naive_votes(l, 1, pos, set) : naive_worth(l, 1, pos, set), pos);
            });
        };
        l.append(1, 188, 12);  // the last ones again, as the message says
        check(200);
        l.sparsity->forget(1, 200);  // the last token anew: the queries before it are still known
        check(200);
        l.sparsity->forget(1, 195);  // but not those before the window
        CHECK_THROWS(l.step(1, 195), FASA_ERROR_ARGUMENT, method, "last 12 positions", "to 184 tokens");
    }
}

TEST(votes_are_dropped_with_what_they_were_about) {
    Lab l({});
    SelectConfig c = config("snapkv", false);
    c.refresh_every = 100;
    l.make(c);
    l.append(1, 0, 200);
    l.step(1, 200);
    const Lists second = l.step(1, 201)[1];
    l.sparsity->forget(1, 201);  // back to the vote: it still holds
    const Lists again = l.step(1, 201)[1];
    CHECK(again == second);
    l.sparsity->forget(1, 150);  // before the vote: a new one
    l.append(1, 150, 30);
    const Lists lists = l.step(1, 180)[1];
    check_lists(l, lists, [&](int32_t set) { return keep_best(l, naive_votes(l, 1, 180, set), 180); });
    l.append(0, 0, 100);  // the other sequence has votes of its own
    CHECK(l.step(0, 100)[1][0].back() == 100 && l.step(1, 181)[1][0].back() == 181);
}

// A vote with a budget below the window keeps the last positions.
TEST(votes_within_a_small_budget) {
    Lab l({});
    SelectConfig c = config("snapkv", false);
    c.n_fac = 10;
    c.n_sink = 0;
    l.make(c);
    l.append(1, 0, 100);
    CHECK(l.step(1, 100)[1] == Lists(2, lab::range(91, 101)));
}

TEST(h2o_keeps_recent_positions_and_heavy_hitters) {
    with_labs("h2o", [](Lab& l) {
        const auto sets = static_cast<size_t>(n_set(l));
        std::vector<std::vector<double>> mass(sets, std::vector<double>(700));
        Lists alive(sets);
        const auto observe = [&](int32_t layer, int32_t pos0, int32_t n, bool prompt) {
            for (size_t set = 0; set < sets; ++set) {
                for (int32_t row = pos0; row < pos0 + n; ++row) {
                    alive[set].push_back(row);
                    const Positions over = prompt ? lab::range(0, row + 1) : alive[set];
                    for (const int32_t head : heads_of(l, static_cast<int32_t>(set))) {
                        const auto weights = l.weights(layer, 1, head, row, over);
                        for (size_t j = 0; j < over.size(); ++j) mass[set][over[j]] += weights[j];
                    }
                }
            }
        };
        const int32_t layer = 2;
        const auto check_step = [&](int32_t pos) {
            const Lists lists = l.step(1, pos)[layer];
            observe(layer, pos, 1, false);
            for (size_t set = 0; set < sets; ++set) {
                std::vector<double> scores(static_cast<size_t>(pos + 1), -1e9);
                for (const int32_t i : alive[set]) scores[i] = mass[set][i];
                alive[set] = lab::best(scores, 48, 3, 24);
            }
            check_lists(l, lists, [&](int32_t set) { return alive[set]; });
        };
        l.append(1, 0, 100);
        observe(layer, 0, 100, true);
        l.append(1, 100, 70);
        observe(layer, 100, 70, true);
        for (int32_t pos = 170; pos < 200; ++pos) check_step(pos);
        l.append(1, 200, 20);  // a second turn attends to everything, but brings nothing back
        observe(layer, 200, 20, true);
        for (int32_t pos = 220; pos < 230; ++pos) check_step(pos);
    });
}

TEST(h2o_needs_the_whole_sequence) {
    Lab l({});
    const char* message = "truncate it to 0 tokens";
    l.append(1, 0, 100);
    l.make(config("h2o", false));
    CHECK_THROWS(l.step(1, 100), FASA_ERROR_ARGUMENT, "h2o", message);
    l.append(1, 0, 100);
    CHECK(l.step(1, 100)[1][0].size() == 48);
    l.sparsity->forget(1, 101);  // nothing that it saw is gone
    CHECK(l.step(1, 101)[1][0].size() == 48);
    l.sparsity->forget(1, 101);  // its last token is
    CHECK_THROWS(l.step(1, 101), FASA_ERROR_ARGUMENT, "h2o", message);
    l.sparsity->forget(1, 0);
    l.append(1, 0, 60);
    CHECK(l.step(1, 60)[1][0].size() == 48);
    l.append(0, 0, 90);  // the other sequence has sums of its own
    CHECK(l.step(0, 90)[1][0].back() == 90 && l.step(1, 61)[1][0].back() == 61);
    l.sparsity->forget(1, 0);  // as many other tokens, copied over it
    CHECK_THROWS(l.step(1, 62), FASA_ERROR_ARGUMENT, "h2o", message);
}

TEST(methods_are_known_by_name) {
    Lab l({});
    SelectConfig c = config("best", false);
    CHECK_THROWS(l.make(c), FASA_ERROR_ARGUMENT, "\"best\"", selector_names());
    CHECK(std::string(selector_names()) == "full, fasa, oracle, streaming, snapkv, h2o, quest, rkv, sparq");
}
