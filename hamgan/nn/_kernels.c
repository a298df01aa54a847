/* What a training step on a CPU is made of: spectral norm, batch norm with its gain, bias and ReLU, pooling, sums over windows,
   the gradients of biases and lists of tensors, for x86-64 with AVX2 or AVX-512, the steps of NMF (AVX-512), and convolutions
   in bfloat16 (AVX-512 BF16), each in as few passes over memory as it takes. kernels.py calls it through ctypes, so that
   nothing here depends on Python or torch. The loops are in _kernels.h, compiled for all, _nmf.h and _convolution.h.

   Threads are those of the OpenMP library that torch has loaded already: hamgan_kernels_threads is given its functions.
   A second such library would keep threads of its own, spinning beside torch's. */

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Of the arguments of all functions: a library that was compiled for others is not used. */
int hamgan_kernels_version(void) { return 2; }

#if defined(__x86_64__) && defined(__GNUC__)

#define LANES 16
#define STRIP 1024 /* columns of a product that the first-level cache holds while rows go by */
#define CHUNK 8192 /* numbers that one piece of work reads */
#define PIECE 16384 /* numbers of a tensor in a list */

struct matrix {
    const float *values;
    long rows, cols;
};

/* A map (samples, height, width, channels) and what is made of the sums over its windows; see hamgan_windows. */
struct windows {
    const void *x, *value;
    const float *before, *after;
    void *out;
    float *sums;
    long height, width, channels, pad;
    float by;
    int half, relu;
};

#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10
#define HAS_BF16 1 /* the compiler */
#define HALVES(x) x##_halves
#else
#define HALVES WIDE
#endif
#define WIDE(x) x##_wide
#define NARROW(x) x##_narrow
#define INLINE static inline __attribute__((always_inline))

/* Compile what follows for some instructions, up to END_FOR. */
#define AVX2 "avx2,fma"
#define AVX512 AVX2 ",avx512f,avx512bw,avx512vl,avx512dq"
#define AVX512_BF16 AVX512 ",avx512bf16"
#define PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define FOR(instructions, widest) PRAGMA(clang attribute push(__attribute__((target(instructions))), apply_to = function))
#define END_FOR PRAGMA(clang attribute pop)
#else
#define FOR(instructions, widest) PRAGMA(GCC push_options) PRAGMA(GCC target(instructions widest))
#define END_FOR PRAGMA(GCC pop_options)
#endif

#ifdef HAS_BF16
FOR(AVX512_BF16, ",prefer-vector-width=512")
#define NAME HALVES
#define ROUND _mm512_cvtneps_pbh
#include "_kernels.h"
#undef ROUND
#undef NAME
END_FOR
#endif
FOR(AVX512, ",prefer-vector-width=512")
#define NAME WIDE
#include "_kernels.h"
#undef NAME
#include "_nmf.h"
END_FOR
FOR(AVX2, "")
#define NAME NARROW
#include "_kernels.h"
#undef NAME
END_FOR

static int most = 3;

/* Take fewer instructions than there are: for tests. */
void hamgan_kernels_limit(int level) { most = level; }

/* 0: too few; 1: AVX2; 2: AVX-512; 3: AVX-512 with products of bfloat16. */
int hamgan_kernels_level(void) {
    static int level = -1;
    if (level < 0) {
        __builtin_cpu_init();
        level = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        if (level && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
            level = 2;
#ifdef HAS_BF16
        if (level == 2 && __builtin_cpu_supports("avx512bf16")) level = 3;
#endif
    }
    return level < most ? level : most;
}

#define DO(function, ...) \
    do { \
        const int level = hamgan_kernels_level(); \
        if (level > 2) HALVES(function)(__VA_ARGS__); \
        else if (level > 1) WIDE(function)(__VA_ARGS__); \
        else NARROW(function)(__VA_ARGS__); \
    } while (0)

/* ---- Threads ---- */

static void (*omp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static int (*omp_thread)(void), (*omp_threads)(void);

void hamgan_kernels_threads(void *parallel, void *thread, void *threads) {
    *(void **)&omp_parallel = parallel;
    *(void **)&omp_thread = thread;
    *(void **)&omp_threads = threads;
}

struct work {
    void (*part)(const void *job, long from, long to);
    const void *job;
    long count, grain;
};

static void take_part(void *data) {
    const struct work *work = data;
    const long threads = omp_threads(), thread = omp_thread();
    const long grains = (work->count + work->grain - 1) / work->grain;
    const long from = grains * thread / threads * work->grain, end = grains * (thread + 1) / threads * work->grain;
    const long to = end < work->count ? end : work->count;
    if (from < to) work->part(work->job, from, to);
}

/* Do parts from 0 to `count`, cut at multiples of `grain`, which read `numbers` numbers in all. */
static void in_parts(void (*part)(const void *, long, long), const void *job, long count, long grain, long numbers,
                     int threads) {
    struct work work = {part, job, count, grain};
    if (threads > 1 && omp_parallel && numbers > 2 * CHUNK) omp_parallel(take_part, &work, threads, 0);
    else part(job, 0, count);
}

/* ---- Spectral norm ---- */

struct product {
    const struct matrix *matrix;
    const float *by;
    float *out;
};

static void columns_part(const void *data, long from, long to) {
    const struct product *job = data;
    DO(columns_product, job->matrix, job->by, job->out, from, to);
}

static void rows_part(const void *data, long from, long to) {
    const struct product *job = data;
    DO(rows_product, job->matrix, job->by, job->out, from, to);
}

static void multiply(const struct matrix *m, int transposed, const float *by, float *out, int threads) {
    struct product job = {m, by, out};
    if (transposed) in_parts(columns_part, &job, m->cols, LANES, m->rows * m->cols, threads);
    else in_parts(rows_part, &job, m->rows, 1, m->rows * m->cols, threads);
}

/* Divide a vector by its norm, or by eps if that is larger; return its product with what it was. */
static float normalize(float *x, long length, float eps) {
    double square = 0;
    for (long i = 0; i < length; i++) square += (double)x[i] * x[i];
    const double norm = sqrt(square), by = norm < eps ? eps : norm; /* what is not a number stays one */
    for (long i = 0; i < length; i++) x[i] = (float)(x[i] / by);
    return (float)(square / by);
}

struct scaling {
    const float *x;
    float by;
    void *out;
    int half;
};

static void scale_part(const void *data, long from, long to) {
    const struct scaling *job = data;
    DO(scale, job->x, job->by, job->out, job->half, from, to);
}

/* One power iteration and weight / max(sigma, smallest).

   weight     (rows, cols) as it lies in memory
   taps       of a kernel that lies channels last; otherwise 1: u orders columns as (channel, tap), memory as (tap, channel)
   u          over rows where on_rows, otherwise over columns
   advance    0: sigma of u and one product; 1: an iteration; 2: an iteration, whose u is stored; 3: `found` is there already
   found      rows + cols + 2 numbers: the left and the right vector, sigma, and 1 / max(sigma, smallest)
   out        like weight; bfloat16 where half */
void hamgan_spectral_norm(const float *weight, long rows, long cols, long taps, float *u, int on_rows, int advance,
                          float eps, float smallest, float *found, void *out, int half, int threads) {
    const struct matrix m = {weight, rows, cols};
    float *left = found, *right = found + rows, *sigma = right + cols, *inverse = sigma + 1;
    if (advance < 3) {
        const long channels = cols / taps;
        float *here = on_rows ? left : right, *there = on_rows ? right : left;
        const long length = on_rows ? rows : cols, width = on_rows ? cols : rows;
        if (on_rows || taps == 1) memcpy(here, u, length * sizeof(float));
        else
            for (long c = 0; c < channels; c++)
                for (long t = 0; t < taps; t++) here[t * channels + c] = u[c * taps + t];
        multiply(&m, on_rows, here, there, threads);
        *sigma = normalize(there, width, eps);
        if (advance) {
            multiply(&m, !on_rows, there, here, threads);
            *sigma = normalize(here, length, eps);
        }
        if (advance == 2) {
            if (on_rows || taps == 1) memcpy(u, here, length * sizeof(float));
            else
                for (long c = 0; c < channels; c++)
                    for (long t = 0; t < taps; t++) u[c * taps + t] = here[t * channels + c];
        }
        *inverse = 1 / (*sigma < smallest ? smallest : *sigma);
    }
    struct scaling job = {weight, *inverse, out, half};
    in_parts(scale_part, &job, rows * cols, LANES, rows * cols, threads);
}

struct inner {
    const void *grad;
    const float *weight;
    double *parts;
    long numbers;
    int half;
};

static void inner_part(const void *data, long from, long to) {
    const struct inner *job = data;
    for (long chunk = from; chunk < to; chunk++) {
        const long begin = chunk * CHUNK, end = begin + CHUNK < job->numbers ? begin + CHUNK : job->numbers;
        DO(inner, job->grad, job->half, job->weight, begin, end, job->parts + chunk);
    }
}

struct rank_one {
    const void *grad;
    const float *left, *right;
    float *out, by, share;
    long cols;
    int half;
};

static void rank_one_part(const void *data, long from, long to) {
    const struct rank_one *job = data;
    DO(rank_one, job->grad, job->half, job->by, job->left, job->right, job->share, job->cols, job->out, from, to);
}

/* The weight's gradient from that of weight / max(sigma, smallest); `found` as hamgan_spectral_norm leaves it. Returns 1 if
   there is no memory. */
int hamgan_spectral_norm_gradient(const void *grad, int half, const float *weight, long rows, long cols, float smallest,
                                  const float *found, float *out, int threads) {
    const float sigma = found[rows + cols], inverse = found[rows + cols + 1];
    const long numbers = rows * cols, chunks = (numbers + CHUNK - 1) / CHUNK;
    double sum = 0;
    if (!(sigma < smallest)) {
        double *parts = malloc(chunks * sizeof(double));
        if (!parts) return 1;
        struct inner job = {grad, weight, parts, numbers, half};
        in_parts(inner_part, &job, chunks, 1, numbers, threads);
        for (long i = 0; i < chunks; i++) sum += parts[i];
        free(parts);
    }
    const float share = (float)(-sum * inverse * inverse);
    struct rank_one job = {grad, found, found + rows, out, inverse, share, cols, half};
    in_parts(rank_one_part, &job, rows, 1, numbers, threads);
    return 0;
}

/* ---- Batch norm ---- */

/* A map (samples, pixels, channels), cut into pieces of whole pixels of one sample. */
struct map {
    long samples, pixels, channels;
    long piece, pieces; /* pixels of a piece, pieces of a sample */
};

static struct map cut(long samples, long pixels, long channels) {
    struct map map = {samples, pixels, channels, CHUNK / channels > 0 ? CHUNK / channels : 1, 0};
    map.pieces = (pixels + map.piece - 1) / map.piece;
    return map;
}

/* The pixels of piece `index` of all: the first, counted over the samples, and how many. */
static long piece_of(const struct map *map, long index, long *first) {
    const long begin = index % map->pieces * map->piece, rest = map->pixels - begin;
    *first = index / map->pieces * map->pixels + begin;
    return rest < map->piece ? rest : map->piece;
}

static void in_pieces(void (*part)(const void *, long, long), const void *job, const struct map *map, int threads) {
    in_parts(part, job, map->samples * map->pieces, 1, map->samples * map->pixels * map->channels, threads);
}

struct moments {
    const struct map *map;
    const void *x;
    float *parts;
    int half;
};

static void moments_part(const void *data, long from, long to) {
    const struct moments *job = data;
    for (long index = from; index < to; index++) {
        long first;
        const long pixels = piece_of(job->map, index, &first), channels = job->map->channels;
        float *mean = job->parts + 2 * index * channels;
        DO(moments, job->x, job->half, first, pixels, channels, mean, mean + channels);
    }
}

/* Mean and biased variance of each channel, and a step of the running ones where these are given. Returns 1 if there is no
   memory. Source: Chan et al. 1979 for joining the pieces. */
int hamgan_norm_moments(const void *x, int half, long samples, long pixels, long channels, float *mean, float *variance,
                        float *running_mean, float *running_variance, float momentum, int threads) {
    const struct map map = cut(samples, pixels, channels);
    const long count = samples * map.pieces;
    const double numbers = (double)samples * pixels;
    float *parts = malloc(2 * count * channels * sizeof(float));
    double *sums = calloc(2 * channels, sizeof(double)), *squares = sums + channels;
    if (!parts || !sums) {
        free(parts);
        free(sums);
        return 1;
    }
    struct moments job = {&map, x, parts, half};
    in_pieces(moments_part, &job, &map, threads);
    for (long index = 0; index < count; index++) {
        long first;
        const double size = piece_of(&map, index, &first);
        const float *part = parts + 2 * index * channels;
        for (long c = 0; c < channels; c++) sums[c] += size * part[c];
    }
    for (long c = 0; c < channels; c++) sums[c] /= numbers;
    for (long index = 0; index < count; index++) {
        long first;
        const double size = piece_of(&map, index, &first);
        const float *part = parts + 2 * index * channels;
        for (long c = 0; c < channels; c++) {
            const double off = part[c] - sums[c];
            squares[c] += part[channels + c] + size * off * off;
        }
    }
    for (long c = 0; c < channels; c++) {
        mean[c] = (float)sums[c];
        variance[c] = (float)(squares[c] / numbers);
        if (!running_mean) continue;
        const float unbiased = (float)(squares[c] / (numbers > 1 ? numbers - 1 : 1));
        running_mean[c] = momentum * mean[c] + (1 - momentum) * running_mean[c];
        running_variance[c] = momentum * unbiased + (1 - momentum) * running_variance[c];
    }
    free(parts);
    free(sums);
    return 0;
}

struct affine {
    const struct map *map;
    const void *x;
    const float *scale, *shift;
    void *y;
    long stride; /* from a sample's scales to the next one's */
    int half, relu;
};

static void affine_part(const void *data, long from, long to) {
    const struct affine *job = data;
    for (long index = from; index < to; index++) {
        long first;
        const long pixels = piece_of(job->map, index, &first), at = index / job->map->pieces * job->stride;
        DO(affine, job->x, job->half, job->scale + at, job->shift + at, job->relu, job->y, first, pixels,
           job->map->channels);
    }
}

/* y = gain * (x - mean) / sqrt(variance + eps) + bias, and its positive part where `relu`.

   gain, bias   (samples, channels) where each, otherwise (channels,); NULL: 1 and 0
   scales       2 * (samples or 1) * channels numbers: what x is multiplied by, and what is added */
void hamgan_norm_apply(const void *x, int half, long samples, long pixels, long channels, const float *mean,
                       const float *variance, float eps, const float *gain, const float *bias, int each, int relu,
                       float *scales, void *y, int threads) {
    const struct map map = cut(samples, pixels, channels);
    const long rows = each ? samples : 1;
    float *shifts = scales + rows * channels;
    for (long row = 0, i = 0; row < rows; row++)
        for (long c = 0; c < channels; c++, i++) {
            scales[i] = (gain ? gain[i] : 1) / sqrtf(variance[c] + eps);
            shifts[i] = (bias ? bias[i] : 0) - mean[c] * scales[i];
        }
    struct affine job = {&map, x, scales, shifts, y, each ? channels : 0, half, relu};
    in_pieces(affine_part, &job, &map, threads);
}

struct gradient {
    const struct map *map;
    const void *grad, *x;
    const float *scale, *shift, *mean, *slope, *offset;
    float *parts;
    void *dx;
    long stride;
    int half, relu;
};

static void gradient_sums_part(const void *data, long from, long to) {
    const struct gradient *job = data;
    for (long index = from; index < to; index++) {
        long first;
        const long pixels = piece_of(job->map, index, &first), at = index / job->map->pieces * job->stride;
        const long channels = job->map->channels;
        float *sum = job->parts + 2 * index * channels;
        DO(gradient_sums, job->grad, job->x, job->half, job->scale + at, job->shift + at, job->relu, job->mean, first,
           pixels, channels, sum, sum + channels);
    }
}

static void gradient_part(const void *data, long from, long to) {
    const struct gradient *job = data;
    for (long index = from; index < to; index++) {
        long first;
        const long pixels = piece_of(job->map, index, &first), at = index / job->map->pieces * job->stride;
        DO(gradient, job->grad, job->x, job->half, job->scale + at, job->shift + at, job->relu, job->mean, job->slope,
           job->offset, job->dx, first, pixels, job->map->channels);
    }
}

/* Sums that the gradients are made of; arguments as above, `scales` as hamgan_norm_apply leaves them.

   dgain, dbias  like gain and bias, or like (channels,) without them
   totals        2 * channels: sums over all pixels of the gradient of the standardised map, and of its product with it

   Returns 1 if there is no memory. */
int hamgan_norm_gradient_sums(const void *grad, const void *x, int half, long samples, long pixels, long channels,
                              const float *mean, const float *variance, float eps, const float *gain, int each, int relu,
                              const float *scales, float *dgain, float *dbias, float *totals, int threads) {
    const struct map map = cut(samples, pixels, channels);
    const long rows = each ? samples : 1;
    float *parts = malloc(2 * samples * map.pieces * channels * sizeof(float));
    double *sums = calloc(4 * channels, sizeof(double));
    if (!parts || !sums) {
        free(parts);
        free(sums);
        return 1;
    }
    double *products = sums + channels, *all = products + channels, *all_products = all + channels;
    struct gradient job = {.map = &map, .grad = grad, .x = x, .scale = scales, .shift = scales + rows * channels,
                           .mean = mean, .parts = parts, .stride = each ? channels : 0, .half = half, .relu = relu};
    in_pieces(gradient_sums_part, &job, &map, threads);
    for (long sample = 0; sample < samples; sample++) {
        for (long index = sample * map.pieces; index < (sample + 1) * map.pieces; index++) {
            const float *part = parts + 2 * index * channels;
            for (long c = 0; c < channels; c++) {
                sums[c] += part[c];
                products[c] += part[channels + c];
            }
        }
        if (!each && sample + 1 < samples) continue;
        const long at = each ? sample * channels : 0;
        for (long c = 0; c < channels; c++) {
            const double by = gain ? gain[at + c] : 1, product = products[c] / sqrt((double)variance[c] + eps);
            dbias[at + c] = (float)sums[c];
            dgain[at + c] = (float)product;
            all[c] += by * sums[c];
            all_products[c] += by * product;
            sums[c] = products[c] = 0;
        }
    }
    for (long c = 0; c < channels; c++) {
        totals[c] = (float)all[c];
        totals[channels + c] = (float)all_products[c];
    }
    free(parts);
    free(sums);
    return 0;
}

/* The map's gradient; `totals` over `numbers` values a channel. Returns 1 if there is no memory. */
int hamgan_norm_gradient(const void *grad, const void *x, int half, long samples, long pixels, long channels,
                         const float *mean, const float *variance, float eps, int each, int relu, const float *scales,
                         const float *totals, double numbers, void *dx, int threads) {
    const struct map map = cut(samples, pixels, channels);
    const long rows = each ? samples : 1;
    float *slope = malloc(2 * channels * sizeof(float)), *offset = slope + channels;
    if (!slope) return 1;
    for (long c = 0; c < channels; c++) {
        const double inverse = 1 / sqrt((double)variance[c] + eps);
        slope[c] = (float)(-inverse * inverse * totals[channels + c] / numbers);
        offset[c] = (float)(-inverse * totals[c] / numbers);
    }
    struct gradient job = {.map = &map, .grad = grad, .x = x, .scale = scales, .shift = scales + rows * channels,
                           .mean = mean, .slope = slope, .offset = offset, .dx = dx, .stride = each ? channels : 0,
                           .half = half, .relu = relu};
    in_pieces(gradient_part, &job, &map, threads);
    free(slope);
    return 0;
}

/* ---- ReLU, pooling and sums of channels ---- */

struct pooling {
    const void *x, *other, *value;
    void *out, *positive;
    long width, channels;
    float by;
    int half;
};

static void pool_part(const void *data, long from, long to) {
    const struct pooling *job = data;
    for (long row = from; row < to; row++)
        DO(pool, job->x, job->half, row, job->width, job->channels, job->by, job->out, job->positive);
}

static void unpool_part(const void *data, long from, long to) {
    const struct pooling *job = data;
    for (long row = from; row < to; row++)
        DO(unpool, job->x, job->half, job->other, job->value, row, job->width, job->channels, job->by, job->out);
}

/* Sums over two by two pixels of a map (rows, width, channels), times `by`, to (rows / 2, width / 2, channels); and its
   positive part, unless `positive` is NULL. Rows are those of all samples, evenly many in each. */
void hamgan_pool(const void *x, int half, long rows, long width, long channels, float by, void *pooled, void *positive,
                 int threads) {
    struct pooling job = {.x = x, .out = pooled, .positive = positive, .width = width, .channels = channels, .by = by,
                          .half = half};
    in_parts(pool_part, &job, rows / 2, 1, rows * width * channels, threads);
}

/* The adjoint: `pooled` times `by` to each of two by two pixels of a map (rows, width, channels), plus `other`, unless NULL,
   there where `value` is positive or not a number, unless NULL. `out` may be `other`. */
void hamgan_unpool(const void *pooled, int half, long rows, long width, long channels, float by, const void *other,
                   const void *value, void *out, int threads) {
    struct pooling job = {.x = pooled, .other = other, .value = value, .out = out, .width = width, .channels = channels,
                          .by = by, .half = half};
    in_parts(unpool_part, &job, rows, 1, rows * width * channels, threads);
}

struct sums {
    const struct map *map;
    const void *grad, *value;
    void *masked;
    float *parts;
    int half;
};

static void channel_sums_part(const void *data, long from, long to) {
    const struct sums *job = data;
    for (long index = from; index < to; index++) {
        long first;
        const long pixels = piece_of(job->map, index, &first), channels = job->map->channels;
        DO(channel_sums, job->grad, job->half, job->value, job->masked, first, pixels, channels,
           job->parts + index * channels);
    }
}

/* Sums of each channel of a map (pixels, channels), the gradient of a bias. With `value`, of the gradient behind its ReLU,
   which is written to `masked`. Returns 1 if there is no memory. */
int hamgan_channel_sums(const void *grad, int half, const void *value, long pixels, long channels, void *masked,
                        float *sums, int threads) {
    const struct map map = cut(1, pixels, channels);
    float *parts = malloc(map.pieces * channels * sizeof(float));
    double *all = calloc(channels, sizeof(double));
    if (!parts || !all) {
        free(parts);
        free(all);
        return 1;
    }
    struct sums job = {&map, grad, value, masked, parts, half};
    in_pieces(channel_sums_part, &job, &map, threads);
    for (long index = 0; index < map.pieces; index++)
        for (long c = 0; c < channels; c++) all[c] += parts[index * channels + c];
    for (long c = 0; c < channels; c++) sums[c] = (float)all[c];
    free(parts);
    free(all);
    return 0;
}

/* ---- Windows of two by two pixels ---- */

static void windows_part(const void *data, long from, long to) {
    for (long row = from; row < to; row++) DO(windows, data, row);
}

/* Sums over every window of two by two pixels that follow each other, of a map (samples, height, width, channels) that zeros
   surround where `pad` is 1, times `by`: (samples, height - 1 + 2 * pad, width - 1 + 2 * pad, channels). Either `pad` is the
   other's adjoint.

   before  (channels,) numbers that are added to the map before its positive part is taken, where `relu`; NULL: 0
   after   (channels,) numbers that are added to the sums; NULL: 0
   value   the map whose positive part with `before` this is the gradient of, where that is asked for; otherwise NULL
   total   (channels,) is filled with the sums over all pixels: of the result where `value` is given, otherwise of the map;
           NULL: not asked for; always asked for with `value`

   Returns 1 if there is no memory. */
int hamgan_windows(const void *x, int half, long samples, long height, long width, long channels, int pad, float by,
                   const float *before, int relu, const float *after, const void *value, void *out, float *total,
                   int threads) {
    const long rows = samples * (height - 1 + 2 * pad);
    float *sums = total ? malloc(rows * channels * sizeof(float)) : NULL;
    double *all = total ? calloc(channels, sizeof(double)) : NULL;
    if (total && (!sums || !all)) {
        free(sums);
        free(all);
        return 1;
    }
    struct windows job = {.x = x, .value = value, .before = before, .after = after, .out = out, .sums = sums,
                          .height = height, .width = width, .channels = channels, .pad = pad, .by = by, .half = half,
                          .relu = relu};
    in_parts(windows_part, &job, rows, 1, samples * height * width * channels, threads);
    if (total) {
        for (long row = 0; row < rows; row++)
            for (long c = 0; c < channels; c++) all[c] += sums[row * channels + c];
        for (long c = 0; c < channels; c++) total[c] = (float)all[c];
    }
    free(sums);
    free(all);
    return 0;
}

/* ---- Kernels of transposed convolutions ---- */

struct turning {
    const void *weight;
    void *out;
    long rows, taps, cols;
};

#define TURN(type) \
    for (long row = from; row < to; row += LANES) { \
        const long last = row + LANES < to ? row + LANES : to; \
        for (long tap = 0; tap < job->taps; tap++) \
            for (long col = 0; col < job->cols; col++) { \
                const type *in = (const type *)job->weight + tap * job->cols + col; \
                type *out = (type *)job->out + (col * job->taps + job->taps - 1 - tap) * job->rows; \
                for (long r = row; r < last; r++) out[r] = in[r * job->taps * job->cols]; \
            } \
    }

static void turn_halves_part(const void *data, long from, long to) {
    const struct turning *job = data;
    TURN(uint16_t)
}

static void turn_floats_part(const void *data, long from, long to) {
    const struct turning *job = data;
    TURN(uint32_t)
}

/* Exchange rows and columns of a kernel (rows, taps, cols) and reverse its taps: (cols, taps, rows). Its own inverse. */
void hamgan_turn(const void *weight, int half, long rows, long taps, long cols, void *out, int threads) {
    struct turning job = {weight, out, rows, taps, cols};
    in_parts(half ? turn_halves_part : turn_floats_part, &job, rows, LANES, rows * taps * cols, threads);
}

/* ---- Lists of tensors ---- */

/* Tensors of `sizes` numbers, cut into pieces of at most PIECE: piece i begins at `starts[i]` of tensor `tensors[i]`. */
struct list {
    float *const *targets;
    const float *const *sources;
    const long *sizes, *tensors, *starts;
    double *squares;
    float weight;
};

static long piece_size(const struct list *list, long piece) {
    const long left = list->sizes[list->tensors[piece]] - list->starts[piece];
    return left < PIECE ? left : PIECE;
}

static void squares_part(const void *data, long from, long to) {
    const struct list *list = data;
    for (long piece = from; piece < to; piece++) {
        const float *x = list->sources[list->tensors[piece]] + list->starts[piece];
        const long size = piece_size(list, piece);
        double *sum = list->squares + piece;
        const int level = hamgan_kernels_level();
        *sum = level > 2 ? HALVES(squares)(x, size) : level > 1 ? WIDE(squares)(x, size) : NARROW(squares)(x, size);
    }
}

static void lerp_part(const void *data, long from, long to) {
    const struct list *list = data;
    for (long piece = from; piece < to; piece++) {
        const long tensor = list->tensors[piece], start = list->starts[piece];
        DO(lerp, list->targets[tensor] + start, list->sources[tensor] + start, list->weight, piece_size(list, piece));
    }
}

/* Cut a list; returns the number of pieces, whose memory is to be freed as `tensors`, or -1 without memory. */
static long cut_list(struct list *list, long count) {
    long pieces = 0, *memory;
    for (long i = 0; i < count; i++) pieces += (list->sizes[i] + PIECE - 1) / PIECE;
    if (!(memory = malloc((2 * pieces + 1) * sizeof(long)))) return -1;
    list->tensors = memory;
    list->starts = memory + pieces;
    for (long i = 0, piece = 0; i < count; i++)
        for (long start = 0; start < list->sizes[i]; start += PIECE, piece++) {
            memory[piece] = i;
            memory[pieces + piece] = start;
        }
    return pieces;
}

/* The square root of the sum of the squares of all numbers of `count` tensors, float32. Returns 1 if there is no memory. */
int hamgan_total_norm(const float *const *tensors, const long *sizes, long count, float *out, int threads) {
    struct list list = {.sources = tensors, .sizes = sizes};
    const long pieces = cut_list(&list, count);
    double sum = 0;
    if (pieces < 0 || !(list.squares = malloc((pieces + 1) * sizeof(double)))) {
        if (pieces >= 0) free((void *)list.tensors);
        return 1;
    }
    in_parts(squares_part, &list, pieces, 1, pieces * PIECE, threads);
    for (long piece = 0; piece < pieces; piece++) sum += list.squares[piece];
    *out = (float)sqrt(sum);
    free(list.squares);
    free((void *)list.tensors);
    return 0;
}

/* Move `count` tensors, float32, towards others by `weight` of their difference. Returns 1 if there is no memory. */
int hamgan_lerp(float *const *targets, const float *const *sources, const long *sizes, long count, float weight, int threads) {
    struct list list = {.targets = targets, .sources = sources, .sizes = sizes, .weight = weight};
    const long pieces = cut_list(&list, count);
    if (pieces < 0) return 1;
    in_parts(lerp_part, &list, pieces, 1, pieces * PIECE, threads);
    free((void *)list.tensors);
    return 0;
}

/* ---- Random numbers ---- */

struct uniform {
    const uint64_t *keys;
    float *out;
    long count;
};

static void uniform_part(const void *data, long from, long to) {
    const struct uniform *job = data;
    for (long i = from; i < to; i++) DO(uniform, job->keys[i], job->out + i * job->count, job->count);
}

/* `count` numbers in (0, 1) for each of some keys; see counter_random.py. */
void hamgan_uniform(const uint64_t *keys, long num_keys, long count, float *out, int threads) {
    struct uniform job = {keys, out, count};
    in_parts(uniform_part, &job, num_keys, 1, num_keys * count, threads);
}

/* ---- Matrix decomposition ---- */

/* K steps of NMF from given bases.

   x       (samples, pixels, channels), `stride` numbers from one sample to the next; bfloat16 where half
   bases   (samples, channels, rank); replaced by what the steps find
   coef    (samples, pixels, rank); filled with the codes of the last step, without steps the softmax of x^T bases

   Returns 1 if there is no memory, 2 if the processor or the rank is not of those that this is for. */
int hamgan_nmf(const void *x, int half, long samples, long pixels, long channels, long stride, long rank, float *bases,
               float *coef, int steps, float inv_t, float eps, int threads) {
    const long vectors = (rank + LANES - 1) / LANES, width = vectors * LANES, pieces = (pixels + PIXELS - 1) / PIXELS;
    if (hamgan_kernels_level() < 2 || vectors > MOST_VECTORS || channels > CONVERTED) return 2;
    const long for_parts = samples * pieces * (channels + width) * width, for_grams = samples * width * width;
    const long for_bases = rank == width ? 0 : samples * channels * width;
    const long for_coef = rank == width ? 0 : samples * pixels * width;
    float *memory = malloc((for_parts + for_grams + for_bases + for_coef) * sizeof(float));
    if (!memory) return 1;
    struct nmf job = {.x = x, .bases = bases, .coef = coef, .parts = memory, .grams = memory + for_parts,
                      .samples = samples, .pixels = pixels, .channels = channels, .rank = rank, .pieces = pieces,
                      .stride = stride, .inv_t = inv_t, .eps = eps, .half = half, .vectors = (int)vectors};
    if (rank != width) {
        job.bases = job.grams + for_grams;
        job.coef = job.bases + for_bases;
        copy_rows(bases, rank, job.bases, width, samples * channels);
    }
    const long numbers = samples * pixels * channels;
    in_parts(nmf_grams_part, &job, samples, 1, numbers, threads);
    for (int step = 0; step < (steps > 0 ? steps : 1); step++) {
        job.first = step == 0;
        job.last = steps == 0;
        in_parts(nmf_pixels_part, &job, samples * pieces, 1, numbers, threads);
        if (steps) in_parts(nmf_bases_part, &job, samples, 1, numbers, threads);
    }
    if (rank != width) {
        copy_rows(job.bases, width, bases, rank, samples * channels);
        copy_rows(job.coef, width, coef, rank, samples * pixels);
    }
    free(memory);
    return 0;
}

/* out = bases (scale * (x^T bases))^T, with the scale coef / (coef bases^T bases + eps) where coef is given.

   bases   (samples, channels, width), width the rank rounded up to whole vectors, filled up with zeros
   coef    (samples, pixels, width), likewise; NULL: scale is given
   scale   (samples, pixels, width)
   out     like x, without a gap between samples */
int hamgan_nmf_project(const void *x, int half, long samples, long pixels, long channels, long stride, long width,
                       const float *bases, const float *coef, float *scale, float eps, void *out, int threads) {
    const long pieces = (pixels + PIXELS - 1) / PIXELS, num_panels = (channels + PANEL * LANES - 1) / (PANEL * LANES);
    if (hamgan_kernels_level() < 2 || width % LANES || width > MOST_VECTORS * LANES || channels > CONVERTED) return 2;
    const long for_panels = num_panels * width * PANEL * LANES;
    float *memory = malloc(samples * (for_panels + width * width) * sizeof(float));
    if (!memory) return 1;
    float *grams = memory + samples * for_panels;
    struct nmf of_bases = {.bases = (float *)bases, .grams = grams, .channels = channels, .vectors = (int)(width / LANES)};
    if (coef) nmf_grams_part(&of_bases, 0, samples);
    for (long sample = 0; sample < samples; sample++)
        pack_panels(bases + sample * channels * width, channels, width, memory + sample * for_panels);
    struct projection job = {.x = x, .bases = bases, .panels = memory, .coef = coef, .grams = grams, .scale = scale,
                             .out = out, .samples = samples, .pixels = pixels, .channels = channels, .pieces = pieces,
                             .stride = stride, .num_panels = num_panels, .eps = eps, .half = half,
                             .vectors = (int)(width / LANES)};
    in_parts(project_part, &job, samples * pieces, 1, samples * pixels * channels, threads);
    free(memory);
    return 0;
}

/* ---- Convolutions ---- */

#ifdef HAS_BF16
FOR(AVX512_BF16, ",prefer-vector-width=512")
#include "_convolution.h"
END_FOR
#else
int hamgan_convolve(void) { return 2; }
int hamgan_kernel_gradient(void) { return 2; }
#endif

#else
int hamgan_kernels_level(void) { return 0; }
#endif
