/* Int8 kernels of mcu-vision.
 *
 * Activations lie as rows, columns, channels; weights of a convolution as output, rows, columns, input; of a depthwise
 * convolution as rows, columns, channels; of a linear layer as output, input. These are CMSIS-NN's layouts too.
 *
 * Every kernel is a weak symbol: define a function of the same name and it takes the place of ours, for instance one that
 * calls CMSIS-NN (arm_convolve_s8, arm_depthwise_conv_s8, arm_elementwise_add_s8, ...). Multipliers are fractions of 31 bits,
 * shifts count to the left, rounding is single (CMSIS_NN_USE_SINGLE_ROUNDING); keep to that and the outputs stay the same bits.
 */
#ifndef MV_KERNELS_H
#define MV_KERNELS_H

#include <stdint.h>

#if !defined(MV_WEAK)
#define MV_WEAK __attribute__((weak))
#endif

typedef struct {
    int16_t in_rows, in_columns, in_channels;
    int16_t out_rows, out_columns, out_channels;
    int16_t kernel_rows, kernel_columns, stride_rows, stride_columns, pad_rows, pad_columns;
    int16_t in_zero, out_zero, low, high;
    const int8_t *weight;
    const int32_t *bias;
    const int32_t *multiplier; /* one per output channel */
    const int8_t *shift;
} mv_layer_t;

typedef struct {
    int32_t count;
    int16_t zero_a, zero_b, out_zero, low, high;
    int32_t multiplier_a, multiplier_b, multiplier_out;
    int8_t shift_a, shift_b, shift_out;
} mv_add_t;

int32_t mv_requantise(int32_t value, int32_t multiplier, int32_t shift);
void mv_conv_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output);
void mv_pointwise_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output);
void mv_depthwise_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output);
void mv_linear_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output);
/* The output may be one of the inputs. */
void mv_add_s8(const mv_add_t *add, const int8_t *a, const int8_t *b, int8_t *output);
/* Mean over rows and columns. */
void mv_pool_s8(const mv_layer_t *layer, const int8_t *input, int8_t *output);

#endif
