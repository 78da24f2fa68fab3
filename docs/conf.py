"""Sphinx: `make docs` builds the pages of this folder, and the API from the docstrings, into build/docs."""

import re
from typing import Any

import bam_exp

project = "bam_exp"
author = "The bam_exp authors"
version = release = bam_exp.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
html_theme = "furo"
html_title = f"bam_exp {version}"

myst_heading_anchors = 3  # links to headings, as GitHub makes them
myst_links_external_new_tab = False

autodoc_typehints = "none"  # signatures show the annotations
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False


def _links_to_files_become_text(_app: Any, _page: str, source: list[str]) -> None:
    """Files outside this folder have no page in the site; tests/test_docs.py checks that they exist."""
    source[0] = re.sub(r"(?<!!)\[([^]]+)\]\(\.\./[^)]+\)", r"\1", source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _links_to_files_become_text)
