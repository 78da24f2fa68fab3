"""Tasks that networks are trained for; a recipe is the keyword arguments of a task.

Configs and the fingerprints of stored runs name `bam_exp.tasks.<class>`, so these names never change.
"""

from bam_exp.tasks.classification import Classification
from bam_exp.tasks.detection import Detection
from bam_exp.tasks.task import Task

TASKS: dict[str, type[Task]] = {"classification": Classification, "detection": Detection}
"""The tasks by the names that tables use."""

__all__ = ["TASKS", "Classification", "Detection", "Task"]
