"""The kinds of problem that models are trained for."""

from dynavit.config import Config
from dynavit.tasks.base import Evaluation, Predicted, Task
from dynavit.tasks.classification import ClassificationTask
from dynavit.tasks.reid import ReidTask

__all__ = ["Evaluation", "Predicted", "Task", "create_task"]

_TASKS: dict[str, type[Task]] = {"classify": ClassificationTask, "reid": ReidTask}


def create_task(config: Config) -> Task:
    """Return the task of a configuration."""
    return _TASKS[config.task](config)
