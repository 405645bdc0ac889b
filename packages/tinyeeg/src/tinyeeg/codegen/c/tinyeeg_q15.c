/* The chain in integers: 16-bit samples in, state out. No heap, no floating point, no libm, no I/O. See tinyeeg.h.
 *
 * Shifts of negative numbers are arithmetic on every compiler for the targets; the first line of code below checks it.
 * Q8 decibels, Q10 scaled features, Q30 twiddles and filter gains, Q15 taper.
 */
#include "tinyeeg.h"

#include <string.h>

#include "tinyeeg_tables.h"

typedef char tinyeeg_needs_arithmetic_shift[((-1) >> 1) == -1 ? 1 : -1];

#define HALF (TINYEEG_FFT / 2u)
#define QUARTER (TINYEEG_FFT / 4u)

static int32_t cosine(uint32_t k) { return k <= QUARTER ? te_sine[QUARTER - k] : -te_sine[k - QUARTER]; }
static int32_t sine(uint32_t k) { return k <= QUARTER ? te_sine[k] : te_sine[HALF - k]; }
static int32_t taper(uint32_t n) { return te_taper[n <= TINYEEG_SEGMENT / 2u ? n : TINYEEG_SEGMENT - n]; }

static int32_t saturated(int64_t value, int32_t limit) {
    return value > limit ? limit : value < -(int64_t)limit - 1 ? -limit - 1 : (int32_t)value;
}

static int32_t rounded(int64_t value, uint32_t bits) { return (int32_t)((value + ((int64_t)1 << (bits - 1u))) >> bits); }

/* log2 of a positive number in Q16, by a table of 32 straight pieces. */
static int32_t log2_q16(uint64_t value) {
    int32_t exponent = 63;
    for (uint32_t shift = 32; shift; shift >>= 1) {
        if (!(value >> (64u - shift))) {
            value <<= shift;
            exponent -= (int32_t)shift;
        }
    }
    const uint32_t index = (uint32_t)(value >> 58) & 31u, part = (uint32_t)(value >> 42) & 0xFFFFu;
    const uint32_t low = te_log2[index], high = te_log2[index + 1u];
    return (exponent << 16) + (int32_t)(low + (((high - low) * part) >> 16));
}

/* In-place radix-2 transform of HALF complex numbers; every stage halves, so the result is divided by HALF. */
static void transform(int32_t *z) {
    for (uint32_t i = 1, j = 0; i < HALF; i++) {
        uint32_t bit = HALF >> 1;
        for (; j & bit; bit >>= 1) {
            j ^= bit;
        }
        j ^= bit;
        if (i < j) {
            const int32_t re = z[2 * i], im = z[2 * i + 1];
            z[2 * i] = z[2 * j];
            z[2 * i + 1] = z[2 * j + 1];
            z[2 * j] = re;
            z[2 * j + 1] = im;
        }
    }
    for (uint32_t size = 2; size <= HALF; size <<= 1) {
        const uint32_t half = size >> 1, step = TINYEEG_FFT / size;
        for (uint32_t k = 0; k < half; k++) {
            const int64_t c = cosine(k * step), s = sine(k * step);
            for (uint32_t i = k; i < HALF; i += size) {
                int32_t *a = z + 2 * i, *b = z + 2 * (i + half);
                const int32_t re = rounded(b[0] * c + b[1] * s, 30), im = rounded(b[1] * c - b[0] * s, 30);
                b[0] = (a[0] - re + 1) >> 1;
                b[1] = (a[1] - im + 1) >> 1;
                a[0] = (a[0] + re + 1) >> 1;
                a[1] = (a[1] + im + 1) >> 1;
            }
        }
    }
}

static uint64_t bin_power(const int32_t *z, uint32_t k) {
    const int32_t *p = z + 2 * k, *q = z + 2 * (HALF - k);
    const int64_t er = (int64_t)p[0] + q[0], ei = (int64_t)p[1] - q[1], dr = (int64_t)p[0] - q[0], di = (int64_t)p[1] + q[1];
    const int64_t c = cosine(k), s = sine(k);
    const int64_t re = (er + ((c * di - s * dr + (1 << 29)) >> 30)) >> 1;
    const int64_t im = (ei - ((c * dr + s * di + (1 << 29)) >> 30)) >> 1;
    return (uint64_t)(re * re) + (uint64_t)(im * im);
}

static void segment_power(tinyeeg_t *state, uint32_t *power) {
    for (uint32_t channel = 0; channel < TINYEEG_CHANNELS; channel++) {
        int32_t *work = state->work;
        for (uint32_t n = 0; n < TINYEEG_FFT; n++) {
            int64_t sum = 0;
            for (uint32_t from = n; from < TINYEEG_SEGMENT; from += TINYEEG_FFT) {
                uint32_t at = state->head + from;
                at = at >= TINYEEG_SEGMENT ? at - TINYEEG_SEGMENT : at;
                sum += (int32_t)state->ring[channel][at] * taper(from);
            }
            work[n] = rounded(sum, TINYEEG_WORK_SHIFT);
        }
        transform(work);
        for (uint32_t group = 0; group < TINYEEG_GROUPS; group++) {
            uint64_t sum = 0;
            for (uint32_t k = te_first[group]; k <= te_last[group]; k++) {
                sum += bin_power(work, k);
            }
            sum >>= TINYEEG_POWER_SHIFT;
            power[channel * TINYEEG_GROUPS + group] = sum > 0xFFFFFFFFu ? 0xFFFFFFFFu : (uint32_t)sum;
        }
    }
}

static int32_t filtered(tinyeeg_t *state, uint32_t channel, int32_t x) {
#if TINYEEG_SECTIONS > 0
    x *= 1 << TINYEEG_FILTER_BITS;
    for (uint32_t i = 0; i < TINYEEG_SECTIONS; i++) {
        const int32_t *c = te_section[i];
        int32_t *s = state->section[channel][i];
        const int64_t v3 = (int64_t)x - s[1];
        const int64_t v1 = (c[0] * (int64_t)s[0] + c[1] * v3 + (1 << 29)) >> 30;
        const int64_t v2 = s[1] + ((c[1] * (int64_t)s[0] + c[2] * v3 + (1 << 29)) >> 30);
        s[0] = saturated(2 * v1 - s[0], INT32_MAX);
        s[1] = saturated(2 * v2 - s[1], INT32_MAX);
        x = saturated((c[3] * (int64_t)x + c[4] * v1 + c[5] * v2 + (1 << 28)) >> 29, INT32_MAX);
    }
    return saturated(rounded(x, TINYEEG_FILTER_BITS - TINYEEG_RING_BITS), 32767);
#else
    (void)state;
    (void)channel;
    return x;
#endif
}

static int classify(tinyeeg_t *state) {
    int32_t z[TINYEEG_FEATURES];
    int64_t scores[TINYEEG_CLASSES];
    for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
        const int64_t value = ((int64_t)(state->features[i] - TINYEEG_CENTER(state, i)) * te_inverse[i]) >> 14;
        z[i] = value > te_clip ? te_clip : value < -te_clip ? -te_clip : (int32_t)value;
    }
#if defined(TINYEEG_LINEAR)
    for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
        scores[k] = te_bias[k];
        for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
            scores[k] += (int32_t)te_weights[k][i] * z[i];
        }
    }
#elif defined(TINYEEG_MLP)
    int32_t hidden[TINYEEG_HIDDEN];
    for (uint32_t h = 0; h < TINYEEG_HIDDEN; h++) {
        int64_t sum = te_b1[h];
        for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
            sum += (int32_t)te_w1[h][i] * z[i];
        }
        sum >>= TINYEEG_W1_BITS;
        hidden[h] = sum > 0 ? saturated(sum, INT32_MAX) : 0;
    }
    for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
        scores[k] = te_b2[k];
        for (uint32_t h = 0; h < TINYEEG_HIDDEN; h++) {
            scores[k] += (int64_t)te_w2[k][h] * hidden[h];
        }
    }
#else
    for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
        scores[k] = te_bias[k];
    }
    for (uint32_t tree = 0; tree < TINYEEG_TREES; tree++) {
        uint32_t node = te_root[tree];
        while (te_feature[node] >= 0) {
            node = z[te_feature[node]] <= te_threshold[node] ? te_left[node] : te_right[node];
        }
        for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
            scores[k] += te_values[te_left[node]][k];
        }
    }
#endif
    int best = 0;
    for (int i = 1; i < (int)TINYEEG_CLASSES; i++) {
        if (scores[i] > scores[best]) {
            best = i;
        }
    }
    return best;
}

void tinyeeg_reset(tinyeeg_t *state) {
    state->filled = 0;
    state->head = 0;
    state->frames = 0;
    state->due = TINYEEG_SEGMENT;
#if TINYEEG_SECTIONS > 0
    memset(state->section, 0, sizeof state->section);
#endif
}

void tinyeeg_init(tinyeeg_t *state) {
    memset(state, 0, sizeof *state);
#if TINYEEG_PERSON
    memcpy(state->center, te_center, sizeof state->center);
#endif
    tinyeeg_reset(state);
}

int tinyeeg_push(tinyeeg_t *state, const tinyeeg_sample_t sample[TINYEEG_CHANNELS]) {
    for (uint32_t channel = 0; channel < TINYEEG_CHANNELS; channel++) {
        if (!state->filled) {
            state->offset[channel] = sample[channel];
        }
        const int32_t relative = saturated((int32_t)sample[channel] - state->offset[channel], 32767);
        state->ring[channel][state->head] = (tinyeeg_stored_t)filtered(state, channel, relative);
    }
    state->filled = 1;
    state->head = state->head + 1u == TINYEEG_SEGMENT ? 0u : state->head + 1u;
    if (--state->due) {
        return -1;
    }
    state->due = TINYEEG_HOP;

#if TINYEEG_SMOOTH == 1
    segment_power(state, state->recent[state->frames % TINYEEG_FRAMES]);
    state->frames++;
    if (state->frames == 2u * TINYEEG_FRAMES) {
        state->frames = TINYEEG_FRAMES; /* keeps the position, never overflows */
    }
    const uint32_t count = state->frames < TINYEEG_FRAMES ? state->frames : TINYEEG_FRAMES;
#else
    uint32_t newest[TINYEEG_FEATURES];
    segment_power(state, newest);
#endif
    for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
#if TINYEEG_SMOOTH == 1
        uint64_t power = 0;
        for (uint32_t frame = 0; frame < count; frame++) {
            power += state->recent[frame][i];
        }
        const int32_t offset = te_offset - te_count_db[count];
#elif TINYEEG_SMOOTH == 2
        /* Mean in Q15, so that a small weight of a small power is not lost. */
        const uint64_t wide = (uint64_t)newest[i] << 15;
        if (!state->frames) {
            state->mean[i] = wide;
        } else if (wide >= state->mean[i]) {
            state->mean[i] += ((wide - state->mean[i]) >> 15) * te_alpha;
        } else {
            state->mean[i] -= ((state->mean[i] - wide) >> 15) * te_alpha;
        }
        const uint64_t power = state->mean[i];
        const int32_t offset = te_offset;
#else
        const uint64_t power = newest[i];
        const int32_t offset = te_offset;
#endif
        state->features[i] = rounded((int64_t)log2_q16(power ? power : 1u) * te_db_per_log2, 30) + offset;
    }
#if TINYEEG_SMOOTH == 2
    state->frames = 1;
#endif
#if TINYEEG_PERSON
    if (state->calibrating) {
        for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
            state->sum[i] += state->features[i];
        }
        state->calibrated++;
    }
#endif
    return classify(state);
}

#if TINYEEG_PERSON
void tinyeeg_calibrate_begin(tinyeeg_t *state) {
    memset(state->sum, 0, sizeof state->sum);
    state->calibrated = 0;
    state->calibrating = 1;
}

uint32_t tinyeeg_calibrate_end(tinyeeg_t *state) {
    state->calibrating = 0;
    if (state->calibrated) {
        for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
            state->center[i] = state->sum[i] / (int32_t)state->calibrated;
        }
    }
    return state->calibrated;
}
#endif
