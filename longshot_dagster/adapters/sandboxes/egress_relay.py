"""The inner end of an allowlist: a proxy address on the sandbox's own loopback for the proxy's socket, which lies outside.

It runs inside, so it is one text for `python3 -c SOCKET COMMAND...`: it becomes the command, and what serves the address
is nobody's child, so that no agent waits for it or ends it with its own.
"""

EGRESS_SOCKET = "/longshot/egress/proxy.sock"

RELAY = r"""
import os, socket, sys, threading
outside, argv = sys.argv[1], sys.argv[2:]
server = socket.create_server(("127.0.0.1", 0), backlog=64)
address = "http://127.0.0.1:%d" % server.getsockname()[1]
def pump(source, sink):
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            sink.sendall(data)
    except OSError:
        pass
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
def serve(inner):
    with inner, socket.socket(socket.AF_UNIX) as outer:
        try:
            outer.connect(outside)
        except OSError:
            return
        back = threading.Thread(target=pump, args=(outer, inner), daemon=True)
        back.start()
        pump(inner, outer)
        back.join()
child = os.fork()
if child == 0:
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.setsid()
    while True:
        try:
            connection = server.accept()[0]
        except OSError:
            continue
        threading.Thread(target=serve, args=(connection,), daemon=True).start()
os.waitpid(child, 0)
server.close()
for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
    os.environ[name] = os.environ[name.lower()] = address
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1,::1"
try:
    os.execvp(argv[0], argv)
except OSError as e:
    sys.stderr.write("%s: %s\n" % (argv[0], e.strerror))
    os._exit(127 if isinstance(e, FileNotFoundError) else 126)
"""
