"""How constants lie in a file."""

from typing import Any

import numpy as np

_ALIGNMENT = 16


def packed_4_bits(integers: np.ndarray) -> bytes:
    """Integers in [-8, 7], two in a byte, the first in the lower half."""
    flat = integers.astype(np.int8).reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.int8(0))
    halves = (flat & 15).astype(np.uint8)
    return bytes((halves[0::2] | (halves[1::2] << 4)).tobytes())


def aligned(buffer: Any) -> Any:
    """The same buffer, which writes its data at a multiple of 16 bytes."""
    from ai_edge_litert import schema_py_generated as schema

    class Aligned(schema.BufferT):
        def Pack(self, builder: Any) -> Any:
            data = None if self.data is None or len(self.data) == 0 else bytes(self.data)
            if data is not None:
                builder.Prep(_ALIGNMENT, len(data))
                vector = builder.CreateByteVector(data)
            schema.BufferStart(builder)
            if data is not None:
                schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    made = Aligned()
    made.data = buffer.data
    return made
