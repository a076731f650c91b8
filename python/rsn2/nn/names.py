"""The rule for task names, which become parts of parameter names."""

import re

_ALLOWED = re.compile(r"[A-Za-z0-9_\-]+")


def check_task_name(task: object) -> None:
    """Raise unless ``task`` is a name of letters, digits, ``_`` and ``-``.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(task, str) or not _ALLOWED.fullmatch(task):
        raise ValueError(f"task: expected a name of letters, digits, '_' and '-'. Got {task!r}.")
