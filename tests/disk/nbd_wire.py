"""What both sides of NBD's protocol have: its numbers, and bytes that are waited for."""
import struct

OLD_STYLE = 0x420281861253
OPTION = 0x49484156454F5054
OPTION_REPLY = 0x3E889045565A9
REQUEST = 0x25609513
SIMPLE_REPLY = 0x67446698
CHUNK = 0x668E33EF

OPT_EXPORT_NAME, OPT_GO, OPT_STRUCTURED, OPT_SET_CONTEXT, OPT_EXTENDED = 1, 7, 8, 10, 11
REP_ACK, REP_INFO, REP_CONTEXT, REP_UNSUPPORTED = 1, 3, 4, 1 << 31 | 1
CMD_READ, CMD_END, CMD_STATUS = 0, 2, 7


def get(s, n):
    data = b""
    while len(data) < n:
        some = s.recv(n - len(data))
        if not some:
            raise EOFError
        data += some
    return data


def send_option(s, number, data=b""):
    s.sendall(struct.pack(">QII", OPTION, number, len(data)) + data)


def get_option(s):
    _, number, length = struct.unpack(">QII", get(s, 16))
    return number, get(s, length)


def send_option_reply(s, number, kind, data=b""):
    s.sendall(struct.pack(">QIII", OPTION_REPLY, number, kind, len(data)) + data)


def get_option_reply(s):
    magic, number, kind, length = struct.unpack(">QIII", get(s, 20))
    assert magic == OPTION_REPLY
    return number, kind, get(s, length)


def send_request(s, command, offset, length, cookie=7, flags=0, magic=REQUEST):
    s.sendall(struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length))


def get_request(s):
    _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", get(s, 28))
    return command, cookie, offset, length


def chunk(cookie, kind, data, flags=1):
    return struct.pack(">IHHQI", CHUNK, flags, kind, cookie, len(data)) + data
