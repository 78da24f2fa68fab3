"""Filling the templates of reports, `templates/*.j2`."""

from typing import Any


def render(name: str, **values: Any) -> str:
    """The template of this name with these values; a value that is missing is an error.

    LaTeX templates write `<< value >>` and `<% statement %>`, since braces belong to LaTeX; in HTML every value is escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    tex = name.endswith(".tex.j2")
    marks: dict[str, Any] = {}
    if tex:
        marks = {
            "block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<",
            "variable_end_string": ">>", "comment_start_string": "<#", "comment_end_string": "#>",
        }  # fmt: skip
    environment = Environment(
        loader=PackageLoader("bam_exp.reports", "templates"),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **marks,
    )
    return environment.get_template(name).render(**values)
