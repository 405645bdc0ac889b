/* What the program needs of the world: a recording to read, text to write, a counter of instructions. */
#ifndef IO_H
#define IO_H

#include <stdint.h>

int io_open(const char *name);                /* 0 if it cannot be opened */
uint32_t io_read(void *to, uint32_t bytes);   /* bytes read */
void io_write(const char *text);              /* up to its zero byte */
uint32_t io_ticks(void);                      /* 24 bits, counting up; 0 where there is no counter */
uint32_t io_stack(void);                      /* bytes of stack used so far; 0 where it is not known */
_Noreturn void io_exit(int code);

#endif
