"""Orders of a mask's rows, and what tiles and condensed windows of rows in such an order visit."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Row orders are compared in these layers and tasks of the network of 1000, at these window heights.
ORDERED_LAYERS, ORDERED_TASKS, ORDERED_HEIGHTS = ("1", "2", "4", "6"), (1, 3, 5), (32, 64, 128)


def by_count(mask: Tensor) -> Tensor:
    """Rows by falling number of weights."""
    return mask.sum(1).argsort(descending=True, stable=True)


def in_tiles(mask: Tensor, side: int) -> int:
    """Positions in the tiles of ``side`` by ``side`` that hold a weight."""
    return side * side * int(blocked(mask, side, side).sum())


def in_windows(mask: Tensor, height: int) -> int:
    """Positions in condensed windows of ``height`` neighbouring rows."""
    return height * int(blocked(mask, height, 1).sum())


def blocked(mask: Tensor, height: int, width: int) -> Tensor:
    """Which blocks hold a weight; the last ones stick out."""
    rows, cols = mask.shape
    mask = nn.functional.pad(mask, (0, -cols % width, 0, -rows % height))
    return mask.view(mask.shape[0] // height, height, -1, width).any(3).any(1)


def by_singular_vector(mask: Tensor, height: int) -> Tensor:
    """Rows by their part in the first singular vector."""
    return torch.svd_lowrank(mask.float(), q=4, niter=3)[0][:, 0].abs().argsort(descending=True)


def clustered(mask: Tensor, height: int) -> Tensor:
    """Rows cut in two along their first principal direction, at a whole window, until each part is a window."""

    def cut(rows: Tensor) -> list[Tensor]:
        if len(rows) <= height:
            return [rows]
        part = mask[rows].float()
        along = rows[torch.svd_lowrank(part - part.mean(0), q=2, niter=4)[0][:, 0].argsort()]
        half = -(-len(rows) // height) // 2 * height
        return cut(along[:half]) + cut(along[half:])

    return torch.cat(cut(torch.arange(mask.shape[0])))


def greedy(mask: Tensor, height: int) -> Tensor:
    """Each window begins with the fullest row left, and takes the row that adds the fewest columns, again and again."""
    table = mask.float()
    counts = table.sum(1)
    left = torch.ones(mask.shape[0], dtype=torch.bool)
    order: list[int] = []
    covered = torch.zeros(mask.shape[1])
    while len(order) < mask.shape[0]:
        starts = len(order) % height == 0
        covered = torch.zeros_like(covered) if starts else covered
        new = -counts if starts else counts - table @ covered
        row = int(new.masked_fill(~left, torch.inf).argmin())
        order.append(row)
        left[row] = False
        covered = torch.maximum(covered, table[row])
    return torch.tensor(order)


ORDERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "count": lambda mask, height: by_count(mask),
    "singular vector": by_singular_vector,
    "clustered": clustered,
    "greedy": greedy,
}


def compared(mask: Tensor) -> Iterator[dict[str, Any]]:
    """What windows of rows in each order visit, as shares of all positions."""
    for name, order in ORDERS.items():
        torch.manual_seed(0)
        shares = {height: in_windows(mask[order(mask, height)], height) / mask.numel() for height in ORDERED_HEIGHTS}
        yield {"order": name, **{f"windows_{height}": share for height, share in shares.items()}}
