"""A run: one set of choices with one seed, with its name, folder and fingerprint."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from bam_exp.config import NAMED, Choice, Chosen
from bam_exp.files import WEIGHTS

SCHEMA = 2
"""Raised when the same config would give another number than before. It is part of every fingerprint, and of every checkpoint.

1: the last layer computed in bfloat16 too, where `trainer.precision` was bfloat16, and an image whose label shared the highest
   logit with another class counted as an error. 1.4 to 2.9 % of the images did in two trained networks, whose reported errors
   were 0.4 and 0.6 points above those of the same weights in float32.
2: the head computes in float32 and equal logits are ranked by class, as argmax does. Figures in float32 are what they were,
   except those of CBAM, whose initial values are now those of its authors' code.
"""

_BFLOAT16 = "logits were bfloat16 and a tie at the top counted as an error, which made errors about 0.5 points too high"
_CBAM = "CBAM started from other initial values than its authors' code"

_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./@%+-]*")
"""Text that Hydra's command line reads as itself, without quotes."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run, before it is trained. Two runs are the same if their names and fingerprints are."""

    chosen: Chosen
    data_digest: str
    weights_digest: str | None = None
    """SHA-256 of the file of initial weights, if there is one."""

    @classmethod
    def of(cls, chosen: Chosen, data_digest: str) -> Self:
        """The run of these choices on the data with this digest."""
        digest = None
        if chosen.weights is not None:
            with chosen.weights.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(chosen, data_digest, digest)

    def with_seed(self, seed: int) -> Self:
        """The same choices with another seed."""
        return replace(self, chosen=self.chosen.with_seed(seed))

    @property
    def seed(self) -> int:
        """The seed of order, augmentation and initial weights."""
        return self.chosen.seed

    @cached_property
    def names(self) -> Mapping[str, str]:
        """For each group, the choice and what was changed, as `bam-reduction8`."""
        names = {group: _name(self.chosen.group(group)) for group in NAMED}
        if self.chosen.weights is not None:
            # The files of all runs have one name, so what they contain tells them apart.
            path, digest = self.chosen.weights, self.weights_digest or ""
            names["backbone"] += f"-{_word('weights', digest[:8] if path.name == WEIGHTS else path.stem)}"
        return names

    @property
    def name(self) -> str:
        """`data/backbone/attention/recipe/seed<k>`: the name of the folder, in TensorBoard and in runs.csv."""
        return "/".join([*(self.names[group] for group in NAMED), f"seed{self.seed}"])

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.chosen.output_dir / "runs" / self.name

    @cached_property
    def overrides(self) -> Sequence[str]:
        """The overrides of bam-train that give this run."""
        overrides = [word for group in NAMED for word in _overrides_of(self.chosen.group(group))]
        if self.chosen.weights is not None:
            overrides.append(f"weights={as_override(str(self.chosen.weights))}")
        return (*overrides, f"seed={self.seed}")

    @property
    def command(self) -> str:
        """The command that gives this run, for a shell."""
        return shlex.join(["bam-train", *self.overrides])

    @property
    def full_overrides(self) -> Sequence[str]:
        """`overrides`, and those of the machine and the folders."""
        folders = {"data_root": self.chosen.data_root, "output_dir": self.chosen.output_dir}
        return (
            *self.overrides,
            *_overrides_of(self.chosen.trainer),
            *(f"{key}={as_override(str(folder))}" for key, folder in folders.items()),
        )

    @cached_property
    def figures_from(self) -> Mapping[str, Any]:
        """Everything that can change the run's figures: the settings of the groups, the data, the schema."""
        first = {"schema": SCHEMA, "seed": self.seed, "data_digest": self.data_digest}
        weights = {} if self.weights_digest is None else {"weights": self.weights_digest}
        return {**first, **weights, **{group: self.chosen.group(group).settings for group in NAMED}}

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything that can change the run's figures, except values equal to a callable's defaults.

        A new parameter with a default therefore leaves fingerprints as they are. The names of the callables are part of it.
        """
        return self._fingerprint(SCHEMA)

    def schema_of(self, fingerprint: str, seed: int | None = None) -> int | None:
        """The schema under which this run has a fingerprint; None if the fingerprint is that of other settings.

        Args:
            seed: of the run, if not its own: many seeds are asked for when a store is read.
        """
        schemas = range(SCHEMA, 0, -1)
        return next((schema for schema in schemas if self._fingerprint(schema, seed) == fingerprint), None)

    def _fingerprint(self, schema: int, seed: int | None = None) -> str:
        before, after = self._identities[schema - 1]
        return hashlib.sha256(f"{before}{self.seed if seed is None else seed}{after}".encode()).hexdigest()[:16]

    @cached_property
    def _identities(self) -> Sequence[tuple[str, str]]:
        """For each schema the JSON of what identifies the run, its keys sorted, before and after the number of the seed."""
        parts: dict[str, Any] = {group: self.chosen.group(group).identity for group in NAMED}
        after = "" if self.weights_digest is None else f', "weights": {json.dumps(self.weights_digest)}'
        texts = []
        for schema in range(1, SCHEMA + 1):
            before = json.dumps({**parts, "data_digest": self.data_digest, "schema": schema}, sort_keys=True)
            texts.append((f'{before[:-1]}, "seed": ', after + "}"))
        return texts


def superseded(run: Run, schema: int, precision: str) -> str | None:
    """The reason why this version would give other figures than a result of this schema and precision; None if it would not."""
    if schema == 1 and run.chosen.attention.target == "bam_exp.attention.CBAM":
        return _CBAM
    return _BFLOAT16 if schema == 1 and precision == "bfloat16" else None


def as_override(value: object) -> str:
    """A value as Hydra's command line reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(as_override(item) for item in value) + "]"
    if isinstance(value, str) and (
        not _PLAIN.fullmatch(value) or value.lower() in ("null", "true", "false", "nan", "inf")
    ):
        from hydra.core.override_parser.types import Quote, QuotedString

        return QuotedString(value, Quote.single).with_quotes()
    return str(value)


def _overrides_of(choice: Choice) -> list[str]:
    changed = choice.changed.items()
    return [f"{choice.group}={choice.name}", *(f"{choice.group}.{key}={as_override(value)}" for key, value in changed)]


def _name(choice: Choice) -> str:
    return choice.name + "".join(f"-{_word(key, value)}" for key, value in choice.changed.items())


def _word(key: str, value: object) -> str:
    """`reduction8`, `combine_max`: letters, digits and `._+-` only."""
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = "".join(
        character if character.isalnum() or character in "._+-" else "_" for character in text.replace(" ", "")
    )
    return f"{key}{text}" if text[:1].isdigit() else f"{key}_{text.strip('_')}"
