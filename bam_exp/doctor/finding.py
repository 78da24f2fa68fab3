"""What a check has found, and the report of all findings."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong", "not run"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    state: State
    """`wrong` if something will fail, `note` if it is worth knowing, `not run` if it could not be found out here."""
    text: str
    """What was found, in one line."""
    advice: str = ""
    """What to do about it, if it is not ok."""


@dataclass(frozen=True)
class Check:
    """A named question about this machine."""

    name: str
    look: Callable[[], Finding]

    def finding(self) -> Finding:
        """The outcome of `look`, which is `wrong` with the reason if `look` raises an exception."""
        try:
            return self.look()
        except Exception as error:
            reason = " ".join(str(error).split())
            return Finding(
                "wrong", f"{type(error).__name__}: {reason}", "this is a bug of bam-doctor; please report it"
            )


@dataclass
class Report:
    """The findings so far."""

    counts: dict[State, int]

    @classmethod
    def of(cls, checks: Iterable[Check]) -> "Iterator[str | Report]":
        """Examine one check after the other; yields each line as soon as it is known, and the report at the end."""
        report = cls({"ok": 0, "note": 0, "wrong": 0, "not run": 0})
        for check in checks:
            finding = check.finding()
            report.counts[finding.state] += 1
            yield from lines(check.name, finding)
        yield report

    def __str__(self) -> str:
        counts = self.counts
        parts = [f"{counts['wrong']} wrong", f"{counts['note']} to know", f"{counts['ok']} ok"]
        return ", ".join(parts + ([f"{counts['not run']} not run"] if counts["not run"] else []))


def lines(name: str, finding: Finding) -> Iterator[str]:
    """The lines of one finding in the report."""
    state = "WRONG" if finding.state == "wrong" else finding.state
    yield f"{state:<7}  {name:<20}  {finding.text}"
    if finding.advice:
        yield f"{'':7}  {'':20}  -> {finding.advice}"
