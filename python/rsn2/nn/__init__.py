"""Layers that hold many tasks: shared sparse weights, and the small parts that each task keeps for itself."""

from rsn2.nn.attention import MultitaskMultiheadAttention
from rsn2.nn.conv import MultitaskConv1d, MultitaskConv2d, MultitaskConv3d
from rsn2.nn.layer import MultitaskLayer
from rsn2.nn.linear import MultitaskLinear
from rsn2.nn.per_task import (
    MultitaskBatchNorm1d,
    MultitaskBatchNorm2d,
    MultitaskLayerNorm,
    PerTask,
)
from rsn2.nn.transformer import MultitaskTransformerEncoder, MultitaskTransformerEncoderLayer

__all__ = [
    "MultitaskBatchNorm1d",
    "MultitaskBatchNorm2d",
    "MultitaskConv1d",
    "MultitaskConv2d",
    "MultitaskConv3d",
    "MultitaskLayer",
    "MultitaskLayerNorm",
    "MultitaskLinear",
    "MultitaskMultiheadAttention",
    "MultitaskTransformerEncoder",
    "MultitaskTransformerEncoderLayer",
    "PerTask",
]
