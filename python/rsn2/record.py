"""The record inside a checkpoint: what each layer and per-task module is, checked field by field."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import nn

from rsn2.convert import SHARED_FORMS
from rsn2.nn import MultitaskLayer, MultitaskMultiheadAttention, MultitaskTransformerEncoderLayer, PerTask
from rsn2.nn.names import SUM_TOLERANCE, check_task_name
from rsn2.sealed import CheckpointError, checked_fields

VERSION = 1


@dataclass(frozen=True)
class LayerRecord:
    """A multitask layer: its class, torch's shape of its weight, its geometry, and who holds which slot."""

    kind: str
    weight_shape: tuple[int, ...]
    geometry: dict[str, Any]
    bias: bool
    pool: bool
    slots: dict[str, int]
    densities: dict[int, float]

    @classmethod
    def of(cls, layer: MultitaskLayer) -> Self:
        """Describe a layer."""
        return cls(
            kind=type(layer).__name__,
            weight_shape=layer.weight_shape,
            geometry=layer.geometry,
            bias=layer.initial_bias is not None,
            pool=layer.pool is not None,
            slots=dict(layer.slots),
            densities=dict(layer.densities),
        )

    @classmethod
    def from_json(cls, name: str, content: Any) -> Self:
        """Check and take over one layer of a record."""
        where = f"layer {name!r}"
        fields = checked_fields(where, content, cls.__dataclass_fields__)
        kinds = [form.__name__ for form in SHARED_FORMS.values()]
        _check(fields["kind"] in kinds, where, "kind", f"one of {kinds}", fields["kind"])
        shape = fields["weight_shape"]
        sound = isinstance(shape, list) and len(shape) >= 2 and all(_is_int(size) and size > 0 for size in shape)
        _check(sound, where, "weight_shape", "at least two positive ints", shape)
        _check(isinstance(fields["geometry"], dict), where, "geometry", "a table", fields["geometry"])
        for flag in ("bias", "pool"):
            _check(isinstance(fields[flag], bool), where, flag, "a bool", fields[flag])
        slots, densities = fields["slots"], fields["densities"]
        sound = isinstance(densities, dict) and all(
            key.isdecimal()
            and str(int(key)) == key
            and isinstance(share, int | float)
            and not isinstance(share, bool)
            and 0 < share <= 1
            for key, share in densities.items()
        )
        _check(sound, where, "densities", "slot -> density in (0, 1]", densities)
        known = {int(key): float(share) for key, share in densities.items()}
        sound = isinstance(slots, dict) and all(_is_int(slot) for slot in slots.values())
        _check(sound and set(slots.values()) == set(known), where, "slots", f"task -> slot of {sorted(known)}", slots)
        _check_names(where, "slots", slots)
        if sum(known.values()) > 1 + SUM_TOLERANCE:
            raise CheckpointError(f"{where}, field 'densities': expected a sum of at most 1. Got {densities}.")
        return cls(fields["kind"], tuple(shape), fields["geometry"], fields["bias"], fields["pool"], dict(slots), known)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(rows, cols)`` of the flattened weight."""
        rows, *rest = self.weight_shape
        cols = 1
        for size in rest:
            cols *= size
        return rows, cols


@dataclass(frozen=True)
class PerTaskRecord:
    """A per-task module: the class of each task's module, and whether there is a template for further tasks."""

    kinds: dict[str, str]
    template: bool

    @classmethod
    def of(cls, module: PerTask) -> Self:
        """Describe a per-task module."""
        return cls({task: type(module.of(task)).__name__ for task in module.tasks}, module.template is not None)

    @classmethod
    def from_json(cls, name: str, content: Any) -> Self:
        """Check and take over one per-task module of a record."""
        where = f"per-task module {name!r}"
        fields = checked_fields(where, content, cls.__dataclass_fields__)
        _check(isinstance(fields["template"], bool), where, "template", "a bool", fields["template"])
        _check(isinstance(fields["kinds"], dict), where, "kinds", "task -> class", fields["kinds"])
        _check_names(where, "kinds", fields["kinds"])
        return cls(fields["kinds"], fields["template"])

    def extra_state(self) -> dict[str, Any]:
        """What the module's `set_extra_state` takes."""
        return {"tasks": list(self.kinds), "has_template": self.template}


_FORMS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.MultiheadAttention: ("num_heads", "batch_first"),
    MultitaskMultiheadAttention: ("num_heads", "batch_first"),
    nn.TransformerEncoderLayer: ("norm_first",),
    MultitaskTransformerEncoderLayer: ("norm_first",),
    nn.modules.batchnorm._NormBase: ("eps",),
    nn.LayerNorm: ("eps",),
    nn.RMSNorm: ("eps",),
    nn.GroupNorm: ("num_groups", "eps"),
}


def forms_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Attention, encoder layers and norms, torch's or multitask, by name: what decides results besides tensors."""
    return {
        name: {field: getattr(module, field) for field in fields}
        for name, module in model.named_modules()
        for kind, fields in _FORMS.items()
        if isinstance(module, kind)
    }


@dataclass(frozen=True)
class Record:
    """All of a checkpoint but the tensors themselves."""

    layers: dict[str, LayerRecord]
    per_task: dict[str, PerTaskRecord]
    forms: dict[str, dict[str, Any]]
    metadata: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Check and take over a record.

        Raises:
            CheckpointError: at the first field that is not as it must be; names it.
        """
        version = content.get("version") if isinstance(content, dict) else None
        if not _is_int(version) or version != VERSION:
            raise CheckpointError(f"record, field 'version': expected {VERSION}. Got {version!r}.")
        # Not every file of this version has the forms; some have those of attention, under its name.
        content = dict(content)
        content.setdefault("forms", content.pop("attention", {}))
        fields = checked_fields("record", content, ("version", *cls.__dataclass_fields__))
        for field in cls.__dataclass_fields__:
            _check(isinstance(fields[field], dict), "record", field, "a table", fields[field])
        _check(bool(fields["layers"]), "record", "layers", "at least one layer", fields["layers"])
        return cls(
            {name: LayerRecord.from_json(name, layer) for name, layer in fields["layers"].items()},
            {name: PerTaskRecord.from_json(name, module) for name, module in fields["per_task"].items()},
            fields["forms"],
            fields["metadata"],
        )


def _check(sound: bool, where: str, field: str, expected: str, got: object) -> None:
    if not sound:
        raise CheckpointError(f"{where}, field {field!r}: expected {expected}. Got {got!r}.")


def _check_names(where: str, field: str, names: Iterable[str]) -> None:
    for name in names:
        try:
            check_task_name(name)
        except ValueError as error:
            raise CheckpointError(f"{where}, field {field!r}: {error}") from error


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
