r"""Chains of thought in four parts: reading, writing, quality control, and the file that the SFT reads.

A teacher answers in tags, `<analysis> <options> <comparison> <prediction>`; the student learns the same parts
as prose inside `<think>`, and the name inside `<answer>`:

    <think>
    Analysis: red crown, brown back.
    Candidates: a tarn; b tarn.
    Comparison: a tarn: fits. b tarn: blue back.
    Prediction: a tarn.
    </think>
    <answer> a tarn </answer>

Quality control follows the paper (arXiv 2602.07605, Stage 1): the prediction is among the candidates and
equals the label, at most four candidates, no mixed language. Departures: chains that name the label before
the candidates, or that speak of the hidden hints, are rejected too (of the 404 released chains 94 and 263 do
so); every rejection has its reasons; the headings inside `<think>` are fixed words, so that a chain can be
read back.
"""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from ..data.names import normal_name

MAX_CANDIDATES = 4
FORMAT = "format"
LEAK = "label before candidates"
HINTED = "hints mentioned"
NOT_CANDIDATE = "prediction not among candidates"
NOT_LABEL = "prediction is not the label"
TOO_MANY = "too many candidates"
DUPLICATES = "duplicate candidates"
MIXED = "mixed language"
REASONS = (FORMAT, LEAK, HINTED, NOT_CANDIDATE, NOT_LABEL, TOO_MANY, DUPLICATES, MIXED)

# How a teacher speaks of what only its prompt held. "a hint of yellow" is a colour.
HINTS = (
    r"\bprovided\b",
    r"\b(?:the|this|your) descriptions?\b",
    r"\bhints?\b(?! of\b)",
    r"\b(?:given|the|the correct) label\b",
    r"\bgiven (?:features|concepts|information)\b",
    r"\bthe prompt\b",
)
# Words of names that any description uses: they do not give a name away. A false alarm costs one more sample.
ORDINARY = frozenset(
    "black white gray grey brown blue green yellow orange purple pink golden silver scarlet rufous dark light"
    " bright plain spotted streaked striped banded barred ringed crested hooded eared horned masked winged"
    " billed throated headed tailed breasted bellied crowned backed faced painted glossy long short small"
    " large great little least giant miniature standard common wild tree rock house spring water northern"
    " southern eastern western".split()
)
PARTS = ("analysis", "options", "comparison", "prediction")
HEADINGS = ("Analysis", "Candidates", "Comparison", "Prediction")


class ChainError(ValueError):
    """A text is not a chain, or a file of chains is broken; says what is missing."""


@dataclass(frozen=True)
class Chain:
    """The four parts: what is seen, who it could be, how these differ, the name."""

    analysis: str
    options: list[str]
    comparison: str
    prediction: str


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith(".") else text + "."


def _options(text: str) -> list[str]:
    """Names of a list with semicolons or one on a line, else with commas; list marks and the full stop go."""
    text = text.strip().removesuffix(".")
    pieces = re.split(r"[;\n]", text) if re.search(r"[;\n]", text) else text.split(",")
    names = (re.sub(r"^(?:\d+[.)]|[-*•])\s+", "", p.strip()) for p in pieces)
    return [n.strip() for n in names if n.strip()]


def _once(pattern: str, text: str, what: str) -> None:
    found = len(re.findall(pattern, text, re.IGNORECASE | re.MULTILINE))
    if found != 1:
        raise ChainError(f"{what} is {'duplicated' if found else 'missing'}")


def _chain(pattern: str, text: str) -> Chain:
    """A chain of the pattern's four groups."""
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


def parse_tagged(text: str) -> Chain:
    """A teacher's answer as a chain; what surrounds the tags is dropped.

    Raises ChainError naming the part that is missing, duplicated, empty or out of order.

    >>> parse_tagged("<analysis> x </analysis> <options> a; b. </options> <comparison> y </comparison>"
    ...              "<prediction> a. </prediction>")
    Chain(analysis='x.', options=['a', 'b'], comparison='y.', prediction='a')
    """
    for part in PARTS:
        _once(rf"<\s*{part}\s*>", text, f"<{part}>")
        _once(rf"<\s*/\s*{part}\s*>", text, f"</{part}>")
    return _chain(r".*?".join(rf"<\s*{part}\s*>(.*?)<\s*/\s*{part}\s*>" for part in PARTS), text)


def parse_prose(text: str) -> Chain:
    """A student's completion, or its thinking part alone, as a chain.

    Raises ChainError naming the part that is missing, duplicated, empty or out of order, and if the answer is
    not the prediction.
    """
    answer, body = None, text
    if re.search("</?(?:think|answer)>", text):
        for tag in ("<think>", "</think>", "<answer>", "</answer>"):
            _once(tag, text, tag)
        found = re.fullmatch(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", text, re.DOTALL)
        if not found:
            raise ChainError("the tags are out of order, they should be <think> </think> <answer> </answer>")
        body, answer = found.group(1), found.group(2).strip()
    for heading in HEADINGS:
        _once(rf"^{heading}:", body, f"{heading}:")
    chain = _chain(r"\A\s*" + "".join(rf"^{heading}:(.*?)" for heading in HEADINGS) + r"\Z", body)
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


def spelt(chain: Chain, label: str) -> Chain:
    """The chain with its name as the data set writes it, "Black footed Albatross" for "Black-footed Albatross": it is
    what the reward looks for. The chain itself, where it could not be read again with that name in it."""
    same = normal_name(chain.prediction)
    options = [label if normal_name(option) == same else option for option in chain.options]
    made = replace(chain, options=options, prediction=label)
    try:
        return made if read_chain(to_completion(made)) == made else chain
    except ChainError:
        return chain


def names_label(text: str, label: str, others: Iterable[str] = ()) -> bool:
    """Whether a text names the label, or one of its words that no other name of `others` has.

    A car's year need not be said. Words of look and size (`ORDINARY`) and of three letters give nothing away.

    >>> names_label("a sage bird", "Sage Thrasher"), names_label("a sage bird", "Sage Thrasher", ["Wren"])
    (False, True)
    """
    spoken, name = f" {normal_name(text.replace('(', ' '))} ", normal_name(label)
    others = [o for o in map(normal_name, others) if o != name]
    shared = {word for other in others for word in other.split()} | ORDINARY
    own = [w for w in name.split() if len(w) > 3 and w.isalpha() and w not in shared] if others else []
    forms = [name, re.sub(r"^(\w+ .+) (?:19|20)\d\d$", r"\1", name), *own]
    return any(f" {form} " in spoken or f" {form}s " in spoken for form in forms)


def mentions_hints(text: str, hints: tuple[str, ...] = HINTS) -> bool:
    """Whether a text speaks of what only the teacher's prompt held; `hints` are regular expressions."""
    return any(re.search(hint, text, re.IGNORECASE) for hint in hints)


def _scripts(text: str) -> set[str]:
    """Scripts of the letters of a text, by the first word of their Unicode names."""
    return {
        unicodedata.name(c, "UNNAMED").split()[0]
        for c in set(text)
        if unicodedata.category(c) in ("Ll", "Lu", "Lo")
    }


def mixed_language(text: str, names: Iterable[str] = ()) -> bool:
    """Whether a text has letters that are neither Latin nor of a script in which the names are written."""
    signs = {"LATIN", "MICRO", "MASCULINE", "FEMININE", "OHM", "ANGSTROM", "KELVIN"}  # µ, º, ª and units
    return bool(_scripts(text) - _scripts(" ".join(names)) - signs)


def read_chain(text: str) -> Chain:
    """A chain in either form. Raises ChainError, also if it is lost when written as a completion."""
    chain = parse_tagged(text) if re.search(r"<\s*analysis\s*>", text, re.IGNORECASE) else parse_prose(text)
    if parse_prose(to_completion(chain)) != chain:
        raise ChainError("the chain reads differently once written as a completion")
    return chain


def check_chain(
    text: str, label: str, known_names: Iterable[str] | None = None, prompt_hints: tuple[str, ...] = HINTS
) -> list[str]:
    """What is wrong with a chain in either form, as reasons out of `REASONS`; empty if it is accepted.

    known_names: all names of the data set, if known; a word that several of them share gives no label away.
    prompt_hints: regular expressions for talk of the hidden prompt.
    """
    names = [label, *(known_names or ())]
    try:
        chain = read_chain(text)
    except ChainError:
        found = {FORMAT: True, HINTED: mentions_hints(text, prompt_hints), MIXED: mixed_language(text, names)}
    else:
        options, prediction = [normal_name(o) for o in chain.options], normal_name(chain.prediction)
        found = {
            LEAK: names_label(chain.analysis, label, [*chain.options, *names]),
            HINTED: mentions_hints(to_prose(chain), prompt_hints),
            NOT_CANDIDATE: prediction not in options,
            NOT_LABEL: prediction != normal_name(label),
            TOO_MANY: len(options) > MAX_CANDIDATES,
            DUPLICATES: len(set(options)) < len(options),
            MIXED: mixed_language(to_prose(chain), names),
        }
    return [reason for reason in REASONS if found.get(reason)]


def chain_statistics(chains: Iterable[Chain], rejected: Iterable[list[str]] = ()) -> dict:
    """Counts of a set: chains, words of the thinking part, candidates per chain, rejections by reason.

    rejected: the reasons of each rejected chain; one with two reasons counts for both.
    """
    chains, rejected = list(chains), list(rejected)
    words = [len(to_prose(chain).split()) for chain in chains] or [0]
    by_reason = Counter(reason for reasons in rejected for reason in reasons)
    return {
        "accepted": len(chains),
        "rejected": len(rejected),
        "words": {"min": min(words), "median": median(words), "max": max(words)},
        "candidates": dict(sorted(Counter(len(chain.options) for chain in chains).items())),
        "reasons": {reason: by_reason[reason] for reason in REASONS if by_reason[reason]},
    }


def chat_row(image_index: int, label: str, question: str, completion: str, image: str | None = None) -> dict:
    """One line of the file: a chat with `<image>` in the question, which LLaMA-Factory and others read too.

    image: where the image lies relative to the file, or its id; if not given, `train/` and its number.
    """
    image = image or f"train/{image_index:05d}.png"
    user = {"role": "user", "content": f"<image>{question}"}
    answer = {"role": "assistant", "content": completion}
    return {"image_index": image_index, "label": label, "messages": [user, answer], "images": [image]}


def question_and_completion(row: dict) -> tuple[str, str]:
    """Question (without `<image>`) and completion of a row. Raises ChainError naming what is wrong."""
    if not isinstance(row, dict):
        raise ChainError(f"a row should be an object, got {type(row).__name__}")
    for key, kind in {"image_index": int, "label": str, "messages": list, "images": list}.items():
        if not isinstance(row.get(key), kind):
            raise ChainError(f"'{key}' should be there and be of type {kind.__name__}")
    turns = [m if isinstance(m, dict) else {} for m in row["messages"]]
    texts = [m.get("content") for m in turns]
    if [m.get("role") for m in turns] != ["user", "assistant"] or not all(isinstance(t, str) for t in texts):
        raise ChainError("'messages' should be one user and one assistant turn with text as content")
    if texts[0].count("<image>") != len(row["images"]) or not texts[0].startswith("<image>"):
        raise ChainError("the question should start with <image>, one for each of 'images'")
    return texts[0].removeprefix("<image>"), texts[1]


def save_chains(path: str | Path, rows: Iterable[dict]) -> None:
    """Writes rows of `chat_row` as JSONL, all or nothing: a cut-off run leaves the old file.

    Raises ChainError for a bad row.
    """
    path, lines = Path(path), []
    for number, row in enumerate(rows, 1):
        try:
            question_and_completion(row)
        except ChainError as error:
            raise ChainError(f"row {number} for {path}: {error}") from None
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text("".join(lines), encoding="utf-8", newline="\n")
    os.replace(part, path)


def load_chains(path: str | Path) -> list[dict]:
    """The rows of `save_chains`.

    Raises FileNotFoundError without the file, ChainError with the number of a broken line.
    """
    path, rows = Path(path), []
    if not path.is_file():
        raise FileNotFoundError(
            f"no chains at {path}; make them with the notebook 01_cot_data, or give another path"
        )
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
            question_and_completion(rows[-1])
        except (ValueError, UnicodeDecodeError) as error:
            raise ChainError(f"{path}, line {number}: {error}") from None
    return rows
