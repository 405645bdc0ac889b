/* Start-up for a Cortex-M4F: vectors, memory, floating-point unit, then main. */
#include <stdint.h>

extern uint32_t _stack_top, _data_load, _data_start, _data_end, _bss_start, _bss_end;
extern int main(int, char **);
#if defined(SEMIHOSTING)
extern void initialise_monitor_handles(void);
extern void exit(int);
#endif

void reset_handler(void);
void fault_handler(void);

void reset_handler(void) {
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: full access to the floating-point unit */
    __asm volatile("dsb\nisb");
    uint32_t *from = &_data_load;
    for (uint32_t *to = &_data_start; to < &_data_end;) {
        *to++ = *from++;
    }
    for (uint32_t *to = &_bss_start; to < &_bss_end;) {
        *to++ = 0;
    }
#if defined(SEMIHOSTING)
    initialise_monitor_handles();
    exit(main(0, 0));
#else
    (void)main(0, 0);
#endif
    for (;;) {
    }
}

void fault_handler(void) {
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) const void *const vectors[16] = {
    &_stack_top,           (const void *)reset_handler, (const void *)fault_handler, (const void *)fault_handler,
    (const void *)fault_handler, (const void *)fault_handler, (const void *)fault_handler};
