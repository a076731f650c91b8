"""Two repairs of Triton's interpreter, so that it computes bfloat16 as a GPU does.

It keeps bfloat16 as uint16. Version 3.6 multiplies these integers in `tl.dot`, and casts float32 to bfloat16 by cutting
bits off, where a GPU rounds to nearest even.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def repair() -> None:
    """Patch the interpreter of this process."""
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def converted(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(data.copy()).bfloat16().view(torch.uint16).numpy()
        return convert(data, source, target, rounding)

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        wide = converted(operand.data, tl.bfloat16, tl.float32, None).view(np.float32)
        return interpreter.TensorHandle(wide, tl.float32)

    def dot_of_widened(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    interpreter._convert_float = converted
    interpreter.InterpreterBuilder.create_dot = dot_of_widened
