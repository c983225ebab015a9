"""All commands of the NBD protocol from libnbd's side, at random places, beside a copy in memory. nbd-client.py URI"""
import random
import sys

import nbd

MIB = 1 << 20


def main():
    random.seed(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(sys.argv[1])
    assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h2 = nbd.NBD()
    h2.connect_uri(sys.argv[1])
    size = h.get_size()
    whole = bytearray(b"".join(h.pread(MIB, at) for at in range(0, size, MIB)))
    first = bytes(whole)

    def place():
        length = random.choice([1, 511, 512, 4096, 65536, 70000, random.randrange(1, 3 * MIB)])
        return random.randrange(0, size - length), length

    for n in range(300):
        at, length = place()
        who = random.choice([h, h2])
        what = random.randrange(8)
        flags = random.choice([0, nbd.CMD_FLAG_FUA])
        if what <= 2:
            data = random.randbytes(length)
            who.pwrite(data, at, flags)
            whole[at:at + length] = data
        elif what == 3:
            who.zero(length, at, flags | random.choice([0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO if who.can_fast_zero() else 0]))
            whole[at:at + length] = bytes(length)
        elif what == 4:
            who.trim(length, at, flags)
            whole[at:at + length] = who.pread(length, at)
        elif what == 5:
            who.flush()
            who.cache(length, at)
        else:
            assert who.pread(length, at) == whole[at:at + length], (n, at, length)

    # Reads in pieces, as they come.
    at, length = 0, 8 * MIB
    pieces = bytearray(length)

    def chunk(bytes_, offset, status, error):
        assert error.value == 0
        if status == nbd.READ_DATA:
            pieces[offset - at:offset - at + len(bytes_)] = bytes_
        else:
            assert status == nbd.READ_HOLE
        return 0

    h.pread_structured(length, at, chunk)
    assert pieces == whole[at:at + length]
    pieces = bytearray(length)
    h.pread_structured(length, at, chunk, nbd.CMD_FLAG_DF)
    assert pieces == whole[at:at + length]

    # What is said to be zero is.
    at = 0
    while at < size:
        found = []
        h.block_status(size - at, at, lambda context, offset, extents, error: found.extend(extents) or 0)
        assert found
        for length, state in zip(found[::2], found[1::2]):
            assert length and at + length <= size
            assert not state & nbd.STATE_ZERO or not any(whole[at:at + length]), at
            at += length
    one = []
    h.block_status(size, 0, lambda context, offset, extents, error: one.extend(extents) or 0, nbd.CMD_FLAG_REQ_ONE)
    assert len(one) == 2

    # Many at a time.
    for _ in range(4):
        jobs = []
        for _ in range(64):
            at, length = place()
            if random.randrange(2):
                buffer = nbd.Buffer(length)
                jobs.append((h.aio_pread(buffer, at), buffer))
            else:
                data = whole[at:at + length]
                jobs.append((h.aio_pwrite(nbd.Buffer.from_bytearray(data), at), None))
        for cookie, _ in jobs:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
    for at in range(0, size, MIB):
        assert h2.pread(MIB, at) == whole[at:at + MIB], at

    # What is wrong is refused, and nothing else happens.
    h.set_strict_mode(0)
    for call, errno in ((lambda: h.pread(1, size), "EINVAL"), (lambda: h.pwrite(b"x", size), "ENOSPC"), (lambda: h.zero(2, size - 1), "ENOSPC"),
                        (lambda: h.pread(64 * MIB, 0), None), (lambda: h.trim(1, size), "ENOSPC")):
        try:
            call()
            raise AssertionError("it was done")
        except nbd.Error as error:
            assert errno is None or error.errno == errno, (error.errno, errno)
    # As it was before.
    for at in range(0, size, MIB):
        h.pwrite(first[at:at + MIB], at)
    h.flush()
    h.shutdown()
    h2.shutdown()


main()
