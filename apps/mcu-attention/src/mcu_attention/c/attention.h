/* The last layer, calibrated on the device: class means move towards those of the wearer, the covariance stays as trained.
 *
 * All memory is in one static object; nothing is allocated. Call order: init; then for each labelled decision `learn`; `solve`;
 * then `decide` for each decision. `solve` may be called again after more labels.
 */
#ifndef ATTENTION_H
#define ATTENTION_H

#include "attention_config.h"
#include "tinyeeg.h"

typedef struct {
    float sum[TINYEEG_CLASSES][TINYEEG_FEATURES]; /* of the labelled feature vectors of each state, decibels */
    uint32_t count[TINYEEG_CLASSES];
    float center[TINYEEG_FEATURES];
    float mean[TINYEEG_CLASSES][TINYEEG_FEATURES]; /* scaled */
    float weights[TINYEEG_CLASSES][TINYEEG_FEATURES];
    float bias[TINYEEG_CLASSES];
    float scores[TINYEEG_CLASSES]; /* of the last decision */
} attention_t;

extern const char *const attention_names[TINYEEG_CLASSES];

void attention_init(attention_t *a);
void attention_learn(attention_t *a, const float features[TINYEEG_FEATURES], uint32_t state);
void attention_solve(attention_t *a);
int attention_decide(attention_t *a, const float features[TINYEEG_FEATURES]);

#endif
