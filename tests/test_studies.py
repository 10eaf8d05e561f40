"""The studies' lists, differences between seeds, the page of results, one variant from training to answers."""

import multiprocessing.dummy
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finer1_lite.config import ASSETS, get_profile
from finer1_lite.cot.chains import ChainError, load_chains, parse_prose, question_and_completion
from finer1_lite.evaluate.answers import METHODS, Prediction
from finer1_lite.evaluate.statistics import interval, over_seeds
from finer1_lite.files import write_jsonl
from finer1_lite.losses import DAPO
from finer1_lite.samplers import ConfusionCounts
from studies import study
from studies.ablations import chains_of, run_variant, table_rows, unstructured
from studies.baselines import BASELINES
from studies.differences import difference, paired
from studies.formatting import cells, rounded
from studies.page import PARTS, write_page
from studies.study import Seed
from studies.variants import CHAINS, LABELS, TABLES, VARIANTS, watched

REFERENCE = ASSETS / "reference"
RESULTS = Path(__file__).parents[1] / "studies" / "results"
NONE = {True: 0, False: 0}


def test_every_variant_is_shown_and_every_table_has_a_reference():
    shown = {name for names in TABLES.values() for name in names}
    assert set(VARIANTS) <= shown and shown - set(VARIANTS) == {"base", "sft_answers", "cot_sft"}
    assert all(names[-1] in ("tapo", "cot_sft") and len(set(names)) == len(names) for names in TABLES.values())
    assert shown == set(LABELS)
    assert set(BASELINES) - set(METHODS) - set(VARIANTS) == {name for name, (_, way) in BASELINES.items() if way}


def test_variants_change_one_thing_at_equal_cost():
    tapo = VARIANTS["tapo"]
    for name, variant in VARIANTS.items():
        fields = ("loss", "rollouts", "negative", "start", "think")
        changed = [field for field in fields if getattr(variant, field) != getattr(tapo, field)]
        assert variant.loss is None or sum(variant.rollouts) == 10
        alone = ("dapo", "cls_rl", "no_think_rl", "answers_rl", *CHAINS)  # methods of their own
        assert name in alone or len(changed) == (name != "tapo"), (name, changed)


def test_the_committed_tables_hold_what_the_lists_say():
    rows = pd.read_csv(RESULTS / "ablations.csv")
    assert {(t, v) for t, names in TABLES.items() for v in names} == set(zip(rows.table, rows.variant))
    assert set(pd.read_csv(RESULTS / "baselines.csv").baseline) == set(BASELINES)


def test_unstructured_chains_say_the_same_without_a_comparison():
    rows = load_chains(REFERENCE / "chains.jsonl")[:5]
    for long, short in zip(rows, unstructured(rows), strict=True):
        (asked, thought), (same, bare) = question_and_completion(long), question_and_completion(short)
        assert asked == same and parse_prose(thought).analysis in bare
        assert f"<answer> {long['label']} </answer>" in bare
        with pytest.raises(ChainError):
            parse_prose(bare)


def test_own_confusions_are_counted_by_the_reward():
    confusion = ConfusionCounts(["a tarn", "b tarn"])
    reward = watched(confusion)
    assert reward("<think>x</think> <answer> B Tarn </answer>", "a tarn")["accuracy"] == 0
    assert reward("<think>x</think> <answer> b tarn </answer>", "b tarn")["accuracy"] == 1
    reward("no answer at all", "b tarn")
    assert confusion.hardest("a tarn") == "b tarn" and confusion.hardest("b tarn") is None


def _answers(folder, name, right):
    made = [Prediction(i, f"c{i // 4}", i < 20, "", "", bool(r), bool(r)) for i, r in enumerate(right)]
    write_jsonl(folder / f"{name}_open.jsonl", [asdict(p) for p in made])


def test_a_difference_is_told_by_its_seeds(tmp_path):
    for seed, wins in enumerate((2, 4, 9)):
        _answers(tmp_path / f"seed{seed}", "a", np.arange(40) < wins)
        _answers(tmp_path / f"seed{seed}", "b", np.zeros(40))
    gap = difference(tmp_path, [0, 1, 2], "a", "b", "open", lambda *_: True)
    ends = interval([2 / 40, 4 / 40, 9 / 40])
    assert (gap["mean"], gap["low"], gap["high"]) == pytest.approx(ends, abs=1e-4)
    assert gap["low"] < 0 and gap["p"] > 0.05 and gap["n"] == 120 and gap["each_seed"] == "+0.0500 +0.1000 +0.2250"
    few = difference(tmp_path, [1], "a", "b", "open", lambda seed, p: seed == 1 and p.index < 8)
    assert few["mean"] == 0.5 and few["n"] == 8 and np.isnan([few["low"], few["p"]]).all()  # one seed tells nothing
    assert np.isnan(paired([0.1] * 3)["low"])  # seeds that do not differ are no certainty


def test_the_table_pairs_each_variant_with_its_reference(tmp_path):
    rng = np.random.default_rng(0)
    for seed in (0, 1, 2):
        reference = rng.random(40) < 0.6
        for name in LABELS:
            right = reference if name != "paper" else reference & (np.arange(40) % 4 == 0)
            _answers(tmp_path / f"seed{seed}", f"ablation_{name}" if name in VARIANTS else name, right)
    rows = pd.DataFrame(table_rows(tmp_path, [0, 1, 2]))
    assert list(rows.columns) == list(pd.read_csv(RESULTS / "ablations.csv").columns)
    assert (rows[rows.variant != "paper"][["difference", "low", "high"]] == 0).all(axis=None)
    worse = rows[(rows.variant == "paper") & (rows.split == "unseen")].iloc[0]
    assert worse.high < 0 and worse.p < 0.05 and worse.accuracy < 0.25


def test_the_committed_differences_are_those_of_the_committed_results():
    results = pd.read_csv(RESULTS / "results.csv").query("metric == 'accuracy'")
    results = results.set_index(["protocol", "split", "method"]).sort_index()
    for row in pd.read_csv(RESULTS / "differences.csv").itertuples():
        a, b = (results.loc[(row.protocol, row.split, m)] for m in row.difference.split(" - "))
        gap = paired(a.set_index("seed").value - b.set_index("seed").value)
        assert [row.mean, row.low, row.high, row.p] == pytest.approx(list(gap.values()), abs=1e-4)


def test_the_page_holds_the_figures_of_its_table(tmp_path):
    asked = {"protocol": "open", "split": "seen", "n": 9}
    rows = [{"seed": s, "baseline": b, "value": v + s / 50, "met": f"met {b}"} | asked
            for s in (0, 1) for b, v in (("poor", 0.1), ("good", 0.5))]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "baselines.csv", index=False)
    text = write_page(tmp_path).read_text()
    assert "2 seed(s)" in text and "best is `good` with 51 (38 to 64)%" in text  # t(1) = 12.7, times 1 point
    lines = [line for line in text.splitlines() if line.startswith("| ") and "met" in line]
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| good", "| poor"]  # best first
    assert "Ablations" not in text  # its table is not there


def test_one_seed_has_no_interval_and_narrow_ones_get_a_decimal():
    one = pd.DataFrame([{"seed": 0, "m": "a", "s": "x", "value": 0.123}])
    assert cells(one, ["m"], ["s"]).iloc[0].tolist() == ["a", "12.3"] and np.isnan(over_seeds(one, ["m"]).low[0])
    assert rounded(0.5, 0.496, 0.504) == "50.0 (49.6 to 50.4)" and rounded(0.5, 0.4, 0.6) == "50 (40 to 60)"


def test_the_committed_page_is_that_of_the_committed_tables(tmp_path):
    for name in [*PARTS, "differences.csv"]:
        shutil.copy(RESULTS / name, tmp_path)
    text = write_page(tmp_path).read_text()
    assert text == (RESULTS / "summary.md").read_text() and (tmp_path / "ablations.png").exists()


def test_what_lies_in_the_folder_is_used_again_and_a_variant_gets_its_own_setting(tmp_path, monkeypatch):
    for name in ("chains.jsonl", "cot_sft"):
        (tmp_path / name).symlink_to(REFERENCE / name)
    lab = Seed(get_profile("cpu"), 0, tmp_path, per_class={"val": NONE, "test": {True: 0, False: 1}})
    monkeypatch.setattr(study, "train_sft", None)  # nothing is trained
    assert lab.adapter("cot_sft") == tmp_path / "cot_sft" and lab.adapter("base") is None
    few, more = ([row["label"] for row in chains_of(lab, f"chains_{n}")] for n in (12, 24))
    assert len(few) == 12 and few == more[:12]
    assert lab.same_steps(lab.chains()) == lab.profile.sft.epochs and lab.same_steps(lab.chains()[:16]) == 96
    with pytest.raises(TypeError):
        lab.sft("cot_sft", "other", lab.chains()[:1])
    made = {}
    train = lambda run, config, loss, start=None, **how: made.update({run: (config, loss, how)})  # noqa: E731
    monkeypatch.setattr(lab, "rl", train)
    monkeypatch.setattr(lab, "answers", lambda *asked: asked)
    for name in ("tapo", "micro_batch", "no_think_rl", "sides_8_2"):
        assert run_variant(lab, name)[3] == (name != "no_think_rl")
    tapo, same = made["ablation_tapo"][0], {"steps": 20, "num_anchor": 8, "num_positive": 2}
    assert made["ablation_sides_8_2"][0] == replace(lab.profile.tapo, **same) and tapo.steps == 20
    assert (tapo.micro_batch, made["ablation_micro_batch"][0].micro_batch) == (lab.profile.tapo.micro_batch, 4)
    assert lab.adapter("dapo") == lab.adapter("tapo") and made["tapo"] == (lab.profile.tapo, lab.profile.loss, {})
    assert (made["dapo"][0].num_positive, made["dapo"][0].lr, made["dapo"][1]) == (0, lab.profile.dapo_lr, DAPO)
    ask = made["ablation_no_think_rl"][2]["ask"]
    assert "<think>" not in ask(np.random.default_rng(0)) and made["ablation_tapo"][2] == {"negative": "similar"}


@pytest.mark.slow
def test_a_variant_is_trained_asked_and_not_trained_again(tmp_path):
    for name in ("chains.jsonl", "cot_sft"):
        (tmp_path / name).symlink_to(REFERENCE / name)
    lab = Seed(get_profile("cpu"), 0, tmp_path, per_class={"val": NONE, "test": {True: 0, False: 1}})
    made = run_variant(lab, "online_negative", steps=1)
    assert len(made) == 64 and 0.3 < np.mean([p.correct for p in made]) < 0.95
    log = pd.read_csv(tmp_path / "ablation_online_negative.csv")
    weights = tmp_path / "ablation_online_negative" / study.WEIGHTS
    before = weights.stat().st_mtime_ns
    assert len(log) == 1 and log.inter_kl.notna().all()
    assert run_variant(lab, "online_negative", steps=1) == made and weights.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another model.*Move the file away"):
        lab.answers("ablation_online_negative", tmp_path / "cot_sft")


def one(job, work):
    return [{"seed": job, "value": job / 10}]


def test_the_command_writes_the_tables_and_keeps_the_other_studies_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "get_context", lambda _: multiprocessing.dummy)  # threads of this process
    monkeypatch.setattr("sys.argv", ["study", "--seeds", "3", "4", "--out", str(tmp_path), "--work", str(tmp_path)])
    (tmp_path / "versions.json").write_text('{"story": {}}')
    seen = []
    study.run("small", "What?", one, before=lambda seed, work: seen.append(seed))
    assert pd.read_csv(tmp_path / "small.csv").value.tolist() == [0.3, 0.4] and sorted(seen) == [3, 4]
    assert set(pd.read_json(tmp_path / "versions.json")) == {"story", "small"}
