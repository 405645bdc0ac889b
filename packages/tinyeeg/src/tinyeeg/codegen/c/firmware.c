/* The smallest program around the chain, to weigh it: fill `input` from the converter, read `output`. */
#include "tinyeeg.h"

tinyeeg_t tinyeeg_state;
volatile tinyeeg_sample_t tinyeeg_input[TINYEEG_CHANNELS];
volatile int tinyeeg_output;

int main(void) {
    tinyeeg_init(&tinyeeg_state);
    for (;;) {
        tinyeeg_sample_t sample[TINYEEG_CHANNELS];
        for (unsigned i = 0; i < TINYEEG_CHANNELS; i++) {
            sample[i] = tinyeeg_input[i];
        }
        tinyeeg_output = tinyeeg_push(&tinyeeg_state, sample);
    }
}
