"""The file of a review: one line for each decision, on the disk before it counts.

    {"row": "0a1b2c3d4e5f6071", "reviewer": "ada", "decision": "edit", "text": "<think> ...", "time": "2026-..."}

No line is ever changed. Taking a decision back is a line with "undo", and what holds is found by reading all lines
again. Several kernels may write to one file: a lock file beside it keeps their lines apart.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import RLock

from filelock import FileLock

from .chains import ChainError, question_and_completion

ACCEPT, EDIT, REJECT, UNDO = "accept", "edit", "reject", "undo"
DECISIONS = (ACCEPT, EDIT, REJECT)


class ReviewError(ValueError):
    """A file of decisions is broken, or a decision cannot be made; says why."""


def row_id(row: dict) -> str:
    """Names a row in the file of decisions: a hash of label, question, completion and image.

    Where the row stands does not matter; once its text or image is another one, it is another row.
    """
    told = [row["label"], *question_and_completion(row), row["images"]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def row_ids(rows: Sequence[dict]) -> list[str]:
    """The names of all rows. ReviewError for no rows, a bad row, and rows that a decision could not tell apart."""
    if not rows:
        raise ReviewError("there are no rows to review")
    numbers = {}
    for number, row in enumerate(rows, 1):
        try:
            first = numbers.setdefault(row_id(row), number)
        except ChainError as error:
            raise ReviewError(f"row {number}: {error}") from None
        if first != number:
            raise ReviewError(f"rows {first} and {number} are the same; leave one out")
    return list(numbers)


def _event(line: bytes) -> dict:
    event = json.loads(line)
    if not isinstance(event, dict):
        raise ValueError("not an object")
    for key in ("row", "reviewer", "decision", "time"):
        if not isinstance(event.get(key), str):
            raise ValueError(f"'{key}' should be a text")
    if event["decision"] not in (*DECISIONS, UNDO):
        raise ValueError(f"unknown decision {event['decision']!r}")
    if isinstance(event.get("text"), str) != (event["decision"] == EDIT):
        raise ValueError("'text' should be a text for an edit and null otherwise")
    return event


class EventLog:
    """Decisions as lines of a file that only grows. `events` holds what was read of it so far."""

    def __init__(self, path: str | Path):
        self.path, self.events = Path(path), []
        self._end, self._lines = 0, 0  # bytes and lines that were read
        self._alone = RLock()  # a notebook's widgets are answered in threads of their own

    def read(self) -> None:
        """Takes up what was added; a last line without its end is left out. ReviewError for a broken line and if
        the file got shorter, FileNotFoundError if it is gone."""
        with self._alone:
            if self._end or self.path.exists():
                with self.path.open("rb") as file:
                    self._read(file)

    def _read(self, file) -> None:
        if file.seek(0, os.SEEK_END) < self._end:
            raise ReviewError(f"{self.path} got shorter since it was read; somebody changed it, open it anew")
        file.seek(self._end)
        *lines, _ = file.read().split(b"\n")
        events = []
        for number, line in enumerate(lines, self._lines + 1):
            try:
                events.append(_event(line))
            except ValueError as error:
                raise ReviewError(f"{self.path}, line {number}: {error}") from None
        self.events += events
        self._end, self._lines = self._end + sum(len(line) + 1 for line in lines), self._lines + len(lines)

    def append(self, event: dict) -> None:
        """Adds a line, behind what others added; it is on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        with self._alone, FileLock(f"{self.path}.lock", timeout=10), self.path.open("a+b") as file:
            self._read(file)
            file.truncate(self._end)  # the half line of a process that was killed
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self._read(file)


def standing(events: Iterable[dict]) -> list[dict]:
    """The decisions that were not taken back, oldest first. An undo takes its reviewer's last one on its row."""
    kept = []
    for event in events:
        if event["decision"] != UNDO:
            kept.append(event)
            continue
        who = event["row"], event["reviewer"]
        last = max((i for i, e in enumerate(kept) if (e["row"], e["reviewer"]) == who), default=None)
        if last is not None:
            del kept[last]
    return kept


def applied(row: dict, event: dict) -> dict:
    """The row as a decision leaves it: with the new text, if it is an edit."""
    if event["decision"] != EDIT:
        return row
    user, answer = row["messages"]
    return {**row, "messages": [user, {**answer, "content": event["text"]}]}
