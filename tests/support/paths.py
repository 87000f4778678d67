"""Where the repository's files are, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
SUPPORT = TESTS / "support"
DATA = TESTS / "data"
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples"
