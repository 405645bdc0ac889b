/* Reads recording.bin, calibrates on its labelled stretches, then says the state once a second.
 *
 * recording.bin: stretches, each an int32 state (-1: to be told), a uint32 number of samples, and that many samples of each channel in
 * microvolts, float. Lines out: `SECOND STATE` for people; lines that begin with # hold numbers for the computer.
 */
#include <string.h>

#include "attention.h"
#include "io.h"

static tinyeeg_t chain;
static attention_t attention;
static char line[64 + 9 * (TINYEEG_FEATURES > TINYEEG_CLASSES ? TINYEEG_FEATURES : TINYEEG_CLASSES)];
static char *end = line;

static void text(const char *word) {
    while (*word) {
        *end++ = *word++;
    }
}

static void number(uint32_t value) {
    char digits[10];
    uint32_t count = 0;
    do {
        digits[count++] = (char)('0' + value % 10u);
        value /= 10u;
    } while (value);
    while (count) {
        *end++ = digits[--count];
    }
}

static void bits(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    for (uint32_t shift = 32; shift;) {
        shift -= 4u;
        *end++ = "0123456789abcdef"[(word >> shift) & 15u];
    }
}

static void flush(void) {
    *end++ = '\n';
    *end = '\0';
    io_write(line);
    end = line;
}

static void vector(const char *name, const float *values, uint32_t count) {
    text(name);
    for (uint32_t i = 0; i < count; i++) {
        *end++ = ' ';
        bits(values[i]);
    }
    flush();
}

static void named(const char *name, uint32_t value) {
    text(name);
    number(value);
    flush();
}

/* Since `before`; one tick of the 25 MHz timer is 40 instructions under qemu -icount shift=0. */
static uint32_t since(uint32_t before) { return (io_ticks() - before) & 0xFFFFFFu; }

int main(void) {
    static float sample[TINYEEG_CHANNELS];
    int32_t state;
    uint32_t samples, seen = 0, decisions = 0, total = 0, worst = 0, plain = 0, plains = 0, learnt = 0;
    int solved = 0;
    if (!io_open("recording.bin")) {
        io_write("# cannot open recording.bin\n");
        io_exit(2);
    }
    tinyeeg_init(&chain);
    attention_init(&attention);
    while (io_read(&state, 4) == 4 && io_read(&samples, 4) == 4) {
        if (state >= (int32_t)TINYEEG_CLASSES || state < -1) {
            io_write("# a state that the model does not know\n");
            io_exit(2);
        }
        if (state < 0 && learnt && !solved) {
            const uint32_t before = io_ticks();
            attention_solve(&attention);
            named("# solve_ticks ", since(before));
            solved = 1;
        }
        tinyeeg_reset(&chain);
        uint32_t until_second = AT_RATE;
        int known = -1;
        for (uint32_t n = 0; n < samples; n++) {
            if (io_read(sample, sizeof sample) != sizeof sample) {
                io_write("# recording.bin ends in the middle of a sample\n");
                io_exit(2);
            }
            uint32_t before = io_ticks();
            const int due = tinyeeg_push(&chain, sample);
            if (due >= 0 && state >= 0) {
                attention_learn(&attention, chain.features, (uint32_t)state);
                learnt++;
            } else if (due >= 0) {
                known = attention_decide(&attention, chain.features);
            }
            const uint32_t ticks = since(before);
            if (due < 0) {
                plain += ticks;
                plains++;
            } else {
#if defined(TRACE)
                vector("# features", chain.features, TINYEEG_FEATURES);
#endif
                decisions++;
                total += ticks;
                worst = ticks > worst ? ticks : worst;
                if (state < 0) {
                    text("# decision ");
                    number((uint32_t)known);
                    flush();
                }
            }
            if (!--until_second) {
                until_second = AT_RATE;
                seen++;
                number(seen);
                *end++ = ' ';
                text(state >= 0 ? "calibrating " : known >= 0 ? attention_names[known] : "settling");
                text(state >= 0 ? attention_names[state] : "");
                flush();
            }
        }
    }
    for (uint32_t k = 0; k < TINYEEG_CLASSES; k++) {
        vector("# weights", attention.weights[k], TINYEEG_FEATURES);
    }
    vector("# bias", attention.bias, TINYEEG_CLASSES);
    vector("# center", attention.center, TINYEEG_FEATURES);
    named("# labelled ", learnt);
    named("# decisions ", decisions);
    named("# decision_ticks ", decisions ? total / decisions : 0);
    named("# worst_ticks ", worst);
    named("# sample_ticks_x100 ", plains ? (uint32_t)(100u * (uint64_t)plain / plains) : 0);
    named("# stack ", io_stack());
    io_exit(0);
}
