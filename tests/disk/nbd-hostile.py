"""What no honest client would send, to our server; it must stay there for honest ones. nbd-hostile.py VIRTA (data.raw is in the folder)"""
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time

import nbd_wire as wire
from nbd_wire import get, send_option, send_request


def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect("h")
    return s


def greet(flags=3):
    s = connect()
    assert get(s, 18)[:8] == b"NBDMAGIC"
    s.sendall(struct.pack(">I", flags))
    return s


def begin(structured=True):
    s = greet()
    if structured:
        send_option(s, wire.OPT_STRUCTURED)
        assert wire.get_option_reply(s)[1] == wire.REP_ACK
    send_option(s, wire.OPT_GO, struct.pack(">IH", 0, 0))
    while True:
        _, kind, _ = wire.get_option_reply(s)
        if kind == wire.REP_ACK:
            return s
        assert kind == wire.REP_INFO


def expect_end(s):
    try:
        while s.recv(65536):
            pass
    except ConnectionError:
        pass


def main():
    server = subprocess.Popen([sys.argv[1], "disk", "serve", "h.raw", "--nbd", "unix:h", "--pid-file", "h.pid"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    while not os.path.exists("h.pid"):
        assert server.poll() is None
        time.sleep(0.02)
    try:
        expect_end(greet(0xFF))
        # An old client: no structured replies, the export by its name, zeroes behind it.
        s = greet(1)
        send_option(s, wire.OPT_EXPORT_NAME)
        size, = struct.unpack(">Q", get(s, 8))
        get(s, 2 + 124)
        send_request(s, wire.CMD_READ, 5, 100)
        assert struct.unpack(">IIQ", get(s, 16)) == (wire.SIMPLE_REPLY, 0, 7)
        assert get(s, 100) == open("h.raw", "rb").read(105)[5:]
        send_request(s, wire.CMD_END, 0, 0)
        expect_end(s)
        s = greet()
        send_option(s, wire.OPT_EXPORT_NAME, b"no such export")
        expect_end(s)
        # Options that lie about their lengths, or are not known.
        for number, data in ((7, b""), (7, struct.pack(">I", 0xFFFFFFFF)), (6, struct.pack(">IH", 0, 9)), (9, struct.pack(">II", 0, 5)),
                             (10, struct.pack(">III", 0, 1, 0xFFFFFFF0)), (5, b""), (5, b"x"), (8, b"x"), (3, b"x"), (77, b"y" * 1000)):
            s = greet()
            send_option(s, number, data)
            assert wire.get_option_reply(s)[1] & (1 << 31), number
            s.close()
        s = greet()
        s.sendall(struct.pack(">QII", wire.OPTION, 7, 0xFFFFFFFF))
        expect_end(s)
        s = greet()
        s.sendall(b"x" * 64)
        expect_end(s)
        # Requests.
        s = begin()
        send_request(s, 0, 0, 512, magic=1)
        expect_end(s)
        s = begin()
        send_request(s, 1, 0, 0xFFFFFFFF)
        expect_end(s)
        s = begin()
        for command, offset, length, flags in ((0, size, 1, 0), (0, 2**64 - 1, 512, 0), (99, 0, 0, 0), (0, 0, 512, 0x8000), (7, 0, 512, 0),
                                               (4, size - 1, 2, 0), (6, 2**64 - 512, 512, 0), (0, 0, 0xFFFFFFFF, 0)):
            send_request(s, command, offset, length, cookie=command, flags=flags)
            magic, = struct.unpack(">I", get(s, 4))
            if magic == wire.SIMPLE_REPLY:
                error, cookie = struct.unpack(">IQ", get(s, 12))
            else:
                _, kind, cookie, length = struct.unpack(">HHQI", get(s, 16))
                assert kind == 0x8001
                error, = struct.unpack(">I", get(s, length)[:4])
            assert error and cookie == command, (command, offset)
        # A write that is refused takes its payload with it.
        send_request(s, 1, size, 512)
        s.sendall(b"\1" * 512)
        assert struct.unpack(">IIQ", get(s, 16)) == (wire.SIMPLE_REPLY, 28, 7)
        s.close()
        # Much is asked for, and nothing is taken: the server's memory stays bounded.
        greedy = begin()
        greedy.setblocking(False)
        asked = 0
        try:
            for asked in range(20000):
                send_request(greedy, 0, 0, 1 << 20)
        except BlockingIOError:
            pass
        time.sleep(0.3)
        peak = int(next(line for line in open(f"/proc/{server.pid}/status") if line.startswith("VmHWM")).split()[1])
        assert peak < 400 * 1024 or "asan" in sys.argv[1], peak
        # Half a payload, and then nothing; many that connect and say nothing.
        s = begin()
        send_request(s, 1, 0, 1 << 20)
        s.sendall(b"x" * 1000)
        s.close()
        silent = [connect() for _ in range(40)]
        for s in silent:
            s.close()
        # Noise behind an honest beginning.
        random.seed(5)
        for n in range(30):
            s = begin(n % 2)
            for _ in range(random.randrange(5)):
                send_request(s, random.choice([0, 3, 5, 7]), random.randrange(size - 65536), random.randrange(65536))
            try:
                s.sendall(random.randbytes(random.randrange(1, 4000)))
                s.shutdown(socket.SHUT_WR)
            except ConnectionError:
                pass
            expect_end(s)
        greedy.close()
        s = begin()
        send_request(s, 0, 0, 512)
        get(s, 20 + 8 + 512)
        # What was asked for before a signal is answered, however late it is taken.
        for n in range(100):
            send_request(s, 0, n * 65536, 65536, flags=4)
        server.send_signal(signal.SIGTERM)
        for _ in range(100):
            get(s, 28 + 65536)
        assert server.wait(10) == 0
    finally:
        server.kill()


open("h.raw", "wb").write(open("data.raw", "rb").read(8 << 20))
main()
