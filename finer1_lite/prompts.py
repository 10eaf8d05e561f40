"""What is asked and in which form the answer is wanted: questions, instructions, chat messages."""

import re
from collections.abc import Sequence

# Signs of models and formats: in a text they would become an end or an image; halves of a letter cannot be saved.
RESERVED_SIGNS = re.compile(r"<\|[^|<>\s]+\|>|</?(?:image|video|audio)>|[\ud800-\udfff]", re.IGNORECASE)
THINK_INSTRUCTION = "Think inside <think> </think>, then give the name inside <answer> </answer>."
ANSWER_INSTRUCTION = "Give only the name inside <answer> </answer>."
PHRASINGS = (
    "What {kind} is the {noun} in this image?",
    "Which {noun} is this?",
    "What is the name of this {noun}?",
    "Can you name the {noun} in this image?",
    "Which {kind} does this {noun} belong to?",
    "Do you know what {noun} this is?",
    "Please name the {kind} of this {noun}.",
    "Tell me the name of the {noun} in this image.",
    "What {noun} is in this image?",
    "Could you identify this {noun}?",
)


def questions_for(noun: str, kind: str = "species") -> tuple[str, ...]:
    """Ten phrasings for a domain, as many as the released sets have; `kind` is what its classes are called."""
    return tuple(text.format(noun=noun, kind=kind) for text in PHRASINGS)


QUESTIONS = questions_for("bird")


def bare_question(rng, questions: Sequence[str] = QUESTIONS) -> str:
    """One of the phrasings, drawn with `rng` (a numpy Generator)."""
    return questions[int(rng.integers(len(questions)))]


def listing(text: str, options: Sequence[str] | None) -> str:
    """A question with the options of a closed-world one, if it has any."""
    return f"{text} Options: {'; '.join(options)}." if options else text


def instructed(text: str, think: bool = True, options: Sequence[str] | None = None) -> str:
    """A full prompt: the bare question, the options of a closed-world question, the format instruction."""
    return f"{listing(text, options)} {THINK_INSTRUCTION if think else ANSWER_INSTRUCTION}"


def question(rng, think: bool = True, questions: Sequence[str] = QUESTIONS) -> str:
    """An open-world prompt with a phrasing drawn with `rng`."""
    return instructed(bare_question(rng, questions), think)


def messages(text: str) -> list[dict]:
    """One image and one question as chat messages."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def make_options(label: str, nearest: dict[str, list[str]], rng, k: int = 4) -> list[str]:
    """The label and its `k - 1` nearest classes, shuffled with `rng` (a numpy Generator)."""
    options = [label, *nearest[label][: k - 1]]
    return [options[i] for i in rng.permutation(len(options))]
