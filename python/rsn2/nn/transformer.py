"""Transformer encoders for many tasks: nn.TransformerEncoderLayer and the stack of them."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsn2.nn.attention import MultitaskMultiheadAttention, causal_mask
from rsn2.nn.linear import MultitaskLinear
from rsn2.nn.per_task import PerTask


class MultitaskTransformerEncoderLayer(nn.Module):
    """``nn.TransformerEncoderLayer``: attention and feed-forward layers hold many tasks, norms are each task's own.

    Takes the arguments of ``nn.TransformerEncoderLayer``, and draws the weights as that does. Its parts have the names
    that they have there.

    Attributes:
        self_attn: a :class:`MultitaskMultiheadAttention`, or whatever `convert` was told to make of it.
        linear1, linear2: the feed-forward layers, each a :class:`MultitaskLinear`.
        norm1, norm2: each a :class:`PerTask`.
    """

    self_attn: nn.Module
    linear1: nn.Module
    linear2: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    dropout: nn.Module
    dropout1: nn.Module
    dropout2: nn.Module
    activation: Callable[[Tensor], Tensor]

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dense = nn.TransformerEncoderLayer(
            d_model,
            nhead,
            dim_feedforward,
            dropout,
            activation,
            layer_norm_eps,
            batch_first,
            norm_first,
            bias,
            device,
            dtype,
        )
        self._take(dense)
        self._make_multitask(dense)

    @classmethod
    def from_dense(cls, layer: nn.TransformerEncoderLayer) -> Self:
        """A multitask layer whose pools are the weights of ``layer``."""
        module = cls.opened(layer)
        module._make_multitask(layer)
        return module

    @classmethod
    def opened(cls, layer: nn.TransformerEncoderLayer) -> Self:
        """The same layer around the same parts, for `convert` to replace them."""
        module = cls.__new__(cls)
        module._take(layer)
        return module

    def _take(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        # Not named_children, which would give a part that has two names once only.
        for name, part in layer._modules.items():
            if name != "activation":
                self.add_module(name, part)
        self.norm_first = layer.norm_first
        self.activation = layer.activation
        self.training = layer.training

    def _make_multitask(self, layer: nn.TransformerEncoderLayer) -> None:
        self.self_attn = MultitaskMultiheadAttention.from_dense(layer.self_attn)
        self.linear1 = MultitaskLinear.from_dense(layer.linear1)
        self.linear2 = MultitaskLinear.from_dense(layer.linear2)
        self.norm1, self.norm2 = PerTask(template=layer.norm1), PerTask(template=layer.norm2)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """The layer's output for the active task.

        Args:
            src: ``[L, E]`` with any batch dimensions before; ``[L, batch, E]`` with ``batch_first=False``.
            src_mask, src_key_padding_mask, is_causal: as ``attn_mask``, ``key_padding_mask`` and ``is_causal`` of
                :meth:`MultitaskMultiheadAttention.forward`.
        """
        x = src
        if self.norm_first:
            x = x + self._attend(self.norm1(x), src_mask, src_key_padding_mask, is_causal)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, src_mask, src_key_padding_mask, is_causal))
        output: Tensor = self.norm2(x + self._feed_forward(x))
        return output

    def _attend(self, x: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool) -> Tensor:
        if is_causal and mask is None and not isinstance(self.self_attn, MultitaskMultiheadAttention):
            # Torch's own attention, where it was left alone, takes is_causal as a hint about a mask that it wants too.
            part = self.self_attn.current if isinstance(self.self_attn, PerTask) else self.self_attn
            length = x.shape[0 if x.ndim == 3 and not getattr(part, "batch_first", True) else -2]
            mask = causal_mask(length, length, x.device)
        output, _ = self.self_attn(
            x, x, x, key_padding_mask=padding, need_weights=False, attn_mask=mask, is_causal=is_causal
        )
        dropped: Tensor = self.dropout1(output)
        return dropped

    def _feed_forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))
        return output


class MultitaskTransformerEncoder(nn.Module):
    """``nn.TransformerEncoder``: layers in turn, and a norm behind them if there is one.

    What it puts out at padded positions is what the layers compute there, in training and in evaluation: torch's fast
    path for evaluation gives zeros.

    Attributes:
        layers: the encoder layers.
        norm: what runs behind the last, or None.
    """

    def __init__(self, layers: nn.ModuleList, norm: nn.Module | None = None):
        super().__init__()
        self.layers = layers
        self.norm = norm

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @classmethod
    def from_dense(cls, encoder: nn.TransformerEncoder) -> Self:
        """A multitask encoder whose pools are the weights of ``encoder``."""
        layers = nn.ModuleList(MultitaskTransformerEncoderLayer.from_dense(layer) for layer in encoder.layers)
        return cls(layers, None if encoder.norm is None else PerTask(template=encoder.norm)).train(encoder.training)

    @classmethod
    def opened(cls, encoder: nn.TransformerEncoder) -> Self:
        """The same encoder around the same layers, for `convert` to replace them."""
        module = cls(encoder.layers, encoder.norm)
        module.training = encoder.training
        return module

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """The encoder's output for the active task; arguments as for one layer, and None for is_causal is False."""
        for layer in self.layers:
            # By name, as torch calls them: layers of other classes may take them in another order.
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal))
        return src if self.norm is None else self.norm(src)
