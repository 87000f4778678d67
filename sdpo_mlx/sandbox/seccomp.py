"""Which kernel calls a contained program may not make, as classic BPF that needs no compiler.

A deny list over an allowing default: Python itself calls nothing of it, and a program that is refused one
gets an error, not its death. What is refused: looking into other processes; new namespaces, mounts and
roots; the kernel surface where most holes were found (io_uring, bpf, keys, userfaultfd, perf); the
machine's clock, modules and swap; memory that no limit counts (memfd, System V, message queues); sessions of
its own (sched(7), autogroups).

EPERM is the truth ("not permitted here") and libraries that probe for a call fall back on it. ENOSYS goes
to `clone3`, whose flags lie in memory where no filter can look: libc then uses `clone`, whose flags are an
argument. ENOSYS also goes to every number after the last one read for this list, so that a newer kernel
answers like an older one; on x86-64 those include the x32 calls (bit 30 set, and 512 to 547).
EAFNOSUPPORT goes to socket families other than local and internet ones.

Arguments are compared by their low halves, because the kernel reads these as 32-bit values and ignores the
rest. Numbers: the kernel's `arch/x86/entry/syscalls/syscall_64.tbl` and `scripts/syscall.tbl`, 6.17.
Filter format: `linux/filter.h`, `linux/seccomp.h`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from functools import cache
from typing import Literal

Machine = Literal["x86_64", "aarch64"]
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant

MACHINES: tuple[Machine, ...] = ("x86_64", "aarch64")
LAST_NUMBER = 469  # file_setattr, Linux 6.17
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: number on x86-64, number on aarch64; None where the call does not exist
DENIED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "mount": (165, 40),
    "umount2": (166, 39),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),  # these two would tell where on the machine the bound files lie
    "listmount": (458, 458),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "lookup_dcookie": (212, 18),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "query_module": (178, None),
    "get_kernel_syms": (177, None),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "sysfs": (139, None),
    "_sysctl": (156, None),
    "nfsservctl": (180, 42),
    "uselib": (134, None),
    "vhangup": (153, 58),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "setsid": (112, 157),  # Linux shares the processor among sessions: 30 of them would leave the trainer a thirtieth
}
# Calls whose arguments decide.
INSPECTED: dict[str, tuple[int, int]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "personality": (135, 92),
    "ioctl": (16, 29),
    "socket": (41, 198),
    "socketpair": (53, 199),
}
# Mount, cgroup, UTS, IPC, user, PID and network namespaces: CLONE_NEW* of linux/sched.h.
NEW_NAMESPACES = 0x7E02_0000
PERSONALITIES = (0, 0xFFFF_FFFF)  # the plain one, and the question which one it is
TERMINAL_CALLS = (0x5412, 0x541C, 0x5423)  # TIOCSTI and TIOCLINUX type for the user, TIOCSETD loads modules
_LOCAL, _INTERNET = 1, (2, 10)  # AF_UNIX; AF_INET and AF_INET6
_KINDS, _PROTOCOLS = (1, 2), (0, 6, 17)  # stream and datagram; any, TCP, UDP

_LOAD, _AND = 0x20, 0x54  # BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K
_EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x15, 0x25, 0x45, 0x06  # BPF_JMP with JEQ, JGT, JSET; BPF_RET
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
KILL, ALLOW, REFUSE = 0x8000_0000, 0x7FFF_0000, 0x0005_0000  # SECCOMP_RET_KILL_PROCESS, _ALLOW, _ERRNO


@cache
def program(machine: Machine) -> bytes:
    """The filter for one machine: an array of `struct sock_filter`, little-endian, as `bwrap --seccomp` reads it.

    Raises ValueError for a machine whose numbers are not known here.
    """
    if machine not in MACHINES:
        raise ValueError(f"no list of kernel calls for {machine}")
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in _instructions(machine))


def _instructions(machine: Machine) -> Iterator[Instruction]:
    """Yield all instructions in order; every jump goes at most a few forward."""
    column = MACHINES.index(machine)
    number = {name: numbers[column] for name, numbers in INSPECTED.items()}
    yield _load(_ARCH)
    yield from _unless(_EQUAL, AUDIT_ARCH[machine], KILL)
    yield _load(_NUMBER)
    yield from _when(_GREATER, LAST_NUMBER, _errno(errno.ENOSYS))
    for numbers in DENIED.values():
        if (denied := numbers[column]) is not None:
            yield from _when(_EQUAL, denied, _errno(errno.EPERM))
    yield from _when(_EQUAL, number["clone3"], _errno(errno.ENOSYS))
    yield from _block(number["clone"], [_argument(0), *_when(_ANY_BIT, NEW_NAMESPACES, _errno(errno.EPERM))])
    yield from _block(number["personality"], [*_only(0, PERSONALITIES, errno.EPERM)])
    terminal = [step for call in TERMINAL_CALLS for step in _when(_EQUAL, call, _errno(errno.EPERM))]
    yield from _block(number["ioctl"], [_argument(1), *terminal])
    for name in ("socket", "socketpair"):
        yield from _block(number[name], [*_socket()])
    yield _return(ALLOW)


def _socket() -> Iterator[Instruction]:
    """Local sockets of any kind; internet ones as TCP and UDP: other protocols make the kernel load modules."""
    yield _argument(0)
    yield from _when(_EQUAL, _LOCAL, ALLOW)
    yield from _only(0, _INTERNET, errno.EAFNOSUPPORT)
    yield _argument(1)
    yield (_AND, 0, 0, 0xF)  # the flags SOCK_NONBLOCK and SOCK_CLOEXEC lie above
    yield from _only(None, _KINDS, errno.EAFNOSUPPORT)
    yield from _only(2, _PROTOCOLS, errno.EAFNOSUPPORT)


def _only(argument: int | None, values: tuple[int, ...], error: int) -> Iterator[Instruction]:
    """Refuse unless the argument, or with None what is loaded, is one of the values."""
    if argument is not None:
        yield _argument(argument)
    for index, value in enumerate(values):
        yield (_EQUAL, len(values) - index, 0, value)
    yield _return(_errno(error))


def _block(number: int, steps: list[Instruction]) -> Iterator[Instruction]:
    """Steps for one call, jumped over by the others; what they do not refuse is allowed."""
    yield (_EQUAL, 0, len(steps) + 1, number)
    yield from steps
    yield _return(ALLOW)


def _when(test: int, value: int, verdict: int) -> Iterator[Instruction]:
    yield (test, 0, 1, value)
    yield _return(verdict)


def _unless(test: int, value: int, verdict: int) -> Iterator[Instruction]:
    yield (test, 1, 0, value)
    yield _return(verdict)


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def _argument(index: int) -> Instruction:
    """Load the low half of an argument."""
    return _load(16 + 8 * index)


def _return(verdict: int) -> Instruction:
    return (_RETURN, 0, 0, verdict)


def _errno(error: int) -> int:
    return REFUSE | error
