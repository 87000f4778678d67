"""The container sandbox: its command line, its clean-up, and a real engine where one is installed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from probe_checks import check_blocked
from probe_targets import world
from probes import ATTACKS
from pydantic import ValidationError

from sdpo_mlx.config import SandboxConfig
from sdpo_mlx.core.errors import SandboxError
from sdpo_mlx.sandbox import container, launch, seccomp
from sdpo_mlx.sandbox.bootstrap import STARTED
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.sandbox.container import ContainerSandbox, Engine, client_environment, container_arguments, filters
from sdpo_mlx.sandbox.launch import OUTPUT_CAP, Limits, bootstrap, payload

LINUX = pytest.mark.skipif(os.uname().sysname != "Linux", reason="seccomp is Linux's")
IMAGE = os.environ.get("SDPO_TEST_IMAGE", SandboxConfig().image)  # any local image with Python 3.11 or newer

# Runs what it is given on this machine, without containing it, in a session of its own as engines do.
UNCONTAINED = """#!{python}
import os, signal, subprocess, sys
here, words = os.path.dirname(os.path.abspath(__file__)), sys.argv[1:]
open(here + "/log", "a").write(" ".join(words[:3])[:200] + "\\n")
if words[0] == "version":
    sys.exit(0)
if words[0] in ("info", "ps"):
    sys.exit(0)
if words[0] == "image":
    sys.exit(0 if words[-1] == "local" else print("no such image", file=sys.stderr) or 1)
if words[0] in ("kill", "rm"):
    try:
        os.killpg(int(open(here + "/" + words[-1]).read()), signal.SIGKILL)
    except OSError:
        pass
    sys.exit(0)
name = words[words.index("--name") + 1]
inner = [{python!r}, *words[words.index("local") + 1:]]
def note():  # before the program can print so much that this client is killed
    open(here + "/" + name, "w").write(str(os.getpid()))
child = subprocess.Popen(inner, env={{}}, start_new_session=True, preexec_fn=note)
code = child.wait()
sys.exit(code if code >= 0 else 128 - code)
"""

Fake = Callable[[str], Path]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    """Puts a script on an otherwise empty PATH as `podman`."""

    def write(script: str) -> Path:
        program = tmp_path / "podman"
        program.write_text(script, encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path))
        return tmp_path

    return write


@pytest.fixture
def uncontained(fake: Fake) -> Path:
    return fake(UNCONTAINED.format(python=sys.executable))


@pytest.mark.parametrize("name", ["podman", "docker"])
def test_command_line_takes_everything_away(name: str) -> None:
    words = container_arguments(Engine(name, f"/bin/{name}", "img:1"), "run-1", Limits(memory_mb=300, file_mb=4), 6.0)
    pairs = set(itertools.pairwise(words))
    assert words[:2] == [f"/bin/{name}", "run"]
    assert words[-3:] == ["--entrypoint", "python", "img:1"]
    assert {("--network", "none"), ("--cap-drop", "ALL"), ("--user", "65534:65534"), ("--ipc", "none")} <= pairs
    assert {("--pull", "never"), ("--memory", "300m"), ("--memory-swap", "300m"), ("--pids-limit", "32")} <= pairs
    assert {("--security-opt", "no-new-privileges"), ("--name", "run-1"), ("--stop-signal", "SIGKILL")} <= pairs
    assert {"--rm", "--read-only", "--interactive"} <= set(words)
    assert not {"--privileged", "--volume", "-v", "--mount", "--device", "--cap-add", "--env-file"} & set(words)
    assert [word for word in words if "size=" in word] == [
        f"/box:rw,noexec,nosuid,nodev,size={4 << 20},mode=1777",
    ]
    assert ("--read-only-tmpfs=false" in words) == (name == "podman")


@pytest.mark.parametrize("image", ["--privileged", "a b", "-v/:/x", "", "a\nb", "$(x)"])
def test_image_that_could_be_an_option_is_refused(image: str) -> None:
    with pytest.raises(ValidationError):
        SandboxConfig(image=image)


def test_client_learns_where_its_daemon_is_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "XDG_RUNTIME_DIR", "CONTAINERS_CONF"):
        monkeypatch.setenv(name, "kept")
    for name in ("HTTPS_PROXY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DOCKER_PASSWORD"):
        monkeypatch.setenv(name, "secret")
    known = client_environment()
    assert {"DOCKER_HOST", "XDG_RUNTIME_DIR", "CONTAINERS_CONF"} <= known.keys()
    assert "secret" not in known.values()


def test_opening_refuses_without_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"neither podman nor docker.*--sandbox unconfined") as caught:
        open_sandbox(SandboxConfig(kind="container"))
    assert caught.value.exit_code == 4


def test_opening_refuses_without_the_image_and_says_how_to_get_it(uncontained: Path) -> None:
    with pytest.raises(SandboxError, match=r"no image python:9 here \(no such image\).*`podman pull python:9`"):
        open_sandbox(SandboxConfig(kind="container", image="python:9"))
    assert "run" not in (uncontained / "log").read_text(encoding="utf-8")


def test_opening_refuses_an_engine_that_contains_nothing(uncontained: Path) -> None:
    with pytest.raises(SandboxError, match="container runs but does not contain: home_invisible"):
        open_sandbox(SandboxConfig(kind="container", image="local"))


def test_opening_refuses_an_engine_that_fails_and_repeats_its_words(fake: Fake) -> None:
    fake('#!/bin/sh\ncase "$1" in image|version) exit 0;; esac\necho "Error: cgroups \033[1mnot here" >&2\nexit 125\n')
    with pytest.raises(SandboxError, match=r"does not run Python \(Error: cgroups \[1mnot here, code 125\)"):
        open_sandbox(SandboxConfig(kind="container", image="local"))


def test_program_and_input_arrive_and_a_clean_end_needs_no_clean_up(uncontained: Path) -> None:
    result = ContainerSandbox("local").run("print(input() * 2)", b"ab\n")
    assert (result.status, result.stdout) == ("exited", b"abab\n")
    assert "kill" not in (uncontained / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("program", "status"),
    [("import time; time.sleep(60)", "timeout"), ("while True: print('x' * 1000)", "output_limit")],
)
def test_nothing_is_left_alive_after_a_cut(uncontained: Path, program: str, status: str) -> None:
    result = ContainerSandbox("local").run(program, seconds=0.5)
    assert result.status == status
    assert len(result.stdout) <= OUTPUT_CAP
    names = [path for path in uncontained.iterdir() if path.name.startswith("sdpo-")]
    assert len(names) == 1
    for _ in range(100):  # init buries the killed a moment later
        if not alive(int(names[0].read_text(encoding="utf-8"))):
            break
        time.sleep(0.05)
    assert not alive(int(names[0].read_text(encoding="utf-8")))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def engine() -> ContainerSandbox:
    try:
        return ContainerSandbox(IMAGE)
    except (FileNotFoundError, ConnectionError, LookupError) as error:
        pytest.skip(f"no container engine with the image {IMAGE}: {error}")


def test_real_engine_passes_its_self_test(engine: ContainerSandbox) -> None:
    assert engine.probe().message == ""
    assert all(engine.self_test().values())


PROBES = {
    "own root": "open('/x', 'w'); print(True)",
    "tmp": "open('/tmp/x', 'w'); print(True)",
    "shared memory": "open('/dev/shm/x', 'w'); print(True)",
    "capabilities": "print(any(int(l.split()[1], 16) for l in open('/proc/self/status') if l.startswith('Cap')))",
    "privileges": "print('NoNewPrivs:\\t0' in open('/proc/self/status').read())",
    "setuid": "import os; os.setuid(0); print(True)",
    "network": "import socket; socket.create_connection(('1.1.1.1', 53), 1); print(True)",
    "environment": "print(b'SDPO' in open('/proc/self/environ', 'rb').read())",
    "memory": "print(len(bytearray(1 << 30)))",
    "full disk": "[open(str(i), 'wb').write(bytes(1 << 20)) for i in range(12)]; print(True)",
    "mount": "import ctypes; print(ctypes.CDLL(None).mount(b'x', b'/box', b'tmpfs', 0, None) == 0)",
}


@pytest.mark.parametrize("name", PROBES)
def test_real_engine_blocks_probe(engine: ContainerSandbox, name: str) -> None:
    result = engine.run(PROBES[name])
    assert result.stdout.strip() == b"False" or b"Error" in result.stderr
    assert result.stdout.strip() in (b"False", b"")


@pytest.mark.parametrize("program", ["import time; time.sleep(60)", "while True: print('x' * 1000)"])
def test_real_engine_leaves_no_container(engine: ContainerSandbox, program: str) -> None:
    assert engine.run(program, seconds=0.5).status in ("timeout", "output_limit")
    assert left(engine) == b""


def left(engine: ContainerSandbox) -> bytes:
    """Containers of this process that the engine still knows."""
    asked = [engine.engine.path, "ps", "--all", "--quiet", "--filter", f"name=sdpo-{os.getpid()}-"]
    return subprocess.run(asked, capture_output=True, check=True, env=client_environment()).stdout.strip()


# What an attack may find in a container and not in bubblewrap: the container's own.
OWN: dict[str, tuple[str, str | None]] = {  # why, and how the answer begins where there is one
    "passwd": ("the image's /etc/passwd, to which the engine adds the user inside", ""),
    "temporary folder": ("the image's /tmp, empty and read-only", "True"),
    "list processes": ("the first process of the container, which is the program itself", "['1']"),
    "kill everything": ("its own first process, which the kernel lets nobody kill from inside", "None"),
    "memory times processes": ("its own memory limit, at which some die while the first one sleeps on", None),
    "open a terminal": ("its own /dev/pts; typing into one is refused all the same", "("),
}
FEW = ("mount", "unshare a user", "trace a sibling", "session keyring", "netlink", "clone3 a user")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in ATTACKS if n not in OWN]
)
def test_real_engine_blocks_attack(engine: ContainerSandbox, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    attack = ATTACKS[name]
    with world() as planted:
        monkeypatch.setenv("SDPO_PROBE_KEY", planted.token)
        result = engine.run(attack.program, planted.ask, seconds=2.0 if attack.ends == "timeout" else 20.0)
        assert planted.harm() == []
        assert planted.token.encode() not in result.stdout + result.stderr
    check_blocked(attack, result.status, result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_real_engine_shows_its_own_and_nothing_of_this_machine(
    engine: ContainerSandbox, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    attack, seconds = ATTACKS[name], 2.0 if name == "memory times processes" else 20.0
    with world() as planted:
        monkeypatch.setenv("SDPO_PROBE_KEY", planted.token)
        result = engine.run(attack.program, planted.ask, seconds=seconds)
        assert planted.harm() == []
        assert planted.token.encode() not in result.stdout + result.stderr
    if OWN[name][1] is None:
        assert result.status in ("signal", "timeout")
    else:
        assert json.loads(result.stdout)["got"].startswith(OWN[name][1])
    assert left(engine) == b""


def test_real_engine_without_the_list_of_refused_calls_is_not_opened(
    engine: ContainerSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_all = base64.b64encode(struct.pack("<HBBI", 6, 0, 0, seccomp.ALLOW)).decode()
    monkeypatch.setattr(container, "filters", lambda: f"{os.uname().machine}:{allow_all}")
    assert [name for name, held in engine.self_test().items() if not held] == ["kernel_guarded"]
    with pytest.raises(SandboxError, match="does not contain: kernel_guarded"):
        open_sandbox(SandboxConfig(kind="container", image=IMAGE))


GUARDED = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
def refused(number, *arguments):
    return libc.syscall(number, *arguments) == -1 and ctypes.get_errno() == 1
import os
x86 = os.uname().machine == "x86_64"
print(json.dumps([
    refused(272 if x86 else 97, 0x10000000),  # unshare a user namespace
    refused(101 if x86 else 117, 0, 0, 0, 0),  # ptrace
    refused(250 if x86 else 219, 0, -3, 1),  # keyctl
    refused(425 if x86 else 425, 1, 0),  # io_uring_setup
    len(open("/proc/self/status").read().split("Seccomp:\\t2")) == 2,
]))
"""


@LINUX
@pytest.mark.skipif(os.uname().machine not in seccomp.MACHINES, reason="no list of kernel calls for this machine")
def test_bootstrap_installs_the_list_of_refused_calls_by_itself() -> None:
    argv = [sys.executable, "-I", "-S", "-c", bootstrap(), "-1", "-1", "-1", "-1", "-1", "-1"]
    for extra, expected in (([], False), ([filters()], True)):
        done = subprocess.run([*argv, *extra], input=payload(GUARDED, b""), capture_output=True, check=True)
        said = json.loads(done.stdout.removeprefix(STARTED))
        assert said[-1] is expected
        assert not expected or all(said)


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ("vax:AAAA", b"no list of kernel calls for"),
        pytest.param(f"{os.uname().machine}:AAAAAAAAAAA=", b"the kernel takes no list of refused calls", marks=LINUX),
    ],
)
def test_bootstrap_that_cannot_guard_the_kernel_runs_nothing(filters: str, said: bytes) -> None:
    argv = [sys.executable, "-I", "-S", "-c", bootstrap(), "-1", "-1", "-1", "-1", "-1", "-1", filters]
    done = subprocess.run(argv, input=payload("print('ran')", b""), capture_output=True, check=False)
    assert done.returncode != 0
    assert done.stdout == b""
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_docker_is_taken_when_podman_does_not_answer(fake: Fake) -> None:
    podman = fake('#!/bin/sh\necho "Cannot connect to Podman" >&2\nexit 125\n')
    folder = podman if podman.is_dir() else podman.parent
    with pytest.raises(SandboxError, match=r"no container engine answers \(Cannot connect to Podman\)"):
        open_sandbox(SandboxConfig(kind="container", image="local"))
    (folder / "docker").write_text("#!/bin/sh\nexit 0\n", encoding="ascii")
    (folder / "docker").chmod(0o755)
    assert container.find_engine("local").name == "docker"


ANSWERS = """#!/bin/sh
echo "$*" >> {folder}/log
case "$1 $4" in
version*) exit 0;;
info*) echo {remote};;
image*Architecture*) echo {machine};;
ps*) echo sdpo-{ended}-a; echo sdpo-{living}-b; echo other;;
esac
"""
MACHINE = {"x86_64": "amd64"}.get(os.uname().machine, "arm64")


def test_image_of_another_processor_is_refused(fake: Fake, tmp_path: Path) -> None:
    other = "arm64" if MACHINE == "amd64" else "amd64"
    fake(ANSWERS.format(folder=tmp_path, remote="false", machine=other, ended=1, living=1))
    with pytest.raises(SandboxError, match=f"image local is made for {other}, this machine is {MACHINE}"):
        open_sandbox(SandboxConfig(kind="container", image="local"))


def test_start_removes_containers_of_ended_trainers_alone(fake: Fake, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    fake(ANSWERS.format(folder=tmp_path, remote="false", machine=MACHINE, ended=ended.pid, living=os.getpid()))
    ContainerSandbox("local")
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("rm")] == [f"rm --force sdpo-{ended.pid}-a"]


@pytest.mark.parametrize("remote", [True, False])
def test_podman_on_another_machine_gets_no_option_that_it_lacks(fake: Fake, tmp_path: Path, remote: bool) -> None:
    fake(ANSWERS.format(folder=tmp_path, remote=str(remote).lower(), machine=MACHINE, ended=1, living=1))
    engine = container.find_engine("local")
    assert engine.remote is remote
    assert ("--http-proxy=false" in container_arguments(engine, "run-1", Limits(), 6.0)) is not remote


def asleep(folder: Path, seconds: float) -> None:
    """Make the fake engine one whose machine takes so long to wake."""
    program = folder / "podman"
    text = program.read_text(encoding="utf-8")
    program.write_text(text.replace("name = words[", f"__import__('time').sleep({seconds})\nname = words[", 1), "utf-8")


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_program_is_not_charged_with_a_slow_start(
    uncontained: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(container.sys, "platform", platform)
    asleep(uncontained, 1.0)
    sandbox = ContainerSandbox("local")
    # longer than the limit before the program's first line
    result = sandbox.run("print(1)", seconds=0.8)
    assert (result.status, result.stdout, result.started) == ("exited", b"1\n", True)
    assert result.seconds > 1.0
    assert sandbox.run("import time; time.sleep(60)", seconds=0.2).status == "timeout"


def test_engine_that_does_not_start_is_named_and_cleaned_up(uncontained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "START_SECONDS", 0.4)
    asleep(uncontained, 60)
    with pytest.raises(SandboxError, match=r"does not run Python \(podman did not start Python within 0.4 s, timeout"):
        open_sandbox(SandboxConfig(kind="container", image="local"))
    lines = (uncontained / "log").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines][-2:] == ["kill", "rm"]
