/* Runs the chain on a file of raw samples (channel after channel, sample after sample) and prints what it decided.
 *
 * Without calibration it prints one state per line; features with -DPRINT_FEATURES. On a PC and, by semihosting, on an
 * emulated microcontroller, where -DCOUNT prints instructions per decision (SysTick under qemu -icount shift=0).
 */
#include <stdio.h>
#include <string.h>

#include "tinyeeg.h"

static tinyeeg_t state;

#if defined(COUNT)
#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_VALUE (*(volatile uint32_t *)0xE000E018u)
#endif

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "samples.bin";
    FILE *file = fopen(name, "rb");
    if (!file) {
        fprintf(stderr, "cannot read %s\n", name);
        return 2;
    }
    tinyeeg_sample_t sample[TINYEEG_CHANNELS];
    tinyeeg_init(&state);
#if defined(COUNT)
    uint32_t total = 0, worst = 0, decisions = 0, plain = 0, samples = 0;
    SYSTICK_RELOAD = 0xFFFFFFu;
    SYSTICK_VALUE = 0;
    SYSTICK_CONTROL = 5;
#endif
    while (fread(sample, sizeof sample, 1, file) == 1) {
#if defined(COUNT)
        const uint32_t before = SYSTICK_VALUE;
#endif
        const int found = tinyeeg_push(&state, sample);
#if defined(COUNT)
        const uint32_t ticks = (before - SYSTICK_VALUE) & 0xFFFFFFu;
        samples++;
        if (found >= 0) {
            decisions++;
            total += ticks;
            worst = ticks > worst ? ticks : worst;
        } else {
            plain += ticks;
        }
#endif
        if (found >= 0) {
            printf("%d", found);
#if defined(PRINT_FEATURES)
            for (unsigned i = 0; i < TINYEEG_FEATURES; i++) {
#if TINYEEG_FIXED
                printf(" %ld", (long)state.features[i]);
#else
                uint32_t bits;
                memcpy(&bits, &state.features[i], sizeof bits);
                printf(" %08lx", (unsigned long)bits);
#endif
            }
#endif
            printf("\n");
        }
    }
#if defined(COUNT)
    /* One tick of the 25 MHz timer is 40 instructions of one nanosecond each. */
    printf("# ticks decision_mean %lu decision_worst %lu sample_mean_x100 %lu\n", (unsigned long)(decisions ? total / decisions : 0),
           (unsigned long)worst, (unsigned long)(samples > decisions ? 100u * plain / (samples - decisions) : 0));
#endif
    fclose(file);
    return 0;
}
