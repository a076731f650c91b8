"""What a case comes to: the calls that are timed in turn, the least that each must do, and what is missing."""

from dataclasses import dataclass, field
from typing import Any

from rsn2.bench.timing import Call


class UnavailableError(Exception):
    """A baseline cannot run this case here, or a case cannot run at all: says why in a sentence."""


class WrongResultError(UnavailableError):
    """A call gives another product than the reference: says by how much."""


@dataclass(frozen=True)
class Amount:
    """The least a call can do.

    Attributes:
        bytes: read and written, each operand once.
        macs: multiply-adds.
        dtype: of the multiply-adds, torch's name.
    """

    bytes: float
    macs: float
    dtype: str = "float32"


@dataclass
class Work:
    """The calls of one case.

    Attributes:
        baseline: name of the call that all others are compared with.
        calls: name -> what is timed.
        amounts: name -> the least that the call must do.
        before: name -> what makes ready for each call and is not timed.
        unavailable: name -> why it is not among the calls.
        kept: what must live as long as the calls, such as a folder of files.
        facts: more for the results file, such as the backend that was chosen, or bytes on disk.
    """

    baseline: str
    calls: dict[str, Call] = field(default_factory=dict)
    amounts: dict[str, Amount] = field(default_factory=dict)
    before: dict[str, Call] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    kept: list[object] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, call: Call, amount: Amount) -> None:
        """One more call."""
        self.calls[name] = call
        self.amounts[name] = amount
