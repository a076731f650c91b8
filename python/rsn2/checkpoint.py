"""A network in one file: packed values, owner planes, and what they mean.

The tensors are those of the state dict, with the owner planes among them under ``<layer>.planes.<p>``. The record of
the file (`record.py`) says what the layers are; how a file knows that it is sound is told in `sealed.py`.
"""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rsn2.convert import SHARED_FORMS, apply_plan
from rsn2.nn import MultitaskLayer, PerTask
from rsn2.opening import Opening, is_below, uncompiled
from rsn2.record import LayerRecord, PerTaskRecord, Record, forms_of
from rsn2.report import LayerReport, Report
from rsn2.sealed import CheckpointError, read_sealed, write_sealed
from rsn2.tasks import alone_with, multitask_layers, per_task_modules
from rsn2_kernels import OwnerMap

_KEY = "rsn2"
_EXTRA = "_extra_state"


def save(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a network with all its tasks to one safetensors file, atomically.

    Args:
        model: a network with multitask layers.
        path: the file, replaced if it exists, in a folder that exists.
        metadata: anything JSON can hold, given back by :func:`read_metadata`.

    Raises:
        CheckpointError: if the network has no multitask layer or one of a subclass, or a module keeps state that is
            neither parameter nor buffer; names it.
        FileNotFoundError: if there is no such folder.
        TypeError: if ``metadata`` is not JSON.
    """
    model = uncompiled(model)
    with alone_with(model):
        tensors = _tensors_of(model)
        record = Record(
            layers={name: LayerRecord.of(layer) for name, layer in multitask_layers(model).items()},
            per_task={name: PerTaskRecord.of(module) for name, module in per_task_modules(model).items()},
            forms=forms_of(model),
            metadata=dict(metadata or {}),
        )
        write_sealed(Path(path), _KEY, record.to_json(), tensors)


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Read a network with all its tasks.

    Args:
        path: a file written by :func:`save`.
        model: the architecture, as it was before `convert` (its weights do not matter) or converted, on the device on
            which the network is to be.

    Returns:
        A converted and filled copy of ``model``, on its device; ``model`` itself stays as it is.

    Raises:
        CheckpointError: if the file is damaged or is no checkpoint of this architecture; names the layer and field.
        FileNotFoundError: if there is no such file.
        ValueError: if ``model`` is on the device "meta", or a module that is to be replaced has hooks.
    """
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError('model: expected a network on a device that holds values. Got one on "meta".')
    record, tensors = _read(path)
    owners = _owners(record, tensors)
    model = copy.deepcopy(uncompiled(model))
    recorded_names = [*record.layers, *record.per_task]
    model = Opening(model, lambda name, _: any(is_below(each, [name]) for each in recorded_names if each != name)).model
    modules = dict(model.named_modules())
    for name, recorded in record.layers.items():
        _check_layer(name, recorded, modules.get(name))
    for name in record.per_task:
        if name not in modules:
            raise CheckpointError(f"{name}: the file has a per-task module of this name, the model has none.")
    model = apply_plan(
        model,
        copies=[name for name in record.per_task if not isinstance(modules[name], PerTask)],
        shared=[name for name in record.layers if not isinstance(modules[name], MultitaskLayer)],
    )
    try:
        for name, layer in multitask_layers(model).items():
            found = record.layers[name]
            layer.take_over(owners[name], found.slots, found.densities, found.pool)
            for number in range(len(owners[name].planes)):
                del tensors[_join(name, f"planes.{number}")]
        for name, module in per_task_modules(model).items():
            module.set_extra_state(record.per_task[name].extra_state())
        state = _state_of(model, tensors)
        # Owners and slots are in place already, so the state has no extra entries: what else is missing is an error.
        lacking = [key for key in model.load_state_dict(state, strict=False).missing_keys if not key.endswith(_EXTRA)]
        if lacking:
            raise ValueError(f"the file has no {lacking}")
    except (RuntimeError, LookupError, ValueError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a checkpoint of this architecture: {why}") from error
    _check_dtypes(model, state)
    _check_kinds(model, record)
    return model


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``metadata`` that was given to :func:`save`, from the file alone.

    Args:
        path: a file written by :func:`save`.

    Returns:
        What JSON makes of it: lists for tuples, and names that are text. Empty if none was given.

    Raises:
        CheckpointError: if the file is damaged or foreign.
        FileNotFoundError: if there is no such file.
    """
    return _read(path)[0].metadata


def describe(path: str | os.PathLike[str]) -> Report:
    """What the network in a file holds, from the file alone; index structures do not count, since a file has none.

    Raises:
        CheckpointError: if the file is damaged or foreign.
    """
    record, tensors = _read(path)
    owners = _owners(record, tensors)
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}

    def take(prefix: str) -> int:
        return sum(sizes.pop(name) for name in list(sizes) if name.startswith(prefix))

    layers = []
    for name, layer in record.layers.items():
        planes = take(_join(name, "planes."))
        values = take(_join(name, "values.")) + take(_join(name, "biases."))
        pool = take(_join(name, "pool")) + take(_join(name, "initial_bias"))
        counts = {slot: owners[name].count(slot) for slot in layer.densities}
        owned = {task: counts[slot] for task, slot in layer.slots.items()}
        free = owners[name].numel - sum(counts.values())
        layers.append(LayerReport(name, layer.matrix_shape, owned, free, values, planes, pool, 0))
    copies = sum(take(_join(name, "by_task.")) for name in record.per_task)
    for name in record.per_task:
        take(_join(name, "template."))
    names = dict.fromkeys(task for layer in record.layers.values() for task in layer.slots)
    return Report(tuple(layers), tuple(names), copies, sum(sizes.values()))


def _read(path: str | os.PathLike[str]) -> tuple[Record, dict[str, Tensor]]:
    content, tensors = read_sealed(Path(path), _KEY, writer="rsn2.save")
    return Record.from_json(content), tensors


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """What a file of the network holds, by name.

    Raises:
        CheckpointError: as :func:`save`.
    """
    layers = multitask_layers(model)
    if not layers:
        raise CheckpointError("model: expected a network with multitask layers; make one with rsn2.convert(model).")
    for name, layer in layers.items():
        if type(layer) not in SHARED_FORMS.values():
            known = [form.__name__ for form in SHARED_FORMS.values()]
            raise CheckpointError(f"layer {name!r}: expected one of {known}. Got a {type(layer).__name__}.")
    named = dict(model.named_modules(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    first = _first_names(model)
    for key, value in model.state_dict().items():
        if key in first:
            if first[key] == key:
                tensors[key] = value
            continue
        keeper = named.get(key.removesuffix(_EXTRA).removesuffix("."))
        if not isinstance(keeper, MultitaskLayer | PerTask):
            raise CheckpointError(
                f"{key}: expected a parameter or buffer. Got {type(value).__name__} of {type(keeper).__name__}, which "
                "keeps state of another kind."
            )
    for name, layer in layers.items():
        for number, plane in enumerate(layer.owners.planes):
            tensors[_join(name, f"planes.{number}")] = plane
    return tensors


def _owners(record: Record, tensors: Mapping[str, Tensor]) -> dict[str, OwnerMap]:
    """The owner map of every layer, its planes checked bit by bit, and the sizes of its values checked against it."""
    owners = {}
    for name, layer in record.layers.items():
        planes: list[Tensor] = []
        while (key := _join(name, f"planes.{len(planes)}")) in tensors:
            planes.append(tensors[key])
        try:
            owners[name] = OwnerMap.from_planes(planes, layer.matrix_shape, layer.densities)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"layer {name!r}, field 'planes': {error}") from error
        sizes = {f"values.{slot}": owners[name].count(slot) for slot in layer.densities}
        sizes |= {f"biases.{slot}": layer.matrix_shape[0] for slot in layer.densities if layer.bias}
        for field, size in sizes.items():
            tensor = tensors.get(_join(name, field))
            got = "none" if tensor is None else tuple(tensor.shape)
            if got != (size,):
                raise CheckpointError(f"layer {name!r}, field {field!r}: expected shape ({size},). Got {got}.")
    return owners


def _check_layer(name: str, layer: LayerRecord, module: nn.Module | None) -> None:
    """Raise unless a module of the model can become the layer."""
    if module is None:
        raise CheckpointError(f"layer {name!r}: the model has no module of this name.")
    dense = next(kind for kind, form in SHARED_FORMS.items() if form.__name__ == layer.kind)
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and type(module) is dense:
        shape, bias = tuple(module.weight.shape), module.bias is not None
    elif isinstance(module, MultitaskLayer) and type(module) is SHARED_FORMS[dense]:
        shape, bias = module.weight_shape, module.initial_bias is not None
    else:
        raise CheckpointError(
            f"layer {name!r}, field 'kind': expected {dense.__name__} in the model. Got {type(module).__name__}."
        )
    if shape != layer.weight_shape or bias != layer.bias:
        raise CheckpointError(
            f"layer {name!r}, field 'weight_shape': the file has {layer.weight_shape}, bias {layer.bias}; "
            f"the model has {shape}, bias {bias}."
        )


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _state_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict that fills ``model``, whose owners are in place, with a file's tensors.

    Raises:
        ValueError: if a tensor has no place in the model.
    """
    first = _first_names(model)
    if strange := sorted(set(tensors) - set(first.values())):
        raise ValueError(f"the model has no {strange}")
    return {name: tensors[origin] for name, origin in first.items() if origin in tensors}


def _check_kinds(model: nn.Module, record: Record) -> None:
    """Raise where the model would compute something else with the same tensors."""
    for name, layer in multitask_layers(model).items():
        recorded = record.layers[name].geometry
        if layer.geometry != recorded:
            raise CheckpointError(
                f"layer {name!r}, field 'geometry': the file has {recorded}, the model {layer.geometry}."
            )
    for name, module in per_task_modules(model).items():
        kinds, recorded = PerTaskRecord.of(module).kinds, record.per_task[name].kinds
        if kinds != recorded:
            raise CheckpointError(f"{name}, field 'kinds': the file has {recorded}, the model {kinds}.")
    forms = forms_of(model)
    for name, form in record.forms.items():
        if forms.get(name) != form:
            raise CheckpointError(f"module {name!r}: the file has {form}, the model {forms.get(name)}.")


def _check_dtypes(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Raise where loading changed a dtype: a load gives back the bits that were saved."""
    for key, tensor in model.state_dict().items():
        saved = state.get(key)
        if isinstance(tensor, Tensor) and isinstance(saved, Tensor) and saved.dtype != tensor.dtype:
            raise CheckpointError(f"{key}: expected {tensor.dtype}, as in the model. The file has {saved.dtype}.")


def _join(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field
