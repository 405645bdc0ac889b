/* The same on a computer, to hold the firmware against. */
#include <stdio.h>
#include <stdlib.h>

#include "io.h"

static FILE *file;

int io_open(const char *name) {
    file = fopen(name, "rb");
    return file != NULL;
}

uint32_t io_read(void *to, uint32_t bytes) { return (uint32_t)fread(to, 1, bytes, file); }

void io_write(const char *text) { fputs(text, stdout); }

uint32_t io_ticks(void) { return 0; }

uint32_t io_stack(void) { return 0; }

_Noreturn void io_exit(int code) { exit(code); }
