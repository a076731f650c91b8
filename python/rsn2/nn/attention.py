"""MultitaskMultiheadAttention: nn.MultiheadAttention for many tasks."""

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsn2.nn.linear import MultitaskLinear


class MultitaskMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` whose four projections hold many tasks.

    Takes the arguments of ``nn.MultiheadAttention`` but ``add_bias_kv`` and ``add_zero_attn``, and draws the weights as
    that does. Its one input projection of three is three layers here.

    Attributes:
        embed_dim, kdim, vdim, num_heads, head_dim, dropout, batch_first: as of ``nn.MultiheadAttention``.
        q_proj, k_proj, v_proj, out_proj: the projections, each a :class:`MultitaskLinear`, unless `convert` was told to
            leave it alone.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dense = nn.MultiheadAttention(
            embed_dim,
            num_heads,
            dropout,
            bias,
            kdim=kdim,
            vdim=vdim,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )
        self._take(dense, multitask=True)

    @classmethod
    def from_dense(cls, attention: nn.MultiheadAttention) -> Self:
        """Multitask attention whose pools are the weights of ``attention``.

        Raises:
            ValueError: if it was made with ``add_bias_kv`` or ``add_zero_attn``.
        """
        module = cls.__new__(cls)
        module._take(attention, multitask=True)
        return module

    @classmethod
    def opened(cls, attention: nn.MultiheadAttention) -> Self:
        """The same attention with its projections as ``nn.Linear``, for `convert` to replace."""
        module = cls.__new__(cls)
        module._take(attention, multitask=False)
        return module

    def _take(self, attention: nn.MultiheadAttention, multitask: bool) -> None:
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("attention with add_bias_kv or add_zero_attn has no multitask form.")
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = attention.embed_dim, attention.kdim, attention.vdim
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.dropout = attention.dropout
        self.batch_first = attention.batch_first
        for name, linear in _projections(attention).items():
            setattr(self, name, MultitaskLinear.from_dense(linear) if multitask else linear)
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as the active task.

        Args:
            query, key, value: ``[L, E]``, ``[S, kdim]``, ``[S, vdim]`` with any batch dimensions before them, the same
                for all three. With ``batch_first=False``, torch's default, three dimensions are ``[L, batch, E]``.
            key_padding_mask: ``[batch..., S]``; True, or -inf of a floating mask, where a key is padding.
            need_weights: also return the attention weights; without them the fused product runs.
            attn_mask: ``[L, S]``, ``[batch * heads, L, S]`` or ``[batch..., heads, L, S]``; True where a query must not
                attend, or floating and added to the scores.
            average_attn_weights: average the weights over the heads.
            is_causal: query i attends to keys up to i. Not looked at where ``attn_mask`` is given: that says it then.

        Returns:
            The output, of the shape of ``query``, and the weights ``[batch..., L, S]`` or ``[batch..., heads, L, S]``
            or None. A query that may attend to nothing attends to nothing: zeros, where torch may give NaN.

        Raises:
            ValueError: if a shape is none of these.
        """
        swapped = not self.batch_first and query.ndim == 3
        if swapped:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        _check_shapes(query, key, value)
        q, k, v = (
            projection(tensor).unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)
            for projection, tensor in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )  # each [batch..., heads, length, E / heads]
        causal = is_causal and attn_mask is None
        # The fused product needs no mask to be causal; with padding it needs one that says both.
        fused_causal = causal and key_padding_mask is None and not need_weights
        if causal and not fused_causal:
            attn_mask = causal_mask(q.shape[-2], k.shape[-2], q.device)
        mask = self._added(key_padding_mask, attn_mask, q, k)
        nothing = None if mask is None else (mask == -math.inf).all(-1, keepdim=True)
        if mask is not None and nothing is not None:
            mask = mask.masked_fill(nothing, 0.0)  # a softmax over nothing has no value and no gradient
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            weights = (scores if mask is None else scores + mask).softmax(-1)
            if nothing is not None:
                weights = weights.masked_fill(nothing, 0.0)
            weights = F.dropout(weights, dropout)
            heads = weights @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=fused_causal)
            if nothing is not None:
                heads = heads.masked_fill(nothing, 0.0)
        output: Tensor = self.out_proj(heads.transpose(-2, -3).flatten(-2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(-3)
        return output.transpose(0, 1) if swapped else output, weights

    def _added(self, padding: Tensor | None, attention: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores, broadcastable to ``[batch..., heads, L, S]``."""
        batch, length, keys = q.shape[:-3], q.shape[-2], k.shape[-2]
        total = None
        if attention is not None:
            allowed = (length, keys), (math.prod(batch) * self.num_heads, length, keys), (*q.shape[:-1], keys)
            if attention.shape not in allowed:
                raise ValueError(
                    f"attn_mask: expected shape {' or '.join(map(str, allowed))}. Got {tuple(attention.shape)}."
                )
            if attention.ndim == 3:
                attention = attention.view(*q.shape[:-1], keys)
            total = _additive(attention, q.dtype, "attn_mask")
        if padding is not None:
            if padding.shape != (*batch, keys):
                raise ValueError(f"key_padding_mask: expected shape {(*batch, keys)}. Got {tuple(padding.shape)}.")
            added = _additive(padding, q.dtype, "key_padding_mask")[..., None, None, :]
            total = added if total is None else total + added
        return None if total is None else total.expand(*q.shape[:-1], keys)

    def extra_repr(self) -> str:
        """Sizes, for `print`."""
        return f"{self.embed_dim}, heads={self.num_heads}, dropout={self.dropout}, batch_first={self.batch_first}"


def causal_mask(length: int, keys: int, device: torch.device) -> Tensor:
    """Bool ``[length, keys]``, True where a query would attend to a later key."""
    return torch.ones(length, keys, dtype=torch.bool, device=device).triu(1)


def _additive(mask: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise ValueError(f"{name}: expected a bool or floating mask. Got {mask.dtype}.")
    return mask.to(dtype)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
    if query.ndim < 2 or not shapes[0][:-2] == shapes[1][:-2] == shapes[2][:-2] or shapes[1][-2] != shapes[2][-2]:
        raise ValueError(
            "query, key, value: expected [batch..., length, features] with equal batch dimensions, keys and values of "
            f"one length. Got {shapes} with the batch in front."
        )


def _projections(attention: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """The four projections as layers of their own."""
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    else:
        weights = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
    biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    out = attention.out_proj
    named = dict(zip(("q_proj", "k_proj", "v_proj"), zip(weights, biases, strict=True), strict=True))
    return {name: _linear(*pair) for name, pair in (named | {"out_proj": (out.weight, out.bias)}).items()}


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear
