/* Arm semihosting on a Cortex-M: files and text of the computer at the other end of the debugger or emulator. */
#include "io.h"

#include <stddef.h>
#include <string.h>

extern uint32_t _bss_end[], _stack_top[];
static uint32_t file, console;

static uint32_t call(uint32_t operation, const void *arguments) {
    register uint32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = arguments;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static uint32_t open_file(const char *name, uint32_t mode) {
    const struct {
        const char *name;
        uint32_t mode, length;
    } open = {name, mode, (uint32_t)strlen(name)};
    return call(0x01, &open);
}

#define PAINT 0xA5A5A5A5u
#define SYSTICK ((volatile uint32_t *)0xE000E010u)

int io_open(const char *name) {
    /* Everything between the static data and the stack pointer is painted; what is overwritten later was used. */
    uint32_t *stack;
    __asm volatile("mov %0, sp" : "=r"(stack));
    for (volatile uint32_t *word = _bss_end; word < stack; word++) { /* volatile: memset would paint its own frame */
        *word = PAINT;
    }
    console = open_file(":tt", 4); /* the standard output, by its semihosting name */
    file = open_file(name, 1);     /* rb */
    SYSTICK[1] = 0xFFFFFFu;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5; /* on, processor clock, no interrupt */
    return file != 0xFFFFFFFFu;
}

/* Each call of the debugger costs it a moment: blocks are asked for, bytes are given. */
uint32_t io_read(void *to, uint32_t bytes) {
    static unsigned char block[1024];
    static uint32_t have, used;
    uint32_t done = 0;
    while (done < bytes) {
        if (used == have) {
            const struct {
                uint32_t file;
                void *to;
                uint32_t bytes;
            } read = {file, block, sizeof block};
            have = (uint32_t)sizeof block - call(0x06, &read);
            used = 0;
            if (!have) {
                break;
            }
        }
        const uint32_t rest = bytes - done, part = rest < have - used ? rest : have - used;
        memcpy((unsigned char *)to + done, block + used, part);
        done += part;
        used += part;
    }
    return done;
}

void io_write(const char *text) {
    const struct {
        uint32_t file;
        const char *from;
        uint32_t bytes;
    } write = {console, text, (uint32_t)strlen(text)};
    (void)call(0x05, &write);
}

uint32_t io_ticks(void) { return 0xFFFFFFu - SYSTICK[2]; }

uint32_t io_stack(void) {
    const uint32_t *word = _bss_end;
    while (word < _stack_top && *word == PAINT) {
        word++;
    }
    return (uint32_t)((const char *)_stack_top - (const char *)word);
}

_Noreturn void io_exit(int code) {
    const struct {
        uint32_t reason;
        uint32_t code;
    } extended = {0x20026u, (uint32_t)code};
    (void)call(0x20, &extended);
    for (;;) {
    }
}
