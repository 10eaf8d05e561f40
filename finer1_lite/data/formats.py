"""Data in and out: chats of stage 1 as LLaMA-Factory has them, closed-world questions.

Our chat row is that of `cot.chains.chat_row`: messages (one user, one assistant turn), images, perhaps `system`, the
system prompt, and whatever else a row carries.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from datasets import Image as ImageColumn

from ..files import read_jsonl, write_jsonl, write_whole
from ..images import as_rgb
from ..prompts import QUESTIONS, bare_question, make_options
from ..reading import normalise, tagged_answer
from .triplets import MARK

WHO = ["system", "user", "assistant"]
OPTIONS = 4
CHAT_COLUMNS = ("image", "label", "question", "completion")


def to_llama_factory(row: dict) -> dict:
    """LLaMA-Factory's row of ours: the system prompt becomes the first turn.

    >>> turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "A wren."}]
    >>> to_llama_factory({"messages": turns, "images": ["a.jpg"], "system": "Think."})["messages"][0]
    {'role': 'system', 'content': 'Think.'}
    """
    rest = from_llama_factory(row)  # checked
    first = [{"role": "system", "content": rest.pop("system")}] if "system" in rest else []
    return rest | {"messages": first + rest["messages"]}


def from_llama_factory(row: dict) -> dict:
    """Our row of LLaMA-Factory's, see `to_llama_factory`.

    ValueError for what our row cannot hold: more turns, more keys in a turn, <image> outside of the question.
    """
    rest, turns = dict(row), list(row["messages"])
    found = WHO[:1] * ("system" in rest) + [turn["role"] for turn in turns]
    if found not in (WHO, WHO[1:]) or any(len(turn) != 2 for turn in turns):
        raise ValueError(f"a question and an answer are needed, after a system prompt or none, got {found}: {turns}")
    if len(turns) == 3:
        rest["system"] = turns.pop(0)["content"]
    texts = [rest.get("system", ""), *(turn["content"] for turn in turns)]
    if [text.count(MARK) for text in texts] != [0, len(rest["images"]), 0]:
        raise ValueError(f"{MARK} should be in the question, once for each image, and nowhere else, got {texts}")
    return rest | {"messages": turns}


def read_chats(path: str | Path, pictures: str | Path) -> tuple[Dataset, str | None]:
    """Chats about one picture each, a JSON list as the authors released theirs for stage 1, and their system turn.

    Columns: image (the files in the folder `pictures`), label (the answer in tags), question, completion. To train on
    them as they are, give the turn to the profile: `replace(profile, system=turn)`. ValueError with the number of a
    row that is no such chat or has another system turn, FileNotFoundError for pictures that are missing.
    """
    rows, columns = [], defaultdict(list)
    for number, raw in enumerate(json.loads(Path(path).read_text(encoding="utf-8")), 1):
        try:
            rows.append(from_llama_factory(raw))
            if len(raw["images"]) != 1 or rows[-1].get("system") != rows[0].get("system"):
                raise ValueError("one picture is needed, and the same system turn as in the first row")
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        (asked, answered), (image,) = rows[-1]["messages"], raw["images"]
        found = (str(Path(pictures) / image), tagged_answer(answered["content"]))
        for name, value in zip(CHAT_COLUMNS, (*found, asked["content"].replace(MARK, ""), answered["content"])):
            columns[name].append(value)
    if missing := [image for image in columns["image"] if not Path(image).is_file()]:
        raise FileNotFoundError(f"{len(missing)} of {len(rows)} pictures are missing, the first is {missing[0]}")
    return Dataset.from_dict(columns).cast_column("image", ImageColumn()), rows[0].get("system")


def write_rows(path: str | Path, rows: Iterable[dict]) -> None:
    """Write rows as a JSON list, as LLaMA-Factory reads it, all or nothing; `files.write_jsonl` writes one a line."""
    write_whole(path, "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


def add_dataset_info(rows_file: str | Path, name: str) -> None:
    """Enter a file of LLaMA-Factory's rows as `name` into the dataset_info.json beside it; other entries stay."""
    path = Path(rows_file).with_name("dataset_info.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[name] = {
        "file_name": Path(rows_file).name, "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {f"{key}_tag": key for key in ("role", "content", "user", "assistant", "system")},
    }  # fmt: skip
    write_whole(path, json.dumps(known, ensure_ascii=False, indent=2) + "\n")


@dataclass(frozen=True)
class ClosedWorld:
    """Questions with image_path, question, options and ground_truth."""

    rows: list[dict]


def read_closed_world(path: str | Path) -> ClosedWorld:
    """A JSONL file as released. ValueError with the number of a line that is no such question."""
    return ClosedWorld([_checked(row, f"{path}, line {number}") for number, row in read_jsonl(path)])


def _checked(row: dict, where: str) -> dict:
    options, right = row.get("options", []), row.get("ground_truth")
    if len(options) != OPTIONS or len(set(map(normalise, options))) != OPTIONS or right not in options:
        raise ValueError(f"{where}: {right!r} and {OPTIONS - 1} other names are needed as options, got {options}")
    return row


def write_closed_world(
    path: str | Path, data: Dataset, nearest: Mapping[str, list[str]], seed: int = 0, questions=QUESTIONS,
    official: bool = False,
) -> ClosedWorld:  # fmt: skip
    """Write a question for each row of `data`, and return what was written.

    nearest: class -> its look-alikes, the first three the wrong options (`samplers.nearest_classes`). official: the
    right option first, as in the released files; else the seed shuffles. A picture without a file of its own is saved
    in the folder `images` beside. ValueError, before anything is written, for a class with too few look-alikes.
    """
    path, rng, rows = Path(path).absolute(), np.random.default_rng(seed), []
    for label in data["label"]:
        options = make_options(label, nearest, rng, OPTIONS)
        options = sorted(options, key=lambda option: option != label) if official else options
        row = {"image_path": "", "question": bare_question(rng, questions), "options": options, "ground_truth": label}
        rows.append(_checked(row, f"class {label!r} in `nearest`"))
    for number, stored in enumerate(data.cast_column("image", ImageColumn(decode=False))["image"]):
        file = Path(stored["path"] or "").absolute()
        if stored["bytes"] is not None or not file.is_file():
            file = path.parent / "images" / f"{number:06d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            as_rgb(data[number]["image"]).save(file)
        inside = file.is_relative_to(path.parent)
        rows[number]["image_path"] = (file.relative_to(path.parent) if inside else file).as_posix()
    write_jsonl(path, rows)
    return read_closed_world(path)
