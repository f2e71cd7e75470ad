"""A table that outlives the process: one JSON file in the user's cache directory, read once, replaced whole.

What is recorded is merged with what others wrote meanwhile, so that processes may record at once and an interrupted one
loses nothing that it recorded. A file that cannot be read, or that another version wrote, is ignored with one warning
and kept aside when something new is recorded.
"""

import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from gpuconv.files import alone, cache_folder, write_atomically

Entry = TypeVar("Entry")
_VERSION = 1  # of the files; another one is not read


class Table(Generic[Entry]):
    """Entries by their keys, which are texts, in the file `name` under `field`.

    parse: an entry from its plain values; raises ValueError, KeyError, TypeError or AttributeError for a file of other
    contents. plain: the inverse. merge: the entry to keep, from the old one and a new one of the same key.
    """

    def __init__(
        self,
        name: str,
        field: str,
        parse: Callable[[Any], Entry],
        plain: Callable[[Entry], Any],
        merge: Callable[[Entry, Entry], Entry] = lambda old, new: new,
    ) -> None:
        self._name, self._field = name, field
        self._parse, self._plain, self._merge = parse, plain, merge
        self._read_before: dict[Path, dict[str, Entry]] = {}
        self._reading = threading.Lock()

    def path(self) -> Path:
        """Where the file is."""
        return cache_folder() / self._name

    def entries(self) -> Mapping[str, Entry]:
        """The entries of the file as it was when it was first needed; none where it is missing or damaged."""
        file = self.path()
        found = self._read_before.get(file)
        if found is None:
            with self._reading:
                try:
                    found = self._read(file)
                except (OSError, ValueError) as error:
                    warnings.warn(f"{file} is ignored: {error}", stacklevel=2)
                    found = {}
                self._read_before[file] = found
        return found

    def record(self, found: Mapping[str, Entry | None]) -> None:
        """Add to the file, now; None takes an entry out.

        Raises OSError where the file cannot be written; then it is as it was.
        """
        file = self.path()
        file.parent.mkdir(parents=True, exist_ok=True)
        with alone(file.with_suffix(".lock")):
            try:
                table = self._read(file)
            except (OSError, ValueError) as error:
                aside = file.with_suffix(".damaged.json")
                os.replace(file, aside)
                warnings.warn(f"{file} could not be used ({error}); it is kept as {aside}", stacklevel=2)
                table = {}
            for key, entry in found.items():
                if entry is None:
                    table.pop(key, None)
                else:
                    table[key] = self._merge(table[key], entry) if key in table else entry
            plain = {key: self._plain(entry) for key, entry in table.items()}
            text = json.dumps({"version": _VERSION, self._field: plain}, indent=0, sort_keys=True)
            write_atomically(file, text.encode())
        with self._reading:
            self._read_before[file] = table

    def forget(self) -> None:
        """Read the file again when it is next needed."""
        with self._reading:
            self._read_before.clear()

    def _read(self, file: Path) -> dict[str, Entry]:
        """The entries in `file`, none if there is no file. Raises ValueError for what is not such a table."""
        try:
            content = json.loads(file.read_bytes())
        except FileNotFoundError:
            return {}
        except RecursionError as error:  # brackets within brackets
            raise ValueError("it is no table") from error
        if not isinstance(content, dict) or content.get("version") != _VERSION:
            raise ValueError(f"it is not a table of version {_VERSION}")
        try:
            return {key: self._parse(entry) for key, entry in content[self._field].items()}
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"an entry is not as it should be ({type(error).__name__}: {error})") from error
