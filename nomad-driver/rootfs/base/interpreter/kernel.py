"""A kernel as the server sees it: a process, the channels to it, and a thread that takes all it has to say.

The thread goes on between executions, so that a program in the background never waits for somebody to read what it prints.
"""

import codecs
import json
import os
import queue
import select
import signal
import socket
import threading
import time

GATHER = 0.01  # seconds that output may wait for more of it
BREATH = 2  # milliseconds between two looks at output
CHUNK = 64 << 10  # bytes of output that are passed on at once
QUEUE = 64  # lines that may wait for a client; then the kernel does

DIED = {"type": "unexpected_end_of_execution"}

# Names of the answer's fields for what kernels call by MIME type.
FIELDS = {
    "text/plain": "text", "text/html": "html", "text/markdown": "markdown", "image/svg+xml": "svg", "image/png": "png",
    "image/jpeg": "jpeg", "application/pdf": "pdf", "text/latex": "latex", "application/json": "json",
    "application/javascript": "javascript", "e2b/data": "data", "e2b/chart": "chart",
}


class StartError(Exception):
    pass


class Processes:
    """Kernels' processes: what the zygote does for the server."""

    def __init__(self, channel):
        self.channel = channel
        self.lock = threading.Lock()

    def spawn(self, language, cwd, fds):
        with self.lock:
            socket.send_fds(self.channel, [json.dumps({"language": language, "cwd": cwd}).encode()], fds)
            data = self.channel.recv(64 << 10)
        if not data:
            os._exit(1)  # without its zygote a server is of no use: the next request gets a fresh one
        answer = json.loads(data)
        if "error" in answer:
            raise StartError(answer["error"])
        return answer["pid"]

    def signal(self, pid, number):
        with self.lock:
            self.channel.send(json.dumps({"pid": pid, "signal": number}).encode())


class Kernel:
    def __init__(self, processes, language, cwd):
        self.processes = processes
        self.dead = False
        self.lock = threading.Lock()
        self.sink = None  # the queue of the execution that runs
        self.requests, requests = socket.socketpair()
        self.events, events = socket.socketpair()
        self.out, out = os.pipe()
        self.err, err = os.pipe()
        given = [requests.fileno(), events.fileno(), out, err]
        try:
            self.pid = processes.spawn(language, cwd, given)
        except BaseException:
            for fd in (self.out, self.err):
                os.close(fd)
            self.requests.close()
            self.events.close()
            raise
        finally:
            requests.close()
            events.close()
            os.close(out)
            os.close(err)
        for fd in (self.out, self.err):
            os.set_blocking(fd, False)
        self.events.setblocking(False)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def execute(self, code, env):
        """Sends code and returns the queue of what comes of it: lines for the client, and None at its end."""
        sink = queue.Queue(QUEUE)
        with self.lock:
            self.sink = sink
            dead = self.dead
        try:
            if not dead:
                self.requests.sendall(json.dumps({"code": code, "env": env}).encode() + b"\n")
        except OSError:
            pass  # it has died: the reader says so, or has found nobody to tell
        if dead:
            sink.put(DIED)
            sink.put(None)
        return sink

    def interrupt(self):
        self.processes.signal(self.pid, signal.SIGINT)

    def kill(self):
        self.processes.signal(self.pid, signal.SIGKILL)

    def put(self, line):
        with self.lock:
            sink = self.sink
        if sink is not None:
            sink.put(line)

    def end(self, line=None):
        if line is not None:
            self.put(line)
        with self.lock:
            sink, self.sink = self.sink, None
        if sink is not None:
            sink.put(None)

    def read(self):
        output = Output(self.out, self.err, self.put)
        poll, calm = select.poll(), select.poll()
        for fd in (self.out, self.err, self.events.fileno()):
            poll.register(fd, select.POLLIN)
        calm.register(self.events.fileno(), select.POLLIN)
        rest = b""
        while True:
            if output.parts:
                calm.poll(BREATH)  # many small writes are taken at once
            ready = poll.poll(output.wait())
            for fd, what in ready:
                if fd == self.events.fileno():
                    try:
                        data = self.events.recv(1 << 20)
                    except ConnectionResetError:
                        data = b""
                    if not data:
                        output.drain()
                        with self.lock:
                            self.dead = True
                        self.end(DIED)
                        self.close()
                        return
                    rest += data
                elif not output.read(fd):
                    poll.unregister(fd)
            output.due()
            while b"\n" in rest:
                line, rest = rest.split(b"\n", 1)
                output.drain()
                self.event(json.loads(line))
                try:
                    self.events.send(b"\n")
                except OSError:
                    pass  # it has died, which is seen next

    def event(self, e):
        kind = e["type"]
        if kind == "started":
            self.put({"type": "number_of_executions", "execution_count": e["count"]})
        elif kind == "data":
            self.put(result(e["data"], e["main"]))
        elif kind == "error":
            self.put(e)
        elif kind in ("done", "exit"):
            if kind == "exit":  # the code has asked for it: the next one gets a fresh kernel
                with self.lock:
                    self.dead = True
            self.end({"type": "end_of_execution"})

    def close(self):
        for fd in (self.out, self.err):
            os.close(fd)
        self.requests.close()
        self.events.close()


class Output:
    """Gathers output, so that what is printed together is one line for the client."""

    def __init__(self, out, err, put):
        self.kinds = {out: "stdout", err: "stderr"}
        self.decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in self.kinds}
        self.put = put
        self.kind = None
        self.parts = []
        self.size = 0
        self.since = 0.0

    def wait(self):
        """Milliseconds until what was gathered is due; None where nothing was."""
        if not self.parts:
            return None
        return max(0, self.since + GATHER - time.monotonic()) * 1000

    def due(self):
        if self.parts and time.monotonic() >= self.since + GATHER:
            self.flush()

    def read(self, fd):
        """Takes what is there of one stream; reports whether there may be more at some time."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return True
        text = self.decoders[fd].decode(data, final=not data)
        if text:
            if self.kind != self.kinds[fd] or self.size >= CHUNK:
                self.flush()
            if not self.parts:
                self.kind, self.since = self.kinds[fd], time.monotonic()
            self.parts.append(text)
            self.size += len(text)
        return bool(data)

    def drain(self):
        """Takes all that was written until now, and passes it on."""
        for fd in self.kinds:
            while select.select([fd], [], [], 0)[0] and self.read(fd):
                pass
        self.flush()

    def flush(self):
        if self.parts:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1000 % 1000000:06d}Z"
            self.put({"type": self.kind, "text": "".join(self.parts), "timestamp": stamp})
            self.parts, self.size = [], 0


def result(data, main):
    out = {"type": "result", "is_main_result": main}
    extra = {}
    for mime, value in data.items():
        field = FIELDS.get(mime)
        if field is None:
            extra[mime] = value
        elif field == "text":
            out[field] = unquoted(value)
        else:
            out[field] = value
    if extra:
        out["extra"] = extra
    return out


def unquoted(text):
    """A string's own representation is shown without its quotes."""
    if len(text) >= 2 and text[0] in "'\"" and text[0] == text[-1]:
        return text[1:-1]
    return text
