"""Evaluation of attention methods: how well a model answers, predicts and recalls when decoding attends to less.

>>> import fasa_py.eval
>>> records = fasa_py.eval.run("model.gguf", methods=["dense", "fasa-mass", "quest"], lengths=[8192], out="results")
>>> print(fasa_py.eval.markdown(records))
"""

from .report import markdown, summary
from .run import run
from .session import NotEngagedError

__all__ = ["NotEngagedError", "markdown", "run", "summary"]
