/* Huffman decoding of baseline JPEGs, in place of libjpeg's, which takes four fifths of its time.

   libjpeg looks into a table for a code, then takes the value's bits behind it, and watches for markers all the while. Here
   the data is first copied without its stuffed zeros; a look tells how many bits code and value take together, so that the
   next look need not wait for the value; and several looks follow each other without a branch that could be foretold wrongly,
   unless the block ends. What is odd is an error: codes that do not exist, coefficients beyond the block, data that is
   missing or left over. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LOOK 11
#define MOST 18  /* three times this is at most 56 */
#define LONGEST 16
#define END_OF_BLOCK 128
#define ROOM 512 /* bytes behind the data: a block takes at most 64 * 31 bits */

/* Of the next LOOK bits, if they begin with a code: how many bits it takes with its value's (the lower 6 bits), by how many
   coefficients to go on (from bit 8 on), how many bits the value takes (from bit 16 on) and how many the code (from bit 20
   on). 0 if the code is longer than LOOK bits, or takes more than MOST bits with its value's. */
typedef uint32_t Entry;

typedef struct {
    Entry entries[1 << LOOK];
    /* Of each length: the first code that is too large for it, and what makes codes of it places in huffval. */
    int32_t end[LONGEST + 1], offset[LONGEST + 1];
    JHUFF_TBL source;
    int is_made;
} HuffmanTable;

typedef struct {
    uint64_t bits;       /* what comes next, from the highest bit on */
    int count;           /* how many of them count */
    const uint8_t *next; /* what follows them */
    const uint8_t *end;  /* of the data; zeros follow */
    const uint8_t *marker;
    uint8_t *memory;
    size_t size;
} BitReader;

static inline Entry entry_of(int symbol, int is_dc, int length) {
    const int size = symbol & 15, run = symbol >> 4;
    const int step = is_dc ? 0 : size ? run + 1 : run == 15 ? 16 : END_OF_BLOCK;
    return (Entry)(length + size) | (Entry)step << 8 | (Entry)size << 16 | (Entry)length << 20;
}

static inline int step_of(Entry entry) { return entry >> 8 & 255; }

/* The value of an entry whose code is next. The first of its bits is 0 if it is negative. */
static inline int value_of(uint64_t bits, Entry entry) {
    const int size = entry >> 16 & 15;
    bits <<= entry >> 20;
    return (int)(bits >> 1 >> (63 - size)) + (~(int)((int64_t)bits >> 63) & (1 - (1 << size)));
}

/* Make a table, unless it is the one that was made for the last image: most use the same few. */
static void make_table(HuffmanTable *table, const JHUFF_TBL *source, int is_dc) {
    if (table->is_made && !memcmp(table->source.bits, source->bits, sizeof source->bits) &&
        !memcmp(table->source.huffval, source->huffval, sizeof source->huffval))
        return;
    memcpy(&table->source, source, sizeof *source);
    table->is_made = 1;
    memset(table->entries, 0, sizeof table->entries);
    int32_t code = 0;
    int symbols = 0;
    for (int length = 1; length <= LONGEST; length++, code <<= 1) {
        table->offset[length] = symbols - code;
        for (int i = 0; i < source->bits[length] && symbols < 256; i++, code++, symbols++) {
            const int symbol = source->huffval[symbols], rest = LOOK - length;
            /* A code that is too large for its length: libjpeg has refused such tables already. */
            if (rest < 0 || length + (symbol & 15) > MOST || code >= 1 << length) continue;
            Entry *first = table->entries + (code << rest);
            for (int i = 0; i < 1 << rest; i++) first[i] = entry_of(symbol, is_dc, length);
        }
        table->end[length] = code;
    }
}

/* Copy data up to its marker, without the zeros behind bytes of 255. Returns 0 if there is no marker or no memory. */
static int begin_reading(BitReader *reader, const uint8_t *data, size_t size) {
    if (size + ROOM > reader->size) {
        free(reader->memory);
        reader->size = size + size / 2 + ROOM;
        reader->memory = malloc(reader->size);
        if (!reader->memory) {
            reader->size = 0;
            return 0;
        }
    }
    const uint8_t *end = data + size;
    uint8_t *out = reader->memory;
    for (;;) {
        const uint8_t *found = memchr(data, 0xff, end - data);
        if (!found || end - found < 2) return 0;
        memcpy(out, data, found - data);
        out += found - data;
        if (found[1]) {
            reader->marker = found;
            break;
        }
        *out++ = 0xff;
        data = found + 2;
    }
    memset(out, 0, ROOM);
    reader->bits = 0;
    reader->count = 0;
    reader->next = reader->memory;
    reader->end = out;
    return 1;
}

/* Say whether all the data was read, but for less than a byte. */
static int is_at_end(const BitReader *reader) {
    const long left = 8 * (reader->end - reader->next) + reader->count;
    return left >= 0 && left < 8;
}

/* Have at least 56 bits. */
static inline void refill(BitReader *reader) {
    uint64_t eight;
    memcpy(&eight, reader->next, 8);
    reader->bits |= __builtin_bswap64(eight) >> reader->count;
    reader->next += (63 - reader->count) >> 3;
    reader->count |= 56;
}

static inline void skip(BitReader *reader, int count) {
    reader->bits <<= count;
    reader->count -= count;
}

/* Find the entry of a code that one look does not tell; 0 if there is no such code. */
static Entry find_long(uint64_t bits, const HuffmanTable *table, int is_dc) {
    for (int length = 1; length <= LONGEST; length++) {
        const int32_t code = (int32_t)(bits >> (64 - length));
        const int place = code + table->offset[length];
        if (code < table->end[length] && place >= 0 && place < 256)
            return entry_of(table->source.huffval[place], is_dc, length);
    }
    return 0;
}

/* Read the coefficients of a block into zeros. Returns 0 if the data is damaged. */
static inline __attribute__((always_inline)) int read_block(BitReader *reader, const HuffmanTable *dc,
                                                            const HuffmanTable *ac, int *last_dc, JCOEF *block) {
    /* Of the zigzag, row by row. */
    static const uint8_t natural[64] = {
        0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,
        7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46,
        53, 60, 61, 54, 47, 55, 62, 63};
    if (reader->next > reader->end + 8) return 0;
    BitReader local = *reader;
    refill(&local);
    Entry entry = dc->entries[local.bits >> (64 - LOOK)];
    if (!entry && !(entry = find_long(local.bits, dc, 1))) return 0;
    *last_dc += value_of(local.bits, entry);
    skip(&local, entry & 63);
    if (*last_dc != (JCOEF)*last_dc) return 0;
    block[0] = (JCOEF)*last_dc;
    for (unsigned k = 0; k < 63;) {
        refill(&local);
        for (int i = 0; i < 3; i++) {
            entry = ac->entries[local.bits >> (64 - LOOK)];
            if (__builtin_expect(!entry, 0)) {
                refill(&local);
                if (!(entry = find_long(local.bits, ac, 0))) return 0;
                i = 2;
            }
            const int value = value_of(local.bits, entry);
            skip(&local, entry & 63);
            k += step_of(entry);
            if (k >= 63) {
                if (k == 63)
                    block[63] = (JCOEF)value;
                else if (k < END_OF_BLOCK)
                    return 0;
                break;
            }
            block[natural[k]] = (JCOEF)value;
        }
    }
    reader->bits = local.bits;
    reader->count = local.count;
    reader->next = local.next;
    return 1;
}
