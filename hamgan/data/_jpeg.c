/* Decoding of the centred square of a JPEG by a libjpeg-turbo that the process has loaded already (Pillow's): what lies
   beside the square is only entropy-decoded, not transformed. The pixels are those of a whole decode, bit for bit.

   The library's functions come as pointers, so that nothing is linked; called through ctypes, so that nothing here
   depends on Python. What is unusual (progressive, CMYK, odd sampling) or gives the least warning is not taken: the
   caller has another decoder for it. */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

#define MOST_ROWS 16

/* Of the arguments and functions below: a library that was compiled for others is not used. */
int hamgan_jpeg_version(void) { return 1; }

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
} Decoder;

static void fail(j_common_ptr info) { longjmp(((Decoder *)info->client_data)->failed, 1); }

static void count_warning(j_common_ptr info, int level) {
    if (level < 0) info->err->num_warnings++;
}

static void say_nothing(j_common_ptr info) { (void)info; }

void hamgan_jpeg_close(Decoder *decoder) {
    if (!setjmp(decoder->failed)) decoder->call.destroy(&decoder->info);
    free(decoder);
}

static int create(Decoder *decoder) {
    if (setjmp(decoder->failed)) return 1;
    decoder->call.create(&decoder->info, JPEG_LIB_VERSION, sizeof(struct jpeg_decompress_struct));
    return 0;
}

/* Make a decoder; NULL if there is no memory or the library is not of the kind that the header was. */
Decoder *hamgan_jpeg_open(const Functions *functions) {
    Decoder *decoder = calloc(1, sizeof(Decoder));
    if (!decoder) return NULL;
    decoder->call = *functions;
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

/* Read the header of a JPEG.

   shape   its height and width

   Returns 0 if the square can follow, else 1. */
int hamgan_jpeg_header(Decoder *decoder, const uint8_t *data, unsigned long size, int *shape) {
    struct jpeg_decompress_struct *info = &decoder->info;
    if (!setjmp(decoder->failed)) {
        decoder->call.abort(info); /* what the last header began */
        decoder->errors.num_warnings = 0;
        decoder->call.memory_source(info, data, size);
        if (decoder->call.read_header(info, TRUE) == JPEG_HEADER_OK && is_usual(info) && !decoder->errors.num_warnings) {
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
