"""Pack what the training machine needs: the training books in 32 shards, the held-out books, the tokenizer.

    python pack.py DATA PACKED MEGABYTES

Books are taken in a fixed random order while they fit into MEGABYTES of text; DATA/train_used.json lists them.
"""

import argparse
import bz2
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

N_SHARDS = 32
SEPARATOR = b"\0"


def choose(paths: list[Path], budget: int) -> list[Path]:
    """Books whose sizes sum up to at most ``budget`` bytes, in random order (always the same)."""
    order = sorted(paths)
    Random(7).shuffle(order)
    chosen, total = [], 0
    for path in order:
        size = path.stat().st_size
        if total + size <= budget:
            total += size
            chosen.append(path)
    return chosen


def shards(paths: list[Path]) -> list[list[bytes]]:
    """The books dealt out to ``N_SHARDS`` lists of about equal size."""
    lists: list[list[bytes]] = [[] for _ in range(N_SHARDS)]
    for path in paths:
        min(lists, key=lambda books: sum(map(len, books))).append(path.read_bytes())
    return lists


def _compress(target: Path, books: list[bytes]) -> None:
    target.write_bytes(bz2.compress(SEPARATOR.join(books), 9))


def unpack(path: Path) -> list[str]:
    """The books of one packed file."""
    return bz2.decompress(path.read_bytes()).decode().split(SEPARATOR.decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("packed", type=Path)
    parser.add_argument("megabytes", type=float)
    args = parser.parse_args()
    args.packed.mkdir(parents=True, exist_ok=True)
    used = choose(list((args.data / "train").glob("*.txt")), int(args.megabytes * 1e6))
    jobs = [(args.packed / f"t{i:02d}.bz2", books) for i, books in enumerate(shards(used))]
    held_out = [path.read_bytes() for path in sorted((args.data / "heldout").glob("*.txt"))]
    jobs.append((args.packed / "heldout.bz2", held_out))
    with ProcessPoolExecutor() as pool:
        list(pool.map(_compress, *zip(*jobs, strict=True)))
    (args.data / "train_used.json").write_text(json.dumps([path.name for path in used]))
    shutil.copy(args.data / "tokenizer.json", args.packed)
    n_bytes = sum(path.stat().st_size for path in args.packed.iterdir())
    print(f"{len(used)} books, {n_bytes / 2**20:.1f} MiB packed")


if __name__ == "__main__":
    main()
