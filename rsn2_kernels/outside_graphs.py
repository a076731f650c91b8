"""What torch.compile runs as it is, between two graphs; a module of its own, as torch's decorator is slow to import."""

from collections.abc import Callable, Hashable

import torch

from rsn2_kernels.csr import CsrIndex, Derived

_REASON = "what a GPU reads of a mask is made once, outside of graphs: make one eager call before torch.compile"


@torch.compiler.disable(reason=_REASON)  # type: ignore[untyped-decorator]
def derived(weight: CsrIndex, key: Hashable, build: Callable[[], Derived]) -> Derived:
    """What the weight remembers under ``key``, built if it is not there."""
    return weight.derived(key, build)
