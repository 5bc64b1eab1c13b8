"""The code interpreter of a sandbox: runs code in Jupyter kernels and answers with streams of JSON lines.

It owns the kernels. It serves on the port that clients of the E2B contract expect and knows no tokens: who may speak to it is
decided before a request gets into the sandbox. One execution at a time runs in a context; contexts do not wait for each other.
"""

import asyncio
import json
import os
import signal
import sys
import time
import uuid

import tornado.web
from jupyter_client.manager import AsyncKernelManager
from tornado.iostream import StreamClosedError

PORT = 49999
HERE = os.path.dirname(os.path.abspath(__file__))
DEFAULT_CWD = os.path.expanduser("~")
KEEPALIVE = 5.0  # seconds between signs of life
START_TIME = 60  # seconds that a kernel may take to be ready
MAX_BODY = 16 << 20  # bytes of a request
MAX_LINE = 32 << 20  # bytes of one answered line; a longer one is an error of the execution

PYTHON = "python"
LANGUAGES = {"python": PYTHON, "python3": PYTHON}
COMMANDS = {PYTHON: [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]}

# Names of the answer's fields for what a kernel calls by MIME type.
FIELDS = {
    "text/plain": "text", "text/html": "html", "text/markdown": "markdown", "image/svg+xml": "svg", "image/png": "png",
    "image/jpeg": "jpeg", "application/pdf": "pdf", "text/latex": "latex", "application/json": "json",
    "application/javascript": "javascript", "e2b/data": "data", "e2b/chart": "chart",
}


class Failure(Exception):
    """An error that the client gets as it is: status and text."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Context:
    """A kernel with its state: variables, working directory."""

    def __init__(self, language, cwd):
        self.id = str(uuid.uuid4())
        self.language = language
        self.cwd = cwd
        self.turn = asyncio.Lock()
        self.manager = None
        self.client = None

    def describe(self):
        return {"id": self.id, "language": self.language, "cwd": self.cwd}

    async def start(self):
        self.manager = AsyncKernelManager()
        self.manager._kernel_spec = spec(self.language)
        env = dict(os.environ, PYDEVD_DISABLE_FILE_VALIDATION="1")
        await self.manager.start_kernel(cwd=self.cwd, env=env)
        await self.connect()

    async def connect(self):
        self.client = self.manager.client()
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=START_TIME)
        with open(os.path.join(HERE, "startup.py"), encoding="utf-8") as f:
            await self.silently(f.read())

    async def silently(self, code):
        """Runs code of ours that leaves no trace in the history."""
        await self.client.execute_interactive(
            code, silent=True, store_history=False, output_hook=lambda m: None, timeout=START_TIME)

    async def restart(self):
        self.client.stop_channels()
        await self.manager.restart_kernel(now=True)
        await self.connect()

    async def stop(self):
        if self.client is not None:
            self.client.stop_channels()
        if self.manager is not None and self.manager.has_kernel:
            await self.manager.shutdown_kernel(now=True)

    async def interrupt(self):
        if self.manager.has_kernel:
            await self.manager.interrupt_kernel()


def spec(language):
    from jupyter_client.kernelspec import KernelSpec

    return KernelSpec(argv=COMMANDS[language], display_name=language, language=language, interrupt_mode="signal")


class Contexts:
    """All contexts, and the default one of each language, which is made when it is first needed."""

    def __init__(self):
        self.by_id = {}
        self.defaults = {}
        self.making = {}

    async def create(self, language, cwd):
        kind = LANGUAGES.get((language or PYTHON).lower())
        if kind is None:
            raise Failure(400, f"language {language!r} is not served: one of {', '.join(sorted(set(LANGUAGES.values())))} is")
        cwd = os.path.expanduser(cwd or DEFAULT_CWD)
        if not os.path.isdir(cwd):
            raise Failure(400, f"cwd {cwd!r} does not exist")
        c = Context(kind, cwd)
        try:
            await c.start()
        except BaseException:
            await c.stop()
            raise
        self.by_id[c.id] = c
        return c

    async def default(self, language):
        kind = LANGUAGES.get((language or PYTHON).lower())
        if kind is None:
            raise Failure(400, f"language {language!r} is not served: one of {', '.join(sorted(set(LANGUAGES.values())))} is")
        lock = self.making.setdefault(kind, asyncio.Lock())
        async with lock:
            if kind not in self.defaults:
                self.defaults[kind] = (await self.create(kind, DEFAULT_CWD)).id
            return self.by_id[self.defaults[kind]]

    def get(self, context_id):
        c = self.by_id.get(context_id)
        if c is None:
            raise Failure(404, f"Context {context_id} not found")
        return c

    async def remove(self, context_id):
        c = self.get(context_id)
        del self.by_id[context_id]
        for kind, default in list(self.defaults.items()):
            if default == context_id:
                del self.defaults[kind]
        await c.stop()


CONTEXTS = Contexts()


class Handler(tornado.web.RequestHandler):
    """What all resources have in common."""

    def body(self):
        if not self.request.body:
            return {}
        try:
            v = json.loads(self.request.body)
        except ValueError as e:
            raise Failure(400, f"the body is not JSON: {e}") from e
        if not isinstance(v, dict):
            raise Failure(400, "the body is not a JSON object")
        return v

    def answer(self, value, status=200):
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value))

    def write_error(self, status_code, **kwargs):
        e = kwargs.get("exc_info", (None, None, None))[1]
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        if isinstance(e, Failure):
            self.set_status(e.status)
            self.finish(str(e))
        else:
            self.finish("internal error")

    def log_exception(self, typ, value, tb):
        if not isinstance(value, Failure):
            super().log_exception(typ, value, tb)


class Health(Handler):
    def get(self):
        self.finish("OK")


class ContextList(Handler):
    def get(self):
        self.answer([c.describe() for c in CONTEXTS.by_id.values()])

    async def post(self):
        b = self.body()
        c = await CONTEXTS.create(b.get("language"), b.get("cwd"))
        self.answer(c.describe())


class OneContext(Handler):
    async def delete(self, context_id):
        await CONTEXTS.remove(context_id)
        self.set_status(204)
        self.finish()


class Restart(Handler):
    async def post(self, context_id):
        c = CONTEXTS.get(context_id)
        await c.restart()
        self.set_status(204)
        self.finish()


class Execute(Handler):
    """POST /execute: runs code and streams what comes of it, one JSON object a line."""

    def initialize(self):
        self.gone = asyncio.Event()

    def on_connection_close(self):
        self.gone.set()

    async def line(self, value):
        text = json.dumps(value)
        if len(text) > MAX_LINE:
            text = json.dumps({"type": "error", "name": "OutputTooLarge", "traceback": "",
                               "value": f"one output of {len(text)} bytes, at most {MAX_LINE}"})
        self.write(text + "\n")
        try:
            await self.flush()
        except StreamClosedError:
            self.gone.set()

    async def post(self):
        b = self.body()
        code, context_id, language = b.get("code"), b.get("context_id"), b.get("language")
        if not isinstance(code, str):
            raise Failure(400, "code is missing")
        if context_id and language:
            raise Failure(400, "Only one of context_id or language can be provided")
        env = b.get("env_vars") or {}
        if not isinstance(env, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in env.items()):
            raise Failure(400, "env_vars is not an object of strings")
        c = CONTEXTS.get(context_id) if context_id else await CONTEXTS.default(language)
        self.set_header("Content-Type", "application/x-ndjson")
        self.set_header("X-Accel-Buffering", "no")
        async with c.turn:
            if self.gone.is_set():
                return
            await self.run(c, code, env)
        if not self.gone.is_set():
            self.finish()

    async def run(self, c, code, env):
        if not env:
            await self.stream(c, code)
            return
        await c.silently(f"_soulbox_env_push({json.dumps(env)!r})")
        try:
            await self.stream(c, code)
        finally:
            if await c.manager.is_alive():
                await c.silently("_soulbox_env_pop()")

    async def stream(self, c, code):
        message = c.client.execute(code, store_history=True, allow_stdin=False)
        beat = time.monotonic()
        ended = interrupted = False
        while not ended:
            if self.gone.is_set() and not interrupted:
                interrupted = True
                await c.interrupt()
            try:
                m = await c.client.get_iopub_msg(timeout=0.5)
            except Exception as e:  # jupyter_client raises queue.Empty
                if type(e).__name__ != "Empty":
                    raise
                if not await c.manager.is_alive():
                    await self.line({"type": "unexpected_end_of_execution"})
                    await c.restart()
                    return
                if time.monotonic() - beat >= KEEPALIVE and not self.gone.is_set():
                    beat = time.monotonic()
                    await self.line({"type": "keepalive"})
                continue
            if m["parent_header"].get("msg_id") != message:
                continue
            value, ended = translate(m)
            if value is not None and not self.gone.is_set():
                beat = time.monotonic()
                await self.line(value)
        if not self.gone.is_set():
            await self.line({"type": "end_of_execution"})


def translate(m):
    """Returns the line for a kernel's message, or None, and whether it was the last one."""
    kind, content = m["msg_type"], m["content"]
    if kind == "status":
        return None, content["execution_state"] == "idle"
    if kind == "execute_input":
        return {"type": "number_of_executions", "execution_count": content["execution_count"]}, False
    if kind == "stream":
        return {"type": content["name"], "text": content["text"], "timestamp": str(m["header"]["date"])}, False
    if kind == "error":
        return {"type": "error", "name": content["ename"], "value": content["evalue"],
                "traceback": "\n".join(content["traceback"])}, False
    if kind in ("display_data", "execute_result"):
        return result(content["data"], kind == "execute_result"), False
    return None, False


def result(data, main):
    out = {"type": "result", "is_main_result": main}
    extra = {}
    for mime, value in data.items():
        field = FIELDS.get(mime)
        if field is None:
            extra[mime] = value
        elif mime == "text/plain":
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


async def main():
    app = tornado.web.Application([
        (r"/health", Health),
        (r"/execute", Execute),
        (r"/contexts", ContextList),
        (r"/contexts/([^/]+)", OneContext),
        (r"/contexts/([^/]+)/restart", Restart),
    ])
    server = tornado.httpserver.HTTPServer(app, max_body_size=MAX_BODY)
    server.listen(PORT, address="127.0.0.1")
    stop = asyncio.Event()
    for s in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(s, stop.set)
    # The first execution finds its kernel ready.
    first = asyncio.ensure_future(CONTEXTS.default(PYTHON))
    await stop.wait()
    server.stop()
    first.cancel()
    for c in list(CONTEXTS.by_id.values()):
        await c.stop()


if __name__ == "__main__":
    import tornado.httpserver

    asyncio.run(main())
