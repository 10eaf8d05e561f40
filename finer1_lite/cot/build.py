"""Asking a teacher for chains: the prompts, and sampling again until a chain passes quality control.

A *sampler* maps a list of (image index, prompt) to as many sampled texts. The steps are the paper's (arXiv
2602.07605, Stage 1): descriptions, the concepts that say most about the image, a structured prompt, a chain,
quality control. Departure: the prompt is our own, short enough for a tiny model; the paper prints its in appendix B.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from .chains import Chain, check_chain, read_chain

DESCRIBE = (
    "Describe the bird.", "Describe the head of the bird.", "Describe the body of the bird.",
    "Describe the wing and the tail of the bird.",
)  # fmt: skip
FOUR_PARTS = (
    "Answer in four parts: <analysis> </analysis> <options> </options> <comparison> </comparison> "
    "<prediction> </prediction>."
)
Sampler = Callable[[list[tuple[int, str]]], list[str]]


@dataclass(frozen=True)
class Task:
    """An image (by its index in the data set), its label, and the bare question about it."""

    image_index: int
    label: str
    question: str


@dataclass(frozen=True)
class Attempt:
    """One sampled chain: the position of its task, its round (from 1), and why it was rejected, if it was."""

    task: int
    round: int
    text: str
    reasons: tuple[str, ...]

    @property
    def chain(self) -> Chain:
        """The four parts; ChainError for one rejected for its format."""
        return read_chain(self.text)


@dataclass(frozen=True)
class Built:
    """What `build_chains` made: captions and concepts of each task, accepted attempts, rejected attempts."""

    captions: list[list[str]]
    concepts: list[list[str]]
    accepted: list[Attempt]
    rejected: list[Attempt]


def structured_prompt(question: str, label: str, concepts: list[str]) -> str:
    """The teacher's prompt: it is told the label and what to look at, and reasons towards it."""
    return f"{question} The label is {label}. Features: {', '.join(concepts)}. {FOUR_PARTS}"


def describe_questions(noun: str) -> tuple[str, ...]:
    """Four ways to ask for a description of any kind of thing ("car"), each with another emphasis."""
    emphases = ("", "the colours and the markings of ", "the shape of ", "the parts of ")
    return tuple(f"Describe {emphasis}the {noun}, not its surroundings." for emphasis in emphases)


def explained_prompt(question: str, label: str, concepts: list[str]) -> str:
    """The structured prompt for a large teacher, which was never trained on the short one: each part is explained."""
    return (
        f"{question} The answer is {label}, and these features of the image speak for it: {', '.join(concepts)}.\n"
        "Write down how an expert finds the answer who has only the image, in English and in exactly these parts:\n"
        "<analysis> what is to be seen, in short phrases, without any name </analysis>\n"
        f"<options> {label} and two or three others that look most like it, separated by semicolons, in any order"
        " </options>\n"
        "<comparison> for each option what speaks for it and against it </comparison>\n"
        f"<prediction> {label} </prediction>\n"
        "Do not say that the answer or the features were given."
    )


def describe_images(
    rows: list[Task], describe: Sampler, questions: tuple[str, ...] = DESCRIBE, samples: int = 1
) -> list[list[str]]:
    """Captions of each row's image: `samples` answers to each question, in one call of the sampler."""
    asked = [question for question in questions for _ in range(samples)]
    prompts = [(row.image_index, question) for row in rows for question in asked]
    texts = [text for _, text in zip(prompts, describe(prompts), strict=True)]
    return [texts[i : i + len(asked)] for i in range(0, len(texts), len(asked))]


def build_chains(
    rows: list[Task], describe: Sampler, write: Sampler,
    choose_concepts: Callable[[list[list[str]]], list[list[str]]], max_rounds: int = 8,
    known_names: Collection[str] = (), questions: tuple[str, ...] = DESCRIBE, samples: int = 1,
    prompt: Callable[[str, str, list[str]], str] = structured_prompt,
) -> Built:  # fmt: skip
    """Chains for rows, each sampled again until it is accepted, at most `max_rounds` times.

    choose_concepts: captions of all rows -> kept concepts of each. prompt: question, label and concepts -> what
    `write` is asked. known_names: see `check_chain`. `describe` is called once, `write` once a round with the rows
    still open. Accepted attempts come in the order of the rows; a row without one was given up.
    """
    captions = describe_images(rows, describe, questions, samples)
    concepts = choose_concepts(captions)
    prompts = [(r.image_index, prompt(r.question, r.label, c)) for r, c in zip(rows, concepts, strict=True)]
    accepted, rejected, left = [], [], list(range(len(rows)))
    for number in range(1, max_rounds + 1):
        texts = write([prompts[i] for i in left]) if left else []
        for i, text in zip(left, texts, strict=True):
            attempt = Attempt(i, number, text, tuple(check_chain(text, rows[i].label, known_names)))
            (rejected if attempt.reasons else accepted).append(attempt)
        left = sorted(set(left) - {attempt.task for attempt in accepted})
    return Built(captions, concepts, sorted(accepted, key=lambda a: a.task), rejected)
