/* The chain in single precision: raw samples in, state out. No heap, no libm, no I/O. See tinyeeg.h. */
#include "tinyeeg.h"

#include <string.h>

#include "tinyeeg_tables.h"

#define HALF (TINYEEG_FFT / 2u)
#define QUARTER (TINYEEG_FFT / 4u)

/* cos and sin of 2 pi k / FFT for 0 <= k <= FFT / 2, from a quarter wave. */
static float cosine(uint32_t k) { return k <= QUARTER ? te_sine[QUARTER - k] : -te_sine[k - QUARTER]; }
static float sine(uint32_t k) { return k <= QUARTER ? te_sine[k] : te_sine[HALF - k]; }

static float taper(uint32_t n) { return te_taper[n <= TINYEEG_SEGMENT / 2u ? n : TINYEEG_SEGMENT - n]; }

/* log2 of a positive normal number: exponent bits and the series of atanh on the mantissa, error below 1e-7. */
static float log2_positive(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t exponent = (int32_t)(bits >> 23) - 127;
    bits = (bits & 0x007FFFFFu) | 0x3F800000u;
    float mantissa;
    memcpy(&mantissa, &bits, sizeof mantissa);
    if (mantissa > 1.41421356f) {
        mantissa *= 0.5f;
        exponent++;
    }
    const float t = (mantissa - 1.0f) / (mantissa + 1.0f);
    const float t2 = t * t;
    const float series = t * (1.0f + t2 * (0.33333333f + t2 * (0.2f + t2 * (0.14285714f + t2 * 0.11111111f))));
    return (float)exponent + 2.88539008f * series;
}

/* In-place radix-2 transform of HALF complex numbers (real and imaginary parts alternate). */
static void transform(float *z) {
    for (uint32_t i = 1, j = 0; i < HALF; i++) {
        uint32_t bit = HALF >> 1;
        for (; j & bit; bit >>= 1) {
            j ^= bit;
        }
        j ^= bit;
        if (i < j) {
            const float re = z[2 * i], im = z[2 * i + 1];
            z[2 * i] = z[2 * j];
            z[2 * i + 1] = z[2 * j + 1];
            z[2 * j] = re;
            z[2 * j + 1] = im;
        }
    }
    for (uint32_t size = 2; size <= HALF; size <<= 1) {
        const uint32_t half = size >> 1, step = TINYEEG_FFT / size;
        for (uint32_t k = 0; k < half; k++) {
            const float c = cosine(k * step), s = sine(k * step);
            for (uint32_t i = k; i < HALF; i += size) {
                float *a = z + 2 * i, *b = z + 2 * (i + half);
                const float re = b[0] * c + b[1] * s, im = b[1] * c - b[0] * s;
                b[0] = a[0] - re;
                b[1] = a[1] - im;
                a[0] += re;
                a[1] += im;
            }
        }
    }
}

/* Squared magnitude of bin k of the real transform, 0 < k < HALF. */
static float bin_power(const float *z, uint32_t k) {
    const float *p = z + 2 * k, *q = z + 2 * (HALF - k);
    const float er = p[0] + q[0], ei = p[1] - q[1], dr = p[0] - q[0], di = p[1] + q[1];
    const float c = cosine(k), s = sine(k);
    const float re = er + c * di - s * dr, im = ei - c * dr - s * di;
    return 0.25f * (re * re + im * im);
}

static void segment_power(tinyeeg_t *state, float *power) {
    for (uint32_t channel = 0; channel < TINYEEG_CHANNELS; channel++) {
        float *work = state->work;
        memset(work, 0, sizeof state->work);
        uint32_t from = state->head;
        for (uint32_t n = 0; n < TINYEEG_SEGMENT; n++) {
            work[n & (TINYEEG_FFT - 1u)] += taper(n) * (float)state->ring[channel][from];
            from = from + 1u == TINYEEG_SEGMENT ? 0u : from + 1u;
        }
        transform(work);
        for (uint32_t group = 0; group < TINYEEG_GROUPS; group++) {
            float sum = 0.0f;
            for (uint32_t k = te_first[group]; k <= te_last[group]; k++) {
                sum += bin_power(work, k);
            }
            power[channel * TINYEEG_GROUPS + group] = sum * te_scale;
        }
    }
}

static float filtered(tinyeeg_t *state, uint32_t channel, float x) {
#if TINYEEG_SECTIONS > 0
    for (uint32_t i = 0; i < TINYEEG_SECTIONS; i++) {
        const float *c = te_section[i];
        float *s = state->section[channel][i];
        const float v3 = x - s[1];
        const float v1 = c[0] * s[0] + c[1] * v3;
        const float v2 = s[1] + c[1] * s[0] + c[2] * v3;
        s[0] = 2.0f * v1 - s[0];
        s[1] = 2.0f * v2 - s[1];
        x = c[3] * x + c[4] * v1 + c[5] * v2;
    }
#else
    (void)state;
    (void)channel;
#endif
    return x;
}

static int argmax(const float *scores) {
    int best = 0;
    for (int i = 1; i < (int)TINYEEG_CLASSES; i++) {
        if (scores[i] > scores[best]) {
            best = i;
        }
    }
    return best;
}

static int classify(tinyeeg_t *state) {
    float z[TINYEEG_FEATURES], scores[TINYEEG_CLASSES];
    for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
        const float value = (state->features[i] - TINYEEG_CENTER(state, i)) * te_inverse[i];
        z[i] = value > te_clip ? te_clip : value < -te_clip ? -te_clip : value;
    }
#if defined(TINYEEG_LINEAR)
    for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
        scores[k] = te_bias[k];
        for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
            scores[k] += te_weights[k][i] * z[i];
        }
    }
#elif defined(TINYEEG_MLP)
    float hidden[TINYEEG_HIDDEN];
    for (uint32_t h = 0; h < TINYEEG_HIDDEN; h++) {
        float sum = te_b1[h];
        for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
            sum += te_w1[h][i] * z[i];
        }
        hidden[h] = sum > 0.0f ? sum : 0.0f;
    }
    for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
        scores[k] = te_b2[k];
        for (uint32_t h = 0; h < TINYEEG_HIDDEN; h++) {
            scores[k] += te_w2[k][h] * hidden[h];
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
    return argmax(scores);
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
#if TINYEEG_QUANTISE
        float steps = sample[channel] * te_inverse_lsb;
        steps = steps < -32768.0f ? -32768.0f : steps > 32767.0f ? 32767.0f : steps;
        const int32_t whole = (int32_t)(steps < 0.0f ? steps - 0.5f : steps + 0.5f);
        if (!state->filled) {
            state->offset[channel] = whole;
        }
        int32_t relative = whole - state->offset[channel];
        relative = relative > 32767 ? 32767 : relative < -32768 ? -32768 : relative;
        state->ring[channel][state->head] = (tinyeeg_stored_t)relative;
#else
        if (!state->filled) {
            state->offset[channel] = sample[channel];
        }
        state->ring[channel][state->head] = filtered(state, channel, sample[channel] - state->offset[channel]);
#endif
    }
#if TINYEEG_QUANTISE
    (void)filtered;
#endif
    state->filled = 1;
    state->head = state->head + 1u == TINYEEG_SEGMENT ? 0u : state->head + 1u;
    if (--state->due) {
        return -1;
    }
    state->due = TINYEEG_HOP;

#if TINYEEG_SMOOTH == 1
    float *newest = state->recent[state->frames % TINYEEG_FRAMES];
    segment_power(state, newest);
    state->frames++;
    if (state->frames == 2u * TINYEEG_FRAMES) {
        state->frames = TINYEEG_FRAMES; /* keeps the position, never overflows */
    }
    const uint32_t count = state->frames < TINYEEG_FRAMES ? state->frames : TINYEEG_FRAMES;
#elif TINYEEG_SMOOTH == 2
    float newest[TINYEEG_FEATURES];
    segment_power(state, newest);
#else
    float newest[TINYEEG_FEATURES];
    segment_power(state, newest);
#endif
    for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
#if TINYEEG_SMOOTH == 1
        float power = 0.0f;
        for (uint32_t frame = 0; frame < count; frame++) {
            power += state->recent[frame][i];
        }
        power /= (float)count;
#elif TINYEEG_SMOOTH == 2
        state->mean[i] = state->frames ? state->mean[i] + te_alpha * (newest[i] - state->mean[i]) : newest[i];
        const float power = state->mean[i];
#else
        const float power = newest[i];
#endif
        state->features[i] = 3.01029996f * log2_positive(power > 1e-6f ? power : 1e-6f);
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
            state->center[i] = state->sum[i] / (float)state->calibrated;
        }
    }
    return state->calibrated;
}
#endif
