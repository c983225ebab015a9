"""A vhost-user front end with a machine of its own: memory, one or two split rings, no guest. QEMU's docs/interop/vhost-user; virtio 1.2 §2.7."""
import mmap, os, select, socket, struct, time

MEMORY = 4 << 20
USER = 0x7f0000000000  # where the memory is in an address space that is nobody's
GPA = 0x100000
F_NEXT, F_WRITE = 1, 2
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
(GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK,
 SET_VRING_CALL, SET_VRING_ERR, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE, SET_BACKEND_REQ_FD, GET_CONFIG,
 SET_CONFIG, GET_INFLIGHT_FD, SET_INFLIGHT_FD, RESET_DEVICE, GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG) = (
    1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 24, 25, 31, 32, 34, 36, 37, 38)
PROTOCOL = 1 << 30
VERSION_1 = 1 << 32
REPLY_ACK, NEED_REPLY = 1 << 3, 8


class Gone(Exception):
    pass


def eventfd():
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if hasattr(os, "eventfd") else libc_eventfd()


def libc_eventfd():
    import ctypes
    return ctypes.CDLL(None).eventfd(0, 0o2000000 | 0o4000)


class Ring:
    """One split ring at a place in memory, with room for a buffer behind it for each of its entries."""

    def __init__(self, end, number, at, size=16, buffer=8192):
        self.end, self.number, self.at, self.size, self.buffer = end, number, at, size, buffer
        self.avail_at = at + 16 * size
        self.used_at = (self.avail_at + 6 + 2 * size + 3) & ~3
        self.data_at = (self.used_at + 6 + 8 * size + 4095) & ~4095
        self.avail = self.used = 0
        self.kick, self.call, self.error = eventfd(), eventfd(), eventfd()

    def start(self, base=0):
        end, n = self.end, self.number
        end.ask(SET_VRING_NUM, struct.pack("<II", n, self.size))
        end.ask(SET_VRING_BASE, struct.pack("<II", n, base))
        end.ask(SET_VRING_ADDR, struct.pack("<IIQQQQ", n, 0, USER + self.at, USER + self.used_at, USER + self.avail_at, 0))
        end.ask(SET_VRING_KICK, struct.pack("<Q", n), [self.kick])
        end.ask(SET_VRING_CALL, struct.pack("<Q", n), [self.call])
        end.ask(SET_VRING_ERR, struct.pack("<Q", n), [self.error])
        end.ask(SET_VRING_ENABLE, struct.pack("<II", n, 1))

    def put(self, slot, kind, sector, data=b"", room=0):
        """A request in three descriptors, 3 * slot and on; published, not kicked."""
        m, head = self.end.memory, 3 * slot
        at = self.data_at + slot * self.buffer
        m[at:at + 16] = struct.pack("<IIQ", kind, 0, sector)
        m[at + 16:at + 16 + len(data)] = data
        m[at + self.buffer - 1] = 0xff
        chain = [(GPA + at, 16, 0)]
        if data:
            chain.append((GPA + at + 16, len(data), 0))
        if room:
            chain.append((GPA + at + 16, room, F_WRITE))
        chain.append((GPA + at + self.buffer - 1, 1, F_WRITE))
        for i, (address, length, flags) in enumerate(chain):
            last = i == len(chain) - 1
            self.descriptor(head + i, address, length, flags | (0 if last else F_NEXT), head + i + 1)
        self.publish(head)

    def descriptor(self, i, address, length, flags, after):
        self.end.memory[self.at + 16 * i:self.at + 16 * i + 16] = struct.pack("<QIHH", address, length, flags, after)

    def publish(self, head):
        m = self.end.memory
        m[self.avail_at + 4 + 2 * (self.avail % self.size):][:0]
        at = self.avail_at + 4 + 2 * (self.avail % self.size)
        m[at:at + 2] = struct.pack("<H", head)
        self.avail = (self.avail + 1) & 0xffff
        m[self.avail_at + 2:self.avail_at + 4] = struct.pack("<H", self.avail)

    def ring(self):
        os.write(self.kick, struct.pack("<Q", 1))

    def used_index(self):
        return struct.unpack("<H", self.end.memory[self.used_at + 2:self.used_at + 4])[0]

    def wait(self, count=1, timeout=20):
        """The heads of the next so many used entries."""
        heads, until = [], time.monotonic() + timeout
        while len(heads) < count:
            while self.used != self.used_index():
                at = self.used_at + 4 + 8 * (self.used % self.size)
                heads.append(struct.unpack("<I", self.end.memory[at:at + 4])[0])
                self.used = (self.used + 1) & 0xffff
            if len(heads) >= count:
                break
            if time.monotonic() > until:
                raise TimeoutError("%d of %d requests came back" % (len(heads), count))
            select.select([self.call], [], [], 0.2)
            try:
                os.read(self.call, 8)
            except BlockingIOError:
                pass
        return heads

    def status(self, slot):
        return self.end.memory[self.data_at + slot * self.buffer + self.buffer - 1]

    def data(self, slot, size):
        at = self.data_at + slot * self.buffer + 16
        return bytes(self.end.memory[at:at + size])

    def do(self, kind, sector, data=b"", room=0):
        self.put(0, kind, sector, data, room)
        self.ring()
        self.wait()
        return self.status(0), self.data(0, room) if room else None


class FrontEnd:
    def __init__(self, path=None, memory_bytes=MEMORY):
        self.fd = os.memfd_create("machine", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, memory_bytes)
        self.memory_bytes = memory_bytes
        self.memory = mmap.mmap(self.fd, memory_bytes)
        self.inflight = None
        if path:
            self.connect(path)

    def connect(self, path, timeout=20):
        self.ack = False
        until = time.monotonic() + timeout
        while True:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(20)
            try:
                self.socket.connect(path)
                return
            except (ConnectionRefusedError, FileNotFoundError):
                self.socket.close()
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def send(self, request, payload=b"", fds=(), flags=1):
        message = struct.pack("<III", request, flags, len(payload)) + payload
        try:
            if fds:
                socket.send_fds(self.socket, [message], list(fds))
            else:
                self.socket.sendall(message)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone

    def receive(self):
        head, fds = b"", []
        try:
            head, fds, _, _ = socket.recv_fds(self.socket, 12, 8)
            while head and len(head) < 12:
                head += self.socket.recv(12 - len(head))
            if not head:
                raise Gone
            request, flags, size = struct.unpack("<III", head)
            payload = b""
            while len(payload) < size:
                payload += self.socket.recv(size - len(payload))
        except ConnectionResetError:
            raise Gone
        assert flags == 5, flags
        return request, payload, fds

    def ask(self, request, payload=b"", fds=(), fails=False):
        """With an acknowledgement, when these were agreed on."""
        self.send(request, payload, fds, 1 | (NEED_REPLY if self.ack else 0))
        if not self.ack:
            return
        answer, value, _ = self.receive()
        assert answer == request, (answer, request)
        assert (struct.unpack("<Q", value)[0] != 0) == fails, "request %d: %s" % (request, value)

    def get(self, request, payload=b""):
        self.send(request, payload)
        answer, value, fds = self.receive()
        assert answer == request, (answer, request)
        return value, fds

    def get_u64(self, request):
        return struct.unpack("<Q", self.get(request)[0])[0]

    def negotiate(self, without=0):
        self.offered = self.get_u64(GET_FEATURES)
        assert self.offered & PROTOCOL and self.offered & VERSION_1, hex(self.offered)
        self.protocol = self.get_u64(GET_PROTOCOL_FEATURES)
        self.ask(SET_PROTOCOL_FEATURES, struct.pack("<Q", self.protocol))
        self.ack = bool(self.protocol & REPLY_ACK)
        self.queues = self.get_u64(GET_QUEUE_NUM)
        self.ask(SET_OWNER)
        self.ask(SET_FEATURES, struct.pack("<Q", self.offered & ~(1 << 29) & ~without))  # no event index: each is told

    def config(self, size=60, offset=0):
        value, _ = self.get(GET_CONFIG, struct.pack("<III", offset, size, 0) + bytes(size))
        assert len(value) == 12 + size
        return value[12:]

    def share(self):
        half = self.memory_bytes // 2  # in two pieces, so that requests lie in both
        self.ask(SET_MEM_TABLE, struct.pack("<II", 2, 0) + struct.pack("<QQQQ", GPA, half, USER, 0) +
                 struct.pack("<QQQQ", GPA + half, half, USER + half, half), [self.fd, self.fd])

    def record(self, queues, entries):
        if self.inflight is None:
            value, fds = self.get(GET_INFLIGHT_FD, struct.pack("<QQHHI", 0, 0, queues, entries, 0))
            self.inflight, self.inflight_words = fds[0], value
        self.ask(SET_INFLIGHT_FD, self.inflight_words, [self.inflight])

    def close(self):
        self.socket.close()
