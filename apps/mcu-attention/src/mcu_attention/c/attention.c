/* See attention.h. Single precision throughout; the order of operations is that of calibration.py, to the bit. */
#include "attention.h"

#include <string.h>

#include "attention_tables.h"

const char *const attention_names[TINYEEG_CLASSES] = AT_NAMES;

void attention_init(attention_t *a) {
    memset(a, 0, sizeof *a);
    attention_solve(a);
}

void attention_learn(attention_t *a, const float features[TINYEEG_FEATURES], uint32_t state) {
    for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
        a->sum[state][i] += features[i];
    }
    a->count[state]++;
}

/* The wearer's centre is the mean of the states' means, so that it does not depend on how long each was shown; without labels of
 * every state it stays the average person's, and so do the means. */
void attention_solve(attention_t *a) {
    uint32_t complete = 1;
    for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
        complete = complete && a->count[k];
    }
    for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
        float total = 0.0f;
        for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
            a->mean[k][i] = complete ? a->sum[k][i] / (float)a->count[k] : 0.0f;
            total += a->mean[k][i];
        }
        a->center[i] = complete ? total / (float)TINYEEG_CLASSES : at_center[i];
        for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
            const float count = complete ? (float)a->count[k] : 0.0f;
            const float scaled = (a->mean[k][i] - a->center[i]) * at_inverse[i];
            a->mean[k][i] = (at_prior * at_means[k][i] + count * scaled) / (at_prior + count);
        }
    }
    for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
        float norm = 0.0f;
        for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
            float sum = 0.0f;
            for (uint32_t j = 0; j < TINYEEG_FEATURES; j++) {
                sum += at_precision[i][j] * a->mean[k][j];
            }
            a->weights[k][i] = sum;
            norm += a->mean[k][i] * sum;
        }
        a->bias[k] = -0.5f * norm;
    }
}

int attention_decide(attention_t *a, const float features[TINYEEG_FEATURES]) {
    int best = 0;
    for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
        a->scores[k] = a->bias[k];
    }
    for (uint32_t i = 0; i < TINYEEG_FEATURES; i++) {
        float z = (features[i] - a->center[i]) * at_inverse[i];
        z = z > at_clip ? at_clip : z < -at_clip ? -at_clip : z;
        for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
            a->scores[k] += a->weights[k][i] * z;
        }
    }
    for (uint32_t k = 1; k < TINYEEG_CLASSES; k++) {
        if (a->scores[k] > a->scores[best]) {
            best = (int)k;
        }
    }
    return best;
}
