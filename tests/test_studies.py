"""The studies' lists, differences between seeds, the page of results, one variant from training to answers."""

import multiprocessing.dummy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finer1_lite.config import ASSETS, RESULTS, get_profile
from finer1_lite.cot.chains import ChainError, load_chains, parse_prose, question_and_completion
from finer1_lite.evaluate.answers import METHODS
from finer1_lite.evaluate.statistics import interval
from finer1_lite.losses import GRPO
from finer1_lite.rewards import bare_reward, ending_reward, released_reward
from finer1_lite.samplers import ConfusionCounts
from studies import ablations, command, study, tuning
from studies.ablations import ask, chains_of, pictures, shortened
from studies.baselines import BASELINES, MET
from studies.figures import FILES, gap, load, of_seeds, paired
from studies.formatting import PROBES, TASKS, rounded
from studies.page import write_page
from studies.scorecard import CLAIMS, score
from studies.study import Seed
from studies.tables import ROWS
from studies.variants import ABLATIONS, CHAINS, DAPO, LABELS, TABLES, VARIANTS, WITHOUT_SFT, watched

REFERENCE = ASSETS / "reference"
README = Path(__file__).parents[1] / "README.md"
NONE = {True: 0, False: 0}


def test_every_variant_is_shown_and_every_table_has_a_reference():
    shown = {name for names in TABLES.values() for name in names}
    assert set(ABLATIONS) == shown - {"cot_sft"} and shown | {"base", "sft_answers", *WITHOUT_SFT} == set(LABELS)
    assert all(names[-1] in ("tapo", "cot_sft") and len(set(names)) == len(names) for names in TABLES.values())
    assert set(ROWS) == {*METHODS, *BASELINES} == set(MET)
    asked = dict.fromkeys(("why", "transfer"), {*METHODS})
    asked |= {"ablations": {*ABLATIONS}, "story": {*METHODS, *BASELINES}}
    assert all({claim.a, claim.b} <= asked[claim.study] for claim in CLAIMS)


def test_variants_change_one_thing_at_equal_cost():
    tapo = VARIANTS["tapo"]
    for name, variant in ABLATIONS.items():
        fields = ("loss", "rollouts", "negative", "start", "think", "reward", "shots")
        changed = [field for field in fields if getattr(variant, field) != getattr(tapo, field)]
        assert variant.loss is None or sum(variant.rollouts) == 10
        alone = ("dapo", "shots_1", *CHAINS)  # methods of their own
        assert name in alone or len(changed) == (name != "tapo"), (name, changed)
        assert (variant.lr, variant.steps) == (None, 12)


def test_shortened_chains_say_the_same_without_a_comparison():
    rows = load_chains(REFERENCE / "chains.jsonl")[:5]
    for candidates in (False, True):
        for long, short in zip(rows, shortened(rows, candidates), strict=True):
            (asked, thought), (same, bare) = question_and_completion(long), question_and_completion(short)
            chain = parse_prose(thought)
            assert asked == same and chain.analysis in bare and ("; ".join(chain.options) in bare) == candidates
            assert f"<answer> {long['label']} </answer>" in bare and chain.comparison not in bare
            assert ending_reward(bare, long["label"])["overall"] == 1.0
            with pytest.raises(ChainError):
                parse_prose(bare)


def test_own_confusions_are_counted_by_the_reward():
    confusion = ConfusionCounts(["a tarn", "b tarn"])
    reward = watched(confusion, ending_reward)
    assert reward("<think>x</think> <answer> B Tarn </answer>", "a tarn")["accuracy"] == 0
    assert reward("<think>x</think> <answer> b tarn </answer> or", "b tarn")["format"] == 0
    reward("no answer at all", "b tarn")
    assert confusion.hardest("a tarn") == "b tarn" and confusion.hardest("b tarn") is None


def made_up(folder, seeds=(0, 1, 2)):
    """Tables of all studies with random figures, as the studies write them."""
    rng = np.random.default_rng(0)

    def rows(methods, **cells):
        return [{"method": m, "seed": s, "n": 9, "value": 0.5 + rng.uniform(-0.2, 0.2)} | cells
                for m in methods for s in seeds]  # fmt: skip

    both = [{"protocol": p, "split": s, "metric": "accuracy"} for p in ("open", "closed") for s in ("seen", "unseen")]
    for name, methods in (("results", METHODS), ("baselines", BASELINES), ("ablations", ["cot_sft", *ABLATIONS])):
        made = [row for cells in both for row in rows(methods, **cells)]
        pd.DataFrame([*made, made[0] | {"metric": "words", "value": 60.0}]).to_csv(folder / f"{name}.csv", index=False)
    told = {"why": (PROBES, ("measure", "part")), "transfer": (TASKS, ("task", "measure", "split"))}
    for name, (shown, keys) in told.items():
        made = [row for key in shown for row in rows(METHODS, **dict(zip(keys, key)))]
        pd.DataFrame(made).to_csv(folder / f"{name}.csv", index=False)


def test_figures_of_all_tables_have_one_form_and_overall_is_the_mean_of_both_splits(tmp_path):
    made_up(tmp_path)
    rows = load(tmp_path)
    assert set(rows.study) == set(FILES.values()) and rows.value.between(0, 1).all()  # no words among them
    seen, unseen, overall = (of_seeds(rows, "story", "siglip", "open", s) for s in ("seen", "unseen", "overall"))
    assert overall.tolist() == pytest.approx(((seen + unseen) / 2).tolist()) and list(overall.index) == [0, 1, 2]
    assert len(of_seeds(rows, "transfer", "tapo", "facts, two steps", "unseen")) == 3
    with pytest.raises(KeyError, match="nobody"):
        of_seeds(rows, "story", "nobody", "open", "seen")


def test_a_difference_is_told_by_the_seeds_that_both_have():
    def figures(method, values):
        return [dict(study="x", method=method, protocol="open", split="seen", seed=s, value=v) for s, v in values]

    rows = pd.DataFrame(figures("a", [(2, 0.9), (0, 0.5), (1, 0.6)]) + figures("b", [(0, 0.4), (1, 0.4), (3, 0.1)]))
    found = gap(rows, "x", "a", "b", "open", "seen")
    assert [found[key] for key in ("mean", "low", "high")] == pytest.approx(interval([0.1, 0.2]))
    assert found["seeds"] == 2 and found["each_seed"] == "+0.1000 +0.2000" and found["low"] < 0
    assert np.isnan(paired([0.1] * 3)["low"])  # seeds that do not differ are no certainty


def test_the_card_and_the_page_hold_the_figures_of_their_tables(tmp_path):
    made_up(tmp_path)
    shutil.copy(README, tmp_path)
    rows, text = load(tmp_path), write_page(tmp_path, tmp_path / "README.md").read_text()
    card = pd.read_csv(tmp_path / "scorecard.csv")
    assert list(card.claim) == [claim.claim for claim in CLAIMS] and len(score(rows)) == len(card)
    one = card.iloc[0]
    told = gap(rows, "story", one.a, one.b, one.protocol, one.split)
    assert [one["mean"], one.low, one.high] == pytest.approx([100 * told[k] for k in ("mean", "low", "high")], abs=0.01)
    assert rounded(told["mean"], told["low"], told["high"], sign=True) in text
    cells = next(line for line in text.splitlines() if line.startswith("| No-Thinking-RL")).split(" | ")
    ends = interval(of_seeds(rows, "story", "no_think_rl", "closed", "seen"))
    assert cells[1:3] == [rounded(*ends), "80.9"] and (tmp_path / "ablations.png").exists()
    assert sum(line.startswith("| shots |") for line in text.splitlines()) == 6


def test_one_seed_has_no_interval_and_narrow_ones_get_a_decimal():
    assert rounded(*interval([0.123])) == "12.3"
    assert rounded(0.5, 0.496, 0.504) == "50.0 (49.6 to 50.4)" and rounded(0.5, 0.4, 0.6) == "50 (40 to 60)"


def test_the_committed_page_is_that_of_the_committed_tables(tmp_path):
    for name in FILES:
        shutil.copy(RESULTS / f"{name}.csv", tmp_path)
    shutil.copy(README, tmp_path)
    assert write_page(tmp_path, tmp_path / "README.md").read_text() == (RESULTS / "summary.md").read_text()
    assert (tmp_path / "README.md").read_text() == README.read_text()  # which holds the card's core
    for name in ("scorecard", "main_table", "ablation_table", "why_table", "transfer_table"):  # which chapters show
        assert (tmp_path / f"{name}.csv").read_bytes() == (RESULTS / f"{name}.csv").read_bytes()
    rows = load(RESULTS)
    assert {"cot_sft", "tapo"} <= set(rows[rows.study == "ablations"].method) <= {"cot_sft", *ABLATIONS}
    assert {*METHODS, *BASELINES} == set(rows[rows.study == "story"].method)


def test_tuning_holds_species_out_and_takes_the_best_mean_of_each_method(tmp_path):
    some = {"train": {True: 2, False: 0}, "val": {True: 1, False: 0}, "test": NONE}
    lab = Seed(get_profile("cpu"), 100, tmp_path, "val", some, held_out=0.2)
    away = set(lab.judged["label"]) - set(lab.labels)
    assert (len(set(lab.labels)), len(away), len(lab.cache.images)) == (77, 19, 154)
    rows = [{"method": m, "setting": s, "mean": v} for m, s, v in (("a", "x", 0.1), ("a", "y", 0.3), ("b", "x", 0.2))]
    assert [row["won"] for row in tuning.table(rows)["tuning.csv"]] == [False, True, True]
    assert len({len(settings) for settings in tuning.GRID.values()}) == 1  # as many tries for each method


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
    record = lambda run, config, loss, _=None, shown=None, **how: made.update({run: (config, loss, shown, how)})  # noqa: E731
    monkeypatch.setattr(lab, "rl", record)
    monkeypatch.setattr(lab, "answers", lambda *asked: asked)
    for name in ("tapo", "shots_1", "no_think_rl", "sides_8_2", "released_format"):
        assert ask(lab, name)[3] == (name != "no_think_rl")
    tapo, same = made["ablation_tapo"][0], {"steps": 12, "num_anchor": 8, "num_positive": 2}
    assert made["ablation_sides_8_2"][0] == replace(lab.profile.tapo, **same) and tapo.steps == 12
    assert made["ablation_tapo"][2:] == ((lab.cache, lab.labels), {"negative": "similar", "reward": ending_reward})
    assert made["ablation_released_format"][3]["reward"] is released_reward
    cache, labels = made["ablation_shots_1"][2]
    assert len(labels) == len(set(labels)) == 96 and np.array_equal(cache.images[0], lab.cache.images[0])
    assert len(pictures(lab, 8)[1]) == 8 * 96
    config, loss, _, how = made["ablation_no_think_rl"]
    assert (config.steps, config.num_positive, loss) == (lab.profile.tapo.steps, 0, GRPO)
    assert how["reward"] is bare_reward and "<think>" not in how["ask"](np.random.default_rng(0), 0)
    assert lab.adapter("dapo") == lab.adapter("tapo") and made["tapo"] == (lab.profile.tapo, lab.profile.loss, None, {})
    assert (made["dapo"][0].num_positive, made["dapo"][1]) == (0, DAPO)


@pytest.mark.slow
def test_a_variant_is_trained_asked_and_not_trained_again(tmp_path, monkeypatch):
    one_step = replace(VARIANTS["online_negative"], steps=1)
    monkeypatch.setitem(ablations.VARIANTS, "online_negative", one_step)
    for name in ("chains.jsonl", "cot_sft"):
        (tmp_path / name).symlink_to(REFERENCE / name)
    lab = Seed(get_profile("cpu"), 0, tmp_path, per_class={"val": NONE, "test": {True: 0, False: 1}})
    made = ask(lab, "online_negative")
    assert len(made) == 64 and 0.3 < np.mean([p.correct for p in made]) < 0.95
    log = pd.read_csv(tmp_path / "ablation_online_negative.csv")
    weights = tmp_path / "ablation_online_negative" / study.WEIGHTS
    before = weights.stat().st_mtime_ns
    assert len(log) == 1 and log.inter_kl.notna().all()
    assert ask(lab, "online_negative") == made and weights.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another model.*Move the file away"):
        lab.answers("ablation_online_negative", tmp_path / "cot_sft")


def one(job, work):
    return [{"seed": job, "value": job / 10}]


def test_the_command_writes_the_tables_and_keeps_the_other_studies_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "get_context", lambda _: multiprocessing.dummy)  # threads of this process
    monkeypatch.setattr("sys.argv", ["study", "--seeds", "3", "4", "--out", str(tmp_path), "--work", str(tmp_path)])
    (tmp_path / "versions.json").write_text('{"story": {}}')
    seen = []
    command.run("small", "What?", one, before=lambda seed, work: seen.append(seed))
    assert pd.read_csv(tmp_path / "small.csv").value.tolist() == [0.3, 0.4] and sorted(seen) == [3, 4]
    (tmp_path / "rows" / "small 3.json").write_text('[{"seed": 3, "value": 7}]')  # made before: not made again
    command.run("small", "What?", one)
    assert pd.read_csv(tmp_path / "small.csv").value.tolist() == [7, 0.4]
    assert set(pd.read_json(tmp_path / "versions.json")) == {"story", "small"}
