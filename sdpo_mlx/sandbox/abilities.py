"""What a program may do in every sandbox, so that the same answer has the same reward on every system.

The counterpart of the attack list: there everything must fail, here nothing may.
"""

from __future__ import annotations

import json
import statistics

from sdpo_mlx.sandbox.base import Sandbox

_SECONDS = 20.0
_OUTPUT = 60_000  # bytes, below the limit on output
# Promised on every system; what other standard modules need (a library, a kernel call) differs by Python.
MODULES = (
    *("abc", "argparse", "array", "ast", "asyncio", "base64", "bisect", "calendar", "cmath", "collections"),
    *("concurrent.futures", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum"),
    *("fractions", "functools", "graphlib", "hashlib", "heapq", "html", "inspect", "io", "itertools", "json"),
    *("logging", "math", "numbers", "operator", "os", "pathlib", "pickle", "pprint", "queue", "random", "re"),
    *("secrets", "shutil", "signal", "statistics", "string", "struct", "subprocess", "sys", "tempfile", "textwrap"),
    *("threading", "time", "traceback", "types", "typing", "unicodedata", "unittest", "urllib.parse", "uuid"),
    *("weakref", "xml.etree.ElementTree", "zlib"),
)
OPTIONAL = ("bz2", "ctypes", "curses", "lzma", "multiprocessing", "sqlite3", "ssl", "zoneinfo")
_PROGRAM = """
import json, sys
ask = json.load(sys.stdin)

def module(name):
    __import__(name)
    return True

def event_loop():
    import asyncio
    async def one():
        await asyncio.sleep(0)
        return 1
    return asyncio.run(one()) == 1

def threads():
    import threading
    from concurrent.futures import ThreadPoolExecutor
    made = [threading.Thread(target=int) for _ in range(16)]
    [each.start() for each in made]
    [each.join() for each in made]
    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(abs, range(-4, 1))) == 10

def work_folder():
    import os, tempfile
    os.mkdir("folder")
    with open("folder/one", "w+") as file:
        file.write("x")
        file.seek(0)
        read = file.read()
    os.rename("folder/one", "folder/two")
    os.symlink("two", "folder/three")
    listed = sorted(os.listdir("folder"))
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    os.unlink("folder/three")
    os.unlink("folder/two")
    os.rmdir("folder")
    return read == "x" and listed == ["three", "two"]

def devices():
    import os, platform, time
    with open("/dev/null", "r+b", buffering=0) as null:
        null.write(b"x")
        end = null.read(1)
    return end == b"" and len(os.urandom(16)) == 16 and time.time() > 0 and os.cpu_count() > 0 and platform.machine()

def signals():
    import signal
    got = []
    signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
    signal.raise_signal(signal.SIGUSR1)
    return got == [1]

def memory():
    return len(bytearray(200 << 20)) > 0

def recursion():
    try:
        return recursion()
    except RecursionError:
        return True

def attempt(action, *arguments):
    try:
        return bool(action(*arguments))
    except BaseException:
        return False

found = {f"import {name}": attempt(module, name) for name in ask["modules"]}
for each in (event_loop, threads, work_folder, devices, signals, memory, recursion):
    found[each.__name__.replace("_", " ")] = attempt(each)
found["input of 1 MB"] = len(ask["input"]) == 1_000_000
print(json.dumps({"found": found, "output": "x" * ask["output"]}))
sys.exit(3)
"""


def abilities(sandbox: Sandbox) -> dict[str, bool]:
    """Return by name whether a program may do each thing that every sandbox allows; if it does not run, nothing."""
    names = [*MODULES, *OPTIONAL]
    result = sandbox.run(
        _PROGRAM,
        json.dumps({"modules": names, "input": "x" * 1_000_000, "output": _OUTPUT}).encode(),
        seconds=_SECONDS,
    )
    try:
        answer = json.loads(result.stdout)
        found = {str(name): value is True for name, value in answer["found"].items()}
        whole = len(answer["output"]) == _OUTPUT
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"program runs": False}
    return found | {"output of 60 kB": whole, "exit code": (result.status, result.code) == ("exited", 3)}


def start_milliseconds(sandbox: Sandbox, runs: int = 10) -> float:
    """Return the median time of an empty program from start to end, in milliseconds."""
    return 1_000 * statistics.median(sandbox.run("").seconds for _ in range(runs))
