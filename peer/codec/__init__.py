"""Vectors <-> bytes: the wire formats of model messages."""

from peer.codec.formats import (
    Bytes,
    Format,
    bytes_of,
    copy,
    decode,
    default_format,
    encode,
    is_finite,
    loses_nothing,
    roundtrip,
    tensor_of,
)

__all__ = [
    "Bytes",
    "Format",
    "bytes_of",
    "copy",
    "decode",
    "default_format",
    "encode",
    "is_finite",
    "loses_nothing",
    "roundtrip",
    "tensor_of",
]
