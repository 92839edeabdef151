/* The classes of instructions, as `instructions.py` names them. */
#ifndef EDGEKIT_INSTRUCTIONS_H
#define EDGEKIT_INSTRUCTIONS_H

enum { INTEGER, BRANCH, MEMORY, FLOAT, NEON_FLOAT, NEON_INTEGER, DOT_PRODUCT, CLASSES, UNKNOWN = CLASSES };

/* The class of a 32-bit instruction (A32 or T32) by its disassembly; UNKNOWN if there is none. */
int classify_a32(const char *text);

#endif
