/* Non-negative matrix factorisation by multiplicative updates, in AVX-512: _kernels.c includes it.

   Columns of x are pixels, which lie one after the other: x is (samples, pixels, channels), bases (samples, channels, width),
   coef (samples, pixels, width), width the number of bases rounded up to whole vectors; what is added stays zero. A step reads
   x once: for a few pixels at a time it takes x^T bases, updates their codes, and adds their part of x coef and coef^T coef
   while all are in the cache. Parts of a sample are added up in their order, whoever computed them. */

#define PIXELS 256      /* of a part */
#define CONVERTED 16384 /* numbers of x that are at hand in float32 */
#define MOST_VECTORS 4  /* of a row of codes */

#define V floats_wide


INLINE V load(const float *p) {
    V x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store(float *p, V x) { memcpy(p, &x, sizeof x); }

/* Rows of a product, out[i] = sum over k of a[i * down + k * along] * b[k], added to what is there where so asked; the
   number of rows and the vectors of each are constant. */
INLINE void tile(const float *a, long down, long along, long depth, const float *b, float *out, const int add,
                 const int rows, const int vectors) {
    V sum[24];
    const V zero = {0};
#pragma GCC unroll 24
    for (int i = 0; i < rows * vectors; i++) sum[i] = add ? load(out + i * LANES) : zero;
    for (long k = 0; k < depth; k++) {
        V right[MOST_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) right[v] = load(b + (k * vectors + v) * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const float left = a[i * down + k * along];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[i * vectors + v] += left * right[v];
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < rows * vectors; i++) store(out + i * LANES, sum[i]);
}

/* So many rows a tile that the sums fill the registers. */
#define TILE_OF(vectors) ((vectors) == 1 ? 16 : (vectors) == 2 ? 8 : (vectors) == 3 ? 6 : 4)

INLINE void tiles(const float *a, long down, long along, long rows, long depth, const float *b, float *out,
                  const int add, const int vectors) {
    const int most = TILE_OF(vectors);
    long i = 0;
    for (; i + most <= rows; i += most)
        tile(a + i * down, down, along, depth, b, out + i * vectors * LANES, add, most, vectors);
    for (; i < rows; i++) tile(a + i * down, down, along, depth, b, out + i * vectors * LANES, add, 1, vectors);
}

/* out = a b, where a has rows of `stride` numbers. */
INLINE void rows_of(const float *a, long stride, long rows, long depth, const float *b, float *out, const int vectors) {
    tiles(a, stride, 1, rows, depth, b, out, 0, vectors);
}

/* out += a^T b, likewise. */
INLINE void columns_of(const float *a, long stride, long columns, long depth, const float *b, float *out,
                       const int vectors) {
    tiles(a, 1, stride, columns, depth, b, out, 1, vectors);
}

/* The numbers of x from `at` on in float32: where they lie, or converted. */
INLINE const float *in_float(const void *x, int half, long at, long count, float *converted) {
    if (!half) return (const float *)x + at;
    long i = 0;
    for (; i + LANES <= count; i += LANES) store(converted + i, load_wide(x, at + i, 1));
    for (; i < count; i++) converted[i] = load_one_wide(x, at + i, 1);
    return converted;
}

/* e^x of x <= 0, to 2 units in the last place; 0 where that is below the smallest normal number. */
INLINE V exponential(V x) {
    const V low = (V){0} - 87.3f;
    const words_wide tiny = (words_wide)(x < low);
    x = (V)(((words_wide)x & ~tiny) | ((words_wide)low & tiny));
    const V shifted = x * 1.44269504088896341f + 12582912.f; /* 1.5 * 2^23: the integer is in the last bits */
    const V n = shifted - 12582912.f;
    const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    V p = (V){0} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    const V power = (V)(((words_wide)shifted << 23) + 0x3f800000u);
    return (V)((words_wide)(p * power) & ~tiny);
}

/* Codes from products: their softmax over the first `rank`, at inverse temperature inv_t. */
INLINE void softmax(const float *products, float *coef, long rank, float inv_t, const int vectors) {
    float highest = -INFINITY;
    for (long r = 0; r < rank; r++) {
        const float value = products[r] * inv_t;
        highest = value > highest ? value : highest;
    }
    for (int v = 0; v < vectors; v++) store(coef + v * LANES, exponential(load(products + v * LANES) * inv_t - highest));
    for (long r = rank; r < vectors * LANES; r++) coef[r] = 0;
    V sum = {0};
    for (int v = 0; v < vectors; v++) sum += load(coef + v * LANES);
    const float total = total_wide(sum);
    for (int v = 0; v < vectors; v++) store(coef + v * LANES, load(coef + v * LANES) / total);
}

struct nmf {
    const void *x;
    float *bases, *coef, *parts, *grams;
    long samples, pixels, channels, rank, pieces, stride; /* from a sample of x to the next */
    float inv_t, eps;
    int half, vectors, first, last; /* whether codes begin in this step; whether they are only begun */
};

/* One step's codes of a part, and its share of x coef and coef^T coef. */
INLINE void nmf_pixels(const struct nmf *job, long sample, long piece, float *converted, float *products, float *scale,
                       const int vectors) {
    const long width = vectors * LANES, channels = job->channels;
    const long begin = piece * PIXELS, end = begin + PIXELS < job->pixels ? begin + PIXELS : job->pixels;
    const float *bases = job->bases + sample * channels * width, *gram = job->grams + sample * width * width;
    float *share = job->parts + (sample * job->pieces + piece) * (channels + width) * width;
    memset(share, 0, (channels + width) * width * sizeof(float));
    const long at_once = CONVERTED / channels > 0 ? CONVERTED / channels : 1;
    for (long from = begin; from < end; from += at_once) {
        const long count = from + at_once < end ? at_once : end - from, at = sample * job->stride + from * channels;
        const float *x = in_float(job->x, job->half, at, count * channels, converted);
        float *coef = job->coef + (sample * job->pixels + from) * width;
        rows_of(x, channels, count, channels, bases, products, vectors);
        if (job->first)
            for (long n = 0; n < count; n++)
                softmax(products + n * width, coef + n * width, job->rank, job->inv_t, vectors);
        if (job->last) continue;
        rows_of(coef, width, count, width, gram, scale, vectors);
        for (long i = 0; i < count * width; i += LANES)
            store(coef + i, load(coef + i) / (load(scale + i) + job->eps) * load(products + i));
        columns_of(x, channels, channels, count, coef, share, vectors);
        columns_of(coef, width, width, count, coef, share + channels * width, vectors);
    }
}

/* bases^T bases, which the codes' update divides by. */
INLINE void nmf_gram(const struct nmf *job, long sample, const int vectors) {
    const long width = vectors * LANES;
    const float *bases = job->bases + sample * job->channels * width;
    float *gram = job->grams + sample * width * width;
    memset(gram, 0, width * width * sizeof(float));
    columns_of(bases, width, width, job->channels, bases, gram, vectors);
}

/* One step's bases of a sample, from what its parts have left. */
INLINE void nmf_bases(const struct nmf *job, long sample, float *scale, const int vectors) {
    const long width = vectors * LANES, channels = job->channels, length = (channels + width) * width;
    float *sum = job->parts + sample * job->pieces * length, *bases = job->bases + sample * channels * width;
    for (long piece = 1; piece < job->pieces; piece++)
        for (long i = 0; i < length; i += LANES) store(sum + i, load(sum + i) + load(sum + piece * length + i));
    for (long from = 0; from < channels; from += PIXELS) {
        const long count = from + PIXELS < channels ? PIXELS : channels - from;
        rows_of(bases + from * width, width, count, width, sum + channels * width, scale, vectors);
        for (long i = 0; i < count * width; i += LANES) {
            float *at = bases + from * width + i;
            store(at, load(sum + from * width + i) * load(at) / (load(scale + i) + job->eps));
        }
    }
    nmf_gram(job, sample, vectors);
}

#define BY_VECTORS(vectors, call) \
    switch (vectors) { \
        case 1: { enum { COUNT = 1 }; call; break; } \
        case 2: { enum { COUNT = 2 }; call; break; } \
        case 3: { enum { COUNT = 3 }; call; break; } \
        default: { enum { COUNT = 4 }; call; } \
    }

static void nmf_pixels_part(const void *data, long from, long to) {
    const struct nmf *job = data;
    float converted[CONVERTED], products[PIXELS * MOST_VECTORS * LANES];
    float scale[PIXELS * MOST_VECTORS * LANES];
    for (long i = from; i < to; i++)
        BY_VECTORS(job->vectors,
                   nmf_pixels(job, i / job->pieces, i % job->pieces, converted, products, scale, COUNT))
}

static void nmf_bases_part(const void *data, long from, long to) {
    const struct nmf *job = data;
    float scale[PIXELS * MOST_VECTORS * LANES];
    for (long sample = from; sample < to; sample++) BY_VECTORS(job->vectors, nmf_bases(job, sample, scale, COUNT))
}

static void nmf_grams_part(const void *data, long from, long to) {
    const struct nmf *job = data;
    for (long sample = from; sample < to; sample++) BY_VECTORS(job->vectors, nmf_gram(job, sample, COUNT))
}

/* ---- The last update of the codes and the product, of which the one-step gradient is made ---- */

#define PANEL 2 /* vectors of channels that are put out at a time */

struct projection {
    const void *x;
    const float *bases, *panels, *coef, *grams;
    float *scale;
    void *out;
    long samples, pixels, channels, pieces, stride, num_panels;
    float eps;
    int half, vectors;
};

/* Bases (channels, width) with channels as columns, a panel after the other, filled up with zeros. */
static void pack_panels(const float *bases, long channels, long width, float *panels) {
    for (long from = 0; from < channels; from += PANEL * LANES, panels += width * PANEL * LANES)
        for (long r = 0; r < width; r++)
            for (long c = 0; c < PANEL * LANES; c++)
                panels[r * PANEL * LANES + c] = from + c < channels ? bases[(from + c) * width + r] : 0;
}

INLINE void project_pixels(const struct projection *job, long sample, long piece, float *converted, float *products,
                           float *rows, const int vectors) {
    const long width = vectors * LANES, channels = job->channels;
    const long begin = piece * PIXELS, end = begin + PIXELS < job->pixels ? begin + PIXELS : job->pixels;
    const float *bases = job->bases + sample * channels * width;
    const long at_once = CONVERTED / channels > 0 ? CONVERTED / channels : 1;
    for (long from = begin; from < end; from += at_once) {
        const long count = from + at_once < end ? at_once : end - from, at = sample * job->stride + from * channels;
        const float *x = in_float(job->x, job->half, at, count * channels, converted);
        float *scale = job->scale + (sample * job->pixels + from) * width;
        if (job->coef) {
            const float *coef = job->coef + (sample * job->pixels + from) * width;
            rows_of(coef, width, count, width, job->grams + sample * width * width, rows, vectors);
            for (long i = 0; i < count * width; i += LANES)
                store(scale + i, load(coef + i) / (load(rows + i) + job->eps));
        }
        rows_of(x, channels, count, channels, bases, products, vectors);
        for (long i = 0; i < count * width; i += LANES) store(products + i, load(products + i) * load(scale + i));
        const long out = (sample * job->pixels + from) * channels;
        for (long panel = 0; panel < job->num_panels; panel++) {
            const long first = panel * PANEL * LANES;
            rows_of(products, width, count, width, job->panels + (sample * job->num_panels + panel) * width * PANEL * LANES,
                    rows, PANEL);
            for (long n = 0; n < count; n++) {
                const float *row = rows + n * PANEL * LANES;
                const long to = channels - first < PANEL * LANES ? channels - first : PANEL * LANES;
                long c = 0;
                for (; c + LANES <= to; c += LANES) {
                    if (job->half) store_wide(job->out, out + n * channels + first + c, load(row + c), 1);
                    else store_wide(job->out, out + n * channels + first + c, load(row + c), 0);
                }
                for (; c < to; c++) store_one_wide(job->out, out + n * channels + first + c, row[c], job->half);
            }
        }
    }
}

static void project_part(const void *data, long from, long to) {
    const struct projection *job = data;
    float converted[CONVERTED], products[PIXELS * MOST_VECTORS * LANES], rows[PIXELS * MOST_VECTORS * LANES];
    for (long i = from; i < to; i++)
        BY_VECTORS(job->vectors,
                   project_pixels(job, i / job->pieces, i % job->pieces, converted, products, rows, COUNT))
}

/* Copy rows of one width to rows of another, filling up with zeros. */
static void copy_rows(const float *from, long width_from, float *to, long width_to, long rows) {
    const long width = width_from < width_to ? width_from : width_to;
    for (long row = 0; row < rows; row++) {
        memcpy(to + row * width_to, from + row * width_from, width * sizeof(float));
        if (width_to > width) memset(to + row * width_to + width, 0, (width_to - width) * sizeof(float));
    }
}

#undef V
