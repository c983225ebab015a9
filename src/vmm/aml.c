/*
 * AML encoding. See aml.h.
 */
#include "vmm/aml.h"

#define NAME_OP 0x08u
#define BYTE_PREFIX 0x0au
#define WORD_PREFIX 0x0bu
#define DWORD_PREFIX 0x0cu
#define STRING_PREFIX 0x0du
#define QWORD_PREFIX 0x0eu
#define DUAL_NAME_PREFIX 0x2eu
#define MULTI_NAME_PREFIX 0x2fu

/* Resource descriptors, §6.4.2 and §6.4.3. */
#define RES_IRQ 0x22u
#define RES_IO 0x47u
#define RES_END 0x79u
#define RES_MEMORY32_FIXED 0x86u
#define RES_DWORD 0x87u
#define RES_WORD 0x88u
#define RES_QWORD 0x8au
#define WINDOW_MEMORY 0u
#define WINDOW_IO 1u
#define WINDOW_BUS 2u
#define WINDOW_FLAGS 0x0cu       /* producer, positive decode, minimum and maximum fixed */
#define WINDOW_MEMORY_TYPE 0x01u /* read-write, non-cacheable */
#define WINDOW_IO_TYPE 0x03u     /* entire range */

size_t aml_open(struct writer *out, unsigned opcode)
{
        if (opcode > 0xff)
                writer_u8(out, (uint8_t)(opcode >> 8));
        writer_u8(out, (uint8_t)opcode);
        return out->size;
}

/* §20.2.4: one byte up to 63, else the low nibble here and 8 bits in each of one to three bytes; it counts itself. */
static unsigned encode_length(size_t body_bytes, uint8_t length[4])
{
        unsigned bytes = 1;
        size_t total;

        if (body_bytes + 1 <= 0x3f) {
                length[0] = (uint8_t)(body_bytes + 1);
                return 1;
        }
        while (body_bytes + 1 + bytes >= (size_t)1 << (4 + 8 * bytes))
                bytes++;
        total = body_bytes + 1 + bytes;
        length[0] = (uint8_t)(bytes << 6 | (total & 0xf));
        for (unsigned i = 0; i < bytes; i++)
                length[1 + i] = (uint8_t)(total >> (4 + 8 * i));
        return 1 + bytes;
}

void aml_close(struct writer *out, size_t mark)
{
        uint8_t length[4] = { 0 };
        size_t body_bytes;
        unsigned bytes;

        if (out->bad)
                return;
        body_bytes = out->size - mark;
        bytes = encode_length(body_bytes, length);
        writer_put(out, length, bytes);
        if (out->bad)
                return;
        memmove(out->bytes + mark + bytes, out->bytes + mark, body_bytes);
        memcpy(out->bytes + mark, length, bytes);
}

void aml_path(struct writer *out, const char *path)
{
        unsigned segments = 1;

        if (*path == '\\')
                writer_u8(out, (uint8_t)*path++);
        for (const char *p = path; *p; p++)
                segments += *p == '.';
        if (segments == 2) {
                writer_u8(out, DUAL_NAME_PREFIX);
        } else if (segments > 2) {
                writer_u8(out, MULTI_NAME_PREFIX);
                writer_u8(out, (uint8_t)segments);
        }
        while (*path) {
                size_t length = strcspn(path, ".");

                for (size_t i = 0; i < 4; i++)
                        writer_u8(out, i < length ? (uint8_t)path[i] : '_');
                path += length + (path[length] == '.');
        }
}

void aml_integer(struct writer *out, uint64_t value)
{
        if (value <= 1) {
                writer_u8(out, (uint8_t)value);
        } else if (value <= UINT8_MAX) {
                writer_u8(out, BYTE_PREFIX);
                writer_u8(out, (uint8_t)value);
        } else if (value <= UINT16_MAX) {
                writer_u8(out, WORD_PREFIX);
                writer_le16(out, (uint16_t)value);
        } else if (value <= UINT32_MAX) {
                writer_u8(out, DWORD_PREFIX);
                writer_le32(out, (uint32_t)value);
        } else {
                writer_u8(out, QWORD_PREFIX);
                writer_le64(out, value);
        }
}

void aml_string(struct writer *out, const char *text)
{
        writer_u8(out, STRING_PREFIX);
        writer_put(out, text, strlen(text) + 1);
}

static void name(struct writer *out, const char *path)
{
        writer_u8(out, NAME_OP);
        aml_path(out, path);
}

void aml_name_integer(struct writer *out, const char *path, uint64_t value)
{
        name(out, path);
        aml_integer(out, value);
}

void aml_name_string(struct writer *out, const char *path, const char *text)
{
        name(out, path);
        aml_string(out, text);
}

static uint32_t hex_digit(char c)
{
        return c <= '9' ? (uint32_t)(c - '0') : (uint32_t)(c - 'A' + 10);
}

/* Three letters of five bits and four hexadecimal digits, big-endian (§19.3.4 ASL macros, EISAID). */
void aml_name_eisa_id(struct writer *out, const char *path, const char *id)
{
        uint32_t value = 0;

        for (unsigned i = 0; i < 3; i++)
                value = value << 5 | ((uint32_t)id[i] & 0x1f);
        for (unsigned i = 3; i < 7; i++)
                value = value << 4 | hex_digit(id[i]);
        name(out, path);
        writer_u8(out, DWORD_PREFIX);
        writer_le32(out, __builtin_bswap32(value));
}

void aml_io(struct aml_resources *res, uint16_t port, uint8_t ports)
{
        writer_u8(&res->bytes, RES_IO);
        writer_u8(&res->bytes, 1); /* decodes 16 bits */
        writer_le16(&res->bytes, port);
        writer_le16(&res->bytes, port);
        writer_u8(&res->bytes, 1);
        writer_u8(&res->bytes, ports);
}

void aml_irq(struct aml_resources *res, unsigned irq)
{
        writer_u8(&res->bytes, RES_IRQ);
        writer_le16(&res->bytes, (uint16_t)(1u << irq));
}

void aml_memory32(struct aml_resources *res, uint32_t start, uint32_t size_bytes)
{
        writer_u8(&res->bytes, RES_MEMORY32_FIXED);
        writer_le16(&res->bytes, 9);
        writer_u8(&res->bytes, 1); /* writable */
        writer_le32(&res->bytes, start);
        writer_le32(&res->bytes, size_bytes);
}

static void window_head(struct aml_resources *res, uint8_t tag, uint8_t field_bytes, uint8_t type, uint8_t type_flags)
{
        writer_u8(&res->bytes, tag);
        writer_le16(&res->bytes, (uint16_t)(3 + 5 * field_bytes));
        writer_u8(&res->bytes, type);
        writer_u8(&res->bytes, WINDOW_FLAGS);
        writer_u8(&res->bytes, type_flags);
}

static void word_window(struct aml_resources *res, uint8_t type, uint8_t type_flags, uint16_t first, uint16_t last)
{
        window_head(res, RES_WORD, 2, type, type_flags);
        writer_le16(&res->bytes, 0); /* granularity */
        writer_le16(&res->bytes, first);
        writer_le16(&res->bytes, last);
        writer_le16(&res->bytes, 0); /* translation */
        writer_le16(&res->bytes, (uint16_t)(last - first + 1));
}

void aml_bus_window(struct aml_resources *res, uint16_t first, uint16_t last)
{
        word_window(res, WINDOW_BUS, 0, first, last);
}

void aml_io_window(struct aml_resources *res, uint16_t first, uint16_t last)
{
        word_window(res, WINDOW_IO, WINDOW_IO_TYPE, first, last);
}

void aml_memory32_window(struct aml_resources *res, uint32_t start, uint32_t size_bytes)
{
        window_head(res, RES_DWORD, 4, WINDOW_MEMORY, WINDOW_MEMORY_TYPE);
        writer_le32(&res->bytes, 0);
        writer_le32(&res->bytes, start);
        writer_le32(&res->bytes, start + (size_bytes - 1));
        writer_le32(&res->bytes, 0);
        writer_le32(&res->bytes, size_bytes);
}

void aml_memory64_window(struct aml_resources *res, uint64_t start, uint64_t size_bytes)
{
        window_head(res, RES_QWORD, 8, WINDOW_MEMORY, WINDOW_MEMORY_TYPE);
        writer_le64(&res->bytes, 0);
        writer_le64(&res->bytes, start);
        writer_le64(&res->bytes, start + (size_bytes - 1));
        writer_le64(&res->bytes, 0);
        writer_le64(&res->bytes, size_bytes);
}

void aml_crs(struct writer *out, struct aml_resources *res)
{
        size_t buffer;

        writer_u8(&res->bytes, RES_END);
        writer_u8(&res->bytes, 0); /* no checksum */
        name(out, "_CRS");
        buffer = aml_open(out, AML_BUFFER);
        aml_integer(out, res->bytes.size);
        writer_put(out, res->bytes.bytes, res->bytes.size);
        aml_close(out, buffer);
        out->bad |= res->bytes.bad;
        writer_done(&res->bytes);
}
