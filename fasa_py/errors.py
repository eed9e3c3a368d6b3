"""Exceptions of the package. Each also inherits the builtin that a caller would expect to catch."""


class FasaError(Exception):
    """Base of all errors that this package raises about models, files, devices and limits."""


class FormatError(FasaError, ValueError):
    """A file is damaged, is not what it claims to be, or belongs to another model."""


class UnsupportedError(FasaError, NotImplementedError):
    """An architecture, tensor type, tokenizer or device that this build does not implement."""


class OutOfMemoryError(FasaError, MemoryError):
    """Host or device memory does not suffice; the text says what was needed and what would fit."""


class ContextFullError(FasaError, ValueError):
    """A prompt does not fit in the context window (``n_ctx``)."""


class DeviceError(FasaError, RuntimeError):
    """A device reported a failure."""


class CancelledError(FasaError, RuntimeError):
    """Another thread stopped the call with ``Llama.cancel()``."""
