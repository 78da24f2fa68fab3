"""The long description for a package index; everything else about the package is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup


def description(readme: str) -> str:
    """The README without its pictures, and with links to files of the repository as text: they lead nowhere on an index."""
    readme = re.sub(r"!\[[^]]*\]\((?!https?:).*?\n\n", "", readme, flags=re.DOTALL)
    return re.sub(r"\[([^]]+)\]\((?!https?:)[^)]+\)", r"\1", readme)


readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(long_description=description(readme), long_description_content_type="text/markdown")
