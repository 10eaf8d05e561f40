"""The paper's protocol from end to end: miniature archives of drawn birds, the tiny model, released forms of files."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from finer1_lite import reproduce
from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.render import draw
from finer1_lite.config import ASSETS, get_profile
from finer1_lite.cot.build import DESCRIBE, structured_prompt
from finer1_lite.cot.chains import load_chains
from finer1_lite.cot.concepts import choose_phrases
from finer1_lite.data.formats import to_llama_factory, write_rows
from finer1_lite.evaluate.protocols import RULES
from finer1_lite.policy.inputs import VisionCache
from finer1_lite.policy.load import load_policy, profile_of
from finer1_lite.recipes import TEACHER
from finer1_lite.reproduce import Lab, run, table
from finer1_lite.teachers.policy import sampler_of

SPECIES, SEEN = evaluation_species()[:10], 6  # 60%
CPU = get_profile("cpu")
FEW = {"steps": 1, "questions": 2, "num_anchor": 2, "num_positive": 2, "max_rounds": 1}
SMALL = replace(CPU, max_new_tokens=60, tapo=replace(CPU.tapo, **FEW), sft=replace(CPU.sft, epochs=1),
                sft_answers=replace(CPU.sft_answers, epochs=1))  # fmt: skip
METHODS = ["base", "sft_answers", "cot_sft", "dapo", "tapo"]


def archives(root):
    """CUB's and the pets' layouts with the same ten species, six pictures of each, four of them for training."""
    birds, pets = root / "CUB", root / "pets"
    lines = {name: [] for name in ("images", "labels", "split", "test", "train")}
    for folder in (birds / "images", pets / "images", pets / "annotations"):
        folder.mkdir(parents=True)
    for number, species in enumerate(SPECIES, 1):
        name = species.name.replace(" ", "_")
        (birds / "images" / f"{number:03d}.{name}").mkdir()
        for i in range(6):
            key, path = 10 * number + i, f"{number:03d}.{name}/{name}_{i}.jpg"
            draw(species, 0 if key == 15 else i).save(birds / "images" / path, quality=95)
            draw(species, i + 10).save(pets / "images" / f"{name}_{i}.jpg", quality=95)
            lines["images"].append(f"{key} {path}")
            lines["labels"].append(f"{key} {number}")
            lines["split"].append(f"{key} {int(i < 4)}")
            lines["train" if i < 4 else "test"].append(f"{name}_{i} {number} 1 1")
    classes = [f"{i} {i:03d}.{s.name.replace(' ', '_')}" for i, s in enumerate(SPECIES, 1)]
    files = {"images": lines["images"], "image_class_labels": lines["labels"], "train_test_split": lines["split"]}
    for name, content in (files | {"classes": classes}).items():
        (birds / f"{name}.txt").write_text("\n".join(content))
    for name, content in {"trainval": lines["train"], "test": lines["test"]}.items():
        (pets / "annotations" / f"{name}.txt").write_text("\n".join(content))
    return {"bird": birds, "pet": pets}


def questions(folder, noun, named):
    """Question files as released, the right option first; pictures by the path that they had with the authors."""
    folder.mkdir(exist_ok=True)
    for part, chosen in (("seen", named[:SEEN]), ("unseen", named[SEEN:])):
        rows = []
        for k, name in enumerate(chosen):
            options = [name, *[other for other in named if other != name][k : k + 3]]
            row = {"question": f"Which {noun}?", "options": options, "ground_truth": name}
            file = f"theirs/{SPECIES[named.index(name)].name.replace(' ', '_')}"
            rows += [{"image_path": f"{file}_{i}.jpg"} | row for i in (4, 5)]
        (folder / f"closed_world_{noun}_{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    folders = archives(root)
    questions(root / "questions", "bird", [s.name for s in SPECIES])
    questions(root / "questions", "pet", [s.name.title() for s in SPECIES])
    rows = [row | {"system": "Think first."} for row in load_chains(ASSETS / "reference" / "chains.jsonl")[:8]]
    (root / "train").mkdir()
    for row, species in zip(rows, SPECIES):
        draw(species, 20).save(root / row["images"][0])
    write_rows(root / "stage1.json", [{k: to_llama_factory(row)[k] for k in ("messages", "images")} for row in rows])
    return root, folders


def test_two_data_sets_one_model_from_released_files_to_the_table(released, tmp_path, monkeypatch, capsys):
    root, folders = released
    monkeypatch.setattr(reproduce, "get_profile", lambda name: SMALL)
    arguments = ["x", *(f"{noun}={folder}" for noun, folder in folders.items()), "--profile", "cpu", "--questions",
                 str(root / "questions"), "--chains", str(root / "stage1.json"), "--pictures", str(root),
                 "--similarity", str(ASSETS / "siglip"), "--out", str(tmp_path), "--methods", *METHODS]  # fmt: skip
    monkeypatch.setattr("sys.argv", arguments)
    reproduce.main()
    told, results = capsys.readouterr().out, pd.read_csv(tmp_path / "results.csv")
    assert "Pictures in two splits (1): " in told and "_5.jpg" in told
    assert "hours for RL" in told and "| closed, official order, as released | `base` |" in told and "(77.4)" in told
    assert set(results.method) == set(METHODS) and set(results.domain) == {"bird", "pet"}
    counted = results[results.protocol == "closed, official order"].groupby(["domain", "split"]).n.first()
    assert counted.to_dict() == {(d, s): n for d in ("bird", "pet") for s, n in (("seen", 12), ("unseen", 8))}
    assert set(results.protocol) == set(RULES)
    assert profile_of(tmp_path / "cot_sft").system == "Think first."  # the chains' own turn, which RL does not have
    assert profile_of(tmp_path / "tapo") == replace(profile_of(tmp_path / "cot_sft"), system=None)
    assert profile_of(tmp_path / "tapo").max_new_tokens > SMALL.max_new_tokens  # the longest chain has room
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".csv"}
    reproduce.main()  # nothing is made again
    assert all(path.stat().st_mtime_ns == made for path, made in files.items())
    assert pd.read_csv(tmp_path / "results.csv").equals(results)


def test_the_table_has_means_over_data_sets_beside_the_paper_s():
    cells = {"protocol": "closed, official order", "rule": "as released", "method": "tapo"}
    shares = {("bird", "seen"): 0.9, ("pet", "seen"): 0.7, ("bird", "unseen"): 0.2, ("pet", "unseen"): 0.4}
    rows = [cells | {"domain": d, "split": s, "accuracy": a} for (d, s), a in shares.items()]
    assert table(pd.DataFrame(rows)).endswith("| `tapo` | 80.0 (89.0) | 30.0 (81.4) |")


def test_chains_of_a_teacher_and_questions_of_our_own(released, tmp_path, monkeypatch):
    """As the bird world's teacher was never told how an expert finds a name, it gets the short prompt."""
    monkeypatch.setattr(reproduce, "explained_prompt", structured_prompt)
    monkeypatch.setattr(reproduce, "choose_concepts", lambda captions, encode: choose_phrases(captions))
    monkeypatch.setattr(reproduce, "sentence_encoder", lambda name, download: None)
    monkeypatch.setattr(reproduce, "describe_questions", lambda noun: DESCRIBE)
    teacher = load_policy(CPU, TEACHER, trainable=False)

    def voice(images, kept):
        return sampler_of(teacher, VisionCache(teacher.model, teacher.processor, images), 0, kept=kept)

    lab = Lab(SMALL, {"bird": released[1]["bird"]}, None, tmp_path, voice)
    run(lab, ["cot_sft"], None, None)
    rows = load_chains(tmp_path / "chains.jsonl")
    assert 1 <= len(rows) <= SEEN and {row["label"] for row in rows} <= set(lab.labels)
    asked = pd.concat([pd.read_json(path, lines=True) for path in (tmp_path / "questions").glob("*.jsonl")])
    assert len(asked) == 20 and all(row.options[0] == row.ground_truth for row in asked.itertuples())


def test_a_prompt_is_about_its_picture_s_domain(released, tmp_path):
    lab = Lab(SMALL, released[1], released[0] / "questions", tmp_path)
    loop = lab.loop("tapo")
    for group in loop.roll_out(loop.sampler.next(6)):
        noun = "bird" if group.label.islower() else "pet"
        assert noun in group.question and lab.labels[group.triplet.negative].islower() == group.label.islower()


@pytest.mark.parametrize("change, message", [
    (lambda q: (q / "closed_world_bird_seen.jsonl").rename(q / "x.jsonl"), r"0 files .* `\*bird\*seen\*.jsonl`"),
    (lambda q: (q / "closed_world_bird_seen.jsonl").write_text((q / "closed_world_bird_seen.jsonl").read_text().replace(
        "_4.jpg", "_9.jpg")), "_9.jpg, which .* does not have"),
])  # fmt: skip
def test_files_that_do_not_fit_are_named(released, tmp_path, change, message):
    questions(tmp_path / "q", "bird", [s.name for s in SPECIES])
    change(tmp_path / "q")
    with pytest.raises(FileNotFoundError, match=message):
        Lab(SMALL, {"bird": released[1]["bird"]}, tmp_path / "q", tmp_path)
