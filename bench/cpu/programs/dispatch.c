/*
 * An interpreter of a small stack machine, a switch in a loop, as language runtimes have one: indirect jumps that depend on the
 * data. It runs the Collatz sequences of the numbers below a limit.
 */
#include "../bench.h"

enum op { PUSH, LOAD, STORE, ADD, SUB, MUL, AND, SHR, LESS, JUMP, JUMP_ZERO, HALT };

struct code {
        uint8_t op;
        int32_t arg;
};

/* Locals: 0 the start, 1 the number, 2 steps. */
static const struct code program[] = {
        { PUSH, 1 }, { STORE, 0 },                                               /* 0 */
        { LOAD, 0 }, { STORE, 1 },                                               /* 2: next start */
        { LOAD, 1 }, { PUSH, 1 }, { SUB, 0 }, { JUMP_ZERO, 24 },                 /* 4: until it is 1 */
        { LOAD, 2 }, { PUSH, 1 }, { ADD, 0 }, { STORE, 2 },                      /* 8 */
        { LOAD, 1 }, { PUSH, 1 }, { AND, 0 }, { JUMP_ZERO, 20 },                 /* 12 */
        { LOAD, 1 }, { PUSH, 3 }, { MUL, 0 }, { JUMP, 30 },                      /* 16: odd */
        { LOAD, 1 }, { SHR, 1 }, { STORE, 1 }, { JUMP, 4 },                      /* 20: even */
        { LOAD, 0 }, { PUSH, 1 }, { ADD, 0 }, { STORE, 0 }, { LOAD, 0 }, { JUMP, 34 }, /* 24: this start is done */
        { PUSH, 1 }, { ADD, 0 }, { STORE, 1 }, { JUMP, 4 },                      /* 30: 3 n + 1 */
        { PUSH, 12000 }, { LESS, 0 }, { JUMP_ZERO, 38 }, { JUMP, 2 },            /* 34 */
        { HALT, 0 },                                                             /* 38 */
};

static BENCH_NOINLINE uint64_t interpret(const struct code *code, int64_t local[4])
{
        int64_t stack[16] = { 0 }, *sp = stack;
        uint64_t executed = 0;
        uint32_t pc = 0;

        for (;;) {
                const struct code *c = &code[pc++];

                executed++;
                switch (c->op) {
                case PUSH: *sp++ = c->arg; break;
                case LOAD: *sp++ = local[c->arg]; break;
                case STORE: local[c->arg] = *--sp; break;
                case ADD: sp--; sp[-1] += *sp; break;
                case MUL: sp--; sp[-1] *= *sp; break;
                case SUB: sp--; sp[-1] -= *sp; break;
                case AND: sp--; sp[-1] &= *sp; break;
                case SHR: sp[-1] >>= c->arg; break;
                case LESS: sp--; sp[-1] = sp[-1] < *sp; break;
                case JUMP: pc = (uint32_t)c->arg; break;
                case JUMP_ZERO:
                        if (!*--sp)
                                pc = (uint32_t)c->arg;
                        break;
                case HALT: return executed;
                }
        }
}

int main(int argc, char **argv)
{
        int64_t local[4] = { 0 };
        double start = bench_now();
        uint64_t executed = interpret(program, local);

        return bench_report(argc, argv, bench_now() - start, bench_mix(executed, (uint64_t)local[2]));
}
