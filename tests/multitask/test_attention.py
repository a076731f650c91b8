"""Multitask attention and encoders compute what torch's do with the same weights, masks included."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rsn2
from networks import assert_same, snapshot
from rsn2.nn import (
    MultitaskLinear,
    MultitaskMultiheadAttention,
    MultitaskTransformerEncoder,
    MultitaskTransformerEncoderLayer,
    PerTask,
)
from sealed_files import edit

E, HEADS, BATCH, L, S = 12, 3, 4, 5, 7
# The projections of a torch module are one product or another, and sums come in another order; float64 leaves 1e-15.
DTYPE = torch.float64


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(DTYPE)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def with_full_density(model: nn.Module) -> nn.Module:
    """The network with all weights given to task "t"."""
    rsn2.allocate(model, "t", 1.0, criterion="magnitude")
    return model


def attention_pair(
    density: float = 1.0, **options: object
) -> tuple[nn.MultiheadAttention, MultitaskMultiheadAttention]:
    """Multitask attention with a task, and torch's with that task's expanded weights."""
    dense = nn.MultiheadAttention(E, HEADS, **options)  # type: ignore[arg-type]
    if dense.in_proj_bias is not None:
        nn.init.normal_(dense.in_proj_bias)
        nn.init.normal_(dense.out_proj.bias)
    sparse = MultitaskMultiheadAttention.from_dense(dense)
    rsn2.allocate(sparse, "t", density, criterion="random")
    weights = [layer.dense_weight("t") for layer in (sparse.q_proj, sparse.k_proj, sparse.v_proj)]
    with torch.no_grad():
        if dense.in_proj_weight is not None:
            dense.in_proj_weight.copy_(torch.cat(weights))
        else:
            for name, weight in zip("qkv", weights, strict=True):
                getattr(dense, f"{name}_proj_weight").copy_(weight)
        dense.out_proj.weight.copy_(sparse.out_proj.dense_weight("t"))
    return dense, sparse


@contextmanager
def torch_without_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def compare(dense: nn.Module, sparse: nn.Module, *inputs: Tensor, **options: object) -> None:
    with rsn2.use_task(sparse, "t"), torch_without_fast_path():
        found, found_weights = sparse(*inputs, **options)
        expected, expected_weights = dense(*inputs, **options)
        torch.testing.assert_close(found, expected)
        if options.get("need_weights", True):
            torch.testing.assert_close(found_weights, expected_weights)
        else:
            assert found_weights is None


def padding() -> Tensor:
    """True behind the first 7, 3, 1 and 5 keys."""
    return torch.arange(S) >= torch.tensor([7, 3, 1, 5])[:, None]


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, -math.inf)


BOOL = torch.rand(L, S, generator=torch.Generator().manual_seed(1)) < 0.4
BOOL[:, 0] = False
BY_HEAD = torch.rand(BATCH * HEADS, L, S, generator=torch.Generator().manual_seed(2)) < 0.4
BY_HEAD[:, :, 0] = False
MASKS = {
    "none": {},
    "padding": {"key_padding_mask": padding()},
    "attention": {"attn_mask": BOOL},
    "attention-by-head": {"attn_mask": BY_HEAD},
    "both": {"attn_mask": BOOL, "key_padding_mask": padding()},
    "both-by-head": {"attn_mask": BY_HEAD, "key_padding_mask": padding()},
    "floating": {"attn_mask": torch.randn(L, S, generator=torch.Generator().manual_seed(3), dtype=DTYPE)},
    "causal": {"attn_mask": torch.ones(L, S, dtype=torch.bool).triu(1), "is_causal": True},
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_attention_is_torch_s_with_the_expanded_weights(
    masks: dict[str, object], need_weights: bool, batch_first: bool, density: float
) -> None:
    dense, sparse = attention_pair(density, batch_first=batch_first)
    query, key, value = torch.randn(BATCH, L, E), torch.randn(BATCH, S, E), torch.randn(BATCH, S, E)
    inputs = (query, key, value) if batch_first else tuple(x.transpose(0, 1) for x in (query, key, value))
    compare(dense, sparse, *inputs, **masks, need_weights=need_weights)


@pytest.mark.parametrize("options", [{"bias": False}, {"kdim": 6, "vdim": 10}, {"kdim": 6}], ids=str)
@pytest.mark.parametrize("average", [True, False])
def test_sizes_of_keys_and_values_and_missing_biases(options: dict[str, object], average: bool) -> None:
    dense, sparse = attention_pair(0.5, batch_first=True, **options)
    key, value = (torch.randn(BATCH, S, options.get(name, E)) for name in ("kdim", "vdim"))  # type: ignore[arg-type]
    compare(dense, sparse, torch.randn(BATCH, L, E), key, value, average_attn_weights=average)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_without_a_batch_dimension(need_weights: bool, batch_first: bool) -> None:
    dense, sparse = attention_pair(0.5, batch_first=batch_first)
    inputs = torch.randn(L, E), torch.randn(S, E), torch.randn(S, E)
    masks = {"key_padding_mask": padding()[1], "attn_mask": BY_HEAD[:HEADS]}
    compare(dense, sparse, *inputs, **masks, need_weights=need_weights)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch", [(2, 3), (2, 1, 2), (0,)], ids=str)
def test_any_batch_dimensions_are_those_of_one(need_weights: bool, batch: tuple[int, ...]) -> None:
    _, sparse = attention_pair(0.5, batch_first=True)
    size = math.prod(batch)
    query, key = torch.randn(*batch, L, E), torch.randn(*batch, S, E)
    mask = torch.rand(*batch, S) < 0.4
    mask[..., 0] = False
    by_head = torch.rand(*batch, HEADS, L, S) < 0.2
    by_head[..., 0] = False
    options = {"need_weights": need_weights}
    with rsn2.use_task(sparse, "t"):
        found, weights = sparse(query, key, key, key_padding_mask=mask, attn_mask=by_head, **options)
        expected, expected_weights = sparse(
            query.reshape(size, L, E),
            key.reshape(size, S, E),
            key.reshape(size, S, E),
            key_padding_mask=mask.reshape(size, S),
            attn_mask=by_head.reshape(size * HEADS, L, S),
            **options,
        )
    torch.testing.assert_close(found, expected.view(*batch, L, E))
    if need_weights:
        torch.testing.assert_close(weights, expected_weights.view(*batch, L, S))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("with_padding", [True, False])
def test_causal_needs_no_mask(need_weights: bool, with_padding: bool) -> None:
    _, sparse = attention_pair(0.5, batch_first=True)
    x = torch.randn(BATCH, S, E)
    options = {"need_weights": need_weights, "key_padding_mask": padding() if with_padding else None}
    with rsn2.use_task(sparse, "t"):
        found, _ = sparse(x, x, x, is_causal=True, **options)
        expected, _ = sparse(x, x, x, attn_mask=torch.ones(S, S, dtype=torch.bool).triu(1), **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_query_that_may_attend_to_nothing_gives_zeros_and_finite_gradients(need_weights: bool) -> None:
    _, sparse = attention_pair(0.5, batch_first=True)
    x = torch.randn(2, S, E, requires_grad=True)
    mask = torch.zeros(2, S, dtype=torch.bool)
    mask[1] = True
    with rsn2.use_task(sparse, "t"):
        output, weights = sparse(x, x, x, key_padding_mask=mask, need_weights=need_weights)
    torch.testing.assert_close(output[1], sparse.out_proj.biases["0"].expand(S, E))
    output.sum().backward()
    assert bool(x.grad.isfinite().all()) and not bool(x.grad[1].any())
    assert weights is None or not bool(weights[1].any())


@pytest.mark.parametrize("need_weights", [True, False])
def test_gradients_are_torch_s(need_weights: bool) -> None:
    dense, sparse = attention_pair(0.4, batch_first=True)
    x = torch.randn(BATCH, S, E)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    with rsn2.use_task(sparse, "t"):
        sparse(*[inputs[0]] * 3, key_padding_mask=padding(), need_weights=need_weights)[0].square().sum().backward()
    dense(*[inputs[1]] * 3, key_padding_mask=padding(), need_weights=need_weights)[0].square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for name, gradient in zip("qkv", dense.in_proj_weight.grad.chunk(3), strict=True):
        layer = getattr(sparse, f"{name}_proj")
        torch.testing.assert_close(layer.values["0"].grad, gradient[layer.owners.mask(0)])


def test_dropout_acts_in_training_alone_and_on_both_paths() -> None:
    _, sparse = attention_pair(batch_first=True, dropout=0.5)
    x = torch.randn(BATCH, S, E)
    with rsn2.use_task(sparse, "t"):
        for need_weights in (True, False):
            outputs = [sparse.train(mode)(x, x, x, need_weights=need_weights)[0] for mode in (True, True, False, False)]
            assert not torch.equal(outputs[0], outputs[1])
            assert torch.equal(outputs[2], outputs[3])


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([(2, L, E), (3, S, E), (3, S, E)], {}, "equal batch dimensions"),
        ([(2, L, E), (2, S, E), (2, L, E)], {}, "keys and values of one length"),
        ([(E,), (E,), (E,)], {}, "query, key, value: expected"),
        ([(2, L, E), (2, S, E), (2, S, E)], {"attn_mask": torch.zeros(S, L)}, r"attn_mask: expected shape \(5, 7\) or"),
        ([(2, L, E), (2, S, E), (2, S, E)], {"key_padding_mask": torch.zeros(2, L)}, r"expected shape \(2, 7\)"),
        ([(2, L, E), (2, S, E), (2, S, E)], {"attn_mask": torch.zeros(L, S).int()}, "a bool or floating mask"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    shapes: list[tuple[int, ...]], options: dict[str, Tensor], message: str
) -> None:
    _, sparse = attention_pair(batch_first=True)
    with rsn2.use_task(sparse, "t"), pytest.raises(ValueError, match=message):
        sparse(*[torch.zeros(shape) for shape in shapes], **options)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("form", ["layer", "encoder", "encoder-with-norm"])
def test_a_converted_encoder_is_torch_s(norm_first: bool, batch_first: bool, activation: str, form: str) -> None:
    def build() -> nn.Module:
        torch.manual_seed(1)
        layer = nn.TransformerEncoderLayer(
            E, HEADS, 20, norm_first=norm_first, batch_first=batch_first, activation=activation
        )
        if form == "layer":
            return layer
        norm = nn.LayerNorm(E) if form == "encoder-with-norm" else None
        return nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)

    dense, sparse = build().eval(), with_full_density(rsn2.convert(build().eval()))
    assert type(sparse) is (MultitaskTransformerEncoderLayer if form == "layer" else MultitaskTransformerEncoder)
    assert not any(type(module) is nn.Linear for module in sparse.modules())
    x = torch.randn(BATCH, S, E) if batch_first else torch.randn(S, BATCH, E)
    causal = torch.ones(S, S, dtype=torch.bool).triu(1)
    with rsn2.use_task(sparse, "t"), torch_without_fast_path():
        for mask in (None, causal):
            torch.testing.assert_close(
                sparse(x, mask, src_key_padding_mask=padding()), dense(x, mask, src_key_padding_mask=padding())
            )
        torch.testing.assert_close(sparse(x, is_causal=True), dense(x, causal))
        if form != "layer":
            torch.testing.assert_close(sparse(x, is_causal=None), dense(x, is_causal=None))


def test_layers_made_without_a_dense_one_draw_torch_s_weights() -> None:
    torch.manual_seed(3)
    layer = MultitaskTransformerEncoderLayer(E, HEADS, 20, batch_first=True)
    torch.manual_seed(3)
    dense = nn.TransformerEncoderLayer(E, HEADS, 20, batch_first=True).eval()
    x = torch.randn(BATCH, S, E)
    with_full_density(layer.eval())
    with rsn2.use_task(layer, "t"), torch_without_fast_path():
        torch.testing.assert_close(layer(x), dense(x))
    encoder = with_full_density(MultitaskTransformerEncoder.from_dense(nn.TransformerEncoder(dense, 2)))
    with rsn2.use_task(encoder, "t"):
        assert encoder(x).shape == x.shape


def plain_classifier() -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, HEADS, 20, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(50, E), encoder, nn.Flatten(), nn.Linear(S * E, 3))


def test_convert_carries_weights_and_tasks_train_apart(tmp_path: Path) -> None:
    plain = plain_classifier()
    in_proj = plain[1].layers[0].self_attn.in_proj_weight.detach().clone()
    model = rsn2.convert(plain, per_task=["0", "3"])
    attention = model[1].layers[0].self_attn
    assert type(attention) is MultitaskMultiheadAttention
    assert torch.equal(torch.cat([attention.q_proj.pool, attention.k_proj.pool, attention.v_proj.pool]), in_proj)
    data = torch.randint(50, (16, S)), torch.randint(3, (16,))
    loss = nn.functional.cross_entropy
    for task in ("a", "b"):
        rsn2.allocate(model, task, 0.4, loss, [data])
    first = [parameter.detach().clone() for parameter in rsn2.parameters(model, "a")]
    rsn2.fit(model, "b", data, loss=loss, epochs=2, batch_size=8)
    assert all(map(torch.equal, first, rsn2.parameters(model, "a")))
    rsn2.save(model, tmp_path / "net.safetensors")
    again = rsn2.load(tmp_path / "net.safetensors", plain_classifier())
    assert_same(snapshot(model), snapshot(again))
    for task in ("a", "b"):
        assert torch.equal(rsn2.predict(model, task, data[0]), rsn2.predict(again, task, data[0]))
    assert "1.layers.1.self_attn.out_proj" in {layer.name for layer in rsn2.report(model).layers}


@pytest.mark.parametrize("dense_part", ["1.layers.0.self_attn", "1.layers.0", "1.layers.0.self_attn.out_proj"])
@pytest.mark.parametrize("way", ["per_task", "exclude"])
def test_parts_of_an_encoder_can_stay_dense(dense_part: str, way: str, tmp_path: Path) -> None:
    options = {way: ["0", dense_part]}
    model = rsn2.convert(plain_classifier(), **options)
    part = model.get_submodule(dense_part)
    assert type(part) is PerTask if way == "per_task" else not isinstance(part, PerTask | MultitaskLinear)
    assert type(model[1].layers[1].self_attn.q_proj) is MultitaskLinear
    data = torch.randint(50, (16, S)), torch.randint(3, (16,))
    rsn2.allocate(model, "a", 0.4, nn.functional.cross_entropy, [data])
    rsn2.save(model, tmp_path / "net.safetensors")
    again = rsn2.load(tmp_path / "net.safetensors", plain_classifier())
    assert_same(snapshot(model), snapshot(again))
    assert torch.equal(rsn2.predict(model, "a", data[0]), rsn2.predict(again, "a", data[0]))


@pytest.mark.parametrize("way", ["multitask", "per_task", "exclude"])
@pytest.mark.parametrize(
    ("field", "attention", "layer"),
    [
        ("num_heads", (12, 6), {}),
        ("batch_first", (12, 3), {"batch_first": False}),
        ("norm_first", (12, 3), {"norm_first": True}),
    ],
)
def test_a_file_says_what_its_attention_computes(
    way: str, field: str, attention: tuple[int, int], layer: dict[str, bool], tmp_path: Path
) -> None:
    """The tensors are the same, so that only the record can tell."""

    def build(width: int = E, heads: int = HEADS, **options: bool) -> nn.Module:
        options = {"batch_first": True} | options
        return nn.Sequential(nn.Linear(width, width), nn.TransformerEncoderLayer(width, heads, 20, **options))

    part = "1" if field == "norm_first" else "1.self_attn"
    model = rsn2.convert(build(), **({} if way == "multitask" else {way: [part]}))
    rsn2.allocate(model, "a", 0.5, criterion="random")
    path = tmp_path / "net.safetensors"
    rsn2.save(model, path)
    assert_same(snapshot(model), snapshot(rsn2.load(path, build())))
    with pytest.raises(rsn2.CheckpointError, match=f"^module '{part}.*: the file has .*{field}.*, the model .*{field}"):
        rsn2.load(path, build(*attention, **layer))
    edit(path, lambda record, tensors: record.pop("forms"))
    assert_same(snapshot(model), snapshot(rsn2.load(path, build())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net[1].layers[0].self_attn.register_forward_hook(print), "1.layers.0.self_attn: it has hooks"),
        (lambda net: net[1].layers[1].register_forward_hook(print), "1.layers.1: it has hooks"),
        (lambda net: net[1].layers[1].self_attn.requires_grad_(False), "1.layers.1.self_attn: it is frozen"),
        (lambda net: net.append(nn.ConvTranspose1d(1, 1, 1)), "4: ConvTranspose1d has no multitask form"),
        (lambda net: net.append(nn.MultiheadAttention(4, 2, add_bias_kv=True)), "4: attention with add_bias_kv"),
    ],
)
def test_an_encoder_that_cannot_be_converted_stays_as_it_was(change, message: str) -> None:  # type: ignore[no-untyped-def]
    model = plain_classifier()
    change(model)
    before = list(model.modules())
    with pytest.raises(ValueError, match=message):
        rsn2.convert(model, per_task=["0"])
    assert list(model.modules()) == before


def test_layers_of_other_classes_are_called_by_torch_s_names() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn, self.out = nn.MultiheadAttention(E, HEADS, batch_first=True), nn.Linear(E, E)

        def forward(
            self,
            src: Tensor,
            src_key_padding_mask: Tensor | None = None,
            src_mask: Tensor | None = None,
            *,
            is_causal: bool = False,
        ) -> Tensor:
            options = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
            result: Tensor = src + self.out(self.self_attn(src, src, src, need_weights=False, **options)[0])
            return result

    dense = nn.TransformerEncoder(Layer(), 2, enable_nested_tensor=False)
    sparse = with_full_density(rsn2.convert(copy.deepcopy(dense)))
    x = torch.randn(S, S, E)  # as many samples as positions, so that either mask would fit as the other
    causal = torch.ones(S, S, dtype=torch.bool).triu(1)
    with rsn2.use_task(sparse, "t"):
        torch.testing.assert_close(sparse(x, mask=causal), dense(x, mask=causal))
