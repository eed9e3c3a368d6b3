"""How alike are the dominant sets of several calibrations? A matrix of mean overlaps, in percent.

python bench/overlap.py A.gguf B.gguf ... [--n-tip 16] [--criterion mass]
"""

import argparse
from pathlib import Path

import numpy as np

from fasa_py import GGUF


def dominant(path: Path, criterion: str, n_tip: int) -> np.ndarray:
    """Which chunks of each layer and KV head are dominant, bool (n_layer, n_head_kv, n_chunk)."""
    metadata = GGUF(path).metadata
    if "fasa.ca_scores" not in metadata:
        raise SystemExit(f"{path} carries no calibration table")
    arch = metadata["general.architecture"]
    n_layer, n_head, n_head_kv = (
        int(metadata[f"{arch}.{key}"]) for key in ("block_count", "attention.head_count", "attention.head_count_kv")
    )
    n_chunk = int(metadata["fasa.n_chunk"])
    if criterion == "mass":
        order = np.asarray(metadata["fasa.chunk_order"], np.int64).reshape(n_layer, n_head_kv, n_chunk)
    else:
        ca = np.asarray(metadata["fasa.ca_scores"]).reshape(n_layer, n_head_kv, n_head // n_head_kv, n_chunk)
        order = np.argsort(-ca.mean(axis=2), axis=2, kind="stable")
    marked = np.zeros(order.shape, bool)
    np.put_along_axis(marked, order[:, :, :n_tip], True, axis=2)
    return marked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--n-tip", type=int, default=16)
    parser.add_argument("--criterion", choices=["ca", "mass"], default="ca")
    args = parser.parse_args()
    sets = [dominant(path, args.criterion, args.n_tip) for path in args.files]
    print("| |" + "|".join(f" {path.stem} " for path in args.files) + "|")
    print("|" + " --- |" * (len(sets) + 1))
    for path, a in zip(args.files, sets, strict=True):
        print(f"| {path.stem} |" + "|".join(f" {100 * (a & b).sum() / a.sum():.0f} " for b in sets) + "|")


if __name__ == "__main__":
    main()
