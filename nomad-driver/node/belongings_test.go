package node

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// belongings are what programs have, each with what it is to be after a pause: Python that makes it, and Python that asserts.
var belongings = []struct {
	name, make, check string
	refused           bool
}{
	{"watches of folders and files, of its own and of the template", `
import ctypes, os
libc = ctypes.CDLL(None)
os.chdir(os.environ['HOME']); os.makedirs('deep/er'); open('deep/file', 'w').close(); os.mkdir(b'\xff odd\n')
w = libc.inotify_init()
wds = [libc.inotify_add_watch(w, x, 0x102) for x in (b'/', b'/etc', b'.', b'deep', b'deep/er', b'deep/file', b'/tmp', b'\xff odd\n')]
assert min(wds) > 0
`, `
for x in (b'.', b'deep', b'deep/er', b'/tmp', b'\xff odd\n'):
    open(x + b'/seen', 'w').close(); assert b'seen' in os.read(w, 999), x
open('deep/file', 'w').write('x'); assert os.read(w, 999)
`, false},
	{"unix sockets with a path, a name, and data on its way", `
import socket, os
os.chdir(os.environ['HOME'])
s = socket.socket(socket.AF_UNIX); s.bind('sock'); s.listen()
a, b = socket.socketpair(); a.send(b'stream')
c, d = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); c.send(b'one'); c.send(b'two')
q = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); q.bind('\0abstract')
p, r = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); p.send(b'packet')
`, `
k = socket.socket(socket.AF_UNIX); k.connect('sock'); l = s.accept()[0]; k.send(b'x'); assert l.recv(9) == b'x'
assert b.recv(9) == b'stream'
assert (d.recv(9), d.recv(9)) == (b'one', b'two')
assert r.recv(9) == b'packet'
m = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); m.sendto(b'hi', '\0abstract'); assert q.recv(9) == b'hi'
`, false},
	{"descriptors that pass to a friend", `
import socket, os, array
a, b = socket.socketpair()
r, w = os.pipe(); os.write(w, b'in the pipe')
socket.send_fds(a, [b'x'], [r])
os.close(r)
`, `
m, fds, _, _ = socket.recv_fds(b, 9, 1)
assert os.read(fds[0], 99) == b'in the pipe'
`, false},
	{"pipes and fifos with data", `
import os
os.chdir(os.environ['HOME'])
r, w = os.pipe(); os.write(w, b'a' * 40000)
os.mkfifo('fifo'); f = os.open('fifo', os.O_RDWR); os.write(f, b'fifo')
`, `
assert len(os.read(r, 99999)) == 40000
assert os.read(f, 9) == b'fifo'
`, false},
	{"events, timers and what waits for them", `
import os, select, signal, time
e = os.eventfd(7, os.EFD_NONBLOCK)
r, w = os.pipe()
p = select.epoll(); p.register(r, select.EPOLLIN, ); p.register(e, select.EPOLLIN)
ticks = []
signal.signal(signal.SIGALRM, lambda *_: ticks.append(1)); signal.setitimer(signal.ITIMER_REAL, .05, .05)
`, `
assert os.eventfd_read(e) == 7
os.write(w, b'x'); assert [x for x, _ in p.poll(5)] == [r]
n = len(ticks); time.sleep(.5); assert len(ticks) > n
signal.setitimer(signal.ITIMER_REAL, 0)
`, false},
	{"a timer and signals by descriptor", `
import ctypes, os, struct, signal, time
libc = ctypes.CDLL(None, use_errno=True)
t = libc.timerfd_create(1, 0); spec = struct.pack('qqqq', 0, 50000000, 0, 50000000)
assert libc.timerfd_settime(t, 0, spec, None) == 0
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
mask = struct.pack('Q', 1 << (signal.SIGUSR1 - 1)); s = libc.syscall(289, -1, mask, 8, 0)
assert s >= 0
os.kill(os.getpid(), signal.SIGUSR1)
`, `
assert struct.unpack('Q', os.read(t, 8))[0] >= 1
assert struct.unpack('I', os.read(s, 128)[:4])[0] == signal.SIGUSR1
`, false},
	{"memory with a descriptor", `
import os, mmap, fcntl
m = os.memfd_create('m', os.MFD_ALLOW_SEALING); os.write(m, b'sealed'); fcntl.fcntl(m, 1033, 0xe)
n = os.memfd_create('n'); os.ftruncate(n, 1 << 20); v = mmap.mmap(n, 1 << 20); v[70000:70003] = b'abc'
`, `
assert os.pread(m, 9, 0) == b'sealed' and fcntl.fcntl(m, 1034) == 0xe
assert v[70000:70003] == b'abc' and os.pread(n, 3, 70000) == b'abc'
v[5:6] = b'y'; assert os.pread(n, 1, 5) == b'y'
`, false},
	{"maps of files: shared, private and written to, of a file that is gone", `
import os, mmap
os.chdir(os.environ['HOME'])
f = open('f', 'w+b'); f.truncate(1 << 16); f.flush()
s = mmap.mmap(f.fileno(), 1 << 16); s[9:12] = b'abc'
p = mmap.mmap(f.fileno(), 1 << 16, mmap.MAP_PRIVATE); p[20:23] = b'own'
g = open('g', 'w+b'); g.truncate(1 << 16); g.flush(); q = mmap.mmap(g.fileno(), 1 << 16); q[3:6] = b'del'; os.unlink('g'); g.close()
`, `
assert open('f', 'rb').read()[9:12] == b'abc' and open('f', 'rb').read()[20:23] == bytes(3)
assert p[20:23] == b'own' and p[9:12] == b'abc'
assert q[3:6] == b'del'
s[0:1] = b'z'; assert open('f', 'rb').read(1) == b'z'
`, false},
	{"System V and POSIX shared memory, semaphores and messages", `
import ctypes, ctypes.util, os
from multiprocessing import shared_memory
libc = ctypes.CDLL(None, use_errno=True); libc.shmat.restype = ctypes.c_void_p
i = libc.shmget(0x5b, 65536, 0o1600); assert i >= 0
a = libc.shmat(i, None, 0); ctypes.memmove(a, b'shared', 6)
e = libc.semget(0x5b, 1, 0o1600); assert e >= 0; assert libc.semctl(e, 0, 16, 5) == 0
m = libc.msgget(0x5b, 0o1600); assert m >= 0
x = ctypes.create_string_buffer(b'\x01' + bytes(7) + b'message'); assert libc.msgsnd(m, x, 7, 0) == 0
h = shared_memory.SharedMemory('soulbox', create=True, size=8192); h.buf[5000:5003] = b'abc'
`, `
assert ctypes.string_at(a, 6) == b'shared' and libc.shmget(0x5b, 65536, 0o600) == i
assert libc.semctl(e, 0, 12) == 5
y = ctypes.create_string_buffer(64); assert libc.msgrcv(m, y, 50, 0, 0) == 7 and y.raw[8:15] == b'message'
assert bytes(h.buf[5000:5003]) == b'abc' and open('/dev/shm/soulbox', 'rb').read()[5000:5003] == b'abc'
`, false},
	{"message queues of POSIX", `
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
q = libc.mq_open(b'/held', os.O_CREAT | os.O_RDWR, 0o600, None); assert q >= 0, os.strerror(ctypes.get_errno())
assert libc.mq_send(q, b'message', 7, 3) == 0
`, `
b = ctypes.create_string_buffer(8192); p = ctypes.c_uint()
assert libc.mq_receive(q, b, 8192, ctypes.byref(p)) == 7 and b.raw[:7] == b'message' and p.value == 3
`, true},
	{"message queues of POSIX that nobody has open", `
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
q = libc.mq_open(b'/left', os.O_CREAT | os.O_RDWR, 0o600, None); assert q >= 0, os.strerror(ctypes.get_errno())
assert libc.mq_send(q, b'message', 7, 3) == 0; libc.mq_close(q)
`, `
q = libc.mq_open(b'/left', os.O_RDWR); assert q >= 0, os.strerror(ctypes.get_errno())
b = ctypes.create_string_buffer(8192); p = ctypes.c_uint()
assert libc.mq_receive(q, b, 8192, ctypes.byref(p)) == 7 and b.raw[:7] == b'message' and p.value == 3
`, true},
	{"locks of files", `
import fcntl, os
os.chdir(os.environ['HOME'])
f = open('f', 'w'); fcntl.flock(f, fcntl.LOCK_EX)
g = open('g', 'w'); fcntl.lockf(g, fcntl.LOCK_EX, 10, 5)
`, `
def refused(name, how):
    r = os.fork()
    if r == 0:
        try: how(open(name, 'r+')); os._exit(0)
        except OSError: os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(r, 0)[1]) == 7
assert refused('f', lambda f: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB))
assert refused('g', lambda f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5))
`, false},
	{"sockets of the network", `
import socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 9001)); v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); v.connect(('127.0.0.1', 9001))
s = socket.create_server(('127.0.0.1', 9002)); s6 = socket.create_server(('::1', 9003), family=socket.AF_INET6)
b = socket.socket(); b.bind(('127.0.0.1', 9004))
c = socket.create_connection(('127.0.0.1', 9002)); d = s.accept()[0]
n = socket.socket(); n.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
`, `
v.send(b'hi'); assert u.recv(9) == b'hi'
k = socket.create_connection(('127.0.0.1', 9002)); assert s.accept()
k6 = socket.create_connection(('::1', 9003)); assert s6.accept()
b.listen(); assert socket.create_connection(('127.0.0.1', 9004))
try: assert c.recv(9) == b''
except ConnectionError: pass
assert n.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
`, false},
	{"netlink and ping sockets", `
import socket
n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); n.bind((0, 0))
`, `
assert n.getsockname()[0] >= 0
`, false},
	{"a terminal of its own with a program", `
import os, pty, time
pid, t = pty.fork()
if pid == 0:
    os.execv('/bin/bash', ['bash', '--norc'])
os.write(t, b'x=kept; stty -echo; echo re""ady\n')
out = b''
while b'ready' not in out: out += os.read(t, 999)
`, `
os.write(t, b'echo is-$x\n')
out = b''
while b'is-kept' not in out: out += os.read(t, 999)
`, false},
	{"children: ended, stopped, orphaned, of a leader that is gone", `
import os, signal, subprocess, time
z = os.fork()
if z == 0: os._exit(3)
s = subprocess.Popen(['sleep', '1000']); os.kill(s.pid, signal.SIGSTOP)
r, w = os.pipe()
m = os.fork()
if m == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(w, b'%d' % os.getpid()); time.sleep(1000)
    os._exit(0)
os.waitpid(m, 0); o = int(os.read(r, 9))
while open(f'/proc/{s.pid}/stat').read().split()[2] != 'T': time.sleep(.01)
while open(f'/proc/{z}/stat').read().split()[2] != 'Z': time.sleep(.01)
`, `
assert os.waitstatus_to_exitcode(os.waitpid(z, 0)[1]) == 3
assert open(f'/proc/{s.pid}/stat').read().split()[2] == 'T'
os.kill(s.pid, signal.SIGCONT); assert s.poll() is None; s.kill(); assert s.wait() == -9
assert os.getsid(o) == m; os.kill(o, 9)
`, false},
	{"much memory, in a process that is stopped and in one that is not", `
import hashlib, os, signal, subprocess, time
b = os.urandom(64 << 20); sum = hashlib.sha256(b).hexdigest()
r, w = os.pipe(); s, t = os.pipe()
c = os.fork()
if c == 0:
    d = os.urandom(48 << 20); os.write(w, hashlib.sha256(d).hexdigest().encode()); os.read(s, 1); os.write(w, hashlib.sha256(d).hexdigest().encode()); os._exit(0)
want = os.read(r, 64); os.kill(c, signal.SIGSTOP)
while open(f'/proc/{c}/stat').read().split()[2] != 'T': time.sleep(.01)
`, `
assert hashlib.sha256(b).hexdigest() == sum
assert open(f'/proc/{c}/stat').read().split()[2] == 'T'; os.kill(c, signal.SIGCONT); os.write(t, b'x')
assert os.read(r, 64) == want; os.waitpid(c, 0)
`, false},
	{"threads that sleep, wait and compute", `
import threading, time, queue
n = [0]; q = queue.Queue(); ev = threading.Event()
def compute():
    while not ev.is_set(): n[0] += 1
def wait(): q.put('woke ' + w.get())
w = queue.Queue()
ts = [threading.Thread(target=compute), threading.Thread(target=wait), threading.Thread(target=ev.wait)]
[x.start() for x in ts]
`, `
a = n[0]; time.sleep(.2); assert n[0] > a
w.put('up'); assert q.get(timeout=5) == 'woke up'
ev.set(); [x.join() for x in ts]
`, false},
	{"open files that have lost their name, one of their names, or have another one", `
import os
os.chdir(os.environ['HOME'])
f = open('gone', 'w+'); f.write('no name'); f.flush(); os.unlink('gone')
g = open('one', 'w+'); g.write('other name'); g.flush(); os.link('one', 'two'); os.unlink('one')
h = open('old', 'w+'); h.write('renamed'); h.flush(); os.rename('old', 'new')
t = open('/tmp/one', 'w+'); t.write('in memory'); t.flush(); os.link('/tmp/one', '/tmp/two'); os.unlink('/tmp/one')
`, `
assert [(x.seek(0), x.read())[1] for x in (f, g, h, t)] == ['no name', 'other name', 'renamed', 'in memory']
assert [n for n in sorted(os.listdir('.')) if n[0] != '.'] == ['new', 'two'] and 'two' in os.listdir('/tmp') and not [n for n in os.listdir('/tmp') if 'remap' in n]
g.write('!'); g.flush(); assert open('two').read() == 'other name!'
t.write('!'); t.flush(); assert open('/tmp/two').read() == 'in memory!'
`, false},
	{"a working directory that is gone, and one that is held open", `
import os
os.chdir(os.environ['HOME']); os.mkdir('a'); os.mkdir('b'); d = os.open('b', os.O_DIRECTORY); os.chdir('a'); os.rmdir('../a'); open('../b/x', 'w').close()
`, `
assert os.listdir('.') == [] and os.listdir(d) == ['x']
`, false},
	{"a program whose file is gone", `
import os, shutil, subprocess
os.chdir(os.environ['HOME']); shutil.copy('/bin/sleep', 'nap'); p = subprocess.Popen(['./nap', '1000']); os.unlink('nap')
`, `
assert p.poll() is None; p.kill(); assert p.wait() == -9
`, false},
	{"files of the template that are open, mapped or run, and gone or replaced", `
import mmap, os, shutil, subprocess
f = open('/etc/services'); want = f.read(); f.seek(0)
g = open('/etc/protocols', 'rb'); m = mmap.mmap(g.fileno(), 0, prot=mmap.PROT_READ); had = m[:]; g.close()
p = subprocess.Popen(['/bin/sleep', '1000'])
os.unlink('/etc/services'); os.unlink('/etc/protocols')
shutil.copy('/bin/sleep', '/bin/sleep.new'); os.rename('/bin/sleep.new', '/bin/sleep')
`, `
assert f.read() == want and len(want) > 100
assert m[:] == had and len(had) > 100
assert p.poll() is None and 'deleted' in os.readlink(f'/proc/{p.pid}/exe'); p.kill(); assert p.wait() == -9
assert not os.path.exists('/etc/services') and not [n for d in ('/etc', '/bin') for n in os.listdir(d) if 'remap' in n or '.cr.' in n]
`, false},
	{"libraries that were replaced under who uses them", `
import ctypes, glob, os, shutil
lib = os.path.realpath(ctypes.CDLL('libz.so.1')._name if os.path.isabs(ctypes.CDLL('libz.so.1')._name) else glob.glob('/usr/lib/*/libz.so.1')[0])
z = ctypes.CDLL('libz.so.1'); z.zlibVersion.restype = ctypes.c_char_p; v = z.zlibVersion()
shutil.copy(lib, lib + '.new'); os.rename(lib + '.new', lib)
`, `
assert z.zlibVersion() == v and z.crc32(0, b'abc', 3) & 0xffffffff == 0x352441c2
`, false},
	{"files that are sparse, appended to, and without a name", `
import os
os.chdir(os.environ['HOME'])
s = open('s', 'w+b'); s.seek(5 << 30); s.write(b'end'); s.flush()
a = open('a', 'ab'); a.write(b'1'); a.flush()
t = os.open('.', os.O_TMPFILE | os.O_RDWR); os.write(t, b'nameless')
`, `
s.seek(5 << 30); assert s.read() == b'end' and os.stat('s').st_blocks < 100
a.write(b'2'); a.flush(); assert open('a').read() == '12'
assert os.pread(t, 99, 0) == b'nameless'
`, false},
	{"a folder of the template that is a working directory, and gone", `
import os, shutil
os.makedirs('/usr/share/doc', exist_ok=True); os.chdir('/usr/share/doc'); d = os.open('.', os.O_DIRECTORY)
os.chdir('/'); shutil.rmtree('/usr/share/doc')
`, `
assert os.listdir(d) == [] and not os.path.exists('/usr/share/doc')
`, true},
	{"a chroot", `
import os, subprocess, time
os.makedirs('/srv/jail', exist_ok=True)
r, w = os.pipe()
c = os.fork()
if c == 0:
    os.chroot('/srv/jail'); os.chdir('/'); open('inside', 'w').close(); os.write(w, b'in')
    time.sleep(1); n = sorted(os.listdir('/')); os.write(w, str(n).encode()); os._exit(0)
assert os.read(r, 2) == b'in'
`, `
assert os.read(r, 99) == b"['inside']"; os.waitpid(c, 0)
`, false},
	{"limits, priority, mask and name", `
import resource, os, ctypes
libc = ctypes.CDLL(None)
resource.setrlimit(resource.RLIMIT_NOFILE, (99, 199)); os.nice(5); os.umask(0o27); assert libc.prctl(15, b'renamed', 0, 0, 0) == 0
assert libc.prctl(1, 15, 0, 0, 0) == 0 and libc.prctl(36, 1, 0, 0, 0) == 0
`, `
x = ctypes.c_int()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (99, 199) and os.nice(0) == 5 and os.umask(0) == 0o27 and open('/proc/self/comm').read() == 'renamed\n'
assert libc.prctl(2, ctypes.byref(x), 0, 0, 0) == 0 and x.value == 15
assert libc.prctl(37, ctypes.byref(x), 0, 0, 0) == 0 and x.value == 1
`, false},
	{"memory that is locked, guarded, protected, huge, or not for children", `
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
def pages(n): return libc.mmap(None, n * 4096, 3, 0x22, -1, 0)
a = pages(16); ctypes.memset(a, 65, 65536); l = libc.mlock(ctypes.c_void_p(a), 8192)
b = pages(16); ctypes.memset(b, 66, 65536); assert libc.mprotect(ctypes.c_void_p(b + 4096), 4096, 0) == 0
c = pages(16); ctypes.memset(c, 67, 65536); assert libc.madvise(ctypes.c_void_p(c), 65536, 18) == 0
d = pages(16); ctypes.memset(d, 68, 65536); guard = libc.madvise(ctypes.c_void_p(d + 4096), 4096, 102)
e = pages(16); ctypes.memset(e, 69, 65536); assert libc.mprotect(ctypes.c_void_p(e), 65536, 1) == 0
`, `
import os
assert ctypes.string_at(a, 65536) == b'A' * 65536
assert ctypes.string_at(b, 4096) == b'B' * 4096 and ctypes.string_at(b + 8192, 4096) == b'B' * 4096
assert ctypes.string_at(c, 9) == b'C' * 9 and ctypes.string_at(e, 9) == b'E' * 9
def dies(at):
    p = os.fork()
    if p == 0:
        ctypes.string_at(at, 1); os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) == -11
assert dies(b + 4096), 'protection'
assert guard != 0 or dies(d + 4096), 'guard'
`, false},
	{"signals that wait to be delivered", `
import signal, os
got = []
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN + 2])
signal.signal(signal.SIGUSR1, lambda *_: got.append(1)); signal.signal(signal.SIGRTMIN + 2, lambda *_: got.append(2))
os.kill(os.getpid(), signal.SIGUSR1); os.kill(os.getpid(), signal.SIGRTMIN + 2); os.kill(os.getpid(), signal.SIGRTMIN + 2)
`, `
assert [signal.sigtimedwait([signal.SIGRTMIN + 2], 1).si_pid for i in (1, 2)] == [os.getpid()] * 2 and signal.sigtimedwait([signal.SIGRTMIN + 2], 0) is None
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1, signal.SIGRTMIN + 2])
assert got == [1], got
`, false},
	{"descriptors of processes and of /proc", `
import os, subprocess
c = subprocess.Popen(['sleep', '1000']); p = os.pidfd_open(c.pid); m = open('/proc/self/status'); k = open(f'/proc/{c.pid}/cmdline')
m.readline()
`, `
import signal
signal.pidfd_send_signal(p, 9); assert c.wait() == -9
m.seek(0); assert m.readline().startswith('Name')
`, false},
	{"devices that every sandbox has", `
f = [open('/dev/' + n, 'rb', buffering=0) for n in ('null', 'zero', 'urandom', 'random', 'full')]
w = open('/dev/null', 'wb', buffering=0); x = open('/dev/ptmx', 'r+b', buffering=0)
`, `
assert f[1].read(3) == bytes(3) and len(f[2].read(5)) == 5 and f[0].read(1) == b'' and w.write(b'x') == 1
`, false},
	{"descriptors that are one and the same, with flags, owners and sizes of their own", `
import fcntl, os, signal
os.chdir(os.environ['HOME'])
f = os.open('f', os.O_RDWR | os.O_CREAT | os.O_TRUNC); g = os.dup(f); os.write(f, b'abc')
h = os.open('f', os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK); p = os.open('f', os.O_PATH)
r, w = os.pipe(); fcntl.fcntl(w, 1031, 1 << 18); fcntl.fcntl(r, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(r, 10, signal.SIGRTMIN + 3)
os.set_inheritable(g, True)
`, `
os.write(g, b'def'); assert os.lseek(f, 0, os.SEEK_CUR) == 6
os.write(h, b'g'); assert os.pread(f, 9, 0) == b'abcdefg' and fcntl.fcntl(h, fcntl.F_GETFL) & os.O_NONBLOCK
assert os.stat(p).st_size == 7
assert fcntl.fcntl(w, 1032) == 1 << 18 and fcntl.fcntl(r, fcntl.F_GETOWN) == os.getpid() and fcntl.fcntl(r, 11) == signal.SIGRTMIN + 3
assert os.get_inheritable(g) and not os.get_inheritable(f)
`, false},
	{"timers of POSIX, and an alarm", `
import ctypes, ctypes.util, signal, struct
rt = ctypes.CDLL(None, use_errno=True); got = []
signal.signal(signal.SIGRTMIN + 1, lambda *_: got.append(1)); signal.signal(signal.SIGALRM, lambda *_: got.append(2))
ev = ctypes.create_string_buffer(struct.pack('Qii', 77, signal.SIGRTMIN + 1, 0) + bytes(64)); tid = ctypes.c_void_p()
assert rt.timer_create(1, ev, ctypes.byref(tid)) == 0
assert rt.timer_settime(tid, 0, struct.pack('qqqq', 0, 50000000, 0, 50000000), None) == 0
signal.alarm(1)
`, `
import time
n = got.count(1); time.sleep(.3); assert got.count(1) > n
end = time.time() + 5
while 2 not in got and time.time() < end: time.sleep(.05)
assert 2 in got
assert rt.timer_delete(tid) == 0
`, false},
	{"sockets with data that nobody has read yet", `
import socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 9101)); u.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17); size = u.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
a, b = socket.socketpair(); a.send(b'x' * 50000); b.shutdown(socket.SHUT_WR)
s = socket.socket(socket.AF_UNIX); s.bind('/tmp/gone.sock'); s.listen(); c = socket.socket(socket.AF_UNIX); c.connect('/tmp/gone.sock'); d = s.accept()[0]
import os; os.unlink('/tmp/gone.sock'); c.send(b'through')
`, `
assert u.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
n = 0
while n < 50000: n += len(b.recv(99999))
assert a.recv(1) == b''
assert d.recv(9) == b'through'; d.send(b'back'); assert c.recv(9) == b'back'
`, false},
	{"memory that children share, and a poll of polls", `
import mmap, os, select
m = mmap.mmap(-1, 1 << 16); m[0:3] = b'abc'; r, w = os.pipe(); go, start = os.pipe()
c = os.fork()
if c == 0:
    os.read(go, 1); m[3:6] = b'def'; os._exit(0)
e = select.epoll(); e.register(r, select.EPOLLIN); o = select.epoll(); o.register(e.fileno(), select.EPOLLIN)
z = mmap.mmap(os.open('/dev/zero', os.O_RDWR), 8192, mmap.MAP_PRIVATE); z[1:2] = b'z'
`, `
os.write(start, b'x'); os.waitpid(c, 0); assert m[0:6] == b'abcdef'
assert o.poll(0) == []; os.write(w, b'x'); assert len(o.poll(2)) == 1
assert z[0:3] == bytes(1) + b'z' + bytes(1)
`, false},
	{"programs of a shell: a job in the background, one that was stopped, a pipe of three", `
import os, pty, select
pid, t = pty.fork()
if pid == 0:
    os.execv('/bin/bash', ['bash', '--norc', '-i'])
def until(mark, meanwhile=b''):
    out = b''
    while mark not in out:
        if select.select([t], [], [], .2)[0]: out += os.read(t, 999)
        else: os.write(t, meanwhile)
    return out
os.write(t, b'stty -echo; PS1=; sleep 1000 & (sleep 1001; true) | cat | cat & echo st""arted\n'); until(b'started')
os.write(t, b'sleep 1002\n'); until(b'Stopped', b'\x1a')
`, `
os.write(t, b'jobs; echo do""ne\n'); out = until(b'done'); assert b'Stopped' in out and out.count(b'Running') == 2, out
os.write(t, b'kill %1 %2; kill -9 %3; wait; echo al""l\n'); until(b'all')
`, false},
	{"a tree of files of every kind", everyKind + `
k = socket.socket(socket.AF_UNIX); k.bind('sock'); k.close()
os.unlink('/etc/services'); shutil.rmtree('/etc/skel'); os.mkdir('/etc/skel'); put('/etc/skel/new'); os.rename('/etc/protocols', '/etc/moved'); os.chmod('/usr/share', 0o711)
tops = ('.', '/etc', '/usr/share'); was = print_of(tops)
`, `
now = print_of(tops)
assert len(was) > 500 and now == was, [x for x in set(was) ^ set(now)][:4]
assert os.path.samefile('big', 'same')
`, false},
	{"a tree of files in memory", "import os; os.environ['HOME'] = '/tmp'\n" + everyKind + `
was = print_of(['.'])
`, `
now = print_of(['.'])
assert len(was) > 60 and now == was, [x for x in set(was) ^ set(now)][:4]
assert os.path.samefile('big', 'same')
`, false},
	{"a filter of system calls of its own", `
import ctypes, struct, os
libc = ctypes.CDLL(None, use_errno=True)
code = struct.pack('HBBI', 0x20, 0, 0, 0) + struct.pack('HBBI', 0x15, 0, 1, 136) + struct.pack('HBBI', 6, 0, 0, 0x50000 | 42) + struct.pack('HBBI', 6, 0, 0, 0x7fff0000)
buf = ctypes.create_string_buffer(code); prog = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 4, ctypes.addressof(buf)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, prog) == 0
`, `
assert libc.syscall(136) == -1 and ctypes.get_errno() == 42
`, false},
	{"a semaphore and a lock between processes", `
import mmap, os, ctypes
from multiprocessing import get_context
ctx = get_context('fork'); s = ctx.Semaphore(0); r, w = os.pipe()
p = os.fork()
if p == 0:
    s.acquire(); os.write(w, b'through'); os._exit(0)
`, `
s.release(); assert os.read(r, 9) == b'through'; assert os.waitpid(p, 0)[1] == 0
`, false},
}

// everyKind makes a folder with files of every kind, and a function that tells all that is to be known of files. (A socket that nobody has open is not kept in memory.)
const everyKind = `
import os, shutil, socket, struct, hashlib, stat
os.chdir(os.environ['HOME']); os.mkdir('tree'); os.chdir('tree')
def put(name, data=b'x', mode=0o644):
    with open(name, 'wb') as f: f.write(data)
    os.chmod(name, mode)
put(b'\xff\xfe not utf8'); os.mkdir(b'\xfd'); put(b'\xfd/\xfc'); os.symlink(b'\xfb', 'to'); put('n' * 255); put('suid', mode=0o4755); put('none', mode=0); put('big', os.urandom(3 << 20)); put('empty', b'')
put('owned'); os.chown('owned', 1234, 5678); put('old'); os.utime('old', ns=(10**18 + 1, 10**18 + 123456789))
os.makedirs('/'.join(['deep'] * 50)); os.mkdir('sticky'); os.chmod('sticky', 0o3777); os.symlink('/nowhere/at all', 'dangling'); os.link('big', 'same'); os.mkfifo('fifo')
os.setxattr('empty', b'user.mine\xff', b'v' * 200); os.setxattr('empty', 'security.capability', struct.pack('<IIIII', 0x02000001, 1 << 10, 0, 0, 0))
os.setxattr('owned', 'system.posix_acl_access', struct.pack('<I' + 'HHI' * 5, 2, 1, 6, 2**32 - 1, 2, 4, 1234, 4, 4, 2**32 - 1, 16, 6, 2**32 - 1, 32, 0, 2**32 - 1))
def print_of(tops):
    out = []
    for top in tops:
        for d, ds, fs in os.walk(os.fsencode(top)):
            ds.sort()
            for n in sorted(ds + fs) + [b'.']:
                if d == b'/etc' and n in (b'machine-id', b'hostname', b'hosts', b'resolv.conf', b'.'): continue
                p = os.path.join(d, n); st = os.lstat(p); x = (p, st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_rdev)
                if not stat.S_ISDIR(st.st_mode): x += (st.st_size, st.st_nlink)
                x += tuple((a, os.getxattr(p, a, follow_symlinks=False)) for a in sorted(os.listxattr(p, follow_symlinks=False)))
                if stat.S_ISLNK(st.st_mode): x += (os.readlink(p),)
                elif stat.S_ISREG(st.st_mode): x += (hashlib.sha256(open(p, 'rb').read()).digest(),)
                out.append(x)
    return out
`

// ballast is as much memory as is copied beside a dump, with no two pages alike, and intact whether it is.
const (
	ballast = "ballast = b''.join(i.to_bytes(8, 'big') * 512 for i in range(3072))\n"
	intact  = "assert ballast == b''.join(i.to_bytes(8, 'big') * 512 for i in range(3072))\n"
)

// TestReal_pauseHoldsWhatProgramsHave pauses a program with each of these to the disk and resumes it: all is there, or the pause said no and all is there as well.
func TestReal_pauseHoldsWhatProgramsHave(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	d.importPython()
	for _, c := range belongings {
		t.Run(c.name, func(t *testing.T) {
			sb, repl := d.repl("root")
			defer func() { _ = repl.Close() }()
			defer func() { must.NoError(t, d.client.Delete(t.Context(), sb.ID)) }()
			pid := repl.Process.PID
			do(t, repl, ballast+c.make)
			must.NoError(t, repl.Close())
			snapshot := api.NewSnapshotID()
			_, err := d.client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: snapshot})
			must.Eq(t, c.refused, err != nil, must.Sprint(err))
			if err == nil {
				copied, err := d.client.Create(t.Context(), restoreRequest(snapshot, ""))
				must.NoError(t, err)
				other, err := d.client.Attach(t.Context(), copied.ID, nodeapi.AttachRequest{Attach: guest.Attach{PID: pid}})
				must.NoError(t, err)
				do(t, other, intact+c.check)
				must.NoError(t, other.Close())
				must.NoError(t, d.client.Delete(t.Context(), copied.ID))
			}
			_, err = d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
			must.Eq(t, c.refused, err != nil, must.Sprint(err))
			now, err := d.client.Get(t.Context(), sb.ID)
			must.NoError(t, err)
			if now.State == nodeapi.StatePaused {
				_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
				must.NoError(t, err)
			}
			repl, err = d.client.Attach(t.Context(), sb.ID, nodeapi.AttachRequest{Attach: guest.Attach{PID: pid}})
			must.NoError(t, err)
			do(t, repl, intact+c.check)
		})
	}
	must.StrNotContains(t, d.log.String(), "of no use", must.Sprint("memory was copied beside for nothing"))
}

// do has a Python do something, and fails with what it says went wrong. A terminal that is attached to says again what it has said before: so each turn has words of its own.
func do(t *testing.T, repl *nodeapi.Stream, code string) {
	t.Helper()
	turn := string(api.NewSandboxID())
	well, wrong := turn+" went well", turn+" went wrong"
	code = fmt.Sprintf("try: exec(%q, globals())\nexcept BaseException as e:\n import traceback; print(traceback.format_exc()); print('%s went', 'wrong')\nelse: print('%s went', 'well')", code, turn, turn)
	lines := "code = ''\n"
	for part := range slices.Chunk([]byte(code), 1000) { // a terminal's line has 4,096 bytes at most
		lines += fmt.Sprintf("code += '%s'\n", hex.EncodeToString(part))
	}
	_, err := repl.Write([]byte(lines + "exec(bytes.fromhex(code).decode())\n"))
	must.NoError(t, err)
	for said := ""; !strings.Contains(said, well); {
		f, err := repl.Recv()
		must.NoError(t, err, must.Sprint(said))
		must.NotEq(t, frame.Exit, f.Type, must.Sprint(said))
		if _, data, err := frame.Output(f.Payload); err == nil {
			said += string(data)
		}
		if _, rest, ok := strings.Cut(said, "Traceback"); ok && strings.Contains(said, wrong) {
			t.Fatalf("%s", rest)
		}
	}
}
