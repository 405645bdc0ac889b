/* Reads frames from stdin, one a line: time (us), key, error, length, payload (16 hexadecimal digits); prints alerts, then a summary; exit 2 at a line that is none. */
#include <inttypes.h>
#include <stdio.h>

#include "edge_ids.h"

static edge_ids_state state;

int main(void) {
    edge_ids_alert alerts[EDGE_IDS_ROOM];
    edge_ids_verdict verdict;
    int64_t time, key, ratios = 0, raised = 0;
    uint64_t payload;
    int error, length, fields;
    edge_ids_init(&state);
    while ((fields = scanf("%" SCNd64 " %" SCNd64 " %d %d %" SCNx64, &time, &key, &error, &length, &payload)) == 5) {
        const int n = edge_ids_step(&state, time, key, error, length, payload, alerts, &verdict);
        for (int i = 0; i < n; i++) {
            const edge_ids_alert *a = &alerts[i];
            printf("%" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n", a->frame, a->time, a->key, a->detector,
                   a->level, a->threshold);
        }
        ratios += verdict.ratio;
        raised ^= verdict.raised + state.frames;
    }
    if (fields != EOF) {
        fprintf(stderr, "frame %" PRId64 ": write time (us), key, error, length, payload (16 hexadecimal digits)\n", state.frames + 1);
        return 2;
    }
    printf("summary %" PRId64 " %" PRId64 " %" PRId64 " %zu\n", state.frames, ratios, raised, sizeof state);
    return 0;
}
