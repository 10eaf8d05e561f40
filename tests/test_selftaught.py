"""Chains without a larger teacher: rounds of self-teaching, a table of looks, and the policy as its own teacher."""

from dataclasses import replace

import pytest

from finer1_lite.birds.render import draw
from finer1_lite.birds.species import ATTRIBUTES, all_species, describe
from finer1_lite.config import PROFILES
from finer1_lite.cot.build import Task
from finer1_lite.cot.chains import chat_row, check_chain, question_and_completion, to_completion
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_base
from finer1_lite.prompts import instructed
from finer1_lite.teachers.guide import guide_chain, read_guide
from finer1_lite.teachers.policy import sampler_of
from finer1_lite.teachers.selftaught import self_teach

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
    trained, asked, texts = [], [], iter(scripts)

    def train(rows):
        trained.append([r["image_index"] for r in rows])
        return lambda prompts: asked.append(prompts) or next(texts)

    return list(self_teach(TASKS, SEEDS, train, rounds=len(scripts), **how)), trained, asked


def test_good_chains_join_and_the_next_student_learns_from_them():
    wrong = chain("finch").replace("Prediction: finch", "Prediction: heron").replace("> finch <", "> heron <")
    later = [chain("finch", looks="blue back"), chain("finch"), chain("robin"), ""]
    rounds, trained, asked = taught([[wrong, chain("finch"), "no chain", wrong], later, [""] * 4], tries=2)
    assert trained == [[0], [0, 1], [0, 1, 2]]  # the seed; then the finch too
    assert asked[0] == [(1, instructed(ASK))] * 2 + [(2, instructed(ASK))] * 2  # a task with a seed is not asked
    assert [(r.number, r.asked, r.accepted) for r in rounds] == [(1, 4, 1), (2, 4, 2), (3, 4, 0)]
    assert rounds[0].reasons == {"prediction is not the label": 2, "format": 1}
    assert "blue back" in question_and_completion(rounds[1].rows[1])[1]  # the later student's first good chain
    assert rounds[2].rows == rounds[1].rows  # what was accepted stays when a later student fails
    with pytest.raises(ValueError, match="no chain was accepted .*'format': 2.*more seed chains"):
        taught([["?", "?"]], tries=1)


def test_a_guides_chain_passes_quality_control():
    guide = {s.name: [describe(s.looks, [a]) for a in ATTRIBUTES] for s in all_species()}
    made = guide_chain(guide, "zatom tarn")
    assert made.prediction == "zatom tarn" and len(made.options) == 4
    assert check_chain(to_completion(made), "zatom tarn", list(guide)) == []
    mine = set(guide["zatom tarn"])
    assert all(len(mine & set(guide[name])) >= 5 for name in made.options)  # of eight: the look-alikes
    with pytest.raises(KeyError, match="dodo"):
        guide_chain(guide, "dodo")


def test_a_guide_is_read_as_excel_writes_it_and_a_broken_one_names_its_line(tmp_path):
    path = tmp_path / "guide.csv"
    path.write_bytes("\ufeffname,looks\r\nÉider,\"black crown, white back\"\r\n".encode())
    assert read_guide(path) == {"Éider": ["black crown", "white back"]}
    for rows, error in {
        "name\na": "needs the columns name, looks", "name,looks\na,red\na,b": "line 3: 'a' is named twice",
        "name,looks\n,red": "line 2: '' .*lacks its name", "name,looks\na, ;": "line 2: 'a' .*or looks",
    }.items():  # fmt: skip
        path.write_text(rows)
        with pytest.raises(ValueError, match=error):
            read_guide(path)


def test_a_policy_that_was_killed_says_the_same_again(tmp_path, monkeypatch):
    policy = load_base(replace(PROFILES["cpu"], max_new_tokens=8, rollout_batch=2, quantize=False))
    cache = VisionCache(policy.model, policy.processor, [draw(s, 7) for s in all_species()[:3]])
    asked, path = [(0, "Describe the bird."), (1, "Describe the bird."), (2, "What is it?")], tmp_path / "said.jsonl"

    def sampler(seed=0):
        return sampler_of(policy, cache, seed, temperature=2.0, kept=path)

    one = sampler()
    first, again = one(asked), one(asked)
    assert first != again  # each call draws anew
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 4  # batches
    path.write_text("".join(lines[:2]) + lines[2][:20])  # killed in its second call, while it wrote
    two = sampler()
    assert (two(asked), two(asked)) == (first, again)
    monkeypatch.setattr("finer1_lite.teachers.policy.rollout", None)  # all is in the file: nothing is sampled
    three = sampler()
    assert (three(asked), three(asked)) == (first, again)
    with pytest.raises(TypeError):
        sampler(seed=1)(asked)
