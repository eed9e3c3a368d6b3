"""Text generation from GGUF models on one machine, for long contexts.

>>> import fasa_py
>>> llm = fasa_py.Llama("model.gguf")
>>> print(llm.generate("Once upon a time", max_tokens=40))
"""

from importlib.metadata import PackageNotFoundError, version

from .calibration import CalibrationTable, calibrate
from .chat import ChatTemplate
from .errors import (
    CancelledError,
    ContextFullError,
    DeviceError,
    FasaError,
    FormatError,
    OutOfMemoryError,
    UnsupportedError,
)
from .generation import Completion, Sparsity, Timings, TokenLogprob, Usage
from .gguf import GGUF
from .llama import Llama, TextStream
from .method import Method
from .model import Plan
from .planning import plan
from .tokenizer import Tokenizer

try:
    __version__ = version("fasa_py")
except PackageNotFoundError:  # run from a checkout
    from .model import build_info

    __version__ = build_info().version

__all__ = [
    "GGUF",
    "CalibrationTable",
    "CancelledError",
    "ChatTemplate",
    "Completion",
    "ContextFullError",
    "DeviceError",
    "FasaError",
    "FormatError",
    "Llama",
    "Method",
    "OutOfMemoryError",
    "Plan",
    "Sparsity",
    "TextStream",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "UnsupportedError",
    "Usage",
    "__version__",
    "calibrate",
    "plan",
]
