"""Long description for package indexes: README with absolute links. Everything else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
REPOSITORY = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def absolute(text: str) -> str:
    """Return Markdown whose relative links and images lead to the repository."""

    def link(found: re.Match[str]) -> str:
        place = "raw" if found[1] else "blob"
        return f"{found[1]}{found[2]}({REPOSITORY}/{place}/main/{found[3]})"

    return re.sub(r"(!?)(\[[^]]*\])\((?!https?:|#)([^)\s]+)\)", link, text)


setup(
    long_description=absolute((HERE / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
