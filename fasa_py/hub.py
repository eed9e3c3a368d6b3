"""Model files from the Hugging Face hub, through huggingface-hub: its cache, its progress bar."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def split_parts(name: str) -> list[str]:
    """All files of the split set that a file belongs to; itself alone when it is not split."""
    match = _SPLIT.search(name)
    if match is None:
        return [name]
    return [f"{name[: match.start()]}-{i:05d}-of-{match[2]}.gguf" for i in range(1, int(match[2]) + 1)]


def choose(files: Iterable[str], pattern: str, where: str) -> list[str]:
    """The one model among the files that matches the pattern: one file, or all parts of one split set.

    The pattern is matched against the path inside the repository and against the bare file name.

    :raises FileNotFoundError: none matches, or parts of a split set are missing; lists what there is
    :raises ValueError: several models match; lists them
    """
    ggufs = sorted(name for name in files if name.endswith(".gguf"))
    matching = [f for f in ggufs if fnmatchcase(f, pattern) or fnmatchcase(f.rsplit("/", 1)[-1], pattern)]
    if not matching:
        available = "; it has " + ", ".join(ggufs) if ggufs else "; it has no GGUF file at all"
        raise FileNotFoundError(f"no GGUF file matches {pattern!r} in {where}{available}")
    models = {split_parts(name)[0] for name in matching}
    if len(models) > 1:
        raise ValueError(f"{len(models)} models match {pattern!r} in {where}: {', '.join(sorted(models))}; name one")
    parts = split_parts(matching[0])
    missing = sorted(set(parts) - set(ggufs))
    if missing:
        raise FileNotFoundError(f"{where} lacks parts of the split model: {', '.join(missing)}")
    return parts


def download(
    repo_id: str,
    pattern: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Path:
    """Fetch the model that matches the pattern, unless it is in the cache; the path of its (first) file.

    Without a connection, what the cache holds is used, with a warning.

    :raises OSError: the hub refused (no such repository, no access), or there is neither connection nor cached copy
    """
    try:
        files = HfApi(token=token).list_repo_files(repo_id, revision=revision)
    except HfHubHTTPError as error:
        raise OSError(f"the Hugging Face hub refused {repo_id!r}: {str(error).strip().splitlines()[0]}") from error
    except ValueError as error:
        raise ValueError(f"{repo_id!r} is not a repository of the Hugging Face hub: {error}") from error
    except Exception as error:  # no connection: the exception's type depends on huggingface-hub's HTTP library
        return _from_cache(repo_id, pattern, revision, cache_dir, error)
    paths = [
        hf_hub_download(repo_id, name, revision=revision, cache_dir=cache_dir, local_dir=local_dir, token=token)
        for name in choose(files, pattern, repo_id)
    ]
    return Path(paths[0])


def _from_cache(
    repo_id: str, pattern: str, revision: str | None, cache_dir: str | Path | None, reason: Exception
) -> Path:
    try:
        folder = Path(
            snapshot_download(
                repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True, allow_patterns=["*.no-file"]
            )
        )
    except FileNotFoundError as error:
        raise OSError(
            f"cannot reach the Hugging Face hub ({reason}), and {repo_id!r} is not in the cache; "
            "download the file elsewhere and give its path"
        ) from error
    logging.getLogger("fasa_py").warning("cannot reach the Hugging Face hub (%s): using the cached %s", reason, repo_id)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    return folder / choose(files, pattern, f"the cache of {repo_id}")[0]
