/*
 * A small encoder for AML, ACPI's bytecode. ACPI 6.5 §20 "ACPI Machine Language (AML) Specification" and §6.4 (resources).
 *
 * Terms are appended to a writer in the order of the grammar. What has a PkgLength is opened and closed:
 *
 *      size_t scope = aml_open(out, AML_SCOPE);
 *      aml_path(out, "\\_SB");
 *      …
 *      aml_close(out, scope);
 *
 * Out of memory shows in out->bad at the end, as for every writer.
 */
#pragma once

#include "base/cursor.h"

/* Opcodes with a PkgLength (§20.2.5); the extended ones have 0x5b in the second byte. */
#define AML_SCOPE 0x10u
#define AML_BUFFER 0x11u
#define AML_PACKAGE 0x12u
#define AML_METHOD 0x14u
#define AML_IF 0xa0u
#define AML_ELSE 0xa1u
#define AML_DEVICE 0x5b82u

/* Writes the opcode; the result goes to aml_close(), which puts the PkgLength in front of what was written since. */
size_t aml_open(struct writer *out, unsigned opcode);
void aml_close(struct writer *out, size_t mark);

/* A name or path of four-character segments: "\\_SB", "PCI0", "\\_SB.PCI0". */
void aml_path(struct writer *out, const char *path);
/* The shortest constant: Zero, One, byte, word, dword or qword. */
void aml_integer(struct writer *out, uint64_t value);
void aml_string(struct writer *out, const char *text);
/* Name (path, integer), Name (path, string), Name (path, EisaId (id)). */
void aml_name_integer(struct writer *out, const char *path, uint64_t value);
void aml_name_string(struct writer *out, const char *path, const char *text);
void aml_name_eisa_id(struct writer *out, const char *path, const char *id);

/* Name (_CRS, ResourceTemplate () { … }): resources go between the two. */
struct aml_resources {
        struct writer bytes;
};
void aml_io(struct aml_resources *res, uint16_t port, uint8_t ports);
void aml_irq(struct aml_resources *res, unsigned irq);
void aml_memory32(struct aml_resources *res, uint32_t start, uint32_t size_bytes);
void aml_bus_window(struct aml_resources *res, uint16_t first, uint16_t last);
void aml_io_window(struct aml_resources *res, uint16_t first, uint16_t last);
void aml_memory32_window(struct aml_resources *res, uint32_t start, uint32_t size_bytes);
void aml_memory64_window(struct aml_resources *res, uint64_t start, uint64_t size_bytes);
/* Writes Name (_CRS, …) and frees res. */
void aml_crs(struct writer *out, struct aml_resources *res);
