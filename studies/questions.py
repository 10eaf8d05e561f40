"""Questions about pictures, or about nothing but text, that are not "which species is this?": asked, read, scored.

Any policy, any pictures: the bird world's questions are made in `transfer`, those of a JSONL file are read here
(`load_questions`), for a set like ImageWikiQA. Answers are greedy. Departures from usual practice: options are words
in the prompt, not letters; beside what the policy writes, `choose` asks which option is likeliest behind its own
thoughts, as a policy that has only learnt to name can know an answer and still write a name.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset, Features
from datasets import Image as ImageColumn

from finer1_lite.evaluate.answers import fingerprint, judge
from finer1_lite.images import read_image
from finer1_lite.policy.inputs import VisionCache, answer_ids, pad
from finer1_lite.policy.load import Policy
from finer1_lite.policy.lora import decoding
from finer1_lite.policy.rollout import rollout
from finer1_lite.policy.scoring import completion_logps
from finer1_lite.prompts import THINK_INSTRUCTION, instructed
from finer1_lite.rewards import extract_answer, format_reward, names_in, normalise

FORMS = ("plain", "answer", "think")  # no instruction, ANSWER_INSTRUCTION, THINK_INSTRUCTION
KEYS = {  # what a field of a JSONL row may be called
    "image": ("image", "image_path", "img", "path", "images"), "question": ("question", "query", "text"),
    "options": ("options", "choices", "candidates"), "answer": ("answer", "correct", "label"),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question. image: a row of the cache's pictures, None for text alone. answers: the phrases of the right
    answer. options: what may be answered, the right one among them; () where anything may. topic, split: for tables.
    chance: the share of `answers` that a guess gives without the options in sight."""

    image: int | None
    text: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    topic: str = ""
    split: str = ""
    chance: float = 0.0


def prompt_of(question: Question, form: str = "think", listed: bool = True) -> str:
    """The full prompt. listed: with the options, if the question has any. ValueError for an unknown form.

    >>> prompt_of(Question(0, "What does it eat?", ("fish",), ("fish", "seeds")), "plain")
    'What does it eat? Options: fish; seeds.'
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; choose one of: {', '.join(FORMS)}")
    options = list(question.options) if listed else None
    made = instructed(question.text, form != "answer", options)
    return made.removesuffix(f" {THINK_INSTRUCTION}") if form == "plain" else made


# ---- reading an answer


def said(text: str, form: str) -> str:
    """The part of a completion that answers: its <answer> (see `evaluate.judge`), or the first line of a plain one.

    A policy that goes on with a chain after a plain answer has still answered; `in_form` counts that it went on.

    >>> said("red crown.\\nCandidates: a; b.\\n<answer> a </answer>", "plain")
    'red crown.'
    """
    if form == "plain":
        return text.strip().removeprefix("<think>").strip().partition("\n")[0]
    return judge(0, text, True, text).answer


def score(question: Question, text: str, form: str) -> float:
    """1 or 0 where there are options: names the right one and no other. Else the share of `answers` it holds.

    >>> crown = Question(0, "Describe the head.", ("red crown", "thin beak"))
    >>> score(crown, "red crown, long beak.", "plain")
    0.5
    >>> meal = Question(0, "What does it eat?", ("fish",), ("fish", "seeds"))
    >>> [score(meal, f"<answer> {words} </answer>", "answer") for words in ("Fish.", "fish or seeds")]
    [1.0, 0.0]
    """
    answer = said(text, form)
    if question.options:
        return float(names_in(answer, question.options) == list(question.answers))
    return len(names_in(answer, question.answers)) / len(set(question.answers))


def in_form(question: Question, text: str, form: str) -> bool:
    """Whether the answer is what was asked for: one line without tags, or tags in order; and one of the options."""
    tags = {"think": lambda: format_reward(text) == 1, "answer": lambda: extract_answer(text) is not None,
            "plain": lambda: "\n" not in text.strip() and "<" not in text}  # fmt: skip
    return tags[form]() and (not question.options or len(names_in(said(text, form), question.options)) == 1)


# ---- asking


def ask(
    policy: Policy, cache: VisionCache | None, questions: Sequence[Question], form: str = "think", listed: bool = True,
    path: Path | None = None,
) -> list[str]:  # fmt: skip
    """The greedy answer to each question. cache: features of the pictures (None: all questions are text alone).

    path: a JSONL file that keeps the answers once there are all of them; with the same questions to the same policy it
    is read instead.
    """
    model = fingerprint(policy)[:16] if path else ""
    asked = [{"image": q.image, "prompt": prompt_of(q, form, listed), "model": model} for q in questions]
    if path and path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        texts = [row.pop("text") for row in rows]
        if rows == asked:
            return texts
    texts, size = [], policy.profile.eval_batch
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        seen = _seen(cache, [row["image"] for row in part])
        texts += rollout(policy, [(row["prompt"], s) for row, s in zip(part, seen)], 1, None, 0).texts
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = "".join(json.dumps(row | {"text": text}) + "\n" for row, text in zip(asked, texts))
        path.with_suffix(".part").write_text(whole)
        path.with_suffix(".part").replace(path)
    return texts


def _seen(cache: VisionCache | None, images: list[int | None]) -> list:
    wanted = [i for i in images if i is not None]
    found = dict(zip(wanted, cache.get(wanted))) if wanted else {}
    return [found.get(i) for i in images]


@torch.no_grad()
def choose(
    policy: Policy, cache: VisionCache | None, questions: Sequence[Question], texts: Sequence[str], listed: bool = True
) -> list[str]:
    """For each question the option that is likeliest as <answer> behind the policy's own thoughts.

    texts: what `ask` with form "think" and the same `listed` gave; what follows their </think> is dropped. The score
    of an option is the sum of its tokens' log-probabilities. ValueError for a question without options.
    """
    if not all(q.options for q in questions):
        raise ValueError("a question has no options to choose from; ask it instead")
    most = max(len(q.options) for q in questions)
    per, chosen = max(1, policy.profile.eval_batch // most), []
    with decoding(policy):
        for start in range(0, len(questions), per):
            part = questions[start : start + per]
            seen = _seen(cache, [q.image for q in part])
            rows, prompts = [], []
            for q, s, text in zip(part, seen, texts[start : start + per]):
                thought = text.partition("</think>")[0].rstrip() + "\n</think>\n"
                rows += [answer_ids(policy.processor, f"{thought}<answer> {option} </answer>") for option in q.options]
                prompts += [(prompt_of(q, "think", listed), s)] * len(q.options)
            mask = pad([[1] * len(row) for row in rows], 0, "right")
            ids = pad(rows, policy.processor.tokenizer.pad_token_id, "right")
            scores = completion_logps(policy, prompts, ids, mask).sum(-1).split([len(q.options) for q in part])
            chosen += [q.options[int(s.argmax())] for q, s in zip(part, scores)]
    return chosen


def about(question: Question, name: str, phrase: str = "bird in the picture") -> Question:
    """The question about a picture as one about a name, without the picture. ValueError if `phrase` is not in it.

    >>> about(Question(3, "What does the bird in the picture eat?", ("fish",)), "tunan tarn").text
    'What does the tunan tarn eat?'
    """
    if phrase not in question.text:
        raise ValueError(f"{question.text!r} does not speak of the {phrase!r}; give the words that stand for the thing")
    return replace(question, image=None, text=question.text.replace(phrase, name))


# ---- questions of a file


def load_questions(path: str | Path) -> tuple[list[Question], Sequence]:
    """Questions of a JSONL file, and its pictures (opened when they are needed) for a `VisionCache`.

    A row has a picture (a path, relative to the file), a question, perhaps options (a list, or a dictionary of
    letters) and an answer, which with options is one of them or its letter; `split` is kept. `KEYS` says what the
    fields may be called. ValueError naming the line for what is missing, a picture that cannot be read, and an answer
    that is not among the options; for a file without rows.
    """
    path, pictures, questions = Path(path), {}, []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line), path.parent, pictures))
            except ValueError as error:  # JSON's own error is one too
                raise ValueError(f"{path.name}, line {number}: {error}") from None
    if not questions:
        raise ValueError(f"{path.name} holds no question; give one JSON row a line, with {', '.join(KEYS)}")
    images = Dataset.from_dict({"image": list(map(str, pictures))}, features=Features({"image": ImageColumn()}))
    return questions, images["image"]


def _question(row: dict, folder: Path, pictures: dict[Path, int]) -> Question:
    if not isinstance(row, dict):
        raise ValueError(f"a row is a dictionary, this is {row!r}")
    found = {field: next((row[key] for key in keys if row.get(key) not in (None, "", [])), None)
             for field, keys in KEYS.items()}  # fmt: skip
    image, text, options, answer = found["image"], found["question"], found["options"] or (), found["answer"]
    image = image[0] if isinstance(image, list) and len(image) == 1 else image
    if isinstance(options, dict):  # the answer may be one of its letters, whatever their order
        letters = {str(key).upper(): option for key, option in options.items()}
        answer = letters.get(answer.strip("(). ").upper(), answer) if isinstance(answer, str) else answer
        options = list(options.values())
    for field, value in {"image": image, "question": text, "answer": answer}.items():
        if not isinstance(value, str):
            raise ValueError(f"the {field} should be one text under {' or '.join(KEYS[field])}, not {value!r}")
    if isinstance(options, str) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"the options should be a list of texts, not {options!r}")
    try:
        read_image(folder / image, decode=False)
    except ValueError as error:
        raise ValueError(f"the picture {image}: {error}; paths are relative to the file") from None
    options = tuple(options)
    if options:
        answer = _option(answer, options)
    place = pictures.setdefault(folder / image, len(pictures))
    text, split = text.replace("<image>", "").strip(), str(row.get("split", ""))
    return Question(place, text, (answer,), options, "", split, 1 / len(options) if options else 0.0)


def _option(answer: str, options: tuple[str, ...]) -> str:
    """The option that `answer` is, in its own words or as a letter."""
    same = [option for option in options if normalise(option) == normalise(answer)]
    if same:
        return same[0]
    letter = answer.strip("(). ").upper()
    place = ord(letter) - ord("A") if len(letter) == 1 else -1
    if not 0 <= place < len(options):
        raise ValueError(f"the answer {answer!r} is not among the options: {'; '.join(options)}")
    return options[place]
