/* Decoding of the centred square of a JPEG by a libjpeg-turbo that the process has loaded already (Pillow's): what lies
   beside the square is only entropy-decoded, not transformed, and the Huffman codes are decoded by _huffman.h in the place
   of the library's own function. The pixels are those of a whole decode, bit for bit.

   The library's functions come as pointers, so that nothing is linked; called through ctypes, so that nothing here
   depends on Python. What is unusual (progressive, CMYK, odd sampling) or gives the least warning is not taken: the
   caller has another decoder for it. */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HAS_HUFFMAN
#include "_huffman.h"
#endif

#define MOST_ROWS 16

/* Of the arguments and functions below: a library that was compiled for others is not used. */
int hamgan_jpeg_version(void) { return 3; }

/* The names of these are in crop_jpeg.py, in the same order. */
typedef struct {
    struct jpeg_error_mgr *(*std_error)(struct jpeg_error_mgr *);
    void (*create)(j_decompress_ptr, int, size_t);
    void (*memory_source)(j_decompress_ptr, const unsigned char *, unsigned long);
    int (*read_header)(j_decompress_ptr, boolean);
    boolean (*start)(j_decompress_ptr);
    void (*crop)(j_decompress_ptr, JDIMENSION *, JDIMENSION *);
    JDIMENSION (*skip)(j_decompress_ptr, JDIMENSION);
    JDIMENSION (*read)(j_decompress_ptr, JSAMPARRAY, JDIMENSION);
    boolean (*finish)(j_decompress_ptr);
    void (*abort)(j_decompress_ptr);
    void (*destroy)(j_decompress_ptr);
} Functions;

typedef struct {
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    Functions call;
    jmp_buf failed;
#ifdef HAS_HUFFMAN
    int own_huffman;
    HuffmanTable dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
    BitReader reader;
    int last_dc[MAX_COMPS_IN_SCAN];
    long units_left;
#endif
    long taken_over;
} Decoder;

static void fail(j_common_ptr info) { longjmp(((Decoder *)info->client_data)->failed, 1); }

static void count_warning(j_common_ptr info, int level) {
    if (level < 0) info->err->num_warnings++;
}

static void say_nothing(j_common_ptr info) { (void)info; }

void hamgan_jpeg_close(Decoder *decoder) {
    if (!setjmp(decoder->failed)) decoder->call.destroy(&decoder->info);
#ifdef HAS_HUFFMAN
    free(decoder->reader.memory);
#endif
    free(decoder);
}

#ifdef HAS_HUFFMAN
/* The beginning of libjpeg's private struct of that name. */
struct jpeg_entropy_decoder {
    void (*start_pass)(j_decompress_ptr);
    boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
};

/* Decode the blocks that belong together (an MCU), or pass over them if there is no place for them. */
static boolean decode_unit(j_decompress_ptr info, JBLOCKROW *blocks) {
    Decoder *decoder = (Decoder *)info->client_data;
    BitReader *reader = &decoder->reader;
    JBLOCK nowhere;
    for (int i = 0; i < info->blocks_in_MCU; i++) {
        const int part = info->MCU_membership[i];
        const jpeg_component_info *component = info->cur_comp_info[part];
        if (!read_block(reader, decoder->dc + component->dc_tbl_no, decoder->ac + component->ac_tbl_no,
                        decoder->last_dc + part, blocks ? blocks[i][0] : nowhere))
            fail((j_common_ptr)info);
    }
    if (!--decoder->units_left) {
        if (!is_at_end(reader)) fail((j_common_ptr)info);
        info->src->bytes_in_buffer -= reader->marker - info->src->next_input_byte;
        info->src->next_input_byte = reader->marker;
    }
    return TRUE;
}

/* Put `decode_unit` in the place of libjpeg's function, which has not begun yet. */
static void take_over(Decoder *decoder) {
    struct jpeg_decompress_struct *info = &decoder->info;
    if (!decoder->own_huffman || info->restart_interval ||
        !begin_reading(&decoder->reader, info->src->next_input_byte, info->src->bytes_in_buffer))
        return;
    for (int i = 0; i < info->comps_in_scan; i++) {
        const jpeg_component_info *component = info->cur_comp_info[i];
        make_table(decoder->dc + component->dc_tbl_no, info->dc_huff_tbl_ptrs[component->dc_tbl_no], 1);
        make_table(decoder->ac + component->ac_tbl_no, info->ac_huff_tbl_ptrs[component->ac_tbl_no], 0);
        decoder->last_dc[i] = 0;
    }
    decoder->units_left = (long)info->MCUs_per_row * info->MCU_rows_in_scan;
    info->entropy->decode_mcu = decode_unit;
    decoder->taken_over++;
}
#endif

static int create(Decoder *decoder) {
    if (setjmp(decoder->failed)) return 1;
    decoder->call.create(&decoder->info, JPEG_LIB_VERSION, sizeof(struct jpeg_decompress_struct));
    return 0;
}

/* Make a decoder; NULL if there is no memory or the library is not of the kind that the header was.

   own_huffman   whether the library's Huffman decoding is replaced, for which it must be of a version that is known */
Decoder *hamgan_jpeg_open(const Functions *functions, int own_huffman) {
    Decoder *decoder = calloc(1, sizeof(Decoder));
    if (!decoder) return NULL;
    decoder->call = *functions;
#ifdef HAS_HUFFMAN
    decoder->own_huffman = own_huffman;
#else
    (void)own_huffman;
#endif
    decoder->info.err = decoder->call.std_error(&decoder->errors);
    decoder->info.client_data = decoder; /* creating keeps these two */
    decoder->errors.error_exit = fail;
    decoder->errors.emit_message = count_warning;
    decoder->errors.output_message = say_nothing;
    if (create(decoder)) {
        free(decoder);
        return NULL;
    }
    return decoder;
}

/* Say whether a JPEG is of the usual kind: baseline, one scan, gray, RGB or YCbCr with chroma at full or half size. */
static int is_usual(const struct jpeg_decompress_struct *info) {
    const int components = info->num_components;
    if (info->progressive_mode || info->arith_code || info->data_precision != 8 || info->comps_in_scan != components)
        return 0;
    if (info->jpeg_color_space == JCS_GRAYSCALE) {
        if (components != 1) return 0;
    } else if ((info->jpeg_color_space != JCS_YCbCr && info->jpeg_color_space != JCS_RGB) || components != 3) {
        return 0;
    }
    for (int i = 0; i < components; i++) {
        const jpeg_component_info *part = info->comp_info + i;
        if (part->h_samp_factor > (i ? 1 : 2) || part->v_samp_factor > (i ? 1 : 2)) return 0;
    }
    return 1;
}

/* How many images' Huffman codes were decoded here; -1 if none's ever will be. */
long hamgan_jpeg_taken_over(const Decoder *decoder) {
#ifdef HAS_HUFFMAN
    if (decoder->own_huffman) return decoder->taken_over;
#endif
    (void)decoder;
    return -1;
}

/* No file can have the one in a Huffman table's unused first count; that one of 16 bits has the other is unheard of. */
#define NO_CODES 255
#define NO_STEPS 65535

/* Mark the tables that are left of the last file, which libjpeg would go on using where a file lacks its own. */
static void forget_tables(struct jpeg_decompress_struct *info) {
    for (int i = 0; i < NUM_QUANT_TBLS; i++)
        if (info->quant_tbl_ptrs[i]) info->quant_tbl_ptrs[i]->quantval[0] = NO_STEPS;
    for (int i = 0; i < NUM_HUFF_TBLS; i++) {
        if (info->dc_huff_tbl_ptrs[i]) info->dc_huff_tbl_ptrs[i]->bits[0] = NO_CODES;
        if (info->ac_huff_tbl_ptrs[i]) info->ac_huff_tbl_ptrs[i]->bits[0] = NO_CODES;
    }
}

/* Say whether the file that a header was read of has all tables that it needs (or happens to have a mark in one). */
static int has_tables(const struct jpeg_decompress_struct *info) {
    for (int i = 0; i < info->comps_in_scan; i++) {
        const jpeg_component_info *part = info->cur_comp_info[i];
        const int quant = part->quant_tbl_no, dc = part->dc_tbl_no, ac = part->ac_tbl_no;
        if (quant < 0 || quant >= NUM_QUANT_TBLS || dc < 0 || dc >= NUM_HUFF_TBLS || ac < 0 || ac >= NUM_HUFF_TBLS)
            return 0;
        const JQUANT_TBL *steps = info->quant_tbl_ptrs[quant];
        const JHUFF_TBL *codes[] = {info->dc_huff_tbl_ptrs[dc], info->ac_huff_tbl_ptrs[ac]};
        if (!steps || steps->quantval[0] == NO_STEPS) return 0;
        for (int k = 0; k < 2; k++)
            if (!codes[k] || codes[k]->bits[0] == NO_CODES) return 0;
    }
    return 1;
}

/* Read the header of a JPEG.

   shape   its height and width

   Returns 0 if the square can follow, else 1. */
int hamgan_jpeg_header(Decoder *decoder, const uint8_t *data, unsigned long size, int *shape) {
    struct jpeg_decompress_struct *info = &decoder->info;
    if (!setjmp(decoder->failed)) {
        decoder->call.abort(info); /* what the last header began */
        decoder->errors.num_warnings = 0;
        forget_tables(info);
        decoder->call.memory_source(info, data, size);
        if (decoder->call.read_header(info, TRUE) == JPEG_HEADER_OK && is_usual(info) && has_tables(info) &&
            !decoder->errors.num_warnings) {
            shape[0] = (int)info->image_height;
            shape[1] = (int)info->image_width;
            return 0;
        }
    }
    decoder->call.abort(info);
    return 1;
}

/* Decode a square of the JPEG whose header was read.

   data          of that call: it must still be there
   top, left     of the square of this side, within the image
   out, stride   where its first row goes, with room for one row more, and bytes from row to row: as many as the side and
                 `room` more pixels take, since more columns are decoded than asked for
   offset        pixels before the square in each row

   Returns 0, or 1 if there is an error or a warning. */
int hamgan_jpeg_square(Decoder *decoder, int top, int left, int side, int room, uint8_t *out, long stride, int *offset) {
    struct jpeg_decompress_struct *info = &decoder->info;
    const Functions *call = &decoder->call;
    if (setjmp(decoder->failed)) {
        call->abort(info);
        return 1;
    }
    info->out_color_space = JCS_RGB;
    call->start(info);
#ifdef HAS_HUFFMAN
    take_over(decoder);
#endif
    /* The chroma of a pixel is interpolated from its neighbours', which must be decoded too. */
    const int width = (int)info->output_width, margin = info->max_h_samp_factor;
    const int end = left + side + margin < width ? left + side + margin : width;
    JDIMENSION first = left > margin ? left - margin : 0, count = end - first;
    if ((int)count < width) call->crop(info, &first, &count);
    *offset = left - (int)first;
    if ((int)info->output_width > side + room || *offset + side > (int)info->output_width) fail((j_common_ptr)info);
    /* Rows above are passed over by whole rows of blocks, but for one that the first is interpolated from. */
    const int block = 8 * info->max_v_samp_factor, above = top / block - 1;
    if (above > 0) call->skip(info, above * block);
    JSAMPROW rows[MOST_ROWS];
    while ((int)info->output_scanline < top + side) {
        const int row = (int)info->output_scanline - top; /* in the square; those above it are overwritten */
        const int missing = row < 0 ? -row : side - row, count = missing < MOST_ROWS ? missing : MOST_ROWS;
        for (int i = 0; i < count; i++) rows[i] = out + (row < 0 ? 0 : row + i) * stride;
        if (!call->read(info, rows, count)) fail((j_common_ptr)info);
    }
    /* All that is below is read, to know that it is not damaged; skipping to the end would leave it out. */
    const int below = (int)info->output_height - top - side;
    if (below > 1) call->skip(info, below - 1);
    rows[0] = out + side * stride;
    if (below > 0) call->read(info, rows, 1);
    call->finish(info);
    return decoder->errors.num_warnings != 0;
}
