"""Results as they come: a JSON line each, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

Record = dict[str, Any]
Key = tuple[str, int, str, str]  # task, length, case, method

FILE_NAME = "results.jsonl"


def key_of(record: Record) -> Key:
    return record["task"], record["length"], record["case"], record["method"]


class Results:
    """The records of a folder, old and new. The first line says which model and settings they belong to.

    :param header: what has to be the same for results to be comparable
    :raises ValueError: the folder has results of another model or other settings; or a damaged line
    """

    def __init__(self, folder: Path, header: Record) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE_NAME
        self.records: list[Record] = []
        lines = self._complete_lines()
        if lines:
            found = lines[0].get("run")
            if found != header:
                raise ValueError(
                    f"{self.path} was made with {json.dumps(found)}, this run has {json.dumps(header)}: "
                    "choose another folder"
                )
            self.records = lines[1:]
        self.done = {key_of(record) for record in self.records}
        self._file = self.path.open("a", encoding="utf-8")
        if not lines:
            self._write({"run": header})

    def _complete_lines(self) -> list[Record]:
        """All records; a line that an interruption cut short is removed."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.truncate(self.path, end)
        lines = []
        for i, line in enumerate(data[:end].decode("utf-8").splitlines(), 1):
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.path}, line {i}, is damaged: {error}") from None
        return lines

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def add(self, record: Record) -> None:
        self._write(record)
        self.records.append(record)
        self.done.add(key_of(record))

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def load_results(folder: str | Path) -> list[Record]:
    """The records of a folder.

    :raises OSError: there are none
    """
    lines = (Path(folder) / FILE_NAME).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[1:]]
