/* Int8 kernels in plain C99: no libraries, no heap, no floating point. A shift right of a negative number keeps its sign
 * (implementation-defined in C99; so in GCC, Clang, IAR and armclang). */
#include "mv_kernels.h"

#define ADD_SHIFT 20

MV_WEAK int32_t mv_requantise(int32_t value, int32_t multiplier, int32_t shift) {
    const int32_t total = 31 - shift;
    const int64_t product = (int64_t)value * multiplier;
    return (int32_t)((product + ((int64_t)1 << (total - 1))) >> total);
}

static int8_t clamp(int32_t value, int32_t low, int32_t high) {
    return (int8_t)(value < low ? low : value > high ? high : value);
}

static int8_t finish(const mv_layer_t *layer, int32_t sum, int32_t channel) {
    return clamp(mv_requantise(sum, layer->multiplier[channel], layer->shift[channel]) + layer->out_zero, layer->low, layer->high);
}

/* Rows (or columns) of the kernel that lie inside of the input: from *first up to but not including *last. */
static void inside(int32_t start, int32_t kernel, int32_t size, int32_t *first, int32_t *last) {
    *first = start < 0 ? -start : 0;
    *last = start + kernel > size ? size - start : kernel;
}

MV_WEAK void mv_conv_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output) {
    const int32_t channels = layer->in_channels;
    for (int32_t row = 0; row < layer->out_rows; row++) {
        const int32_t top = row * layer->stride_rows - layer->pad_rows;
        int32_t row_first, row_last;
        inside(top, layer->kernel_rows, layer->in_rows, &row_first, &row_last);
        for (int32_t column = 0; column < layer->out_columns; column++) {
            const int32_t left = column * layer->stride_columns - layer->pad_columns;
            int32_t column_first, column_last;
            inside(left, layer->kernel_columns, layer->in_columns, &column_first, &column_last);
            const int8_t *filter = layer->weight;
            for (int32_t out = 0; out < layer->out_channels; out++) {
                int32_t sum = layer->bias[out];
                for (int32_t i = row_first; i < row_last; i++) {
                    const int8_t *x = input + ((top + i) * layer->in_columns + left + column_first) * channels;
                    const int8_t *w = filter + (i * layer->kernel_columns + column_first) * channels;
                    for (int32_t n = (column_last - column_first) * channels; n > 0; n--) {
                        sum += (*x++ - layer->in_zero) * *w++;
                    }
                }
                *output++ = finish(layer, sum, out);
                filter += layer->kernel_rows * layer->kernel_columns * channels;
            }
        }
    }
}

MV_WEAK void mv_pointwise_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output) {
    const int32_t channels = layer->in_channels, zero = layer->in_zero;
    for (int32_t pixel = layer->out_rows * layer->out_columns; pixel > 0; pixel--) {
        const int8_t *w = layer->weight;
        for (int32_t out = 0; out < layer->out_channels; out++) {
            int32_t sum = layer->bias[out];
            for (int32_t channel = 0; channel < channels; channel++) {
                sum += (input[channel] - zero) * *w++;
            }
            *output++ = finish(layer, sum, out);
        }
        input += channels;
    }
}

MV_WEAK void mv_depthwise_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output) {
    const int32_t channels = layer->in_channels, zero = layer->in_zero;
    for (int32_t row = 0; row < layer->out_rows; row++) {
        const int32_t top = row * layer->stride_rows - layer->pad_rows;
        int32_t row_first, row_last;
        inside(top, layer->kernel_rows, layer->in_rows, &row_first, &row_last);
        for (int32_t column = 0; column < layer->out_columns; column++) {
            const int32_t left = column * layer->stride_columns - layer->pad_columns;
            int32_t column_first, column_last;
            inside(left, layer->kernel_columns, layer->in_columns, &column_first, &column_last);
            for (int32_t channel = 0; channel < channels; channel++) {
                int32_t sum = layer->bias[channel];
                for (int32_t i = row_first; i < row_last; i++) {
                    const int8_t *x = input + ((top + i) * layer->in_columns + left + column_first) * channels + channel;
                    const int8_t *w = layer->weight + (i * layer->kernel_columns + column_first) * channels + channel;
                    for (int32_t j = column_first; j < column_last; j++) {
                        sum += (*x - zero) * *w;
                        x += channels;
                        w += channels;
                    }
                }
                *output++ = finish(layer, sum, channel);
            }
        }
    }
}

MV_WEAK void mv_linear_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output) {
    mv_pointwise_s8(layer, input, output);
}

MV_WEAK void mv_add_s8(const mv_add_t *add, const int8_t *a, const int8_t *b, int8_t *output) {
    for (int32_t n = 0; n < add->count; n++) {
        const int32_t left = mv_requantise((a[n] - add->zero_a) * (1 << ADD_SHIFT), add->multiplier_a, add->shift_a);
        const int32_t right = mv_requantise((b[n] - add->zero_b) * (1 << ADD_SHIFT), add->multiplier_b, add->shift_b);
        output[n] = clamp(mv_requantise(left + right, add->multiplier_out, add->shift_out) + add->out_zero, add->low, add->high);
    }
}

MV_WEAK void mv_pool_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output) {
    const int32_t count = layer->in_rows * layer->in_columns, channels = layer->in_channels;
    for (int32_t channel = 0; channel < channels; channel++) {
        int32_t sum = 0;
        for (int32_t pixel = 0; pixel < count; pixel++) {
            sum += input[pixel * channels + channel];
        }
        output[channel] = (int8_t)(sum >= 0 ? (sum + count / 2) / count : (sum - count / 2) / count);
    }
}
