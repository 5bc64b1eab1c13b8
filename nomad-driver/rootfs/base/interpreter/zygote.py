"""The process that kernels are forked from: it has imported IPython once, so that a kernel is there in milliseconds.

It owns the processes of the kernels: it alone forks, waits for and signals them, so that no number of a process is ever another's. It has
one thread, and ends with all its kernels when the server does.
"""

import json
import os
import select
import signal
import socket

MAX_REQUEST = 64 << 10  # bytes


def start():
    """Forks the zygote; returns the server's end of the channel to it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        code = 1
        try:
            ours.close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            Zygote(its).run()
            code = 0
        finally:
            os._exit(code)
    its.close()
    return ours


class Zygote:
    def __init__(self, channel):
        self.channel = channel
        self.kernels = set()  # pids that were not waited for
        self.python = None

    def run(self):
        import python_kernel

        self.python = python_kernel.prepare()
        awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *a: None)
        while True:
            ready, _, _ = select.select([self.channel, awake], [], [])
            if awake in ready:
                os.read(awake, 4096)
                self.reap()
            if self.channel in ready:
                data, fds, _, _ = socket.recv_fds(self.channel, MAX_REQUEST, 4)
                if not data:
                    break
                request = json.loads(data)
                if "signal" in request:
                    self.signal(request["pid"], request["signal"])
                else:
                    self.channel.send(json.dumps(self.spawn(request, fds)).encode())
        for pid in self.kernels:
            self.signal(pid, signal.SIGKILL)

    def reap(self):
        while self.kernels:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self.kernels.discard(pid)

    def signal(self, pid, number):
        """Signals a kernel and what it runs."""
        if pid in self.kernels:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                pass

    def spawn(self, request, fds):
        """Forks a kernel, whose requests, events, output and errors are the four descriptors."""
        try:
            pid = os.fork()
        except OSError as e:
            for fd in fds:
                os.close(fd)
            return {"error": str(e)}
        if pid == 0:
            code = 1
            try:
                self.become(request["language"], request["cwd"], *fds)
                code = 0
            except SystemExit:
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        for fd in fds:
            os.close(fd)
        self.kernels.add(pid)
        try:
            os.setpgid(pid, pid)  # the kernel does so as well: whoever is first
        except OSError:
            pass
        return {"pid": pid}

    def become(self, language, cwd, requests, events, out, err):
        """Turns the forked process into a kernel. Returns when the kernel has ended."""
        signal.set_wakeup_fd(-1)
        for s in (signal.SIGINT, signal.SIGCHLD):
            signal.signal(s, signal.SIG_DFL)
        os.setpgid(0, 0)
        self.channel.close()
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, std in ((null, 0), (out, 1), (err, 2)):
            os.dup2(fd, std)
            os.close(fd)
        try:
            os.chdir(cwd)
        except PermissionError:
            cwd = os.path.expanduser("~")  # a folder of somebody else's is a context's without being entered
            os.chdir(cwd)
        os.environ["PWD"] = cwd
        if language == "python":
            self.python.serve(requests, events)
        elif language == "bash":
            import bash_kernel

            bash_kernel.serve(requests, events)
        else:
            here = os.path.dirname(os.path.abspath(__file__))
            for fd in (requests, events):
                os.set_inheritable(fd, True)
            os.execv("/usr/bin/node", ["node", "--no-warnings", os.path.join(here, "javascript_kernel.js"), str(requests), str(events), language])
