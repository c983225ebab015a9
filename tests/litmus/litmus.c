/*
 * Memory ordering and LOCK, seen from two or four processors at once.
 *
 * Each test is a small program for each processor, run ROUNDS times on fresh variables; what the loads saw and what memory held at
 * the end is counted. An outcome that the manual forbids fails the test; a weak one that it permits is only told. Tests and their names
 * are those of the SDM (vol. 3A 8.2.3) and of the literature on litmus tests (Alglave et al., "herding cats"; Owens et al., "x86-TSO").
 *
 * A batch of rounds uses a slot of variables each, so that processors that are not scheduled at the same time cost a barrier a batch
 * and not one a round. Within a batch they meet at each slot, but wait a bounded time only.
 *
 * CPUS (2 or 4) and ROUNDS are given by the build.
 */
#include "../privileged/smp.h"

#define SLOTS 2048u
#define MEET_SPINS 150u
#define THREADS_MAX 4u

/* One variable a cache line: x, y and the meeting point. */
struct slot {
        volatile uint64_t x, pad0[7], y, pad1[7], met, pad2[7];
};

typedef void body(struct slot *s, volatile uint8_t *r);

struct test {
        const char *name;
        unsigned threads;
        body *body[THREADS_MAX];
        /* r[0..3] as the bodies number them, x and y as they are at the end. */
        enum verdict { USUAL, WEAK, FORBIDDEN } (*verdict)(const uint8_t *r, uint64_t x, uint64_t y);
};

static struct slot slots[SLOTS] __attribute__((aligned(64)));
static volatile uint8_t results[SLOTS][4];
static uint32_t outcomes[1 << 12]; /* two bits each: r0 r1 r2 r3 x y */
static struct barrier gate;
static const struct test *volatile current;
static volatile bool stop;
static uint64_t failures;

#define STORE(where, value) __asm__ volatile("movq %1, %0" : "=m"(where) : "ri"((uint64_t)(value)) : "memory")
#define LOAD(to, where)                                                                  \
        do {                                                                             \
                uint64_t v_;                                                             \
                __asm__ volatile("movq %1, %0" : "=r"(v_) : "m"(where) : "memory");      \
                to = v_;                                                                 \
        } while (0)
#define XCHG(where, value)                                                                            \
        do {                                                                                          \
                uint64_t v_ = (value);                                                                \
                __asm__ volatile("xchgq %0, %1" : "+r"(v_), "+m"(where) : : "memory");                \
        } while (0)
#define LOCK_ADD(where, value) __asm__ volatile("lock addq %1, %0" : "+m"(where) : "ri"((uint64_t)(value)) : "memory", "cc")
#define MFENCE() __asm__ volatile("mfence" : : : "memory")
/* What Linux uses for smp_mb(). */
#define LOCK_STACK() __asm__ volatile("lock addl $0, -4(%%rsp)" : : : "memory", "cc")

/* Loads first into registers, so that nothing but what is tested lies between two accesses. */
#define BODY(name, code, keep)                                    \
        static void name(struct slot *s, volatile uint8_t *r)     \
        {                                                         \
                uint64_t a = 0, b = 0;                            \
                                                                  \
                (void)r;                                          \
                code;                                             \
                keep;                                             \
                (void)a;                                          \
                (void)b;                                          \
        }
#define KEEP1(n) r[n] = (uint8_t)a
#define KEEP2(n) r[n] = (uint8_t)a; r[(n) + 1] = (uint8_t)b

BODY(write_x, STORE(s->x, 1), )
BODY(write_y, STORE(s->y, 1), )
BODY(write_x2, STORE(s->x, 2), )
BODY(write_x1_x2, STORE(s->x, 1); STORE(s->x, 2), )
BODY(write_x_write_y, STORE(s->x, 1); STORE(s->y, 1), )
BODY(write_x1_y2, STORE(s->x, 1); STORE(s->y, 2), )
BODY(write_y1_x2, STORE(s->y, 1); STORE(s->x, 2), )
BODY(write_x2_y1, STORE(s->x, 2); STORE(s->y, 1), )
BODY(write_y2_x2, STORE(s->y, 2); STORE(s->x, 2), )
BODY(xchg_x, XCHG(s->x, 1), )
BODY(xchg_y, XCHG(s->y, 1), )
BODY(xchg_x_write_y, XCHG(s->x, 1); STORE(s->y, 1), )
BODY(write_x_xchg_y, STORE(s->x, 1); XCHG(s->y, 1), )
BODY(read_y_read_x, LOAD(a, s->y); LOAD(b, s->x), KEEP2(0))
BODY(read_x_read_x, LOAD(a, s->x); LOAD(b, s->x), KEEP2(0))
BODY(read_x_read_x_2, LOAD(a, s->x); LOAD(b, s->x), KEEP2(2))
BODY(read_x_read_y, LOAD(a, s->x); LOAD(b, s->y), KEEP2(0))
BODY(read_y_read_x_2, LOAD(a, s->y); LOAD(b, s->x), KEEP2(2))
BODY(read_y_read_x_1, LOAD(a, s->y); LOAD(b, s->x), KEEP2(1))
BODY(read_x_write_y, LOAD(a, s->x); STORE(s->y, 1), KEEP1(0))
BODY(read_y_write_x_1, LOAD(a, s->y); STORE(s->x, 1), KEEP1(1))
BODY(read_y_write_x, LOAD(a, s->y); STORE(s->x, 1), KEEP1(0))
BODY(read_x_write_x2, LOAD(a, s->x); STORE(s->x, 2), KEEP1(0))
BODY(write_x2_read_x, STORE(s->x, 2); LOAD(a, s->x), KEEP1(0))
BODY(write_x_read_y, STORE(s->x, 1); LOAD(a, s->y), KEEP1(0))
BODY(write_y_read_x, STORE(s->y, 1); LOAD(a, s->x), KEEP1(1))
BODY(write_x_read_x_read_y, STORE(s->x, 1); LOAD(a, s->x); LOAD(b, s->y), KEEP2(0))
BODY(write_y_read_y_read_x, STORE(s->y, 1); LOAD(a, s->y); LOAD(b, s->x), KEEP2(2))
BODY(write_x_mfence_read_y, STORE(s->x, 1); MFENCE(); LOAD(a, s->y), KEEP1(0))
BODY(write_y_mfence_read_x, STORE(s->y, 1); MFENCE(); LOAD(a, s->x), KEEP1(1))
BODY(write_x_lock_read_y, STORE(s->x, 1); LOCK_STACK(); LOAD(a, s->y), KEEP1(0))
BODY(write_y_lock_read_x, STORE(s->y, 1); LOCK_STACK(); LOAD(a, s->x), KEEP1(1))
BODY(xchg_x_read_y, XCHG(s->x, 1); LOAD(a, s->y), KEEP1(0))
BODY(xchg_y_read_x, XCHG(s->y, 1); LOAD(a, s->x), KEEP1(1))
BODY(lock_add_x_read_y, LOCK_ADD(s->x, 1); LOAD(a, s->y), KEEP1(0))
BODY(lock_add_y_read_x, LOCK_ADD(s->y, 1); LOAD(a, s->x), KEEP1(1))
BODY(write_y2_mfence_read_x, STORE(s->y, 2); MFENCE(); LOAD(a, s->x), KEEP1(0))

#define VERDICT(name, condition, otherwise)                                               \
        static enum verdict name(const uint8_t *r, uint64_t x, uint64_t y)                \
        {                                                                                 \
                (void)r;                                                                  \
                (void)x;                                                                  \
                (void)y;                                                                  \
                return (condition) ? FORBIDDEN : (otherwise) ? WEAK : USUAL;              \
        }

VERDICT(forbid_mp, r[0] == 1 && r[1] == 0, 0)
VERDICT(forbid_lb, r[0] == 1 && r[1] == 1, 0)
VERDICT(permit_sb, 0, !r[0] && !r[1])
VERDICT(forbid_sb, !r[0] && !r[1], 0)
VERDICT(forward, !r[0] || !r[2], !r[1] && !r[3])
VERDICT(forbid_wrc, r[0] == 1 && r[1] == 1 && r[2] == 0, 0)
VERDICT(forbid_iriw, r[0] == 1 && r[1] == 0 && r[2] == 1 && r[3] == 0, 0)
VERDICT(forbid_2_2w, x == 1 && y == 1, 0)
VERDICT(forbid_corr, r[1] < r[0], 0)
VERDICT(forbid_corr_2, (r[0] == 1 && r[1] == 2 && r[2] == 2 && r[3] == 1) || (r[0] == 2 && r[1] == 1 && r[2] == 1 && r[3] == 2), 0)
VERDICT(forbid_corw, r[0] == 2 || (r[0] == 1 && x == 1), 0)
VERDICT(forbid_cowr, r[0] == 0 || (r[0] == 1 && x == 2), 0)
VERDICT(forbid_s, r[0] == 1 && x == 2, 0)
VERDICT(forbid_r, y == 2 && r[0] == 0, 0)
VERDICT(permit_n6, 0, r[0] == 1 && r[1] == 0 && x == 1)

static const struct test tests[] = {
        { "MP: stores are not reordered, loads are not (8.2.3.2)", 2, { write_x_write_y, read_y_read_x }, forbid_mp },
        { "LB: a store is not reordered with an earlier load (8.2.3.3)", 2, { read_x_write_y, read_y_write_x_1 }, forbid_lb },
        { "SB: a load may pass an earlier store (8.2.3.4)", 2, { write_x_read_y, write_y_read_x }, permit_sb },
        { "SB with forwarding (8.2.3.5)", 2, { write_x_read_x_read_y, write_y_read_y_read_x }, forward },
        { "SB with MFENCE", 2, { write_x_mfence_read_y, write_y_mfence_read_x }, forbid_sb },
        { "SB with LOCK ADD to the stack", 2, { write_x_lock_read_y, write_y_lock_read_x }, forbid_sb },
        { "SB with XCHG (8.2.3.9)", 2, { xchg_x_read_y, xchg_y_read_x }, forbid_sb },
        { "SB with LOCK ADD (8.2.3.9)", 2, { lock_add_x_read_y, lock_add_y_read_x }, forbid_sb },
        { "MP with XCHG first (8.2.3.9)", 2, { xchg_x_write_y, read_y_read_x }, forbid_mp },
        { "MP with XCHG last (8.2.3.9)", 2, { write_x_xchg_y, read_y_read_x }, forbid_mp },
        { "2+2W: stores are seen in program order", 2, { write_x1_y2, write_y1_x2 }, forbid_2_2w },
        { "S: a store is not reordered with an earlier load", 2, { write_x2_y1, read_y_write_x }, forbid_s },
        { "R with MFENCE", 2, { write_x_write_y, write_y2_mfence_read_x }, forbid_r },
        { "n6: a store forwarded before it is seen", 2, { write_x_read_x_read_y, write_y2_x2 }, permit_n6 },
        { "CoRR: two loads of one location", 2, { write_x1_x2, read_x_read_x }, forbid_corr },
        { "CoRW: a load does not see a later store", 2, { write_x, read_x_write_x2 }, forbid_corw },
        { "CoWR: a load sees its own store or a later one", 2, { write_x, write_x2_read_x }, forbid_cowr },
        { "WRC: stores are transitively visible (8.2.3.6)", 3, { write_x, read_x_write_y, read_y_read_x_1 }, forbid_wrc },
        { "IRIW: others see stores in one order (8.2.3.7)", 4, { write_x, write_y, read_x_read_y, read_y_read_x_2 }, forbid_iriw },
        { "IRIW with XCHG (8.2.3.8)", 4, { xchg_x, xchg_y, read_x_read_y, read_y_read_x_2 }, forbid_iriw },
        { "CoRR of two writers", 4, { write_x, write_x2, read_x_read_x, read_x_read_x_2 }, forbid_corr_2 },
};

/* ---- the rounds ---- */

/* A short wait that differs from slot to slot, so that the processors meet in all ways. */
static void jitter(uint32_t *seed)
{
        *seed = *seed * 1664525 + 1013904223;
        for (volatile unsigned n = *seed >> 29; n; n--)
                ;
}

static void run_batch(const struct test *t, unsigned number)
{
        uint32_t seed = number * 77777 + slots[0].pad2[0];
        unsigned alone = 0;

        for (unsigned i = 0; i < SLOTS; i++) {
                struct slot *s = &slots[i];

                __atomic_add_fetch(&s->met, 1, __ATOMIC_SEQ_CST);
                if (alone < 8) {
                        unsigned spins = 0;

                        while (s->met < t->threads && spins < MEET_SPINS)
                                spins++;
                        alone = spins < MEET_SPINS ? 0 : alone + 1;
                }
                if (i & 1)
                        jitter(&seed);
                t->body[number](s, results[i]);
        }
}

static void clear_slots(void)
{
        static uint64_t batches;

        for (unsigned i = 0; i < SLOTS; i++) {
                slots[i].x = slots[i].y = slots[i].met = 0;
                *(volatile uint32_t *)results[i] = 0;
        }
        slots[0].pad2[0] = ++batches;
}

static void count_outcomes(const struct test *t, uint64_t *weak, uint64_t *forbidden)
{
        for (unsigned i = 0; i < SLOTS; i++) {
                uint8_t r[4] = { results[i][0], results[i][1], results[i][2], results[i][3] };
                uint64_t x = slots[i].x, y = slots[i].y;
                enum verdict v = t->verdict(r, x, y);

                *weak += v == WEAK;
                *forbidden += v == FORBIDDEN;
                outcomes[(r[0] & 3) | (r[1] & 3) << 2 | (r[2] & 3) << 4 | (r[3] & 3) << 6 | (x & 3) << 8 | (y & 3) << 10]++;
        }
}

static void report(const struct test *t, uint64_t weak, uint64_t forbidden)
{
        put(forbidden ? "not ok " : "ok ");
        put(t->name);
        put(":");
        for (unsigned i = 0; i < sizeof(outcomes) / sizeof(outcomes[0]); i++) {
                if (!outcomes[i])
                        continue;
                put(" ");
                for (unsigned n = 0; n < 6; n++)
                        put_char("0123"[i >> 2 * n & 3]);
                put("=");
                put_decimal(outcomes[i]);
                outcomes[i] = 0;
        }
        if (forbidden) {
                put(" forbidden ");
                put_decimal(forbidden);
        }
        if (weak) {
                put(" weak ");
                put_decimal(weak);
        }
        put("\n");
        failures += forbidden;
        checks_done++;
}

static void run_test(const struct test *t, uint32_t *sense)
{
        uint64_t weak = 0, forbidden = 0;

        current = t;
        for (unsigned round = 0; round < ROUNDS; round += SLOTS) {
                clear_slots();
                barrier_wait(&gate, CPUS, sense);
                run_batch(t, 0);
                barrier_wait(&gate, CPUS, sense);
                count_outcomes(t, &weak, &forbidden);
        }
        report(t, weak, forbidden);
}

/* ---- LOCK: nothing is lost, nothing is torn ---- */

#define TURNS (ROUNDS / 20)

/* 8-byte aligned counters, one that crosses a cache line, one that crosses a page, and 16 bytes. */
static struct {
        uint64_t counter[8];
        uint8_t pad[4096 - 64];
        uint8_t line[128];
        uint8_t pad2[4096 - 128 - 4];
        uint8_t page[64];
} shared __attribute__((aligned(4096)));
/* Accessed by assembler alone in other sizes than these. */
typedef volatile unsigned __int128 any128 __attribute__((may_alias));
typedef volatile uint64_t any64 __attribute__((may_alias, aligned(1)));
static uint64_t pair[2] __attribute__((aligned(16)));
static uint64_t wide[4] __attribute__((aligned(64)));
static uint8_t block[8192] __attribute__((aligned(4096)));
static volatile uint64_t flag, acknowledged;
static volatile uint64_t torn;

static void count_up(unsigned number)
{
        any64 *split_line = (any64 *)(shared.line + 60), *split_page = (any64 *)shared.page;

        for (unsigned i = 0; i < TURNS; i++) {
                uint64_t one = 1, low, high;

                __asm__ volatile("lock incb %0" : "+m"(shared.counter[0]) : : "cc", "memory");
                __asm__ volatile("lock xaddl %k0, %1" : "+r"(one), "+m"(shared.counter[1]) : : "cc", "memory");
                __asm__ volatile("lock addq $3, %0" : "+m"(shared.counter[2]) : : "cc", "memory");
                __asm__ volatile("1: movq %0, %%rax\n leaq 1(%%rax), %%rdx\n lock cmpxchgq %%rdx, %0\n jne 1b"
                                 : "+m"(shared.counter[3]) : : "rax", "rdx", "cc", "memory");
                __asm__ volatile("lock subw $1, %0" : "+m"(shared.counter[4]) : : "cc", "memory");
                /* A lock by BTS around a plain increment. */
                __asm__ volatile("1: lock btsq $7, %0\n jnc 3f\n 2: pause\n testq $128, %0\n jnz 2b\n jmp 1b\n 3: incq %1\n lock btrq $7, %0"
                                 : "+m"(shared.counter[5]), "+m"(shared.counter[6]) : : "cc", "memory");
                __asm__ volatile("lock addq $1, %0" : "+m"(*split_line) : : "cc", "memory");
                if (i % 4 == 0)
                        __asm__ volatile("lock addq $1, %0" : "+m"(*split_page) : : "cc", "memory");
                __asm__ volatile("movq %2, %0\n movq %3, %1" : "=&a"(low), "=&d"(high) : "m"(pair[0]), "m"(pair[1]) : "memory");
                __asm__ volatile("1: movq %%rax, %%rbx\n movq %%rdx, %%rcx\n addq $1, %%rbx\n subq $1, %%rcx\n lock cmpxchg16b %2\n jne 1b"
                                 : "+a"(low), "+d"(high), "+m"(*(any128 *)pair) : : "rbx", "rcx", "cc", "memory");
        }
        (void)number;
}

/* A LOCK'd access over a line's end and plain stores of another processor to one half of it: none is lost. */
static void split_and_plain(unsigned number)
{
        volatile uint32_t *half = (void *)(shared.line + 60);
        any64 *whole = (any64 *)(shared.line + 60);
        uint32_t lost = 0;

        if (number == 1) {
                for (uint32_t i = 1; i < TURNS; i++) {
                        uint32_t seen;

                        *half = i;
                        __asm__ volatile("mfence\n movl %1, %0" : "=r"(seen) : "m"(*half) : "memory");
                        lost += seen != i;
                }
                torn += lost;
                flag = 1;
        } else if (number == 0) {
                while (!flag)
                        for (unsigned n = 0; n < 20; n++)
                                __asm__ volatile("lock orq $0, %0\n pause" : "+m"(*whole) : : "cc", "memory");
        }
}

/* 8.1.1: an access of up to 8 bytes within a cache line is not torn, aligned or not; an aligned one of 16 bytes is not with AVX. */
static bool has_avx(void)
{
        uint32_t a = 1, b, c = 0, d;

        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        return c >> 28 & 1;
}

static void tear(unsigned number)
{
        uint8_t *odd = (uint8_t *)wide + 3;
        uint64_t a, b, bad = 0;

        if (number == 0) {
                for (unsigned i = 0; i < TURNS; i++) {
                        uint64_t v = i & 1 ? ~0ull : 0;

                        __asm__ volatile("movq %1, %0" : "=m"(*(any64 *)odd) : "r"(v) : "memory");
                        __asm__ volatile("movq %1, %%xmm0\n punpcklqdq %%xmm0, %%xmm0\n movdqa %%xmm0, %0"
                                         : "=m"(*(any128 *)&wide[2]) : "r"(v) : "memory");
                }
                flag = 1;
        } else if (number == 1) {
                bool avx = has_avx() && !tcg; /* TCG does two halves */

                while (!flag) {
                        __asm__ volatile("movq %1, %0" : "=r"(a) : "m"(*(any64 *)odd) : "memory");
                        bad += a && ~a;
                        __asm__ volatile("movdqa %2, %%xmm1\n movq %%xmm1, %0\n psrldq $8, %%xmm1\n movq %%xmm1, %1"
                                         : "=r"(a), "=r"(b) : "m"(*(any128 *)&wide[2]) : "memory");
                        bad += avx && a != b;
                }
                torn += bad;
        }
}

/* 8.2.4: stores of a string instruction are all seen before a store that follows it; flag counts the turns. */
static void string_then_flag(unsigned number)
{
        uint64_t bad = 0;

        for (uint64_t turn = 1; turn <= TURNS / 20 + 20; turn++) {
                uint64_t size = turn % 3 == 0 ? sizeof(block) : turn % 3 == 1 ? 256 : 24;

                if (number == 0) {
                        void *to = block;
                        uint64_t count = size / 8;

                        __asm__ volatile("rep stosq\n movq %%rax, %2" : "+D"(to), "+c"(count), "=m"(flag) : "a"(turn) : "memory");
                        while (acknowledged != turn)
                                pause_a_bit();
                } else if (number == 1) {
                        while (flag != turn)
                                pause_a_bit();
                        bad += *(volatile uint64_t *)(block + size - 8) != turn || *(volatile uint64_t *)block != turn;
                        bad += *(volatile uint64_t *)(block + size / 16 * 8) != turn;
                        acknowledged = turn;
                }
        }
        torn += bad;
}

typedef void part(unsigned number);
static part *volatile current_part;

static void run_part(part *p, uint32_t *sense)
{
        flag = acknowledged = torn = 0;
        current = NULL;
        current_part = p;
        barrier_wait(&gate, CPUS, sense);
        p(0);
        barrier_wait(&gate, CPUS, sense);
}

static void check_locks(uint32_t *sense)
{
        const uint64_t n = (uint64_t)TURNS * CPUS;

        run_part(count_up, sense);
        check_eq("LOCK INC, 1 byte", shared.counter[0], n & 0xff);
        check_eq("LOCK XADD, 4 bytes", shared.counter[1], (uint32_t)n);
        check_eq("LOCK ADD, 8 bytes", shared.counter[2], 3 * n);
        check_eq("LOCK CMPXCHG", shared.counter[3], n);
        check_eq("LOCK SUB, 2 bytes", shared.counter[4], (uint16_t)-n);
        check_eq("LOCK BTS and BTR as a lock", shared.counter[6], n);
        check_eq("LOCK ADD over a cache line's end", *(any64 *)(shared.line + 60), n);
        check_eq("LOCK ADD over a page's end", *(any64 *)shared.page, (uint64_t)((TURNS + 3) / 4) * CPUS);
        check_eq("LOCK CMPXCHG16B, low", pair[0], n);
        check_eq("LOCK CMPXCHG16B, high", pair[1], -n);
        run_part(split_and_plain, sense);
        check_eq("split lock and plain stores: lost", torn, 0);
        run_part(tear, sense);
        check_eq("accesses within a cache line: torn", torn, 0);
        run_part(string_then_flag, sense);
        check_eq("REP STOS, then a flag: stale", torn, 0);
}

/* ---- ---- */

void trap(struct frame *f)
{
        unexpected(f);
}

void ap_main(unsigned number)
{
        uint32_t sense = 0;

        for (;;) {
                const struct test *t;

                barrier_wait(&gate, CPUS, &sense);
                if (stop)
                        return;
                t = current;
                if (!t)
                        current_part(number);
                else if (number < t->threads)
                        run_batch(t, number);
                barrier_wait(&gate, CPUS, &sense);
        }
}

_Static_assert(offsetof(__typeof__(shared), page) % 4096 == 4092, "crosses a page");

void main(void)
{
        uint32_t sense = 0;

        tcg = under_tcg();
        setup_processor();
        smp_start(CPUS);
        for (unsigned i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
                if (CPUS == 2 ? tests[i].threads <= 2 : tests[i].threads > 2 || i < 4)
                        run_test(&tests[i], &sense);
        check_locks(&sense);
        stop = true;
        barrier_wait(&gate, CPUS, &sense);
        finish();
}
