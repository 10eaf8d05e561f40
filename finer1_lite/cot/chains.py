"""Chains of thought in four parts: reading, writing, quality control, and the file that the SFT reads.

A teacher answers in tags, `<analysis> <options> <comparison> <prediction>`; the student learns the same parts
as prose inside `<think>`, and the name inside `<answer>`:

    <think>
    Analysis: red crown, brown back.
    Candidates: a tarn; b tarn.
    Comparison: a tarn: fits. b tarn: blue back.
    Prediction: a tarn.
    </think>
    <answer> a tarn </answer>

Quality control follows the paper (arXiv 2602.07605, Stage 1): the prediction is among the candidates and equals the
label, at most four candidates, no mixed language. Departures: chains that name the label before the candidates, or
speak of the hidden hints, are rejected too (of 202 released ones 24% and 70% do, `studies.released_chains`); the
headings are fixed words.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.names import normal_name
from ..files import read_jsonl, write_jsonl
from ..prompts import RESERVED_SIGNS
from ..reading import same_name

MAX_CANDIDATES = 4
PARTS = ("analysis", "options", "comparison", "prediction")
HEADINGS = ("Analysis", "Candidates", "Comparison", "Prediction")
REASONS = FORMAT, LEAK, HINTED, NOT_CANDIDATE, NOT_LABEL, TOO_MANY, DUPLICATES, MIXED, RESERVED = (
    "format", "label before candidates", "hints mentioned", "prediction not among candidates",
    "prediction is not the label", "too many candidates", "duplicate candidates", "mixed language", "reserved signs",
)  # fmt: skip
# How a teacher speaks of what only its prompt held. "a hint of yellow" is a colour.
HINTS = re.compile(
    r"\bprovided\b|\b(?:the|this|your) descriptions?\b|\bhints?\b(?! of\b)|\b(?:given|the|the correct) label\b"
    r"|\bgiven (?:features|concepts|information)\b|\bthe prompt\b",
    re.IGNORECASE,
)
SCRIPTS = {"LATIN", "MICRO", "MASCULINE", "FEMININE", "OHM", "ANGSTROM", "KELVIN"}  # with µ, º, ª and units
# Words of names that any description uses: they do not give a name away. A false alarm costs one more sample.
ORDINARY = set(
    "black white gray grey brown blue green yellow orange purple pink golden silver scarlet rufous dark light bright"
    " plain spotted streaked striped banded barred ringed crested hooded eared horned masked winged billed throated"
    " headed tailed breasted bellied crowned backed faced painted glossy long short small large great little least"
    " giant miniature standard common wild tree rock house spring water northern southern eastern western".split()
)


class ChainError(ValueError):
    """A text is not a chain, or a row of a file of chains is broken."""


@dataclass(frozen=True)
class Chain:
    """The four parts: what is seen, who it could be, how these differ, the name."""

    analysis: str
    options: list[str]
    comparison: str
    prediction: str


def _sentence(text: str) -> str:
    return text.strip().removesuffix(".") + "."


def _options(text: str) -> list[str]:
    text = text.strip().removesuffix(".")
    pieces = re.split(r"[;\n]", text) if re.search(r"[;\n]", text) else text.split(",")
    names = (re.sub(r"^(?:\d+[.)]|[-*•])\s+", "", p.strip()) for p in pieces)
    return [n.strip() for n in names if n.strip()]


def _chain(text: str, marks: dict[str, str], pattern: str) -> Chain:
    for name, mark in marks.items():
        found = len(re.findall(mark, text, re.IGNORECASE | re.MULTILINE))
        if found != 1:
            raise ChainError(f"{name} is {'duplicated' if found else 'missing'}")
    found = re.search(pattern, text, re.DOTALL | re.IGNORECASE | re.MULTILINE)
    if not found:
        raise ChainError(f"parts are out of order or not the first thing said; they are {', '.join(PARTS)}")
    analysis, options, comparison, prediction = (g.strip() for g in found.groups())
    name = prediction.removesuffix(".").strip()
    chain = Chain(_sentence(analysis), _options(options), _sentence(comparison), name)
    for part in PARTS:
        if getattr(chain, part) in ("", ".", []):
            raise ChainError(f"{part} is empty")
    return chain


def parse_prose(text: str) -> Chain:
    """A student's completion, or its thinking part alone, as a chain. Raises ChainError, naming the heading that is
    missing, duplicated or out of order, or the part that is empty, and if the answer is not the prediction."""
    answer, body, tag = None, text, re.compile("</?(?:think|answer)>")
    if tag.search(text):
        found = re.fullmatch(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", text, re.DOTALL)
        if not found or re.search(tag.pattern, found[1] + found[2], re.IGNORECASE):
            raise ChainError("the tags should be <think> </think> <answer> </answer>, each once and in this order")
        body, answer = found[1], found[2].strip()
    marks = {f"{heading}:": f"^{heading}:" for heading in HEADINGS}
    chain = _chain(body, marks, r"\A\s*" + "".join(f"{mark}(.*?)" for mark in marks.values()) + r"\Z")
    if answer not in (None, chain.prediction):
        raise ChainError(f"the answer {answer!r} is not the prediction {chain.prediction!r}")
    return chain


def to_prose(chain: Chain) -> str:
    """The four parts as the thinking part of a completion."""
    return (
        f"Analysis: {_sentence(chain.analysis)}\nCandidates: {'; '.join(chain.options)}.\n"
        f"Comparison: {_sentence(chain.comparison)}\nPrediction: {chain.prediction}."
    )


def to_completion(chain: Chain) -> str:
    """What the student learns to write, as the module's docstring shows it."""
    return f"<think>\n{to_prose(chain)}\n</think>\n<answer> {chain.prediction} </answer>"


def read_chain(text: str) -> Chain:
    """A chain in either form; what surrounds a teacher's tags is dropped. Candidates are separated by semicolons or
    lines, else by commas. Raises ChainError, also if the chain is lost when written as a completion."""
    if re.search(r"<\s*analysis\s*>", text, re.IGNORECASE):
        marks = {f"<{p}>": rf"<\s*{p}\s*>" for p in PARTS} | {f"</{p}>": rf"<\s*/\s*{p}\s*>" for p in PARTS}
        chain = _chain(text, marks, ".*?".join(rf"{marks[f'<{p}>']}(.*?){marks[f'</{p}>']}" for p in PARTS))
    else:
        chain = parse_prose(text)
    if parse_prose(to_completion(chain)) != chain:
        raise ChainError("the chain reads differently once written as a completion")
    return chain


def _same(one: str, other: str) -> bool:
    return same_name(normal_name(one), normal_name(other))


def spelt(chain: Chain, label: str) -> Chain:
    """The chain with its name as the data set writes it, which the reward looks for; the chain as it is, where it
    could not be read again with that name in it."""
    options = [label if _same(option, chain.prediction) else option for option in chain.options]
    made = replace(chain, options=options, prediction=label)
    try:
        return made if read_chain(to_completion(made)) == made else chain
    except ChainError:
        return chain


def names_label(text: str, label: str, others: Iterable[str] = ()) -> bool:
    """Whether a text names the label (a car's year aside), or one of its words that no other name of `others` has and
    that is neither short nor of look and size (`ORDINARY`)."""
    spoken, name = f" {normal_name(text.replace('(', ' '))} ", normal_name(label)
    others = [o for o in map(normal_name, others) if o != name]
    shared = {word for other in others for word in other.split()} | ORDINARY
    own = [w for w in name.split() if len(w) > 3 and w.isalpha() and w not in shared] if others else []
    forms = [name, re.sub(r"^(\w+ .+) (?:19|20)\d\d$", r"\1", name), *own]
    return any(f" {form}{ending} " in spoken for form in forms for ending in ("", "s"))


def _scripts(text: str) -> set[str]:
    letters = [c for c in set(text) if unicodedata.category(c) in ("Ll", "Lu", "Lo")]
    return {unicodedata.name(c, "UNNAMED").split()[0] for c in letters}


def check_chain(text: str, label: str, known_names: Iterable[str] = ()) -> list[str]:
    """What is wrong with a chain in either form, out of `REASONS`; empty if it is accepted.

    known_names: all names of the data set, if known; a word that several of them share gives no label away.
    """
    names = [label, *known_names]
    try:
        chain = read_chain(text)
        text = to_prose(chain)
    except ChainError:
        found = {FORMAT: True}
    else:
        options = [normal_name(o) for o in chain.options]
        found = {
            LEAK: names_label(chain.analysis, label, [*chain.options, *names]),
            NOT_CANDIDATE: not any(_same(option, chain.prediction) for option in chain.options),
            NOT_LABEL: not _same(chain.prediction, label),
            TOO_MANY: len(options) > MAX_CANDIDATES,
            DUPLICATES: len(set(options)) < len(options),
        }
    mixed = _scripts(text) - _scripts(" ".join(names)) - SCRIPTS
    found |= {HINTED: bool(HINTS.search(text)), MIXED: bool(mixed), RESERVED: bool(RESERVED_SIGNS.search(text))}
    return [reason for reason in REASONS if found.get(reason)]


def chat_row(
    image_index: int, label: str, question: str, completion: str, image: str | None = None, pixels: str | None = None
) -> dict:
    """One line of the file: a chat with `<image>` in the question, which LLaMA-Factory and others read too.

    image: where the image lies relative to the file; if not given, `train/` and its number. pixels: a digest of the
    image, by which it is known again after the data have changed.
    """
    messages = [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": completion}]
    row = {"image_index": image_index, "label": label, "messages": messages}
    row["images"] = [image or f"train/{image_index:05d}.png"]
    return row | ({"pixels": pixels} if pixels else {})


def question_and_completion(row: dict) -> tuple[str, str]:
    """Question (without `<image>`) and completion of a row of `chat_row`. Raises ChainError for any other row."""
    match row:
        case {
            "image_index": int(), "label": str(), "images": [str()],
            "messages": [{"role": "user", "content": str(asked)}, {"role": "assistant", "content": str(completion)}],
        } if asked.startswith("<image>") and asked.count("<image>") == 1:  # fmt: skip
            return asked.removeprefix("<image>"), completion
    raise ChainError(f"a row should be as `chat_row` makes it, got {str(row)[:80]}")


def save_chains(path: str | Path, rows: Iterable[dict]) -> None:
    """Write rows of `chat_row` as JSON lines, whole or not at all."""
    write_jsonl(path, rows)


def load_chains(path: str | Path) -> list[dict]:
    """The rows of `save_chains`. FileNotFoundError without the file; ValueError, with the line, for a broken one."""
    numbered = read_jsonl(path)
    for number, row in numbered:
        try:
            question_and_completion(row)
        except ChainError as error:
            raise ChainError(f"{path}, line {number}: {error}") from None
    return [row for _, row in numbered]
