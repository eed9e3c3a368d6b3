/* fasa.h - the whole public interface of the fasa engine.
 *
 * Rules of this interface
 *  - A function that can fail returns fasa_status and writes its outputs first. The text of the last failure on this
 *    thread is fasa_error_message(): what is wrong, where, and what to do. Other functions cannot fail.
 *  - Handles are opaque and owned by who created them; *_free(NULL) is a no-op. A context keeps its model alive and a
 *    model its file, so handles may be freed in any order.
 *  - Params structs come filled from *_params_default(); a field that is zero means its default.
 *  - const pointers in results are borrowed: valid until the handle they came from is changed or freed.
 *  - A context is used by one thread at a time; fasa_cancel is the one exception. Models and files are immutable.
 *  - The library never prints, aborts or exits. It logs through the sink given to fasa_log_set.
 *
 * The part between the cdef marks is read as it stands by cffi (fasa_py/_native.py): plain C declarations only,
 * constants as enums, no preprocessor lines inside. FASA_API stands alone before each function.
 */
#ifndef FASA_H
#define FASA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define FASA_API __declspec(dllexport)
#else
#define FASA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* cdef begin */

/* FASA_ROWS_ALIKE: a prompt reused up to this many tokens before its end gives the same logits as all of it. */
enum { FASA_ABI_VERSION = 3, FASA_MAX_DIMS = 4, FASA_ROWS_ALIKE = 10 };

typedef enum fasa_status {
    FASA_OK                 = 0,
    FASA_ERROR              = -1,  /* internal failure */
    FASA_ERROR_ARGUMENT     = -2,  /* a value no caller should pass */
    FASA_ERROR_IO           = -3,  /* a file cannot be opened, mapped, read or written */
    FASA_ERROR_FORMAT       = -4,  /* a file is damaged, or belongs to another model */
    FASA_ERROR_UNSUPPORTED  = -5,  /* architecture, tensor type or device that this build does not implement */
    FASA_ERROR_MEMORY       = -6,  /* host or device memory does not suffice */
    FASA_ERROR_DEVICE       = -7,  /* the device reported a failure */
    FASA_ERROR_CONTEXT_FULL = -8,  /* the sequence would outgrow n_ctx */
    FASA_ERROR_CANCELLED    = -9   /* fasa_cancel, or a callback, asked to stop */
} fasa_status;

typedef enum fasa_log_level { FASA_LOG_DEBUG, FASA_LOG_INFO, FASA_LOG_WARN, FASA_LOG_ERROR } fasa_log_level;

typedef enum fasa_device_kind { FASA_DEVICE_AUTO, FASA_DEVICE_CPU, FASA_DEVICE_CUDA } fasa_device_kind;

/* Tensor types, numbered as in GGUF. Only the listed ones are supported. */
typedef enum fasa_dtype {
    FASA_DTYPE_F32 = 0, FASA_DTYPE_F16 = 1, FASA_DTYPE_Q4_0 = 2, FASA_DTYPE_Q4_1 = 3, FASA_DTYPE_Q5_0 = 6,
    FASA_DTYPE_Q5_1 = 7, FASA_DTYPE_Q8_0 = 8, FASA_DTYPE_Q2_K = 10, FASA_DTYPE_Q3_K = 11, FASA_DTYPE_Q4_K = 12,
    FASA_DTYPE_Q5_K = 13, FASA_DTYPE_Q6_K = 14, FASA_DTYPE_IQ4_NL = 20, FASA_DTYPE_IQ4_XS = 23, FASA_DTYPE_BF16 = 30
} fasa_dtype;

/* Metadata value types, numbered as in GGUF. */
typedef enum fasa_meta_type {
    FASA_META_U8, FASA_META_I8, FASA_META_U16, FASA_META_I16, FASA_META_U32, FASA_META_I32, FASA_META_F32,
    FASA_META_BOOL, FASA_META_STRING, FASA_META_ARRAY, FASA_META_U64, FASA_META_I64, FASA_META_F64
} fasa_meta_type;

typedef struct fasa_gguf fasa_gguf;        /* an open, checked GGUF file (all of its splits) */
typedef struct fasa_model fasa_model;      /* weights on a device */
typedef struct fasa_context fasa_context;  /* KV cache and scratch of one or more sequences */
typedef struct fasa_sampler fasa_sampler;  /* logits -> token */
typedef struct fasa_table fasa_table;      /* calibration: which chunks of which head are dominant */

/* Returns false to cancel. fraction: 0..1. */
typedef bool (*fasa_progress_fn)(float fraction, void * user);
/* Polled on the calling thread during long work, at most every 20 ms. Returns true to stop. */
typedef bool (*fasa_abort_fn)(void * user);
typedef void (*fasa_log_fn)(fasa_log_level level, const char * text, void * user);

/* One metadata entry. */
typedef struct fasa_meta {
    const char *     key;      /* zero-terminated */
    fasa_meta_type   type;     /* of the value; FASA_META_ARRAY: of an array of elem_type */
    fasa_meta_type   elem_type;/* equal to type for a scalar */
    uint64_t         n;        /* number of elements; 1 for a scalar */
    const void *     data;     /* numbers: n packed little-endian values, maybe unaligned; strings: all bytes, concatenated */
    const uint64_t * offsets;  /* strings: n + 1 offsets into data; numbers: NULL */
} fasa_meta;

typedef struct fasa_tensor {
    const char * name;                 /* zero-terminated */
    fasa_dtype   dtype;
    const char * dtype_name;           /* "Q4_K" */
    int32_t      n_dims;
    int64_t      dims[4];              /* GGUF order: dims[0] is the contiguous one; unused ones are 1 */
    uint64_t     n_bytes;
    uint64_t     offset;               /* of the data, in its file */
    int32_t      file;                 /* which split, from 0 */
    const void * data;
} fasa_tensor;

typedef struct fasa_gguf_info {
    uint32_t version;                  /* 2 or 3 */
    uint32_t alignment;                /* bytes */
    int32_t  n_files;
    uint64_t n_meta, n_tensors;
    uint64_t n_bytes;                  /* of all files */
} fasa_gguf_info;

typedef struct fasa_build_info {
    const char * version;              /* of the library */
    const char * compiler;
    bool         cuda;                 /* built with the CUDA backend */
    const char * cuda_reason;          /* why it was, or was not */
    const char * cpu_isa;              /* instruction set in use: "scalar", "avx2", "avx512"; or "none" */
    const char * cpu_isa_reason;       /* why that one: "detected" or "FASA_CPU=..."; why none */
    const char * cpu_isa_built;        /* all that were built, comma-separated */
    const char * cpu_name;
    int32_t      n_cores;              /* usable by this process: affinity and cgroup counted in */
    uint64_t     memory_available;     /* bytes, cgroup counted in */
} fasa_build_info;

/* A GPU, as the CUDA backend sees it. Versions: 12040 is 12.4. */
typedef struct fasa_gpu_info {
    char     name[256];
    int32_t  capability_major, capability_minor;
    int32_t  n_multiprocessors;
    uint64_t memory_bytes;
    int32_t  driver_version;           /* the newest CUDA that the driver serves */
    int32_t  runtime_version;          /* the CUDA that the library was built with */
    bool     supported;                /* its compute capability is one that the kernels need */
} fasa_gpu_info;

typedef struct fasa_model_params {
    fasa_device_kind device;           /* auto: the first GPU if one can be used, else the CPU; the log says which */
    int32_t          device_index;
    int32_t          n_threads;        /* 0: all usable cores */
    fasa_progress_fn progress;         /* or NULL */
    void *           progress_user;
    bool             ignore_table;     /* load as if the file had no calibration table: to replace a damaged one */
    uint64_t         device_memory_max;/* bytes of the GPU's memory that may be taken, all that CUDA takes counted in;
                                          0: all that is free */
    bool             plan_only;        /* check file and device, but take no memory and upload nothing: a model for
                                          fasa_plan_get, fasa_model_info_get and fasa_table_create. With
                                          device_memory_max, and where no GPU can be seen, one is assumed */
} fasa_model_params;

typedef struct fasa_model_info {
    const char * arch;                 /* "llama" */
    const char * device;               /* "cpu (avx512, 8 threads)" */
    int32_t      n_layer, n_head, n_head_kv, head_dim, n_rot, n_embd, n_ff, n_vocab, n_ctx_train;
    float        rope_freq_base;
    const char * rope_layout;          /* "interleaved" or "half_split" */
    const char * rope_scaling;         /* "none", "linear", "yarn", "freqs" */
    int32_t      n_threads;
    uint64_t     n_params, n_bytes;    /* of the weights */
    uint64_t     fingerprint;          /* of shapes, settings and sampled weight bytes */
} fasa_model_info;

typedef enum fasa_criterion { FASA_CRITERION_AUTO, FASA_CRITERION_CA, FASA_CRITERION_MASS } fasa_criterion;
typedef enum fasa_kv_placement { FASA_KV_AUTO, FASA_KV_DEVICE, FASA_KV_SPLIT } fasa_kv_placement;

/* How dominant keys are stored for ranking: exactly, or as 8- or 4-bit copies with one scale a token and KV head, beside
 * the whole exact keys that attention reads. */
typedef enum fasa_k_dom { FASA_K_DOM_F16, FASA_K_DOM_INT8, FASA_K_DOM_Q4 } fasa_k_dom;

/* How decode steps attend. Filled by fasa_method_params_default; here a zero is a zero. */
typedef struct fasa_method_params {
    const char *   method;             /* "auto": fasa with a table, else full; or one of fasa_supported_methods */
    int32_t        n_tip;              /* dominant chunks a head; 0: as the table advises, else a quarter */
    float          n_tip_fraction;     /* > 0: that share of the chunks instead, one at least */
    int32_t        n_fac;              /* positions attended to, forced ones included */
    float          n_fac_fraction;     /* > 0: that share of the cached positions instead */
    int32_t        n_sink, n_recent;   /* positions always kept: the first, the last */
    int32_t        dense_layers;       /* leading layers that stay dense */
    int32_t        dense_below;        /* cached positions up to which steps stay dense; -1: where sparse begins to pay */
    int32_t        page;               /* positions chosen together; 1: each by itself */
    bool           chunks_per_head;    /* dominant chunks per query head instead of per KV head */
    bool           tokens_per_head;    /* positions per query head instead of per KV head */
    fasa_criterion criterion;
    bool           pyramid;            /* budgets fall from layer to layer (PyramidKV) */
    bool           quest_mean_std;     /* quest: pages by mean and deviation instead of bounds */
    int32_t        observe_window, refresh_every;  /* snapkv, rkv: queries that vote, tokens between votes */
    float          redundancy_weight;  /* rkv */
} fasa_method_params;

typedef struct fasa_context_params {
    int32_t n_ctx;                     /* tokens a sequence can hold; 0: min(trained context, what fits) */
    int32_t n_batch;                   /* tokens processed at once in prefill; 0: 512. At least 2 * FASA_ROWS_ALIKE are
                                          taken (or n_ctx), so that a prompt's logits do not depend on it */
    int32_t n_seq;                     /* sequences; 0: 1 */
    fasa_method_params method;
    const fasa_table * table;          /* NULL: the file's own, if it has one */
    fasa_k_dom         k_dom;          /* other than f16: method fasa with dominant sets per KV head only */
    fasa_kv_placement  kv;             /* device: all of the cache; split: dominant keys only, the rest in host memory;
                                          auto: split where a method allows it and only that fits. With a GPU a KV head's
                                          rows in host memory must be less than 2 GiB: UNSUPPORTED for a larger n_ctx */
    int32_t            kv_cache_rows;  /* of a split cache: rows that the device keeps of every sparse layer and KV head,
                                          those chosen of late; 0: four times n_fac; -1: none */
} fasa_context_params;

/* Bytes that a model with one context of these params takes, all of them known before. Device memory is a GPU's own; on
 * the CPU there is none, and all is host memory. What is available is so for all of it: what this model already holds
 * is counted in. With a GPU host memory is page-locked, and an eighth of what is free counts as not available. n_ctx_max
 * is rounded down to a multiple of 64, but not below n_ctx, nor if it is less than that. */
typedef struct fasa_plan {
    int32_t  n_ctx, n_ctx_max;         /* asked or chosen; the largest that fits now, 0: none; see below */
    bool     fits;
    fasa_kv_placement kv;              /* asked or chosen; never auto */
    uint64_t weights_device_bytes;     /* uploaded */
    uint64_t weights_host_bytes;       /* mapped from the file, shared between processes; CPU only */
    uint64_t kv_device_bytes, kv_host_bytes;
    uint64_t kv_dom_bytes;             /* the part that dominant keys take: on the device in any placement */
    uint64_t scratch_device_bytes;     /* activations, workspace of the ops and of cuBLAS, the cache of rows */
    uint64_t row_cache_bytes;          /* the part that the device's cache of rows of a split KV cache takes */
    uint64_t scratch_host_bytes;       /* logits, tokens, page-locked buffers; on the CPU also the above */
    uint64_t system_device_bytes;      /* what CUDA takes itself: its context, kernels, graphs; an upper bound */
    uint64_t device_bytes, host_bytes; /* the sums of these */
    uint64_t device_available, host_available;
    uint64_t device_missing, host_missing;  /* 0: it fits there */
} fasa_plan;

typedef struct fasa_stats {
    uint64_t n_prefill, n_decode;      /* tokens processed in calls of several tokens, of one token */
    double   prefill_s, decode_s;
    uint64_t decode_bytes;             /* weight and KV bytes that the decode steps had to read */
    uint64_t layers_dense, layers_sparse;    /* layer passes of decode steps */
    uint64_t tokens_selected;                /* positions, summed over lists and sparse layers */
    uint64_t key_bytes, value_bytes;         /* of the KV cache, read by decode steps */
    /* Of a split KV cache, on a device apart from the host: rows that decode steps attended to, found in the device's
     * cache of rows or not; bytes of rows that went over the bus, by all steps, in either direction. A device that has
     * failed counts none of them. */
    uint64_t rows_hit, rows_missed, pcie_bytes;
} fasa_stats;

typedef struct fasa_sampler_params {
    uint64_t        seed;
    float           temperature;       /* 0: greedy */
    int32_t         top_k;             /* 0: off */
    float           top_p;             /* 0 or 1: off */
    float           min_p;             /* 0: off */
    float           repeat_penalty;    /* 0 or 1: off */
    float           presence_penalty, frequency_penalty;
    int32_t         penalty_window;    /* last tokens looked at; 0: 64; -1: all */
    const int32_t * bias_token;        /* [n_bias] or NULL */
    const float *   bias;              /* [n_bias], added to the logits first; -INFINITY bans */
    int32_t         n_bias;
} fasa_sampler_params;

/* library */
FASA_API uint32_t     fasa_abi_version(void);
FASA_API const char * fasa_error_message(void);
FASA_API void         fasa_log_set(fasa_log_fn fn, void * user);
FASA_API void         fasa_build_info_get(fasa_build_info * out);
/* GPUs that the CUDA backend sees; when there are none, why, in reason (which may be NULL), until the next call. */
FASA_API int32_t      fasa_gpu_count(const char ** reason);
FASA_API fasa_status  fasa_gpu_info_get(fasa_gpu_info * out, int32_t index);
FASA_API const char * fasa_supported_archs(void);   /* "llama, qwen2, qwen3" */
FASA_API const char * fasa_supported_dtypes(void);  /* "F32, F16, ..." */

/* GGUF files. path: any file of a split set opens the whole set. */
FASA_API fasa_status  fasa_gguf_open(fasa_gguf ** out, const char * path);
FASA_API void         fasa_gguf_free(fasa_gguf * file);
FASA_API void         fasa_gguf_info_get(fasa_gguf_info * out, const fasa_gguf * file);
FASA_API fasa_status  fasa_gguf_meta(fasa_meta * out, const fasa_gguf * file, uint64_t i);
FASA_API fasa_status  fasa_gguf_tensor(fasa_tensor * out, const fasa_gguf * file, uint64_t i);
/* n values (a multiple of the block size) of any supported type to float. */
FASA_API fasa_status  fasa_dequantize(float * out, fasa_dtype dtype, const void * data, uint64_t n_bytes, uint64_t n);

/* model */
FASA_API void         fasa_model_params_default(fasa_model_params * out);
FASA_API fasa_status  fasa_model_load(fasa_model ** out, const fasa_gguf * file, const fasa_model_params * params);
FASA_API void         fasa_model_free(fasa_model * model);
FASA_API void         fasa_model_info_get(fasa_model_info * out, const fasa_model * model);

/* context */
FASA_API void         fasa_context_params_default(fasa_context_params * out);
FASA_API fasa_status  fasa_plan_get(fasa_plan * out, const fasa_model * model, const fasa_context_params * params);
/* FASA_ERROR_MEMORY when it does not fit: the text names what is missing and what would fit. */
FASA_API fasa_status  fasa_plan_check(const fasa_plan * plan);
FASA_API fasa_status  fasa_context_create(fasa_context ** out, const fasa_model * model, const fasa_context_params * params);
FASA_API void         fasa_context_free(fasa_context * ctx);
FASA_API void         fasa_context_plan(fasa_plan * out, const fasa_context * ctx);
FASA_API void         fasa_context_abort_set(fasa_context * ctx, fasa_abort_fn fn, void * user);
/* Append n tokens to a sequence and compute the logits of the last one. When it fails or is cancelled, the sequence
 * keeps the tokens of the batches that were finished, and the context stays usable. progress may be NULL. */
FASA_API fasa_status  fasa_decode(fasa_context * ctx, int32_t seq, const int32_t * tokens, int32_t n,
                                  fasa_progress_fn progress, void * user);
/* Logits of the last token processed: [n_vocab]. */
FASA_API const float * fasa_logits(const fasa_context * ctx);
/* Append n tokens and write log p(tokens[i] | everything before it) to logprob[i], natural log. logprob[0] is NaN when
 * the sequence was empty. fasa_logits is afterwards that of the last token. */
FASA_API fasa_status  fasa_score(float * logprob, fasa_context * ctx, int32_t seq, const int32_t * tokens, int32_t n,
                                 fasa_progress_fn progress, void * user);
FASA_API void         fasa_stats_get(fasa_stats * out, const fasa_context * ctx);
FASA_API void         fasa_stats_reset(fasa_context * ctx);
/* From any thread: the work on tokens in progress ends with FASA_ERROR_CANCELLED. */
FASA_API void         fasa_cancel(fasa_context * ctx);

/* sequences: prefix reuse, fork, save and restore */
FASA_API int32_t      fasa_seq_length(const fasa_context * ctx, int32_t seq);
FASA_API const int32_t * fasa_seq_tokens(const fasa_context * ctx, int32_t seq);
FASA_API fasa_status  fasa_seq_truncate(fasa_context * ctx, int32_t seq, int32_t n_tokens);
FASA_API fasa_status  fasa_seq_copy(fasa_context * ctx, int32_t dst, int32_t src, int32_t n_tokens);
FASA_API fasa_status  fasa_seq_save(const fasa_context * ctx, int32_t seq, const char * path);
FASA_API fasa_status  fasa_seq_load(fasa_context * ctx, int32_t seq, const char * path);

/* Decode steps from now on attend this way. The layout of the cache stays that of the context's own method. */
FASA_API fasa_status  fasa_method_set(fasa_context * ctx, const fasa_method_params * params);
FASA_API void         fasa_method_params_default(fasa_method_params * out);
FASA_API const char * fasa_supported_methods(void); /* "full, fasa, ..." */
/* The method in use, "auto" resolved, and whether the cache is split. */
FASA_API void         fasa_method_get(fasa_method_params * out, const fasa_context * ctx);

/* calibration tables. ca [n_layer][n_head][n_chunk]; order [n_layer][n_head_kv][n_chunk] or NULL;
 * order_head [n_layer][n_head][n_chunk] or NULL. */
FASA_API fasa_status  fasa_table_create(fasa_table ** out, const fasa_model * model, fasa_criterion criterion,
                                        const float * ca, const uint16_t * order, const uint16_t * order_head);
FASA_API void         fasa_table_free(fasa_table * table);
FASA_API bool         fasa_model_has_table(const fasa_model * model);

/* looking inside: records the queries and selections of the next n_steps decode steps; 0 stops and frees */
FASA_API fasa_status  fasa_tap_start(fasa_context * ctx, int32_t n_steps);
FASA_API int32_t      fasa_tap_steps(const fasa_context * ctx);
/* Of one recorded step and layer: sequence and number of cached positions; rotated queries [n_head][head_dim], dims as
 * in the file; the positions attended to, [n_set][n_pos] with their counts [n_set] (n_set 0: dense). Any may be NULL. */
FASA_API fasa_status  fasa_tap_read(const fasa_context * ctx, int32_t step, int32_t layer, int32_t * seq, int32_t * n_pos,
                                    float * q, int32_t * n_set, int32_t * count, int32_t * positions);
/* Keys (rotated) and values [n][head_dim] of positions first .. first + n - 1, dims as in the file. Either may be NULL. */
FASA_API fasa_status  fasa_kv_read(float * k, float * v, const fasa_context * ctx, int32_t seq, int32_t layer,
                                   int32_t head_kv, int32_t first, int32_t n);

typedef struct fasa_calibrate_params {
    int32_t k;                         /* best positions that CA compares */
    int32_t n_fac;                     /* positions that mass is summed over, forced ones included */
    int32_t n_sink, n_recent;          /* forced ones: the first, the last */
    int32_t n_joint;                   /* chunks chosen jointly; the others follow by CA */
    int32_t seq;                       /* steps of this sequence only; -1: of all */
    int32_t max_steps;                 /* steps used, spread evenly over those that are long enough; 0: all of them */
} fasa_calibrate_params;

/* Calibrate from what a tap recorded; its positions must still be in the cache. ca [n_layer][n_head][n_chunk]: mean
 * agreement of each chunk's k best positions with the head's; order [n_layer][n_head_kv][n_chunk]: chunks chosen
 * jointly for the attention that their n_fac best positions hold; order_head [n_layer][n_head][n_chunk]: the same per
 * query head. What is NULL is not computed. n_steps: the steps used, each with more than k and n_fac positions. */
FASA_API void         fasa_calibrate_params_default(fasa_calibrate_params * out);
FASA_API fasa_status  fasa_calibrate(float * ca, uint16_t * order, uint16_t * order_head, int32_t * n_steps,
                                     fasa_context * ctx, const fasa_calibrate_params * params,
                                     fasa_progress_fn progress, void * user);

/* sampling */
FASA_API void         fasa_sampler_params_default(fasa_sampler_params * out);
FASA_API fasa_status  fasa_sampler_create(fasa_sampler ** out, const fasa_sampler_params * params);
FASA_API void         fasa_sampler_free(fasa_sampler * sampler);
/* Choose a token from logits [n_vocab]. previous [n_previous]: prompt and generated tokens, for the penalties. */
FASA_API fasa_status  fasa_sample(int32_t * out, fasa_sampler * sampler, const float * logits, int32_t n_vocab,
                                  const int32_t * previous, int32_t n_previous);

/* cdef end */

#ifdef __cplusplus
}
#endif
#endif
