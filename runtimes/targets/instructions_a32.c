/* The class of a 32-bit Arm instruction, A32 or T32, by its disassembly.
 *
 * The interface does not tell in which of the two sets a block is, and four bytes can be an instruction of either; nor is
 * the size it tells right at the end of a page. QEMU's disassembler knows the set, and names each instruction as the Arm
 * Architecture Reference Manual (DDI 0406), chapter A8, does. The classes are those of the A64 tables: hints, barriers,
 * system registers and supervisor calls go with the branches.
 */
#include <ctype.h>
#include <string.h>

#include "instructions.h"

static const char *const CONDITIONS[] = {
    "", "eq", "ne", "cs", "hs", "cc", "lo", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le", "al", 0};
static const char *const BRANCHES[] = {"blx", "bxj", "bl", "bx", "b", "cbz", "cbnz", "tbb", "tbh", 0};
/* What begins with one of these is of one class, whatever follows. IT is among T32's hints. */
static const char *const SYSTEM[] = {
    "svc", "hvc", "smc", "udf", "bkpt", "hlt", "it", "nop", "yield", "wfe", "wfi", "sev", "hint", "dbg", "dmb", "dsb", "isb",
    "csdb", "clrex", "setend", "cps", "eret", "mrs", "msr", "mrc", "mcr", "mrrc", "mcrr", "cdp", 0};
static const char *const MEMORY_ACCESS[] = {
    "ldr", "str", "ldm", "stm", "push", "pop", "pld", "pli", "lda", "stl", "ldc", "stc", "swp", "rfe", "srs", "fldm", "fstm",
    "vld", "vst", "vpush", "vpop", 0};
static const char *const DOT_PRODUCTS[] = {"vsdot", "vudot", "vusdot", "vsudot", "vsmmla", "vummla", "vusmmla", 0};
static const char *const STATUS[] = {"vmrs", "vmsr", "fmstat", 0};

static int begins(const char *text, const char *const *names)
{
    for (; *names; names++)
        if (!strncmp(text, *names, strlen(*names))) return 1;
    return 0;
}

/* Whether it is a branch, with any condition: "ble" is one, "bic" is not. */
static int is_branch(const char *name)
{
    char plain[16];
    size_t length = strcspn(name, ".");
    if (length >= sizeof plain) return 0;
    memcpy(plain, name, length);
    plain[length] = 0;
    for (const char *const *one = BRANCHES; *one; one++)
        if (!strncmp(plain, *one, strlen(*one)))
            for (const char *const *condition = CONDITIONS; *condition; condition++)
                if (!strcmp(plain + strlen(*one), *condition)) return 1;
    return 0;
}

/* Whether a register of a kind is among the operands: 's' single precision, 'r' of the core by any of its names. */
static int names_register(const char *operands, char kind)
{
    for (const char *at = operands; *at; at++) {
        if (at > operands && isalnum((unsigned char)at[-1])) continue;
        if (kind == 's' ? at[0] == 's' && isdigit((unsigned char)at[1])
                        : (at[0] == 'r' && isdigit((unsigned char)at[1])) || !strncmp(at, "sb", 2) ||
                              !strncmp(at, "sl", 2) || !strncmp(at, "fp", 2) || !strncmp(at, "ip", 2) ||
                              !strncmp(at, "sp", 2) || !strncmp(at, "lr", 2))
            return 1;
    }
    return 0;
}

static int classify_vector(const char *name, const char *operands)
{
    if (begins(name, DOT_PRODUCTS)) return DOT_PRODUCT;
    if (begins(name, STATUS)) return FLOAT;
    /* The vector unit of this architecture has no double precision: what has it is scalar. */
    if (strstr(name, ".f64") || names_register(operands, 's')) return FLOAT;
    if (!strncmp(name, "vmov", 4))
        /* Of a lane ("d0[1]") as of a whole vector it is the vectors'; of 64 bits of the core it is scalar. */
        return names_register(operands, 'r') && !strchr(operands, '[') ? FLOAT : NEON_INTEGER;
    return strstr(name, ".f32") || strstr(name, ".f16") || strstr(name, ".bf16") ? NEON_FLOAT : NEON_INTEGER;
}

int classify_a32(const char *text)
{
    char name[32];
    size_t length = strcspn(text, " \t");
    if (!length || length >= sizeof name || !isalpha((unsigned char)text[0])) return UNKNOWN;
    memcpy(name, text, length);
    name[length] = 0;
    if (is_branch(name) || begins(name, SYSTEM)) return BRANCH;
    if (begins(name, MEMORY_ACCESS)) return MEMORY;
    return name[0] == 'v' || begins(name, STATUS) ? classify_vector(name, text + length) : INTEGER;
}
