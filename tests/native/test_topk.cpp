// Selection of the best positions: against sorting, over ties, NaN, infinities, forced positions and all sizes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "backend/cpu/topk.h"
#include "check.h"

using namespace fasa;
using namespace fasa::cpu;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

std::vector<int32_t> sorted_topk(const std::vector<float>& scores, int32_t n_pos, int32_t keep, int32_t n_sink,
                                 int32_t n_recent) {
    keep = std::min(keep, n_pos);
    n_sink = std::min(n_sink, keep);
    n_recent = std::min(n_recent, keep - n_sink);
    std::vector<int32_t> middle, chosen;
    for (int32_t i = 0; i < n_pos; ++i) (i < n_sink || i >= n_pos - n_recent ? chosen : middle).push_back(i);
    const auto rank = [&](int32_t i) { return std::isnan(scores[i]) ? -infinity : scores[i]; };
    std::stable_sort(middle.begin(), middle.end(), [&](int32_t a, int32_t b) { return rank(a) > rank(b); });
    chosen.insert(chosen.end(), middle.begin(), middle.begin() + (keep - n_sink - n_recent));
    std::sort(chosen.begin(), chosen.end());
    return chosen;
}

void check_all(TopK& topk, const std::vector<float>& scores, int32_t n_ctx) {
    for (const int32_t n_pos : {1, 2, 37, 300, 2999, n_ctx}) {
        for (const int32_t keep : {1, 2, 36, 256, 290, n_ctx}) {
            for (const auto& [n_sink, n_recent] : {std::pair{0, 0}, {4, 32}, {0, 1}, {300, 300}}) {
                std::vector<int32_t> positions(2 * static_cast<size_t>(n_ctx)), count(2);
                Selection selection{positions.data(), count.data(), 2, n_ctx};
                std::vector<float> rows(scores);
                rows.resize(static_cast<size_t>(n_ctx));
                rows.insert(rows.end(), rows.rbegin(), rows.rend());
                topk.run(rows.data(), n_pos, keep, n_sink, n_recent, selection);
                for (int32_t set = 0; set < 2; ++set) {
                    const std::vector<float> row(rows.begin() + set * n_ctx, rows.begin() + (set + 1) * n_ctx);
                    const auto expected = sorted_topk(row, n_pos, keep, n_sink, n_recent);
                    const int32_t* list = selection.list(set);
                    CHECK(std::equal(expected.begin(), expected.end(), list, list + count[set]));
                }
            }
        }
    }
}

}  // namespace

TEST(topk_equals_sorting) {
    const int32_t n_ctx = 5000;
    Team team(2);
    TopK topk(team, {1, 1, 2, 2, 2, n_ctx});
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> scores(static_cast<size_t>(n_ctx));
    for (float& s : scores) s = normal(random);
    check_all(topk, scores, n_ctx);
    for (float& s : scores) s = std::round(s * 2);  // many ties
    check_all(topk, scores, n_ctx);
    for (size_t i = 0; i < scores.size(); i += 7) scores[i] = i % 2 ? NAN : i % 3 ? infinity : -infinity;
    check_all(topk, scores, n_ctx);
    for (size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(i);  // ever better
    check_all(topk, scores, n_ctx);
    std::fill(scores.begin(), scores.end(), 1.0f);
    check_all(topk, scores, n_ctx);
    std::fill(scores.begin(), scores.end(), NAN);
    check_all(topk, scores, n_ctx);
}
