"""Wire formats: flat vectors <-> bytes, little endian, one IEEE 754 or bfloat16 value an element.

A vector is encoded chunk by chunk, and where the wire format equals the vector's dtype no value
is touched: encoding is a view and decoding a copy of bytes. Values too large for float16 or
bfloat16 become infinite on the sender's side; the receiver finds them as it decodes, and
answers NOT_FINITE, so an overflow is an error that is seen and never a silently wrong model.
"""

from __future__ import annotations

import sys
import warnings
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import Tensor

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("relayswarm's wire formats are little endian and so must this machine be")


Bytes: TypeAlias = bytes | bytearray | memoryview

MOVED_BYTES = 1 << 16  # of less a copy takes about as long whoever makes it


class Format(Enum):
    """A wire format; the value is its name in a run config."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype whose memory layout is this format."""
        return _DTYPES[self]

    @property
    def itemsize(self) -> int:
        """Bytes for each element."""
        return _DTYPES[self].itemsize


_DTYPES = {
    Format.FLOAT64: torch.float64,
    Format.FLOAT32: torch.float32,
    Format.BFLOAT16: torch.bfloat16,
    Format.FLOAT16: torch.float16,
}


def default_format(dtype: torch.dtype) -> Format:
    """The format of a run that names none: float64 for float64 models, else float32."""
    return Format.FLOAT64 if dtype == torch.float64 else Format.FLOAT32


def tensor_of(memory: memoryview, fmt: Format) -> Tensor:
    """Writable, aligned memory as elements in a format, shape (its bytes / itemsize,)."""
    return torch.frombuffer(memory, dtype=fmt.dtype)


def encode(chunk: Tensor, fmt: Format) -> memoryview:
    """Bytes of a chunk, shape (k,) on any device: a view of k * itemsize bytes.

    Without conversion the view shares the chunk's memory: use it up before the chunk changes.
    """
    wire = chunk.detach().to(device="cpu", dtype=fmt.dtype).contiguous()
    return bytes_of(wire)


def decode(data: Bytes, fmt: Format, out: Tensor) -> bool:
    """Write encoded elements into `out`, shape (k,), contiguous and on the CPU; returns whether
    all are finite there.

    `data` must hold exactly k elements; anything else is a ValueError.
    """
    source = memoryview(data).cast("B")
    if source.nbytes != out.numel() * fmt.itemsize:
        raise ValueError(f"{source.nbytes} bytes are not {out.numel()} elements of {fmt.value}")
    if not source.nbytes:
        return True
    elements = _read_in_place(source, fmt.dtype)
    if fmt.dtype != out.dtype:
        return is_finite(out.copy_(elements))
    finite = is_finite(elements)  # which were just looked at, and `out` is not in any cache
    copy(out, elements)
    return finite


def roundtrip(vector: Tensor, fmt: Format) -> Tensor:
    """What a receiver gets when `vector` is sent: bit-identical to encode, then decode.

    Returns `vector` itself where the format loses nothing.
    """
    return vector if loses_nothing(vector.dtype, fmt) else vector.to(fmt.dtype).to(vector.dtype)


def loses_nothing(dtype: torch.dtype, fmt: Format) -> bool:
    """Whether each value of that dtype is one of the format's: it is the same, or has more bits."""
    return dtype == fmt.dtype or fmt.itemsize > dtype.itemsize


def is_finite(vector: Tensor) -> bool:
    """True if no element is NaN or infinite."""
    # One pass decides nearly always: a NaN or infinity cannot leave a finite sum. Only a sum
    # that overflowed by itself needs the second look.
    if bool(torch.isfinite(vector.sum())):
        return True
    return bool(torch.isfinite(vector).all())


def _read_in_place(source: memoryview, dtype: torch.dtype) -> Tensor:
    """Bytes as a vector of that dtype, in the same memory if it is aligned. Not to be written to:
    torch cannot tell."""
    raw = torch.frombuffer(source, dtype=torch.uint8)
    aligned = raw if raw.data_ptr() % dtype.itemsize == 0 else raw.clone()
    return aligned.view(dtype)


with warnings.catch_warnings(action="ignore"):  # torch says once that it could write to bytes
    torch.frombuffer(b"relayswarm", dtype=torch.uint8)


def copy(out: Tensor, source: Tensor) -> None:
    """What `out.copy_(source)` does, both of shape (k,). torch's kernel first reads the memory that
    it overwrites; the C library's, which numpy calls, does not where the processor allows it."""
    alike = out.dtype == source.dtype and out.device.type == source.device.type == "cpu"
    if not alike or out.nbytes < MOVED_BYTES:
        out.copy_(source)
        return
    into: Any = out.detach().view(torch.uint8).numpy()
    into[...] = source.detach().view(torch.uint8).numpy()


def bytes_of(vector: Tensor) -> memoryview:
    """The memory of a contiguous CPU vector, shape (k,), as k * itemsize bytes."""
    buffer: Any = vector.view(torch.uint8).numpy()  # numpy's types say Buffer from 3.12 on
    return memoryview(buffer)
