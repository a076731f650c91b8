"""The rules for what a task is given: its name, which becomes part of parameter names, and its density."""

import re

# Densities such as 5 x 0.2 add to 1 only up to the rounding of binary fractions.
SUM_TOLERANCE = 1e-9
_ALLOWED = re.compile(r"[A-Za-z0-9_\-]+")


def check_task_name(task: object) -> None:
    """Raise unless ``task`` is a name of letters, digits, ``_`` and ``-``.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(task, str) or not _ALLOWED.fullmatch(task):
        raise ValueError(f"task: expected a name of letters, digits, '_' and '-'. Got {task!r}.")
