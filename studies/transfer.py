"""What else changes when a model learns to name birds?

`python -m studies.transfer` asks each of the story's five methods about PICTURES test pictures, half of seen and half
of unseen species, and writes `transfer.csv`: seed, method, task, split, measure, value (0-1), n, chance. The tasks:

    facts    "What does the bird in the picture eat?": recognition and then recall of the field guide
    looks    describe the bird, or one part of it, in the questions of pre-training
    common   the 40 common species, which the base can name
    shift    naming when pictures are noisy or blurred

No method has met a question about a fact together with a picture. So facts are asked as the likeliest option behind
the policy's own thoughts, and in two steps, its own open-world answer in a text question.
"""

from pathlib import Path

from finer1_lite.birds.dataset import FIRST
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import all_species
from finer1_lite.evaluate.answers import METHODS, WITHOUT_CHAIN
from finer1_lite.policy.inputs import VisionCache
from studies.command import run
from studies.exam import SHIFTS, conditions, facts, graded, looks, naming, pick, rows_of
from studies.questions import about, ask, choose, in_form
from studies.study import Seed, seed_of

PICTURES = 160
OTHERS = 2  # pictures of each common species


class Exam:
    """One seed's questions about `n` test pictures and `others`, and one method's answers."""

    def __init__(self, lab: Seed, n: int = PICTURES, shifts=SHIFTS, others: int = OTHERS):
        self.lab, self.cache, seen = lab, lab.judged_cache, lab.judged["seen"][:]
        self.labels, self.splits = lab.judged["label"][:], ["seen" if known else "unseen" for known in seen]
        self.picked = pick(seen, n, lab.seed)
        self.common = [s for s in all_species() if s.common for _ in range(others)]
        self.common_cache = self._cache([draw(s, FIRST["test"] + i % others) for i, s in enumerate(self.common)])
        made = conditions([lab.judged[i]["image"] for i in self.picked], lab.seed, shifts)
        self.caches = {name: self._cache(pictures) for name, pictures in made.items()}

    def _cache(self, images) -> VisionCache:
        return VisionCache(self.lab.base.model, self.lab.base.processor, images)

    def take(self, method: str) -> list[dict]:
        """All tasks of one of METHODS. own: its open-world answers; form: how it is asked for names."""
        self.method, self.policy = method, self.lab.policy(method)
        self.own = [p.answer for p in self.lab.answers(method, self.lab.adapter(method))]
        self.form = "answer" if method in WITHOUT_CHAIN else "think"
        return [{"seed": self.lab.seed, "method": method} | row for task in TASKS for row in task(self)]


def facts_task(exam: Exam) -> list[dict]:
    """Facts as the likeliest option, and in two steps."""
    questions = facts(exam.labels, exam.splits, exam.picked, exam.lab.seed)
    thoughts = ask(exam.policy, exam.cache, questions, "think")
    chosen = choose(exam.policy, exam.cache, questions, thoughts, listed=False)
    rows = rows_of("facts", "likeliest option", questions, [o == q.answers[0] for o, q in zip(chosen, questions)])
    second = [about(q, exam.own[q.image] or "bird") for q in questions]
    return rows + graded("facts", "two steps", second, ask(exam.policy, None, second, "plain"), "plain")


def looks_task(exam: Exam) -> list[dict]:
    """Share of right attributes in descriptions; answers about one part that speak of nothing else."""
    questions = looks(exam.labels, exam.splits, exam.picked)  # a description and a part in turn
    texts = ask(exam.policy, exam.cache, questions, "plain")
    rows = graded("looks", "describe", questions[::2], texts[::2], "plain")
    kept = rows_of("looks", "part, in form", questions[1::2], [in_form(text) for text in texts[1::2]])
    return rows + [row | {"chance": float("nan")} for row in kept]


def common_task(exam: Exam) -> list[dict]:
    """Names of the common species, in two forms."""
    names, rows = [s.name for s in exam.common], []
    questions = naming(names, ["common"] * len(names), range(len(names)))
    for form in ("answer", "think"):
        rows += graded("common", form, questions, ask(exam.policy, exam.common_cache, questions, form))
    return rows


def shift_task(exam: Exam) -> list[dict]:
    """Open-world naming under each condition."""
    labels, splits = ([column[i] for i in exam.picked] for column in (exam.labels, exam.splits))
    questions, rows = naming(labels, splits, range(len(labels))), []
    for condition, cache in exam.caches.items():
        rows += graded("shift", condition, questions, ask(exam.policy, cache, questions, exam.form))
    return rows


TASKS = (facts_task, looks_task, common_task, shift_task)


def one_seed(seed: int, work: Path) -> list[dict]:
    """The exam of one seed's five methods."""
    exam = Exam(seed_of(seed, work))
    return [row for method in METHODS for row in exam.take(method)]


if __name__ == "__main__":
    run("transfer", __doc__, one_seed)
