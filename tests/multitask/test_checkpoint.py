"""A checkpoint gives back every bit, and no damaged or foreign file gets past the loader."""

import copy
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rsn2
from networks import allocated, assert_same, network, plain_network, samples, snapshot, train
from rsn2.checkpoint import describe
from sealed_files import edit


def trained() -> nn.Module:
    model = allocated("shapes", "sizes")
    train(model, "shapes", torch.optim.Adam(rsn2.parameters(model, "shapes")))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained()


@pytest.fixture
def file(model: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    rsn2.save(model, path, {"note": [1, "two"]})
    return path


def predictions(model: nn.Module) -> list[Tensor]:
    outputs = []
    for task in ("shapes", "sizes"):
        with rsn2.use_task(model, task), torch.no_grad():
            outputs.append(model(samples(task)[0]))
    return outputs


def test_load_gives_back_every_bit(model: nn.Module, file: Path) -> None:
    plain = plain_network(seed=9)
    before = copy.deepcopy(plain.state_dict())
    loaded = rsn2.load(file, model=plain).eval()
    assert_same(snapshot(model), snapshot(loaded))
    for saved, again in zip(predictions(model), predictions(loaded), strict=True):
        assert torch.equal(saved, again)
    assert all(
        torch.equal(before[key], value) for key, value in plain.state_dict().items() if isinstance(value, Tensor)
    )
    assert rsn2.read_metadata(file) == {"note": [1, "two"]}


def test_a_converted_network_is_a_template_too(model: nn.Module, file: Path) -> None:
    assert_same(snapshot(model), snapshot(rsn2.load(file, model=network(seed=9))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_round_trips(dtype: torch.dtype, tmp_path: Path) -> None:
    model = allocated("shapes").to(dtype)
    rsn2.save(model, tmp_path / "net.safetensors")
    assert_same(snapshot(model), snapshot(rsn2.load(tmp_path / "net.safetensors", plain_network(9).to(dtype))))


def test_a_loaded_network_takes_further_tasks_and_a_finalized_one_does_not(tmp_path: Path) -> None:
    model = allocated("shapes")
    path = tmp_path / "net.safetensors"
    rsn2.save(model, path)
    bigger = path.stat().st_size
    more = rsn2.load(path, plain_network())
    rsn2.allocate(more, "sizes", 0.3, nn.functional.mse_loss, [samples("sizes")])
    assert rsn2.tasks(more) == ["shapes", "sizes"]
    rsn2.finalize(model)
    rsn2.save(model, path)
    assert path.stat().st_size < bigger
    final = rsn2.load(path, plain_network())
    assert_same(snapshot(model), snapshot(final))
    with pytest.raises(rsn2.TaskError, match=r"no template|finalized"):
        rsn2.allocate(final, "sizes", 0.1, criterion="magnitude")


def test_a_network_without_tasks_and_one_that_is_a_single_layer_are_saved_too(tmp_path: Path) -> None:
    for number, model in enumerate((network(), rsn2.convert(nn.Linear(5, 4)))):
        path = tmp_path / f"{number}.safetensors"
        rsn2.save(model, path)
        loaded = rsn2.load(path, plain_network(9) if number == 0 else nn.Linear(5, 4))
        assert_same(snapshot(model), snapshot(loaded))


def test_describe_reports_from_the_file_alone(model: nn.Module, file: Path) -> None:
    from_file, from_model = describe(file), rsn2.report(model)
    assert from_file.tasks == from_model.tasks and from_file.nbytes == from_model.nbytes
    for one, other in zip(from_file.layers, from_model.layers, strict=True):
        assert (one.name, one.shape, one.owned, one.free) == (other.name, other.shape, other.owned, other.free)
        assert one.bits_per_weight == other.bits_per_weight and one.pool_bytes == other.pool_bytes


def test_the_stock_state_dict_round_trips_too(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "state.pt")
    fresh = network(seed=9)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(snapshot(model), snapshot(fresh))


def with_part(number: int, part: nn.Module) -> nn.Module:
    """The plain network with one module exchanged."""
    network = plain_network()
    network[number] = part
    return network


def assert_refused(path: Path, message: str | None = None) -> None:
    plain = plain_network(9)
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(rsn2.CheckpointError, match=message):
        rsn2.load(path, model=plain)
    assert type(plain[2]) is nn.Linear
    assert all(
        torch.equal(before[key], value) for key, value in plain.state_dict().items() if isinstance(value, Tensor)
    )


def test_a_file_cut_off_anywhere_is_refused(file: Path) -> None:
    content = file.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(200, len(content), len(content) // 20), len(content) - 1]:
        file.write_bytes(content[:length])
        assert_refused(file)


def test_a_flipped_bit_anywhere_is_refused(file: Path) -> None:
    # Every byte of the length field, bytes all over the header, and bytes in every tensor.
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    index = json.loads(content[8 : 8 + header])
    spots = [*range(8), *range(8, 8 + header, 37), 8 + header - 1]
    for name, entry in index.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            spots += [8 + header + offset for offset in (first, (first + last) // 2, last - 1) if first < last]
    for number, spot in enumerate(spots):
        flipped = bytearray(content)
        flipped[spot] ^= 1 << number % 8
        file.write_bytes(flipped)
        assert_refused(file)


def set_plane_bit(row: int, word: int, bit: int, plane: int = 0) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[f"2.planes.{plane}"][row, word] ^= torch.tensor(1 << bit if bit < 63 else -(1 << 63))

    return change


def put(*keys: str, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        place = record
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def tensor(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[name] = make(tensors[name])

    return change


def drop(name: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda record, tensors: tensors.__delitem__(name)


def both_codes(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["2.planes.0"] = tensors["2.planes.0"] | tensors["2.planes.1"]


EDITS = {
    "padding bit": (set_plane_bit(0, 0, 50), "layer '2', field 'planes': .*bits past column 31"),
    "sign bit of the padding": (set_plane_bit(3, 0, 63), "layer '2', field 'planes': .*bits past column 31"),
    "owner nobody is": (both_codes, r"layer '2', field 'planes': planes: codes \[3\] belong to no task"),
    "position moved between tasks": (set_plane_bit(0, 0, 0), "layer '2', field '(values|planes)"),
    "plane missing": (drop("2.planes.1"), "layer '2', field 'planes': planes: expected 2"),
    "plane of another dtype": (tensor("2.planes.0", lambda t: t.to(torch.int32)), "layer '2', field 'planes'"),
    "plane of another shape": (tensor("2.planes.0", lambda t: t[:-1].clone()), "layer '2', field 'planes'"),
    "values too short": (
        tensor("2.values.0", lambda t: t[:-1].clone()),
        r"layer '2', field 'values.0': expected shape",
    ),
    "values missing": (drop("5.values.1"), r"layer '5', field 'values.1': expected shape .* Got none"),
    "bias too long": (tensor("2.biases.0", lambda t: t.repeat(2)), r"layer '2', field 'biases.0'"),
    "values of another dtype": (tensor("2.values.0", lambda t: t.double()), "2.values.0: expected torch.float32"),
    "pool missing": (drop("2.pool"), "not a checkpoint of this architecture.*2.pool"),
    "plain tensor missing": (drop("0.by_task.task_shapes.weight"), "not a checkpoint of this architecture"),
    "tensor too many": (
        lambda record, tensors: tensors.update(extra=torch.zeros(1)),
        "not a checkpoint of this architecture.*extra",
    ),
    "version": (put("version", value=2), "field 'version': expected 1. Got 2"),
    "no layers": (put("layers", value={}), "field 'layers': expected at least one"),
    "layers no table": (put("layers", value=[]), "field 'layers': expected a table"),
    "layer no table": (put("layers", "2", value=7), "layer '2': expected the fields"),
    "layer of no kind": (put("layers", "2", "kind", value="os.system"), "layer '2', field 'kind'"),
    "layer of another kind": (put("layers", "2", "kind", value="MultitaskConv2d"), "layer '2', field 'kind'"),
    "unknown field": (put("layers", "2", "code", value="x"), "layer '2': expected the fields"),
    "shape of text": (put("layers", "2", "weight_shape", value="40x32"), "layer '2', field 'weight_shape'"),
    "negative shape": (put("layers", "2", "weight_shape", value=[40, -32]), "layer '2', field 'weight_shape'"),
    "huge shape": (put("layers", "2", "weight_shape", value=[40, 2**62]), "layer '2', field 'planes'"),
    "bias flag": (put("layers", "2", "bias", value=1), "layer '2', field 'bias'"),
    "pool flag": (put("layers", "2", "pool", value=False), "not a checkpoint of this architecture|pool"),
    "slot nobody has": (put("layers", "2", "slots", value={"shapes": 0, "sizes": 7}), "layer '2', field 'slots'"),
    "slot of text": (put("layers", "2", "slots", value={"shapes": "0", "sizes": 1}), "layer '2', field 'slots'"),
    "task name": (put("layers", "2", "slots", value={"../x": 0, "sizes": 1}), "layer '2', field 'slots'"),
    "negative slot": (put("layers", "2", "densities", value={"-1": 0.3, "1": 0.3}), "layer '2', field 'densities'"),
    "density": (put("layers", "2", "densities", value={"0": 3, "1": 0.3}), "layer '2', field 'densities'"),
    "densities too large": (put("layers", "2", "densities", value={"0": 0.9, "1": 0.9}), "field 'densities'"),
    "geometry of text": (put("layers", "2", "geometry", value="x"), "layer '2', field 'geometry'"),
    "attention no table": (put("forms", value=[]), "record, field 'forms': expected a table"),
    "attention nobody has": (put("forms", value={"2": {"num_heads": 2}}), "module '2': .*, the model None"),
    "version of truth": (put("version", value=True), "field 'version': expected 1. Got True"),
    "per-task name": (put("per_task", "3", "kinds", value={"a.b": "x"}), "per-task module '3', field 'kinds'"),
    "per-task template": (put("per_task", "3", "template", value="yes"), "per-task module '3', field 'template'"),
    "per-task module nobody has": (put("per_task", "99", value={"kinds": {}, "template": True}), "99: the file has"),
    "layer nobody has": (
        lambda record, tensors: record["layers"].update({"99": record["layers"]["2"]}),
        "layer '99'",
    ),
}


@pytest.mark.parametrize(("change", "message"), EDITS.values(), ids=EDITS.keys())
def test_an_edited_file_with_right_checksums_is_refused(
    change: Callable[[dict[str, Any], dict[str, Tensor]], None], message: str, file: Path
) -> None:
    edit(file, change)
    assert_refused(file, message)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    assert_refused(path, "not one that rsn2.save wrote")
    save_file({"weight": torch.zeros(2)}, path, {"rsn2": "{", "rsn2.sha256": hashlib.sha256(b"{").hexdigest()})
    assert_refused(path, "not JSON")
    torch.save({"weight": torch.zeros(2)}, path)
    assert_refused(path, "not a sound safetensors file")
    with pytest.raises(FileNotFoundError, match="no file"):
        rsn2.load(tmp_path / "nothing", plain_network())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 3)), "layer '2': the model has no module"),
        (lambda: nn.Sequential(*[*plain_network()][:2], nn.Linear(32, 41), *[*plain_network()][3:]), "weight_shape"),
        (lambda: nn.Sequential(*[*plain_network()][:2], nn.ReLU(), *[*plain_network()][3:]), "expected Linear"),
        (lambda: nn.Sequential(*plain_network(), nn.Linear(2, 2)), "not a checkpoint of this architecture"),
        (lambda: plain_network().double(), "expected torch.float64"),
        (lambda: with_part(8, nn.Conv2d(2, 6, 3, padding=1, dilation=2)), "'8', field 'geometry'"),
        (lambda: with_part(6, nn.RMSNorm(32)), "not a checkpoint of this architecture|field 'kinds'"),
        (lambda: with_part(3, nn.InstanceNorm1d(40, affine=True, track_running_stats=True)), "3, field 'kinds'"),
    ],
    ids=[
        "other-network",
        "other-size",
        "other-type",
        "one-layer-more",
        "other-dtype",
        "other-geometry",
        "other-norm",
        "norm-with-the-same-tensors",
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    other: Callable[[], nn.Module], message: str, file: Path
) -> None:
    with pytest.raises(rsn2.CheckpointError, match=message):
        rsn2.load(file, model=other())


def test_a_state_dict_whose_values_do_not_fit_its_planes_changes_nothing_in_the_layer() -> None:
    state = trained().state_dict()
    state["2.values.0"] = state["2.values.0"][:-1]
    layer = allocated("shapes", seed=5)[2]
    before = snapshot(layer)
    inner = {key.removeprefix("2."): value for key, value in state.items() if key.startswith("2.")}
    with pytest.raises(ValueError, match=r"values.0: expected shape \(384,\), as its planes say"):
        layer.load_state_dict(inner)
    assert_same(before, snapshot(layer))


def test_a_module_under_two_names_round_trips(tmp_path: Path) -> None:
    def twice() -> nn.Module:
        shared = nn.Linear(8, 8)
        return nn.ModuleDict({"first": shared, "second": shared})

    model = rsn2.convert(twice())
    rsn2.allocate(model, "a", 0.5, criterion="magnitude")
    rsn2.save(model, tmp_path / "net.safetensors")
    loaded = rsn2.load(tmp_path / "net.safetensors", twice())
    assert loaded["first"] is loaded["second"]
    assert_same(snapshot(model), snapshot(loaded))
    assert describe(tmp_path / "net.safetensors").nbytes == rsn2.report(model).nbytes


def test_a_compiled_network_is_saved_as_the_network_it_compiles(model: nn.Module, tmp_path: Path) -> None:
    rsn2.save(torch.compile(model), tmp_path / "net.safetensors")
    assert_same(snapshot(model), snapshot(rsn2.load(tmp_path / "net.safetensors", plain_network(9))))


def test_a_network_is_loaded_into_one_that_is_compiled(model: nn.Module, file: Path) -> None:
    assert_same(snapshot(model), snapshot(rsn2.load(file, torch.compile(plain_network(9)))))


@pytest.mark.parametrize("place", [2, 3, 8], ids=["linear", "norm", "convolution"])
def test_hooks_that_would_be_lost_are_refused(place: int, file: Path) -> None:
    plain = plain_network()
    plain[place].register_forward_hook(lambda *_: None)
    before = list(plain.modules())
    with pytest.raises(ValueError, match=f"^{place}: it has hooks"):
        rsn2.load(file, plain)
    assert list(plain.modules()) == before


def test_hooks_of_what_stays_and_of_converted_layers_are_kept(file: Path) -> None:
    for other in (plain_network(), network()):
        seen: list[int] = []
        other[9 if type(other[2]) is nn.Linear else 2].register_forward_hook(lambda *_, seen=seen: seen.append(1))
        rsn2.predict(rsn2.load(file, other), "shapes", samples("shapes")[0])
        assert seen == [1]


def test_a_network_without_values_is_no_place_for_them(file: Path) -> None:
    with pytest.raises(ValueError, match=r'^model: expected .* a device that holds values. Got one on "meta"'):
        rsn2.load(file, plain_network().to("meta"))


def test_a_folder_that_is_not_there_is_named(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"^path: there is no folder '{tmp_path / 'none'}'"):
        rsn2.save(model, tmp_path / "none" / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(file: Path, model: nn.Module) -> None:
    before = file.read_bytes()
    with pytest.raises(TypeError):
        rsn2.save(model, file, {"not": object()})
    with pytest.raises(rsn2.CheckpointError, match="multitask layers"):
        rsn2.save(nn.Linear(2, 2), file)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


class Counting(nn.Linear):
    """A layer that keeps a tensor which is neither parameter nor buffer."""

    def get_extra_state(self) -> Tensor:
        return torch.zeros(())

    def set_extra_state(self, state: Tensor) -> None:
        pass


@pytest.mark.parametrize("per_task", [(), ("1",)])
def test_a_tensor_that_is_no_parameter_or_buffer_is_named(per_task: tuple[str, ...], tmp_path: Path) -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(4, 4), Counting(4, 4)), per_task=per_task)
    with pytest.raises(rsn2.CheckpointError, match=r"^1\..*_extra_state: expected .* Got Tensor of Counting"):
        rsn2.save(model, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_load_and_save_give_back_record_and_tensors(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(10, 4), nn.LayerNorm(4))

    model = rsn2.convert(build())
    for number in range(10):
        rsn2.allocate(model, f"t{number * 7 % 10}", 0.1, criterion="magnitude")
    first, second = tmp_path / "first", tmp_path / "second"
    rsn2.save(model, first)
    rsn2.save(rsn2.load(first, build()), second)
    # Not the bytes: safetensors writes the entries of its header in any order.
    with safe_open(first, "pt") as one, safe_open(second, "pt") as other:
        assert one.metadata() == other.metadata()
    assert_same(load_file(first), load_file(second))


def test_a_file_says_what_its_norms_compute(tmp_path: Path) -> None:
    def build(groups: int = 2, eps: float = 1e-5) -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(groups, 4, eps=eps), nn.LayerNorm(3, eps=eps))

    path = tmp_path / "net.safetensors"
    for exclude in ([], ["1", "2"]):
        model = rsn2.convert(build(), exclude=exclude)
        rsn2.allocate(model, "a", 0.5, criterion="random")
        rsn2.save(model, path)
        assert_same(snapshot(model), snapshot(rsn2.load(path, build())))
        for other in ({"groups": 4}, {"eps": 1e-3}):
            with pytest.raises(rsn2.CheckpointError, match=r"^module '1.*: the file has .*num_groups.*, the model "):
                rsn2.load(path, build(**other))


def test_a_file_with_the_forms_of_attention_alone_is_read(model: nn.Module, file: Path) -> None:
    edit(file, lambda record, tensors: record.update(attention={}) or record.pop("forms"))
    assert_same(snapshot(model), snapshot(rsn2.load(file, plain_network())))


def test_a_layer_of_a_subclass_is_refused_before_it_is_written(tmp_path: Path) -> None:
    class Own(rsn2.nn.MultitaskLinear):
        pass

    with pytest.raises(rsn2.CheckpointError, match=r"^layer '0': expected one of .* Got a Own\."):
        rsn2.save(nn.Sequential(Own(4, 4)), tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_who_saves_waits_until_nobody_runs_the_network(model: nn.Module, tmp_path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def run() -> None:
        with rsn2.use_task(model, "shapes"):
            inside.set()
            leave.wait(60)

    path = tmp_path / "net.safetensors"
    threads = [threading.Thread(target=run), threading.Thread(target=rsn2.save, args=(model, path))]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive() and not path.exists()
    leave.set()
    for thread in threads:
        thread.join(60)
    assert path.exists()
