"""Figures behind an accuracy: harmonic mean and interval, families, overused names, lengths; on hand-made answers."""

import numpy as np
import pytest

from finer1_lite.config import get_profile
from finer1_lite.evaluate.answers import judge
from finer1_lite.evaluate.statistics import bootstrap_seeds
from finer1_lite.policy.load import load_processor
from studies import figures as F

FAMILY_OF = {"Wren": "wrens", "House Wren": "wrens", "Tit": "tits", "Blue Tit": "tits", "Jay": "crows"}
SAID = [  # label, seen, answer
    ("Wren", True, "Wren"), ("Wren", True, "a house wren"), ("Wren", True, "House Wren"), ("Tit", True, "Blue Tit"),
    ("House Wren", False, "Tit"), ("House Wren", False, "House wren."), ("Blue Tit", False, "an eagle"),
    ("Blue Tit", False, "Wren or Tit"),
]  # fmt: skip


@pytest.fixture
def said():
    return [judge(i, label, seen, f"<think> x y </think> <answer> {answer} </answer>")
            for i, (label, seen, answer) in enumerate(SAID)]  # fmt: skip


def coins(rate, n, seen, seed):
    """`n` classes of four images, each right with `rate`."""
    rng = np.random.default_rng(seed)
    return [judge(i, f"{seen}{i // 4}", seen, f"{seen}{i // 4}" if rng.random() < rate else "no") for i in range(4 * n)]


def test_seen_unseen_and_their_harmonic_mean():
    runs = [coins(0.9, 40, True, s) + coins(0.3, 30, False, s + 9) for s in range(3)]
    found = F.split_accuracy(runs)
    seen, unseen = (np.mean([p.correct for run in runs for p in run if p.seen == which]) for which in (True, False))
    assert found["mean"].tolist() == pytest.approx([seen, unseen, 2 * seen * unseen / (seen + unseen)])
    assert found["n"].tolist() == [480, 360, 840]
    assert (found.low < found["mean"]).all() and (found["mean"] < found.high).all()
    # The harmonic mean hangs on the weaker half: dH/du = 2 s^2 / (s + u)^2, so its interval is about that much wider.
    slope = 2 * seen**2 / (seen + unseen) ** 2
    width = found.high - found.low
    assert slope * width["unseen"] < width["harmonic"] < 1.15 * slope * width["unseen"]
    mine = [np.array([float(p.correct) for p in run if p.seen]) for run in runs]
    same = bootstrap_seeds(mine, [[p.label for p in run if p.seen] for run in runs])
    assert found.loc["seen", ["mean", "low", "high"]].tolist() == pytest.approx(same)


def test_strict_accuracy_and_missing_splits(said):
    assert F.split_accuracy([said])["mean"].tolist() == pytest.approx([1, 0.25, 0.4])  # "House Wren" contains "Wren"
    assert F.split_accuracy([said], strict=True)["mean"].tolist() == pytest.approx([0.25, 0.25, 0.25])
    with pytest.raises(ValueError, match="no images of unseen"):
        F.split_accuracy([[p for p in said if p.seen]])


def test_who_is_taken_for_whom(said):
    found = F.family_confusion(said, FAMILY_OF)
    assert found.loc["seen"].tolist() == [0.25, 0.75, 0, 0, 4]  # right, same family, other family, no known name, n
    assert found.loc["unseen"].tolist() == [0.25, 0, 0.25, 0.5, 4]  # an unknown name, and two names at once
    table = F.family_matrix(said, FAMILY_OF)
    assert list(table.index) == ["tits", "wrens"]  # no picture of a crow was asked about
    assert table.loc["wrens"].to_dict() == {"crows": 0, "tits": 1, "wrens": 4, "no known name": 0}
    assert table.loc["tits"].to_dict() == {"crows": 0, "tits": 1, "wrens": 0, "no known name": 2}
    assert table.to_numpy().sum() == len(said)
    with pytest.raises(ValueError, match="'Wren'"):
        F.family_confusion(said, {"Tit": "tits"} | {k: v for k, v in FAMILY_OF.items() if k != "Wren"})


def test_overused_names(said):
    counts = F.name_counts(said, FAMILY_OF)
    assert counts.loc["House Wren", ["expected", "answered", "right", "excess"]].tolist() == [2, 3, 1, 1]
    assert counts.loc["no known name"].tolist() == [0, 2, 0, 2] and counts.index[0] == "no known name"
    assert counts.loc["Wren"].tolist() == [3, 1, 1, -2] and "Jay" not in counts.index
    assert counts.expected.sum() == counts.answered.sum() == len(said)
    assert F.total_variation(counts) == pytest.approx((2 + 1 + 0 + 2 + 1) / 2 / 8)
    perfect = [judge(i, c, True, c) for i, c in enumerate(FAMILY_OF)]
    assert F.total_variation(F.name_counts(perfect, FAMILY_OF)) == 0


def test_lengths_of_chains(said):
    tokenizer = load_processor(get_profile("cpu")).tokenizer
    found = F.chain_lengths([*said, judge(8, "Wren", True, "")], tokenizer)
    assert found.words.tolist()[:3] == [7, 9, 8] and found.words.iloc[-1] == found.tokens.iloc[-1] == 0
    assert found.split.tolist() == ["seen"] * 4 + ["unseen"] * 4 + ["seen"]
    assert found.right.tolist() == [p.correct for p in said] + [False]
    assert found.tokens[0] == len(tokenizer(said[0].text)["input_ids"]) and "tokens" not in F.chain_lengths(said)
