"""Chains in the style of the released stage-1 data, read without loss.

The released file holds LLaMA-Factory chats whose answers were rewritten from tags to prose. Only the frame is
regular: <think> ... </think> <answer> ... </answer>. Most thoughts have headings (Analysis of ..., Candidate
Subcategories, Comparison Process, Final Prediction), with or without numbers, colons and bold marks. Some have
nothing but the phrases that the rewriting put in ("The analysis of candidate subcategories:", "The prediction
is:"); there the comparison begins at the gap that its heading left, or where the list of candidates ends. A
second summary of all parts, which some have at the end, is left in the prediction.
"""

import re
from dataclasses import dataclass

from .chains import Chain, ChainError, parse_prose, to_completion


def _lines(*patterns: str) -> re.Pattern:
    """Any of the patterns at the start of a line, after marks such as "## ", "Step 2: " and "3. **"."""
    marks = r"^[ \t#*_]*(?:(?:step[ \t]*)?\d+[.:)][ \t*_]*)?"
    return re.compile(rf"{marks}(?:{'|'.join(patterns)})", re.IGNORECASE | re.MULTILINE)


SHORT = r"\b(?:[^\n.,;]{0,50}$|[ \t*_]*:)"  # after the first word of a heading: not much, or a colon
MARKER = r"the analysis of candidate subcategories[ \t*_]*:"
ANALYSIS = _lines(rf"analysis{SHORT}")
OPTIONS = _lines(rf"(?:possible |potential )?(?:candidates?|subcategories|options){SHORT}", MARKER)
COMPARISON = _lines(rf"(?:detailed )?compari\w+{SHORT}", rf"(?:now, )?let[’']?s compare{SHORT}")
PREDICTION = _lines(rf"(?:final )?(?:prediction|conclusion|answer|identification){SHORT}", "the prediction is")
ITEM = re.compile(r"^([ \t]*)(?:(?:\*\*|option |candidate )?(\d+)[.):]|[-*•])[ \t]+(\S.*)$", re.I | re.M)
GAP = re.compile(r"\n[ \t]*\n[ \t]*\n")


@dataclass(frozen=True)
class ReleasedChain:
    """A completion in its raw parts, which joined are the text again, and the names that were read from them.

    opening is what stands before the analysis (the tag), ending what follows the prediction, from </think> on.
    Each part begins with its heading. options is empty where the text names no candidates.
    """

    opening: str
    analysis: str
    options_text: str
    comparison: str
    prediction: str
    ending: str
    options: tuple[str, ...]
    answer: str

    @property
    def text(self) -> str:
        """The whole completion, as it was."""
        parts = (self.opening, self.analysis, self.options_text, self.comparison, self.prediction, self.ending)
        return "".join(parts)

    def to_chain(self) -> Chain:
        """In the form that the kit trains on: without headings, and with the answer as the prediction.

        Raises ChainError if there are no candidates, or if a part would be read differently once written.
        """
        if not self.options:
            raise ChainError("the text names no candidates")
        bare = Chain(_bare(self.analysis), list(self.options), _bare(self.comparison), self.answer)
        chain = parse_prose(to_completion(bare))
        if chain.options != bare.options:
            raise ChainError(f"the candidates would be read as {chain.options}")
        return chain


def parse_released(text: str) -> ReleasedChain:
    """A completion in its parts. Raises ChainError naming the tag or the part that is missing.

    >>> chain = parse_released('''<think> **Analysis:** a red crown.
    ... **Candidates**
    ... 1. **a tarn**: known for its crown
    ...    - lives in reeds
    ... 2. b tarn (rare)
    ... **Comparison**: b tarn is blue.
    ... **Final Prediction**
    ... a tarn </think> <answer>a tarn</answer>''')
    >>> chain.options, chain.answer, chain.comparison
    (('a tarn', 'b tarn (rare)'), 'a tarn', '**Comparison**: b tarn is blue.\\n')
    """
    frame = re.fullmatch(r"(\s*<think>)(.*?)(</think>\s*<answer>(.*?)</answer>\s*)", text, re.DOTALL)
    if not frame or not frame[4].strip():
        raise ChainError("the text should be <think> ... </think> <answer> ... </answer> with an answer")
    opening, thought, ending, answer = frame.groups()
    start = _first(OPTIONS, thought, 0, "candidates: no heading, no 'The analysis of candidate subcategories:'")
    stop = _first(PREDICTION, thought, start, "prediction: no heading, no 'The prediction is'")
    options, length = _options_and_length(thought[start:stop])
    analysis, prediction, middle = thought[:start], thought[stop:], start + length
    options = options or _marked(prediction)  # from the summary at the end
    parts = (analysis, thought[start:middle], thought[middle:stop], prediction)
    return ReleasedChain(opening, *parts, ending, tuple(options), answer.strip())


def _first(pattern: re.Pattern, text: str, start: int, what: str) -> int:
    found = pattern.search(text, start)
    if not found:
        raise ChainError(f"the thought has no {what}")
    return found.start()


def _bare(part: str) -> str:
    """A part without the heading at its start and without rules ("---") at its ends."""
    part = part.strip()
    found = ANALYSIS.match(part) or COMPARISON.match(part)
    return part[found.end() if found else 0 :].strip(" \t\n-*_:")


def _options_and_length(text: str) -> tuple[list[str], int]:
    """The names of the candidates, and how long their part is: up to the comparison's heading, or its gap."""
    heading = COMPARISON.search(text)
    stop = heading.start() if heading else len(text)
    names, end = _list(text[:stop])
    gap = GAP.search(text, end)
    cut = gap.end() if gap else stop if heading or not names else end
    names = _marked(text[:stop]) or names or _inline(text[:stop])
    return names, cut if text[cut:stop].strip(" \t\n-*_") else stop


def _marked(text: str) -> list[str]:
    """The names after "The analysis of candidate subcategories:", if that is said."""
    found = re.search(MARKER, text, re.IGNORECASE)
    return (_list(text[found.end() :])[0] or _inline(text[found.end() :])) if found else []


def _list(text: str) -> tuple[list[str], int]:
    """The names of the first list, and where it ends; what is listed below its items is passed over."""
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
    """The names of the first "A, B and C" whose pieces are short and begin with a capital or a number."""
    for sentence in re.split(r"\n|\.\s", text):
        row = re.split(r":[*_]*\s|\b(?:are|includ\w+|be|between|such as)\s", sentence.strip(" ."))[-1]
        pieces = re.split(r"(?:[,;]\s*(?:and\s|or\s)?|\s(?:and|or|vs\.?)\s)(?![^(]*\))", row)
        names = [_name(piece) for piece in pieces]
        if len(names) > 1 and all(re.match("[A-Z0-9]", n) and len(n.split()) < 8 for n in names):
            return names
    return []


def _name(item: str) -> str:
    """The name at the start of a list's item: without bold marks, description and remark in brackets."""
    bare = re.sub(r"\*\*|__", "", item).strip()
    bare = re.sub(r"\s*\((?:[^\s()]+\s+){4,}[^()]*\)", "", bare)
    bare = re.split(r":(?:\s|$)|\s[-–—]\s|,\s(?=[a-z])(?![^(]*\))", bare)[0]
    return bare.strip(" .;:")
