"""Servers that lie: our client ends each time with one line, and without harm. nbd-servers.py VIRTA"""
import os
import random
import socket
import struct
import subprocess
import sys
import threading

import nbd_wire as wire
from nbd_wire import chunk, get

SIZE = 1 << 20


def export(size=SIZE, flags=1, sizes=(1, 4096, 32 << 20)):
    return [(3, struct.pack(">HQH", 0, size, flags)), (3, struct.pack(">HIII", 3, *sizes)), (1, b"")]


def handshake(s, go, structured=True):
    s.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
    get(s, 4)
    while True:
        number, _ = wire.get_option(s)
        if number == wire.OPT_EXTENDED:
            wire.send_option_reply(s, number, wire.REP_UNSUPPORTED)
        elif number == wire.OPT_STRUCTURED:
            wire.send_option_reply(s, number, wire.REP_ACK if structured else wire.REP_UNSUPPORTED)
        elif number == wire.OPT_SET_CONTEXT:
            wire.send_option_reply(s, number, wire.REP_CONTEXT, struct.pack(">I", 5) + b"base:allocation")
            wire.send_option_reply(s, number, wire.REP_ACK)
        else:
            for kind, data in go:
                wire.send_option_reply(s, number, kind, data)
            return


READ_REPLIES = [
    lambda c, o, n: chunk(c + 1, 1, struct.pack(">Q", o) + bytes(n)),                 # of nobody
    lambda c, o, n: chunk(c, 1, struct.pack(">Q", o) + bytes(n - 1)),                 # too little
    lambda c, o, n: chunk(c, 1, struct.pack(">Q", o + 1) + bytes(n)),                 # behind the end
    lambda c, o, n: chunk(c, 1, struct.pack(">Q", (o - 1) % 2**64) + bytes(n)),
    lambda c, o, n: chunk(c, 1, struct.pack(">Q", o) + bytes(n), 0) + chunk(c, 1, struct.pack(">Q", o) + bytes(1)),  # twice
    lambda c, o, n: chunk(c, 2, struct.pack(">QI", o, 0xFFFFFFFF)),
    lambda c, o, n: chunk(c, 2, struct.pack(">QI", 2**64 - 1, 2)),
    lambda c, o, n: chunk(c, 0, b"x"),
    lambda c, o, n: chunk(c, 0, b""),                                                 # no data at all
    lambda c, o, n: chunk(c, 5, struct.pack(">III", 5, 512, 0)),                      # an answer to another question
    lambda c, o, n: chunk(c, 0x8001, struct.pack(">IH", 0, 0)),                       # no error
    lambda c, o, n: chunk(c, 77, b""),
    lambda c, o, n: struct.pack(">IIQ", wire.SIMPLE_REPLY, 0, c),                            # simple, where it may not be
    lambda c, o, n: struct.pack(">IHHQI", wire.CHUNK, 1, 1, c, 0xFFFFFFFF),
    lambda c, o, n: struct.pack(">I", 0xDEADBEEF) + bytes(100),
    lambda c, o, n: b"".join(chunk(c, 2, struct.pack(">QI", o + 2 * k, 1), 0) for k in range(200)),  # in too many pieces
    lambda c, o, n: random.Random(c).randbytes(500),
]
STATUS_REPLIES = [
    lambda c, o, n: chunk(c, 5, struct.pack(">I", 5)),
    lambda c, o, n: chunk(c, 5, struct.pack(">III", 5, 0, 0)),
    lambda c, o, n: chunk(c, 5, struct.pack(">IIII", 5, 1, 2, 3)),
    lambda c, o, n: chunk(c, 6, struct.pack(">IIQQ", 5, 1, n, 0)),
    lambda c, o, n: chunk(c, 1, struct.pack(">Q", o) + bytes(n)),
    lambda c, o, n: struct.pack(">IIQ", wire.SIMPLE_REPLY, 0, c),
]
SHAKES = [
    b"",
    b"GET / HTTP/1.0\r\n\r\n",
    b"NBDMAGIC" + struct.pack(">Q", wire.OLD_STYLE) + bytes(200),
    b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3) + bytes(40),
    b"NBDMAGICIHAVEOPT" + struct.pack(">HQIII", 3, wire.OPTION_REPLY, 11, 1, 0xFFFFFFFF),
    b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3) + struct.pack(">QIII", wire.OPTION_REPLY, 11, 4, 0) * 300,
]
EXPORTS = [
    export(0), export(2**64 - 1), export(sizes=(3, 4096, 1 << 20)), export(sizes=(4096, 512, 1 << 20)), export(sizes=(4096, 4096, 5000)),
    export(sizes=(1, 4096, 0)), [(1, b"")], [(3, b"\0"), (1, b"")], [(1 << 31 | 6, b"\33[31mno")], [(9, b"")], [(3, bytes(9))] * 300,
]


def serve(listener, talk):
    while True:
        try:
            s, _ = listener.accept()
        except OSError:
            return
        try:
            talk(s)
        except (EOFError, ConnectionError):
            pass
        s.close()


def answer(status, read):
    def talk(s):
        handshake(s, export())
        while True:
            command, cookie, offset, length = wire.get_request(s)
            if command == wire.CMD_STATUS:
                s.sendall(status(cookie, offset, length))
            elif command == wire.CMD_READ:
                s.sendall(read(cookie, offset, length))
                s.shutdown(socket.SHUT_WR)
            else:
                return
    return talk


def good_status(c, o, n):
    return chunk(c, 5, struct.pack(">III", 5, n, 0))


def noise(s, text):
    s.sendall(text)
    s.shutdown(socket.SHUT_WR)
    while s.recv(65536):
        pass


def main():
    virta = sys.argv[1]
    talks = [lambda s, t=t: noise(s, t) for t in SHAKES]
    talks += [lambda s, e=e: (handshake(s, e), s.shutdown(socket.SHUT_WR), s.recv(1)) for e in EXPORTS]
    talks += [answer(good_status, r) for r in READ_REPLIES] + [answer(r, READ_REPLIES[0]) for r in STATUS_REPLIES]
    for n, talk in enumerate(talks):
        if os.path.exists("l"):
            os.unlink("l")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("l")
        listener.listen(5)
        threading.Thread(target=serve, args=(listener, talk), daemon=True).start()
        run = subprocess.run([virta, "disk", "convert", "nbd+unix:///?socket=l&reconnect=0", "l.raw", "--from", "raw", "--overwrite"],
                             capture_output=True, timeout=30)
        assert run.returncode == 1, (n, run)
        assert run.stderr.count(b"\n") == 1 and b"\33" not in run.stderr, (n, run.stderr)
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


main()
