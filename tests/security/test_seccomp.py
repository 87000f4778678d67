"""The list of refused kernel calls, run instruction by instruction and compared with tables of its own."""

from __future__ import annotations

import errno
import re
import struct
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.sandbox import seccomp

KILL, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# 386, arm, ppc64le, riscv64, s390x: what a program could switch to, or what it was never meant for
FOREIGN = (0x40000003, 0x40000028, 0xC0000015, 0xC00000F3, 0x80000016, 0)
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),  # what arm64 is made from
}
# Written down a second time, from the other direction: by number.
X86_64 = """
29 shmget|64 semget|68 msgget|101 ptrace|103 syslog|112 setsid|134 uselib|139 sysfs|153 vhangup|154 modify_ldt
155 pivot_root|156 _sysctl|159 adjtimex|161 chroot|163 acct|164 settimeofday|165 mount|166 umount2|167 swapon
168 swapoff|169 reboot|172 iopl|173 ioperm|174 create_module|175 init_module|176 delete_module|177 get_kernel_syms
178 query_module|179 quotactl|180 nfsservctl|212 lookup_dcookie|227 clock_settime|240 mq_open|246 kexec_load
248 add_key|249 request_key|250 keyctl|256 migrate_pages|272 unshare|279 move_pages|298 perf_event_open
300 fanotify_init|303 name_to_handle_at|304 open_by_handle_at|305 clock_adjtime|308 setns|310 process_vm_readv
311 process_vm_writev|312 kcmp|313 finit_module|319 memfd_create|320 kexec_file_load|321 bpf|323 userfaultfd"""
AARCH64 = """
18 lookup_dcookie|39 umount2|40 mount|41 pivot_root|42 nfsservctl|51 chroot|58 vhangup|60 quotactl|89 acct|97 unshare
104 kexec_load|105 init_module|106 delete_module|112 clock_settime|116 syslog|117 ptrace|142 reboot|157 setsid
170 settimeofday|171 adjtimex|180 mq_open|186 msgget|190 semget|194 shmget|217 add_key|218 request_key|219 keyctl
224 swapon|225 swapoff|238 migrate_pages|239 move_pages|241 perf_event_open|262 fanotify_init|264 name_to_handle_at
265 open_by_handle_at|266 clock_adjtime|268 setns|270 process_vm_readv|271 process_vm_writev|272 kcmp
273 finit_module|279 memfd_create|280 bpf|282 userfaultfd|294 kexec_file_load"""
# From 424 on a call has one number on all machines.
BOTH = """
425 io_uring_setup|426 io_uring_enter|427 io_uring_register|428 open_tree|429 move_mount|430 fsopen|431 fsconfig
432 fsmount|433 fspick|438 pidfd_getfd|440 process_madvise|442 mount_setattr|443 quotactl_fd|447 memfd_secret
448 process_mrelease|457 statmount|458 listmount|467 open_tree_attr"""
CLONE, CLONE3, PERSONALITY, IOCTL, SOCKET, SOCKETPAIR = (
    {"x86_64": 56, "aarch64": 220},
    {"x86_64": 435, "aarch64": 435},
    {"x86_64": 135, "aarch64": 92},
    {"x86_64": 16, "aarch64": 29},
    {"x86_64": 41, "aarch64": 198},
    {"x86_64": 53, "aarch64": 199},
)
both = pytest.mark.parametrize("machine", ARCHES)


def denied(machine: str) -> dict[int, str]:
    lines = re.split(r"[|\n]", (X86_64 if machine == "x86_64" else AARCH64) + BOTH)
    return {int(number): name for number, name in (line.split() for line in lines if line)}


@cache
def instructions(machine: str) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("<HBBI", seccomp.program(machine)))


def run(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the kernel would answer: an interpreter of the few instructions that classic BPF has here."""
    values = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, ARCHES[machine] if arch is None else arch, 0x7F00_1234_5678, *values)
    program, at, word = instructions(machine), 0, 0
    for _ in range(len(program) + 1):
        code, yes, no, constant = program[at]
        at += 1
        if code == 0x20:  # ld [k]
            assert constant % 4 == 0
            (word,) = struct.unpack_from("<I", data, constant)
        elif code == 0x54:  # and #k
            word &= constant
        elif code == 0x15:  # jeq #k
            at += yes if word == constant else no
        elif code == 0x25:  # jgt #k
            at += yes if word > constant else no
        elif code == 0x45:  # jset #k
            at += yes if word & constant else no
        else:
            assert code == 0x06, f"unknown instruction {code:#x}"
            return constant
    raise AssertionError("the program does not end")


def refused(verdict: int, error: int = errno.EPERM) -> bool:
    return verdict == ERRNO | error


@both
def test_every_denied_call_is_refused_and_every_other_allowed(machine: str) -> None:
    table = denied(machine)
    special = {CLONE3[machine], SOCKET[machine], SOCKETPAIR[machine]}
    for number in range(470):
        if number in special:
            continue
        expected = ERRNO | errno.EPERM if number in table else ALLOW
        assert run(machine, number) == expected, (number, table.get(number))


@both
def test_denied_calls_are_refused_whatever_their_arguments(machine: str) -> None:
    for number in denied(machine):
        for values in ((0,) * 6, (2**64 - 1,) * 6, (1, 2, 3, 4, 5, 6)):
            assert refused(run(machine, number, *values))


@both
@pytest.mark.parametrize("number", [470, 471, 500, 511, 512, 520, 547, 548, 600, 1000, 2**30 - 1, 2**31, 2**32 - 1])
def test_numbers_after_the_last_known_do_not_exist(machine: str, number: int) -> None:
    assert refused(run(machine, number), errno.ENOSYS)


def test_x32_calls_do_not_exist_on_x86_64() -> None:
    for number in range(600):
        assert refused(run("x86_64", number | 0x40000000), errno.ENOSYS)


@both
@pytest.mark.parametrize("arch", FOREIGN)
def test_wrong_architecture_is_killed_before_anything_else(machine: str, arch: int) -> None:
    assert {run(machine, number, arch=arch) for number in (*range(600), 2**32 - 1)} == {KILL}


@both
def test_each_architecture_kills_the_other(machine: str) -> None:
    other = next(arch for name, arch in ARCHES.items() if name != machine)
    assert run(machine, 0, arch=other) == KILL


@both
def test_program_is_well_formed(machine: str) -> None:
    program = instructions(machine)
    assert len(seccomp.program(machine)) == 8 * len(program)
    assert len(program) <= 4096  # BPF_MAXINSNS
    for at, (code, yes, no, constant) in enumerate(program):
        if code in (0x15, 0x25, 0x45):
            assert at + 1 + max(yes, no) < len(program)
        else:
            assert code in (0x20, 0x54, 0x06)
            assert (yes, no) == (0, 0)
        if code == 0x20:
            assert constant in range(0, 64, 4)
        if code == 0x06:
            assert constant in (KILL, ALLOW, *(ERRNO | error for error in (1, 38, 97)))
    assert program[-1] == (0x06, 0, 0, ALLOW)


@both
def test_every_instruction_is_reached(machine: str) -> None:
    seen, waiting = set(), [0]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        code, yes, no, _ = instructions(machine)[at]
        if code in (0x15, 0x25, 0x45):
            waiting += [at + 1 + yes, at + 1 + no]
        elif code != 0x06:
            waiting.append(at + 1)
    assert seen == set(range(len(instructions(machine))))


SPACES = {
    "NEWNS": 0x00020000,
    "NEWCGROUP": 0x02000000,
    "NEWUTS": 0x04000000,
    "NEWIPC": 0x08000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
PLAIN_FLAGS = (
    17,  # fork: SIGCHLD
    0x01200011,  # glibc's fork: CHILD_CLEARTID, CHILD_SETTID, SIGCHLD
    0x003D0F00,  # pthread_create
    0x00004111,  # vfork, posix_spawn
)


@both
@pytest.mark.parametrize("flag", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("high", [0, 1, 0xFFFFFFFF])
def test_clone_into_a_new_namespace_is_refused(machine: str, flag: int, high: int) -> None:
    for plain in PLAIN_FLAGS:
        assert refused(run(machine, CLONE[machine], high << 32 | plain | flag))


@both
@pytest.mark.parametrize("flags", PLAIN_FLAGS)
def test_plain_forks_and_threads_are_allowed(machine: str, flags: int) -> None:
    assert run(machine, CLONE[machine], flags, 2**64 - 1, 2**64 - 1) == ALLOW


@both
def test_clone3_does_not_exist_so_that_libc_falls_back(machine: str) -> None:
    assert refused(run(machine, CLONE3[machine], 2**64 - 1, 88), errno.ENOSYS)


@both
@given(low=st.integers(0, 2**32 - 1), high=st.integers(0, 2**32 - 1))
def test_personality_may_be_asked_but_not_changed(machine: str, low: int, high: int) -> None:
    assert run(machine, PERSONALITY[machine], high << 32) == ALLOW
    assert run(machine, PERSONALITY[machine], high << 32 | 0xFFFFFFFF) == ALLOW
    if low not in (0, 0xFFFFFFFF):
        assert refused(run(machine, PERSONALITY[machine], high << 32 | low))


@both
@pytest.mark.parametrize("high", [0, 1, 0xFFFFFFFF])
def test_typing_into_a_terminal_is_refused_whatever_the_high_half(machine: str, high: int) -> None:
    for request in (0x5412, 0x541C, 0x5423):
        assert refused(run(machine, IOCTL[machine], 2**64 - 1, high << 32 | request))
        assert run(machine, IOCTL[machine], request, high << 32 | 0x5413) == ALLOW  # TIOCGWINSZ, request as an fd


@both
@given(family=st.integers(0, 2**32 - 1), kind=st.integers(0, 2**64 - 1), protocol=st.integers(0, 2**64 - 1))
def test_foreign_socket_families_are_refused(machine: str, family: int, kind: int, protocol: int) -> None:
    for call in (SOCKET, SOCKETPAIR):
        verdict = run(machine, call[machine], kind >> 32 << 32 | family, kind, protocol)
        assert verdict == ALLOW if family == 1 else family in (2, 10) or refused(verdict, errno.EAFNOSUPPORT)


@both
@pytest.mark.parametrize("family", [2, 10])
@pytest.mark.parametrize("flags", [0, 0o2000000, 0o4000, 0o2004000])
def test_internet_sockets_are_tcp_and_udp_alone(machine: str, family: int, flags: int) -> None:
    for kind in range(11):
        for protocol in (0, 1, 6, 17, 33, 58, 132, 136, 255, 262):  # ICMP, DCCP, SCTP, UDP-Lite, raw, MPTCP
            verdict = run(machine, SOCKET[machine], family, kind | flags, protocol)
            assert (verdict == ALLOW) == (kind in (1, 2) and protocol in (0, 6, 17))
            assert verdict == ALLOW or refused(verdict, errno.EAFNOSUPPORT)


@both
def test_numbers_agree_with_the_system_header(machine: str) -> None:
    if not HEADERS[machine].is_file():
        pytest.skip(f"no {HEADERS[machine]}: apt install libc6-dev")
    text = HEADERS[machine].read_text("ascii")
    header = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    column = list(ARCHES).index(machine)
    ours = {name: numbers[column] for name, numbers in {**seccomp.DENIED, **seccomp.INSPECTED}.items()}
    known = {name: number for name, number in ours.items() if name in header}
    assert known == {name: header[name] for name in known}
    unknown = {name for name, number in ours.items() if number is not None and name not in header}
    assert unknown <= {"statmount", "listmount", "open_tree_attr"}  # younger than some headers
    assert len(known) >= 60


def test_another_machine_has_no_list() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.program("riscv64")  # type: ignore[arg-type]
