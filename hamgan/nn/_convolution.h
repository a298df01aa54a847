/* Convolutions of maps in bfloat16 with 1x1 and 3x3 kernels, whose products of pairs are summed in float32 (AVX-512 BF16).

   A map is (samples, height, width, channels), a kernel (rows, taps, cols) with as many taps as pixels, in the order of
   torch's channels_last. Three functions make forward and backward passes, transposed or not, of stride 1 and 2: */

#define MOST_PIXELS 16   /* of a tile */
#define MOST_TAPS 9
#define PACKED_BYTES (192 << 10) /* of packed rows that the second-level cache holds beside a kernel's part */
#define GRADIENT_BLOCK 32        /* channels of the map whose pixels are gathered, in one piece of a kernel's gradient */
#define GRADIENT_PIECES 16
#define GRADIENT_BYTES (4 << 20) /* of all pieces' sums */

/* ---- Products ---- */

/* What a tile of pixels that follow each other is the sum of: for each tap a row of packed pixels and a part of the kernel. */
struct taps {
    const uint32_t *x[MOST_TAPS]; /* pixel p of pair q at q * stride + p */
    const uint32_t *w[MOST_TAPS]; /* vector n of pair q at (q * vectors + n) * LANES */
    long count, pairs, stride;
    const float *bias;            /* of the tile's channels, filled up with zeros; or NULL */
    uint16_t *out;                /* of the first pixel */
    long step;                    /* numbers from one pixel of the result to the next */
    long channels;                /* of the result that the tile has, at most vectors * LANES */
    int relu;
    float *sums;                  /* where the sums go as they are, LANES a pixel, in place of `out`; or NULL */
};

INLINE void conv_tile(const struct taps *taps, const long first, const int pixels, const int vectors) {
    __m512 sums[MOST_PIXELS][4];
#pragma GCC unroll 4
    for (int n = 0; n < vectors; n++) {
        const __m512 bias = taps->bias ? _mm512_loadu_ps(taps->bias + n * LANES) : _mm512_setzero_ps();
#pragma GCC unroll 16
        for (int p = 0; p < pixels; p++) sums[p][n] = bias;
    }
    for (long t = 0; t < taps->count; t++) {
        const uint32_t *x = taps->x[t] + first, *w = taps->w[t];
        for (long q = 0; q < taps->pairs; q++) {
            __m512bh by[4];
#pragma GCC unroll 4
            for (int n = 0; n < vectors; n++) by[n] = (__m512bh)_mm512_loadu_si512(w + n * LANES);
#pragma GCC unroll 16
            for (int p = 0; p < pixels; p++) {
                const __m512bh pair = (__m512bh)_mm512_set1_epi32((int)x[p]);
#pragma GCC unroll 4
                for (int n = 0; n < vectors; n++) sums[p][n] = _mm512_dpbf16_ps(sums[p][n], by[n], pair);
            }
            x += taps->stride;
            w += vectors * LANES;
        }
    }
    if (vectors == 1 && taps->sums) {
#pragma GCC unroll 16
        for (int p = 0; p < pixels; p++) _mm512_storeu_ps(taps->sums + (first + p) * LANES, sums[p][0]);
        return;
    }
#pragma GCC unroll 4
    for (int n = 0; n < vectors; n++) {
        const long left = taps->channels - n * LANES;
        const __mmask16 mask = left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1 << left) - 1) : 0;
#pragma GCC unroll 16
        for (int p = 0; p < pixels; p++) {
            __m512 sum = sums[p][n];
            if (taps->relu) sum = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(sum, _mm512_setzero_ps(), _CMP_NLT_UQ), sum);
            _mm256_mask_storeu_epi16(taps->out + (first + p) * taps->step + n * LANES, mask,
                                     (__m256i)_mm512_cvtneps_pbh(sum));
        }
    }
}

#define TILE(p, n) \
    static void conv_tile_##p##_##n(const struct taps *taps, long first) { conv_tile(taps, first, p, n); }
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(7, 1) TILE(8, 1)
TILE(9, 1) TILE(10, 1) TILE(11, 1) TILE(12, 1) TILE(13, 1) TILE(14, 1) TILE(15, 1) TILE(16, 1)
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2) TILE(7, 2) TILE(8, 2)
TILE(9, 2) TILE(10, 2) TILE(11, 2) TILE(12, 2) TILE(13, 2)
TILE(1, 4) TILE(2, 4) TILE(3, 4) TILE(4, 4) TILE(5, 4) TILE(6, 4)
#undef TILE

typedef void (*conv_tile_function)(const struct taps *, long);

static const conv_tile_function conv_tiles_1[] = {
    conv_tile_1_1, conv_tile_2_1, conv_tile_3_1, conv_tile_4_1, conv_tile_5_1, conv_tile_6_1, conv_tile_7_1, conv_tile_8_1,
    conv_tile_9_1, conv_tile_10_1, conv_tile_11_1, conv_tile_12_1, conv_tile_13_1, conv_tile_14_1, conv_tile_15_1,
    conv_tile_16_1};
static const conv_tile_function conv_tiles_2[] = {
    conv_tile_1_2, conv_tile_2_2, conv_tile_3_2, conv_tile_4_2, conv_tile_5_2, conv_tile_6_2, conv_tile_7_2, conv_tile_8_2,
    conv_tile_9_2, conv_tile_10_2, conv_tile_11_2, conv_tile_12_2, conv_tile_13_2};
static const conv_tile_function conv_tiles_4[] = {conv_tile_1_4, conv_tile_2_4, conv_tile_3_4,
                                                  conv_tile_4_4, conv_tile_5_4, conv_tile_6_4};

/* How wide tiles are cut from a row: the last one may overlap the one before. */
struct cut {
    conv_tile_function tile;
    long pixels;
};

static struct cut cut_row(long width, int vectors) {
    const conv_tile_function *tiles = vectors == 4 ? conv_tiles_4 : vectors == 2 ? conv_tiles_2 : conv_tiles_1;
    const long most = vectors == 4 ? 6 : vectors == 2 ? 13 : 16;
    long best = 1, least = width * 8;
    for (long pixels = 2; pixels <= most && pixels <= width; pixels++) {
        const long sums = pixels * vectors < 8 ? 8 : pixels * vectors; /* fewer wait for each other */
        const long cost = (width + pixels - 1) / pixels * sums;
        if (cost <= least) least = cost, best = pixels;
    }
    return (struct cut){tiles[best - 1], best};
}

static void conv_row(const struct taps *taps, const struct cut *cut, long width) {
    long first = 0;
    for (; first + cut->pixels <= width; first += cut->pixels) cut->tile(taps, first);
    if (first < width) cut->tile(taps, width - cut->pixels);
}

/* ---- Packing ---- */

/* Transpose 8 pixels of 8 pairs. */
INLINE void transpose_8(const uint32_t *in, long step, uint32_t *out, long stride) {
    __m256i a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_si256((const __m256i *)(in + i * step));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        a[4 * i] = _mm256_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm256_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm256_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm256_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_si256((__m256i *)(out + i * stride), _mm256_permute2x128_si256(a[i], a[4 + i], 0x20));
        _mm256_storeu_si256((__m256i *)(out + (4 + i) * stride), _mm256_permute2x128_si256(a[i], a[4 + i], 0x31));
    }
}

/* Pack `count` pixels, `step` pixels apart, as pairs of channels: pixel p of pair q to out[q * stride + p]. */
static void pack_pixels(const uint16_t *x, long count, long step, long channels, uint32_t *out, long stride) {
    const long pairs = (channels + 1) / 2;
    long p = 0;
    if (channels % 16 == 0)
        for (; p + 8 <= count; p += 8)
            for (long q = 0; q < pairs; q += 8)
                transpose_8((const uint32_t *)(x + p * step * channels) + q, step * channels / 2, out + q * stride + p, stride);
    for (; p < count; p++) {
        const uint16_t *pixel = x + p * step * channels;
        for (long q = 0; q < pairs; q++)
            out[q * stride + p] = pixel[2 * q] | (2 * q + 1 < channels ? (uint32_t)pixel[2 * q + 1] << 16 : 0);
    }
}

static void clear_pixels(uint32_t *out, long count, long pairs, long stride) {
    for (long q = 0; q < pairs; q++)
        for (long p = 0; p < count; p++) out[q * stride + p] = 0;
}

/* Two rows of `count` numbers as pairs, either of them NULL for zeros. */
INLINE void pack_pair(const uint16_t *first, const uint16_t *second, long count, uint32_t *out) {
    for (long c = 0; c < count; c += LANES) {
        const __mmask16 mask = count - c >= LANES ? 0xffff : (__mmask16)((1 << (count - c)) - 1);
        __m512i low = _mm512_setzero_si512(), high = low;
        if (first) low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first + c));
        if (second) high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, second + c));
        _mm512_mask_storeu_epi32(out + c, mask, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

/* A kernel (rows, taps, cols) as pairs of the channels that are summed over: vector n of block b, tap t, pair q at
   (((b * taps + t) * pairs + q) * vectors + n) * LANES. */
struct packing {
    const uint16_t *weight;
    uint32_t *out;
    long rows, taps, cols, vectors, pairs;
    int over_rows; /* whether vectors go over rows and pairs over cols, or the other way round */
};

static void pack_kernel_part(const void *data, long from, long to) {
    const struct packing *job = data;
    const long length = job->taps * job->cols, step = job->vectors * LANES;
    for (long vector = from; vector < to; vector++) {
        const long first = vector * LANES, left = (job->over_rows ? job->rows : job->cols) - first;
        const long lanes = left < LANES ? left : LANES;
        uint32_t *block = job->out + vector / job->vectors * job->taps * job->pairs * step + vector % job->vectors * LANES;
        for (long t = 0; t < job->taps; t++) {
            uint32_t *out = block + t * job->pairs * step;
            const uint16_t *in = job->weight + t * job->cols + first * (job->over_rows ? length : 1);
            if (!job->over_rows) {
                for (long q = 0; q < job->pairs; q++, out += step, in += 2 * length) {
                    if (lanes < LANES) memset(out, 0, LANES * sizeof(uint32_t));
                    pack_pair(in, 2 * q + 1 < job->rows ? in + length : NULL, lanes, out);
                }
            } else if (lanes == LANES && job->cols % 16 == 0) {
                for (long q = 0; q < job->pairs; q += 8)
                    for (long i = 0; i < LANES; i += 8)
                        transpose_8((const uint32_t *)(in + i * length) + q, length / 2, out + q * step + i, step);
            } else {
                for (long q = 0; q < job->pairs; q++)
                    for (long i = 0; i < LANES; i++) {
                        const uint16_t *pair = in + i * length + 2 * q;
                        out[q * step + i] = i >= lanes ? 0 : pair[0] | (2 * q + 1 < job->cols ? (uint32_t)pair[1] << 16 : 0);
                    }
            }
        }
    }
}

/* The same of a 3x3 kernel with at most four channels of the result: lane 4 * x + channel of row y, pair q, for tap (y, x), so
   that a vector is full. */
static void pack_thin_kernel(const uint16_t *weight, long rows, long cols, int over_rows, int reversed, uint32_t *out) {
    const long channels = over_rows ? rows : cols, pairs = ((over_rows ? cols : rows) + 1) / 2;
    for (long y = 0; y < 3; y++)
        for (long q = 0; q < pairs; q++, out += LANES)
            for (long lane = 0; lane < LANES; lane++) {
                const long channel = lane % 4, x = lane / 4, tap = reversed ? 8 - 3 * y - x : 3 * y + x;
                out[lane] = 0;
                for (long i = 2 * q; x < 3 && channel < channels && i < 2 * q + 2 && i < (over_rows ? cols : rows); i++) {
                    const long at = over_rows ? (channel * 9 + tap) * cols + i : (i * 9 + tap) * cols + channel;
                    out[lane] |= (uint32_t)weight[at] << 16 * (i - 2 * q);
                }
            }
}

/* ---- Passes over maps ---- */

struct conv {
    const uint16_t *x;
    const uint32_t *kernel;
    const float *bias; /* filled up with zeros to whole vectors; or NULL */
    uint16_t *out;
    uint32_t *room;    /* of as many pieces as there are */
    long height, width, channels, out_height, out_width, out_channels;
    long size, pad, stride, reversed, scattered;
    long pairs, vectors, blocks;          /* of the kernel */
    long rows, pieces, packed_rows, plane; /* rows of a piece; pieces a sample; packed rows a piece, numbers of one */
    int relu, failed, thin; /* thin: see pack_thin_kernel */
};

/* Numbers of one packed row: of stride 2, its even pixels and then its odd ones. */
static long packed_width(const struct conv *job) {
    return job->scattered ? job->width + 2 : job->stride == 1 ? job->width + 2 * job->pad : job->width;
}

static void pack_row(const struct conv *job, const uint16_t *row, uint32_t *out) {
    const long width = packed_width(job), pad = job->scattered ? 1 : job->pad, even = (job->width + 1) / 2;
    if (!row) {
        memset(out, 0, job->plane * sizeof(uint32_t));
    } else if (job->stride == 1 || job->scattered) {
        clear_pixels(out, pad, job->pairs, width);
        pack_pixels(row, job->width, 1, job->channels, out + pad, width);
        clear_pixels(out + pad + job->width, pad, job->pairs, width);
    } else {
        pack_pixels(row, even, 2, job->channels, out, width);
        pack_pixels(row + job->channels, job->width / 2, 2, job->channels, out + even, width);
    }
}

/* Rows of one sample's result from `first` on, whose packed rows begin with row `base` of the map. */
static void gather_rows(const struct conv *job, const uint32_t *packed, long base, long sample, long first, long last) {
    const long width = packed_width(job), even = (job->width + 1) / 2, taps = job->size * job->size;
    const struct cut cut = cut_row(job->out_width, (int)job->vectors);
    struct taps at = {.count = taps, .pairs = job->pairs, .stride = width, .step = job->out_channels, .relu = job->relu};
    for (long block = 0; block < job->blocks; block++) {
        const long channel = block * job->vectors * LANES, part = job->pairs * job->vectors * LANES;
        at.bias = job->bias ? job->bias + channel : NULL;
        at.channels = job->out_channels - channel;
        for (long row = first; row < last; row++) {
            for (long t = 0; t < taps; t++) {
                const long y = t / job->size, x = t % job->size;
                const uint32_t *plane = packed + (row * job->stride + y - job->pad - base) * job->plane;
                at.x[t] = plane + (job->stride == 1 ? x : x % 2 ? even : x / 2);
                at.w[t] = job->kernel + (block * taps + (job->reversed ? taps - 1 - t : t)) * part;
            }
            at.out = job->out + (sample * job->out_height + row) * job->out_width * job->out_channels + channel;
            conv_row(&at, &cut, job->out_width);
        }
    }
}

/* The same of at most four channels: the sums of each column's pixels for all three taps x, then those of three columns. */
static void gather_thin_rows(const struct conv *job, const uint32_t *packed, long base, float *sums, long sample, long first,
                             long last) {
    const long width = packed_width(job);
    const struct cut cut = cut_row(width, 1);
    const __m128 bias = job->bias ? _mm_loadu_ps(job->bias) : _mm_setzero_ps();
    const __mmask8 mask = (__mmask8)((1 << job->out_channels) - 1);
    struct taps at = {.count = 3, .pairs = job->pairs, .stride = width, .sums = sums};
    for (long y = 0; y < 3; y++) at.w[y] = job->kernel + y * job->pairs * LANES;
    for (long row = first; row < last; row++) {
        for (long y = 0; y < 3; y++) at.x[y] = packed + (row + y - job->pad - base) * job->plane;
        conv_row(&at, &cut, width);
        uint16_t *out = job->out + (sample * job->out_height + row) * job->out_width * job->out_channels;
        for (long p = 0; p < job->out_width; p++) {
            const float *column = sums + p * LANES;
            __m128 sum = _mm_add_ps(_mm_add_ps(_mm_loadu_ps(column), _mm_loadu_ps(column + LANES + 4)),
                                    _mm_add_ps(_mm_loadu_ps(column + 2 * LANES + 8), bias));
            if (job->relu) sum = _mm_maskz_mov_ps(_mm_cmp_ps_mask(sum, _mm_setzero_ps(), _CMP_NLT_UQ), sum);
            _mm_mask_storeu_epi16(out + p * job->out_channels, mask, (__m128i)_mm_cvtneps_pbh(sum));
        }
    }
}

/* The same of a result that is twice as high and wide and one more: pixel (i, j) by tap (y, x) goes to (2 i + y, 2 j + x). */
static void scatter_rows(const struct conv *job, const uint32_t *packed, long base, long sample, long first, long last) {
    const long width = packed_width(job), step = 2 * job->out_channels;
    const struct cut even = cut_row(job->width + 1, (int)job->vectors), odd = cut_row(job->width, (int)job->vectors);
    struct taps at = {.pairs = job->pairs, .stride = width, .step = step, .relu = job->relu};
    for (long block = 0; block < job->blocks; block++) {
        const long channel = block * job->vectors * LANES, part = job->pairs * job->vectors * LANES;
        const uint32_t *kernel = job->kernel + block * 9 * part;
        at.bias = job->bias ? job->bias + channel : NULL;
        at.channels = job->out_channels - channel;
        for (long row = first; row < last; row++) {
            uint16_t *out = job->out + (sample * job->out_height + row) * job->out_width * job->out_channels + channel;
            for (long parity = 0; parity < 2; parity++) {
                at.count = 0;
                for (long y = row % 2; y < 3; y += 2) {
                    const long i = (row - y) / 2;
                    if (row < y || i >= job->height) continue;
                    for (long x = parity; x < 3; x += 2, at.count++) {
                        at.x[at.count] = packed + (i - base) * job->plane + 1 - x / 2;
                        at.w[at.count] = kernel + (job->reversed ? 8 - 3 * y - x : 3 * y + x) * part;
                    }
                }
                at.out = out + parity * job->out_channels;
                conv_row(&at, parity ? &odd : &even, job->width + 1 - parity);
            }
        }
    }
}

static void conv_part(const void *data, long from, long to) {
    const struct conv *job = data;
    const long for_rows = job->packed_rows * job->plane;
    uint32_t *packed = malloc((for_rows + (job->thin ? packed_width(job) * LANES : 0)) * sizeof(uint32_t));
    if (!packed) {
        ((struct conv *)job)->failed = 1;
        return;
    }
    for (long piece = from; piece < to; piece++) {
        const long sample = piece / job->pieces, first = piece % job->pieces * job->rows;
        const long last = first + job->rows < job->out_height ? first + job->rows : job->out_height;
        long base = first * job->stride - job->pad, end = (last - 1) * job->stride - job->pad + job->size;
        if (job->scattered) {
            base = first > 2 ? (first - 1) / 2 : 0;
            end = (last - 1) / 2 + 1 < job->height ? (last - 1) / 2 + 1 : job->height;
        }
        for (long row = base; row < end; row++) {
            const uint16_t *in = job->x + (sample * job->height + row) * job->width * job->channels;
            pack_row(job, row >= 0 && row < job->height ? in : NULL, packed + (row - base) * job->plane);
        }
        if (job->scattered) scatter_rows(job, packed, base, sample, first, last);
        else if (job->thin) gather_thin_rows(job, packed, base, (float *)(packed + for_rows), sample, first, last);
        else gather_rows(job, packed, base, sample, first, last);
    }
    free(packed);
}

/* Convolve a map (samples, height, width, channels) with a kernel (rows, size * size, cols).

   over_rows   1: the map's channels are the kernel's cols and its rows those of the result; 0: the other way round
   reversed    whether the kernel is turned by 180 degrees
   stride      1 or 2; 2 takes pad 0
   scattered   whether this is a transposed convolution of stride 2 and a 3x3 kernel without padding
   bias        float32, one for each channel of the result; or NULL
   relu        whether the positive part is taken
   out         (samples, out_height, out_width, rows or cols)

   Returns 1 if there is no memory, 2 if the processor or the geometry is not of those that this is for. */
int hamgan_convolve(const void *x, long samples, long height, long width, const void *weight, long rows, long size, long cols,
                    int over_rows, int reversed, long stride, long pad, int scattered, const float *bias, int relu, void *out,
                    int threads) {
    if (hamgan_kernels_level() < 3 || (size != 1 && size != 3) || (stride == 2 && pad) || (scattered && size != 3)) return 2;
    const long channels = over_rows ? cols : rows, out_channels = over_rows ? rows : cols;
    const long all = (out_channels + LANES - 1) / LANES;
    struct conv job = {.x = x, .out = out, .height = height, .width = width, .channels = channels, .out_channels = out_channels,
                       .size = size, .pad = pad, .stride = scattered ? 1 : stride, .reversed = reversed,
                       .scattered = scattered, .relu = relu};
    if (scattered) job.pad = 0;
    job.out_height = scattered ? 2 * height + 1 : (height + 2 * pad - size) / stride + 1;
    job.out_width = scattered ? 2 * width + 1 : (width + 2 * pad - size) / stride + 1;
    if (job.out_height < 1 || job.out_width < 1) return 2;
    job.pairs = (channels + 1) / 2;
    job.vectors = all % 4 == 0 && job.out_width <= 6 ? 4 : all % 2 == 0 ? 2 : 1;
    job.blocks = all / job.vectors;
    job.plane = job.pairs * packed_width(&job);
    const long most = PACKED_BYTES / (long)sizeof(uint32_t) / job.plane - (size - 1);
    job.rows = (scattered ? 2 : 1) * most / (stride > 1 && !scattered ? 2 : 1);
    job.rows = job.rows < 4 ? 4 : job.rows;
    job.rows = job.rows > job.out_height ? job.out_height : job.rows;
    job.pieces = (job.out_height + job.rows - 1) / job.rows;
    job.rows = (job.out_height + job.pieces - 1) / job.pieces; /* evenly */
    job.packed_rows = (job.rows - 1) * job.stride + size + 1;
    const long for_kernel = all * LANES * size * size * job.pairs;
    uint32_t *memory = malloc((for_kernel + all * LANES) * sizeof(uint32_t));
    if (!memory) return 1;
    job.kernel = memory;
    if (bias) {
        float *filled = (float *)(memory + for_kernel);
        memset(filled, 0, all * LANES * sizeof(float));
        memcpy(filled, bias, out_channels * sizeof(float));
        job.bias = filled;
    }
    job.thin = out_channels <= 4 && size == 3 && stride == 1 && !scattered;
    const struct packing packing = {weight, memory, rows, size * size, cols, job.vectors, job.pairs, over_rows};
    if (job.thin) pack_thin_kernel(weight, rows, cols, over_rows, reversed, memory);
    else in_parts(pack_kernel_part, &packing, all, 1, for_kernel, threads);
    in_parts(conv_part, &job, samples * job.pieces, 1, samples * height * width * channels, threads);
    free(memory);
    return job.failed;
}

/* ---- The kernel's gradient ---- */

/* Pieces: of the channels of `a` and of the samples. Each has its own sums, (size, size * block, LANES * vectors). */
struct kernel_gradient {
    const uint16_t *a, *b;
    float *sums;
    uint16_t *out;
    long samples, a_height, a_width, a_channels, height, width, channels; /* of a; of b, the grid */
    long size, pad, stride, vectors, block, blocks, groups;
    long rows, at_once; /* of the grid that are packed at once: rows of a sample, and samples */
    int swapped, failed; /* swapped: the result is of a's channels, turned */
};

/* Packed pairs of pixels and their distances, in numbers. */
struct packed_pairs {
    const uint32_t *a, *b;
    long a_pair, a_row, a_sample, b_pair, b_row, b_sample, samples, rows, pairs;
    int begun; /* whether there are sums to add to */
};

/* Sums over pairs of pixels: of lines `m` and following ones of a, and vectors from channel `n` on of b. */
INLINE void gradient_tile(const struct packed_pairs *of, const uint32_t *a, const uint32_t *b, float *sums, long stride,
                          const int lines, const int vectors) {
    const long pairs = of->pairs, a_pair = of->a_pair, b_pair = of->b_pair;
    __m512 sum[16][2];
#pragma GCC unroll 16
    for (int m = 0; m < lines; m++)
#pragma GCC unroll 2
        for (int n = 0; n < vectors; n++)
            sum[m][n] = of->begun ? _mm512_loadu_ps(sums + m * stride + n * LANES) : _mm512_setzero_ps();
    for (long index = 0; index < of->samples * of->rows; index++) {
        const long sample = index / of->rows, row = index % of->rows;
        const uint32_t *x = a + sample * of->a_sample + row * of->a_row, *y = b + sample * of->b_sample + row * of->b_row;
        for (long pair = 0; pair < pairs; pair++) {
            __m512bh by[2];
#pragma GCC unroll 2
            for (int n = 0; n < vectors; n++) by[n] = (__m512bh)_mm512_loadu_si512(y + n * LANES);
#pragma GCC unroll 16
            for (int m = 0; m < lines; m++) {
                const __m512bh of = (__m512bh)_mm512_set1_epi32((int)x[m]);
#pragma GCC unroll 2
                for (int n = 0; n < vectors; n++) sum[m][n] = _mm512_dpbf16_ps(sum[m][n], by[n], of);
            }
            x += a_pair;
            y += b_pair;
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < lines; m++)
#pragma GCC unroll 2
        for (int n = 0; n < vectors; n++) _mm512_storeu_ps(sums + m * stride + n * LANES, sum[m][n]);
}

#define TILE(m, n) \
    static void gradient_tile_##m##_##n(const struct packed_pairs *of, const uint32_t *a, const uint32_t *b, float *sums, \
                                        long stride) { \
        gradient_tile(of, a, b, sums, stride, m, n); \
    }
TILE(1, 1) TILE(3, 1) TILE(8, 1) TILE(9, 1) TILE(16, 1) TILE(1, 2) TILE(8, 2) TILE(12, 2)
#undef TILE

/* A row of the grid. */
static void pack_grid_row(const struct kernel_gradient *job, const uint16_t *row, uint32_t *out) {
    for (long p = 0; p < job->width; p += 2, out += job->vectors * LANES) {
        const uint16_t *left = row + p * job->channels;
        pack_pair(left, p + 1 < job->width ? left + job->channels : NULL, job->channels, out);
    }
}

/* A row of the other map, of the channels of a block, for all taps x; NULL for zeros. */
static void pack_gathered_row(const struct kernel_gradient *job, const uint16_t *row, uint32_t *out) {
    const long size = job->size, stride = job->stride, channels = job->a_channels, width = job->a_width;
    for (long p = 0; p < job->width; p += 2, out += size * job->block) {
        const long first = p * stride - job->pad;
        if (!row) {
            memset(out, 0, size * job->block * sizeof(uint32_t));
        } else if (job->blocks == 1 && first >= 0 && first + stride + size <= width && p + 1 < job->width) {
            pack_pair(row + first * channels, row + (first + stride) * channels, size * channels, out);
        } else {
            for (long x = first; x < first + size; x++) {
                const long other = x + stride;
                const int both = other >= 0 && other < width && p + 1 < job->width;
                pack_pair(x >= 0 && x < width ? row + x * channels : NULL, both ? row + other * channels : NULL, job->block,
                          out + (x - first) * job->block);
            }
        }
    }
}

/* Add the products of all that is packed to a piece's sums. */
static void add_products(const struct kernel_gradient *job, const struct packed_pairs *of, float *sums) {
    const long lines = job->size * job->block, width = job->vectors * LANES, a_row = of->a_row / job->stride;
    for (long y = 0; y < job->size; y++)
        for (long n = 0, step; n < job->vectors; n += step) {
            step = n + 2 <= job->vectors ? 2 : 1;
            for (long m = 0; m < lines;) {
                const long left = lines - m;
#define CALL(p, q) \
    gradient_tile_##p##_##q(of, of->a + y * a_row + m, of->b + n * LANES, sums + (y * lines + m) * width + n * LANES, width), \
        m += p
                if (step == 2) {
                    if (left % 12 == 0) CALL(12, 2);
                    else if (left >= 8) CALL(8, 2);
                    else CALL(1, 2);
                } else if (left >= 16) CALL(16, 1);
                else if (left == 9) CALL(9, 1);
                else if (left >= 8) CALL(8, 1);
                else if (left >= 3) CALL(3, 1);
                else CALL(1, 1);
#undef CALL
            }
        }
}

static void kernel_gradient_part(const void *data, long from, long to) {
    const struct kernel_gradient *job = data;
    const long stride = job->stride, pairs = (job->width + 1) / 2, width = job->vectors * LANES;
    const long lines = job->size * job->block, of_sums = job->size * lines * width;
    const long a_rows = (job->rows - 1) * stride + job->size;
    struct packed_pairs of = {.a_pair = lines, .a_row = stride * pairs * lines, .a_sample = a_rows * pairs * lines,
                              .b_pair = width, .b_row = pairs * width, .b_sample = job->rows * pairs * width, .pairs = pairs};
    uint32_t *a = malloc(job->at_once * (of.a_sample + of.b_sample) * sizeof(uint32_t)), *b = a + job->at_once * of.a_sample;
    if (!a) {
        ((struct kernel_gradient *)job)->failed = 1;
        return;
    }
    of.a = a;
    of.b = b;
    for (long piece = from; piece < to; piece++) {
        const long block = piece % job->blocks, group = piece / job->blocks;
        const long first = job->samples * group / job->groups, last = job->samples * (group + 1) / job->groups;
        float *sums = job->sums + piece * of_sums;
        of.begun = 0;
        for (long sample = first; sample < last; sample += of.samples)
            for (long top = 0; top < job->height; top += of.rows) {
                of.samples = sample + job->at_once < last ? job->at_once : last - sample;
                of.rows = top + job->rows < job->height ? job->rows : job->height - top;
                for (long s = 0; s < of.samples; s++) {
                    const uint16_t *grid = job->b + (sample + s) * job->height * job->width * job->channels;
                    const uint16_t *map = job->a + (sample + s) * job->a_height * job->a_width * job->a_channels;
                    for (long row = 0; row < of.rows; row++)
                        pack_grid_row(job, grid + (top + row) * job->width * job->channels,
                                      b + s * of.b_sample + row * of.b_row);
                    for (long row = 0; row < (of.rows - 1) * stride + job->size; row++) {
                        const long i = top * stride - job->pad + row;
                        const uint16_t *in = map + i * job->a_width * job->a_channels + block * job->block;
                        pack_gathered_row(job, i >= 0 && i < job->a_height ? in : NULL,
                                          a + s * of.a_sample + row * pairs * lines);
                    }
                }
                add_products(job, &of, sums);
                of.begun = 1;
            }
    }
    free(a);
}

/* The sum of all groups, of tap (y, x), a's channel c, and vector n of b's. */
INLINE __m512 sum_of_groups(const struct kernel_gradient *job, long tap, long c, long n) {
    const long lines = job->size * job->block, width = job->vectors * LANES, of_sums = job->size * lines * width;
    const long line = tap / job->size * lines + tap % job->size * job->block + c % job->block;
    const float *sums = job->sums + c / job->block * of_sums + line * width + n * LANES;
    __m512 sum = _mm512_loadu_ps(sums);
    for (long group = 1; group < job->groups; group++)
        sum = _mm512_add_ps(sum, _mm512_loadu_ps(sums + group * job->blocks * of_sums));
    return sum;
}

/* Add the groups' sums in order, and turn them: (channels of b, taps, channels of a). */
static void kernel_gradient_out(const void *data, long from, long to) {
    const struct kernel_gradient *job = data;
    const long taps = job->size * job->size, channels = job->a_channels;
    uint16_t rows[LANES][LANES];
    for (long index = from; index < to; index++) { /* of 16 of a's channels, and taps */
        const long tap = index % taps, first = index / taps * LANES, most = channels - first < LANES ? channels - first : LANES;
        for (long n = 0; n < job->vectors; n++) {
            for (long c = 0; c < most; c++)
                _mm256_storeu_si256((__m256i *)rows[c], (__m256i)_mm512_cvtneps_pbh(sum_of_groups(job, tap, first + c, n)));
            uint16_t *out = job->out + (n * LANES * taps + tap) * channels + first;
            if (!job->swapped && most == LANES && channels % 2 == 0 && (n + 1) * LANES <= job->channels) {
                uint32_t pairs[LANES / 2][LANES];
                for (long q = 0; q < LANES / 2; q++) pack_pair(rows[2 * q], rows[2 * q + 1], LANES, pairs[q]);
                for (long i = 0; i < LANES; i += 8)
                    transpose_8(pairs[0] + i, LANES, (uint32_t *)(out + i * taps * channels), taps * channels / 2);
            } else {
                for (long i = 0; i < LANES && n * LANES + i < job->channels; i++)
                    for (long c = 0; c < most; c++) {
                        const long turned = ((first + c) * taps + taps - 1 - tap) * job->channels + n * LANES + i;
                        if (job->swapped) job->out[turned] = rows[c][i];
                        else out[i * taps * channels + c] = rows[c][i];
                    }
            }
        }
    }
}

/* Sum over the pixels p of `b` (samples, height, width, channels) its products with those of `a` (samples, a_height, a_width,
   a_channels) at p * stride - pad + tap: (channels, size * size, a_channels), the gradient of a convolution's kernel, of which
   a is the map and b the result's gradient. With `turned` the kernel is turned by 180 degrees and (a_channels, size * size,
   channels): of a convolution of b with zeros between its pixels, and a the result's gradient.

   Returns 1 if there is no memory, 2 if the processor or the geometry is not of those that this is for. */
int hamgan_kernel_gradient(const void *a, long a_height, long a_width, long a_channels, const void *b, long samples,
                           long height, long width, long channels, long size, long stride, long pad, int turned, void *out,
                           int threads) {
    if (hamgan_kernels_level() < 3 || (size != 1 && size != 3)) return 2;
    struct kernel_gradient job = {.a = a, .b = b, .out = out, .samples = samples, .a_height = a_height, .a_width = a_width,
                                  .a_channels = a_channels, .height = height, .width = width, .channels = channels,
                                  .size = size, .pad = pad, .stride = stride, .swapped = turned};
    if (stride == 1 && channels < a_channels && channels < LANES) { /* vectors are over the channels of b: take the more */
        job = (struct kernel_gradient){.a = b, .b = a, .out = out, .samples = samples, .a_height = height, .a_width = width,
                                       .a_channels = channels, .height = a_height, .width = a_width, .channels = a_channels,
                                       .size = size, .pad = size - 1 - pad, .stride = 1, .swapped = !turned};
        height = job.height, width = job.width, channels = job.channels, a_channels = job.a_channels;
    }
    job.vectors = (channels + LANES - 1) / LANES;
    job.block = a_channels % GRADIENT_BLOCK == 0 ? GRADIENT_BLOCK : a_channels % LANES == 0 ? LANES : a_channels;
    job.blocks = a_channels / job.block;
    const long of_sums = size * size * job.block * job.vectors * LANES, pairs = (width + 1) / 2;
    const long most = GRADIENT_BYTES / (long)sizeof(float) / (of_sums * job.blocks);
    job.groups = (GRADIENT_PIECES + job.blocks - 1) / job.blocks;
    job.groups = job.groups > most ? most : job.groups;
    job.groups = job.groups > samples ? samples : job.groups < 1 ? 1 : job.groups;
    job.rows = PACKED_BYTES / (long)sizeof(uint32_t) / (pairs * (stride * size * job.block + job.vectors * LANES));
    job.rows = job.rows < 1 ? 1 : job.rows;
    job.at_once = job.rows / height > 1 ? job.rows / height : 1;
    job.at_once = job.at_once > samples ? samples : job.at_once;
    job.rows = job.rows > height ? height : job.rows;
    job.sums = malloc(job.groups * job.blocks * of_sums * sizeof(float));
    if (!job.sums) return 1;
    in_parts(kernel_gradient_part, &job, job.groups * job.blocks, 1, samples * height * width * channels, threads);
    const long blocks = (a_channels + LANES - 1) / LANES * size * size;
    if (!job.failed) in_parts(kernel_gradient_out, &job, blocks, 1, job.groups * job.blocks * of_sums, threads);
    free(job.sums);
    return job.failed;
}
