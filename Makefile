# The commands of this repository; each target makes the environment that it needs, once, in .venv.
# Needs make, sh and Python 3.11 or newer. Another interpreter: `make PYTHON=/path/to/python demo`.
.POSIX:

PYTHON =
BIN = .venv/bin
# --no-compile: large packages bring many files that nobody imports; Python compiles the others when it needs them.
PIP = $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check install --no-compile
DEMO = runs/demo

help:
	@echo "make demo        install, train the embedded model, show what it learned (about 3 minutes)"
	@echo "make test        install what tests need, run them (6 to 7 minutes on two cores)"
	@echo "make test-quick  the tests that need no training run (about a minute)"
	@echo "make test-slow   the tests at full size: full products, 200 kills, both backends"
	@echo "make install-torch   PyTorch, for --backend torch; then make test holds both backends against each other"
	@echo "make results     measure every learning figure again, into docs/results.md"
	@echo "make screens     record what the commands look like, into docs/terminal.md"
	@echo "make docs        build the documentation website; then: python -m http.server -d build/site"
	@echo "make tiny-model  build the embedded model from scratch"
	@echo "make lint        format, lint, types, import direction, workflows"
	@echo "make clean       remove the environment and all files that can be made again"

demo: .venv/.base bubblewrap
	@rm -rf $(DEMO)
	@$(BIN)/sdpo train --model tiny --task tiny --out $(DEMO) --require-gain 30

# Four processes of one thread each, also on two cores: many tests wait for child processes.
# Bytecode is written even if the environment forbids it: tests start many child processes that import the same files.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 4 --dist worksteal

test: .venv/.dev bubblewrap
	@$(PYTEST)

# What pre-commit runs.
test-quick: .venv/.dev
	@$(PYTEST) -m "not slow and not long" tests/unit tests/integration/test_house_rules.py

# Full products, 200 kills, both backends, new random examples of hypothesis.
test-slow: .venv/.dev bubblewrap
	@$(PYTEST) -m "slow or not slow" --hypothesis-profile slow

results: .venv/.base bubblewrap
	@$(PIP) --editable '.[fast-cpu,torch]'
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/results.py --again
	@$(BIN)/sdpo models fetch smollm2
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/code_runs.py
	@$(BIN)/python benchmarks/results.py --page
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/real_weights.py --runs runs/results/functions
	@rm -rf runs/results

# Runs the commands in pseudo-terminals, about two minutes.
screens: .venv/.dev
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/screens.py

# The documents as a site in build/site, links checked; the pages of commands, settings and Python names made again.
docs: .venv/.base
	@$(PIP) --editable '.[docs]'
	@$(BIN)/python benchmarks/reference.py
	@$(BIN)/zensical build --strict -f mkdocs.yml

tiny-model: .venv/.base
	@$(BIN)/python examples/tiny_model/build.py

lint: .venv/.dev
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	@! command -v actionlint >/dev/null 2>&1 || actionlint  # the workflow `ci` installs it

install: .venv/.base

# PyTorch for --backend torch and the tests that hold both backends against each other.
install-torch: .venv/.base
	@bits=,bitsandbytes; [ "$$(uname -s)" != Darwin ] || bits=; $(PIP) --editable ".[torch$$bits]"

install-dev: .venv/.dev

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache $(DEMO)

# The stamps .made, .base and .dev mark which installation steps are done; a changed pyproject.toml repeats them.
.venv/.made:
	@found=; novenv=; \
	for name in $(PYTHON) python3.13 python3.12 python3.11 python3 python3.14; do \
	  "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	  if "$$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then found=$$name; break; fi; \
	  novenv=$$name; \
	done; \
	if [ -z "$$found" ] && [ -n "$$novenv" ]; then \
	  echo "make: $$novenv has no venv module. Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; \
	elif [ -z "$$found" ]; then \
	  echo "make: no Python 3.11 or newer found. Install one, or give its path: make PYTHON=/path/to/python demo" >&2; exit 1; \
	fi; \
	echo "make: making .venv with $$found" >&2; \
	"$$found" -m venv .venv
	@touch .venv/.made

# `fast-cpu` installs mkl on Linux x86-64 and nothing elsewhere.
.venv/.base: .venv/.made pyproject.toml
	@echo "make: installing sdpo-mlx into .venv (once; takes some minutes on a slow connection)" >&2
	@$(PIP) --editable '.[fast-cpu]'
	@touch .venv/.base

.venv/.dev: .venv/.base pyproject.toml
	@echo "make: installing what tests and checks need (once)" >&2
	@$(PIP) --editable '.[fast-cpu,dev]'
	@touch .venv/.dev

# The sandbox of the task code on Linux. Without it, tests that run programs skip with this reason.
bubblewrap:
	@[ "$$(uname -s)" = Linux ] || exit 0; \
	command -v bwrap >/dev/null 2>&1 && exit 0; \
	root=; [ "$$(id -u)" = 0 ] || root="sudo -n"; \
	if command -v apt-get >/dev/null 2>&1 && $$root true 2>/dev/null; then \
	  echo "make: installing bubblewrap, the sandbox for model-written programs" >&2; \
	  { $$root apt-get -qq update && $$root apt-get -qq install -y bubblewrap; } >/dev/null 2>&1 || true; \
	fi; \
	command -v bwrap >/dev/null 2>&1 || \
	  echo "make: bubblewrap is missing: the task code and the tests that run programs need it. Run: sudo apt-get install bubblewrap" >&2

.PHONY: help docs screens demo test test-quick test-slow results tiny-model lint install install-dev install-torch clean bubblewrap
