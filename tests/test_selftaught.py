"""Self-teaching: what is asked, what is kept, what the next student is trained on; and one round with the tiny model."""

from dataclasses import replace

import pytest

from finer1_lite.birds.dataset import load_birds
from finer1_lite.config import get_profile
from finer1_lite.cot.build import Task
from finer1_lite.cot.chains import chat_row, question_and_completion
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_base
from finer1_lite.prompts import instructed
from finer1_lite.recipes import tasks_of
from finer1_lite.teachers.guide import guide_chain, look_alikes, read_guide
from finer1_lite.teachers.policy import sampler_of
from finer1_lite.teachers.selftaught import self_teach
from studies.story import Seed
from studies.teachers import TEMPERATURE, by_hand, chain_facts, field_guide, student

ASK = "Which bird is this?"
TASKS = [Task(i, name, ASK) for i, name in enumerate(("wren", "finch", "robin"))]


def chain(name, other="heron", looks="red crown"):
    return (
        f"<think>\nAnalysis: {looks}.\nCandidates: {name}; {other}.\nComparison: {name}: fits. {other}: blue back.\n"
        f"Prediction: {name}.\n</think>\n<answer> {name} </answer>"
    )


SEEDS = [chat_row(0, "wren", instructed(ASK), chain("wren"))]


def taught(scripts, **how):
    """Run with students that say what `scripts` (one list of texts for each round) holds; returns rounds, calls."""
    trained, asked, voices = [], [], iter(scripts)

    def train(rows):
        trained.append([r["image_index"] for r in rows])
        texts = next(voices)

        def student(prompts):
            asked.append(prompts)
            return texts

        return student

    return list(self_teach(TASKS, SEEDS, train, rounds=len(scripts), **how)), trained, asked


def test_good_chains_join_and_the_next_student_learns_from_them():
    wrong = chain("finch").replace("Prediction: finch", "Prediction: heron").replace("> finch <", "> heron <")
    rounds, trained, asked = taught([[wrong, chain("finch"), "no chain", wrong], [chain("finch", looks="blue back"), "", chain("robin"), ""]], tries=2)
    assert trained == [[0], [0, 1]]  # the seed; then the finch too
    assert asked[0] == [(1, instructed(ASK))] * 2 + [(2, instructed(ASK))] * 2  # a task with a seed is not asked
    assert [(r.number, r.asked, r.accepted) for r in rounds] == [(1, 4, 1), (2, 4, 2)]
    assert [row["image_index"] for row in rounds[1].rows] == [0, 1, 2]
    assert rounds[0].reasons == {"prediction is not the label": 2, "format": 1}
    assert "blue back" in question_and_completion(rounds[1].rows[1])[1]  # the later student's chain


def test_what_was_accepted_stays_when_a_later_student_fails():
    rounds, _, _ = taught([[chain("finch"), chain("robin")], ["", ""]], tries=1)
    assert rounds[1].accepted == 0 and rounds[1].rows == rounds[0].rows


def test_first_good_chain_of_a_round_is_kept():
    rounds, _, _ = taught([[chain("finch", looks="red back"), chain("finch", looks="blue back"), "", ""]], tries=2)
    assert "red back" in question_and_completion(rounds[0].rows[1])[1]


def test_bad_states_say_what_is_wrong():
    with pytest.raises(ValueError, match="none of 2 chains was accepted .format: 2.*more seed chains"):
        taught([["?", "?"]], tries=1)
    for how in ({"rounds": 0}, {"tries": 0}):
        with pytest.raises(ValueError, match="at least one round and one try"):
            list(self_teach(TASKS, SEEDS, lambda rows: None, **how))
    with pytest.raises(ValueError, match="a few seed chains"):
        list(self_teach(TASKS, [], lambda rows: None))
    with pytest.raises(ValueError, match="every task's image has a seed chain"):
        list(self_teach(TASKS[:1], SEEDS, lambda rows: None))


def test_the_next_student_is_trained_on_the_rows_that_were_given_out():
    rounds, trained, _ = taught([["", chain("robin")], [chain("finch"), ""], ["", ""]], tries=1)
    assert trained[1:] == [[row["image_index"] for row in r.rows] for r in rounds[:2]] == [[0, 2], [0, 1, 2]]


def test_one_real_round(tmp_path):
    """The tiny student learns the form from eight chains by hand and writes right ones of its own."""
    lab = Seed(get_profile("cpu"), 0, tmp_path)
    seeds = by_hand(lab)
    assert len(seeds) == 8 and chain_facts(seeds)["true_attributes"] == 1 and chain_facts(seeds)["label_leak"] == 0
    given = {row["image_index"] for row in seeds}
    tasks = [t for t in tasks_of(lab.labels, 0) if t.image_index not in given][:24]

    def train(rows):
        return sampler_of(student(lab, "eight", rows, 48), lab.cache, 0, TEMPERATURE)

    (first,) = self_teach(tasks, seeds, train, rounds=1, tries=2)
    assert first.accepted >= 4 and len(first.rows) == 8 + first.accepted
    assert chain_facts(first.rows)["true_attributes"] > 0.85


# ---- the field guide


def test_guide_chain_of_the_birds_is_a_good_chain():
    guide = field_guide()
    made = guide_chain(guide, "zatom tarn")
    assert made.prediction == "zatom tarn" and "zatom tarn" in made.options and len(made.options) == 4
    assert set(look_alikes(guide, "zatom tarn")[:3]) == set(made.options) - {"zatom tarn"}
    with pytest.raises(KeyError, match="no class 'dodo'"):
        guide_chain(guide, "dodo")


@pytest.mark.parametrize("text, error", [
    ("name,appearance\na,red\n", "needs the columns name and looks"),
    ("name,looks\na,red\na,blue\n", "line 3: a is named twice"),
    ("name,looks\n,red\n", "line 2: a class needs a name and looks"),
    ("name,looks\na, ;\n", "line 2: a needs a name and looks"),
])  # fmt: skip
def test_a_broken_guide_names_its_line(tmp_path, text, error):
    path = tmp_path / "guide.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=error):
        read_guide(path)


def test_guide_is_read_as_excel_writes_it(tmp_path):
    path = tmp_path / "guide.csv"
    path.write_bytes("\ufeffname,looks\r\nÉider,\"black crown, white back\"\r\n".encode())
    assert read_guide(path) == {"Éider": ["black crown", "white back"]}


def test_a_voice_that_was_killed_says_the_same_again(tmp_path, monkeypatch):
    profile = replace(get_profile("cpu"), max_new_tokens=12, rollout_batch=2)
    policy = load_base(profile)
    images = load_birds(0, {"val": {True: 1, False: 0}, "test": {True: 0, False: 0}})["val"][:3]["image"]
    cache = VisionCache(policy.model, policy.processor, images)
    asked, path = [(0, "Describe the bird."), (1, "Describe the bird."), (2, "What is it?")], tmp_path / "voice.jsonl"

    def voice(seed=0):
        return sampler_of(policy, cache, seed, temperature=2.0, kept=path)

    one = voice()
    first, again = one(asked), one(asked)
    assert first != again  # each call draws anew
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:20])  # killed in its second call, while it wrote
    two = voice()
    assert two(asked) == first and two(asked) == again
    monkeypatch.setattr("studies.story.rollout", None)  # all is in the file: nothing is sampled
    three = voice()
    assert three(asked) == first and three(asked) == again
    with pytest.raises(TypeError):
        voice(seed=1)(asked)
