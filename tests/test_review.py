"""The review desk without a browser: what is decided is kept, taken back, merged; kills and broken files."""

import base64
import copy
import io
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from math import isnan
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from finer1_lite.cot import decisions
from finer1_lite.cot.chains import (
    FORMAT,
    HINTED,
    LEAK,
    NOT_LABEL,
    Chain,
    ChainError,
    chat_row,
    load_chains,
    question_and_completion,
    save_chains,
    to_completion,
)  # fmt: skip
from finer1_lite.cot.decisions import ReviewError, row_id
from finer1_lite.cot.desk import ReviewDesk
from finer1_lite.cot.review import UNDECIDED, UNFLAGGED, FlaggedError, Review, cohens_kappa, merge_reviews

CHILD = Path(__file__).with_name("review_child.py")
LABELS = ("tarn", "wick", "großer Würger", "rell", "fenn")


def completion(label, analysis="red crown."):
    return to_completion(Chain(analysis, [label, "kelt"], "kelt: blue crown.", label))


def make_rows(count=5, analysis="red crown."):
    labels = [LABELS[i % 5] for i in range(count)]
    return [chat_row(i, l, "Which bird?", completion(l, analysis), f"{i}.png") for i, l in enumerate(labels)]


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


# ---- deciding and replaying


def test_what_was_decided_is_there_again(review, path):
    assert not path.exists() and review.at == 0
    review.decide("accept")
    review.decide("reject")
    review.decide("edit", completion(LABELS[2], "größerer Schnabel, 喙."), insist=True)
    again = Review(make_rows(), path, "ada")
    for r in (review, again):
        assert states(r) == ["accept", "reject", "edit", UNDECIDED, UNDECIDED] and r.at == 3
        assert r.progress() == {"accept": 1, "edit": 1, "reject": 1, UNDECIDED: 2}
        assert "größerer Schnabel, 喙." in r.completion(2)
    ids = [row_id(row) for row in make_rows()]
    assert [(e["row"], e["reviewer"], e["decision"]) for e in lines(path)] == [
        (ids[0], "ada", "accept"), (ids[1], "ada", "reject"), (ids[2], "ada", "edit"),
    ]  # fmt: skip
    assert [e["text"] for e in lines(path)] == [None, None, completion(LABELS[2], "größerer Schnabel, 喙.")]
    assert all(e["time"].endswith("+00:00") for e in lines(path))
    assert "größerer" in path.read_text("utf-8")  # not \u00f6


def test_a_decision_is_on_the_disk_before_it_counts(review, path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(decisions.os, "fsync", lambda number: (synced.append(len(lines(path))), fsync(number)))
    review.decide("accept")
    review.undo()
    assert synced == [1, 2]


def test_undo_takes_back_one_decision_after_the_other(review, path):
    review.decide("accept")
    review.decide("reject")
    review.move(-1)
    review.decide("reject")  # row 1, once more
    review.move(-1)
    assert review.at == 1
    review.decide("accept")
    assert states(review)[:2] == ["accept", "accept"]
    undone = []
    while review.undo():
        undone.append((review.at, states(Review(make_rows(), path, "ada"))[:2]))
    assert undone == [
        (1, ["accept", "reject"]), (1, ["accept", "reject"]), (1, ["accept", UNDECIDED]), (0, [UNDECIDED] * 2),
    ]  # fmt: skip
    assert [e["decision"] for e in lines(path)] == ["accept", "reject", "reject", "accept"] + ["undo"] * 4


def test_undo_leaves_what_others_decided(path):
    ada, bob = (Review(make_rows(), path, name) for name in ("ada", "bob"))
    ada.decide("accept")
    bob.move(-1)
    bob.decide("reject")
    assert states(bob)[:2] == ["reject", UNDECIDED] and not Review(make_rows(), path, "cleo").undo()
    assert ada.undo() and states(ada)[0] == "reject"  # bob's stands
    assert bob.undo() and states(bob)[0] == UNDECIDED


def test_two_kernels_on_one_file_see_each_other(path):
    one, two = (Review(make_rows(), path, "ada") for _ in range(2))
    one.decide("accept")
    assert two.at == 0
    two.decide("reject")  # two still shows row 0; the later decision counts
    assert (states(two)[0], two.at) == ("reject", 1)
    one.decide("accept")
    two.reload()
    assert states(two)[:2] == states(one)[:2] == ["reject", "accept"] and len(lines(path)) == 3


def accept_all(path, name, start):
    review = Review(make_rows(50), path, name)
    start.wait()
    for review.at in range(50):
        review.decide("accept")


def test_processes_that_write_at_once_keep_their_lines_apart(path):
    spawn = multiprocessing.get_context("spawn")
    start, names = spawn.Barrier(3), ("ada", "bob", "cleo")
    writers = [spawn.Process(target=accept_all, args=(path, name, start)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for name in names:  # each one's lines are all there, in order
        assert [e["row"] for e in lines(path) if e["reviewer"] == name] == [row_id(row) for row in make_rows(50)]


def test_threads_that_write_at_once_leave_one_truth(review, path):
    line = {"row": "0", "reviewer": "ada", "decision": "accept", "text": None, "time": ""}

    def add(name):
        for _ in range(30):
            review.log.append(line | {"reviewer": name})
            review.reload()

    threads = [Thread(target=add, args=(name,)) for name in ("ada", "bob", "cleo")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert review.log.events == lines(path) and len(review.log.events) == 90


def test_ten_kills_lose_nothing_that_was_acknowledged(tmp_path):
    path, chains, rng = tmp_path / "ada.jsonl", tmp_path / "chains.jsonl", random.Random(0)
    save_chains(chains, make_rows(30))
    known = []
    for number in range(10):
        command = [sys.executable, str(CHILD), str(chains), str(path), str(number)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        told = [child.stdout.readline() for _ in range(rng.randrange(1, 40))]
        time.sleep(rng.random() * 0.01)  # somewhere within a decision
        child.kill()
        told += [line for line in child.stdout if line.endswith(b"\n")]
        child.wait()
        known += [json.loads(line) for line in told]
        review = Review(make_rows(30), path, "ada")
        found = [[e["row"], e["decision"], e["text"]] for e in review.log.events]
        assert found[: len(known)] == known and len(found) - len(known) <= 1  # one may be written and not yet told
        known = found
    assert {decision for _, decision, _ in known} == {"accept", "reject", "edit", "undo"}


# ---- the file


def test_a_half_written_last_line_is_dropped_at_every_byte(review, path):
    review.decide("accept")
    whole = path.read_bytes()
    review.decide("edit", completion("wick", "größer."))
    last = path.read_bytes()[len(whole) :]
    for cut in range(len(last)):
        path.write_bytes(whole + last[:cut])
        again = Review(make_rows(), path, "ada")
        assert states(again)[:2] == ["accept", UNDECIDED]
        again.decide("reject")
        assert path.read_bytes().startswith(whole) and [e["decision"] for e in lines(path)] == ["accept", "reject"]


@pytest.mark.parametrize("broken, why", [
    (b'{"row": "a", ', "line 2: Expecting"),
    (b"\xff\xfe\xff", "line 2: .*decode"),
    (b"[]", "line 2: not an object"),
    (b"", "line 2: Expecting value"),
    (b'{"row": 1, "reviewer": "ada", "decision": "accept", "time": ""}', "line 2: 'row' should be a text"),
    (b'{"row": "a", "reviewer": "ada", "decision": "maybe", "time": ""}', "line 2: unknown decision 'maybe'"),
    (b'{"row": "a", "reviewer": "ada", "decision": "edit", "time": ""}', "line 2: 'text' should be"),
    (b'{"row": "a", "reviewer": "ada", "decision": "undo", "text": "", "time": ""}', "line 2: 'text' should be"),
])  # fmt: skip
def test_a_broken_line_is_named(review, path, broken, why):
    review.decide("accept")
    review.decide("accept")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + broken + b"\n" + second)
    before = path.read_bytes()
    with pytest.raises(ReviewError, match=f"ada.jsonl, {why}"):
        Review(make_rows(), path, "ada")
    assert path.read_bytes() == before


def test_a_file_that_got_shorter_or_is_gone_is_an_error_and_stays(review, path):
    review.decide("accept")
    review.decide("accept")
    short = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(short)
    with pytest.raises(ReviewError, match="got shorter"):
        review.decide("reject")
    assert path.read_bytes() == short
    path.unlink()
    with pytest.raises(FileNotFoundError):
        review.move(1)


def test_decisions_on_rows_that_changed_are_reported_and_kept(review, path):
    for _ in range(3):
        review.decide("accept")
    before, rows = path.read_bytes(), make_rows()
    rows[0] = chat_row(0, "tarn", "Which bird?", completion("tarn", "blue crown."), "0.png")
    changed = Review([*rows[3:], *rows[:2]], path, "ada")  # one changed, one gone, the others in another order
    assert states(changed) == [UNDECIDED, UNDECIDED, UNDECIDED, "accept"]
    assert [e["row"] for e in changed.unknown] == [row_id(make_rows()[0]), row_id(make_rows()[2])]
    assert changed.undo() and changed.at == 3 and not changed.undo()  # only what is here can be taken back
    assert path.read_bytes().startswith(before)
    assert states(Review(make_rows(), path, "ada"))[:3] == ["accept", UNDECIDED, "accept"]


def test_a_row_is_known_by_what_is_judged():
    row = make_rows(1)[0]
    assert row_id(row | {"image_index": 7}) == row_id(copy.deepcopy(row))
    others = [
        chat_row(0, "wick", "Which bird?", completion("tarn"), "0.png"),
        chat_row(0, "tarn", "Which?", completion("tarn"), "0.png"),
        chat_row(0, "tarn", "Which bird?", completion("tarn", "blue."), "0.png"),
        chat_row(0, "tarn", "Which bird?", completion("tarn"), "1.png"),
    ]
    assert len({row_id(r) for r in (row, *others)}) == 5


def test_rows_that_cannot_be_reviewed(path):
    rows = make_rows()
    for bad, why in [
        ([], "no rows"), ([rows[0], {"label": "tarn"}], "row 2: 'image_index'"),
        ([rows[0], rows[1], rows[0]], "rows 1 and 3"),
    ]:  # fmt: skip
        with pytest.raises(ReviewError, match=why):
            Review(bad, path, "ada")
    with pytest.raises(ReviewError, match="needs a name"):
        Review(rows, path, " ")


# ---- moving and filtering


def test_the_next_undecided_row_comes_round_and_ends(review):
    review.move(1)
    review.move(1)
    for expected in (3, 4, 0, 1, None):
        review.decide("accept")
        assert review.at == expected
    with pytest.raises(ReviewError, match="no row is under review"):
        review.decide("reject")
    review.move(1)
    assert review.at == 0
    review.move(-1)
    assert review.at == 0
    assert Review(review.rows, review.log.path, "ada").at is None


@pytest.fixture
def flagged(path):
    rows = make_rows()
    rows[1] = chat_row(1, "wick", "Which bird?", completion("wick", "a wick, as the hints say."), "1.png")
    rows[3] = chat_row(3, "rell", "Which bird?", "It is a rell.", "3.png")
    return Review(rows, path, "ada")


def test_filters(flagged):
    assert [flagged.flags(i) for i in range(5)] == [[], [LEAK, HINTED], [], [FORMAT], []]
    for wanted, view in [
        ({"flag": HINTED}, [1]), ({"flag": FORMAT}, [3]), ({"flag": UNFLAGGED}, [0, 2, 4]), ({"label": "fenn"}, [4]),
        ({"flag": UNFLAGGED, "label": "wick"}, []), ({"state": "accept"}, []), ({}, [0, 1, 2, 3, 4]),
    ]:  # fmt: skip
        flagged.filter(**wanted)
        assert flagged.view() == view and flagged.at == (view[0] if view else None)
    for unknown in ({"flag": "odd"}, {"label": "owl"}, {"state": "odd"}):
        with pytest.raises(ReviewError, match="no filter"):
            flagged.filter(**unknown)
    assert flagged.view() == [0, 1, 2, 3, 4]


def test_a_filter_leads_from_one_of_its_rows_to_the_next(flagged):
    flagged.filter(flag=UNFLAGGED)
    flagged.decide("reject")
    flagged.decide("reject")
    assert flagged.at == 4
    flagged.filter(state="reject")  # to look at them again
    assert flagged.view() == [0, 2] and flagged.at == 0
    flagged.decide("accept")
    assert flagged.view() == [2] and flagged.at == 2
    flagged.filter(state=UNDECIDED)
    assert flagged.view() == [1, 3, 4] and flagged.at == 1


# ---- edits


def test_an_edit_must_be_a_chain_that_passes_or_is_insisted_on(review, path):
    leak = completion("tarn", "a tarn.")
    for text, error in [("a tarn", ChainError), (completion("tarn"), ReviewError), (leak, FlaggedError)]:
        with pytest.raises(error):
            review.decide("edit", text)
    with pytest.raises(FlaggedError) as caught:
        review.decide("edit", completion("wick"))
    assert caught.value.flags == [NOT_LABEL]
    for arguments in [("edit",), ("accept", "text"), ("maybe",)]:
        with pytest.raises(ReviewError):
            review.decide(*arguments)
    assert not path.exists() and review.at == 0
    review.decide("edit", leak, insist=True)
    assert review.flags(0) == [LEAK] and review.at == 1
    review.filter(flag=LEAK)
    assert review.view() == [0]


def test_accepted_rows_are_what_is_trained_on(review, tmp_path):
    before = copy.deepcopy(review.rows)
    review.decide("accept")
    review.decide("reject")
    parts = {"analysis": "groß", "options": f"{LABELS[2]}; kelt", "comparison": "no", "prediction": LABELS[2]}
    review.decide("edit", " ".join(f"<{part}> {text} </{part}>" for part, text in parts.items()))
    rows = review.accepted_rows()
    assert rows[0] == before[0] and len(rows) == 2
    edited = Chain("groß.", [LABELS[2], "kelt"], "no.", LABELS[2])
    assert question_and_completion(rows[1]) == ("Which bird?", to_completion(edited))
    assert rows[1] | {"messages": before[2]["messages"]} == before[2] and review.rows == before
    save_chains(tmp_path / "reviewed.jsonl", rows)
    assert load_chains(tmp_path / "reviewed.jsonl") == rows


# ---- two reviewers


def test_kappa_by_hand():
    a, e, r = "accept", "edit", "reject"
    # observed 7/10; ada says a 6, e 2, r 2; bob a 5, e 2, r 3: chance (30 + 4 + 6) / 100
    pairs = [(a, a)] * 4 + [(a, r)] * 2 + [(e, e)] + [(e, a)] + [(r, r)] + [(r, e)]
    assert cohens_kappa(pairs) == pytest.approx((0.6 - 0.4) / 0.6)
    assert cohens_kappa([(a, r), (r, a)]) == -1.0
    assert isnan(cohens_kappa([(a, a)] * 3))


def decided(path, name, what):
    """A finished file: a letter for each row, a, r, or else an edit that sees just that; "-" for none."""
    review = Review(make_rows(8), path, name)
    for at, letter in enumerate(what):
        review.at = at
        if letter in "ar":
            review.decide({"a": "accept", "r": "reject"}[letter])
        elif letter != "-":
            review.decide("edit", completion(review.rows[at]["label"], f"{letter}."))
    return path


@pytest.mark.parametrize("shared", [False, True])
def test_merge(tmp_path, shared):
    ada = decided(tmp_path / "ada.jsonl", "ada", "aarxx-aa")
    bob = decided(ada if shared else tmp_path / "bob.jsonl", "bob", "aarxyra-")
    merged = merge_reviews(make_rows(8), [ada] if shared else [ada, bob])
    # both decided rows 0-4 and 6: all the same decision, but row 4 edited to other texts
    rows = make_rows(8)
    assert merged.reviewers == ("ada", "bob") and merged.agreement == 1 and merged.kappa == 1
    assert [question_and_completion(r)[1] for r in merged.rows] == [
        completion("tarn"), completion("wick"), completion("rell", "x."), completion("wick"),
    ]  # fmt: skip
    (difference,) = merged.differ
    assert difference.row == rows[4]
    texts = [event["text"] for event in (difference.first, difference.second)]
    assert texts == [completion("fenn", "x."), completion("fenn", "y.")]
    assert merged.open == [rows[5], rows[7]] and merged.unknown == []
    assert str(merged) == (
        "ada and bob: same decision on 100.0%, kappa 1.00; 4 rows kept, 1 differ, 2 not decided by both"
    )


def test_merge_lists_what_differs_and_what_is_not_there(tmp_path):
    paths = [decided(tmp_path / f"{n}.jsonl", n, what) for n, what in [("ada", "aarr"), ("bob", "arra")]]
    merged = merge_reviews(make_rows(8)[:3], paths)
    assert merged.agreement == pytest.approx(2 / 3) and merged.kappa == pytest.approx((2 / 3 - 4 / 9) / (5 / 9))
    assert merged.rows == make_rows(1) and [d.row for d in merged.differ] == [make_rows(2)[1]]
    assert [(e["reviewer"], e["decision"]) for e in merged.unknown] == [("ada", "reject"), ("bob", "accept")]


def test_what_cannot_be_merged(tmp_path):
    ada, bob = decided(tmp_path / "ada.jsonl", "ada", "a"), decided(tmp_path / "bob.jsonl", "bob", "-a")
    with pytest.raises(FileNotFoundError, match="nobody.jsonl"):
        merge_reviews(make_rows(8), [ada, tmp_path / "nobody.jsonl"])
    with pytest.raises(ReviewError, match="have 1: ada"):
        merge_reviews(make_rows(8), [ada, ada])
    with pytest.raises(ReviewError, match="no row in common"):
        merge_reviews(make_rows(8), [ada, bob])


# ---- the panel, without a browser


@pytest.fixture
def desk(path):
    images = [Image.new("RGB", (112, 112), "red") for _ in range(5)]
    return ReviewDesk(make_rows(), images, path, reviewer="ada")


def panel(desk):
    return "".join(child.value for child in (desk._head, desk._left, desk._parts))


def test_the_panel_follows_the_review(desk):
    assert "0 of 5 decided" in panel(desk) and "tarn" in desk._left.value and "no flags" in desk._left.value
    desk.review.decide("accept")
    assert "1 of 5 decided" in panel(desk) and 'aria-valuenow="1"' in panel(desk) and "wick" in desk._left.value
    assert re.findall("<h4>(.*?)</h4>", panel(desk)) == ["Analysis", "Candidates", "Comparison", "Prediction"]
    for _ in range(4):
        desk.press("r")
    assert "Nothing left to decide here" in panel(desk) and desk._buttons["a"].disabled
    desk.press("a")
    assert desk.keyboard.problem and "no row is under review" in desk.keyboard.note
    desk.press("u")
    assert "fenn" in desk._left.value and not desk._buttons["a"].disabled and desk.keyboard.note == "Taken back."


def test_keys_edit_and_insist(desk, path):
    desk.press("e")
    assert desk.keyboard.draft == completion("tarn") and "f1-editing" in desk._dom_classes
    desk.press("a")  # nothing is decided while the editor is open
    desk.press("save", "no chain")
    assert desk.keyboard.problem and "Analysis: is missing" in desk.keyboard.note and not path.exists()
    leak = completion("tarn", "a tarn.")
    desk.press("save", leak)
    assert "Still flagged: label before candidates" in desk.keyboard.note and not path.exists()
    desk.press("save", leak)
    assert desk.keyboard.draft is None and not desk.keyboard.problem and "f1-editing" not in desk._dom_classes
    assert [e["text"] for e in lines(path)] == [leak] and desk.review.at == 1
    desk.press("e")
    desk.press("cancel")
    desk.press("save", leak)  # no editor is open
    assert len(lines(path)) == 1 and desk.review.at == 1


def test_filters_of_the_panel(desk):
    desk._filters["label"].value = "rell"
    assert desk.review.view() == [3] and "4 of 5, 1 of 1 filtered" in panel(desk)
    desk._filters["flag"].value = FORMAT
    assert "No chain fits these filters" in panel(desk)


def test_texts_are_shown_as_they_are(path):
    label = '<b>&"tarn'
    rows = [
        chat_row(0, label, "Which <i>bird</i>?", completion(label, "<script>alert(1)</script>."), "0.png"),
        chat_row(1, "wick", "Which bird?", "<img src=x onerror=alert(1)>", "1.png"),
    ]
    desk = ReviewDesk(rows, {0: Image.new("RGBA", (8, 8))}, path, reviewer="<u>ada")
    assert "&lt;b&gt;&amp;&quot;tarn" in desk._left.value and "&lt;u&gt;ada" in panel(desk)
    assert "Which &lt;i&gt;bird" in panel(desk) and "&lt;script&gt;" in panel(desk)
    assert not any(tag in panel(desk) for tag in ('<b>&"', "<script", "<u>", "<i>bird"))
    desk.press("j")
    assert "Not a chain" in panel(desk) and "&lt;img src=x" in panel(desk) and "<img" not in panel(desk)
    assert "no picture: KeyError(1)" in panel(desk)


def test_a_disk_that_refuses_is_said_and_nothing_counts(tmp_path):
    (tmp_path / "file").write_text("")
    desk = ReviewDesk(make_rows(1), [Image.new("L", (8, 8))], tmp_path / "file" / "ada.jsonl", "ada")
    desk.press("a")
    assert desk.keyboard.problem and desk.keyboard.note.startswith("Not done: ") and states(desk.review) == [UNDECIDED]


def test_pictures_are_sent_small_and_upright(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    file = io.BytesIO()
    Image.new("RGB", (1200, 600)).save(file, "jpeg", exif=exif)
    desk = ReviewDesk(make_rows(1), [Image.open(file)], path, "ada")
    png = base64.b64decode(re.search('base64,([^"]*)', desk._left.value).group(1))
    assert Image.open(io.BytesIO(png)).size == (280, 560)
    with pytest.raises(ValueError, match="image 4 is asked for, there are 1"):
        ReviewDesk(make_rows(), [Image.new("RGB", (8, 8))], path, "ada")
