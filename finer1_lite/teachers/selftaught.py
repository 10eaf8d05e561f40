"""Chains without a larger teacher: the model that is trained writes its own, and those that come out right are kept.

    a few chains by hand -> train -> ask the student about its training images -> check -> the good ones join -> again

After STaR (Zelikman et al., arXiv 2203.14465), in place of the paper's Qwen2.5-VL-32B. The student is asked without
label and concepts. Departures from STaR: it is not asked again with the answer told, as it has not learnt to use a
hint; a chain passes the whole quality control, not the answer alone.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from ..cot.build import Sampler, Task
from ..cot.chains import chat_row, check_chain, read_chain, to_completion
from ..prompts import instructed


@dataclass(frozen=True)
class Round:
    """One round: `rows` to train on next (the seeds too), of `asked` chains those accepted, why others were not."""

    number: int
    rows: list[dict]
    asked: int
    accepted: int
    reasons: Counter


def self_teach(
    tasks: list[Task], seeds: list[dict], train: Callable[[list[dict]], Sampler], rounds: int = 3, tries: int = 4,
    known_names: Collection[str] = (),
) -> Iterator[Round]:  # fmt: skip
    """Rounds of asking and training; each comes as soon as it is done. ValueError where nothing was accepted yet.

    seeds: chat rows that start it; a task whose image has one is not asked. train: chat rows to a student trained on
    them from the start. Of `tries` chains for a task the first good one is kept, until a later round has one.
    """
    given, kept, rows = {row["image_index"] for row in seeds}, {}, list(seeds)
    asked = [task for task in tasks if task.image_index not in given for _ in range(tries)]
    for number in range(1, rounds + 1):
        texts = train(rows)([(t.image_index, instructed(t.question)) for t in asked])
        fresh, reasons = {}, Counter()
        for t, text in zip(asked, texts, strict=True):
            if faults := check_chain(text, t.label, known_names):
                reasons.update(faults)
            elif t.image_index not in fresh:
                chain = to_completion(read_chain(text))
                fresh[t.image_index] = chat_row(t.image_index, t.label, instructed(t.question), chain)
        kept |= fresh
        if not kept:
            raise ValueError(f"no chain was accepted ({dict(reasons)}): give more seed chains, or train longer")
        rows = [*seeds, *(kept[i] for i in sorted(kept))]
        yield Round(number, rows, len(texts), len(fresh), reasons)
