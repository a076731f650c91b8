"""Whether something else slows the core: a computation that has nothing to do with what is measured, timed in between.

Another program, or on a virtual machine a neighbour that nobody here can see, makes a core slow for seconds, and not
all calls by as much: a ratio of two calls is then off although they ran in turn.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")

SLOWER = 1.15
"""Times its best that the probe may take on a quiet core."""

# Fits the first-level cache, and takes some 0.1 ms.
_ELEMENTS = 4096
_REPEATS = 16
# One interruption does not make a core slow.
_TRIES = 3
_PAUSE = 0.02


class Probe:
    """Times a fixed computation, and knows the best that it ever took.

    Attributes:
        loud: how often something was taken although the core was not quiet, because patience was at an end.
    """

    def __init__(self) -> None:
        self._x = torch.linspace(0, 1, _ELEMENTS)
        self._y = torch.empty_like(self._x)
        self._best = float("inf")
        self.loud = 0
        for _ in range(50):
            self.quiet()

    def quiet(self) -> bool:
        """Whether the probe takes about as long as it ever did."""
        taken = min(self._seconds() for _ in range(_TRIES))
        self._best = min(self._best, taken)
        return taken <= SLOWER * self._best

    def during(self, take: Callable[[], T], patience: float) -> tuple[T, float]:
        """What ``take`` gives where the core was quiet before and after it, and what is left of the patience.

        Args:
            take: called again until then.
            patience: seconds that may go by with waiting, and with calls in vain.
        """
        while True:
            start = time.perf_counter()
            while not (quiet := self.quiet()) and time.perf_counter() < start + patience:
                time.sleep(_PAUSE)
            ready = time.perf_counter()
            found = take()
            quiet = self.quiet() and quiet
            patience -= (ready if quiet else time.perf_counter()) - start
            if quiet or patience <= 0:
                self.loud += not quiet
                return found, max(0.0, patience)

    def _seconds(self) -> float:
        start = time.perf_counter()
        for _ in range(_REPEATS):
            torch.sin(self._x, out=self._y)
        return time.perf_counter() - start


@cache
def shared_probe() -> Probe:
    """One for the process, so that it knows the best of all measurements."""
    return Probe()
