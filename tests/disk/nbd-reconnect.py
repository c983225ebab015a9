"""A server that is killed under load, and started anew: no request fails, and no byte is lost. nbd-reconnect.py VIRTA"""
import os
import random
import subprocess
import sys
import time

import nbd

MIB = 1 << 20


def start(virta, image, address, pid_file):
    if os.path.exists(pid_file):
        os.unlink(pid_file)
    server = subprocess.Popen([virta, "disk", "serve", image, "--nbd", address, "--pid-file", pid_file], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    while not os.path.exists(pid_file):
        assert server.poll() is None
        time.sleep(0.02)
    return server


def main():
    virta = sys.argv[1]
    random.seed(3)
    with open("r.raw", "wb") as file:
        file.truncate(16 * MIB)
    whole = bytearray(16 * MIB)
    back = start(virta, "r.raw", "unix:rb", "rb.pid")
    front = start(virta, "nbd+unix:///?socket=rb&reconnect=60", "unix:rf", "rf.pid")
    try:
        h = nbd.NBD()
        h.connect_uri("nbd+unix:///?socket=rf")
        for n in range(6):
            jobs = []
            for at in range(0, 16 * MIB, MIB // 4):
                data = random.randbytes(random.randrange(1, MIB // 4))
                whole[at:at + len(data)] = data
                jobs.append(h.aio_pwrite(nbd.Buffer.from_bytearray(data), at))
                if at == random.randrange(16) * MIB:
                    h.poll(0)
            back.kill()
            back.wait()
            if os.path.exists("rb"):
                os.unlink("rb")
            back = start(virta, "r.raw", "unix:rb", "rb.pid")
            for cookie in jobs:
                while not h.aio_command_completed(cookie):
                    h.poll(-1)
        for at in range(0, 16 * MIB, MIB):
            assert h.pread(MIB, at) == whole[at:at + MIB], at
        h.flush()
        h.shutdown()
        front.terminate()
        assert front.wait(20) == 0
        assert open("r.raw", "rb").read() == whole
        # And one that does not come back: an error, after the time that was said.
        front = start(virta, "nbd+unix:///?socket=rb&reconnect=1", "unix:rf", "rf.pid")
        h = nbd.NBD()
        h.connect_uri("nbd+unix:///?socket=rf")
        assert h.pread(512, 0) == whole[:512]
        back.kill()
        back.wait()
        try:
            h.pread(512, 0)
            raise AssertionError("it was read")
        except nbd.Error as error:
            assert error.errno == "EIO", error.errno
    finally:
        back.kill()
        front.kill()


main()
