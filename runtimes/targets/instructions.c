/* A plugin of qemu-user that counts the Arm instructions of a region by class.
 *
 * The guest marks the region by a system call that no kernel has; at its end a line of counts is added to a file. QEMU's
 * plugin interface (version 1, QEMU 4.2 to 8.2) is declared here, for distributions ship qemu-user without its header.
 * The classes follow A64's encoding tables in the Arm Architecture Reference Manual (DDI 0487), section C4.1; those of one
 * instruction exclude each other; `instructions_a32.c` has the 32-bit sets. Counters are not atomic: one thread at a time.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "instructions.h"

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t plugin_id;
enum { ADD_U64 = 0 };
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern char *qemu_plugin_insn_disas(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t,
    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static const char *const NAMES[CLASSES] = {
    "integer", "branch", "memory", "float", "neon_float", "neon_integer", "dot_product"};
static uint64_t counts[CLASSES + 1], before[CLASSES + 1];
static int64_t mark;
static int is_a64;
static const char *output;

static int is(uint32_t code, uint32_t mask, uint32_t value) { return (code & mask) == value; }

/* SDOT, UDOT, USDOT (vectors), by element also SUDOT, and the int8 matrix products SMMLA, UMMLA, USMMLA. */
static int dot_product(uint32_t code)
{
    return is(code, 0x9FE0FC00, 0x0E809400) || is(code, 0xBFE0FC00, 0x0E809C00) || is(code, 0x9FC0F400, 0x0F80E000) ||
           is(code, 0xBF40F400, 0x0F00F000) || is(code, 0xDFE0FC00, 0x4E80A400) || is(code, 0xFFE0FC00, 0x4E80AC00);
}

static int vector_float(uint32_t code)
{
    uint32_t opcode5 = code >> 11 & 31, opcode4 = code >> 12 & 15, misc = code >> 12 & 31, u = code >> 29 & 1;
    if (is(code, 0x9F200400, 0x0E200400)) return opcode5 >= 24;                 /* three same: FADD … FMLA, FMLAL */
    if (is(code, 0x9F60C400, 0x0E400400)) return 1;                             /* three same, half precision */
    if (is(code, 0x9F208400, 0x0E008400)) return (opcode5 & 15) >= 8;           /* three same, extra: FCMLA, FCADD */
    if (is(code, 0x9F3E0C00, 0x0E200800) || is(code, 0x9F7E0C00, 0x0E780800))   /* two registers; half precision */
        return misc >= 22 || (misc >= 12 && misc <= 15 && (code >> 23 & 1));
    if (is(code, 0x9F3E0C00, 0x0E300800)) return misc == 12 || misc == 13 || misc == 15; /* across lanes, pairs: FMAXNMV, FADDP, FMAXV */
    if (is(code, 0x9F000400, 0x0F000000))                                       /* by element */
        return opcode4 == 1 || opcode4 == 5 || opcode4 == 9 || (u && (opcode4 == 3 || opcode4 == 7)) ||
               ((code >> 22 & 3) == 2 && (u ? opcode4 == 8 || opcode4 == 12 : opcode4 == 0 || opcode4 == 4));
    if (is(code, 0x9F800400, 0x0F000400) && (code >> 19 & 15))                  /* by immediate: SCVTF, FCVTZS */
        return opcode5 == 28 || opcode5 == 31;
    return 0;
}

static int classify_a64(uint32_t code)
{
    uint32_t group = code >> 25 & 15;
    if ((group & 5) == 4) return MEMORY;
    if ((group & 14) == 10) return BRANCH;
    if ((group & 7) != 7) return INTEGER;
    if (is(code, 0x5E000000, 0x1E000000)) return FLOAT;    /* scalar arithmetic, conversions and moves */
    if (dot_product(code)) return DOT_PRODUCT;
    /* Scalar forms of vector instructions have bits 30 and 28 set; the table is the vectors' without them. */
    uint32_t vector = is(code, 0xD0000000, 0x50000000) ? code & ~0x50000000u : code;
    return vector_float(vector) ? NEON_FLOAT : NEON_INTEGER;
}

static int class_of(const struct qemu_plugin_insn *instruction)
{
    if (is_a64) {
        uint32_t code;
        memcpy(&code, qemu_plugin_insn_data(instruction), sizeof code);
        return classify_a64(code);
    }
    char *text = qemu_plugin_insn_disas(instruction);
    int found = text ? classify_a32(text) : UNKNOWN;
    free(text);
    return found;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    uint64_t found[CLASSES + 1] = {0};
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) found[class_of(qemu_plugin_tb_get_insn(block, i))]++;
    for (int i = 0; i <= CLASSES; i++)
        if (found[i]) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &counts[i], found[i]);
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t begins, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    (void)id, (void)cpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number != mark) return;
    if (begins) {
        memcpy(before, counts, sizeof before);
        return;
    }
    FILE *file = fopen(output, "a");
    if (!file) return;
    for (int i = 0; i < CLASSES; i++)
        fprintf(file, "%s\"%s\": %llu", i ? ", " : "{", NAMES[i], (unsigned long long)(counts[i] - before[i]));
    if (counts[UNKNOWN] > before[UNKNOWN])
        fprintf(file, ", \"unknown\": %llu", (unsigned long long)(counts[UNKNOWN] - before[UNKNOWN]));
    fputs("}\n", file);
    fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    /* The first of what it tells is the name of the emulated architecture. */
    is_a64 = !strcmp(*(const char *const *)info, "aarch64");
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "output=", 7)) output = strdup(argv[i] + 7);
        if (!strncmp(argv[i], "mark=", 5)) mark = atoll(argv[i] + 5);
    }
    if (!output || !mark) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
