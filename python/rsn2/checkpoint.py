"""A network in one safetensors file: packed values, owner planes, and what they mean. Nothing is ever unpickled.

The tensors are those of the state dict, with the owner planes among them under ``<layer>.planes.<p>``. One JSON record
in the file's metadata says what the layers are (`record.py`); it lists every tensor with dtype, shape and SHA-256, and
is itself hashed, so that a damaged file is told from a sound one before anything is built from it.
"""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rsn2.convert import SHARED_FORMS, apply_plan
from rsn2.nn import MultitaskLayer, PerTask
from rsn2.record import CheckpointError, LayerRecord, PerTaskRecord, Record, TensorRecord
from rsn2.report import LayerReport, Report
from rsn2.tasks import multitask_layers, per_task_modules
from rsn2_kernels import OwnerMap

_RECORD_KEY = "rsn2"
_DIGEST_KEY = "rsn2.sha256"
_EXTRA = "_extra_state"


def save(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a network with all its tasks to one safetensors file, atomically.

    Args:
        model: a network with multitask layers.
        path: the file, replaced if it exists.
        metadata: anything JSON can hold, given back by :func:`read_metadata`.

    Raises:
        CheckpointError: if the network has no multitask layer, or a module keeps state of its own that is no tensor.
        TypeError: if ``metadata`` is not JSON.
    """
    model = getattr(model, "_orig_mod", model)  # as it was before torch.compile, which changes all names
    layers, copies = multitask_layers(model), per_task_modules(model)
    named = dict(model.named_modules(remove_duplicate=False))
    if not layers:
        raise CheckpointError("model: expected a network with multitask layers; make one with rsn2.convert(model).")
    tensors: dict[str, Tensor] = {}
    first = _first_names(model)
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            if first[key] == key:
                # A copy of its own for each, since a file cannot hold two names for one storage.
                tensors[key] = value.detach().cpu().contiguous().clone()
        elif not isinstance(named[key.removesuffix(_EXTRA).removesuffix(".")], MultitaskLayer | PerTask):
            raise CheckpointError(f"{key}: expected a tensor. Got {type(value).__name__}.")
    for name, layer in layers.items():
        for number, plane in enumerate(layer.owners.planes):
            tensors[_join(name, f"planes.{number}")] = plane.cpu()
    record = Record(
        layers={name: LayerRecord.of(layer) for name, layer in layers.items()},
        per_task={name: PerTaskRecord.of(module) for name, module in copies.items()},
        tensors={name: TensorRecord.of(tensor) for name, tensor in tensors.items()},
        metadata=dict(metadata or {}),
    )
    text = json.dumps(record.to_json())
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        save_file(tensors, partial, {_RECORD_KEY: text, _DIGEST_KEY: _sha256(text.encode())})
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Read a network with all its tasks.

    Args:
        path: a file written by :func:`save`.
        model: the architecture, as it was before `convert` (its weights do not matter) or converted.

    Returns:
        A converted and filled copy of ``model``, on its device; ``model`` itself stays as it is.

    Raises:
        CheckpointError: if the file is damaged or is no checkpoint of this architecture; names the layer and field.
        FileNotFoundError: if there is no such file.
    """
    record, tensors = _read(path)
    owners = _owners(record, tensors)
    model = copy.deepcopy(model)
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
            layer.set_extra_state(record.layers[name].extra_state(owners[name]))
            for number in range(len(owners[name].planes)):
                del tensors[_join(name, f"planes.{number}")]
        for name, module in per_task_modules(model).items():
            module.set_extra_state(record.per_task[name].extra_state())
        state = _state_of(model, tensors)
        model.load_state_dict(state)
    except (RuntimeError, LookupError, ValueError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a checkpoint of this architecture: {why}") from error
    _check_dtypes(model, state)
    _check_kinds(model, record)
    return model


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``metadata`` that was given to :func:`save`.

    Raises:
        CheckpointError: if the file is damaged or foreign.
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
    """The record and the tensors of a file, each checked against its hash and the record."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            record = _record(header, path)
            if set(file.keys()) != set(record.tensors):
                strange = sorted(set(file.keys()) ^ set(record.tensors))
                raise CheckpointError(f"{path}: tensors {strange} are not in both the file and its record.")
            tensors = {name: file.get_tensor(name) for name in record.tensors}
    except (SafetensorError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a sound safetensors file: {error}") from error
    for name, tensor in tensors.items():
        record.tensors[name].check(name, tensor)
    return record, tensors


def _record(header: Mapping[str, str], path: str | os.PathLike[str]) -> Record:
    if _RECORD_KEY not in header or _DIGEST_KEY not in header:
        raise CheckpointError(f"{path}: a safetensors file, but not one that rsn2.save wrote.")
    text = header[_RECORD_KEY]
    if _sha256(text.encode()) != header[_DIGEST_KEY]:
        raise CheckpointError(f"{path}: its record does not match its checksum: the file is damaged.")
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its record is not JSON: {error}") from error
    return Record.from_json(content)


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
    if isinstance(module, nn.Linear | nn.Conv2d) and type(module) is dense:
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


def _state_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict that fills ``model``, whose owners are in place, with a file's tensors.

    Raises:
        ValueError: if a tensor has no place in the model.
    """
    first = _first_names(model)
    if strange := sorted(set(tensors) - set(first.values())):
        raise ValueError(f"the model has no {strange}")
    state: dict[str, Any] = {name: tensors[origin] for name, origin in first.items() if origin in tensors}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, MultitaskLayer | PerTask):
            state[_join(name, _EXTRA)] = module.get_extra_state()
    return state


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


def _check_dtypes(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Raise where loading changed a dtype: a load gives back the bits that were saved."""
    for key, tensor in model.state_dict().items():
        saved = state.get(key)
        if isinstance(tensor, Tensor) and isinstance(saved, Tensor) and saved.dtype != tensor.dtype:
            raise CheckpointError(f"{key}: expected {tensor.dtype}, as in the model. The file has {saved.dtype}.")


def _join(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
