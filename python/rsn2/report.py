"""What a network holds: per layer and task the weights owned, and the bits that each weight position costs."""

import io
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import nn

from rsn2.data import nbytes_of
from rsn2.nn.layer import MultitaskLayer
from rsn2.tasks import multitask_layers, per_task_modules, tasks


@dataclass(frozen=True)
class LayerReport:
    """One multitask layer.

    Attributes:
        name: in the network.
        shape: ``(rows, cols)`` of its weight.
        owned: task -> number of positions it owns; tasks that share a slot own the same ones. Without those that do not
            run through the layer.
        free: number of positions without an owner.
        values_bytes: packed values and biases of all tasks.
        planes_bytes: the owner map.
        pool_bytes: initial weights and bias kept for further tasks; once finalized, the bias alone.
        index_bytes: index structures derived from the masks so far; not part of a checkpoint.
    """

    name: str
    shape: tuple[int, int]
    owned: dict[str, int]
    free: int
    values_bytes: int
    planes_bytes: int
    pool_bytes: int
    index_bytes: int

    @property
    def positions(self) -> int:
        """``rows * cols``."""
        return self.shape[0] * self.shape[1]

    def density(self, task: str) -> float:
        """Share of all positions that ``task`` owns; 0 if it does not run through the layer."""
        return self.owned.get(task, 0) / self.positions

    @property
    def bits_per_weight(self) -> float:
        """Bits of values, biases and owner map over the positions: what the finished layer costs."""
        return 8 * (self.values_bytes + self.planes_bytes) / self.positions


@dataclass(frozen=True)
class Report:
    """A network: its layers, its tasks, and the bytes of its per-task and plain modules. Print it for a table."""

    layers: tuple[LayerReport, ...]
    tasks: tuple[str, ...]
    per_task_bytes: int
    plain_bytes: int

    @property
    def positions(self) -> int:
        """Weight positions of all multitask layers."""
        return sum(layer.positions for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the finished network: values, biases, owner maps, per-task and plain modules."""
        kept = sum(layer.values_bytes + layer.planes_bytes for layer in self.layers)
        return kept + self.per_task_bytes + self.plain_bytes

    @property
    def pool_bytes(self) -> int:
        """Bytes kept for further tasks."""
        return sum(layer.pool_bytes for layer in self.layers)

    @property
    def index_bytes(self) -> int:
        """Bytes of derived index structures that exist now."""
        return sum(layer.index_bytes for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole finished network over the positions of its multitask layers; 0 if it has none."""
        return 8 * self.nbytes / self.positions if self.positions else 0.0

    def __str__(self) -> str:
        table = Table(title="weights owned, and bits per weight position")
        for column in ("layer", "shape", *self.tasks, "free", "bits", "pool bits", "index bits"):
            table.add_column(column, justify="left" if column in ("layer", "shape") else "right")
        for layer in self.layers:
            shares = [
                f"{layer.owned[task]:,} ({layer.density(task):.3f})" if task in layer.owned else "-"
                for task in self.tasks
            ]
            table.add_row(
                layer.name,
                f"{layer.shape[0]} x {layer.shape[1]}",
                *shares,
                f"{layer.free / layer.positions:.3f}",
                f"{layer.bits_per_weight:.2f}",
                f"{8 * layer.pool_bytes / layer.positions:.2f}",
                f"{8 * layer.index_bytes / layer.positions:.2f}",
            )
        console = Console(file=io.StringIO(), width=max(100, 44 + 18 * (len(self.tasks) + 3)))
        console.print(table)
        console.print(
            f"whole network {self.nbytes:,} bytes, {self.bits_per_weight:.2f} bits per shared weight; "
            f"besides: pool {self.pool_bytes:,}, index {self.index_bytes:,} bytes"
        )
        output = console.file
        assert isinstance(output, io.StringIO)
        return output.getvalue().rstrip()


def report(model: nn.Module) -> Report:
    """Describe what a network's tasks own and what the network costs in memory.

    Raises nothing: a network without multitask layers has an empty report.
    """
    layers = multitask_layers(model)
    in_layers = sum(_bytes_of(layer) for layer in layers.values())
    in_copies = sum(_bytes_of(module.by_task) for module in per_task_modules(model).values())
    templates = sum(_bytes_of(module.template) for module in per_task_modules(model).values() if module.template)
    return Report(
        tuple(_layer_report(name, layer) for name, layer in layers.items()),
        tuple(tasks(model)),
        in_copies,
        _bytes_of(model) - in_layers - in_copies - templates,
    )


def _layer_report(name: str, layer: MultitaskLayer) -> LayerReport:
    counts = {slot: layer.owners.count(slot) for slot in layer.densities}
    return LayerReport(
        name=name,
        shape=layer.owners.shape,
        owned={task: counts[slot] for task, slot in layer.slots.items()},
        free=layer.owners.numel - sum(counts.values()),
        values_bytes=nbytes_of(layer.parameters()),
        planes_bytes=layer.owners.nbytes,
        pool_bytes=nbytes_of(layer.buffers()),
        index_bytes=layer.index_nbytes,
    )


def _bytes_of(module: nn.Module) -> int:
    return nbytes_of([*module.parameters(), *module.buffers()])
