/* The streaming CAN detector, the same arithmetic as edge_ids/can/engine.py, step by step. */
#include "edge_ids.h"

#include <string.h>

enum { TIMING, FORMAT, BITS, JUMP, COUNTER, FROZEN, ENSEMBLE, SILENCE, UNKNOWN, LOAD, CHECKSUM, CROSS, REPEAT, TINY };

const char *const edge_ids_detectors[EDGE_IDS_COLUMNS] = {"timing", "format", "payload-bits", "payload-jump", "counter",
                                                          "frozen", "ensemble", "silence", "unknown-id", "bus-load",
                                                          "checksum", "cross", "repeat", "tiny"};

#define ONE_BIT 16
#define ENSEMBLE_CAP (24 * ONE_BIT)
#define TINY_CAP (12 * ONE_BIT)
#define ALIEN_BITS 16
#define SHORT_LAG 16
#define ALIEN_BYTE 8
#define CARRY_STEP 127
#define BUCKET_US 100000
#define COOL_DOWN_US 2000000
#define HOLD_US 2000000
#define FAST_US 15000
#define MODE_US 4000
#define TOGETHER_US 1000000
#define COMPANIONS 2
#define LATE_PERIODS 4
#define NEW_CAPTURE_US 60000000
#define FORGET_US 60000000
#define NEVER_RESTS 10
#define CROSS_CHECKS 3
#define FEATURES 18

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t abs64(int64_t a) { return a < 0 ? -a : a; }

/* Right shift that rounds down, whatever the compiler does with negative numbers. */
static int64_t shift_down(int64_t a, int bits) { return a >= 0 ? a >> bits : ~(~a >> bits); }

static int popcount(uint64_t x) {
    int n = 0;
    for (; x != 0; x &= x - 1) n++;
    return n;
}

static int interval_bin(int64_t us) {
    int octave = 0;
    if (us < 8) return us > 0 ? (int)us : 0;
    while (us >= 16) {
        us >>= 1;
        octave++;
    }
    return (int)min64(8 * octave + us, 255);
}

static int slot_of(int64_t key) {
    const int64_t mask = EDGE_IDS_H - 1;
    int64_t i = (key ^ (key >> 7) ^ (key >> 15)) & mask;
    while (model_hash_key[i] >= 0) {
        if (model_hash_key[i] == key) return (int)model_hash_slot[i];
        i = (i + 1) & mask;
    }
    return -1;
}

static int byte_of(uint64_t payload, int shift) { return (int)((payload >> shift) & 0xFF); }

static int crc_byte(int polynomial, int value) {
    for (int i = 0; i < 8; i++) value = (value << 1) ^ ((value & 0x80) ? polynomial : 0);
    return value & 0xFF;
}

static int checksum(int kind, int position, int length, uint64_t payload) {
    static const int polynomials[5] = {0x07, 0x1D, 0x2F, 0x31, 0x9B};
    int total = 0;
    for (int b = 0; b < length; b++) {
        const int byte = byte_of(payload, 56 - 8 * b);
        if (kind == 1) total ^= byte;
        else if (kind == 2) total += byte;
        else if (kind == 3) total += b == position ? 256 - byte : byte;
        else if (kind == 4) total += (byte >> 4) + (byte & 0xF);
        else if (b != position) total = crc_byte(polynomials[kind - 5], total ^ byte);
    }
    if (kind == 4) return total & 0xF;
    if (kind >= 5) total ^= byte_of(payload, 56 - 8 * position);
    return total & 0xFF;
}

static int64_t field_of(uint64_t payload, int64_t shift, int64_t kind) {
    const uint64_t word = (payload >> shift) & 0xFFFF;
    if (kind == 1) return (int64_t)(word & 0xFF);
    return kind == 2 ? (int64_t)word : (int64_t)((word >> 8) | (word & 0xFF) << 8);
}

static uint64_t mix(uint64_t payload, uint64_t previous) {
    const uint64_t words[4] = {payload & 0xFFFFFFFFu, payload >> 32, previous & 0xFFFFFFFFu, previous >> 32};
    uint64_t h = 0;
    for (int i = 0; i < 4; i++) {
        h = ((h ^ words[i]) * 0x9E3779B1u) & 0xFFFFFFFFu;
        h ^= h >> 15;
    }
    return h & 0x7FFFFFFF;
}

static int64_t tiny_logit(const int64_t *x) {
    int64_t total = model_tiny_meta[2];
    for (int h = 0; h < EDGE_IDS_M; h++) {
        int64_t value = model_tiny_bias[h];
        for (int f = 0; f < FEATURES; f++) value += (int64_t)model_tiny[h][f] * x[f];
        value = min64(max64(value, 0) >> model_tiny_meta[1], 127);
        total += model_tiny_out[h] * value;
    }
    return shift_down(total * model_tiny_meta[3], 16);
}

static int alert(edge_ids_alert *out, int n, int64_t frame, int64_t time, int64_t key, int64_t detector, int64_t level,
                 int64_t threshold) {
    out[n].frame = frame;
    out[n].time = time;
    out[n].key = key;
    out[n].detector = detector;
    out[n].level = level;
    out[n].threshold = threshold;
    return n + 1;
}

void edge_ids_init(edge_ids_state *s) {
    memset(s, 0, sizeof *s);
    for (int k = 0; k < EDGE_IDS_K; k++) {
        s->last[k] = s->anchor[k] = s->novel_time[k] = s->silent_alerted[k] = EDGE_IDS_NEVER;
        for (int d = 0; d < EDGE_IDS_COLUMNS; d++) s->alerted[k][d] = s->evidence[k][d] = EDGE_IDS_NEVER;
    }
    for (int u = 0; u < EDGE_IDS_UNKNOWN_SLOTS; u++) s->unknown[u] = -1;
    s->stall = s->time = s->bucket = s->unknown_time = s->unknown_alerted = s->load_alerted = EDGE_IDS_NEVER;
}

static int silence(edge_ids_state *s, int k, int64_t now, edge_ids_alert *out, int n) {
    const int64_t limit = model_silence[k];
    if (limit > 0 && s->last[k] != EDGE_IDS_NEVER && s->silent[k] == 0 && now - s->last[k] > limit) {
        int company = 0;
        s->silent[k] = 1;
        for (int j = 0; j < EDGE_IDS_K; j++)
            if (model_silence[j] > 0 && s->last[j] != EDGE_IDS_NEVER && abs64(s->last[j] - s->last[k]) <= TOGETHER_US)
                company += now - s->last[j] > LATE_PERIODS * (int64_t)model_median[j];
        if (now - s->silent_alerted[k] >= COOL_DOWN_US) {
            const int asleep = company > COMPANIONS;
            s->silent_alerted[k] = now;
            if (asleep) s->anomalies++;
            else s->alerts++;
            n = alert(out, n, s->frames, now, model_keys[k], asleep ? SILENCE + EDGE_IDS_HINT : SILENCE, now - s->last[k], limit);
        }
    }
    return n;
}

int edge_ids_tick(edge_ids_state *s, int64_t now, edge_ids_alert *out) {
    int n = 0;
    for (int k = 0; k < EDGE_IDS_K; k++) n = silence(s, k, now, out, n);
    return n;
}

static int clock_and_load(edge_ids_state *s, int64_t frame, int64_t time, int64_t key, int length, edge_ids_alert *out, int n,
                          int64_t *raised) {
    if (s->time != EDGE_IDS_NEVER) {
        const int64_t passed = time - s->time;
        if (passed < 0 || passed > NEW_CAPTURE_US) {
            for (int k = 0; k < EDGE_IDS_K; k++) {
                s->last[k] = s->anchor[k] = EDGE_IDS_NEVER;
                s->backlog[k] = s->has_payload[k] = s->run[k] = s->matches[k] = 0;
            }
            s->bucket = EDGE_IDS_NEVER;
            s->unknown_time = time;
            s->gaps++;
        } else if (passed > model_limits[4]) {
            s->gaps++;
            s->stall = time;
            s->bucket = EDGE_IDS_NEVER;
            for (int k = 0; k < EDGE_IDS_K; k++) {
                if (s->last[k] == EDGE_IDS_NEVER) continue;
                s->last[k] += passed;
                s->backlog[k] = max64(s->backlog[k] - passed, -8 * (int64_t)model_pace[k]);
            }
            if (passed > model_limits[5]) {
                s->anomalies++;
                n = alert(out, n, frame, time, -1, SILENCE + EDGE_IDS_HINT, passed, model_limits[5]);
                *raised |= (int64_t)1 << (SILENCE + EDGE_IDS_HINT);
            }
        }
    }
    s->time = time;
    s->frames = frame + 1;
    if (s->bucket == EDGE_IDS_NEVER) {
        s->bucket = time;
        s->bits = 0;
    } else if (time - s->bucket >= BUCKET_US) {
        if (s->bits > model_limits[2]) s->load_sum = min64(s->load_sum + 10 * ONE_BIT, 2 * (int64_t)model_limits[3]);
        else s->load_sum = max64(s->load_sum - 5 * ONE_BIT, 0);
        if (s->load_sum >= model_limits[3]) {
            if (s->load_active == 0 && time - s->load_alerted >= COOL_DOWN_US) {
                s->load_alerted = time;
                s->alerts++;
                n = alert(out, n, frame, time, -1, LOAD, s->bits, model_limits[2]);
            }
            s->load_active = 1;
        } else if (s->load_sum == 0) {
            s->load_active = 0;
        }
        s->bucket = time;
        s->bits = 0;
    }
    s->bits += ((key & 0x20000000) ? 67 : 47) + 8 * length;
    return n;
}

static int unknown_id(edge_ids_state *s, int64_t frame, int64_t time, int64_t key, edge_ids_alert *out, int n,
                      edge_ids_verdict *verdict) {
    const int64_t threshold = model_limits[1];
    s->unknown_frames++;
    if (s->unknown_time == EDGE_IDS_NEVER) s->unknown_time = time;
    const int64_t leak = max64(time - s->unknown_time, 0) * (2 * ONE_BIT) / 1000000;
    s->unknown_time += leak * 1000000 / (2 * ONE_BIT);
    s->unknown_sum = max64(s->unknown_sum - leak, 0);
    if (s->unknown_sum < threshold / 4) s->unknown_active = 0;
    const int64_t u = (key ^ (key >> 5) ^ (key >> 13)) & (EDGE_IDS_UNKNOWN_SLOTS - 1);
    int64_t evidence = ONE_BIT;
    if (s->unknown[u] != key) {
        s->unknown[u] = key;
        evidence = model_limits[0];
    }
    s->unknown_sum = min64(s->unknown_sum + evidence, 2 * threshold);
    if (s->unknown_sum >= threshold) {
        if (s->unknown_active == 0 && time - s->unknown_alerted >= COOL_DOWN_US) {
            s->unknown_alerted = time;
            s->alerts++;
            n = alert(out, n, frame, time, key, UNKNOWN, s->unknown_sum, threshold);
        }
        s->unknown_active = 1;
        verdict->raised |= 1 << UNKNOWN;
    }
    verdict->ratio = 1000 * s->unknown_sum / threshold;
    return n;
}

static int regular(int64_t interval, int64_t period) { return 3 * interval > 2 * period && 2 * interval < 3 * period; }

static int rhythm(int64_t shortest, int64_t longest, int64_t frames) {
    if (8 * longest <= 9 * shortest) return 1;
    return frames > 1 && 16 * abs64(longest - 2 * shortest) <= 2 * shortest;
}

/* Frames of a second sender since the grid of the period, see engine.uneven. */
static int64_t uneven(edge_ids_state *s, int k, int64_t time, int64_t interval, int changed) {
    const int64_t pace = model_pace[k], slack = model_grid[k], passed = time - s->anchor[k], extras = s->extras[k];
    int64_t found = 0;
    if (s->anchor[k] != EDGE_IDS_NEVER) {
        s->shortest[k] = extras > 0 ? min64(s->shortest[k], interval) : interval;
        s->longest[k] = extras > 0 ? max64(s->longest[k], interval) : interval;
        if (passed < pace - slack) {
            s->extras[k]++;
            s->moved[k] |= changed;
            return found;
        }
        if (s->moved[k] && !changed) found = -1;
        else if (extras > 0 && passed <= pace + slack && !rhythm(s->shortest[k], s->longest[k], extras)) found = extras;
    }
    s->anchor[k] = time;
    s->extras[k] = s->moved[k] = 0;
    return found;
}

/* Evidence of frames in excess, see engine.early. */
static int64_t early(edge_ids_state *s, int k, int64_t time, int changed, int stalled) {
    const int64_t pace = model_pace[k], previous = s->interval[k], interval = max64(time - s->last[k], 0);
    int64_t evidence = 0;
    s->interval[k] = interval;
    if (stalled) {
        s->anchor[k] = EDGE_IDS_NEVER;
        return 0;
    }
    if (regular(interval, pace) || (model_lossy[k] && interval > pace)) s->backlog[k] = shift_down(s->backlog[k] * 7, 3);
    else s->backlog[k] = min64(max64(s->backlog[k] + pace - interval, -8 * pace), 8 * pace);
    const int64_t unlike = abs64(interval - previous);
    int even = model_limits[6] ? pace >= 50000 && 8 * unlike <= interval : pace > FAST_US && 8 * unlike <= 5 * max64(interval, previous);
    even = even && pace == model_median[k] && 3 * interval <= pace && interval >= MODE_US;
    if (s->backlog[k] >= model_backlog[k] && !even) evidence = model_timing_evidence[k][interval_bin(interval)];
    if (model_grid[k] > 0) {
        const int64_t extras = uneven(s, k, time, interval, changed);
        if (extras < 0) {
            static const int raised[3] = {TIMING, ENSEMBLE, TINY};
            for (int i = 0; i < 3; i++) s->sums[k][raised[i]] = max64(s->sums[k][raised[i]] - s->given[k], 0);
            evidence = 0;
        } else if (extras > 0 && model_grid_evidence[k] > 0) {
            evidence = max64(evidence, model_grid_evidence[k] + ONE_BIT * min64(extras, 16) - s->given[k]);
        }
        s->given[k] = s->anchor[k] == time ? 0 : s->given[k] + evidence;
    }
    return evidence;
}

static void timing(edge_ids_state *s, int k, int64_t time, uint64_t payload, int stalled, int64_t *evidence, int *in_time) {
    const int64_t last = s->last[k];
    if (last != EDGE_IDS_NEVER && model_median[k] > 0) {
        *in_time = regular(max64(time - last, 0), model_median[k]);
        const int changed = s->has_payload[k] && ((payload ^ s->payload[k]) & model_signal_mask[k]) != 0;
        evidence[TIMING] = early(s, k, time, changed, stalled);
    }
    s->last[k] = time;
    s->silent[k] = 0;
}

/* Bytes that changed only because a number stepped past a power of two, see engine.carries. */
static uint64_t carries(uint64_t payload, uint64_t previous, int length) {
    const uint64_t present = length >= 8 ? ~(uint64_t)0 : length > 0 ? ~(uint64_t)0 << (64 - 8 * length) : 0;
    uint64_t found = 0;
    if ((payload & present) == present) return found;
    for (int order = 1; order >= -1; order -= 2) {
        for (int b = 0; b < 8; b++) {
            const int low = b - order, lowest = b < low ? b : low;
            if (low < 0 || low > 7 || lowest < 8 - length) continue;
            const int high = byte_of(payload, 8 * b), before = byte_of(previous, 8 * b);
            if (high == before) continue;
            const int span = high >> 4 == before >> 4 ? 0x1000 : 0x10000;
            const int step = ((high - before) * 256 + byte_of(payload, 8 * low) - byte_of(previous, 8 * low)) & (span - 1);
            if (step <= CARRY_STEP || span - step <= CARRY_STEP) found |= (uint64_t)0xFF << (8 * b) | (uint64_t)0xFF << (8 * low);
        }
    }
    return found;
}

static void novelty(edge_ids_state *s, int k, int64_t time, int length, uint64_t payload, int64_t mature, int64_t *evidence,
                    int64_t *drift_bits) {
    const uint64_t present = length >= 8 ? ~(uint64_t)0 : length > 0 ? ~(uint64_t)0 << (64 - 8 * length) : 0;
    const uint64_t unseen = ((payload & ~model_ones[k]) | (~payload & ~model_zeros[k])) & present;
    if (unseen == 0) return;
    if (s->novel_time[k] != EDGE_IDS_NEVER && time - s->novel_time[k] > FORGET_US) s->novel[k] = 0;
    s->novel_time[k] = time;
    const uint64_t fresh = unseen & ~s->novel[k];
    uint64_t carried = 0;
    if (s->has_payload[k] && popcount(fresh) >= ALIEN_BYTE - 1) carried = carries(payload, s->payload[k], length);
    if (popcount(fresh & ~carried) >= ALIEN_BITS) evidence[FORMAT] = max64(evidence[FORMAT], 3 * (int64_t)model_length_evidence[k]);
    s->novel[k] |= unseen;
    for (int b = 0; b < 8; b++) {
        int count = popcount((fresh >> (8 * b)) & 0xFF);
        if (count > 1 && byte_of(carried, 8 * b) != 0) count = 1;
        if (count > 0) evidence[BITS] += (1 + count / 3) * (int64_t)model_byte_evidence[k];
        if (count >= ALIEN_BYTE - mature) evidence[FORMAT] = max64(evidence[FORMAT], 4 * (int64_t)model_length_evidence[k]);
    }
    if (evidence[BITS] == 0) *drift_bits = ONE_BIT / 4;
}

static void repetition(edge_ids_state *s, int k, uint64_t payload, int64_t *evidence) {
    const uint64_t h = mix(payload & model_signal_mask[k], s->payload[k] & model_signal_mask[k]);
    if ((h & 3) != 0) return;
    uint64_t *slot = &s->memory[model_repeat[k]][(h >> 2) & (EDGE_IDS_REPEAT_SLOTS - 1)];
    const uint64_t now = (uint64_t)s->count[k] & 0xFFFFFFFFu;
    if (*slot >> 32 == h) {
        const int64_t lag = (int64_t)((now - (*slot & 0xFFFFFFFFu)) & 0xFFFFFFFFu);
        if (lag == s->lag[k] && lag > SHORT_LAG) {
            s->matches[k]++;
            evidence[REPEAT] = model_repeat_evidence[k];
        } else {
            s->matches[k] = 0;
        }
        s->lag[k] = lag;
    } else {
        s->lag[k] = 0;
        s->matches[k] = 0;
    }
    *slot = h << 32 | now;
}

static void movement(edge_ids_state *s, int k, uint64_t payload, int since, int in_time, int64_t mature, int64_t *evidence) {
    const uint64_t changed = payload ^ s->payload[k];
    const uint64_t signals = changed & model_signal_mask[k];
    if (since) evidence[JUMP] = model_jump_evidence[k][popcount(signals ^ (signals >> 1))]; /* Gray code */
    if (changed != 0) {
        for (int b = 0; b < 8; b++) {
            int difference = byte_of(payload, 8 * b) - byte_of(s->payload[k], 8 * b);
            const int64_t step = model_step[k][b], limit = model_stuck[k][b];
            if (difference == 0) {
                s->stuck[k][b] = in_time ? s->stuck[k][b] + 1 : 0;
                if (mature && limit > 0 && s->stuck[k][b] >= limit)
                    evidence[FROZEN] = max64(evidence[FROZEN], s->stuck[k][b] > limit ? 2 * ONE_BIT : 32 * ONE_BIT);
                continue;
            }
            s->stuck[k][b] = 0;
            difference &= 0xFF;
            if (difference > 128) difference = 256 - difference;
            if (since && difference > step) {
                evidence[JUMP] += model_byte_evidence[k];
                while (difference >= 2 * step) {
                    evidence[JUMP] += 6 * ONE_BIT;
                    difference >>= 1;
                }
            }
        }
    }
    for (int c = 0; c < 4; c++) {
        const int width = model_counter[k][c][1], shift = model_counter[k][c][0];
        if (width == 0 || !since) break;
        const uint64_t span = ((uint64_t)1 << width) - 1;
        if ((((payload >> shift) - (s->payload[k] >> shift)) & span) == (uint64_t)model_counter[k][c][2]) {
            evidence[COUNTER] = 0;
            break;
        }
        evidence[COUNTER] = max64(evidence[COUNTER], model_counter_evidence[k][c]);
    }
    s->run[k] = changed == 0 && in_time ? s->run[k] + 1 : 0;
    if (model_frozen[k] > 0 && s->run[k] >= model_frozen[k])
        evidence[FROZEN] = max64(evidence[FROZEN], s->run[k] > model_frozen[k] ? 2 * ONE_BIT : 32 * ONE_BIT);
    if ((changed & model_signal_mask[k]) != 0 && model_repeat[k] >= 0) repetition(s, k, payload, evidence);
}

static void relations(edge_ids_state *s, int k, int64_t time, int length, uint64_t payload, int64_t *evidence) {
    if (model_checksum[k][0] > 0 && length == model_checksum[k][3] &&
        checksum(model_checksum[k][0], model_checksum[k][1], length, payload) != model_checksum[k][2])
        evidence[CHECKSUM] = model_checksum_evidence[k];
    for (int c = 0; c < CROSS_CHECKS; c++) {
        const int64_t own = model_cross[k][c][1], p = model_cross[k][c][2];
        if (own == 0) break;
        if (s->has_payload[p] == 0 || time - s->last[p] > model_cross[k][c][10] || s->last[p] <= s->stall) continue;
        const int64_t value = field_of(s->payload[p], model_cross[k][c][3], model_cross[k][c][4]);
        if (value < model_cross[k][c][8] || value > model_cross[k][c][9]) continue;
        const int64_t expected = shift_down(model_cross[k][c][5] * value, 16) + model_cross[k][c][6];
        if (abs64(field_of(payload, model_cross[k][c][0], own) - expected) > model_cross[k][c][7])
            evidence[CROSS] = max64(evidence[CROSS], model_cross_evidence[k][c]);
    }
}

static int64_t ask_tiny(const edge_ids_state *s, int k, const int64_t *evidence) {
    static const int asked[9] = {TIMING, FORMAT, BITS, JUMP, COUNTER, FROZEN, CHECKSUM, CROSS, REPEAT};
    int64_t x[FEATURES], busy = 0;
    if (!model_tiny_meta[0]) return 0;
    for (int f = 0; f < 9; f++) {
        x[f] = min64(evidence[asked[f]] >> 2, 127);
        x[f + 9] = min64(s->sums[k][asked[f]] >> 4, 127);
        busy |= x[f];
    }
    return busy ? min64(max64(tiny_logit(x), 0), TINY_CAP) : 0;
}

int edge_ids_step(edge_ids_state *s, int64_t time, int64_t key, int error, int length, uint64_t payload, edge_ids_alert *out,
                  edge_ids_verdict *verdict) {
    static const int order[11] = {TIMING, FORMAT, BITS, JUMP, COUNTER, FROZEN, CHECKSUM, CROSS, REPEAT, ENSEMBLE, TINY};
    const int64_t frame = s->frames, mature = model_limits[6];
    int64_t evidence[EDGE_IDS_COLUMNS] = {0}, drift_bits = ONE_BIT;
    int in_time = 0, alone = 0;
    verdict->ratio = verdict->raised = 0;
    int n = clock_and_load(s, frame, time, key, length, out, 0, &verdict->raised);
    s->pointer = (s->pointer + 1) % EDGE_IDS_K;
    n = silence(s, (int)s->pointer, time, out, n);
    if (error) {
        s->errors++;
        return n;
    }
    const int k = slot_of(key);
    if (k < 0) return unknown_id(s, frame, time, key, out, n, verdict);

    const int64_t median = model_median[k];
    const int since = s->last[k] > s->stall;
    timing(s, k, time, payload, !since, evidence, &in_time);
    if (((model_lengths[k] >> min64(length, 62)) & 1) == 0) evidence[FORMAT] = model_length_evidence[k];
    if ((key & 0x40000000) == 0) {
        novelty(s, k, time, length, payload, mature, evidence, &drift_bits);
        if (s->has_payload[k]) movement(s, k, payload, since, in_time, mature, evidence);
        relations(s, k, time, length, payload, evidence);
        s->count[k]++;
        s->payload[k] = payload;
        s->has_payload[k] = 1;
    }
    if (mature && in_time) evidence[COUNTER] *= 2;
    evidence[ENSEMBLE] =
        min64(evidence[TIMING], ENSEMBLE_CAP) + min64(evidence[FORMAT], ENSEMBLE_CAP) + min64(evidence[COUNTER], ENSEMBLE_CAP);
    evidence[TINY] = ask_tiny(s, k, evidence);
    for (int i = 0; i < 11; i++) {
        const int d = order[i];
        const int64_t threshold = model_threshold[k][d];
        if (evidence[d] > 0) s->evidence[k][d] = time;
        else if (s->sums[k][d] > 0 && time - s->evidence[k][d] > HOLD_US + 4 * median) s->sums[k][d] = 0;
        int64_t level = s->sums[k][d] + evidence[d] - (d == BITS ? drift_bits : ONE_BIT);
        level = min64(max64(level, 0), 2 * threshold);
        s->sums[k][d] = level;
        if (level == 0) {
            s->active[k][d] = 0;
            continue;
        }
        const int hint = !mature && (d == BITS || d == JUMP || d >= CROSS || (d == FROZEN && model_frozen[k] != NEVER_RESTS));
        if (level >= threshold) {
            const int said = alone && (d == ENSEMBLE || d == TINY);
            if (s->active[k][d] == 0 && !said && time - s->alerted[k][d] >= COOL_DOWN_US) {
                s->alerted[k][d] = time;
                if (hint) s->anomalies++;
                else s->alerts++;
                n = alert(out, n, frame, time, key, hint ? d + EDGE_IDS_HINT : d, level, threshold);
            }
            s->active[k][d] = 1;
            alone = alone || !hint;
            if (evidence[d] > 0) verdict->raised |= (int64_t)1 << (hint ? d + EDGE_IDS_HINT : d);
        } else if (4 * level < threshold) {
            s->active[k][d] = 0;
        }
        if (hint) continue;
        const int64_t share = 1000 * level / threshold;
        verdict->ratio = max64(verdict->ratio, evidence[d] > 0 ? share : share / 2);
    }
    return n;
}
