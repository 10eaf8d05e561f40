"""rewards.py on completions written by hand; the twelve released ones are in test_losses_released.py."""

import time
from pathlib import Path

import pytest

from finer1_lite import reading, use
from finer1_lite import rewards as R
from finer1_lite.birds.species import by_name
from finer1_lite.cot.chains import check_chain
from finer1_lite.cot.quality import read_row
from finer1_lite.data.benchmarks import FLOWERS
from finer1_lite.evaluate.answers import judge

LABELS = ["European Goldfinch", "American Goldfinch", "Goldfinch", "House Finch", "House Wren", "Wren"]
FAMILY = {name: name.lower().split("gold")[-1].split()[-1] for name in LABELS}  # finch or wren


def completion(answer, thought="a beak"):
    return f"<think>{thought}</think> <answer>{answer}</answer>"


@pytest.mark.parametrize("text, score", [
    (completion("Wren"), 1.0), ("<think></think><answer></answer>", 1.0),
    ("<think>a\nb</think>\n\n<answer>c</answer>", 1.0),
    ("< think >a< / think >  < answer >b</ answer >", 1.0), (" <think>a</think><answer>b</answer>\n", 1.0),
    ("<think>a</think><answer>b</answer> done", 0.0), ("so <think>a</think><answer>b</answer>", 0.0),
    ("<think>a</think> well <answer>b</answer>", 0.0), ("<answer>b</answer>", 0.0), ("<think>a</think>", 0.0),
    ("<think>a <answer>b</answer>", 0.0), ("<THINK>a</THINK><answer>b</answer>", 0.0), ("", 0.0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 1.0),  # the last .*? may stretch, as released
])
def test_format(text, score):
    assert R.format_reward(text) == score


@pytest.mark.parametrize("text, thought, bare", [
    (completion("Wren"), 1.0, 0.0), ("< think >a< / think >\n< answer >b</ answer > ", 1.0, 0.0),
    ("<answer> Wren </answer>\n", 0.0, 1.0), ("<think>a</think><answer>b</answer> c </answer> b </answer>", 0.0, 0.0),
    ("<think>a</think><answer>b</answer><answer>b</answer>", 0.0, 0.0), ("<answer>a</answer> done", 0.0, 0.0),
    ("<think>a</think><think>b</think><answer>c</answer>", 0.0, 0.0), ("so <answer>a</answer>", 0.0, 0.0),
    ("<answer><think>a</think></answer>", 0.0, 0.0), ("<think>a<answer>b</think></answer>", 0.0, 0.0), ("", 0.0, 0.0),
    ("<think>a</think> well <answer>b</answer>", 0.0, 0.0), ("<answer>a</answer></think>", 0.0, 0.0),
])
def test_strict_format_has_each_part_once_and_nothing_more(text, thought, bare):
    assert (R.strict_format(text), R.strict_format(text, think=False)) == (thought, bare)


@pytest.mark.parametrize("text, answer", [
    (completion(" House  Finch "), "House  Finch"), ("< answer >a</ answer>", "a"), ("<answer>a\nb</answer>", "a\nb"),
    ("<answer>a</answer><answer>b</answer>", "a"), ("<answer></answer>", ""), ("<answer>a", None), ("a", None),
    ("<answer>black / white</answer>", "black/white"),
])
def test_extract_answer(text, answer):
    assert R.extract_answer(text) == answer


@pytest.mark.parametrize("answer, label, score", [
    ("House Finch", "House Finch", 1.0), ("it is a HOUSE FINCH.", "House Finch", 1.0), ("Finch", "House Finch", 0.0),
    ("House Finch or Wren or Goldfinch", "Wren", 1.0), ("House  Finch", "House Finch", 0.0), ("", "Wren", 0.0),
    ("American Goldfinch", "Goldfinch", 1.0), ("Audi A4 / S4", "Audi A4 / S4", 1.0),
])
def test_accuracy_is_containment_in_the_answer(answer, label, score):
    assert R.accuracy_reward(completion(answer, thought=f"a {label}"), label) == score
    assert R.accuracy_reward(answer, label) == 0.0  # outside of the tags


@pytest.mark.parametrize("text, released, ending, bare", [
    (completion("a wren"), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    (completion("Finch"), (0.1, 1.0, 0.0), (0.1, 1.0, 0.0), (0.0, 0.0, 0.0)),
    (completion("Wren") + " a </answer>", (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ("<answer> Wren</answer>", (0.9, 0.0, 1.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ("<answer> Wren</answer> a", (0.9, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ("Wren", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
])
def test_released_ending_and_bare_reward(text, released, ending, bare):
    for reward, expected in ((R.released_reward, released), (R.ending_reward, ending), (R.bare_reward, bare)):
        assert reward(text, "Wren") == dict(zip(("overall", "format", "accuracy"), expected))


@pytest.mark.parametrize("answer, label, score", [
    ("HOUSE-FINCH!", "House Finch", 1.0), (" House\n Finch. ", "House Finch", 1.0),
    ("a House Finch", "House Finch", 0.0), ("American Goldfinch", "Goldfinch", 0.0), ("", "Wren", 0.0),
    ("Ｗｒｅｎ", "Wren", 1.0), ("Köhler's Wren", "kohler's wren", 0.0), ("Ko\u0308hler Wren", "Köhler Wren", 1.0),
    ("737-200", "737 200", 1.0), ("737-20", "737-200", 0.0), ("...", "???", 0.0),
])
def test_strict_accuracy(answer, label, score):
    assert R.strict_accuracy(completion(answer), label) == score
    assert R.strict_accuracy(answer, label) == 0.0


def test_rewards_take_as_long_as_the_text():
    """Once 32,000 blanks took half a minute."""
    start = time.perf_counter()
    for text in (" " * 300_000, "<answer>" * 40_000, "</think><answer>" * 20_000, "<think>" + " \n" * 150_000 + "x"):
        assert R.loose_reward(text, "Wren")["overall"] == R.released_reward(text, "Wren")["overall"] == 0.0
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("text, thought, answer", [
    (completion("Wren"), "a beak", "Wren"), ("<think> x </think> <Answer>Wren</ANSWER>", "x", "Wren"),
    ('<think> x </think> <answer id="1">Wren</answer>', "x", "Wren"), ("<think> x </think> <answer> Wren", "x", None),
    ("A Tit? No.</think> Wren", "A Tit? No.", "Wren"), ("No.</think> <answer>Wren</answer>", "No.", "Wren"),
    ("<think> a <answer> Tit </answer> b </think> Wren", "a <answer> Tit </answer> b", "Wren"),
    ("<think> x", "x", None), ("<think> x <answer> Wren </answer>", "x", "Wren"), ("a Wren", "", "a Wren"),
    ("<think> x </think>", "x", None), ("<answer></answer>", "", ""), ("", "", None),
    ("It is <answer> Wren</answer>", "", "Wren"),
])
def test_one_reading_of_an_answer(text, thought, answer):
    assert reading.read_answer(text) == (thought, answer)
    assert reading.tagged_answer(text) == (answer or "" if "nswer" in text.rpartition("</think>")[2] else "")
    read, judged, named = read_row(text, "Wren"), judge(0, "Wren", True, text), use.read_answer(Path(), text)
    assert judged.answer == read.answer == answer if answer else not judged.correct
    assert (named.chain, named.answer) == (thought, answer) and (named.error is None) == (answer is not None)
    assert R.loose_reward(text, "Wren")["accuracy"] == R.strict_format(text) * (reading.tagged_answer(text) == "Wren")


@pytest.mark.parametrize("label, said", [
    ("Brandt Cormorant", "Brandt's Cormorant"), ("Chuck will Widow", "Chuck-will's-widow"),
    ("Forsters Tern", "Forster’s Tern"), ("Artic Tern", "Arctic Tern"), ("Harris Sparrow", "Harris's Sparrow"),
    ("Harris Sparrow", "Harris' sparrow"), ("Le Conte Sparrow", "LeConte's Sparrow"),
    ("Great Grey Shrike", "great gray shrike"),
    ("Nelson Sharp tailed Sparrow", "Nelson's sharp-tailed sparrow"), ("Whip poor Will", "Whip-poor-will"),
])
def test_another_spelling_is_the_same_name(label, said):
    for a, b in ((label, said), (said, label)):
        text = completion(f"It is a {b}.")
        assert reading.same_name(a, b) and R.loose_reward(text, a)["accuracy"] == judge(0, a, True, text).correct == 1
        assert R.guarded_reward(text, a, [a, "Brandt Tern"])["accuracy"] == 1
        chain = f"<analysis>a red eye</analysis><options>{b}; a tit</options><comparison>c</comparison>"
        assert check_chain(f"{chain}<prediction>{b}</prediction>", a) == []
    assert R.released_reward(completion(said), label)["accuracy"] == (said.lower() == label.lower())  # as released


@pytest.mark.parametrize("label, said", [
    ("Brewer Blackbird", "Brewer's Sparrow"), ("Wren", "Tit"), ("Marsh Tit", "March Tit"),
    ("707-320", "707-32"),
    ("737-200", "737-300"), ("Audi S4 Sedan 2012", "Audi 4 Sedan 2012"), ("Audi S4 Sedan 2012", "Audi S4 Sedan 201"),
    ("House Wren", "Wren"), ("Bewick Wren", "Bewick's"), ("Clark Grebe", "Lark Grebe"), ("Tern", "Fern"),
])
def test_another_name_is_not(label, said):
    for a, b in ((label, said), (said, label)):
        assert not reading.same_name(a, b)
    assert not reading.holds_name(said, label) and R.loose_reward(completion(said), label)["accuracy"] == 0


@pytest.mark.parametrize("names", [FLOWERS, sorted(by_name())], ids=["flowers", "birds"])
def test_no_two_classes_are_one_name(names):
    for label in names:
        assert [name for name in names if reading.same_name(name, label)] == [label]


def test_loose_reward():
    scores = R.loose_reward(completion("a black-footed albatross"), "Black footed Albatross")
    assert scores == {"overall": 1.0, "format": 1.0, "accuracy": 1.0}
    assert R.loose_reward(completion("Laysan Albatross"), "Black footed Albatross")["overall"] == pytest.approx(0.1)
    assert R.loose_reward("no tags", "Wren") == {"overall": 0.0, "format": 0.0, "accuracy": 0.0}
    assert R.loose_reward(completion("anything"), "...")["accuracy"] == 0  # an empty name is in no answer


@pytest.mark.parametrize("answer, named", [
    ("House Finch", ["House Finch"]), ("american goldfinch", ["American Goldfinch"]),
    ("Goldfinch, American Goldfinch", ["American Goldfinch", "Goldfinch"]), ("a bird", []), ("Wrens", ["Wren"]),
    ("House Wren / House Finch", ["House Finch", "House Wren"]), ("a wren or a Wren", ["Wren"]), ("wrench", []),
    ("", []),
    ("not a house-wren but a european goldfinch", ["European Goldfinch", "House Wren"]),
])
def test_names_in(answer, named):
    assert R.names_in(answer, LABELS) == named


def test_guarded_reward_closes_the_hack():
    hack = completion("American Goldfinch or European Goldfinch")
    assert R.released_reward(hack, "European Goldfinch")["overall"] == 1.0
    assert R.guarded_reward(hack, "European Goldfinch", LABELS) == {"overall": 0.1, "format": 1.0, "accuracy": 0.0}
    assert R.guarded_reward(completion("House Wren"), "Wren", LABELS)["accuracy"] == 0.0
    assert R.guarded_reward(completion("New Bird or Wren"), "New Bird", LABELS)["accuracy"] == 0.0
    assert R.guarded_reward(completion("wren"), "wren", LABELS)["accuracy"] == 1.0
    for label in LABELS:  # an honest answer is not punished, also where one name is part of another
        assert R.guarded_reward(completion(f"It is a {label}."), label, LABELS)["overall"] == 1.0
    assert R.guarded_reward("no answer", "Wren", LABELS)["overall"] == 0.0


@pytest.mark.parametrize("answer, label, overall, accuracy, look_alike", [
    ("House Finch", "House Finch", 1.0, 1.0, 0.0), ("American Goldfinch", "House Finch", 0.1 + 0.9 * 0.4, 0.0, 1.0),
    ("House Wren", "House Finch", 0.1, 0.0, 0.0), ("House Finch or Goldfinch", "House Finch", 0.1, 0.0, 0.0),
    ("American Goldfinch or Goldfinch", "House Finch", 0.1, 0.0, 0.0), ("a bird", "House Finch", 0.1, 0.0, 0.0),
    ("House Wren", "Wren", 0.1 + 0.9 * 0.4, 0.0, 1.0),  # contains the label, but is another class
    ("Wren", "House Wren", 0.1 + 0.9 * 0.4, 0.0, 1.0),
])
def test_look_alike_reward(answer, label, overall, accuracy, look_alike):
    assert R.look_alike_reward(completion(answer) + " so", label, FAMILY)["overall"] == 0.0  # out of form
    scores = R.look_alike_reward(completion(answer), label, FAMILY, credit=0.4)
    assert scores.pop("overall") == pytest.approx(overall)
    assert scores == {"format": 1.0, "accuracy": accuracy, "look_alike": look_alike}
