"""What the studies of transfer and of baselines ask: questions, worse pictures, scores, other ways to name a bird."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finer1_lite.birds.dataset import load_birds
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import ATTRIBUTES, FOODS, NESTS, all_species, by_name
from finer1_lite.config import ASSETS, RESULTS, get_profile
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_policy
from finer1_lite.policy.rollout import rollout
from finer1_lite.prompts import THINK_INSTRUCTION, instructed
from studies import baselines, naming, transfer
from studies.exam import SHIFTS, conditions, facts, looks, pick, rows_of, shifted
from studies.exam import naming as names_asked
from studies.questions import Question, about, ask, choose, in_form, prompt_of, said, score
from studies.study import Seed

CHAIN = "white crown, gray back.\nCandidates: a b; c d.\n</think>\n<answer> a b </answer>"
MEAL = Question(0, "What does the bird in the picture eat?", ("fish",), FOODS, "seen", 0.2)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    few = {"val": {True: 1, False: 1}, "test": {True: 1, False: 1}}
    made = Seed(get_profile("cpu"), 0, tmp_path_factory.mktemp("seed0"), per_class=few)
    for name in ("chains.jsonl", "sft_answers", "cot_sft", "dapo", "tapo"):
        (made.out / name).symlink_to(ASSETS / "reference" / name)
    return made


@pytest.mark.parametrize("form, text, answer", [
    ("plain", CHAIN, "white crown, gray back."),
    ("plain", "<think>\nAnalysis: white crown.\n</think>", "Analysis: white crown."),
    ("think", CHAIN, "a b"),
    ("think", "<think>\nfish\n</think>\n<answer> seeds </answer>", "seeds"),
    ("think", "<think>\nfish", ""),  # it broke off while thinking
    ("answer", "<answer> fish </answer> or seeds", "fish"),
])  # fmt: skip
def test_what_counts_as_the_answer(form, text, answer):
    assert said(text, form) == answer


@pytest.mark.parametrize("text, right", [
    ("<think>\nIt eats seeds.\n</think>\n<answer> fish </answer>", 1.0),
    ("<think>\nIt eats fish.\n</think>\n<answer> seeds </answer>", 0.0),
    ("<think>\nx\n</think>\n<answer> fish or seeds </answer>", 0.0),
    ("<think>\nx\n</think>\n<answer> starfish </answer>", 0.0),  # whole words alone
])  # fmt: skip
def test_an_option_is_right_alone(text, right):
    assert score(MEAL, text, "think") == right


def test_descriptions_get_the_share_that_is_right_and_a_chain_behind_them_is_no_answer():
    head = Question(0, "Describe the head of the bird.", ("red crown", "plain eye", "thin beak", "gray back"))
    assert score(head, "red crown, plain eye, hooked beak.\nComparison: thin beak, gray back.", "plain") == 0.5
    assert in_form("It has a red crown.") and not in_form(CHAIN) and not in_form("<answer> red crown </answer>")


def test_prompts_list_options_only_where_asked_and_need_no_picture():
    assert prompt_of(MEAL, "plain", listed=False) == MEAL.text
    assert prompt_of(MEAL, "think") == f"{MEAL.text} Options: {'; '.join(FOODS)}. {THINK_INSTRUCTION}"
    assert about(MEAL, "tunan tarn").text == "What does the tunan tarn eat?" and about(MEAL, "x").image is None


def test_rows_count_each_split_and_chance():
    asked = [MEAL, MEAL, Question(0, "?", ("fish",), FOODS[:2], split="unseen", chance=0.1)]
    found = {r["split"]: (r["value"], r["n"], r["chance"]) for r in rows_of("facts", "m", asked, [1, 0, 1])}
    assert found == {"seen": (0.5, 2, 0.2), "unseen": (1.0, 1, 0.1)}
    assert [r["chance"] for r in rows_of("facts", "m", asked, [1, 0, 1], listed=True)] == [0.2, 0.5]


@pytest.fixture(scope="module")
def birds():
    return load_birds(0, {"val": {True: 0, False: 0}, "test": {True: 1, False: 1}})["test"]


def test_facts_are_balanced_and_those_of_the_species(birds):
    labels, seen = birds["label"], list(birds["seen"])
    picked, splits = pick(seen, 120, 0), ["seen" if known else "unseen" for known in seen]
    assert [seen[i] for i in picked] == [True] * 60 + [False] * 60 and len(set(picked)) == 120
    made = facts(labels, splits, picked, 0)
    assert made == facts(labels, splits, picked, 0) != facts(labels, splits, picked, 1)
    assert set(Counter((q.split, "nest" in q.text) for q in made).values()) == {30}
    for q in made:
        bird = by_name()[labels[q.image]]
        assert q.answers == ((bird.nest,) if "nest" in q.text else (bird.food,))
        assert sorted(q.options) == sorted(NESTS if "nest" in q.text else FOODS)
    assert np.bincount([q.options.index(q.answers[0]) for q in made], minlength=5).min() > 10  # 24 at each place


def test_looks_cover_all_attributes(birds):
    made = looks(birds["label"], ["all"] * len(birds), range(64))
    assert Counter(q.answers[0].split()[1] for q in made[1::2]) == {a: 8 for a in ATTRIBUTES}
    assert all(q.answers[0].split()[0] in by_name()[birds["label"][q.image]].looks for q in made)


@pytest.mark.parametrize("kind, strength", SHIFTS.items())
def test_worse_pictures_are_the_same_each_time_and_get_worse(kind, strength):
    image = draw(all_species()[0], 0)
    (clean,), (low,) = conditions([image], 0, {kind: strength / 2}).values()
    (high,) = conditions([image], 0)[f"{kind} {strength}"]
    assert clean is image and conditions([image], 0, {kind: strength / 2})[f"{kind} {strength / 2}"][0] == low
    assert (low.size, low.mode) == (high.size, high.mode) == (image.size, "RGB")
    assert 0 < abs(np.asarray(low, float) - clean).mean() < abs(np.asarray(high, float) - clean).mean()


def test_noise_stays_within_grey_levels():
    white, rng = Image.new("RGB", (40, 30), "white"), np.random.default_rng(0)
    noisy = np.asarray(shifted(white, "noise", 60, rng))
    assert noisy.min() > 0 and noisy.max() == 255  # 300 does not become 44: that would leave levels near 0


def test_tapo_names_and_then_recalls(birds):
    policy = load_policy(get_profile("cpu"), ASSETS / "reference" / "tapo", trainable=False)
    labels, picked = birds["label"], pick(list(birds["seen"]), 16, 0)
    cache = VisionCache(policy.model, policy.processor, birds["image"])
    asked = names_asked(labels, ["all"] * len(labels), picked)
    named = ask(policy, cache, asked, "think")
    right = [score(q, t, "think") for q, t in zip(asked, named)]
    assert np.mean(right) > 0.4
    questions = facts(labels, ["all"] * len(labels), picked, 0)
    second = [about(q, said(t, "think")) for q, t in zip(questions, named)]
    told = ask(policy, None, second, "plain")
    assert np.mean([score(q, t, "plain") for q, t, r in zip(second, told, right) if r]) > 0.6  # guessing: 0.2


def test_the_likeliest_option_is_the_one_that_the_thoughts_lead_to(lab):
    names = ("tunan tarn", "jedox quin", "fefad tarn")
    few = [Question(i, "Which bird is this?", (name,), names) for i, name in enumerate(names[::-1])]
    thoughts = [f"<think>\nPrediction: {q.answers[0]}.\n</think>\n<answer> x </answer>" for q in few]
    assert choose(lab.policy("tapo"), lab.judged_cache, few, thoughts, False) == [q.answers[0] for q in few]


@pytest.mark.slow
def test_a_small_exam_gives_every_row_of_the_study_once(lab):
    rows = transfer.Exam(lab, 8, {"blur": 2}, 1).take("tapo")
    keys = [(r["task"], r["measure"], r["split"]) for r in rows]
    committed = pd.read_csv(RESULTS / "transfer.csv").query("task != 'shift' or measure in ('clean', 'blur 2')")
    assert keys == list(dict.fromkeys(zip(committed.task, committed.measure, committed.split)))
    assert all(0 <= r["value"] <= 1 for r in rows)


def test_questions_and_options_are_the_story_s(lab):
    for protocol in ("open", "closed"):
        told = [p.question for p in lab.answers("base", None, protocol)]
        asked = naming.questions_of(lab, protocol)
        assert told == [instructed(text, False, options) for text, options in asked]
        assert all(("Options" in prompt) == (protocol == "closed") for prompt in told)


def test_a_classifier_knows_seen_classes_alone(lab):
    asked, seen = naming.questions_of(lab, "closed"), np.array(lab.judged["seen"])
    made = naming.linear_probe(lab, asked)
    right = np.array([a == b for a, b in zip(made, lab.judged["label"])])
    assert all(a in options or not set(options) & set(lab.labels) for a, (_, options) in zip(made, asked))
    assert right[seen].mean() > 0.5 and not right[~seen].any()


def test_examples_stand_before_the_question_with_their_names(lab, monkeypatch):
    asked = []
    listen = lambda policy, rows, *args, **how: asked.append(rows) or rollout(policy, rows, *args, **how)  # noqa: E731
    monkeypatch.setattr(naming, "rollout", listen)
    naming.in_context(lab, naming.questions_of(lab, "open")[:2])
    prompt = asked[1][0][0]
    names = [name for name in set(lab.labels) if name in prompt]
    assert len(asked[0]) == len(names) == naming.EXAMPLES
    assert all(f"<answer> {name} </answer>" in prompt for name in names) and prompt.count("crown") == 4


@pytest.mark.slow
def test_one_seed_gives_each_baseline_its_rows(lab, monkeypatch):
    """The whole of it but for what reinforcement would have to train."""
    monkeypatch.setattr(baselines, "seed_of", lambda seed, work: lab)
    monkeypatch.setattr(baselines, "BASELINES", tuple(baselines.WAYS))
    rows = baselines.one_seed(0, lab.out.parent)
    found = {(r["method"], r["protocol"], r["split"]): r["value"] for r in rows}
    assert len(found) == len(rows) == 4 * len(baselines.WAYS) and {r["n"] for r in rows} == {96, 64}
    assert found["describe_then_name", "open", "unseen"] > 0.75
    assert found["tower_probe", "closed", "unseen"] == 0 < found["siglip", "open", "unseen"]
    assert found["tower_probe", "open", "seen"] > 0.5
