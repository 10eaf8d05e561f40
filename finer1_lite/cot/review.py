"""Chains reviewed by a person: decisions kept in a file, and a panel in a notebook to make them on.

Each decision is a line of the file, on the disk before it counts. Taking one back is a line with "undo".
"""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path

import ipywidgets as W

from ..files import JsonLines
from ..images import as_rgb
from .chains import check_chain, question_and_completion, read_chain, to_completion

DECISIONS = ACCEPT, EDIT, REJECT = ("accept", "edit", "reject")
UNDO, UNDECIDED = "undo", "undecided"


def row_id(row: dict) -> str:
    """Names a row in the file of decisions, wherever it stands: a hash of label, question, completion and image."""
    told = [row["label"], *question_and_completion(row), row["images"]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


class Review:
    """One person's decisions on rows of `chains.chat_row`, kept in the file `path`; its lines of other reviewers, and
    on other rows, are passed over. known_names: see `check_chain`. ValueError for a broken line or row."""

    def __init__(self, rows: Sequence[dict], path: str | Path, reviewer: str, known_names: Iterable[str] = ()):
        self.rows, self.reviewer, self._ids = list(rows), reviewer, [row_id(row) for row in rows]
        self.names, self.log = list(known_names), JsonLines(path, ("row", "reviewer", "decision", "text", "time"))
        self._read()

    def _read(self) -> None:
        self.log.read()
        self._stands: dict[str, dict] = {}  # the latest decision comes last
        for event in self.log.rows:
            if event["reviewer"] == self.reviewer:
                self._stands.pop(event["row"], None)
                if event["decision"] != UNDO:
                    self._stands[event["row"]] = event

    def state(self, index: int) -> str:
        """One of `DECISIONS`, or "undecided"."""
        return self._stands.get(self._ids[index], {"decision": UNDECIDED})["decision"]

    def completion(self, index: int) -> str:
        """The row's completion, as edited if it was."""
        edited = self.state(index) == EDIT
        return self._stands[self._ids[index]]["text"] if edited else question_and_completion(self.rows[index])[1]

    def flags(self, index: int) -> list[str]:
        """What the checks say against the completion, out of `chains.REASONS`."""
        return check_chain(self.completion(index), self.rows[index]["label"], self.names)

    def view(self, wanted: str = "all") -> list[int]:
        """Indices of the rows in a state, of those with flags ("flagged"), or of all ("all")."""
        indices = range(len(self.rows))
        return [i for i in indices if wanted in ("all", self.state(i)) or (wanted == "flagged" and self.flags(i))]

    def progress(self) -> dict[str, int]:
        """How many rows are in each state."""
        return {state: len(self.view(state)) for state in (*DECISIONS, UNDECIDED)}

    def accepted_rows(self) -> list[dict]:
        """The rows to train on: accepted ones as they are, edited ones with the new text."""
        rows = []
        for i in sorted(self.view(ACCEPT) + self.view(EDIT)):
            user, answer = self.rows[i]["messages"]
            rows.append({**self.rows[i], "messages": [user, {**answer, "content": self.completion(i)}]})
        return rows

    def decide(self, index: int, decision: str, text: str | None = None) -> None:
        """Accepts, edits or rejects a row, or takes its decision back ("undo"). An edit has the new text: ChainError
        if it is no chain; what else the checks have against it, `flags` says."""
        text = to_completion(read_chain(text)) if decision == EDIT else None
        now, row = datetime.now(timezone.utc).isoformat(timespec="milliseconds"), self._ids[index]
        self.log.append({"row": row, "reviewer": self.reviewer, "decision": decision, "text": text, "time": now})
        self._read()

    def undo(self) -> int | None:
        """Takes the last decision back; the index of its row, which is undecided again, or None if there was none."""
        self._read()
        last = next((self._ids.index(row) for row in reversed(self._stands) if row in self._ids), None)
        if last is not None:
            self.decide(last, UNDO)
        return last


class ReviewDesk(W.VBox):
    """The panel: its buttons make the decisions of `review`. images: a PIL image for each `image_index`. "Edit" keeps
    the text of the field. After a decision comes the next undecided row of the filter."""

    def __init__(self, rows, images, path: str | Path, reviewer: str, known_names: Iterable[str] = ()):
        self.review, self.images, self.at = Review(rows, path, reviewer, known_names), images, None
        self.buttons = {n: W.Button(description=n) for n in ("Previous", "Next", "Accept", "Edit", "Reject", "Undo")}
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self._do(name))
        self.filter = W.Dropdown(options=["all", UNDECIDED, "flagged", *DECISIONS], description="Show")
        self.filter.observe(lambda _: self._do("Show"), "value")
        self.head, self.note, self.picture = W.HTML(), W.HTML(), W.Image(layout={"width": "280px", "height": "100%"})
        self.editor = W.Textarea(rows=14, layout={"width": "auto"})
        right = W.VBox([self.head, self.editor], layout={"flex": "1"})
        super().__init__([self.filter, W.HBox([self.picture, right]), W.HBox([*self.buttons.values()]), self.note])
        self._do("Show")

    def _do(self, name: str) -> None:
        try:
            self.note.value = ""
            if name.lower() in DECISIONS:
                self.review.decide(self.at, name.lower(), self.editor.value)
            if name != "Undo":
                self.at = self._next(name)
            elif (undone := self.review.undo()) is not None:
                self.at = undone
            self._show()
        except Exception as error:  # a full disk, a text that is no chain, a broken picture: the panel must go on
            self.note.value = f"<b>Problem:</b> {escape(str(error) or repr(error))}"

    def _next(self, name: str) -> int | None:
        rows, at = self.review.view(self.filter.value), -1 if self.at is None or name == "Show" else self.at
        if name not in ("Previous", "Next"):
            rows = [i for i in rows if self.review.state(i) == UNDECIDED] or rows
        ahead = [i for i in rows if (i < at if name == "Previous" else i > at)] or rows
        return ahead[-1 if name == "Previous" else 0] if ahead else None

    def _show(self) -> None:
        at, review = self.at, self.review
        for name in ("Accept", "Edit", "Reject"):
            self.buttons[name].disabled = at is None
        counts = ", ".join(f"{count} {state}" for state, count in review.progress().items())
        self.head.value, self.editor.value, self.picture.value = f"<p>{counts}</p>", "", b""
        if at is not None:
            row, flags = review.rows[at], ", ".join(review.flags(at)) or "none"
            facts = (f"{at + 1} of {len(review.rows)}, {review.state(at)}", row["label"], f"flags: {flags}")
            self.head.value += "".join(f"<p>{escape(fact)}</p>" for fact in (*facts, question_and_completion(row)[0]))
            self.editor.value = review.completion(at)
            image, png = as_rgb(self.images[row["image_index"]]), io.BytesIO()
            image.thumbnail((560, 560))  # twice what is shown, for sharp screens
            image.save(png, "png")
            self.picture.value = png.getvalue()
