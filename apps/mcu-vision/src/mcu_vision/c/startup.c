/* Start-up for a Cortex-M without libraries: vectors, memory, then main. */
#include <stdint.h>

extern uint32_t mv_stack_top, mv_data_load, mv_data_start, mv_data_end, mv_bss_start, mv_bss_end;
extern int main(void);

void reset_handler(void);
void fault_handler(void);
void mv_systick_handler(void);

void reset_handler(void) {
    uint32_t *from = &mv_data_load;
    for (uint32_t *to = &mv_data_start; to < &mv_data_end;) {
        *to++ = *from++;
    }
    for (volatile uint32_t *to = &mv_bss_start; to < &mv_bss_end;) {
        *to++ = 0;
    }
    (void)main();
    for (;;) {
    }
}

void fault_handler(void) {
    for (;;) {
    }
}

__attribute__((weak)) void mv_systick_handler(void) {}

__attribute__((section(".vectors"), used)) const void *const vectors[16] = {
    &mv_stack_top, (const void *)reset_handler, (const void *)fault_handler, (const void *)fault_handler,
    (const void *)fault_handler, (const void *)fault_handler, (const void *)fault_handler, 0, 0, 0, 0,
    (const void *)fault_handler, 0, 0, (const void *)fault_handler, (const void *)mv_systick_handler};
