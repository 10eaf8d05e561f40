"""Questions about pictures, or about nothing but text, that are not "which species is this?": asked, read, scored.

Answers are greedy, options are words in the prompt. Beside what the policy writes, `choose` asks which option is
likeliest behind its own thoughts: a policy that has only learnt to name can know an answer and still write a name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from finer1_lite.evaluate.answers import judge
from finer1_lite.policy.inputs import VisionCache, answer_ids, pad
from finer1_lite.policy.load import Policy
from finer1_lite.policy.lora import decoding
from finer1_lite.policy.rollout import rollout
from finer1_lite.policy.scoring import completion_logps
from finer1_lite.prompts import THINK_INSTRUCTION, instructed
from finer1_lite.rewards import names_in


@dataclass(frozen=True)
class Question:
    """One question. image: a row of the cache's pictures, None for text alone. answers: the phrases of the right
    answer. options: what may be answered, the right one among them; () where anything may. split: for tables.
    chance: the share of `answers` that a guess gives without the options in sight."""

    image: int | None
    text: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    split: str = ""
    chance: float = 0.0


def prompt_of(question: Question, form: str = "think", listed: bool = True) -> str:
    """The full prompt. form: "think", "answer", or "plain", no instruction. listed: with the options, if any."""
    made = instructed(question.text, form != "answer", list(question.options) if listed else None)
    return made.removesuffix(f" {THINK_INSTRUCTION}") if form == "plain" else made


def said(text: str, form: str) -> str:
    """The part of a completion that answers: its <answer> (see `judge`), or the first line of a plain one."""
    if form == "plain":
        return text.strip().removeprefix("<think>").strip().partition("\n")[0]
    return judge(0, text, True, text).answer


def score(question: Question, text: str, form: str) -> float:
    """1 or 0 where there are options: names the right one and no other. Else the share of `answers` it holds."""
    answer = said(text, form)
    if question.options:
        return float(names_in(answer, question.options) == list(question.answers))
    return len(names_in(answer, question.answers)) / len(set(question.answers))


def in_form(text: str) -> bool:
    """Whether a plain answer is what was asked for: one line without tags."""
    return "\n" not in text.strip() and "<" not in text


def about(question: Question, name: str, phrase: str = "bird in the picture") -> Question:
    """The question about a picture as one about a name, without the picture."""
    return replace(question, image=None, text=question.text.replace(phrase, name))


def ask(
    policy: Policy, cache: VisionCache | None, questions: Sequence[Question], form: str, listed: bool = False
) -> list[str]:
    """The greedy answer to each question. cache: features of the pictures (None: all questions are text alone)."""
    texts, size = [], policy.profile.eval_batch
    for start in range(0, len(questions), size):
        part = questions[start : start + size]
        prompts = [(prompt_of(q, form, listed), s) for q, s in zip(part, features(cache, [q.image for q in part]))]
        texts += rollout(policy, prompts, 1, None, 0).texts
    return texts


def features(cache: VisionCache | None, images: list[int | None]) -> list:
    """What the vision tower made of each image; None for none."""
    wanted = [i for i in images if i is not None]
    found = dict(zip(wanted, cache.get(wanted))) if wanted else {}
    return [found.get(i) for i in images]


@torch.no_grad()
def choose(
    policy: Policy, cache: VisionCache, questions: Sequence[Question], texts: Sequence[str], listed: bool
) -> list[str]:
    """For each question the option that is likeliest as <answer> behind the policy's own thoughts."""
    most = max(len(q.options) for q in questions)
    per, chosen = max(1, policy.profile.eval_batch // most), []
    with decoding(policy):
        for start in range(0, len(questions), per):
            part, rows, prompts = questions[start : start + per], [], []
            for q, s, text in zip(part, features(cache, [q.image for q in part]), texts[start : start + per]):
                thought = text.partition("</think>")[0].rstrip() + "\n</think>\n"
                rows += [answer_ids(policy.processor, f"{thought}<answer> {o} </answer>") for o in q.options]
                prompts += [(prompt_of(q, "think", listed), s)] * len(q.options)
            mask = pad([[1] * len(row) for row in rows], 0, "right")
            ids = pad(rows, policy.processor.tokenizer.pad_token_id, "right")
            scores = completion_logps(policy, prompts, ids, mask).sum(-1).split([len(q.options) for q in part])
            chosen += [q.options[int(s.argmax())] for q, s in zip(part, scores)]
    return chosen
