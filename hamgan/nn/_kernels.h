/* The kernels of _kernels.c for one set of instructions: NAME(x) gives a function its name there.

   Numbers are float32, or bfloat16 where a `half` flag says so; sums over many numbers are carried on in double. Work is cut
   the same way whatever the number of threads, so that results do not depend on it. */

typedef float NAME(floats) __attribute__((vector_size(64)));
typedef uint32_t NAME(words) __attribute__((vector_size(64)));
typedef uint16_t NAME(halves) __attribute__((vector_size(32)));
#define V NAME(floats)
#define W NAME(words)
#define H NAME(halves)

INLINE V NAME(load)(const void *p, long i, const int half) {
    if (half) {
        H h;
        memcpy(&h, (const uint16_t *)p + i, sizeof h);
        return (V)(__builtin_convertvector(h, W) << 16);
    }
    V x;
    memcpy(&x, (const float *)p + i, sizeof x);
    return x;
}

/* Halves to even, as everywhere; what is not a number stays one. */
INLINE void NAME(store)(void *p, long i, V x, const int half) {
    if (half) {
#ifdef ROUND
        const __m256bh h = ROUND((__m512)x);
#else
        W bits = (W)x, odd = (bits >> 16) & 1, nan = (W)(x != x);
        H h = __builtin_convertvector((((bits + 0x7fff + odd) >> 16) & ~nan) | (0x7fc0 & nan), H);
#endif
        memcpy((uint16_t *)p + i, &h, sizeof h);
    } else {
        memcpy((float *)p + i, &x, sizeof x);
    }
}

INLINE float NAME(load_one)(const void *p, long i, const int half) {
    if (!half) return ((const float *)p)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE void NAME(store_one)(void *p, long i, float x, const int half) {
    if (!half) {
        ((float *)p)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof x);
    ((uint16_t *)p)[i] = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

INLINE float NAME(total)(V x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

INLINE V NAME(positive)(V x) { return (V)((W)x & ~(W)(x < 0)); } /* what is not a number stays one */

/* ---- Spectral norm ---- */

/* Columns `from` to `to` of rows^T u. */
static void NAME(columns_product)(const struct matrix *m, const float *u, float *out, long from, long to) {
    for (long begin = from; begin < to; begin += STRIP) {
        const long end = begin + STRIP < to ? begin + STRIP : to;
        memset(out + begin, 0, (end - begin) * sizeof(float));
        long row = 0;
        for (; row + 4 <= m->rows; row += 4) {
            const float *a = m->values + row * m->cols, *b = a + m->cols, *c = b + m->cols, *d = c + m->cols;
            const float ua = u[row], ub = u[row + 1], uc = u[row + 2], ud = u[row + 3];
            long j = begin;
            for (; j + LANES <= end; j += LANES) {
                V sum = NAME(load)(out, j, 0) + ua * NAME(load)(a, j, 0) + ub * NAME(load)(b, j, 0);
                sum += uc * NAME(load)(c, j, 0) + ud * NAME(load)(d, j, 0);
                NAME(store)(out, j, sum, 0);
            }
            for (; j < end; j++) out[j] += ua * a[j] + ub * b[j] + uc * c[j] + ud * d[j];
        }
        for (; row < m->rows; row++) {
            const float *a = m->values + row * m->cols, ua = u[row];
            for (long j = begin; j < end; j++) out[j] += ua * a[j];
        }
    }
}

/* Rows `from` to `to` of rows v. */
static void NAME(rows_product)(const struct matrix *m, const float *v, float *out, long from, long to) {
    for (long row = from; row < to; row++) {
        const float *a = m->values + row * m->cols;
        V s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        long j = 0;
        for (; j + 4 * LANES <= m->cols; j += 4 * LANES) {
            s0 += NAME(load)(a, j, 0) * NAME(load)(v, j, 0);
            s1 += NAME(load)(a, j + LANES, 0) * NAME(load)(v, j + LANES, 0);
            s2 += NAME(load)(a, j + 2 * LANES, 0) * NAME(load)(v, j + 2 * LANES, 0);
            s3 += NAME(load)(a, j + 3 * LANES, 0) * NAME(load)(v, j + 3 * LANES, 0);
        }
        for (; j + LANES <= m->cols; j += LANES) s0 += NAME(load)(a, j, 0) * NAME(load)(v, j, 0);
        float sum = NAME(total)((s0 + s1) + (s2 + s3));
        for (; j < m->cols; j++) sum += a[j] * v[j];
        out[row] = sum;
    }
}

INLINE void NAME(scale_as)(const float *x, float by, void *out, long from, long to, const int half) {
    long j = from;
    for (; j + LANES <= to; j += LANES) NAME(store)(out, j, NAME(load)(x, j, 0) * by, half);
    for (; j < to; j++) NAME(store_one)(out, j, x[j] * by, half);
}

static void NAME(scale)(const float *x, float by, void *out, int half, long from, long to) {
    if (half) NAME(scale_as)(x, by, out, from, to, 1);
    else NAME(scale_as)(x, by, out, from, to, 0);
}

INLINE float NAME(inner_as)(const void *a, const float *b, long from, long to, const int half) {
    V s0 = {0}, s1 = {0};
    long j = from;
    for (; j + 2 * LANES <= to; j += 2 * LANES) {
        s0 += NAME(load)(a, j, half) * NAME(load)(b, j, 0);
        s1 += NAME(load)(a, j + LANES, half) * NAME(load)(b, j + LANES, 0);
    }
    float sum = NAME(total)(s0 + s1);
    for (; j < to; j++) sum += NAME(load_one)(a, j, half) * b[j];
    return sum;
}

static void NAME(inner)(const void *a, int half, const float *b, long from, long to, double *out) {
    *out = half ? NAME(inner_as)(a, b, from, to, 1) : NAME(inner_as)(a, b, from, to, 0);
}

/* out = grad * by + u v' over some rows. */
INLINE void NAME(rank_one_as)(const void *grad, float by, const float *u, const float *v, float share, long cols, float *out,
                              long from, long to, const int half) {
    for (long row = from; row < to; row++) {
        const float at = u[row] * share;
        const long begin = row * cols;
        long j = 0;
        for (; j + LANES <= cols; j += LANES)
            NAME(store)(out, begin + j, NAME(load)(grad, begin + j, half) * by + at * NAME(load)(v, j, 0), 0);
        for (; j < cols; j++) out[begin + j] = NAME(load_one)(grad, begin + j, half) * by + at * v[j];
    }
}

static void NAME(rank_one)(const void *grad, int half, float by, const float *u, const float *v, float share, long cols,
                           float *out, long from, long to) {
    if (half) NAME(rank_one_as)(grad, by, u, v, share, cols, out, from, to, 1);
    else NAME(rank_one_as)(grad, by, u, v, share, cols, out, from, to, 0);
}

/* ---- Batch norm; maps are (samples, pixels, channels) ---- */

/* Mean and sum of squared deviations of each channel over `pixels` pixels, which the cache holds: read twice. */
INLINE void NAME(moments_as)(const void *x, long first, long pixels, long channels, float *mean, float *square,
                             const int half) {
    for (long c = 0; c < channels; c += LANES) {
        const long at = first * channels + c;
        V s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        long p = 0;
        for (; p + 4 <= pixels; p += 4) {
            s0 += NAME(load)(x, at + p * channels, half);
            s1 += NAME(load)(x, at + (p + 1) * channels, half);
            s2 += NAME(load)(x, at + (p + 2) * channels, half);
            s3 += NAME(load)(x, at + (p + 3) * channels, half);
        }
        for (; p < pixels; p++) s0 += NAME(load)(x, at + p * channels, half);
        const V centre = ((s0 + s1) + (s2 + s3)) / (float)pixels;
        s0 = s1 = s2 = s3 = (V){0};
        for (p = 0; p + 4 <= pixels; p += 4) {
            const V a = NAME(load)(x, at + p * channels, half) - centre;
            const V b = NAME(load)(x, at + (p + 1) * channels, half) - centre;
            const V d = NAME(load)(x, at + (p + 2) * channels, half) - centre;
            const V e = NAME(load)(x, at + (p + 3) * channels, half) - centre;
            s0 += a * a;
            s1 += b * b;
            s2 += d * d;
            s3 += e * e;
        }
        for (; p < pixels; p++) {
            const V a = NAME(load)(x, at + p * channels, half) - centre;
            s0 += a * a;
        }
        NAME(store)(mean, c, centre, 0);
        NAME(store)(square, c, (s0 + s1) + (s2 + s3), 0);
    }
}

static void NAME(moments)(const void *x, int half, long first, long pixels, long channels, float *mean, float *square) {
    if (half) NAME(moments_as)(x, first, pixels, channels, mean, square, 1);
    else NAME(moments_as)(x, first, pixels, channels, mean, square, 0);
}

/* y = x * scale + shift, and its positive part where so asked. */
INLINE void NAME(affine_as)(const void *x, const float *scale, const float *shift, void *y, long first, long pixels,
                            long channels, const int half, const int relu) {
    for (long c = 0; c < channels; c += LANES) {
        const V a = NAME(load)(scale, c, 0), b = NAME(load)(shift, c, 0);
        for (long p = first; p < first + pixels; p++) {
            V out = NAME(load)(x, p * channels + c, half) * a + b;
            if (relu) out = NAME(positive)(out);
            NAME(store)(y, p * channels + c, out, half);
        }
    }
}

static void NAME(affine)(const void *x, int half, const float *scale, const float *shift, int relu, void *y, long first,
                         long pixels, long channels) {
    if (half && relu) NAME(affine_as)(x, scale, shift, y, first, pixels, channels, 1, 1);
    else if (half) NAME(affine_as)(x, scale, shift, y, first, pixels, channels, 1, 0);
    else if (relu) NAME(affine_as)(x, scale, shift, y, first, pixels, channels, 0, 1);
    else NAME(affine_as)(x, scale, shift, y, first, pixels, channels, 0, 0);
}

/* The gradient behind the positive part: that of pixels whose value was positive, or not a number. */
INLINE V NAME(behind)(V grad, V x, V scale, V shift, const int relu) {
    return relu ? (V)((W)grad & ~(W)(x * scale + shift <= 0)) : grad;
}

/* Sums over pixels of the gradient g and of g * (x - mean). */
INLINE void NAME(gradient_sums_as)(const void *grad, const void *x, const float *scale, const float *shift,
                                   const float *mean, long first, long pixels, long channels, float *sum,
                                   float *product, const int half, const int relu) {
    for (long c = 0; c < channels; c += LANES) {
        const V a = NAME(load)(scale, c, 0), b = NAME(load)(shift, c, 0), centre = NAME(load)(mean, c, 0);
        V s0 = {0}, s1 = {0}, q0 = {0}, q1 = {0};
        long p = first;
        const long end = first + pixels;
        for (; p + 2 <= end; p += 2) {
            const V x0 = NAME(load)(x, p * channels + c, half), x1 = NAME(load)(x, (p + 1) * channels + c, half);
            const V g0 = NAME(behind)(NAME(load)(grad, p * channels + c, half), x0, a, b, relu);
            const V g1 = NAME(behind)(NAME(load)(grad, (p + 1) * channels + c, half), x1, a, b, relu);
            s0 += g0;
            s1 += g1;
            q0 += g0 * (x0 - centre);
            q1 += g1 * (x1 - centre);
        }
        for (; p < end; p++) {
            const V x0 = NAME(load)(x, p * channels + c, half);
            const V g0 = NAME(behind)(NAME(load)(grad, p * channels + c, half), x0, a, b, relu);
            s0 += g0;
            q0 += g0 * (x0 - centre);
        }
        NAME(store)(sum, c, s0 + s1, 0);
        NAME(store)(product, c, q0 + q1, 0);
    }
}

static void NAME(gradient_sums)(const void *grad, const void *x, int half, const float *scale, const float *shift,
                                int relu, const float *mean, long first, long pixels, long channels, float *sum,
                                float *product) {
#define CALL(h, r) \
    NAME(gradient_sums_as)(grad, x, scale, shift, mean, first, pixels, channels, sum, product, h, r)
    if (half && relu) CALL(1, 1);
    else if (half) CALL(1, 0);
    else if (relu) CALL(0, 1);
    else CALL(0, 0);
#undef CALL
}

/* dx = g * scale + (x - mean) * slope + offset. */
INLINE void NAME(gradient_as)(const void *grad, const void *x, const float *scale, const float *shift, const float *mean,
                              const float *slope, const float *offset, void *dx, long first, long pixels,
                              long channels, const int half, const int relu) {
    for (long c = 0; c < channels; c += LANES) {
        const V a = NAME(load)(scale, c, 0), b = NAME(load)(shift, c, 0), centre = NAME(load)(mean, c, 0);
        const V k = NAME(load)(slope, c, 0), o = NAME(load)(offset, c, 0);
        for (long p = first; p < first + pixels; p++) {
            const long i = p * channels + c;
            const V value = NAME(load)(x, i, half);
            const V g = NAME(behind)(NAME(load)(grad, i, half), value, a, b, relu);
            NAME(store)(dx, i, g * a + ((value - centre) * k + o), half);
        }
    }
}

static void NAME(gradient)(const void *grad, const void *x, int half, const float *scale, const float *shift, int relu,
                           const float *mean, const float *slope, const float *offset, void *dx, long first,
                           long pixels, long channels) {
#define CALL(h, r) \
    NAME(gradient_as)(grad, x, scale, shift, mean, slope, offset, dx, first, pixels, channels, h, r)
    if (half && relu) CALL(1, 1);
    else if (half) CALL(1, 0);
    else if (relu) CALL(0, 1);
    else CALL(0, 0);
#undef CALL
}

/* ---- ReLU, pooling and sums of channels ---- */

/* Rows `2 * row` and `2 * row + 1` of a map of `width` pixels: their sums over two by two pixels, times `by`, and, where there
   is room for it, their positive part. */
INLINE void NAME(pool_as)(const void *x, long row, long width, long channels, float by, void *pooled, void *positive,
                          const int half) {
    const long upper = 2 * row * width * channels, lower = upper + width * channels, out = row * (width / 2) * channels;
    for (long j = 0; j < width / 2; j++) {
        long c = 0;
        for (; c + LANES <= channels; c += LANES) {
            const long left = 2 * j * channels + c, right = left + channels;
            const V a = NAME(load)(x, upper + left, half), b = NAME(load)(x, upper + right, half);
            const V d = NAME(load)(x, lower + left, half), e = NAME(load)(x, lower + right, half);
            NAME(store)(pooled, out + j * channels + c, ((a + b) + (d + e)) * by, half);
            if (!positive) continue;
            NAME(store)(positive, upper + left, NAME(positive)(a), half);
            NAME(store)(positive, upper + right, NAME(positive)(b), half);
            NAME(store)(positive, lower + left, NAME(positive)(d), half);
            NAME(store)(positive, lower + right, NAME(positive)(e), half);
        }
        for (; c < channels; c++) {
            const long left = 2 * j * channels + c, right = left + channels;
            const float a = NAME(load_one)(x, upper + left, half), b = NAME(load_one)(x, upper + right, half);
            const float d = NAME(load_one)(x, lower + left, half), e = NAME(load_one)(x, lower + right, half);
            NAME(store_one)(pooled, out + j * channels + c, ((a + b) + (d + e)) * by, half);
            if (!positive) continue;
            NAME(store_one)(positive, upper + left, a < 0 ? 0 : a, half);
            NAME(store_one)(positive, upper + right, b < 0 ? 0 : b, half);
            NAME(store_one)(positive, lower + left, d < 0 ? 0 : d, half);
            NAME(store_one)(positive, lower + right, e < 0 ? 0 : e, half);
        }
    }
}

static void NAME(pool)(const void *x, int half, long row, long width, long channels, float by, void *pooled, void *positive) {
    if (half) NAME(pool_as)(x, row, width, channels, by, pooled, positive, 1);
    else NAME(pool_as)(x, row, width, channels, by, pooled, positive, 0);
}

/* Row `row` of `height`: by times the number that its two by two pixels share, plus another map's, where that is given, and
   where x is given only if x was positive. `out` may be the other map. */
INLINE void NAME(unpool_as)(const void *pooled, const void *other, const void *x, long row, long width, long channels,
                            float by, void *out, const int half) {
    const long from = row / 2 * (width / 2) * channels, to = row * width * channels;
    const V zero = {0};
    for (long j = 0; j < width; j++) {
        const long low = from + j / 2 * channels, high = to + j * channels;
        long c = 0;
        for (; c + LANES <= channels; c += LANES) {
            V more = other ? NAME(load)(other, high + c, half) : zero;
            if (x) more = (V)((W)more & ~(W)(NAME(load)(x, high + c, half) <= 0));
            NAME(store)(out, high + c, more + NAME(load)(pooled, low + c, half) * by, half);
        }
        for (; c < channels; c++) {
            float more = other ? NAME(load_one)(other, high + c, half) : 0;
            if (x && NAME(load_one)(x, high + c, half) <= 0) more = 0;
            NAME(store_one)(out, high + c, more + NAME(load_one)(pooled, low + c, half) * by, half);
        }
    }
}

static void NAME(unpool)(const void *pooled, int half, const void *other, const void *x, long row, long width,
                         long channels, float by, void *out) {
#define CALL(h) \
    do { \
        if (x) NAME(unpool_as)(pooled, other, x, row, width, channels, by, out, h); \
        else if (other) NAME(unpool_as)(pooled, other, 0, row, width, channels, by, out, h); \
        else NAME(unpool_as)(pooled, 0, 0, row, width, channels, by, out, h); \
    } while (0)
    if (half) CALL(1);
    else CALL(0);
#undef CALL
}

/* Sums over pixels; with `value`, of the gradient where that is positive, which is put out as `masked`. */
INLINE void NAME(channel_sums_as)(const void *grad, const void *value, void *masked, long first, long pixels,
                                  long channels, float *sum, const int half, const int mask) {
    for (long c = 0; c < channels; c += LANES) {
        V s0 = {0}, s1 = {0};
        long p = first;
        for (; p + 2 <= first + pixels; p += 2) {
            const long i = p * channels + c;
            V a = NAME(load)(grad, i, half), b = NAME(load)(grad, i + channels, half);
            if (mask) {
                a = (V)((W)a & ~(W)(NAME(load)(value, i, half) <= 0));
                b = (V)((W)b & ~(W)(NAME(load)(value, i + channels, half) <= 0));
                NAME(store)(masked, i, a, half);
                NAME(store)(masked, i + channels, b, half);
            }
            s0 += a;
            s1 += b;
        }
        for (; p < first + pixels; p++) {
            const long i = p * channels + c;
            V a = NAME(load)(grad, i, half);
            if (mask) {
                a = (V)((W)a & ~(W)(NAME(load)(value, i, half) <= 0));
                NAME(store)(masked, i, a, half);
            }
            s0 += a;
        }
        NAME(store)(sum, c, s0 + s1, 0);
    }
}

static void NAME(channel_sums)(const void *grad, int half, const void *value, void *masked, long first, long pixels,
                               long channels, float *sum) {
    if (half && value) NAME(channel_sums_as)(grad, value, masked, first, pixels, channels, sum, 1, 1);
    else if (half) NAME(channel_sums_as)(grad, value, masked, first, pixels, channels, sum, 1, 0);
    else if (value) NAME(channel_sums_as)(grad, value, masked, first, pixels, channels, sum, 0, 1);
    else NAME(channel_sums_as)(grad, value, masked, first, pixels, channels, sum, 0, 0);
}

/* ---- Windows of two by two pixels ---- */

/* Row `row` of `windows->out`, whose pixel (i, j) is `by` times the sum of the map over rows i - pad and i - pad + 1 and
   columns j - pad and j - pad + 1, without what lies outside. With `relu` the map's positive part after `before` was added to it; with
   `mask` the sums there where `value` plus `before` is positive or not a number; with `sums` the sums over a row of the map (1)
   or of the result (2) beside them. */
INLINE void NAME(windows_as)(const struct windows *windows, long row, const int half, const int relu, const int mask,
                             const int sums) {
    const long channels = windows->channels, width = windows->width, pad = windows->pad;
    const long rows = windows->height - 1 + 2 * pad, cols = width - 1 + 2 * pad, i = row % rows;
    const long at = (row / rows * windows->height + i - pad) * width * channels, below = at + width * channels;
    const int upper = i >= pad, lower = i - pad + 1 < windows->height;
    for (long c = 0; c < channels; c += LANES) {
        const V zero = {0}, before = windows->before ? NAME(load)(windows->before, c, 0) : zero;
        const V after = windows->after ? NAME(load)(windows->after, c, 0) : zero;
        V left = zero, total = zero;
        for (long j = 0; j < width + pad; j++) {
            V right = zero;
            if (j < width) {
                if (upper) {
                    const V x = NAME(load)(windows->x, at + j * channels + c, half);
                    if (sums == 1 && i == 0) total += x; /* of a map without padding: no row is above it */
                    right = relu ? NAME(positive)(x + before) : x;
                }
                if (lower) {
                    V x = NAME(load)(windows->x, below + j * channels + c, half);
                    if (sums == 1) total += x;
                    if (relu) x = NAME(positive)(x + before);
                    right += x;
                }
            }
            if (j || pad) {
                const long to = (row * cols + j - 1 + pad) * channels + c;
                V out = (left + right) * windows->by + after;
                if (mask) out = (V)((W)out & ~(W)(NAME(load)(windows->value, to, half) + before <= 0));
                if (sums == 2) total += out;
                NAME(store)(windows->out, to, out, half);
            }
            left = right;
        }
        if (sums) NAME(store)(windows->sums + row * channels, c, total, 0);
    }
}

static void NAME(windows)(const struct windows *windows, long row) {
#define CALL(h) \
    do { \
        if (windows->value) NAME(windows_as)(windows, row, h, 0, 1, 2); \
        else if (windows->sums) NAME(windows_as)(windows, row, h, 0, 0, 1); \
        else if (windows->relu) NAME(windows_as)(windows, row, h, 1, 0, 0); \
        else NAME(windows_as)(windows, row, h, 0, 0, 0); \
    } while (0)
    if (windows->half) CALL(1);
    else CALL(0);
#undef CALL
}

/* ---- Lists of tensors ---- */

static double NAME(squares)(const float *x, long count) {
    V s0 = {0}, s1 = {0};
    long i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        const V a = NAME(load)(x, i, 0), b = NAME(load)(x, i + LANES, 0);
        s0 += a * a;
        s1 += b * b;
    }
    double sum = NAME(total)(s0 + s1);
    for (; i < count; i++) sum += (double)x[i] * x[i];
    return sum;
}

static void NAME(lerp)(float *target, const float *source, float weight, long count) {
    if (weight == 1) {
        memcpy(target, source, count * sizeof(float));
        return;
    }
    long i = 0;
    for (; i + LANES <= count; i += LANES) {
        const V a = NAME(load)(target, i, 0), b = NAME(load)(source, i, 0);
        NAME(store)(target, i, weight < 0.5f ? a + weight * (b - a) : b - (b - a) * (1 - weight), 0);
    }
    for (; i < count; i++) {
        const float a = target[i], b = source[i];
        target[i] = weight < 0.5f ? a + weight * (b - a) : b - (b - a) * (1 - weight);
    }
}

/* ---- Random numbers ---- */

INLINE W NAME(mix)(W x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

static void NAME(uniform)(uint64_t key, float *out, long count) {
    W counter;
    for (uint32_t i = 0; i < LANES; i++) counter[i] = i;
    for (long i = 0; i < count; i += LANES, counter += LANES) {
        const W bits = NAME(mix)(NAME(mix)(counter * 0x9e3779b9u ^ (uint32_t)key) ^ (uint32_t)(key >> 32));
        const V x = (__builtin_convertvector(bits >> 9, V) + 0.5f) * 0x1p-23f;
        if (i + LANES <= count) NAME(store)(out, i, x, 0);
        else
            for (long j = i; j < count; j++) out[j] = x[j - i];
    }
}

#undef V
#undef W
#undef H
