"""Chains without a larger teacher: the model that is trained writes its own, and those that come out right are kept.

    a few chains by hand -> train -> ask the student about its training images -> check -> the good ones join -> again

After STaR (Zelikman et al., arXiv 2203.14465), in place of the paper's Qwen2.5-VL-32B. The student is asked as it
will be asked later, without the label and without concepts, so its chains cannot speak of hidden hints; the label
only decides which ones are kept. Each round trains a fresh adapter: errors of the last one are not built upon.

Departures from STaR: no rationalisation (asking again with the answer told), as a model that has not learnt to
follow a hint cannot use it; every chain passes the whole quality control, not the answer alone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..cot.build import Sampler, Task
from ..cot.chains import chat_row, check_chain, read_chain, to_completion
from ..prompts import instructed


@dataclass(frozen=True)
class Round:
    """What one round brought: `rows` to train on next (the seeds too), and of this round's samples the accepted
    tasks and the reasons against the others."""

    number: int
    rows: list[dict]
    asked: int
    accepted: int
    reasons: Counter


def self_teach(
    tasks: list[Task], seeds: list[dict], train: Callable[[list[dict]], Sampler], rounds: int = 3, tries: int = 4,
    known_names: Iterable[str] | None = None,
) -> Iterator[Round]:  # fmt: skip
    """Rounds of asking and training; each comes as soon as it is done, so that a caller can save its rows.

    seeds: chat rows (`chains.chat_row`) that start it; a task whose image has one is not asked. train: chat rows to
    the voice of a student trained on them from the start. Each open task is asked `tries` times in a round; its first
    good chain is kept, and replaced by that of a later round, whose student knows more. ValueError without seeds,
    tasks, rounds or tries, and where a round accepts nothing and there was nothing before: the student has not
    learnt the form.
    """
    names = None if known_names is None else list(known_names)
    if not seeds or not tasks or rounds < 1 or tries < 1:
        raise ValueError("self-teaching needs a few seed chains, tasks, and at least one round and one try")
    given = {row["image_index"] for row in seeds}
    open_tasks = [task for task in tasks if task.image_index not in given]
    if not open_tasks:
        raise ValueError("every task's image has a seed chain: there is nothing left to ask; train on the seeds")
    kept: dict[int, dict] = {}
    rows = list(seeds)
    for number in range(1, rounds + 1):
        student = train(rows)
        texts = student([(t.image_index, instructed(t.question)) for t in open_tasks for _ in range(tries)])
        fresh, reasons = {}, Counter()
        for i, text in enumerate(texts):
            task = open_tasks[i // tries]
            if against := check_chain(text, task.label, names):
                reasons.update(against)
            elif task.image_index not in fresh:
                completion = to_completion(read_chain(text))
                fresh[task.image_index] = chat_row(task.image_index, task.label, instructed(task.question), completion)
        kept |= fresh
        if not kept:
            raise ValueError(
                f"none of {len(texts)} chains was accepted ({', '.join(f'{r}: {n}' for r, n in reasons.most_common(2))}): "
                "the student has not learnt the form; give more seed chains, or train longer"
            )
        rows = [*seeds, *(kept[i] for i in sorted(kept))]
        yield Round(number, rows, len(texts), len(fresh), reasons)
