"""The HTTP side: contexts, and executions as streams of JSON lines.

One execution at a time runs in a context; contexts do not wait for each other. Each connection has a thread.
"""

import http.server
import json
import os
import queue
import re
import select
import socketserver
import threading
import time
import uuid

import kernel

PORT = 49999
KEEPALIVE = 5.0  # seconds between signs of life
GLANCE = 0.2  # seconds between two looks whether the client is still there
AGAIN = 1.0  # seconds between two interrupts of one execution
PATIENCE = 10.0  # seconds that a kernel other than Python's may go on after the first
IDLE = 600  # seconds that a connection may be silent
MAX_BODY = 16 << 20  # bytes of a request
DEFAULT_CWD = os.path.expanduser("~")

# Names that clients have for a language.
LANGUAGES = {
    "python": "python", "python3": "python", "bash": "bash", "sh": "bash", "javascript": "javascript", "js": "javascript",
    "typescript": "typescript", "ts": "typescript",
}
# Contexts that are there from the start; the kernel of each starts when it is first needed, Python's at once.
DEFAULTS = ("python", "javascript")


class Failure(Exception):
    """An error that the client gets as it is: status and text."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Context:
    """A kernel with its state: variables, working directory."""

    def __init__(self, processes, language, cwd):
        self.processes = processes
        self.id = str(uuid.uuid4())
        self.language = language
        self.cwd = cwd
        self.turn = threading.Lock()  # of executions
        self.changing = threading.Lock()
        self.kernel = None
        self.removed = False

    def describe(self):
        return {"id": self.id, "language": self.language, "cwd": self.cwd}

    def running(self):
        """Returns the kernel, started if there is none or it has died."""
        with self.changing:
            if self.removed:
                raise Failure(404, f"Context {self.id} not found")
            if self.kernel is None or self.kernel.dead:
                try:
                    self.kernel = kernel.Kernel(self.processes, self.language, self.cwd)
                except (kernel.StartError, OSError) as e:
                    raise Failure(500, f"Failed to create context: {e}") from e
            return self.kernel

    def restart(self):
        self.stop()
        self.running()

    def stop(self, for_good=False):
        with self.changing:
            old, self.kernel = self.kernel, None
            self.removed = self.removed or for_good
        if old is not None:
            old.kill()


class Contexts:
    def __init__(self, processes):
        self.processes = processes
        self.lock = threading.Lock()
        self.by_id = {}
        self.defaults = {}
        for language in DEFAULTS:
            self.default(language)

    def language(self, name):
        kind = LANGUAGES.get((name or "python").lower().strip())
        if kind is None:
            known = ", ".join(sorted(set(LANGUAGES.values())))
            raise Failure(400, f"Failed to create context: language {name!r} is not supported, but {known} are")
        return kind

    def create(self, language, cwd):
        kind = self.language(language)
        cwd = os.path.join(DEFAULT_CWD, os.path.expanduser(cwd or DEFAULT_CWD))
        if not os.path.isdir(cwd):
            raise Failure(400, f"Failed to create context: cwd {cwd!r} is no directory")
        c = Context(self.processes, kind, cwd)
        c.running()
        with self.lock:
            self.by_id[c.id] = c
        return c

    def default(self, language):
        kind = self.language(language)
        with self.lock:
            if kind not in self.defaults:
                c = Context(self.processes, kind, DEFAULT_CWD)
                self.by_id[c.id] = c
                self.defaults[kind] = c.id
            return self.by_id[self.defaults[kind]]

    def list(self):
        with self.lock:
            return [c.describe() for c in self.by_id.values()]

    def get(self, context_id):
        with self.lock:
            c = self.by_id.get(context_id)
        if c is None:
            raise Failure(404, f"Context {context_id} not found")
        return c

    def remove(self, context_id):
        c = self.get(context_id)
        with self.lock:
            self.by_id.pop(context_id, None)
            if self.defaults.get(c.language) == context_id:
                del self.defaults[c.language]
        c.stop(for_good=True)


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "soulbox-code-interpreter", ""
    timeout = IDLE
    contexts = None

    routes = [
        ("GET", r"/health", "health"),
        ("POST", r"/execute", "execute"),
        ("GET", r"/contexts", "list"),
        ("POST", r"/contexts", "create"),
        ("DELETE", r"/contexts/([^/]+)", "remove"),
        ("POST", r"/contexts/([^/]+)/restart", "restart"),
    ]

    def log_message(self, *args):
        pass

    def route(self):
        path = self.path.split("?", 1)[0]
        allowed = []
        try:
            self.body = self.read_body()
            for method, form, name in self.routes:
                m = re.fullmatch(form, path)
                if m and method == self.command:
                    getattr(self, name)(*m.groups())
                    return
                if m:
                    allowed.append(method)
            if allowed:
                raise Failure(405, f"{self.command} is not allowed here, but {', '.join(allowed)}")
            raise Failure(404, "Not Found")
        except Failure as e:
            self.text(e.status, str(e))
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = do_HEAD = route

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts, size = [], 0
            while True:
                try:
                    n = int(self.rfile.readline(64).split(b";")[0], 16)
                except ValueError:
                    self.refuse(400, "the body is not chunked as it says")
                size += n
                if size > MAX_BODY:
                    self.refuse(413, f"the body is larger than {MAX_BODY} bytes")
                if n == 0:
                    while self.rfile.readline(1024).strip():
                        pass
                    return b"".join(parts)
                parts.append(self.rfile.read(n))
                self.rfile.readline(64)
        try:
            n = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            self.refuse(400, "Content-Length is no number")
        if n > MAX_BODY:
            self.refuse(413, f"the body is larger than {MAX_BODY} bytes")
        return self.rfile.read(n) if n > 0 else b""

    def refuse(self, status, text):
        """For a body that is not read: the connection cannot be used any more."""
        self.close_connection = True
        raise Failure(status, text)

    def json(self):
        if not self.body:
            return {}
        try:
            v = json.loads(self.body)
        except (ValueError, RecursionError) as e:
            raise Failure(400, f"the body is not JSON: {e}") from e
        if not isinstance(v, dict):
            raise Failure(400, "the body is not a JSON object")
        return v

    def member(self, body, name):
        v = body.get(name)
        if v is not None and not isinstance(v, str):
            raise Failure(400, f"{name} is not a string")
        return v

    def send(self, status, kind, data):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def text(self, status, text):
        self.send(status, "text/plain; charset=utf-8", text.encode("utf-8", "backslashreplace"))

    def answer(self, value):
        self.send(200, "application/json", json.dumps(value).encode())

    def nothing(self):
        self.send_response(204)
        self.end_headers()

    def health(self):
        self.text(200, "OK")

    def list(self):
        self.answer(self.contexts.list())

    def create(self):
        b = self.json()
        self.answer(self.contexts.create(self.member(b, "language"), self.member(b, "cwd")).describe())

    def remove(self, context_id):
        self.contexts.remove(context_id)
        self.nothing()

    def restart(self, context_id):
        self.contexts.get(context_id).restart()
        self.nothing()

    def execute(self):
        b = self.json()
        code, env = b.get("code"), b.get("env_vars") or {}
        context_id, language = self.member(b, "context_id"), self.member(b, "language")
        if not isinstance(code, str):
            raise Failure(400, "code is missing")
        if context_id and language:
            raise Failure(400, "Only one of context_id or language can be provided")
        if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
            raise Failure(400, "env_vars is not an object of strings")
        for k, v in env.items():
            if not k or "=" in k or "\0" in k + v:
                raise Failure(400, f"env_vars: {k!r} cannot be the name of a variable with this value")
        c = self.contexts.get(context_id) if context_id else self.contexts.default(language)
        Execution(self, c).run(code, env)

    def gone(self):
        """Whether the client has left."""
        p = select.poll()
        p.register(self.connection, select.POLLRDHUP)
        return bool(p.poll(0))


class Execution:
    """One execution on its way to the client."""

    def __init__(self, handler, context):
        self.handler = handler
        self.context = context
        self.open = True  # the client is there
        self.last = time.monotonic()  # that something was sent

    def run(self, code, env):
        c = self.context
        first = c.running()  # an error is an answer, not a part of the stream
        h = self.handler
        h.send_response(200)
        h.send_header("Content-Type", "application/x-ndjson")
        h.send_header("Cache-Control", "no-cache")
        h.send_header("X-Accel-Buffering", "no")
        h.send_header("Transfer-Encoding", "chunked")
        h.end_headers()
        while not c.turn.acquire(timeout=GLANCE):
            self.glance()
            if not self.open:
                h.close_connection = True
                return
        try:
            self.pass_on(first, code, env)
        finally:
            c.turn.release()
        if self.open:
            h.wfile.write(b"0\r\n\r\n")
        else:
            h.close_connection = True

    def pass_on(self, running, code, env):
        try:
            running = self.context.running()  # another one since, if the first has died
        except Failure as e:
            self.line({"type": "error", "name": "ContextError", "value": str(e), "traceback": ""})
            return
        sink = running.execute(code, env)
        left = interrupted = None  # when
        while True:
            try:
                line = sink.get(timeout=GLANCE)
            except queue.Empty:
                self.glance()
            else:
                if line is None:
                    return
                if line is kernel.DIED:
                    self.line({"type": "error", "name": "UnexpectedEndOfExecution", "traceback": "",
                               "value": "Connection to the execution was closed before the execution was finished: the kernel has ended, and its variables are lost"})
                self.line(line)
            if self.open:
                continue
            now = time.monotonic()
            left = left or now
            if self.context.language != "python" and now - left > PATIENCE:
                running.kill()
            elif interrupted is None or now - interrupted > AGAIN:
                interrupted = now
                running.interrupt()

    def glance(self):
        if self.open and self.handler.gone():
            self.open = False
        if self.open and time.monotonic() - self.last >= KEEPALIVE:
            self.line({"type": "keepalive"})

    def line(self, value):
        if not self.open:
            return
        data = json.dumps(value).encode() + b"\n"
        self.last = time.monotonic()
        try:
            self.handler.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        except OSError:
            self.open = False


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        import sys

        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def serve(channel):
    processes = kernel.Processes(channel)
    server = Server(("127.0.0.1", PORT), Handler)
    Handler.contexts = Contexts(processes)
    # The first execution finds its kernel ready.
    threading.Thread(target=Handler.contexts.default("python").running, daemon=True).start()
    server.serve_forever()
