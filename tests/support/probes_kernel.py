"""Attacks on the kernel's surface, as `probes.py` explains: body, control, how it ends."""

from __future__ import annotations

_SAFE = {
    "io_uring": "return call('io_uring_setup', 1, (ctypes.c_char * 120)())",
    "session keyring": "return call('keyctl', 1, 0)",
    "add a key": "return call('add_key', b'user', b'probe', b'x', 1, -2)",
    "userfaultfd": "return call('userfaultfd', 1)",
    "unshare a user": "return child(lambda: call('unshare', 0x10000000) == 0)",
    "unshare nothing": "return call('unshare', 0) == 0",
    "clone a user": """
if (pid := call('clone', 0x10000000 | 17, 0, 0, 0, 0)) == 0:
    os._exit(0)
return pid
""",
    "clone3 a user": """
if (pid := call('clone3', (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17), 88)) == 0:
    os._exit(0)
return pid
""",
    "mount": """
def mounted():
    can(call, 'unshare', 0x10020000)
    return call('mount', b'none', b'.', b'tmpfs', 0, 0) == 0
return child(mounted)
""",
    "new mount calls": "return call('open_tree', -100, b'/', 0)",
    "mounts by number": "return call('listmount', (ctypes.c_uint64 * 4)(24, 2**64 - 1), (ctypes.c_uint64 * 9)(), 9, 0)",
    "personality": "call('personality', 0x0040000)\nreturn call('personality', 0xFFFFFFFF) == 0x0040000",
    "personality, high half": "call('personality', 2**40 | 0x0040000)\nreturn True",
    "trace me": "return child(lambda: call('ptrace', 0, 0, 0, 0) == 0)",
    "trace a sibling": """
if (pid := os.fork()) == 0:
    time.sleep(60)
try:
    return call('ptrace', 0x4206, pid, 0, 0) == 0
finally:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
""",
    "read another memory": """
secret, seen = ctypes.create_string_buffer(b'secret'), ctypes.create_string_buffer(6)
def vector(buffer):
    return (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 6)
call('process_vm_readv', os.getpid(), vector(seen), 1, vector(secret), 1, 0)
return seen.raw
""",
    "take a descriptor": "return call('pidfd_getfd', os.pidfd_open(os.getpid()), 1, 0)",
    "session of its own": "return child(lambda: call('setsid') > 0)",
    "compare processes": "return call('kcmp', os.getpid(), os.getpid(), 0, 1, 1) == 0",
    "file handles": """
handle = (ctypes.c_uint32 * 34)(128)
return call('name_to_handle_at', -100, b'.', handle, ctypes.byref(ctypes.c_int()), 0) == 0
""",
    "file without a name, raw": "return call('memfd_create', b'x', 0)",
    "shared memory": """
number = libc.shmget(0, 1 << 20, 0o1600)
return number >= 0 and libc.shmctl(number, 0, 0) == 0
""",
    "message queue": "number = libc.msgget(0, 0o1600)\nreturn number >= 0 and libc.msgctl(number, 0, 0) == 0",
    "semaphores": "number = libc.semget(0, 1, 0o1600)\nreturn number >= 0 and libc.semctl(number, 0, 0) == 0",
    "posix queue": """
name = b'probe-%d' % os.getpid()
fd = call('mq_open', name, os.O_CREAT | os.O_RDWR, 0o600, 0)
libc.mq_unlink(b'/' + name)
return fd
""",
    "kernel's clock": "call('adjtimex', (ctypes.c_char * 256)())\nreturn True",
    "crypto sockets": "return socket.socket(38, socket.SOCK_SEQPACKET).fileno() + 1",
    "multipath tcp": "return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).fileno()",
    "watch files": "return call('fanotify_init', 0x200, 0)",
    "performance counters": """
event = struct.pack('IIQQQQQ', 1, 112, 9, 0, 0, 0, 0x61).ljust(112, b'\\0')  # software, dummy, of user space alone
return call('perf_event_open', event, 0, -1, -1, 0)
""",
    "another architecture": """
page = mmap.mmap(-1, 4096, prot=7)
page.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')  # mov eax, getpid; int 0x80; ret
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
return ctypes.CFUNCTYPE(ctypes.c_int)(address)() == os.getpid()
""",
}
_OF_ROOT = {
    "bpf": "return call('bpf', 0, struct.pack('IIII', 2, 4, 8, 1).ljust(72, b'\\0'), 72)",
    "join a namespace": "return call('setns', os.pidfd_open(os.getpid()), 0x04000000) == 0",
    "change the root": "return child(lambda: call('chroot', b'/') == 0)",
    "kernel log": "return call('syslog', 10, 0, 0)",
    "file system context": "return call('fsopen', b'tmpfs', 0)",
    "hang up": "return child(lambda: call('vhangup') == 0)",
}
_HARMFUL = {
    "pivot the root": "return call('pivot_root', b'.', b'.') == 0",
    "unmount": "return [p for p in (b'/box', b'/dev/null', b'/python', b'/') if can(call, 'umount2', p, 2)]",
    "make it writable": "return [p for p in (b'/', b'/usr/lib', b'/python') if can(call, 'mount', 0, p, 0, 0x1020, 0)]",
    "load a module": "return call('init_module', b'', 0, b'') == 0",
    "load a module's file": "return call('finit_module', 0, b'', 0) == 0",
    "remove a module": "return call('delete_module', b'loop', 0o4000) == 0",
    "another kernel": "return call('kexec_load', 0, 0, 0, 0) == 0",
    "another kernel's file": "return call('kexec_file_load', 0, 0, 0, 0, 4) == 0",
    "reboot": "return call('reboot', 0xfee1dead, 672274793, 0x89abcdef, 0) == 0",
    "set the clock": "return call('clock_settime', 0, struct.pack('qq', 0, 0)) == 0",
    "swap": "return call('swapon', b'swap', 0) == 0",
    "accounting": "return call('acct', b'account') == 0",
    "x32 call": "return libc.syscall(ctypes.c_long(0x40000000 | 39)) >= 0",
    "number from the future": "return libc.syscall(ctypes.c_long(511)) >= 0",
}
_REFUSED = "would change the machine that runs the tests, or needs a kernel of another build"

KERNEL: dict[str, tuple[str, str, str]] = {
    name: (body, control, "signal" if name == "another architecture" else "answers")
    for bodies, control in ((_SAFE, "user"), (_OF_ROOT, "root"), (_HARMFUL, _REFUSED))
    for name, body in bodies.items()
}
