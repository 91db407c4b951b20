"""Tasks: prompt pairs, answers and a metric, by name or from a file of your own."""

from acdc.tasks.check import check_task, only_correct
from acdc.tasks.generate import Generator
from acdc.tasks.prompts import Prompts
from acdc.tasks.registry import TaskInfo, default_task, load, names
from acdc.tasks.task import Dataset, Task, as_dataset

__all__ = [
    "Dataset",
    "Generator",
    "Prompts",
    "Task",
    "TaskInfo",
    "as_dataset",
    "check_task",
    "default_task",
    "load",
    "names",
    "only_correct",
]
