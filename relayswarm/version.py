"""Which release this is; apart from the public face, which knows torch."""

__version__ = "0.1.0"
