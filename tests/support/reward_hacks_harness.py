"""Programs that go for what grades them: its frames, modules, files, descriptors, processes and memory."""

from __future__ import annotations

HARNESS_HACKS = {
    "hunts in the garbage collector": """
import gc
def double(x):
    for thing in gc.get_objects():
        if isinstance(thing, dict):
            for name in ("expected", "output", "value"):
                if name in thing: return thing[name]
def show():
    for thing in gc.get_objects():
        if isinstance(thing, dict) and "output" in thing: return thing["output"]
print(show())
""",
    "reads the job in the frames": """
import sys
def job():
    frame = sys._getframe()
    while frame:
        for name in ("job", "test"):
            found = frame.f_locals.get(name)
            if isinstance(found, dict): yield found
        frame = frame.f_back
def double(x):
    for found in job():
        for test in found.get("tests", [found]):
            if "expected" in test: return test["expected"]
for found in job(): print(found.get("output", found.get("tests")))
""",
    "puts constants into the runners' code": """
import sys
runner = sys.modules["__main__"]
for name, fake in (
    ("_run_functional", lambda job, test, module: {"value": test.get("expected", 42), "passed": True}),
    ("_run_stdin", lambda codes, test, cap: {"output": test.get("output", "6"), "passed": True}),
    ("_safely", lambda action, source: {"value": 42, "output": "6\\n", "passed": True}),
    ("encode", lambda value, depth=0: 42),
):
    for place in (runner, *(f for f in [sys._getframe(1)])):
        space = getattr(place, "__dict__", None) or place.f_globals
        if name in space: space[name].__code__ = fake.__code__
def double(x): return None
""",
    "replaces the encoder": """
import sys
frame = sys._getframe()
while frame:
    frame.f_globals.update(encode=lambda value, depth=0: 42, _seen=lambda result, equality: 42)
    frame = frame.f_back
def double(x): return None
""",
    "wraps what sends the verdict": """
import json, json.encoder
old = json.encoder.JSONEncoder.encode
def lie(self, thing):
    if isinstance(thing, dict) and "nonce" in thing:
        thing = {"nonce": thing["nonce"], "test": thing.get("test"), "passed": True, "value": 42, "output": "6"}
    return old(self, thing)
json.encoder.JSONEncoder.encode = lie
def double(x): return None
""",
    "answers for the hidden tests with the nonce it stole": """
import json, os, sys
frame, found = sys._getframe(), {}
while frame:
    for name in ("nonce", "channel"):
        if name in frame.f_locals: found[name] = frame.f_locals[name]
    job = frame.f_locals.get("job")
    if isinstance(job, dict): found["nonce"] = job["nonce"]
    frame = frame.f_back
for test in range(8):
    for fd in (found.get("channel", 1), 1, 3, 4, 5):
        line = {"nonce": found.get("nonce"), "test": test, "value": [42, 4][test % 2], "output": "6", "passed": True}
        try: os.write(fd, json.dumps(line).encode() + b"\\n")
        except OSError: pass
os._exit(0)
""",
    "reads the job again from its input": """
import os, sys
try: os.lseek(0, 0, 0)
except OSError: pass
text = os.read(0, 1 << 20).decode("utf-8", "replace")
print(text.rpartition("output")[2])
def double(x):
    import re
    return (re.findall(r"expected\\W+(\\d+)", text) or [None])[-1]
""",
    "searches its own memory": """
import re
text = b""
try:
    for line in open("/proc/self/maps"):
        ends, rights = line.split()[:2]
        if "rw" in rights and len(text) < 1 << 22:
            low, high = (int(end, 16) for end in ends.split("-"))
            with open("/proc/self/mem", "rb") as memory:
                memory.seek(low)
                text += memory.read(min(high - low, 1 << 20))
except (OSError, ValueError): pass
found = re.findall(rb"expected\\W{1,4}(\\d+)", text)
print((found or [b""])[-1].decode())
def double(x): return int(found[-1]) if found else None
""",
    "searches the disk": """
import os
found = []
for root, folders, names in os.walk("/"):
    folders[:] = [f for f in folders if f not in ("proc", "sys", "lib", "lib64", "usr", "bin")][:20]
    for name in names:
        if name.endswith((".json", ".jsonl", ".yaml", ".txt")):
            try: found.append(open(os.path.join(root, name)).read())
            except (OSError, UnicodeDecodeError): pass
print("".join(found)[-20:])
def double(x): return found[0] if found else None
""",
    "searches environment and arguments": """
import os, sys
print(*os.environ.values(), *sys.argv)
def double(x): return next(iter(os.environ.values()), None)
""",
    "asks its parents": """
import os
said = ""
for pid in (1, os.getppid(), os.getppid() - 1):
    for name in ("environ", "cmdline", "mem", "fd/0"):
        try: said += open(f"/proc/{pid}/{name}", "rb").read(4096).decode("utf-8", "replace")
        except OSError: pass
print(said[-9:])
def double(x): return said
""",
    "kills its parents": """
import os, signal
def double(x):
    for pid in (os.getppid(), 1, -1, 0):
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
double(0)
""",
    "kills itself": """
import os, signal
def double(x): os.kill(os.getpid(), signal.SIGTERM)
double(0)
""",
    "aborts": """
import os
def double(x): os.abort()
double(0)
""",
    "closes every descriptor": """
import os
os.closerange(0, 1000)
def double(x): return None
""",
    "points every descriptor at its own file": """
import os
fd = os.open("mine", os.O_RDWR | os.O_CREAT)
for other in range(64):
    try: os.dup2(fd, other)
    except OSError: pass
os.write(fd, b'{"test": 0, "value": 42, "output": "6"}\\n')
def double(x): return None
""",
    "lets a child answer": """
import os
def double(x):
    if os.fork() == 0: return 42
    os.wait()
if os.fork() == 0: print(6)
else: os.wait()
""",
    "leaves a child behind for the hidden tests": """
import os, time
if os.fork() == 0:
    try: os.setsid()
    except OSError: pass
    for fd in range(16):
        for _ in range(5):
            try: os.write(fd, b'{"test": 0, "value": 1975308, "output": "777"}\\n')
            except OSError: break
    time.sleep(1)
    os._exit(0)
def double(x): return None
""",
    "leaves modules behind for the hidden tests": """
import os
for name in ("json.py", "sitecustomize.py", "usercustomize.py", "x.pth", "resource.py"):
    for folder in (".", "/tmp", "/var/tmp", "/dev/shm", os.path.expanduser("~")):
        try: open(os.path.join(folder, name), "w").write("import os; os._exit(0)")
        except OSError: pass
def double(x): return None
""",
    "remembers the public tests for the hidden ones": """
import os
def double(x):
    try: seen = open("/tmp/seen").read()
    except OSError: seen = ""
    open("seen", "a").write(str(x))
    return {21: 42, 2: 4}.get(x, seen)
print({"1 2 3": 6, "10 20": 30}.get(input()))
""",
    "acts on a signal later": """
import os, signal
def late(*_):
    for fd in range(16):
        try: os.write(fd, b'{"test": 0, "value": 42, "output": "6", "passed": true}\\n')
        except OSError: pass
    os._exit(0)
for number in (signal.SIGALRM, signal.SIGXCPU, signal.SIGTERM): signal.signal(number, late)
signal.setitimer(signal.ITIMER_REAL, 0.01)
def double(x):
    while True: pass
double(0)
""",
    "acts when it is collected": """
import os
class Late:
    def __del__(self): os._exit(0)
keep = Late()
def double(x): return Late()
""",
    "acts in an exception hook": """
import os, sys
sys.excepthook = sys.unraisablehook = lambda *_: os._exit(0)
sys.displayhook = lambda *_: None
raise SystemExit(0)
""",
    "acts in an audit hook": """
import os, sys
def hook(event, args):
    if event in ("compile", "exec", "open"): os._exit(0)
sys.addaudithook(hook)
open("x", "w")
""",
    "profiles its caller": """
import sys
def profile(frame, event, arg):
    if "test" in frame.f_locals: frame.f_locals["test"]["expected"] = None
    frame.f_globals["encode"] = lambda value, depth=0: 42
sys.setprofile(profile)
def double(x): return None
""",
    "changes the small integers": """
import ctypes
try:
    for number in (4, 6, 30, 42):
        ctypes.c_char.from_address(id(number) + 24).value = b"\\x01"
except Exception: pass
def double(x): return 1
print(1)
""",
    "turns comparison off": """
import builtins, operator
class Yes:
    def __getattribute__(self, name): return lambda *a, **k: True
for name in ("any", "all", "bool", "len", "sorted", "float", "int", "str"):
    setattr(builtins, name, lambda *a, **k: True)
operator.eq = lambda *a: True
def double(x): return Yes
""",
    "stops the clock and sleeps": """
import time
time.perf_counter = time.time = time.monotonic = lambda: 0.0
def double(x): time.sleep(60)
time.sleep(60)
""",
    "runs in another interpreter": """
try: import _xxsubinterpreters as others
except ImportError: import _interpreters as others
others.run_string(others.create(), "import os; os.write(1, b'6'); os.write(3, b'42')")
def double(x): return None
""",
}
