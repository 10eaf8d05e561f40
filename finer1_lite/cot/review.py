"""Chains reviewed by a person, and two reviews compared.

The checks of `chains` read a text; whether it fits the picture, a person must say. `Review` is the way of one
person through the rows; `decisions` keeps it in a file that survives a kill; `desk.ReviewDesk` shows it in a
notebook. In a file that several share, the last decision on a row counts, whoever made it. For reviews that do not
know of each other give each reviewer a file, and compare them with `merge_reviews`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import nan
from pathlib import Path
from typing import NamedTuple

from .chains import REASONS, check_chain, question_and_completion, read_chain, to_completion
from .decisions import ACCEPT, DECISIONS, EDIT, REJECT, UNDO, EventLog, ReviewError, applied, row_ids, standing

UNDECIDED = "undecided"
UNFLAGGED = "no flags"


class FlaggedError(ReviewError):
    """An edited chain does not pass the checks; `flags` says which."""

    def __init__(self, flags: list[str]):
        super().__init__(f"the edited chain is flagged: {', '.join(flags)}; insist=True keeps it")
        self.flags = flags


class Review:
    """One person's way through rows of `chains.chat_row`, kept in the file `path`.

    `at` is the index of the row under review, None once nothing is left to do. `on_change` is called after every
    change. `unknown` holds the standing decisions on rows that are not among `rows` (any more): they stay in the file.
    known_names: see `check_chain`. Raises ReviewError for bad rows, a broken file or an empty name.

    >>> from finer1_lite.cot.chains import Chain, chat_row
    >>> from tempfile import TemporaryDirectory
    >>> text = to_completion(Chain("red crown.", ["tarn", "wick"], "wick: blue crown.", "tarn"))
    >>> with TemporaryDirectory() as folder:
    ...     review = Review([chat_row(0, "tarn", "Which bird?", text, "0.png")], f"{folder}/ada.jsonl", "ada")
    ...     review.decide("accept")
    ...     review.progress()
    {'accept': 1, 'edit': 0, 'reject': 0, 'undecided': 0}
    """

    def __init__(
        self, rows: Sequence[dict], path: str | Path, reviewer: str, known_names: Iterable[str] | None = None
    ):
        if not reviewer.strip():
            raise ReviewError("the reviewer needs a name: it tells whose decisions these are")
        self.rows, self.reviewer, self.log = list(rows), reviewer, EventLog(path)
        self._names = None if known_names is None else list(known_names)
        self._ids = row_ids(self.rows)
        self._index = {name: i for i, name in enumerate(self._ids)}
        self._flags = [self._check(i, question_and_completion(row)[1]) for i, row in enumerate(self.rows)]
        self._wanted = (None, None, None)
        self.on_change: Callable[[], None] = lambda: None
        self.reload()
        self.at = self._following(-1)

    def _check(self, index: int, text: str) -> list[str]:
        return check_chain(text, self.rows[index]["label"], self._names)

    def reload(self) -> None:
        """Takes up what other kernels wrote. Each of the changes below does so first."""
        self.log.read()
        self._standing = standing(self.log.events)
        self._last = {event["row"]: event for event in self._standing}
        self.unknown = [event for event in self._standing if event["row"] not in self._index]

    # what holds

    def state(self, index: int) -> str:
        """One of `DECISIONS`, or "undecided"."""
        event = self._last.get(self._ids[index])
        return event["decision"] if event else UNDECIDED

    def _present(self, index: int) -> dict:
        event = self._last.get(self._ids[index])
        return applied(self.rows[index], event) if event else self.rows[index]

    def completion(self, index: int) -> str:
        """The row's completion, as edited if it was."""
        return question_and_completion(self._present(index))[1]

    def flags(self, index: int) -> list[str]:
        """What the checks say against the completion, out of `chains.REASONS`."""
        return self._check(index, self.completion(index)) if self.state(index) == EDIT else self._flags[index]

    def progress(self) -> dict[str, int]:
        """How many rows are in each state."""
        count = Counter(self.state(i) for i in range(len(self.rows)))
        return {state: count[state] for state in (*DECISIONS, UNDECIDED)}

    def accepted_rows(self) -> list[dict]:
        """The rows to train on: accepted ones as they are, edited ones with the new text."""
        return [self._present(i) for i in range(len(self.rows)) if self.state(i) in (ACCEPT, EDIT)]

    # where we are

    def view(self) -> list[int]:
        """Indices of the rows that the filter lets through."""
        flag, label, state = self._wanted
        return [
            i for i, row in enumerate(self.rows)
            if flag in (None, *(self.flags(i) or [UNFLAGGED]))
            and label in (None, row["label"]) and state in (None, self.state(i))
        ]  # fmt: skip

    def filter(self, flag: str | None = None, label: str | None = None, state: str | None = None) -> None:
        """Looks only at rows with this flag ("no flags": with none), class and state; None lets all through.

        Goes to the first undecided one, if the present row is not among them. ReviewError for an unknown value.
        """
        known = ((*REASONS, UNFLAGGED), {row["label"] for row in self.rows}, (*DECISIONS, UNDECIDED))
        for value, values in zip((flag, label, state), known):
            if value is not None and value not in values:
                raise ReviewError(f"no filter {value!r}; there are {', '.join(sorted(values))}")
        self.reload()
        self._wanted = (flag, label, state)
        view = self.view()
        if self.at not in view:
            following = self._following(-1)
            self.at = view[0] if following is None and view else following
        self.on_change()

    def _following(self, index: int) -> int | None:
        """The undecided row of the view that comes next, at its end the first one. In a view of decided rows: the
        row that comes next."""
        view = self.view()
        if self._wanted[2] in DECISIONS:
            return next((i for i in view if i > index), None)
        left = [i for i in view if self.state(i) == UNDECIDED]
        return next((i for i in left if i > index), left[0] if left else None)

    def move(self, step: int) -> None:
        """Goes to the next (step = 1) or previous (-1) row of the view; at its end nothing happens."""
        self.reload()
        ways = [i for i in self.view() if self.at is None or (i - self.at) * step > 0]
        if ways:
            self.at = ways[0 if step > 0 else -1]
        self.on_change()

    # decisions

    def decide(self, decision: str, text: str | None = None, insist: bool = False) -> None:
        """Decides on the present row and goes to the next undecided one.

        decision: "accept", "reject", or "edit" with the new `text` in either form of `chains`. ChainError if it
        is no chain, FlaggedError if the checks have something against it, unless you insist; ReviewError if
        nothing was changed, or no row is under review.
        """
        if decision not in DECISIONS:
            raise ReviewError(f"unknown decision {decision!r}; there are {', '.join(DECISIONS)}")
        if (text is None) == (decision == EDIT):
            raise ReviewError("an edit needs the new text, and only an edit has one")
        if self.at is None:
            raise ReviewError("no row is under review; move to one, or change the filter")
        if decision == EDIT:
            text = self._edited(text, insist)
        self._write(self._ids[self.at], decision, text)
        self.at = self._following(self.at)
        self.on_change()

    def _edited(self, text: str, insist: bool) -> str:
        text = to_completion(read_chain(text))
        if text == question_and_completion(self.rows[self.at])[1]:
            raise ReviewError("this is the chain as it was written; accept it instead")
        flags = self._check(self.at, text)
        if flags and not insist:
            raise FlaggedError(flags)
        return text

    def undo(self) -> bool:
        """Takes back this reviewer's last decision and goes to its row; False if there is none."""
        self.reload()
        own = [e["row"] for e in self._standing if e["reviewer"] == self.reviewer and e["row"] in self._index]
        if own:
            self._write(own[-1], UNDO, None)
            self.at = self._index[own[-1]]
            self.on_change()
        return bool(own)

    def _write(self, row: str, decision: str, text: str | None) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self.log.append({"row": row, "reviewer": self.reviewer, "decision": decision, "text": text, "time": now})
        self.reload()


# ---- two reviewers


class Difference(NamedTuple):
    """A row on which two reviewers differ, with the line that each one's file has about it."""

    row: dict
    first: dict
    second: dict


@dataclass(frozen=True)
class Merged:
    """Two reviews side by side; printed, it says how far they agree.

    agreement: share of the rows decided by both on which the decision is the same. kappa: Cohen's, of the same.
    rows: what both keep with the same text. differ: another decision or text. open: not decided by both. unknown:
    lines about rows that are not there (any more).
    """

    reviewers: tuple[str, str]
    agreement: float
    kappa: float
    rows: list[dict]
    differ: list[Difference]
    open: list[dict]
    unknown: list[dict]

    def __str__(self) -> str:
        return (
            f"{' and '.join(self.reviewers)}: same decision on {self.agreement:.1%}, kappa {self.kappa:.2f}; "
            f"{len(self.rows)} rows kept, {len(self.differ)} differ, {len(self.open)} not decided by both"
        )


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """(observed - chance) / (1 - chance), chance from how often each one says what; nan where chance is 1.

    >>> cohens_kappa([("accept", "accept"), ("accept", "reject"), ("reject", "reject"), ("reject", "reject")])
    0.5
    """
    observed = sum(a == b for a, b in pairs) / len(pairs)
    first, second = (Counter(side) for side in zip(*pairs))
    chance = sum(first[said] * second[said] for said in first) / len(pairs) ** 2
    return nan if chance == 1 else (observed - chance) / (1 - chance)


def merge_reviews(rows: Sequence[dict], paths: Iterable[str | Path]) -> Merged:
    """Compares two reviewers, in a file each or in one.

    A row is kept if both accept it or edit it to the same text, and dropped if both reject it; else somebody
    should look. FileNotFoundError for a missing file, ReviewError if there are not two reviewers or no row that
    both decided.
    """
    events = []
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no decisions at {path}; Review and ReviewDesk write them")
        log = EventLog(path)
        log.read()
        events += log.events
    names = tuple(dict.fromkeys(e["reviewer"] for e in events))
    if len(names) != 2:
        raise ReviewError(f"two reviewers are compared, these files have {len(names)}: {', '.join(names)}")
    held, by_id = standing(events), dict(zip(row_ids(rows), rows))
    first, second = ({e["row"]: e for e in held if e["reviewer"] == name} for name in names)
    pairs = [Difference(row, first[i], second[i]) for i, row in by_id.items() if i in first and i in second]
    if not pairs:
        raise ReviewError(f"{' and '.join(names)} have decided no row in common")
    same = [all(a.get(key) == b.get(key) for key in ("decision", "text")) for _, a, b in pairs]
    said = [(a["decision"], b["decision"]) for _, a, b in pairs]
    return Merged(
        names, sum(a == b for a, b in said) / len(said), cohens_kappa(said),
        rows=[applied(p.row, p.first) for p, s in zip(pairs, same) if s and p.first["decision"] != REJECT],
        differ=[pair for pair, s in zip(pairs, same) if not s],
        open=[row for i, row in by_id.items() if i not in first or i not in second],
        unknown=[event for event in held if event["row"] not in by_id],
    )  # fmt: skip
