"""Data in and out: chats of stage 1 in three forms, triplets of stage 2, closed-world questions. No row loses anything.

Our chat row is that of `cot.chains.chat_row`: messages (one user, one assistant turn), images, and whatever else a
row carries; `system` is the system prompt, if there is one. The other forms, with the same further keys beside:

    LLaMA-Factory   messages [system?, user, assistant] of role and content, images
    ShareGPT        conversations [system?, human, gpt] of from and value, images
    TRL             prompt [system?, user], completion [assistant] with lists of typed parts as content, images

What our row cannot hold is refused: more turns, other keys in a turn, <image> anywhere but in the question. The keys
of LLaMA-Factory were read from its data/README.md.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn

from ..images import as_rgb
from ..prompts import QUESTIONS, bare_question, make_options
from ..rewards import normalise
from .triplets import ROLES, TEXTS

MARK = "<image>"
SHAREGPT = {"system": "system", "human": "user", "gpt": "assistant"}
OPTIONS = 4


# ---- chats, row by row


def from_llama_factory(row: dict) -> dict:
    """Our row of LLaMA-Factory's. All converters raise ValueError for a row that they cannot hold.

    >>> turns = {"system": "Be brief.", "user": "<image>Who?", "assistant": "A wren."}
    >>> row = {"messages": [{"role": r, "content": c} for r, c in turns.items()], "images": ["a.jpg"], "id": 7}
    >>> from_llama_factory(row)["system"], to_llama_factory(from_llama_factory(row)) == row
    ('Be brief.', True)
    """
    (messages, images), rest = _parted(row, "messages", "images")
    return _ours(_turns(messages, "role", "content"), images, rest)


def to_llama_factory(row: dict) -> dict:
    """LLaMA-Factory's row of ours: the system prompt becomes the first turn."""
    turns, images, rest = _opened(row)
    return {"messages": [{"role": role, "content": text} for role, text in turns], "images": images} | rest


def from_sharegpt(row: dict) -> dict:
    """Our row of ShareGPT's; one `image`, as LLaVA writes it, becomes a list."""
    if "image" in row and "images" not in row:
        row = {key: value for key, value in row.items() if key != "image"} | {"images": [row["image"]]}
    (conversations, images), rest = _parted(row, "conversations", "images")
    return _ours([(SHAREGPT.get(who, who), text) for who, text in _turns(conversations, "from", "value")], images, rest)


def to_sharegpt(row: dict) -> dict:
    """ShareGPT's row of ours."""
    turns, images, rest = _opened(row, "conversations")
    who = {role: who for who, role in SHAREGPT.items()}
    return {"conversations": [{"from": who[role], "value": text} for role, text in turns], "images": images} | rest


def from_trl(row: dict) -> dict:
    """Our row of TRL's, also as a Dataset gives it back, which fills parts up with None."""
    (prompt, completion, images), rest = _parted(row, "prompt", "completion", "images")
    turns = _turns([*prompt, *completion], "role", "content")
    return _ours([(role, _joined(content)) for role, content in turns], images, rest)


def to_trl(row: dict) -> dict:
    """TRL's row of ours; for training let `images` hold pictures: `cast_column("images", List(Image()))`."""
    turns, images, rest = _opened(row, "prompt", "completion")
    parts = [{"role": role, "content": _parts(text)} for role, text in turns]
    return {"prompt": parts[:-1], "completion": parts[-1:], "images": images} | rest


def _parted(row: dict, *keys: str) -> tuple[list, dict]:
    """The values of a form's own keys, and the rest of the row."""
    if not all(isinstance(row.get(key), list) for key in keys):
        raise ValueError(f"a row should have the lists {', '.join(keys)}; this one has the keys {', '.join(row)}")
    return [row[key] for key in keys], {key: value for key, value in row.items() if key not in keys}


def _turns(messages: list[dict], role: str, content: str) -> list[tuple]:
    for turn in messages:
        if set(turn) != {role, content}:
            raise ValueError(f"a turn should have {role} and {content} alone, got {', '.join(turn)}")
    return [(turn[role], turn[content]) for turn in messages]


def _ours(turns: list[tuple], images: list, rest: dict) -> dict:
    """Our row of (role, text) turns, checked."""
    roles = [role for role, _ in turns]
    if roles[-2:] != ["user", "assistant"] or roles[:-2] not in ([], ["system"]):
        raise ValueError(f"the turns are of {roles}; a question and an answer are needed, after a system turn or none")
    if len(turns) == 3:
        if "system" in rest:
            raise ValueError("there is a system turn and a key `system`; keep one of them")
        rest = rest | {"system": turns[0][1]}
    texts = [rest.get("system", ""), *(text for _, text in turns[-2:])]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a turn or `system` is not text; leave `system` out where there is none")
    if [text.count(MARK) for text in texts] != [0, len(images), 0]:
        raise ValueError(f"{MARK} should be in the question, once for each of {len(images)} images, and nowhere else")
    return {"messages": [{"role": role, "content": text} for role, text in turns[-2:]], "images": images} | rest


def _opened(row: dict, *made: str) -> tuple[list[tuple], list, dict]:
    """All turns, the images and the rest of our row, checked; no key of the rest may be one that is `made`."""
    (messages, images), rest = _parted(from_llama_factory(row), "messages", "images")
    if clash := set(made) & set(rest):
        raise ValueError(f"the row's own key {', '.join(clash)} would be lost; rename it")
    system = [("system", rest.pop("system"))] if "system" in rest else []
    return system + _turns(messages, "role", "content"), images, rest


def _parts(text: str) -> list[dict]:
    """Text with marks as typed parts."""
    parts = [{"type": "text", "text": text.split(MARK)[0]}]
    for piece in text.split(MARK)[1:]:
        parts += [{"type": "image"}, {"type": "text", "text": piece}]
    return [part for part in parts if part.get("text") != ""] or parts


def _joined(content: str | list[dict]) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"a turn's content should be a text or a list of parts, got {content!r}")
    for part in content:
        filled = {key for key, value in part.items() if value is not None}
        if filled != ({"type"} if part.get("type") == "image" else {"type", "text"}):
            raise ValueError(f"a part of type {part.get('type')} has {sorted(filled)}; pictures belong in `images`")
    return "".join(MARK if part["type"] == "image" else part["text"] for part in content)


# ---- files


def read_rows(path: str | Path) -> list[dict]:
    """The objects of a file, a JSON list or JSONL. FileNotFoundError; ValueError with the number of a broken line."""
    text = _text(Path(path))
    if not text.lstrip().startswith("["):
        return [row for _, row in _lines(path)]
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: a list of objects is needed")
    return rows


def write_rows(path: str | Path, rows: Iterable[dict]) -> None:
    """Write a JSON list (.json) or one object a line (.jsonl), all or nothing. ValueError for another ending."""
    path, texts = Path(path), [json.dumps(row, ensure_ascii=False) for row in rows]
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path} should end in .json (one list) or .jsonl (one object a line)")
    _replace(path, "[\n" + ",\n".join(texts) + "\n]\n" if path.suffix == ".json" else "".join(t + "\n" for t in texts))


def add_dataset_info(rows_file: str | Path, name: str) -> None:
    """Enter a file of LLaMA-Factory's rows as `name` into the dataset_info.json beside it; other entries stay."""
    path = Path(rows_file).with_name("dataset_info.json")
    known = json.loads(_text(path)) if path.exists() else {}
    known[name] = {
        "file_name": Path(rows_file).name, "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                 "system_tag": "system"},
    }  # fmt: skip
    _replace(path, json.dumps(known, ensure_ascii=False, indent=2) + "\n")


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return path.read_bytes().decode("utf-8-sig")


def _lines(path: str | Path) -> Iterable[tuple[int, dict]]:
    """The objects of a JSONL file with the numbers of their lines."""
    for number, line in enumerate(_text(Path(path)).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: an object is needed, got {type(row).__name__}")
            yield number, row


def _replace(path: Path, text: str) -> None:
    """Write a file all or nothing: a cut-off run leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)


# ---- triplets


def read_triplets(path: str | Path) -> Dataset:
    """The triplets of `export.export_triplets` as anchor, positive, negative, question, label.

    path: the parquet file, its folder `data`, or triplets.jsonl. All rows are read; pictures are decoded when asked
    for. FileNotFoundError for a missing file or picture, ValueError for a row of another form.
    """
    path = Path(path)
    rows = [row for _, row in _lines(path)] if path.suffix == ".jsonl" else pq.read_table(path).to_pylist()
    features = dict.fromkeys(ROLES.values(), ImageColumn()) | dict.fromkeys(("question", "label"), Value("string"))
    made = [_triplet(row, f"{path}, row {number}", path.parent) for number, row in enumerate(rows, 1)]
    return Dataset.from_list(made, features=Features(features))


def _triplet(row: dict, where: str, folder: Path) -> dict:
    if not {*ROLES, *TEXTS} <= set(row) or not row["problem"].startswith(MARK):
        raise ValueError(f"{where}: {', '.join([*ROLES, *TEXTS])} are needed, {MARK} in front of the problem")
    made = {"question": row["problem"].removeprefix(MARK), "label": row["answer"]}
    for column, role in ROLES.items():
        if len(row[column]) != 1:
            raise ValueError(f"{where}: {column} should hold one image, it holds {len(row[column])}")
        made[role] = row[column][0]
        if isinstance(made[role], str):
            file = folder / made[role]
            if not file.is_file():
                raise FileNotFoundError(f"{where}: no picture {file}")
            made[role] = {"path": str(file), "bytes": None}
    return made


# ---- closed world


@dataclass(frozen=True)
class ClosedWorld:
    """Questions with image_path, question, options, ground_truth; `containing`: the indices of rows in which a wrong
    option contains the right one, so that by containment both count as right."""

    rows: list[dict]
    containing: list[int]


def read_closed_world(path: str | Path) -> ClosedWorld:
    """A JSONL file as released. FileNotFoundError; ValueError with the number of a line that is no such question."""
    rows = []
    for number, row in _lines(path):
        try:
            rows.append(_checked(row))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    pairs = [(normalise(row["ground_truth"]), map(normalise, row["options"])) for row in rows]
    return ClosedWorld(rows, [i for i, (right, options) in enumerate(pairs) if sum(right in o for o in options) > 1])


def _checked(row: dict) -> dict:
    if not {"image_path", "question", "options", "ground_truth"} <= set(row):
        raise ValueError(f"image_path, question, options and ground_truth are needed, got {', '.join(row)}")
    options, right = row["options"], row["ground_truth"]
    if not isinstance(options, list) or len(options) != OPTIONS or len(set(map(normalise, options))) < OPTIONS:
        raise ValueError(f"{OPTIONS} options are needed that differ in more than case and punctuation, got {options}")
    if right not in options:
        raise ValueError(f"the ground truth {right!r} is not among the options {options}")
    return row


def write_closed_world(
    path: str | Path, data: Dataset, nearest: Mapping[str, list[str]], seed: int = 0, questions=QUESTIONS,
    official: bool = False,
) -> ClosedWorld:  # fmt: skip
    """Write a question for each row of `data`, and return what was written.

    nearest: class -> its look-alikes, of which the first three are the wrong options; see `samplers.nearest_classes`.
    official: the right option comes first, as in the released files; else the seed shuffles them. A picture without
    a file of its own is saved in the folder `images` beside. ValueError, before anything is written, for a class with
    too few look-alikes.
    """
    path, rng, rows = Path(path), np.random.default_rng(seed), []
    for label in data["label"]:
        if len(nearest.get(label, ())) < OPTIONS - 1:
            raise ValueError(f"class {label!r} has less than {OPTIONS - 1} look-alikes in `nearest`")
        options = make_options(label, nearest, rng, OPTIONS)
        options = sorted(options, key=lambda option: option != label) if official else options
        texts = {"question": bare_question(rng, questions), "options": options, "ground_truth": label}
        rows.append(_checked({"image_path": "", **texts}))
    for number, stored in enumerate(data.cast_column("image", ImageColumn(decode=False))["image"]):
        file = Path(stored["path"] or "").absolute()
        if stored["bytes"] is not None or not file.is_file():
            file = path.parent.absolute() / "images" / f"{number:06d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            as_rgb(data[number]["image"]).save(file)
        inside = file.is_relative_to(path.parent.absolute())
        rows[number]["image_path"] = (file.relative_to(path.parent.absolute()) if inside else file).as_posix()
    write_rows(path, rows)
    return read_closed_world(path)
