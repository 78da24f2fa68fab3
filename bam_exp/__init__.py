"""BAM, the bottleneck attention module (Park, Woo, Lee, Kweon, BMVC 2018): the module itself and the paper's experiments.

`from bam_exp import BAM, attach, detach` needs PyTorch and pydantic only.
"""

# Type checkers take this for true. Importing `typing` would take longer than all else before a command can answer Ctrl-C.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from bam_exp.attention import BAM, attach, attached, detach

__version__ = "0.2.0"
__all__ = ["BAM", "__version__", "attach", "attached", "detach"]


def __getattr__(name: str) -> object:
    # PyTorch takes seconds to import, which commands such as `bam-tables --help` do without.
    if name in __all__:
        import bam_exp.attention

        return getattr(bam_exp.attention, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
