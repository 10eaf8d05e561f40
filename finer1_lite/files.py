"""Files that are written whole or not at all: text, CSV, JSON lines; tables read strictly; answers that only grow."""

import csv
import errno
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import RLock

from filelock import FileLock


def flush(file) -> None:
    """What was written to the open `file` is on the disk when this returns; some mounted drives cannot promise it."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:  # a full disk may be told here: that is no lack of the drive's
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def write_whole(path: str | Path, text: str | bytes) -> Path:
    """Write a file (text as UTF-8) so that a reader finds the old one or the new one, never a part; returns it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode("utf-8"))
            flush(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_csv(path: str | Path, rows: Iterable[dict]) -> None:
    """Write dictionaries as a CSV file, whole; a key that a row lacks is an empty cell."""
    rows, text = list(rows), io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def read_csv(path: str | Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file that has (at least) `columns`, stripped, with the numbers of their lines.

    Strict, as one forgotten quote would swallow all rows up to the next one: ValueError, with file, line and remedy,
    for a cell over several lines, cells beyond the header's, another separator, and a file that is not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8; save the table as UTF-8 (\"CSV UTF-8\" in Excel)") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, rows, last = next(reader, []), [], 1
    if missing := [name for name in columns if name not in header]:
        advice = "; separate the cells by commas" if ";" in "".join(header) else ""
        raise ValueError(f"{path} needs the columns {', '.join(columns)}; {missing[0]!r} is missing{advice}")
    try:
        for cells in reader:
            if len(cells) > len(header):
                raise csv.Error("more cells than columns; put a cell that holds a comma into quotes")
            if any("\n" in cell for cell in cells):
                raise csv.Error("a cell goes on in the next line; is a quote missing?")
            last = reader.line_num
            if cells:
                rows.append((last, dict(zip(header, map(str.strip, cells)))))
    except csv.Error as error:
        what = "a quote is not closed" if "unexpected end" in str(error) else error
        raise ValueError(f"{path}, line {last + 1}: {what}") from None
    return rows


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Write dictionaries as JSON, one a line, whole."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: str | Path) -> list[tuple[int, dict]]:
    """The objects of a JSON-lines file with the numbers of their lines; empty lines are passed over.

    FileNotFoundError without the file; ValueError, with file and line, for a line that is no JSON object.
    """
    lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")  # some editors mark UTF-8
    return [(n, _object(line, f"{path}, line {n}")) for n, line in enumerate(lines, 1) if line.strip()]


def _object(line: bytes, where: str, keys: Sequence[str] = ()) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:  # of JSON, and of bytes that are not UTF-8
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(row, dict) or not set(keys) <= set(row):
        raise ValueError(f"{where}: should be an object{' with ' + ', '.join(keys) if keys else ''}: {line[:60]!r}")
    return row


class JsonLines:
    """A file of JSON objects, one a line, that only grows; `rows` holds what was read of it so far.

    Threads and processes may append to one file; the half line that a killed process left is dropped. keys: what each
    object must hold. ValueError, with file and line, for another line, and if the file got shorter since it was read.
    """

    def __init__(self, path: str | Path, keys: Sequence[str] = ()):
        self.path, self.keys, self.rows = Path(path), keys, []
        self._end, self._alone = 0, RLock()
        self.read()

    def read(self) -> None:
        """Take up what others added."""
        if self._end or self.path.exists():
            with self._alone, self.path.open("rb") as file:
                self._read(file)

    def _read(self, file) -> None:
        if file.seek(0, os.SEEK_END) < self._end:
            raise ValueError(f"{self.path} got shorter since it was read; somebody changed it, open it anew")
        file.seek(self._end)
        *lines, _ = file.read().split(b"\n")
        first = len(self.rows) + 1
        self.rows += [_object(line, f"{self.path}, line {n}", self.keys) for n, line in enumerate(lines, first)]
        self._end += sum(len(line) + 1 for line in lines)

    def append(self, *rows: dict) -> None:
        """Add lines behind what others added; they are on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")
        with self._alone, FileLock(f"{self.path}.lock"), self.path.open("a+b") as file:
            self._read(file)
            file.truncate(self._end)
            file.write(text)
            flush(file)
            self._read(file)
