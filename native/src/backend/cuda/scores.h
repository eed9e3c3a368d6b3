// Scores of cached positions: products of queries with keys, above all with their dominant dims, which is how FASA
// predicts what tokens matter [FASA §4]. The stream of dominant planes is most of what sparse decoding reads.
#pragma once

#include <cstdint>

#include "backend/cuda/topk.h"
#include "backend/views.h"

namespace fasa::cuda {

// out [n_set][head_dim] = the sums of the sets' queries.
void sum_queries(float* out, const SetQueries& queries, int head_dim, cudaStream_t stream);

// Where scores are to be ranked next: they are counted for topk on the way.
struct CountFor {
    Budget budget;
    RankScratch scratch;
};

// scores [n_set][n_ctx of kv] of the past positions; n_set is a multiple or a divisor of the KV heads. Only the
// dominant dims count unless whole_key. Counts for topk when `count` is given and counts_first(past.n_pos_max). One
// launch; it may start before the kernels ahead of it end, and then reads what no kernel of this step writes:
// past.step, and rows of kv.dom before the last one.
void token_scores(float* scores, const SetQueries& queries, const KvView& kv, const Past& past, bool whole_key,
                  const CountFor* count, cudaStream_t stream);

}  // namespace fasa::cuda
