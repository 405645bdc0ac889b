/* The same network on a computer: reads images from standard input, writes int8 outputs to standard output. */
#include <stdio.h>

#include "mv_net.h"

int main(void) {
    while (fread(mv_pixels(), 1, MV_PIXELS, stdin) == MV_PIXELS) {
        (void)mv_run();
        if (fwrite(mv_output(), 1, MV_CLASSES, stdout) != MV_CLASSES) {
            return 1;
        }
    }
    return 0;
}
