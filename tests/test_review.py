"""A person's review of chains: decisions in their file, and the panel by its buttons."""

import copy
import json
from io import BytesIO

import pytest
from PIL import Image

from finer1_lite.cot.chains import (
    FORMAT, HINTED, LEAK, NOT_LABEL, Chain, ChainError, chat_row, load_chains, question_and_completion, save_chains,
    to_completion,
)  # fmt: skip
from finer1_lite.cot.review import UNDECIDED, Review, ReviewDesk, row_id

LABELS = ("tarn", "wick", "großer Würger", "rell", "fenn")


def completion(label, analysis="red crown."):
    return to_completion(Chain(analysis, [label, "kelt"], "kelt: blue crown.", label))


def make_rows(count=5):
    return [chat_row(i, l, "Which bird?", completion(l), f"{i}.png") for i, l in enumerate(LABELS[:count])]


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def states(review):
    return [review.state(i) for i in range(len(review.rows))]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "ada.jsonl"


@pytest.fixture
def review(path):
    return Review(make_rows(), path, "ada")


def test_what_was_decided_is_there_again(review, path):
    review.decide(0, "accept")
    review.decide(1, "reject")
    review.decide(2, "edit", completion(LABELS[2], "größerer Schnabel, 喙."))
    for r in (review, Review(make_rows(), path, "ada")):
        assert states(r) == ["accept", "reject", "edit", UNDECIDED, UNDECIDED]
        assert r.progress() == {"accept": 1, "edit": 1, "reject": 1, UNDECIDED: 2}
        assert "größerer Schnabel, 喙." in r.completion(2)
    told = [(e["row"], e["reviewer"], e["decision"], e["text"] is None) for e in lines(path)]
    made = zip(make_rows(), ("accept", "reject", "edit"), (True, True, False))
    assert told == [(row_id(row), "ada", decision, plain) for row, decision, plain in made]


def test_undo_makes_the_row_of_the_last_decision_undecided(review, path):
    for index, decision in ((0, "accept"), (1, "reject"), (0, "reject")):
        review.decide(index, decision)
    assert states(review)[:2] == ["reject", "reject"]  # the later decision counts
    assert review.undo() == 0 and states(review)[:2] == [UNDECIDED, "reject"]
    assert review.undo() == 1 and review.undo() is None
    assert states(Review(make_rows(), path, "ada")) == [UNDECIDED] * 5
    assert [e["decision"] for e in lines(path)] == ["accept", "reject", "reject", "undo", "undo"]  # nothing is erased


def test_two_people_or_two_kernels_on_one_file(review, path):
    bob, again = Review(make_rows(), path, "bob"), Review(make_rows(), path, "ada")
    review.decide(0, "accept")
    bob.decide(0, "reject")
    again.decide(1, "accept")
    assert states(again)[:2] == ["accept", "accept"] and states(bob)[:2] == ["reject", UNDECIDED]
    assert bob.undo() == 0 and bob.undo() is None and again.undo() == 1
    assert review.undo() == 0  # it reads what the other kernel took back


def test_a_broken_line_is_named(review, path):
    review.decide(0, "accept")
    path.write_bytes(path.read_bytes() + b'{"row": "a"}\n')
    with pytest.raises(ValueError, match="ada.jsonl, line 2"):
        Review(make_rows(), path, "ada")


def test_decisions_on_rows_that_changed_stay_in_the_file(review, path):
    for i in range(3):
        review.decide(i, "accept")
    rows = make_rows()
    rows[0] = chat_row(0, "tarn", "Which bird?", completion("tarn", "blue crown."), "0.png")
    changed = Review([*rows[3:], *rows[:2]], path, "ada")  # one changed, one gone, the others in another order
    assert states(changed) == [UNDECIDED, UNDECIDED, UNDECIDED, "accept"]
    assert changed.undo() == 3 and changed.undo() is None  # only what is here can be taken back
    assert states(Review(make_rows(), path, "ada"))[:3] == ["accept", UNDECIDED, "accept"]


def test_an_edit_must_be_a_chain_and_its_flags_are_told(review, path):
    with pytest.raises(ChainError):
        review.decide(0, "edit", "a tarn")
    assert not path.exists()
    review.decide(0, "edit", completion("tarn", "a tarn."))
    review.decide(1, "edit", completion("tarn"))
    assert [review.flags(i) for i in range(3)] == [[LEAK], [NOT_LABEL], []]


def test_accepted_rows_are_what_is_trained_on(review, tmp_path):
    before = copy.deepcopy(review.rows)
    review.decide(0, "accept")
    review.decide(1, "reject")
    parts = {"analysis": "groß", "options": f"{LABELS[2]}; kelt", "comparison": "no", "prediction": LABELS[2]}
    review.decide(2, "edit", " ".join(f"<{part}> {text} </{part}>" for part, text in parts.items()))
    rows = review.accepted_rows()
    assert rows[0] == before[0] and len(rows) == 2
    edited = Chain("groß.", [LABELS[2], "kelt"], "no.", LABELS[2])
    assert question_and_completion(rows[1]) == ("Which bird?", to_completion(edited))
    assert rows[1] | {"messages": before[2]["messages"]} == before[2] and review.rows == before
    save_chains(tmp_path / "reviewed.jsonl", rows)
    assert load_chains(tmp_path / "reviewed.jsonl") == rows


@pytest.fixture
def desk(path):
    rows = make_rows()
    rows[1] = chat_row(1, "wick", "Which bird?", completion("wick", "a wick, as the hints say."), "1.png")
    rows[3] = chat_row(3, "rell", "Which bird?", "It is a rell.", "3.png")
    return ReviewDesk(rows, [Image.new("RGB", (112, 112), "red") for _ in rows], path, reviewer="ada")


def click(desk, *names):
    for name in names:
        desk.buttons[name].click()


def test_buttons_decide_and_go_on(desk):
    assert desk.at == 0 and "tarn" in desk.head.value and "flags: none" in desk.head.value
    assert desk.editor.value == completion("tarn")
    click(desk, "Accept", "Reject")
    assert states(desk.review)[:2] == ["accept", "reject"] and desk.at == 2 and "1 accept" in desk.head.value
    click(desk, "Previous", "Previous", "Next")
    assert desk.at == 1 and "2 of 5, reject" in desk.head.value and f"{LEAK}, {HINTED}" in desk.head.value
    click(desk, "Accept")
    assert desk.at == 2 and desk.review.state(1) == "accept"
    click(desk, "Undo")
    assert desk.at == 1 and desk.review.state(1) == UNDECIDED
    click(desk, "Undo", "Undo")
    assert desk.at == 0 and states(desk.review) == [UNDECIDED] * 5
    click(desk, "Accept", "Next", "Accept", "Accept", "Accept", "Accept")  # round the end to what was left out
    assert states(desk.review) == ["accept"] * 5


def test_an_edit_is_what_stands_in_the_field(desk, path):
    desk.editor.value = "no chain"
    click(desk, "Edit")
    assert "Analysis: is missing" in desk.note.value and not path.exists() and desk.editor.value == "no chain"
    desk.editor.value = completion("tarn", "blue crown.")
    click(desk, "Edit")
    assert desk.note.value == "" and desk.at == 1 and lines(path)[0]["text"] == completion("tarn", "blue crown.")
    click(desk, "Previous")
    assert desk.editor.value == completion("tarn", "blue crown.")


def test_the_filter(desk):
    desk.filter.value = "flagged"
    assert desk.at == 1 and FORMAT not in desk.head.value
    click(desk, "Next")
    assert desk.at == 3 and FORMAT in desk.head.value and desk.editor.value == "It is a rell."
    click(desk, "Reject", "Reject")
    desk.filter.value = UNDECIDED
    assert desk.at == 0
    click(desk, "Next", "Next", "Next")  # round the end
    assert desk.at == 0
    desk.filter.value = "accept"
    assert desk.at is None and desk.buttons["Accept"].disabled and desk.editor.value == ""
    desk.filter.value = "reject"
    assert desk.at == 1 and not desk.buttons["Accept"].disabled


def test_texts_are_shown_as_they_are(path):
    label = '<b>&"tarn'
    rows = [chat_row(0, label, "Which <i>bird</i>?", completion(label, "<script>alert(1)</script>."), "0.png")]
    desk = ReviewDesk(rows, {0: Image.new("RGBA", (8, 8))}, path, reviewer="ada")
    assert "&lt;b&gt;&amp;&quot;tarn" in desk.head.value and "Which &lt;i&gt;bird" in desk.head.value
    desk.editor.value = "<answer> <img src=x onerror=alert(1)> </answer>"
    click(desk, "Edit")
    assert "&lt;think&gt;" in desk.note.value and not any(tag in desk.note.value for tag in ("<think", "<img"))


def test_pictures_are_small_and_upright_and_a_missing_one_stops_nothing(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    file = BytesIO()
    Image.new("RGB", (1200, 600)).save(file, "jpeg", exif=exif)
    desk = ReviewDesk(make_rows(2), [Image.open(file)], path, "ada")
    assert Image.open(BytesIO(desk.picture.value)).size == (280, 560)
    click(desk, "Next")
    assert "Problem" in desk.note.value and desk.picture.value == b"" and "wick" in desk.head.value
    click(desk, "Accept")
    assert desk.review.state(1) == "accept" and desk.at == 0
