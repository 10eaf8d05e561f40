"""The review desk: a panel in a notebook on which a person reviews chains with single keys.

    desk = ReviewDesk(rows, images, "runs/cpu/review.jsonl", reviewer="ada")
    desk

Click the panel first. a accepts, e edits, r rejects, u takes the last decision back, arrows or j and k move. Ctrl-Enter
saves an edit, Escape leaves it. What was decided is `desk.review`, see `review`; it also works where no browser
is, as when a notebook is run from the command line. ipywidgets knows no keys: `Keys`, an anywidget, listens for them.
"""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from threading import RLock

import anywidget
import ipywidgets as W
import traitlets
from PIL import Image, ImageOps

from .chains import HEADINGS, REASONS, ChainError, question_and_completion, read_chain
from .decisions import ACCEPT, DECISIONS, EDIT, REJECT
from .review import UNDECIDED, UNFLAGGED, FlaggedError, Review

LONGEST = 560  # pixels of the picture that is sent: twice what is shown, for sharp screens
DONE = {ACCEPT: "accepted", EDIT: "edited", REJECT: "rejected", UNDECIDED: UNDECIDED}
COMMANDS = {"a": "Accept", "e": "Edit", "r": "Reject", "u": "Undo", "k": "Previous", "j": "Next"}


class Keys(anywidget.AnyWidget):
    """Listens for the desk's keys and holds the editor.

    draft: the text to edit, None while none is. note: what to say below, as a `problem` or not. answered: the
    number of the last message that was dealt with.
    """

    _esm = Path(__file__).with_name("desk.js")
    _css = Path(__file__).with_name("desk.css")
    draft = traitlets.Unicode(None, allow_none=True).tag(sync=True)
    note = traitlets.Unicode("").tag(sync=True)
    problem = traitlets.Bool(False).tag(sync=True)
    answered = traitlets.Float(0.0).tag(sync=True)


def picture_html(image: Image.Image, name: str) -> str:
    """The picture inside the page, upright, small enough to send."""
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image.thumbnail((LONGEST, LONGEST))
    png = io.BytesIO()
    image.save(png, "png")
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'


def chain_html(text: str, label: str) -> str:
    """The four parts of a completion under their headings; a text that is no chain as it is, with the reason."""
    try:
        chain = read_chain(text)
    except ChainError as error:
        return f'<div class="f1-part"><h4>Not a chain</h4><p>{escape(str(error))}</p><pre>{escape(text)}</pre></div>'
    names = (f"<b>{escape(name)}</b>" if name == label else escape(name) for name in chain.options)
    options = "".join(f"<li>{name}</li>" for name in names)
    parts = (
        f"<p>{escape(chain.analysis)}</p>", f"<ul>{options}</ul>", f"<p>{escape(chain.comparison)}</p>",
        f"<p>{escape(chain.prediction)}</p>",
    )  # fmt: skip
    return "".join(f'<div class="f1-part"><h4>{h}</h4>{part}</div>' for h, part in zip(HEADINGS, parts))


def progress_html(review: Review) -> str:
    """A bar and the counts; also how many decisions are about rows that are not here."""
    counts, total = review.progress(), len(review.rows)
    decided = total - counts[UNDECIDED]
    bars = "".join(f'<i class="{d}" style="width: {100 * counts[d] / total:.2f}%"></i>' for d in DECISIONS)
    dots = "".join(f'<span><i class="f1-dot {d}"></i>{counts[d]} {DONE[d]}</span>' for d in DECISIONS)
    lost = f"<span>{len(review.unknown)} in the file about chains that are not here</span>" if review.unknown else ""
    return (
        f'<div class="f1-bar" role="progressbar" aria-label="decided chains" aria-valuemin="0" '
        f'aria-valuenow="{decided}" aria-valuemax="{total}">{bars}</div><div class="f1-counts">'
        f'<b>{decided} of {total} decided</b>{dots}{lost}<span class="who">{escape(review.reviewer)}</span></div>'
    )


class ReviewDesk(W.VBox):
    """The panel. `review` is the `Review` behind it, which says what the other arguments are.

    images: whatever gives a PIL image for `images[row["image_index"]]`. Raises as `Review`, and ValueError if
    `images` is too short.
    """

    def __init__(
        self, rows: Sequence[dict], images, path: str | Path, reviewer: str,
        known_names: Iterable[str] | None = None,
    ):  # fmt: skip
        self.review, self.images, self.keyboard = Review(rows, path, reviewer, known_names), images, Keys()
        self._check_images()
        self._alone = RLock()  # JupyterLab has its messages answered in several threads
        self._drafted, self._insisted = None, None  # the row that is edited; the text saved last
        self._head, self._left, self._parts = W.HTML(), W.HTML(), W.HTML()
        self._buttons = {key: self._button(key, name) for key, name in COMMANDS.items()}
        self._filters = self._dropdowns()
        self.keyboard.on_msg(self._on_key)
        right = _box(W.VBox, "f1-right", self._parts, self.keyboard)
        self._left.add_class("f1-left")
        self._parts.add_class("f1-parts")
        super().__init__([
            self._head,
            _box(W.HBox, "f1-filters", *self._filters.values()),
            _box(W.HBox, "f1-body", self._left, right),
            _box(W.HBox, "f1-buttons", *self._buttons.values(), W.HTML("<i>Click here to use the keys.</i>")),
        ])  # fmt: skip
        self.add_class("f1-desk")
        self.review.on_change = self.show
        self.show()

    def _check_images(self) -> None:
        last = max(row["image_index"] for row in self.review.rows)
        if isinstance(self.images, Sequence) and last >= len(self.images):
            raise ValueError(f"image {last} is asked for, there are {len(self.images)}; give the images of these rows")

    def _button(self, key: str, name: str) -> W.Button:
        button = W.Button(description=f"{name} ({key})")
        button.add_class(f"f1-{key}")
        button.on_click(lambda _: self.press(key))
        return button

    def _dropdowns(self) -> dict[str, W.Dropdown]:
        labels = sorted({row["label"] for row in self.review.rows})
        options = {
            "flag": ("Flag", [(flag, flag) for flag in (*REASONS, UNFLAGGED)]),
            "label": ("Class", [(label, label) for label in labels]),
            "state": ("State", [(DONE[state], state) for state in (UNDECIDED, *DECISIONS)]),
        }
        made = {k: W.Dropdown(options=[("all", None), *o], description=name) for k, (name, o) in options.items()}
        for dropdown in made.values():
            dropdown.observe(self._on_filter, "value")
        return made

    def _on_filter(self, _) -> None:
        self._do(lambda: self.review.filter(**{key: d.value for key, d in self._filters.items()}) or "")

    def _on_key(self, _, message: dict, __) -> None:
        try:
            self.press(message["key"], message["text"])
        finally:
            self.keyboard.answered = message["number"]

    def press(self, key: str, text: str = "") -> None:
        """Does what a key does: a, e, r, u, k or j; while an edit is open "save" (the text) or "cancel".

        The others do nothing then. What goes wrong is said on the panel.
        """
        if (self.keyboard.draft is None) == (key in ("save", "cancel")):
            return  # first letters of an edit, typed before the editor was there
        self._do(lambda: self._pressed(key, text))

    def _do(self, action: Callable[[], str]) -> None:
        """Shows what the action says, or what went wrong."""
        with self._alone, self.keyboard.hold_sync():
            self.keyboard.problem = False
            try:
                self.keyboard.note = action()
            except FlaggedError as error:
                self._complain(f"Still flagged: {', '.join(error.flags)}. Save once more to keep it so.")
            except (ValueError, OSError) as error:
                self._complain(f"Not done: {error}.")

    def _complain(self, note: str) -> None:
        self.keyboard.note, self.keyboard.problem = note, True

    def _pressed(self, key: str, text: str) -> str:
        """Does it, and says what was done."""
        review, at = self.review, self.review.at
        match key:
            case "a" | "r":
                decision = ACCEPT if key == "a" else REJECT
                review.decide(decision)
                return self._last(at, decision)
            case "u":
                return "Taken back." if review.undo() else f"Nothing of {review.reviewer} to take back."
            case "j" | "k":
                review.move(1 if key == "j" else -1)
            case "e" if at is not None:
                self._edit(at)
            case "save":
                return self._save(text)
            case "cancel":
                self._edit(None)
        return ""

    def _edit(self, index: int | None) -> None:
        """Opens the editor on a row, or closes it."""
        self._drafted, self._insisted = index, None
        self.add_class("f1-editing") if index is not None else self.remove_class("f1-editing")
        self.keyboard.draft = None if index is None else self.review.completion(index)

    def _save(self, text: str) -> str:
        self.review.at = index = self._drafted
        insist, self._insisted = text == self._insisted, text
        self.review.decide(EDIT, text, insist)
        self._edit(None)
        return self._last(index, EDIT)

    def _last(self, index: int, decision: str) -> str:
        return f"Last: {self.review.rows[index]['label']}, {DONE[decision]}."

    def show(self) -> None:
        """Brings the panel up to date with `review`."""
        review, at = self.review, self.review.at
        self._head.value = progress_html(review)
        self._left.value, self._parts.value = self._done() if at is None else self._row(at)
        for key in "aer":
            self._buttons[key].disabled = at is None

    def _done(self) -> tuple[str, str]:
        says = "Nothing left to decide here." if self.review.view() else "No chain fits these filters."
        return f'<div class="f1-none">{says}</div>', ""

    def _row(self, at: int) -> tuple[str, str]:
        review, row, state = self.review, self.review.rows[at], self.review.state(at)
        flags = "".join(f"<li>{escape(flag)}</li>" for flag in review.flags(at)) or f'<li class="fine">{UNFLAGGED}</li>'
        view, where = review.view(), f"{at + 1} of {len(review.rows)}"
        if at in view and len(view) < len(review.rows):
            where += f", {view.index(at) + 1} of {len(view)} filtered"
        left = (
            f'{self._picture(at)}<h3>{escape(row["label"])}</h3><p class="f1-where">{where} '
            f'<i class="f1-dot {state}"></i>{DONE[state]}</p><ul class="f1-chips" aria-label="flags">{flags}</ul>'
        )
        question = escape(question_and_completion(row)[0])
        return left, f'<p class="f1-question">{question}</p>{chain_html(review.completion(at), row["label"])}'

    def _picture(self, at: int) -> str:
        row = self.review.rows[at]
        try:
            return picture_html(self.images[row["image_index"]], f"picture of {row['label']}")
        except Exception as error:  # one broken file must not stop a review; Pillow raises almost anything
            return f'<div class="f1-none">no picture: {escape(repr(error))}</div>'


def _box(kind: type, name: str, *children) -> W.Box:
    box = kind(children)
    box.add_class(name)
    return box
