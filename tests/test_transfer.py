"""Questions beyond naming: made, read, scored; files of questions; worse pictures; one policy at the end."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from finer1_lite.birds.dataset import load_birds
from finer1_lite.birds.fish import all_fish
from finer1_lite.birds.render import draw
from finer1_lite.birds.species import ATTRIBUTES, FOODS, NESTS, all_species, by_name
from finer1_lite.config import ASSETS, get_profile
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_policy
from finer1_lite.prompts import THINK_INSTRUCTION
from studies.questions import Question, about, ask, choose, in_form, load_questions, prompt_of, said, score
from studies.transfer import SHIFTS, conditions, facts, fish_questions, looks, naming, pick, recall, rows_of, shifted

CHAIN = "white crown, gray back.\nCandidates: a b; c d.\n</think>\n<answer> a b </answer>"
MEAL = Question(0, "What does the bird in the picture eat?", ("fish",), FOODS, "food", "seen", 0.2)
HEAD = Question(0, "Describe the head of the bird.", ("red crown", "plain eye", "thin beak", "gray back"))


# ---- reading and scoring


@pytest.mark.parametrize("form, text, answer", [
    ("plain", CHAIN, "white crown, gray back."),
    ("plain", "<think>\nAnalysis: white crown.\n</think>", "Analysis: white crown."),
    ("plain", "", ""),
    ("think", CHAIN, "a b"),
    ("think", "<think>\nfish\n</think>\n<answer> seeds </answer>", "seeds"),
    ("think", "<think>\nfish", ""),  # it broke off while thinking
    ("answer", "<answer> fish </answer> or seeds", "fish"),
])  # fmt: skip
def test_what_counts_as_the_answer(form, text, answer):
    assert said(text, form) == answer


@pytest.mark.parametrize("text, right, kept", [
    ("<think>\nIt eats seeds.\n</think>\n<answer> fish </answer>", 1.0, True),
    ("<think>\nIt eats fish.\n</think>\n<answer> seeds </answer>", 0.0, True),
    ("<think>\nx\n</think>\n<answer> fish or seeds </answer>", 0.0, False),
    ("<think>\nx\n</think>\n<answer> tunan tarn </answer>", 0.0, False),
    ("<answer> fish </answer>", 1.0, False),
    ("<think>\nx\n</think>\n<answer> starfish </answer>", 0.0, False),  # whole words alone
])  # fmt: skip
def test_an_option_is_right_alone(text, right, kept):
    assert (score(MEAL, text, "think"), in_form(MEAL, text, "think")) == (right, kept)


def test_descriptions_get_the_share_that_is_right_and_a_chain_behind_them_is_no_answer():
    assert score(HEAD, "red crown, plain eye, hooked beak.\nComparison: thin beak, gray back.", "plain") == 0.5
    assert score(HEAD, "It has a red crown.", "plain") == 0.25
    assert in_form(HEAD, "It has a red crown.", "plain") and not in_form(HEAD, CHAIN, "plain")


def test_prompts_list_options_only_where_asked():
    assert prompt_of(MEAL, "plain", listed=False) == MEAL.text
    assert prompt_of(MEAL, "think") == f"{MEAL.text} Options: {'; '.join(FOODS)}. {THINK_INSTRUCTION}"
    with pytest.raises(ValueError, match="unknown form 'shout'.*plain"):
        prompt_of(MEAL, "shout")


def test_a_question_about_a_picture_becomes_one_about_a_name():
    assert about(MEAL, "tunan tarn").text == "What does the tunan tarn eat?" and about(MEAL, "x").image is None
    with pytest.raises(ValueError, match="does not speak of the 'bird in the picture'"):
        about(HEAD, "tunan tarn")


def test_rows_count_each_split_and_chance():
    asked = [MEAL, MEAL, Question(0, "?", ("fish",), FOODS[:2], split="unseen", chance=0.1)]
    found = {r["split"]: r for r in rows_of("facts", "m", asked, [1, 0, 1])}
    assert (found["seen"]["value"], found["seen"]["n"], found["seen"]["chance"]) == (0.5, 2, 0.2)
    assert (found["unseen"]["value"], found["unseen"]["chance"]) == (1.0, 0.1)
    assert [r["chance"] for r in rows_of("facts", "m", asked, [1, 0, 1], listed=True)] == [0.2, 0.5]
    kept = rows_of("facts", "m", asked, [1, 0, 1], keep=[False, True, False])
    assert [(r["split"], r["value"]) for r in kept] == [("seen", 0.0)]


# ---- the bird world's questions


@pytest.fixture(scope="module")
def birds():
    return load_birds(0, {"val": {True: 0, False: 0}, "test": {True: 1, False: 1}})["test"]


def test_pictures_are_half_of_seen_species(birds):
    picked = pick(birds["seen"], 40, 3)
    assert [birds["seen"][i] for i in picked] == [True] * 20 + [False] * 20 and len(set(picked)) == 40
    assert picked == pick(birds["seen"], 40, 3) != pick(birds["seen"], 40, 4)
    with pytest.raises(ValueError, match="400 pictures need 200"):
        pick(birds["seen"], 400, 0)


def test_facts_are_balanced_and_those_of_the_species(birds):
    labels, picked = birds["label"], pick(birds["seen"], 120, 0)
    made = facts(labels, birds["seen"], picked, 0)
    assert made == facts(labels, birds["seen"], picked, 0) != facts(labels, birds["seen"], picked, 1)
    found = Counter((q.split, q.topic) for q in made)
    assert found == {(s, t): 30 for s in ("seen", "unseen") for t in ("nest", "food")}
    for q in made:
        bird = by_name()[labels[q.image]]
        assert q.answers == ((bird.nest,) if "nest" in q.text else (bird.food,))
        assert sorted(q.options) == sorted(NESTS if "nest" in q.text else FOODS)
    places = np.bincount([q.options.index(q.answers[0]) for q in made], minlength=5)
    assert places.min() > 10  # 24 expected at each place


def test_looks_cover_all_attributes_and_recall_tells_the_guide(birds):
    made = looks(birds["label"], birds["seen"], pick(birds["seen"], 64, 0))
    parts = Counter(q.answers[0].split()[1] for q in made if q.topic == "part")
    assert parts == {a: 8 for a in ATTRIBUTES}
    assert all(q.answers[0].split()[0] in by_name()[birds["label"][q.image]].looks for q in made)
    bird, other = all_species()[:2]
    told = {q.topic: q for q in recall([bird], "seen")}
    assert told["nest"].answers == (bird.nest,) and told["name"].answers == (bird.name,)
    assert told["food"].text == f"What does the {bird.name} eat?"
    assert score(told["looks"], f"The {bird.name} has {bird.describe()}.", "plain") == 1
    assert score(told["looks"], f"The {other.name} has {other.describe()}.", "plain") < 1


def test_fish_stand_at_every_place_among_their_family():
    pictures = [f for f in all_fish() for _ in range(4)]
    parts, names, guided = fish_questions(pictures)
    assert all(q.answers[0].split()[0] == pictures[q.image].looks[q.topic] for q in parts)
    assert {q.topic: q.text for q in parts}["side"] == "What does the breast look like?"
    assert Counter(q.options.index(q.answers[0]) for q in names) == {i: 16 for i in range(4)}
    assert all(q.answers[0].split()[1] in option for q in names for option in q.options)
    assert all(f"The {q.answers[0]} has {pictures[q.image].concepts()[0]}" in q.text for q in guided)


# ---- worse pictures


@pytest.mark.parametrize("kind", SHIFTS)
def test_shifts_are_the_same_each_time_and_grow(kind):
    image = draw(all_species()[0], 0)
    clean = np.asarray(image, float)
    low, high = (shifted(image, kind, s, np.random.default_rng(1)) for s in SHIFTS[kind])
    assert shifted(image, kind, 0, np.random.default_rng(1)) is image
    assert shifted(image, kind, SHIFTS[kind][0], np.random.default_rng(1)).tobytes() == low.tobytes()
    assert (low.size, low.mode) == (high.size, high.mode) == (image.size, "RGB")
    assert np.asarray(high).dtype == np.uint8  # so within 0..255
    assert 0 < abs(np.asarray(low, float) - clean).mean() < abs(np.asarray(high, float) - clean).mean()


def test_shifts_stay_within_grey_levels():
    white, black = (Image.new("RGB", (40, 30), color) for color in ("white", "black"))
    rng = np.random.default_rng(0)
    noisy = np.asarray(shifted(white, "noise", 60, rng))
    assert noisy.min() > 0 and noisy.max() == 255  # 300 does not become 44: that would leave levels near 0
    assert np.asarray(shifted(black, "noise", 60, rng)).max() < 255  # a negative level does not become a bright one
    assert set(np.asarray(shifted(white, "dark", 0.4, rng)).flat) == {153}
    with pytest.raises(ValueError, match="unknown shift 'fog'.*noise"):
        shifted(white, "fog", 1, rng)


def test_all_conditions_show_the_same_birds():
    images = [draw(s, 0) for s in all_species()[:3]]
    made = conditions(images, [s.name for s in all_species()[:3]], 0, {"dark": (0.5,)})
    assert list(made) == ["clean", "drawn anew", "dark 0.5"] and made["clean"] == images
    assert made["drawn anew"][0].tobytes() != images[0].tobytes()


# ---- files of questions


def _file(folder, *rows):
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    path = folder / "questions.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_fields_may_have_several_names(tmp_path):
    rows = [
        {"image": "red.png", "question": "<image>\nWhat colour?", "options": ["blue", "red"], "answer": "B",
         "split": "val"},
        {"image_path": "red.png", "query": "What colour?", "choices": {"A": "blue", "B": "red"}, "label": "RED"},
        {"image_path": "red.png", "query": "What colour?", "choices": {"C": "blue", "A": "red"}, "label": "(a)"},
        "", {"images": ["red.png"], "text": "What colour?", "options": None, "answer": "red"},
    ]  # fmt: skip
    questions, images = load_questions(_file(tmp_path, *rows))
    assert [q.answers for q in questions] == [("red",)] * 4 and [q.text for q in questions] == ["What colour?"] * 4
    assert [q.options for q in questions] == [("blue", "red")] * 3 + [()]
    assert [q.chance for q in questions] == [0.5, 0.5, 0.5, 0.0] and questions[0].split == "val"
    assert len(images) == 1 and images[questions[3].image].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("row, message", [
    ({"question": "?", "answer": "red"}, "line 1: the image should be one text under image or"),
    ({"image": "red.png", "answer": "red"}, "the question should be one text under question or"),
    ({"image": "red.png", "question": "?"}, "the answer should be one text under answer or"),
    ({"image": "blue.png", "question": "?", "answer": "red"}, "the picture blue.png: the file is missing"),
    ({"image": "questions.jsonl", "question": "?", "answer": "red"}, "the picture questions.jsonl: not a picture"),
    ({"image": "red.png", "question": "?", "answer": "green", "options": ["red", "blue"]}, "'green' is not among"),
    ({"image": "red.png", "question": "?", "answer": "C", "options": ["red", "blue"]}, "'C' is not among the options"),
    ({"image": "red.png", "question": "?", "answer": "red", "options": "red"}, "should be a list of texts"),
    ('{"image": ', "line 1: "),
    ("[1]", "a row is a dictionary"),
    ("", "holds no question"),
])  # fmt: skip
def test_a_row_that_cannot_be_asked_is_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        load_questions(_file(tmp_path, row))


# ---- a policy


def test_tapo_names_and_then_recalls(birds, tmp_path):
    policy = load_policy(get_profile("cpu"), ASSETS / "reference" / "tapo", trainable=False)
    labels, picked = birds["label"], pick(birds["seen"], 16, 0)
    cache = VisionCache(policy.model, policy.processor, birds["image"])
    path = tmp_path / "names.jsonl"
    asked = naming(labels, ["all"] * len(labels), picked)
    named = ask(policy, cache, asked, "think", path=path)
    right = [score(q, t, "think") for q, t in zip(asked, named)]
    assert np.mean(right) > 0.4 and np.mean([in_form(q, t, "think") for q, t in zip(asked, named)]) > 0.8
    assert ask(policy, None, asked, "think", path=path) == named  # read from the file: no picture is needed
    other = load_policy(get_profile("cpu"), ASSETS / "reference" / "cot_sft", trainable=False)
    assert ask(other, cache, asked, "think", path=path) != named  # those are not its answers

    questions = facts(labels, birds["seen"], picked, 0)
    second = [about(q, said(t, "think")) for q, t in zip(questions, named)]
    told = [score(q, t, "plain") for q, t in zip(second, ask(policy, None, second, "plain", listed=False))]
    known = np.mean([t for t, r in zip(told, right) if r])
    assert known > 0.6  # guessing: 0.2
    chosen = choose(policy, cache, questions, ask(policy, cache, questions, "think", listed=False), listed=False)
    assert all(option in q.options for option, q in zip(chosen, questions))
    with pytest.raises(ValueError, match="no options to choose from"):
        choose(policy, cache, asked, named)


def test_the_likeliest_option_is_the_one_that_the_thoughts_lead_to(birds):
    policy = load_policy(get_profile("cpu"), ASSETS / "reference" / "tapo", trainable=False)
    cache = VisionCache(policy.model, policy.processor, birds["image"])
    few = [Question(i, "Which bird is this?", (name,), ("tunan tarn", "jedox quin", "fefad tarn")) for i, name in
           enumerate(("jedox quin", "fefad tarn", "tunan tarn"))]  # fmt: skip
    thoughts = [f"<think>\nPrediction: {q.answers[0]}.\n</think>\n<answer> x </answer>" for q in few]
    assert choose(policy, cache, few, thoughts, listed=False) == [q.answers[0] for q in few]
