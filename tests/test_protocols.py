"""Protocols: each rule is told from its neighbour by an answer that flips; similarity by hand; released questions."""

import numpy as np
import pytest

from finer1_lite.data.formats import ClosedWorld
from finer1_lite.evaluate import protocols as P
from finer1_lite.evaluate.answers import judge

CAR, THOUGHT = "Audi S4 Sedan 2012", "<think> an Audi S4 Sedan 2012 or an Audi A5"
OPEN, CLOSED = ["open, inclusion"], ["closed, official order", "closed, shuffled"]

@pytest.mark.parametrize("protocols, text, label, right", [
    (OPEN, f"{THOUGHT} </think> <answer> {CAR} </answer>", CAR, "1111"),
    (OPEN, THOUGHT, CAR, "1000"),  # the chain broke off: only the fall-back finds a candidate
    (OPEN, f"{THOUGHT} </think> {CAR}", CAR, "1000"),
    (OPEN, "<answer> Audi S4 Sedan 2007 </answer>", CAR, "1100"),  # another car of the same key
    (OPEN, "<answer> it is an Audi S4 Sedan 2012. </answer>", CAR, "1110"),
    (OPEN, f"{THOUGHT} </think> <answer> Audi A5 Coupe 2012 </answer>", CAR, "0000"),  # an answer hides its thoughts
    (OPEN, "<answer> BMW X5 </answer> or <answer> Audi S4 Sedan 2012 </answer>", CAR, "1100"),  # the last one counts
    (OPEN, "<answer></answer> audi s4", CAR, "1000"),  # an empty answer is none
    (CLOSED, "<think> a Boxer </think> <answer> boxer </answer>", "Boxer", "111"),
    (CLOSED, "<think> a Boxer or a Pug", "Boxer", "010"),
    (CLOSED, "<answer> American Bull Terrier </answer>", "Bull Terrier", "110"),  # a wrong option contains the label
    (CLOSED, "<answer> Boxer or Pug </answer>", "Boxer", "110"),
    (CLOSED, "<answer> Maine_Coon </answer>", "Maine Coon", "111"),
    (CLOSED, "<think> a Boxer </think> <answer> Pug </answer>", "Boxer", "000"),
])  # fmt: skip
def test_rules_differ_where_they_should(protocols, text, label, right):
    for protocol in protocols:
        scores = P.scores(protocol, [judge(0, label, True, text)], "car")
        assert "".join(str(int(column[0])) for column in scores.values()) == right


def test_keys_of_cars_collide():
    labels = ["Audi S4 Sedan 2012", "Audi S4 Sedan 2007", "Audi S5 Coupe 2012", "Jeep Compass SUV 2012"]
    assert {P.inclusion_key(label, "car") for label in labels} == {"audi s4", "audi s5", "jeep compass"}
    with pytest.raises(ValueError, match="'Fiat 500'"):
        P.inclusion_key("Fiat 500", "car")


# A toy encoder: each text has an angle in the plane.
ANGLES = {"object": 90, "bird": 60, "Wren": 0, "a wren": 20, "a bird": 60, "Tit": 80, "Bird": 60, "<think> a wren": 30}


def encode(texts):
    turn = np.deg2rad([ANGLES.get(text, 180) for text in texts])
    return np.stack([np.cos(turn), np.sin(turn)], 1)


def test_similarity_by_hand():
    found = P.relative_similarity(["Wren", "a wren", "a bird", "Tit", "", "x"], ["Wren"] * 6, "bird", encode)
    # cos(60) = 0.5 is the super-category's; cos(20) = 0.9397: (0.9397 - 0.5) / 0.5 = 0.8794; farther than it: 0
    assert found == pytest.approx([1, 0.8794, 0, 0, 0, 0], abs=1e-4)
    assert P.relative_similarity(["a wren"], ["Wren"], "object", encode) == pytest.approx([np.cos(np.pi / 9)])
    # A label that means the super-category itself leaves no room.
    assert list(P.relative_similarity(["a bird", "Wren"], ["Bird", "Bird"], "bird", encode)) == [1, 0]
    with pytest.raises(ValueError, match="unit rows"):
        P.relative_similarity(["Wren"], ["Tit"], "bird", lambda texts: 2 * encode(texts))


def test_released_similarity_falls_back_and_knows_no_dogs():
    texts, labels = ["<answer> a wren </answer>", "a wren", "<think> a wren"], ["Wren"] * 3
    assert P.released_similarity(texts, labels, "bird", encode) == pytest.approx([0.8794, 0.8794, 0.7321], abs=1e-4)
    assert P.answered_similarity(texts, labels, "bird", encode) == pytest.approx([0.8794, 0, 0], abs=1e-4)
    asked = []
    P.released_similarity(["x"], ["Wren"], "dog", lambda words: asked.extend(words) or encode(words))
    assert "object" in asked and "dog" not in asked


def test_the_frame_has_every_rule():
    pairs = [("a", "<answer> a wren </answer>"), ("a", "<answer> b wren </answer>"), ("b", "<think> b wren")] * 4
    said = [judge(i, f"{c} wren", i < 6, text) for i, (c, text) in enumerate(pairs)]
    frame = P.protocol_frame({"open": said, "closed": said, "official": said}, encode=encode, draws=100)
    assert list(frame.columns) == ["protocol", "rule", "split", "accuracy", "low", "high", "n"]
    rules = {protocol: list(part.rule.unique()) for protocol, part in frame.groupby("protocol")}
    assert rules == {protocol: list(own) for protocol, own in P.RULES.items()}
    value = frame.set_index(["protocol", "rule", "split"]).accuracy
    assert value["open, inclusion", "as released", "seen"] == pytest.approx(2 / 3)
    assert value["open, inclusion", "answer only", "unseen"] == pytest.approx(1 / 3)
    assert value["closed, shuffled", "with fall-back", "seen"] == pytest.approx(2 / 3)
    assert set(frame.n) == {6} and (frame.low <= frame.accuracy).all() and (frame.accuracy <= frame.high).all()


def test_options_are_shuffled_and_asked_in_their_order():
    row = {"image_path": "a.jpg", "question": "Who?", "options": list("abcd"), "ground_truth": "a"}
    official = ClosedWorld([row] * 200)
    mixed = P.shuffled(official, 0)
    first_is_right = np.mean([r["options"][0] == "a" for r in mixed.rows])
    assert official.rows[0]["options"] == list("abcd") and 0.15 < first_is_right < 0.35
    assert all(sorted(r["options"]) == list("abcd") and r["ground_truth"] == "a" for r in mixed.rows)
    assert P.shuffled(official, 0) == mixed != P.shuffled(official, 1)
    prompts = P.closed_prompts(mixed)
    assert all("; ".join(r["options"]) in text and text.startswith("Who?") for r, text in zip(mixed.rows, prompts))
