"""Configs: the choices that exist, composing them by Hydra, and checking what was chosen.

The signatures of the callables that configs name are the schema.
"""

from bam_exp.config.choices import (
    GROUPS,
    NAMED,
    choice_file,
    choice_names,
    config_dir,
    extra_folders,
    nearest,
    packages,
    use_folders,
)
from bam_exp.config.chosen import Choice, Chosen
from bam_exp.config.composition import check_overrides, compose, composing, parse_overrides, search_path, swept_values
from bam_exp.config.messages import one_line, refused
from bam_exp.config.remembered import kept_file, remembered

__all__ = [
    "GROUPS",
    "NAMED",
    "Choice",
    "Chosen",
    "check_overrides",
    "choice_file",
    "choice_names",
    "compose",
    "composing",
    "config_dir",
    "extra_folders",
    "kept_file",
    "nearest",
    "one_line",
    "packages",
    "parse_overrides",
    "refused",
    "remembered",
    "search_path",
    "swept_values",
    "use_folders",
]
