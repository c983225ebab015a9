#!/usr/bin/env python3
"""vhost-user.py VIRTA IMAGE SOCKET: `virta disk serve --vhost-user` against a front end in Python: every request, front ends that lie, a back end
that is killed with requests in flight."""
import atexit, os, random, signal, struct, subprocess, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from vhost_user import *

virta, image, path = sys.argv[1:4]
count = 0


def ok(what):
    global count
    count += 1
    print("ok %d - %s" % (count, what), flush=True)


def serve(*more, filters=()):
    process = subprocess.Popen([virta, "disk", "serve", image, "--vhost-user", path, "--serial", "a serial of 20 byte", *more],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    line = process.stdout.readline()
    assert "vhost-user:" in line, line + process.stderr.read()
    return process


def end(process, expect=0):
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == expect, (process.returncode, err)
    return err


def machine(queues=1, **kw):
    front = FrontEnd(path, **kw)
    front.negotiate()
    front.share()
    front.record(queues, 16)
    rings = [Ring(front, n, n * (1 << 20)) for n in range(queues)]
    for ring in rings:
        ring.start()
    return front, rings


def plain():
    server = serve()
    front, (ring, other) = machine(2)
    config = front.config()
    sectors = struct.unpack("<Q", config[:8])[0]
    assert sectors == 64 << 11, sectors
    assert struct.unpack("<H", config[34:36])[0] == front.queues == 4
    assert front.config(96)[60:] == bytes(36)
    ok("configuration")
    for n, r in enumerate((ring, other)):
        data = random.randbytes(4096)
        assert r.do(T_OUT, 8 * n, data)[0] == 0
        assert r.do(T_IN, 8 * n, room=4096) == (0, data)
        assert r.do(T_FLUSH, 0)[0] == 0
    ok("write, flush, read on two rings")
    assert ring.do(T_GET_ID, 0, room=20) == (0, b"a serial of 20 byte\0")
    ok("get-id")
    assert ring.do(T_WRITE_ZEROES, 0, struct.pack("<QII", 0, 8, 0))[0] == 0
    assert ring.do(T_IN, 0, room=4096) == (0, bytes(4096))
    assert ring.do(T_DISCARD, 0, struct.pack("<QII", 8, 8, 0))[0] == 0
    ok("write zeroes, discard")
    assert ring.do(T_OUT, sectors - 1, bytes(1024))[0] == 1 and ring.do(T_IN, 1 << 60, room=512)[0] == 1 and ring.do(77, 0, room=512)[0] == 2
    ok("behind the end, unknown requests")
    # The ring stops and goes on where it was.
    value, _ = front.get(GET_VRING_BASE, struct.pack("<II", 0, 0))
    assert struct.unpack("<II", value) == (0, ring.avail), (value, ring.avail)
    ring.put(0, T_OUT, 16, b"after" * 100 + bytes(12))
    time.sleep(0.1)
    assert ring.used_index() == ring.used
    ring.start(ring.avail - 1)
    ring.wait()
    assert ring.do(T_IN, 16, room=512)[1].startswith(b"afterafter")
    front.ask(SET_VRING_ENABLE, struct.pack("<II", 0, 0))
    ring.put(0, T_FLUSH, 0)
    ring.ring()
    time.sleep(0.1)
    assert ring.used_index() == ring.used
    front.ask(SET_VRING_ENABLE, struct.pack("<II", 0, 1))
    ring.wait()
    ok("a ring stops, is disabled, and goes on")
    # Memory by pieces; what is given back stops what lay in it.
    slots = front.get_u64(GET_MAX_MEM_SLOTS)
    region = struct.pack("<QQQQQ", 0, 1 << 40, 1 << 20, USER + (1 << 40), 0)
    front.ask(ADD_MEM_REG, region, [front.fd])
    front.ask(ADD_MEM_REG, region, [front.fd], fails=True)
    assert ring.do(T_IN, 16, room=512)[0] == 0
    front.ask(REM_MEM_REG, region)
    front.ask(REM_MEM_REG, region, fails=True)
    assert slots >= 8 and ring.do(T_IN, 16, room=512)[0] == 0
    ok("memory comes and goes")
    front.share()
    assert ring.do(T_IN, 16, room=512)[0] == 0
    ok("the same memory again")
    front.ask(SET_CONFIG, struct.pack("<III", 32, 1, 0) + b"\0")
    assert front.config()[32] == 0
    ok("the cache's mode")
    front.close()
    front, (ring,) = machine()
    assert ring.do(T_IN, 16, room=512)[0] == 0
    ok("another front end")
    front.close()
    end(server)
    server = serve("--read-only")
    front, (ring,) = machine()
    assert front.offered & (1 << 5) and ring.do(T_OUT, 0, bytes(512))[0] == 1 and ring.do(T_IN, 0, room=512)[0] == 0
    ok("read-only")
    front.close()
    end(server)


def lies():
    server = serve()

    def left(what, play, rings=1):
        front, r = machine(rings)
        try:
            play(front, r[0])
            front.get_u64(GET_FEATURES)
        except Gone:
            pass
        except ConnectionError:
            pass
        front.close()
        assert server.poll() is None, what
        good, (ring,) = machine()
        assert ring.do(T_IN, 0, room=512)[0] == 0, what
        good.close()
        ok(what)

    left("a request that is not there", lambda f, r: f.send(4711))
    left("a payload without end", lambda f, r: f.socket.sendall(struct.pack("<III", 1, 1, 0xffffffff)))
    left("another version", lambda f, r: f.socket.sendall(struct.pack("<III", 1, 2, 0)))
    left("half a message", lambda f, r: (f.socket.sendall(b"\1\0\0"), f.socket.shutdown(1)))
    left("features that were not offered", lambda f, r: f.ask(SET_FEATURES, struct.pack("<Q", 1 << 63), fails=True))
    left("ring 4000", lambda f, r: f.ask(SET_VRING_NUM, struct.pack("<II", 4000, 16), fails=True))
    left("a ring of 3", lambda f, r: f.ask(SET_VRING_NUM, struct.pack("<II", 1, 3), fails=True))
    left("a ring of 65536", lambda f, r: f.ask(SET_VRING_NUM, struct.pack("<II", 1, 65536), fails=True))
    left("another size of a ring that runs", lambda f, r: f.ask(SET_VRING_NUM, struct.pack("<II", 0, 8), fails=True))
    left("addresses that are not in memory",
         lambda f, r: f.ask(SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, 1, 2, 3, 4), fails=True))
    left("a ring that reaches behind its memory",
         lambda f, r: f.ask(SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, USER + MEMORY // 2 - 16, USER, USER, 0), fails=True))
    left("memory behind its file", lambda f, r: f.ask(
        SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, GPA, MEMORY, USER, 4096), [f.fd], fails=True))
    left("memory that wraps", lambda f, r: f.ask(
        SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 2**64 - 4096, 8192, USER, 0), [f.fd], fails=True))
    left("memory twice", lambda f, r: f.ask(
        SET_MEM_TABLE, struct.pack("<IIQQQQQQQQ", 2, 0, GPA, 8192, USER, 0, GPA + 4096, 8192, USER, 0), [f.fd, f.fd], fails=True))
    left("nine pieces", lambda f, r: f.ask(SET_MEM_TABLE, struct.pack("<II", 9, 0) + bytes(9 * 32), [f.fd] * 8, fails=True))
    left("memory that is no file", lambda f, r: f.ask(
        SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, GPA, 4096, USER, 0), [r.kick], fails=True))
    left("a kick that is no eventfd", lambda f, r: f.ask(SET_VRING_KICK, struct.pack("<Q", 0), [f.fd], fails=True))
    left("a call that is a socket", lambda f, r: f.ask(SET_VRING_CALL, struct.pack("<Q", 0), [f.socket.fileno()], fails=True))
    left("more descriptors than there may be", lambda f, r: f.send(SET_OWNER, b"", [f.fd] * 60))
    left("a record that is not sealed", lambda f, r: f.ask(SET_INFLIGHT_FD, f.inflight_words, [f.fd], fails=True))
    left("a record that is too small",
         lambda f, r: f.ask(SET_INFLIGHT_FD, struct.pack("<QQHHI", 64, 0, 4, 1024, 0), [f.inflight], fails=True))
    left("a configuration of 4 GiB", lambda f, r: f.send(GET_CONFIG, struct.pack("<III", 0xfffffff0, 0xfffffff0, 0)))

    def broken(what, play):
        def it(front, ring):
            play(front, ring)
            ring.ring()
            assert select.select([ring.error], [], [], 20)[0], what
        left(what, it)

    def loop(f, r):
        r.descriptor(0, GPA + r.data_at, 16, F_NEXT, 0)
        r.publish(0)

    def far(f, r):
        r.descriptor(0, 1 << 50, 16, 0, 0)
        r.publish(0)

    def jump(f, r):
        f.memory[r.avail_at + 2:r.avail_at + 4] = struct.pack("<H", 5000)

    broken("a chain that loops", loop)
    broken("a buffer that is not in memory", far)
    broken("descriptor 60000", lambda f, r: r.publish(60000))
    broken("an index that jumps", jump)
    broken("a request without a header", lambda f, r: (r.descriptor(0, GPA + r.data_at, 1, F_WRITE, 0), r.publish(0)))

    def record_lies(f, r):
        # All entries in flight, with chains that lead anywhere, before the ring starts again.
        f.get(GET_VRING_BASE, struct.pack("<II", 0, 0))
        record = mmap.mmap(f.inflight, os.fstat(f.inflight).st_size)
        record[:] = random.Random(3).randbytes(len(record))
        r.start(0)

    left("a record full of noise", record_lies)

    def cut(f, r):
        for n in range(4):
            r.put(n, T_IN, 0, room=512)
        os.ftruncate(f.fd, 4096)
        r.ring()
        time.sleep(0.2)
    left("memory that is cut while it is used", cut)
    end(server)


def kills(rounds=12):
    """Requests in flight when the back end is killed come back from its successor, all of them, once each."""
    server = serve("--filter", "throttle:requests=10")
    front, (ring,) = machine()
    again = 0
    for n in range(rounds):
        blocks = [random.randbytes(4096) for _ in range(5)]
        for slot, block in enumerate(blocks):
            ring.put(slot, T_OUT, 8 * slot, block)
        ring.ring()
        time.sleep(random.random() * 0.12)
        server.kill()
        server.communicate()
        done = (ring.used_index() - ring.used) & 0xffff
        again += done < 5
        server = serve(*(("--filter", "throttle:requests=10") if n < rounds - 1 else ()))
        front.connect(path)
        front.negotiate()
        front.share()
        front.record(1, 16)
        ring.start(ring.used_index())  # what a front end knows when nobody told it the position
        heads = ring.wait(5)
        assert sorted(heads) == [0, 3, 6, 9, 12], heads
        assert all(ring.status(slot) == 0 for slot in range(5))
        assert ring.used_index() == ring.avail, "one came back twice"
    for slot, block in enumerate(blocks):
        assert ring.do(T_IN, 8 * slot, room=4096) == (0, block)
    assert again, "each back end had done all before it was killed"
    ok("%d back ends killed, %d of them with requests in flight" % (rounds, again))
    front.close()
    end(server)


subprocess.run([virta, "disk", "create", image, "64M"], check=True, stdout=subprocess.DEVNULL)
plain()
lies()
kills()
print("1..%d" % count)
