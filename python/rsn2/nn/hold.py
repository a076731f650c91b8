"""One runner at a time: who holds a module to run or change it, and what stays in eval mode meanwhile.

The active task is a state of the modules, so one runner has a module at a time: a thread, or in a thread with a running
event loop one of its coroutines. A runner takes all that it wants at once or waits, so that two that want overlapping
networks cannot wait for each other.
"""

import asyncio
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_Runner = tuple[int, "asyncio.Task[Any] | None"]

_HOLDERS: dict[nn.Module, _Runner] = {}
_FREED = threading.Condition()

STRUCTURE = _FREED
"""Held, for moments, by who walks over a network that others may be using, or adds and removes its modules."""


@contextmanager
def held(modules: Collection[nn.Module]) -> Iterator[None]:
    """Keep others from these modules inside; first wait until no other thread has one.

    Raises:
        RuntimeError: if another coroutine of this thread has one: it could not go on while this one waits.
    """
    me = _runner()

    def free() -> bool:
        others = {holder for module in modules if (holder := _HOLDERS.get(module, me)) != me}
        if any(thread == me[0] for thread, _ in others):
            raise RuntimeError(
                "model: another coroutine of this thread is inside rsn2.use_task with it, or with a part of it. Leave "
                "the block before the next await, give each coroutine a copy, or run it in a thread "
                "(asyncio.to_thread)."
            )
        return not others

    taken: list[nn.Module] = []
    try:
        with _FREED:
            _FREED.wait_for(free)
            taken.extend(module for module in modules if module not in _HOLDERS)
            _HOLDERS.update(dict.fromkeys(taken, me))
        yield
    finally:
        with _FREED:
            for module in taken:
                _HOLDERS.pop(module, None)
            _FREED.notify_all()


@contextmanager
def changing(module: nn.Module) -> Iterator[None]:
    """Add or remove parts of a module inside: nobody runs it then, or walks over it."""
    with held([module]), STRUCTURE:
        yield


def _runner() -> _Runner:
    try:
        return threading.get_ident(), asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return threading.get_ident(), None


class _Asked:
    """In place of a module's `train` while it is kept in eval mode: the mode that it is asked for is for later."""

    def __init__(self, module: nn.Module):
        self.module, self.training = module, module.training

    def __call__(self, mode: bool = True) -> nn.Module:
        self.training = mode
        return self.module

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies that are made meanwhile, and pickles, are not kept: they get the method.
        return getattr, (self.module, "train")


@contextmanager
def kept_in_eval(modules: Collection[nn.Module]) -> Iterator[None]:
    """Keep modules in eval mode inside, whoever calls `train`; behind, each is in the mode last asked for."""
    mine = [module for module in modules if not isinstance(vars(module).get("train"), _Asked)]
    try:
        for module in mine:
            vars(module)["train"] = _Asked(module)
            module.training = False
        yield
    finally:
        for module in mine:
            module.training = vars(module).pop("train").training


def mode_of(module: nn.Module) -> bool:
    """Whether a module is in train mode, or was asked to be and is kept in eval mode."""
    asked = vars(module).get("train")
    return asked.training if isinstance(asked, _Asked) else module.training


def set_mode(module: nn.Module, training: bool) -> None:
    """Set the mode of one module alone, or what it was asked for."""
    asked = vars(module).get("train")
    if isinstance(asked, _Asked):
        asked.training = training
    else:
        module.training = training
