"""How good are the chains that the authors released? `python -m studies.released_chains FILE` prints measures.

Most thoughts have headings; where the comparison's is missing it begins at the gap that the heading left, or where the
list of candidates ends. There are no labels, the answer stands for them.
"""

import json
import math
import re
import sys
from pathlib import Path

import pandas as pd

from finer1_lite.cot.chains import HINTS, PARTS, ChainError, names_label
from finer1_lite.cot.quality import intervals, similarity
from finer1_lite.data.names import normal_name

START = r"^[ \t#*_]*(?:(?:step[ \t]*)?\d+[.:)][ \t*_]*)?"  # of a line, with marks such as "## ", "Step 2: ", "3. **"
SHORT = r"\b(?:[^\n.,;]{0,50}$|[ \t*_]*:)"  # after the first word of a heading: not much, or a colon
MARKER = r"the analysis of candidate subcategories[ \t*_]*:"
OPTIONS = rf"{START}(?:(?:possible |potential )?(?:candidates?|subcategories|options){SHORT}|{MARKER})"
COMPARISON = rf"{START}(?:(?:detailed )?compari\w+{SHORT}|(?:now, )?let[’']?s compare{SHORT})"
PREDICTION = rf"{START}(?:(?:final )?(?:prediction|conclusion|answer|identification){SHORT}|the prediction is)"
OPTIONS, COMPARISON, PREDICTION = (re.compile(p, re.I | re.M) for p in (OPTIONS, COMPARISON, PREDICTION))
ITEM = re.compile(r"^([ \t]*)(?:(?:\*\*|option |candidate )?(\d+)[.):]|[-*•])[ \t]+(\S.*)$", re.I | re.M)
GAP = re.compile(r"\n[ \t]*\n[ \t]*\n")


def parse_released(text: str) -> tuple[tuple[str, str, str, str], list[str], str]:
    """The raw parts of a released completion, which joined are its thought, the names of the candidates (maybe none),
    and the answer. ChainError where one is missing."""
    frame = re.fullmatch(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", text, re.DOTALL)
    start = frame and OPTIONS.search(frame[1])
    stop = start and PREDICTION.search(frame[1], start.start())
    if not stop or not frame[2].strip():
        raise ChainError("an answer, or the heading of the candidates or of the prediction, is missing")
    thought, begin, end = frame[1], start.start(), stop.start()
    options, length = _options_and_length(thought[begin:end])
    parts = (thought[:begin], thought[begin : begin + length], thought[begin + length : end], thought[end:])
    return parts, options or _marked(parts[3]), frame[2].strip()  # a summary at the end may have the names


def _options_and_length(text: str) -> tuple[list[str], int]:
    heading = COMPARISON.search(text)
    stop = heading.start() if heading else len(text)
    names, end = _list(text[:stop])
    gap = GAP.search(text, end)
    cut = gap.end() if gap else stop if heading or not names else end
    names = _marked(text[:stop]) or names or _inline(text[:stop])
    return names, cut if text[cut:stop].strip(" \t\n-*_") else stop


def _marked(text: str) -> list[str]:
    found = re.search(MARKER, text, re.IGNORECASE)
    return (_list(text[found.end() :])[0] or _inline(text[found.end() :])) if found else []


def _list(text: str) -> tuple[list[str], int]:
    names, end, first = [], 0, None
    for item in ITEM.finditer(text):
        indent, number, name = len(item[1].expandtabs()), item[2], item[3]
        first = first or (indent, number)
        if indent > first[0] + 1 or (first[1] and not number):
            continue
        follows = number and int(number) == len(names) + 1
        if names and not follows and (number or GAP.search(text, end, item.start())):
            break
        names.append(_name(name))
        end = item.end()
    return names, end


def _inline(text: str) -> list[str]:
    for sentence in re.split(r"\n|\.\s", text):
        row = re.split(r":[*_]*\s|\b(?:are|includ\w+|be|between|such as)\s", sentence.strip(" ."))[-1]
        names = [_name(p) for p in re.split(r"(?:[,;]\s*(?:and\s|or\s)?|\s(?:and|or|vs\.?)\s)(?![^(]*\))", row)]
        if len(names) > 1 and all(re.match("[A-Z0-9]", n) and len(n.split()) < 8 for n in names):
            return names
    return []


def _name(item: str) -> str:
    bare = re.sub(r"\s*\((?:[^\s()]+\s+){4,}[^()]*\)", "", re.sub(r"\*\*|__", "", item).strip())
    return re.split(r":(?:\s|$)|\s[-–—]\s|,\s(?=[a-z])(?![^(]*\))", bare)[0].strip(" .;:")


def _forms(name: str) -> list[str]:
    bare = re.sub(r"(?<=\w) (?:19|20)\d\d$", "", normal_name(name))
    return [form for form in (bare, *map(normal_name, re.findall(r"\(([^()]{4,})\)", name))) if form]


def same_class(a: str, b: str) -> bool:
    """Whether one name holds the other in whole words, as teachers leave out years, body styles and first names."""
    return any(f" {x} " in f" {y} " or f" {y} " in f" {x} " for x in _forms(a) for y in _forms(b))


def speaks_of(text: str, name: str, others: list[str]) -> bool:
    """Whether a text says a name, or a part of it that none of the others has: two words, or a word with digits."""
    spoken, words = f" {normal_name(text.replace('(', ' '))} ", normal_name(name).split()
    rest = [f" {normal_name(o)} " for o in others if normal_name(o) != normal_name(name)]
    runs = [words[i:j] for i in range(len(words)) for j in range(i + 2, len(words) + 1)]
    runs = [" ".join(r) for r in runs if not {"and", "of", "the"} & {r[0], r[-1]}]
    runs += [w for w in words if not w.isalpha() and not w.isdigit()]
    own = [r for r in runs if not any(f" {r} " in o for o in rest)]
    return any(f" {f} " in spoken for f in [*_forms(name), *own]) or names_label(text, name, map(normal_name, others))


def measures(text: str) -> dict[str, float]:
    """The measures of `cot.quality` for a released completion, and some more."""
    parts, options, answer = parse_released(text)
    analysis, _, comparison, prediction = parts
    stated = re.split("the prediction is:?", prediction, maxsplit=1, flags=re.IGNORECASE)[-1]
    same = [o for o in options if same_class(o, answer)]
    rest = [o for o in options if o not in same]
    words = {f"words_{name}": len(part.split()) for name, part in zip(PARTS, parts)}
    return {
        "readable": 1, "kit_form": 0, "answer_is_label": 1,
        "candidates": len(options), "four_candidates": len(options) == 4,
        "recall": bool(same), "exact_recall": normal_name(answer) in map(normal_name, options),
        "label_leak": names_label(analysis, answer), "hint_leak": bool(HINTS.search(text)),
        "coverage": sum(speaks_of(comparison, o, options) for o in options) / len(options) if options else math.nan,
        "predicts_candidate": any(speaks_of(stated, o, options) for o in options),
        "predicts_answer": any(speaks_of(stated, name, rest) for name in (answer, *same)),
    } | words | {"words": sum(words.values())}  # fmt: skip


def table(path: str) -> pd.DataFrame:
    """Metric, value, n, low, high of a JSON file of released chains."""
    texts = [row["messages"][-1]["content"] for row in json.loads(Path(path).read_text("utf-8"))]
    analyses = [parse_released(text)[0][0] for text in texts]
    words = [tuple(analysis.casefold().split()) for analysis in analyses]
    frame = pd.DataFrame([measures(text) for text in texts]).astype(float)
    frame["distinct_analysis"] = [1 / words.count(own) for own in words]  # their mean is the share of different ones
    return intervals(frame.assign(similar_analyses=similarity(analyses)))


if __name__ == "__main__":
    print(table(sys.argv[1]).round(3).to_string(index=False))
