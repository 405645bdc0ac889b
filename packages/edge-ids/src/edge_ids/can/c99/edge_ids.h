/* The streaming CAN detector in C99: no heap, no floating point, no library calls. Generated tables are in edge_ids_model.h. */
#ifndef EDGE_IDS_INCLUDED
#define EDGE_IDS_INCLUDED

#include <stdint.h>

#include "edge_ids_model.h"

#define EDGE_IDS_COLUMNS 14
#define EDGE_IDS_HINT 16          /* added to the detector of an alert that is an anomaly only */
#define EDGE_IDS_UNKNOWN_SLOTS 1024
#define EDGE_IDS_REPEAT_SLOTS 1024
#define EDGE_IDS_ROOM 20          /* alerts that one call may write */
#define EDGE_IDS_NEVER (-((int64_t)1 << 62))

typedef struct {
    int64_t frame, time, key, detector, level, threshold;
} edge_ids_alert;

typedef struct {
    int64_t last[EDGE_IDS_K], interval[EDGE_IDS_K], backlog[EDGE_IDS_K];
    int64_t anchor[EDGE_IDS_K], extras[EDGE_IDS_K];
    int64_t shortest[EDGE_IDS_K], longest[EDGE_IDS_K], moved[EDGE_IDS_K], given[EDGE_IDS_K];
    uint64_t payload[EDGE_IDS_K];
    int64_t has_payload[EDGE_IDS_K], run[EDGE_IDS_K];
    uint64_t novel[EDGE_IDS_K];
    int64_t novel_time[EDGE_IDS_K], stuck[EDGE_IDS_K][8], count[EDGE_IDS_K], lag[EDGE_IDS_K], matches[EDGE_IDS_K];
    uint64_t memory[EDGE_IDS_R][EDGE_IDS_REPEAT_SLOTS];
    int64_t sums[EDGE_IDS_K][EDGE_IDS_COLUMNS], active[EDGE_IDS_K][EDGE_IDS_COLUMNS];
    int64_t alerted[EDGE_IDS_K][EDGE_IDS_COLUMNS], evidence[EDGE_IDS_K][EDGE_IDS_COLUMNS];
    int64_t silent[EDGE_IDS_K], silent_alerted[EDGE_IDS_K], unknown[EDGE_IDS_UNKNOWN_SLOTS];
    int64_t time, bucket, bits, unknown_sum, unknown_time, unknown_active, unknown_alerted;
    int64_t load_sum, load_active, load_alerted, pointer, frames, unknown_frames, errors, gaps, alerts, anomalies, stall;
} edge_ids_state;

/* What one frame said: highest sum over its threshold times 1000, and a bit mask of detectors. */
typedef struct {
    int64_t ratio, raised;
} edge_ids_verdict;

extern const char *const edge_ids_detectors[EDGE_IDS_COLUMNS];

/* Call once before the first frame. */
void edge_ids_init(edge_ids_state *s);

/* Take one frame.
 * time: us; key: ID, bit 29 extended, bit 30 remote; error: 1 for an error frame; length: payload bytes;
 * payload: first eight bytes, big endian, zero filled at the end; out: room for EDGE_IDS_ROOM alerts.
 * Returns the number of alerts. */
int edge_ids_step(edge_ids_state *s, int64_t time, int64_t key, int error, int length, uint64_t payload, edge_ids_alert *out,
                  edge_ids_verdict *verdict);

/* Let time pass without frames, so that silence is noticed; out: room for EDGE_IDS_K alerts. Returns their number. */
int edge_ids_tick(edge_ids_state *s, int64_t now, edge_ids_alert *out);

#endif
