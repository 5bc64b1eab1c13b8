"""A kernel's side of its channels: requests come as JSON lines, events go as JSON lines, each of which is waited for.

The server takes all output that was written before an event before it takes the event, and says so with one byte: so output, results and
errors reach a client in the order in which they were made.
"""

import json
import os
import socket
import threading

MAX_EVENT = 32 << 20  # bytes


class Events:
    def __init__(self, fd):
        self.socket = socket.socket(fileno=fd)
        self.lock = threading.RLock()
        self.sending = 0  # a signal must not break a line in two: whoever handles it looks here
        self.pid = os.getpid()

    def send(self, kind, **fields):
        if os.getpid() != self.pid:
            return  # a fork of the kernel has output, but no results
        line = json.dumps({"type": kind, **fields}, default=str)
        if len(line) > MAX_EVENT:
            line = json.dumps({"type": "error", "name": "OutputTooLarge", "traceback": "",
                               "value": f"one output of {len(line)} bytes, at most {MAX_EVENT} are passed on"})
        with self.lock:
            self.sending += 1
            try:
                self.socket.sendall(line.encode() + b"\n")
                self.socket.recv(1)
            finally:
                self.sending -= 1

    def close(self):
        self.socket.close()


def lines(fd):
    """Yields the requests."""
    with os.fdopen(fd, "rb") as f:
        for line in f:
            yield json.loads(line)
