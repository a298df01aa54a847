/* The antialiased resize of resample.py for x86-64 with AVX2 or AVX-512: the same integers, bit for bit.

   Weights are int16 multiples of 2^-14, pixels and the values between the two passes int16, sums int32, which they
   never leave. Called through ctypes, so that nothing here depends on Python. Two output rows are made at a time: down
   the columns into two rows of the crop's width, then along those, so that all intermediate values stay in the cache. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Of the arguments of hamgan_resize: a library that was compiled for others is not used. */
int hamgan_resize_version(void) { return 2; }

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512vnni")))

/* Round sums to integers and halves to even, as numpy's rint does: floor((x + 2^13 - 1 + odd) / 2^14), where odd is
   the lowest bit of floor(x / 2^14). */
AVX2 static inline __m256i round256(__m256i x) {
    __m256i odd = _mm256_and_si256(_mm256_srai_epi32(x, 14), _mm256_set1_epi32(1));
    return _mm256_srai_epi32(_mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(8191))), 14);
}

AVX512 static inline __m512i round512(__m512i x) {
    __m512i odd = _mm512_and_si512(_mm512_srai_epi32(x, 14), _mm512_set1_epi32(1));
    return _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(8191))), 14);
}

/* Two rows of sums down the columns: `size` bytes wide, of `rows` input rows from `src` on. `weights` has for each
   pair of input rows that of the first output row and that of the second. */
AVX2 static void down256(const uint8_t *src, long stride, long size, int rows, const int16_t *weights, int16_t *first,
                         int16_t *second) {
    const __m256i zero = _mm256_setzero_si256();
    for (long at = 0;; at += 32) {
        if (at + 32 > size) at = size - 32; /* the last vector overlaps the one before */
        __m256i a0 = zero, a1 = zero, a2 = zero, a3 = zero, b0 = zero, b1 = zero, b2 = zero, b3 = zero;
        const uint8_t *pixels = src + at;
        for (int row = 0; row < rows; row += 2, pixels += 2 * stride) {
            int32_t pair[2];
            memcpy(pair, weights + 2 * row, 8);
            const __m256i wa = _mm256_set1_epi32(pair[0]), wb = _mm256_set1_epi32(pair[1]);
            const __m256i upper = _mm256_loadu_si256((const __m256i *)pixels);
            /* A missing last row has weight 0. */
            const __m256i lower = _mm256_loadu_si256((const __m256i *)(pixels + (row + 1 < rows ? stride : 0)));
            const __m256i left = _mm256_unpacklo_epi8(upper, lower), right = _mm256_unpackhi_epi8(upper, lower);
            const __m256i p0 = _mm256_unpacklo_epi8(left, zero), p1 = _mm256_unpackhi_epi8(left, zero);
            const __m256i p2 = _mm256_unpacklo_epi8(right, zero), p3 = _mm256_unpackhi_epi8(right, zero);
            a0 = _mm256_add_epi32(a0, _mm256_madd_epi16(p0, wa));
            a1 = _mm256_add_epi32(a1, _mm256_madd_epi16(p1, wa));
            a2 = _mm256_add_epi32(a2, _mm256_madd_epi16(p2, wa));
            a3 = _mm256_add_epi32(a3, _mm256_madd_epi16(p3, wa));
            b0 = _mm256_add_epi32(b0, _mm256_madd_epi16(p0, wb));
            b1 = _mm256_add_epi32(b1, _mm256_madd_epi16(p1, wb));
            b2 = _mm256_add_epi32(b2, _mm256_madd_epi16(p2, wb));
            b3 = _mm256_add_epi32(b3, _mm256_madd_epi16(p3, wb));
        }
        /* Packing undoes the unpacking, but within halves: put those together. */
        const __m256i a01 = _mm256_packs_epi32(round256(a0), round256(a1));
        const __m256i a23 = _mm256_packs_epi32(round256(a2), round256(a3));
        const __m256i b01 = _mm256_packs_epi32(round256(b0), round256(b1));
        const __m256i b23 = _mm256_packs_epi32(round256(b2), round256(b3));
        _mm256_storeu_si256((__m256i *)(first + at), _mm256_permute2x128_si256(a01, a23, 0x20));
        _mm256_storeu_si256((__m256i *)(first + at + 16), _mm256_permute2x128_si256(a01, a23, 0x31));
        _mm256_storeu_si256((__m256i *)(second + at), _mm256_permute2x128_si256(b01, b23, 0x20));
        _mm256_storeu_si256((__m256i *)(second + at + 16), _mm256_permute2x128_si256(b01, b23, 0x31));
        if (at + 32 == size) return;
    }
}

/* Add to each sum the products of a pair of numbers. It is _mm512_dpwssd_epi32, which GCC 12 surrounds with moves. */
AVX512 static inline __m512i add_products(__m512i sum, __m512i x, __m512i y) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
    return sum;
}

AVX512 static inline void store512(int16_t *out, __m512i s0, __m512i s1, __m512i s2, __m512i s3) {
    const __m512i lower = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), upper = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    const __m512i s01 = _mm512_packs_epi32(round512(s0), round512(s1));
    const __m512i s23 = _mm512_packs_epi32(round512(s2), round512(s3));
    _mm512_storeu_si512(out, _mm512_permutex2var_epi64(s01, lower, s23));
    _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi64(s01, upper, s23));
}

AVX512 static void down512(const uint8_t *src, long stride, long size, int rows, const int16_t *weights, int16_t *first,
                           int16_t *second) {
    const __m512i zero = _mm512_setzero_si512();
    for (long at = 0;; at += 64) {
        if (at + 64 > size) at = size - 64;
        __m512i a0 = zero, a1 = zero, a2 = zero, a3 = zero, b0 = zero, b1 = zero, b2 = zero, b3 = zero;
        const uint8_t *pixels = src + at;
        for (int row = 0; row < rows; row += 2, pixels += 2 * stride) {
            int32_t pair[2];
            memcpy(pair, weights + 2 * row, 8);
            const __m512i wa = _mm512_set1_epi32(pair[0]), wb = _mm512_set1_epi32(pair[1]);
            const __m512i upper = _mm512_loadu_si512(pixels);
            const __m512i lower = _mm512_loadu_si512(pixels + (row + 1 < rows ? stride : 0));
            const __m512i left = _mm512_unpacklo_epi8(upper, lower), right = _mm512_unpackhi_epi8(upper, lower);
            const __m512i p0 = _mm512_unpacklo_epi8(left, zero), p1 = _mm512_unpackhi_epi8(left, zero);
            const __m512i p2 = _mm512_unpacklo_epi8(right, zero), p3 = _mm512_unpackhi_epi8(right, zero);
            a0 = add_products(a0, p0, wa);
            a1 = add_products(a1, p1, wa);
            a2 = add_products(a2, p2, wa);
            a3 = add_products(a3, p3, wa);
            b0 = add_products(b0, p0, wb);
            b1 = add_products(b1, p1, wb);
            b2 = add_products(b2, p2, wb);
            b3 = add_products(b3, p3, wb);
        }
        store512(first + at, a0, a1, a2, a3);
        store512(second + at, b0, b1, b2, b3);
        if (at + 64 == size) return;
    }
}

/* Put two neighbouring pixels beside each other, channel by channel: r0 r1 g0 g1 b0 b1 0 0. */
AVX2 static void pair_up(const int16_t *row, long num_pairs, int16_t *pairs) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, -1, -1, -1, -1));
    for (long pair = 0; pair < num_pairs; pair += 2, row += 12, pairs += 16) {
        __m256i four = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)row));
        four = _mm256_inserti128_si256(four, _mm_loadu_si128((const __m128i *)(row + 6)), 1);
        _mm256_storeu_si256((__m256i *)pairs, _mm256_shuffle_epi8(four, order));
    }
}

/* Add the two halves of the sums of two output pixels. */
AVX2 static inline __m256i halves(__m256i first, __m256i second) {
    return _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                            _mm256_permute2x128_si256(first, second, 0x31));
}

AVX2 static inline __m256i multiply(const int16_t *pairs, const int16_t *weights) {
    /* Two pairs of weights to four times each. */
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const __m256i two = _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)weights));
    return _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)pairs), _mm256_permutevar8x32_epi32(two, spread));
}

/* One output row from a row of pixel pairs, four pixels at a time. */
AVX2 static void along256(const int16_t *pairs, const int32_t *start, const int16_t *weights, int num_pairs, int resolution,
                       uint8_t *out) {
    const __m128i colours = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const long size = 2 * (long)num_pairs;
    for (int o = 0;; o += 4) {
        if (o + 4 > resolution) o = resolution - 4; /* the last four overlap those before */
        const int16_t *p0 = pairs + 8 * (long)start[o], *p1 = pairs + 8 * (long)start[o + 1];
        const int16_t *p2 = pairs + 8 * (long)start[o + 2], *p3 = pairs + 8 * (long)start[o + 3];
        const int16_t *w = weights + size * o;
        __m256i s0 = multiply(p0, w), s1 = multiply(p1, w + size);
        __m256i s2 = multiply(p2, w + 2 * size), s3 = multiply(p3, w + 3 * size);
        for (long at = 4; at < size; at += 4) {
            s0 = _mm256_add_epi32(s0, multiply(p0 + 4 * at, w + at));
            s1 = _mm256_add_epi32(s1, multiply(p1 + 4 * at, w + size + at));
            s2 = _mm256_add_epi32(s2, multiply(p2 + 4 * at, w + 2 * size + at));
            s3 = _mm256_add_epi32(s3, multiply(p3 + 4 * at, w + 3 * size + at));
        }
        const __m256i packed = _mm256_packs_epi32(round256(halves(s0, s2)), round256(halves(s1, s3)));
        const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
        const __m128i four = _mm_shuffle_epi8(bytes, colours);
        const int last = _mm_extract_epi32(four, 2);
        _mm_storel_epi64((__m128i *)(out + 3 * o), four);
        memcpy(out + 3 * o + 8, &last, 4);
        if (o + 4 == resolution) return;
    }
}

/* Put four sums of four quarters each into four bytes for each of three colours. */
AVX512 static inline void finish512(const __m512i *sums, uint8_t *out) {
    const __m128i colours = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const __m512i s01 = _mm512_add_epi32(_mm512_shuffle_i64x2(sums[0], sums[1], 0x44),
                                         _mm512_shuffle_i64x2(sums[0], sums[1], 0xee));
    const __m512i s23 = _mm512_add_epi32(_mm512_shuffle_i64x2(sums[2], sums[3], 0x44),
                                         _mm512_shuffle_i64x2(sums[2], sums[3], 0xee));
    /* Now quarter i is the sum of output pixel i. */
    const __m512i total = round512(
        _mm512_add_epi32(_mm512_shuffle_i64x2(s01, s23, 0x88), _mm512_shuffle_i64x2(s01, s23, 0xdd)));
    const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(total, _mm512_setzero_si512()));
    _mm_mask_storeu_epi8(out, 0xfff, _mm_shuffle_epi8(bytes, colours));
}

/* Two output rows from two rows of pixel pairs, `apart` from each other; num_pairs is a multiple of 4. */
AVX512 static void along512(const int16_t *pairs, long apart, const int32_t *start, const int16_t *weights,
                            int num_pairs, int resolution, uint8_t *first, uint8_t *second) {
    /* Four pairs of weights to four times each: so they take less of the cache, which the pixels need. */
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const long size = 2 * (long)num_pairs;
    for (int o = 0;; o += 4) {
        if (o + 4 > resolution) o = resolution - 4; /* the last four overlap those before */
        __m512i upper[4], lower[4];
        for (int i = 0; i < 4; i++) upper[i] = lower[i] = _mm512_setzero_si512();
        const int16_t *w = weights + size * o;
        const int16_t *from[4];
        for (int i = 0; i < 4; i++) from[i] = pairs + 8 * (long)start[o + i];
        for (long at = 0; at < size; at += 8)
            for (int i = 0; i < 4; i++) {
                const __m128i four = _mm_loadu_si128((const __m128i *)(w + size * i + at));
                const __m512i both = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(four));
                upper[i] = add_products(upper[i], both, _mm512_loadu_si512(from[i] + 4 * at));
                lower[i] = add_products(lower[i], both, _mm512_loadu_si512(from[i] + apart + 4 * at));
            }
        finish512(upper, first + 3 * o);
        finish512(lower, second + 3 * o);
        if (o + 4 == resolution) return;
    }
}

/* What this processor can do: 0 nothing of this, 1 AVX2, 2 AVX-512. */
int hamgan_resize_level(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return 0;
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vnni") ? 2 : 1;
}

/* Scale a square of RGB pixels.

   src, stride     its first pixel, and bytes from row to row
   side            of the square, pixels; at least 22, so that a row fills a vector of 64 bytes
   down_*          for each two output rows: the first input row, the number of input rows, and for each pair of
                   those four weights, padded to down_pairs
   along_*         for each output pixel: the first pair of input pixels and, for each of along_pairs pairs (a multiple
                   of two, or for level 2 of four), the two weights
   out             resolution x resolution x 3 bytes; resolution is at least 4

   Returns 0, or 1 if there is no memory. */
int hamgan_resize(int level, const uint8_t *src, long stride, int side, int resolution, const int32_t *down_start,
                  const int32_t *down_rows, const int16_t *down_weights, int down_pairs, const int32_t *along_start,
                  const int16_t *along_weights, int along_pairs, uint8_t *out) {
    const long size = 3 * (long)side, width = size + 64, num_pairs = (side + 1) / 2;
    const long apart = 8 * (num_pairs + along_pairs + 2), row_bytes = 3 * (long)resolution;
    int16_t *scratch = calloc(2 * width + 2 * apart + row_bytes, sizeof(int16_t));
    if (!scratch) return 1;
    int16_t *pairs = scratch + 2 * width;
    uint8_t *spare = (uint8_t *)(pairs + 2 * apart); /* takes the second of the last two rows if there is only one */
    for (int two = 0; 2 * two < resolution; two++) {
        if (2 * two + 2 < resolution) {
            /* The rows that come next are fetched meanwhile: the decoder has left them far from here. */
            const int last = down_start[two + 1] + down_rows[two + 1];
            for (int row = down_start[two] + down_rows[two]; row < last; row++)
                for (long at = 0; at < size; at += 64) __builtin_prefetch(src + row * stride + at);
        }
        const uint8_t *from = src + down_start[two] * stride;
        const int16_t *weights = down_weights + 4 * (long)down_pairs * two;
        (level == 2 ? down512 : down256)(from, stride, size, down_rows[two], weights, scratch, scratch + width);
        pair_up(scratch, num_pairs, pairs);
        pair_up(scratch + width, num_pairs, pairs + apart);
        uint8_t *first = out + 2 * two * row_bytes, *second = 2 * two + 1 < resolution ? first + row_bytes : spare;
        if (level == 2) {
            along512(pairs, apart, along_start, along_weights, along_pairs, resolution, first, second);
        } else {
            along256(pairs, along_start, along_weights, along_pairs, resolution, first);
            along256(pairs + apart, along_start, along_weights, along_pairs, resolution, second);
        }
    }
    free(scratch);
    return 0;
}

#else

int hamgan_resize_level(void) { return 0; }

#endif
