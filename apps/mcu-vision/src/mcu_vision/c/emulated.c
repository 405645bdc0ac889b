/* Runs the network on images.bin of the computer that emulates (semihosting, no C library) and writes outputs.bin: per image the
 * int8 outputs, then two little-endian uint32: ticks of SysTick, and the most bytes of stack in use while it ran. Under
 * -icount shift=0 QEMU executes one instruction per nanosecond; a tick is 40 of them on an mps2 board (25 MHz), 31.25 on an mps3. */
#include "mv_net.h"

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_VALUE (*(volatile uint32_t *)0xE000E018u)
#define PERIOD 0x1000000u
#define PAINT 0xA5u

enum { SYS_OPEN = 1, SYS_WRITE = 5, SYS_READ = 6, SYS_EXIT_EXTENDED = 0x20, STOPPED = 0x20026 };

static volatile uint32_t wraps;
void mv_systick_handler(void);
void mv_systick_handler(void) { wraps++; }

static int32_t host(uint32_t operation, const void *argument) {
    register uint32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = argument;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

static int32_t open_file(const char *name, uint32_t length, uint32_t mode) {
    const uint32_t block[3] = {(uint32_t)name, mode, length};
    return host(SYS_OPEN, block);
}

static uint32_t transfer(uint32_t operation, int32_t file, const void *data, uint32_t length) {
    const uint32_t block[3] = {(uint32_t)file, (uint32_t)data, length};
    return (uint32_t)host(operation, block); /* bytes that are missing */
}

static __attribute__((noreturn)) void leave(uint32_t code) {
    const uint32_t block[2] = {STOPPED, code};
    (void)host(SYS_EXIT_EXTENDED, block);
    for (;;) {
    }
}

static uint32_t now(void) {
    uint32_t before, value;
    do {
        before = wraps;
        value = SYSTICK_VALUE;
    } while (before != wraps);
    return before * PERIOD + (PERIOD - 1 - value);
}

extern uint8_t mv_stack_bottom, mv_stack_top;

/* The free stack is painted, used, and looked at: the lowest byte that changed is the high-water mark, counted from the top. */
static __attribute__((noinline)) uint32_t run_painted(uint32_t *ticks) {
    volatile uint8_t *const bottom = &mv_stack_bottom, *const frame = (volatile uint8_t *)__builtin_frame_address(0) - 64;
    for (volatile uint8_t *p = bottom; p < frame; p++) {
        *p = PAINT;
    }
    const uint32_t start = now();
    (void)mv_run();
    *ticks = now() - start;
    const volatile uint8_t *p = bottom;
    while (p < frame && *p == PAINT) {
        p++;
    }
    return (uint32_t)(&mv_stack_top - (const uint8_t *)(uintptr_t)p);
}

int main(void) {
    const int32_t images = open_file("images.bin", 10, 1), outputs = open_file("outputs.bin", 11, 5);
    if (images < 0 || outputs < 0) {
        leave(2);
    }
    SYSTICK_RELOAD = PERIOD - 1;
    SYSTICK_VALUE = 0;
    SYSTICK_CONTROL = 7;
    while (transfer(SYS_READ, images, mv_pixels(), MV_PIXELS) == 0) {
        uint32_t figures[2];
        figures[1] = run_painted(&figures[0]);
        if (transfer(SYS_WRITE, outputs, mv_output(), MV_CLASSES) || transfer(SYS_WRITE, outputs, figures, sizeof figures)) {
            leave(3);
        }
    }
    leave(0);
}
