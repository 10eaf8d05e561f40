"""Formats in and out, chats, questions and triplets: nothing is lost on the way; what would be lost is refused."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value, load_dataset
from jinja2 import Template
from PIL import Image as Picture

from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.render import draw
from finer1_lite.config import get_profile
from finer1_lite.cot.chains import chat_row
from finer1_lite.data.formats import (
    add_dataset_info, from_llama_factory, read_chats, read_closed_world, to_llama_factory, write_closed_world,
)  # fmt: skip
from finer1_lite.data.triplets import export_triplets, read_triplets
from finer1_lite.files import write_jsonl
from finer1_lite.policy.inputs import IGNORE, training_batch
from finer1_lite.policy.load import load_base
from finer1_lite.prompts import instructed
from finer1_lite.samplers import Triplet

RELEASED = Path(__file__).parents[1].parent / "shared" / "data"
LABELS = ['Häher "x" / ../ {{ content }}\n\u2028 <b>鸟</b>'] * 2 + ["Wren", "Wren", "B", "B"]
SIZES = [(140, 112), (60, 200), (112, 112), (90, 91), (300, 30), (28, 28)]
TRIPLETS = [Triplet(0, 1, 2), Triplet(3, 2, 4), Triplet(5, 4, 1)]
QUESTIONS = ["Which bird is this?", "What is it?", "Who?"]
COLUMNS = ["images", "image_noisy", "image_aug"]
NEAREST = {"Wren": ["House Wren", "Tit", "Jay"], "Tit": ["Jay", "Wren", "House Wren"]}
ROW = chat_row(3, "Wren", "Who is this?", "<think>small</think>", "images/a.jpg") | {"system": "Think."}
LLAMA = to_llama_factory(ROW)
SYSTEM, ASKED, ANSWER = LLAMA["messages"]


def test_a_row_is_as_llama_factory_documents_it_and_comes_back_whole():
    turns = [("system", "Think."), ("user", "<image>Who is this?"), ("assistant", "<think>small</think>")]
    assert LLAMA == {"images": ["images/a.jpg"], "image_index": 3, "label": "Wren"} | {
        "messages": [{"role": who, "content": text} for who, text in turns]
    }
    assert [from_llama_factory(made) for made in Dataset.from_list([LLAMA, LLAMA])] == [ROW] * 2
    two = chat_row(0, "鸟 \0", "a\r\n<image>\u2028 < image >", "", "") | {"images": ["a ä.png", "b"], "note": [None]}
    for row in (ROW | {"system": ""}, two):
        before, made = json.dumps(row), to_llama_factory(row)
        assert from_llama_factory(made) == row and to_llama_factory(from_llama_factory(made)) == made
        assert json.dumps(row) == before  # the way there does not touch it


@pytest.mark.parametrize(("broken", "message"), [
    ({"messages": [SYSTEM, ASKED, ANSWER, ASKED]}, "'assistant', 'user'"), ({"messages": [SYSTEM, ASKED]}, "'user'."),
    ({"system": "Two."}, "after a system prompt or none"), ({"messages": [ASKED, ANSWER | {"weight": 0}]}, "'weight'"),
    ({"messages": [ASKED | {"content": "Who?"}, ANSWER]}, "once for each image"),
    ({"messages": [ASKED, ANSWER | {"content": "<image>"}]}, "nowhere else"),
])  # fmt: skip
def test_what_would_be_lost_is_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        from_llama_factory(LLAMA | broken)


def chats(folder, systems=("Think.", "Think.")):
    rows = []
    for i, system in enumerate(systems):
        answer = f"<think>x</think><answer> Wren {i}</answer>"
        turns = [("system", system), ("user", "<image>Which bird?"), ("assistant", answer)]
        rows.append({"messages": [{"role": r, "content": c} for r, c in turns if c], "images": [f"a/{i}.png"]})
        (folder / "a").mkdir(exist_ok=True)
        Picture.new("RGB", (28, 28), (i, 0, 0)).save(folder / "a" / f"{i}.png")
    (folder / "chats.json").write_text(json.dumps(rows))
    return folder / "chats.json"


def test_chats_as_released_are_read_with_their_system_turn(tmp_path):
    data, system = read_chats(chats(tmp_path), tmp_path)
    assert system == "Think." and data["label"][:] == ["Wren 0", "Wren 1"] and data["question"][0] == "Which bird?"
    assert data["completion"][1].endswith("<answer> Wren 1</answer>") and data[1]["image"].getpixel((0, 0)) == (1, 0, 0)
    assert read_chats(chats(tmp_path, (None, None)), tmp_path)[1] is None
    with pytest.raises(ValueError, match="row 2: .*the same system turn"):
        read_chats(chats(tmp_path, ("Think.", None)), tmp_path)
    with pytest.raises(FileNotFoundError, match="2 of 2 pictures are missing, the first is .*0.png"):
        read_chats(chats(tmp_path), tmp_path / "a")


@pytest.mark.skipif(not RELEASED.exists(), reason="the released files are not here")
def test_the_released_chains_can_be_trained_on_as_they_are(tmp_path):
    file = RELEASED / "stage1_chains_202.json"
    for row in json.loads(file.read_text()):
        picture = tmp_path / row["images"][0]
        picture.parent.mkdir(parents=True, exist_ok=True)
        Picture.new("RGB", (28, 28)).save(picture)
    data, system = read_chats(file, tmp_path)
    assert len(data) == 202 and system.startswith("A conversation between User and Assistant.") and all(data["label"])
    base = load_base(replace(get_profile("cpu"), system=system))
    inputs, labels = training_batch(base.model, base.processor, [(data["question"][0], None, data["completion"][0])])
    ids = inputs["input_ids"][0]
    assert system in base.processor.tokenizer.decode(ids)
    assert base.processor.tokenizer.decode(ids[labels[0] != IGNORE]) == data["completion"][0] + "<|im_end|>"


def test_dataset_info_keeps_what_others_entered(tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_text('{"mine": {"file_name": "ä.json"}}', encoding="utf-8")
    for file in ("old.json", "chains.json"):
        add_dataset_info(tmp_path / file, "birds")
    info = json.loads(path.read_text(encoding="utf-8"))
    assert list(info) == ["mine", "birds"] and info["mine"] == {"file_name": "ä.json"}
    entry = info["birds"]
    assert (entry["file_name"], entry["formatting"]) == ("chains.json", "sharegpt")
    turns, tags = LLAMA[entry["columns"]["messages"]], entry["tags"]
    assert [t[tags["role_tag"]] for t in turns] == [tags[f"{who}_tag"] for who in ("system", "user", "assistant")]
    assert turns[0][tags["content_tag"]] == "Think." and LLAMA[entry["columns"]["images"]] == ["images/a.jpg"]


def birds(folder=None):
    pictures = [Picture.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(3)]
    for i, picture in enumerate(pictures if folder else ()):
        picture.save(folder / f"{i}.png")
        pictures[i] = str(folder / f"{i}.png")
    columns = {"image": pictures, "label": ["Wren", "Tit", "Wren"]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": Value("string")}))


def test_closed_world_is_written_as_released(tmp_path):
    made = write_closed_world(tmp_path / "q.jsonl", birds(), NEAREST, seed=1, official=True, questions=("Who?",))
    lines = (tmp_path / "q.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(json.loads(lines[0])) == ["image_path", "question", "options", "ground_truth"]
    assert read_closed_world(tmp_path / "q.jsonl") == made
    assert [r["ground_truth"] for r in made.rows] == ["Wren", "Tit", "Wren"]
    assert all(r["options"][0] == r["ground_truth"] and r["question"] == "Who?" for r in made.rows)
    assert {frozenset(r["options"]) for r in made.rows} == {frozenset(["Wren", "House Wren", "Tit", "Jay"])}
    for i, r in enumerate(made.rows):
        assert Picture.open(tmp_path / r["image_path"]).getpixel((0, 0)) == (40 * i, 0, 0)


def test_options_are_shuffled_by_the_seed(tmp_path):
    data, path = birds().select([0] * 40), tmp_path / "q.jsonl"
    first, same, other = (write_closed_world(path, data, NEAREST, seed).rows for seed in (1, 1, 2))
    assert first == same != other
    assert {r["options"].index("Wren") for r in first} == {0, 1, 2, 3}


def test_pictures_that_are_files_stay_where_they_are(tmp_path):
    (tmp_path / "own").mkdir()
    data = birds(tmp_path / "own")
    inside = write_closed_world(tmp_path / "q.jsonl", data, NEAREST)
    assert [r["image_path"] for r in inside.rows] == ["own/0.png", "own/1.png", "own/2.png"]
    outside = write_closed_world(tmp_path / "elsewhere" / "q.jsonl", data, NEAREST)
    assert outside.rows[1]["image_path"] == (tmp_path / "own" / "1.png").as_posix()
    assert not list(tmp_path.rglob("images"))


def test_questions_without_four_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="class 'Tit' in `nearest`: 'Tit' and 3 other names are needed"):
        write_closed_world(tmp_path / "new" / "q.jsonl", birds(), NEAREST | {"Tit": ["Jay", "Wren"]})
    assert not (tmp_path / "new").exists()  # nothing is written
    good = {"image_path": "a.jpg", "question": "?", "options": ["a", "b", "c", "d"], "ground_truth": "a"}
    for change in ({"options": ["a", "b", "c"]}, {"options": ["a", "b", "c", "C "]}, {"ground_truth": "e"}):
        write_jsonl(tmp_path / "q.jsonl", [good, good | change])
        with pytest.raises(ValueError, match="q.jsonl, line 2: .* 3 other names are needed"):
            read_closed_world(tmp_path / "q.jsonl")


@pytest.fixture(scope="module")
def images():
    return [draw(s, 5).resize(size) for s, size in zip(evaluation_species(), SIZES)]


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triplets")
    assert export_triplets(TRIPLETS, images, LABELS, QUESTIONS, folder) == folder / "data"
    return folder


def test_the_released_code_reads_its_columns_and_images_of_as_many_tokens(folder, images, tmp_path):
    """That is what the sizes are for: it gives all three images the anchor's placeholders."""
    (kind,) = {path.suffix[1:] for path in (folder / "data").iterdir()}  # as it opens a folder
    rows = load_dataset(kind, data_dir=str(folder / "data"), split="train", cache_dir=str(tmp_path))
    assert rows.column_names == [*COLUMNS, "problem", "answer"]
    assert rows["problem"] == [f"<image>{q}" for q in QUESTIONS]
    assert rows["answer"] == [LABELS[t.anchor] for t in TRIPLETS]
    asked = Template((folder / "format_prompt.jinja").read_text()).render(content=f"<image>{QUESTIONS[0]}")
    assert asked == f"<image>{instructed(QUESTIONS[0])}"  # as the policy was taught

    processor = load_base(get_profile("cpu")).processor.image_processor
    grids = lambda pictures: processor(pictures, return_tensors="pt")["image_grid_thw"].tolist()
    for row in rows:
        one, two, three = grids([row[c][0] for c in COLUMNS])
        assert one == two == three
    unequal = [grids([images[i] for i in t]) for t in TRIPLETS]
    assert any(one != two for one, two, _ in unequal)  # else the test above says nothing


def test_the_parquet_is_self_contained_and_older_datasets_can_open_it(folder):
    (path,) = (folder / "data").iterdir()
    (picture,) = pd.read_parquet(path)["image_aug"][0]
    assert picture["path"] is None and Picture.open(io.BytesIO(picture["bytes"])).size == SIZES[0]
    types = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert {types[c]["_type"] for c in COLUMNS} == {"Sequence"}  # "List" is unknown before datasets 4.0


@pytest.mark.parametrize("name", ["data/train-00000-of-00001.parquet", "data"])
def test_triplets_are_read_back(folder, images, name):
    rows = read_triplets(folder / name)
    assert rows["question"][:] == QUESTIONS and rows["label"][:] == [LABELS[t.anchor] for t in TRIPLETS]
    for made, triplet in zip(rows, TRIPLETS):
        for role, index in triplet._asdict().items():
            expected = images[index].resize(SIZES[triplet.anchor], Picture.Resampling.BICUBIC)
            np.testing.assert_array_equal(np.asarray(made[role]), np.asarray(expected), err_msg=role)


@pytest.mark.parametrize(("triplets", "questions", "message"), [
    ([Triplet(0, 2, 4)], ["?"], "do not fit"), ([Triplet(0, 1, 0)], ["?"], "do not fit"),
    ([Triplet(0, 1, 2)], ["<image> ?"], "'<image> .' do not fit"), (TRIPLETS, ["?"], "shorter"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(triplets, questions, message, images, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_triplets(triplets, images, LABELS, questions, tmp_path / "new")
    assert not (tmp_path / "new").exists()
