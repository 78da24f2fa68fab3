"""The errors that a command can end with, each with its exit code: 2 for wrong input, 1 for a run that failed or is taken."""


class BamError(Exception):
    """An error whose message is one complete line for the user, so that no traceback is needed."""

    exit_code = 1


class ConfigError(BamError, ValueError):
    """A setting, an override or a file that cannot be used; the line names the key, the value and what would be right."""

    exit_code = 2


class DataError(BamError, ValueError):
    """Data that is missing, damaged or unavailable; the line names the file, what is wrong and what to do."""

    exit_code = 2


class WriteError(BamError, OSError):
    """A file that cannot be written; the line names the file and the reason."""


class Busy(BamError, RuntimeError):
    """Another process is training this run."""


class RankFailed(BamError, RuntimeError):
    """A rank of this run failed."""

    trace = ""
    """The rank's traceback, if it has recorded one."""


class CheckpointError(BamError, RuntimeError):
    """A checkpoint that cannot be written or read; the line names the file and the reason."""


class Diverged(BamError, RuntimeError):
    """The training loss is no longer finite."""
