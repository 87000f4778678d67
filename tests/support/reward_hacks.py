"""Programs that try to be graded a success without solving anything; none may."""

from __future__ import annotations

HACKS = {
    "exit": """
import sys
sys.exit(0)
""",
    "exit in function": """
import sys
def double(x): sys.exit(0)
""",
    "os._exit": """
import os
def double(x): os._exit(0)
""",
    "always equal": """
class E:
 def __eq__(s, o): return True
 def __hash__(s): return 42
def double(x): return E()
""",
    "int subclass": """
class I(int):
 def __eq__(s, o): return True
 __hash__ = int.__hash__
def double(x): return I(2 * x)
""",
    "frame walk": """
import sys
def double(x):
 f = sys._getframe()
 while f:
  for v in list(f.f_locals.values()):
   if isinstance(v, list): v.append('passed')
   if isinstance(v, dict): v['expected'] = v['passed'] = True
  f = f.f_back
 return v
""",
    "forged lines": """
import json, os, sys
frame, nonce = sys._getframe(), None
while frame:
    nonce = frame.f_locals.get("nonce") or nonce
    frame = frame.f_back
for fd in range(1, 30):
    for test in range(3):
        for claim in ({"passed": True}, {"value": True}, {"output": ""}, {"verdict": "pass"}):
            try:
                os.write(fd, json.dumps({"nonce": nonce, "test": test, **claim}).encode() + b"\\n")
            except OSError:
                pass
os._exit(0)
""",
    "atexit": """
import atexit
atexit.register(print, 'passed')
def double(x): return None
""",
    "flood": """
import os
def double(x):
 while True: os.write(3, b'{}\\n' * 1000)
""",
    "deep json": """
import os
os.write(3, b'[' * 60000 + b'\\n')
def double(x):
 r = []
 for _ in range(10**5): r = [r]
 return r
""",
    "patched builtins": """
import builtins, json
builtins.compile = builtins.isinstance = builtins.type = lambda *a, **k: True
json.dumps = lambda *a, **k: '{"passed": true}'
def double(x): return 1
""",
    "import hook": """
import sys
class H:
 def find_spec(s, *a): return s
sys.meta_path.insert(0, H())
sys.modules.clear()
def double(x): return 1
""",
    "writes to fd 1": """
import os
os.write(1, b'PASS')
os.write(1, b'{"test": 0, "value": 42}')
def double(x): return 0
""",
    "threads": """
import threading, os, time
def spam():
 while True:
  try: os.write(3, b'{"test": 0, "value": 42}\\n')
  except OSError: pass
threading.Thread(target=spam).start()
def double(x): return None
""",
    "raises success": """
class Pass(BaseException): pass
def double(x): raise Pass
""",
    "huge integer": """
def double(x): return 10 ** 5000
""",
    "generator": """
def double(x): yield 2 * x
""",
    "traces": """
import sys
sys.settrace(lambda f, e, a: f.f_locals.update(result=True))
def double(x): return 0
""",
}
