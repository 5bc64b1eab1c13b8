"""The Python kernel: IPython's shell behind two channels.

It does what a Jupyter kernel does for its user, without Jupyter's sockets: top-level await, magics, rich results, charts. What is not
needed to run code (a terminal, completion) is imported only by those who ask for it.
"""

import asyncio
import base64
import io
import json
import os
import signal
import socket
import sys
import threading
import types


def lazily():
    """Imports IPython without its terminal; jedi, of its completion, is kept out until prepare has ended. They are two thirds of it."""

    def embed(*args, **kwargs):
        from IPython.terminal.embed import embed

        return embed(*args, **kwargs)

    stub = types.ModuleType("IPython.terminal.embed")
    stub.embed = embed
    sys.modules[stub.__name__] = stub
    sys.modules["jedi"] = None
    try:
        import IPython.core.interactiveshell
    finally:
        del sys.modules[stub.__name__]


lazily()

from IPython.core import displayhook, displaypub, error, interactiveshell  # noqa: E402
from traitlets import Type  # noqa: E402
from traitlets.config import Config  # noqa: E402

import channel  # noqa: E402
import formats  # noqa: E402

KERNEL = None  # the one of this process


class DisplayHook(displayhook.DisplayHook):
    """What the last expression of a cell is shown as."""

    def start_displayhook(self):
        self.data = None

    def write_output_prompt(self):
        pass

    def write_format_data(self, format_dict, md_dict=None):
        self.data = format_dict

    def finish_displayhook(self):
        if self.data:
            KERNEL.result(self.data, True)


class DisplayPublisher(displaypub.DisplayPublisher):
    """What display() and plots show."""

    def publish(self, data, metadata=None, **kwargs):
        KERNEL.result(data, False)

    def clear_output(self, wait=False):
        pass


class ZMQInteractiveShell(interactiveshell.InteractiveShell):
    """The shell. Libraries know by this name that results are shown as in a notebook."""

    displayhook_class = Type(DisplayHook)
    display_pub_class = Type(DisplayPublisher)

    def _showtraceback(self, etype, evalue, stb):
        KERNEL.error(getattr(etype, "__name__", str(etype)), text(evalue), "\n".join(stb))

    def init_completer(self):
        self.Completer = None  # nobody types here

    def set_completer_frame(self, frame=None):
        pass

    def enable_gui(self, gui=None):
        pass  # there is no screen

    def ask_exit(self):
        KERNEL.ended = True


def text(value):
    try:
        return str(value)
    except Exception:
        return "<the error cannot be shown as text>"


def no_input(*args, **kwargs):
    raise error.StdinNotImplementedError("raw_input was called, but this frontend does not support input requests.")


def prepare():
    """Makes all of a kernel that does not depend on its channels: done once, before kernels are forked."""
    config = Config()
    config.HistoryManager.enabled = False  # of the terminal's; In and Out are kept
    config.HistoryManager.hist_file = ":memory:"
    home = os.path.join(os.path.expanduser("~"), ".cache", "ipython")
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    shell = ZMQInteractiveShell.instance(config=config, ipython_dir=home)
    formats.install(shell)
    del sys.modules["jedi"]
    return Kernel(shell)


class Output(io.RawIOBase):
    """A raw stream to a descriptor. Whoever changes from one stream to the other first waits until the server has what is in the first."""

    last = None

    def __init__(self, fd):
        super().__init__()
        self.fd = fd
        self.name = "<stdout>" if fd == 1 else "<stderr>"

    def write(self, data):
        if Output.last is not self:
            if Output.last is not None:
                KERNEL.events.send("sync")
            Output.last = self
        total = n = os.write(self.fd, data)
        if n != len(data):  # a signal came in between, or it is no bytes
            view = memoryview(data).cast("B")
            total = len(view)
            while n < total:
                n += os.write(self.fd, view[n:])
        return total

    def writable(self):
        return True

    def fileno(self):
        return self.fd


def stream(fd):
    return io.TextIOWrapper(Output(fd), encoding="utf-8", errors="backslashreplace", write_through=True)


class Kernel:
    def __init__(self, shell):
        self.shell = shell
        self.events = None
        self.ended = False
        self.running = None  # "sync" or the task of a cell
        self.interrupted = False

    def serve(self, requests, events):
        global KERNEL
        KERNEL = self
        self.events = channel.Events(events)
        self.requests = socket.socket(fileno=requests)
        self.requests.setblocking(False)
        os.register_at_fork(after_in_child=self.forked)
        sys.stdout = sys.__stdout__ = stream(1)
        sys.stderr = sys.__stderr__ = stream(2)
        import builtins
        import getpass

        builtins.input = no_input
        getpass.getpass = no_input
        sys.path[0] = ""
        sys.argv = [""]
        signal.signal(signal.SIGINT, self.on_interrupt)
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.main())

    def forked(self):
        self.events.close()
        self.requests.close()
        Output.last = None

    def on_interrupt(self, number, frame):
        if self.running is None:
            return
        if self.events.sending and threading.current_thread() is threading.main_thread():
            self.interrupted = True
        elif self.running == "sync" or asyncio.current_task(self.loop) is self.running:
            raise KeyboardInterrupt
        else:
            self.loop.call_soon_threadsafe(self.running.cancel)

    def send(self, kind, **fields):
        self.events.send(kind, **fields)
        if self.interrupted and threading.current_thread() is threading.main_thread() and not self.events.sending:
            self.interrupted = False
            raise KeyboardInterrupt

    def result(self, data, main):
        clean = {}
        for mime, value in data.items():
            if isinstance(value, (bytes, bytearray)):
                value = base64.b64encode(value).decode()
            elif mime.startswith("image/") and isinstance(value, str):
                value = value.rstrip("\n")
            clean[mime] = value
        self.send("data", data=clean, main=main)

    def error(self, name, value, traceback):
        self.events.send("error", name=name, value=value, traceback=traceback)

    async def main(self):
        rest = b""
        while not self.ended:
            while b"\n" not in rest:
                got = await self.loop.sock_recv(self.requests, 1 << 20)
                if not got:
                    return
                rest += got
            line, rest = rest.split(b"\n", 1)
            request = json.loads(line)
            saved = {k: os.environ.get(k) for k in request["env"]}
            os.environ.update(request["env"])
            try:
                await self.execute(request["code"])
            finally:
                for k, v in saved.items():
                    if v is None:
                        os.environ.pop(k, None)
                    else:
                        os.environ[k] = v
            self.events.send("exit" if self.ended else "done")

    async def execute(self, code):
        shell = self.shell
        self.events.send("started", count=shell.execution_count)
        if signal.getsignal(signal.SIGINT) is not self.on_interrupt:
            signal.signal(signal.SIGINT, self.on_interrupt)  # code has changed it
        try:
            cell, failed = shell.transform_cell(code), None
        except Exception:
            cell, failed = code, sys.exc_info()
        self.interrupted = False
        try:
            if shell.should_run_async(code, transformed_cell=cell, preprocessing_exc_tuple=failed):
                self.running = self.loop.create_task(
                    shell.run_cell_async(code, store_history=True, transformed_cell=cell, preprocessing_exc_tuple=failed))
                result = await self.running
                self.running = "sync"
                shell.events.trigger("post_execute")
                shell.events.trigger("post_run_cell", result)
            else:
                self.running = "sync"
                shell.run_cell(code, store_history=True)
        except (KeyboardInterrupt, asyncio.CancelledError):
            self.running = None
            self.error("KeyboardInterrupt", "", "KeyboardInterrupt")
        finally:
            self.running = None
