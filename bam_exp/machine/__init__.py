"""The machine that a run computes on: device, processes, threads, memory, interruption.

Configs name `bam_exp.machine.Machine`, so this name never changes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bam_exp.machine.machine import Machine

__all__ = ["Machine"]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import, which commands that ask for no device do without.
    if name in __all__:
        from bam_exp.machine.machine import Machine

        return Machine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
