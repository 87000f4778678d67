"""Rules for the code of this repository, checked on the code."""

import ast
import re
import subprocess
import sys
import tokenize
import tomllib
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from paths import ROOT

from sdpo_mlx.config import layers, resolve

FOLDERS = ("sdpo_mlx", "cli", "tests", "examples", "benchmarks")
SHIPPED = ("sdpo_mlx", "cli")
WARN_FILE, LONGEST_FILE = 350, 500
LONGEST_FUNCTION, USUAL_FUNCTION = 60, 35
MOST_PARAMETERS = 7
MOST_BYTES = 8_000_000
MOST_COMMENTS = 0.08

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tracked() -> tuple[Path, ...]:
    """Every file of the repository; in an unpacked archive, every file that is not made by a tool."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if found.returncode == 0:
        return tuple(path for name in found.stdout.decode().split("\0") if name and (path := ROOT / name).is_file())
    return tuple(
        path for folder in (*FOLDERS, "configs", "docs") for path in (ROOT / folder).rglob("*") if path.is_file()
    )


@cache
def sources(*names: str) -> list[Path]:
    """Return the Python files of these folders, except tests/data: that holds answers to problems."""
    folders = [ROOT / name for name in names]
    return [
        path
        for path in tracked()
        if path.suffix == ".py"
        and any(folder in path.parents for folder in folders)
        and ROOT / "tests" / "data" not in path.parents
    ]


@cache
def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of the parsed file."""
    return tuple(ast.walk(tree(path)))


def functions(path: Path) -> Iterator[Function]:
    """Every function and method of a file."""
    return (node for node in nodes(path) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    """Its length, decorators not counted."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def place(path: Path, node: ast.stmt | ast.expr | None = None) -> str:
    """Where a rule is broken, as editors understand it."""
    return f"{path.relative_to(ROOT)}:{node.lineno if node else 1}"


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the name that is called, `a.b` for attributes."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def test_rules_find_the_code() -> None:
    assert len(sources("sdpo_mlx")) > 40
    assert len(sources("tests")) > 20
    assert sum(1 for path in sources("sdpo_mlx") for _ in functions(path)) > 200


def test_files_hold_one_subject() -> None:
    counts = {place(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*FOLDERS)}
    # A long file is a sign to look for a second subject in it, no reason to split it.
    if long := {where: n for where, n in counts.items() if n > WARN_FILE}:
        warnings.warn(f"files of more than {WARN_FILE} lines: {long}", stacklevel=1)
    assert {where: n for where, n in counts.items() if n > LONGEST_FILE} == {}


def test_functions_stay_under_60_lines() -> None:
    long = [
        (place(p, f), f.name, n)
        for p in sources(*FOLDERS)
        for f in functions(p)
        if (n := lines_of(f)) > LONGEST_FUNCTION
    ]
    assert long == []


@pytest.mark.parametrize("folder", ["sdpo_mlx", "cli", "tests"])
def test_nine_functions_in_ten_stay_under_35_lines(folder: str) -> None:
    lengths = [lines_of(f) for path in sources(folder) for f in functions(path)]
    assert sum(n < USUAL_FUNCTION for n in lengths) >= 0.9 * len(lengths)


def test_functions_take_at_most_seven_parameters() -> None:
    many = []
    for path in sources("sdpo_mlx"):
        for function in functions(path):
            names = [
                a.arg
                for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
                if a.arg not in ("self", "cls")
            ]
            # The oracle's signature is laid down: it takes a step's arrays as they are.
            if len(names) > MOST_PARAMETERS and function.name != "loss_and_grad":
                many.append((place(path, function), function.name, len(names)))
    assert many == []


def test_no_module_is_called_utils_or_helpers() -> None:
    words = re.compile(r"(?:^|_)(?:utils?|helpers?|misc|common)(?:_|$)")
    assert [
        place(path) for path in sources(*FOLDERS) if any(words.search(part) for part in (path.stem, path.parent.name))
    ] == []


def test_public_names_have_docstrings_and_return_types() -> None:
    bare = []
    for path in sources("sdpo_mlx"):
        if not ast.get_docstring(tree(path)) and tree(path).body:
            bare.append((place(path), "module"))
        bare += [(place(path, node), node.name) for node in _public(tree(path)) if not _explained(path, node)]
    assert bare == []


def _public(module: ast.Module) -> Iterator[Function | ast.ClassDef]:
    for node in module.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (m for m in node.body if isinstance(m, Function) and not m.name.startswith("_"))


def _explained(path: Path, node: Function | ast.ClassDef) -> bool:
    if isinstance(node, ast.ClassDef):
        return bool(ast.get_docstring(node))
    stub = len(node.body) == 1 and ast.unparse(node.body[0]) == "..."  # a contract's property says all in its type
    return node.returns is not None and (stub or bool(ast.get_docstring(node)))


def test_text_from_outside_is_never_a_template() -> None:
    broken = [
        place(p, c) for p in sources(*SHIPPED) for c, name in calls(p) if name.endswith((".format", ".format_map"))
    ]
    assert broken == []


def test_only_the_command_line_prints() -> None:
    assert [place(p, c) for p in sources("sdpo_mlx") for c, name in calls(p) if name == "print" and _talks(p)] == []


def _talks(path: Path) -> bool:
    # These two run inside the sandbox, where printing is how a program answers.
    return path.name not in ("harness.py", "bootstrap.py", "probe.py")


def test_nothing_is_executed_that_came_from_outside() -> None:
    forbidden = {"eval", "exec", "os.system", "pickle.load", "pickle.loads", "np.load", "yaml.load"}
    forbidden |= {"torch.load", "torch.save", "torch.hub.load", "torch.jit.load"}
    inside = ("harness.py", "bootstrap.py")  # run inside the sandbox, where executing answers is the purpose
    found = [
        place(p, c) for p in sources(*SHIPPED) if p.name not in inside for c, name in calls(p) if name in forbidden
    ]
    assert found == []
    imported = {
        alias.name.partition(".")[0]
        for path in sources(*SHIPPED)
        for node in nodes(path)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imported & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}


def test_remote_code_is_never_trusted() -> None:
    found = [
        place(path, keyword.value)
        for path in sources(*FOLDERS)
        for call, _ in calls(path)
        for keyword in call.keywords
        if keyword.arg == "trust_remote_code"
        and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
    ]
    assert found == []


def test_modules_hold_no_mutable_state() -> None:
    found = []
    for path in sources(*SHIPPED):
        for node in tree(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            names = [t.id for t in targets if isinstance(t, ast.Name)]
            if _mutable(value) and any(not name.strip("_").isupper() and name != "__all__" for name in names):
                found.append((place(path, node), names))
        found += [
            (place(path, node), ["global"]) for node in nodes(path) if isinstance(node, ast.Global | ast.Nonlocal)
        ]
    assert found == []


def _mutable(value: ast.expr | None) -> bool:
    made = isinstance(value, ast.Call) and ast.unparse(value.func) in ("list", "dict", "set", "defaultdict", "deque")
    return made or isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def test_constants_are_never_changed() -> None:
    changing = {"append", "extend", "insert", "update", "setdefault", "add"}
    changing |= {"pop", "popitem", "clear", "remove", "discard"}
    found = []
    for path in sources(*SHIPPED):
        for call, name in calls(path):
            owner, _, method = name.rpartition(".")
            if method in changing and re.fullmatch(r"_?[A-Z][A-Z0-9_]*", owner):
                found.append((place(path, call), name))
    assert found == []


def test_randomness_has_no_global_state() -> None:
    allowed = {"default_rng", "Generator", "PCG64", "SeedSequence", "Philox"}
    # mlx-lm's adapter layers and mlx's dropout draw from mlx's own state: these two seed it just before.
    seeds_mlx = ("adapter.py", "blockwise.py")
    found = []
    for path in sources(*SHIPPED):
        for call, name in calls(path):
            owner, _, function = name.rpartition(".")
            wild = owner in ("np.random", "numpy.random") and function not in allowed
            if wild or owner == "random" or (name == "mx.random.seed" and path.name not in seeds_mlx):
                found.append((place(path, call), name))
    assert found == []


@pytest.mark.parametrize("folder", SHIPPED)
def test_comments_stay_few(folder: str) -> None:
    lines = comments = 0
    for path in sources(folder):
        with tokenize.open(path) as file:
            comments += sum(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(file.readline))
        lines += sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())
    assert comments <= MOST_COMMENTS * lines


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "('mlx', 'mlx_lm', 'torch', 'transformers', 'rich', 'gguf', 'pydantic')"
    code = f"import sys, sdpo_mlx; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.anchor)
    assert done.stdout.strip() == "[]"


def test_help_loads_neither_mlx_nor_transformers() -> None:
    code = (
        "import sys\nfrom sdpo_cli.main import main\nsys.argv = ['sdpo', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('mlx', 'mlx_lm', 'torch', 'transformers') if m in sys.modules]\n"
        "print(heavy, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.anchor)
    assert done.stderr.strip().splitlines()[-1] == "[]"
    assert "train" in done.stdout


def test_import_directions_cover_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers_contract = next(contract for contract in settings["contracts"] if contract["name"] == "layers")
    assert layers_contract["containers"] == ["sdpo_mlx"]
    assert layers_contract["exhaustive"] is True  # a new package without a place in the list fails `make lint`


def test_code_names_no_document_outside_the_repository() -> None:
    outside = re.compile(r"\b(?:SDPO|CLI|PROMISES|MLX|METAL|CUDA|LAYOUT|ENGLISH|ARCHITECTURE|FIDELITY)\.md\b")
    files = [path for path in tracked() if any(ROOT / name in path.parents for name in (*SHIPPED, "configs"))]
    texts = ((path, path.read_text(encoding="utf-8", errors="replace")) for path in files)
    assert [f"{place(path)} {match[0]}" for path, text in texts for match in outside.finditer(text)] == []


def test_nothing_large_is_kept() -> None:
    assert [place(path) for path in tracked() if path.stat().st_size > MOST_BYTES] == []


@pytest.mark.parametrize("name", layers.preset_names())
def test_every_preset_parses(name: str) -> None:
    config = resolve.resolve(Path(name)).config
    assert resolve.resolve(Path(name)).config == config
    assert config.model.name


def test_tests_say_what_they_prove() -> None:
    short = []
    for path in (p for p in sources("tests") if p.name.startswith("test_")):
        for function in functions(path):
            if function.name.startswith("test") and not re.fullmatch(r"test(_[a-z0-9]+){2,}", function.name):
                short.append((place(path, function), function.name))
        short += [
            (place(path, n), n.name) for n in tree(path).body if isinstance(n, ast.ClassDef) and n.name[:4] == "Test"
        ]
    assert short == []


def test_files_name_no_machine_and_no_registry() -> None:
    # Written in two parts, so that this file holds neither.
    forbidden = re.compile(
        "|".join(["/work" + r"/\w", "/root" + r"/\w", "/home" + r"/\w", "files\\.python" + "hosted", "pypi" + r"\.org"])
    )
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{place(path)} {match[0]}" for match in forbidden.finditer(text)]
    assert found == []
