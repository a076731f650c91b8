"""Which layers a new task shares with a task that is there: the ``share`` argument of `rsn2.allocate`."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from rsn2.nn.layer import MultitaskLayer, TaskError

Share = Mapping[str, Sequence[str]]
"""Task -> the layers that are shared with it, as names or patterns such as ``"conv*"``."""


def shared_layers(layers: Mapping[str, MultitaskLayer], task: str, share: Share | None) -> dict[str, str]:
    """The layers that ``task`` shares, in order: layer name -> the task whose slot it is.

    Raises:
        ValueError: if ``share`` is of another type, a pattern fits no layer, or a layer is claimed from two tasks.
        TaskError: if a task that is named has nothing allocated in a layer.
    """
    holders: dict[str, str] = {}
    if share is not None and not isinstance(share, Mapping):
        raise ValueError(f"share: expected task -> names of layers. Got {share!r}.")
    for holder, patterns in (share or {}).items():
        if isinstance(patterns, str) or not isinstance(patterns, Sequence):
            raise ValueError(f"share[{holder!r}]: expected a sequence of names. Got {patterns!r}.")
        for pattern in patterns:
            fitting = [name for name in layers if fnmatchcase(name, pattern)]
            if not fitting:
                raise ValueError(f"share[{holder!r}]: no multitask layer is named {pattern!r}. There are {[*layers]}.")
            for name in fitting:
                if holders.setdefault(name, holder) != holder:
                    raise ValueError(f"share: layer {name!r} is named for {holders[name]!r} and for {holder!r}.")
                if holder not in layers[name].slots:
                    raise TaskError(
                        f"task {holder!r}, with which {task!r} is to share layer {name!r}, has nothing allocated there."
                    )
    return {name: holders[name] for name in layers if name in holders}
