#!/usr/bin/env python3
"""http-server.py [--tls CERT KEY] [--login USER:PASSWORD] [--port-file FILE] DIRECTORY: files with byte ranges, and a first part of each path that says
how the server misbehaves: /MODE/FILE. Requests go to standard output, one a line."""
import argparse, email.utils, hashlib, http.server, base64, os, re, socket, ssl, struct, sys, threading, time

parser = argparse.ArgumentParser()
parser.add_argument("--tls", nargs=2)
parser.add_argument("--login")
parser.add_argument("--port-file")
parser.add_argument("directory")
args = parser.parse_args()
lock = threading.Lock()
counts = {}


def count(key):
    with lock:
        counts[key] = counts.get(key, 0) + 1
        return counts[key]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reset(self):
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        os.close(os.dup(self.connection.fileno()))
        self.connection.close()

    def do_GET(self):
        mode, _, name = self.path.split("?")[0].lstrip("/").partition("/")
        wanted = self.headers.get("Range", "")
        with lock:
            print(mode, name, wanted, flush=True)
        n = count(mode)
        if args.login and self.headers.get("Authorization") != "Basic " + base64.b64encode(args.login.encode()).decode():
            return self.send(401, WWW_Authenticate='Basic realm="disks"')
        if mode == "redirect":
            return self.send(302, Location="/plain/" + name)
        if mode == "loop":
            return self.send(302, Location="/loop/" + name)
        if mode == "away":
            return self.send(302, Location="file:///etc/passwd")
        if mode == "busy" and n % 3:
            return self.send(503)
        if mode == "dead" and n > 1:
            return self.send(500)
        path = os.path.join(args.directory, os.path.basename(name))
        if not os.path.isfile(path):
            return self.send(404)
        size = os.path.getsize(path)
        tag = '"%x-%x"' % (os.stat(path).st_mtime_ns, size)
        if mode == "tagless":
            tag = None
        if mode == "tags":
            tag = '"%d"' % n
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if not match or mode == "whole" or (mode == "later-whole" and n > 1):
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            try:
                with open(path, "rb") as f:
                    while piece := f.read(65536):
                        self.wfile.write(piece)
            except OSError:
                self.close_connection = True
            return
        first, last = int(match[1]), min(int(match[2]), size - 1)
        if first >= size:
            return self.send(416, Content_Range="bytes */%d" % size)
        with open(path, "rb") as f:
            f.seek(first)
            body = f.read(last + 1 - first)
        total = size
        if mode == "shifted":
            first, last = first + 512, last + 512
        if mode == "long":
            body += b"more than there should be"
        if mode == "total" and n > 1:
            total += 512
        if mode == "noise":
            first, total = "x" * 5000, "*"
        self.send_response(206)
        if mode != "unsaid":
            self.send_header("Content-Range", "bytes %s-%s/%s" % (first, last, total))
        if mode == "huge":
            self.send_header("X-Huge", "x" * 200000)
        if mode == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if tag:
            self.send_header("ETag", tag)
        self.send_header("Last-Modified", email.utils.formatdate(os.path.getmtime(path), usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            if mode == "reset" and n % 2 == 0:
                self.wfile.write(body[:len(body) // 2])
                return self.reset()
            if mode == "short" and n % 2 == 0:
                self.wfile.write(body[:len(body) // 2])
                self.close_connection = True
                return
            if mode == "stall" and n == 2:
                self.wfile.write(body[:1000])
                self.wfile.flush()
                time.sleep(60)
                return
            if mode == "slow":
                for at in range(0, len(body), 4096):
                    self.wfile.write(body[at:at + 4096])
                    self.wfile.flush()
                    time.sleep(0.002)
                return
            self.wfile.write(body)
        except OSError:
            self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args):
        pass


server = Server(("127.0.0.1", 0), Handler)
if args.tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*args.tls)
    server.socket = context.wrap_socket(server.socket, server_side=True)
if args.port_file:
    with open(args.port_file + ".new", "w") as f:
        f.write("%d\n" % server.server_address[1])
    os.rename(args.port_file + ".new", args.port_file)
server.serve_forever()
