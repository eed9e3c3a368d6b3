"""The table of task families. ``quote`` has no facts of its own: document.py asks about the book text itself."""

from .facts import Family
from .listing import items, runsum
from .reasoning import fewshot, vartrack
from .retrieval import kv, multikey, multivalue, passkey
from .tracking import count, where

FACT_FAMILIES: dict[str, Family] = {
    "passkey": passkey,
    "multikey": multikey,
    "multivalue": multivalue,
    "vartrack": vartrack,
    "kv": kv,
    "fewshot": fewshot,
    "items": items,
    "runsum": runsum,
    "count": count,
    "where": where,
}
QUOTE = "quote"

# All families and how often training draws each; the order is part of the seeded generator.
TRAINING_WEIGHTS = {
    "passkey": 0.6,
    "multikey": 2.2,
    "multivalue": 1.0,
    "vartrack": 1.2,
    "kv": 1.3,
    QUOTE: 1.0,
    "fewshot": 0.8,
    "items": 1.5,
    "runsum": 1.2,
    "count": 1.0,
    "where": 0.7,
}
FAMILIES = list(TRAINING_WEIGHTS)
