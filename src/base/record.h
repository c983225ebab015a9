/*
 * State as a stream of records: how a device, vCPU or driver saves and loads itself.
 *
 * A record is   name length (1) · name · version (le16) · body length (le32) · body.
 * Within a body the writer's and cursor's little-endian fields are used. A loader reads the body through a cursor that ends
 * where the body ends, accepts the versions it knows, and refuses bytes that are left over.
 *
 *      size_t mark = record_begin(out, "rtc", 1);
 *      writer_le64(out, rtc->offset_s);
 *      record_end(out, mark);
 */
#pragma once

#include "base/cursor.h"
#include "base/err.h"

#define RECORD_NAME_MAX 63

struct record {
        char name[RECORD_NAME_MAX + 1];
        uint16_t version;
        struct cursor body;
};

/* Opens a record; the result goes to record_end(). Records may nest. */
size_t record_begin(struct writer *out, const char *name, uint16_t version);
void record_end(struct writer *out, size_t mark);

/* Reads the next record's header; -ENODATA at a clean end, -EBADMSG when it is cut or its name is not text. */
int record_next(struct cursor *in, struct record *record, struct err *err) _must_check_;

/* The same, and -EBADMSG when it is another record, or another version of it. */
int record_expect(struct cursor *in, const char *name, uint16_t version, struct record *record, struct err *err) _must_check_;

/* 0 when the body was read to its end and no field was missing, else -EBADMSG that names the record. */
int record_finish(const struct record *record, struct err *err) _must_check_;
