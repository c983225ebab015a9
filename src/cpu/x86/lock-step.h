/*
 * Lock step: each translated block is executed twice, by the interpreter and by its translation, and compared. See lock-step.c.
 */
#pragma once

#include "cpu/x86/translator.h"

struct lock_step;

/* For a machine of one processor; free logs what was compared. */
int lock_step_new(struct lock_step **out, struct err *err) _must_check_;
void lock_step_free(struct lock_step *ls);

/* In place of translator_enter(), with the same result; prints both states and aborts when they differ. */
void lock_step_run(struct x86_cpu *cpu, const struct tblock *block);

/*
 * Hooks, for a processor whose lock_step is not NULL. store: before size_bytes of RAM at host are written; entry: the same, when what
 * changes are the accessed and dirty bits of a page table's entry; device: before a device is reached, may not return; walking: whether
 * the mode has to be that of the walk (every access slow, one instruction a block).
 */
void lock_step_store(struct x86_cpu *cpu, void *host, unsigned size_bytes, bool code);
void lock_step_entry(struct x86_cpu *cpu, void *host, unsigned size_bytes, bool code);
void lock_step_device(struct x86_cpu *cpu);
bool lock_step_walking(const struct x86_cpu *cpu);
