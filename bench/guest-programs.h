#pragma once

#include <stdint.h>

/* memory: 1 MiB that they may use. The result does not depend on where it is. */
uint64_t guest_sieve(uint8_t *memory);
uint64_t guest_crc(uint8_t *memory);
uint64_t guest_list(uint8_t *memory);
uint64_t guest_calls(uint8_t *memory);
uint64_t guest_sort(uint8_t *memory);
uint64_t guest_strings(uint8_t *memory);
uint64_t guest_matmul(uint8_t *memory);
uint64_t guest_matmul_avx2(uint8_t *memory);
uint64_t guest_nbody(uint8_t *memory);
uint64_t guest_x87(uint8_t *memory);

/* Where the linker puts them. */
extern const uint8_t __start_guest_code[], __stop_guest_code[];
