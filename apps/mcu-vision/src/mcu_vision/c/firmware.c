/* The program on the board: take an image, classify it, leave the class in mv_label.
 *
 * Define mv_capture for your camera: it fills MV_PIXELS bytes (rows, columns, channels) at `pixels`.
 */
#include "mv_net.h"

volatile int32_t mv_label;

void mv_capture(uint8_t *pixels);
__attribute__((weak)) void mv_capture(uint8_t *pixels) { (void)pixels; }

int main(void) {
    for (;;) {
        mv_capture(mv_pixels());
        mv_label = mv_run();
    }
}
