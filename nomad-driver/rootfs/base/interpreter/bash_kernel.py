"""The bash kernel: one bash that keeps its variables, functions and folder, and gets a cell at a time.

A cell is a file in memory that bash sources: what it declares is the shell's, and a trap may end it by a return. bash writes the exit
status of each to a pipe. One that ends, by `exit` say, is replaced by a fresh one.
"""

import os
import re
import shlex
import signal
import subprocess

import channel

LOOP = r"""
trap 'return 130' INT
while read -r -u "$_soulbox_in"; do
	. "/proc/self/fd/$_soulbox_cell"
	printf '%s\n' "$?" >&"$_soulbox_out"
done
"""


class Shell:
    def __init__(self, cwd):
        turns, self.turns = os.pipe()
        status, out = os.pipe()
        self.cell = os.memfd_create("cell")
        loop = f"_soulbox_in={turns} _soulbox_out={out} _soulbox_cell={self.cell}\n" + LOOP
        self.process = subprocess.Popen(
            ["/bin/bash", "--noprofile", "--norc", "-c", loop, "bash"], cwd=cwd, stdin=subprocess.DEVNULL, pass_fds=(turns, out, self.cell))
        os.close(turns)
        os.close(out)
        self.status = os.fdopen(status, "rb")

    def run(self, code):
        """Runs code and returns its exit status, or None where bash has ended."""
        os.ftruncate(self.cell, 0)
        data, at = code.encode("utf-8", "surrogatepass"), 0
        while at < len(data):
            at += os.pwrite(self.cell, data[at:], at)
        try:
            os.write(self.turns, b"\n")
        except BrokenPipeError:
            return None
        line = self.status.readline()
        return int(line) if line else None

    def end(self):
        os.close(self.turns)
        os.close(self.cell)
        self.status.close()
        return self.process.wait()


def serve(requests, events):
    signal.signal(signal.SIGINT, lambda *a: None)  # the group is signalled: bash ends its cell, this process goes on
    out = channel.Events(events)
    shell = Shell(os.getcwd())
    count = 0
    for request in channel.lines(requests):
        count += 1
        out.send("started", count=count)
        code, env = request["code"], request["env"]
        before, after = changes(env)
        if before:
            shell.run(before)
        status = shell.run(code)
        if status is None:
            status = shell.end()
            shell = Shell(os.getcwd())
        elif after:
            shell.run(after)
        if status:
            out.send("error", name="ExitStatus", value=str(status), traceback=f"the last command ended with exit status {status}")
        out.send("done")


def changes(env):
    """Returns the code that sets variables, and the code that makes it as if they had not been set."""
    before, after = [], []
    for i, (k, v) in enumerate(sorted(env.items())):
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", k):
            continue
        old = f"_soulbox_old_{i}"
        before.append(f"if [ -n \"${{{k}+x}}\" ]; then {old}=${k}; else unset {old}; fi; export {k}={shlex.quote(v)}")
        after.append(f"if [ -n \"${{{old}+x}}\" ]; then export {k}=\"${old}\"; else unset {k}; fi; unset {old}")
    return "\n".join(before), "\n".join(after)
