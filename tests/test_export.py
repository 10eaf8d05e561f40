"""Exported triplets: the released columns, each image in its place and size, any label."""

import io
import json

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from jinja2 import Template
from PIL import Image

from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.render import draw
from finer1_lite.config import get_profile
from finer1_lite.data.triplets import export_triplets, read_triplets
from finer1_lite.policy.load import load_base
from finer1_lite.prompts import instructed
from finer1_lite.samplers import Triplet

ODD = 'Häher "x" / ../ {{ content }}\n\u2028 <b>鸟</b>'
LABELS = [ODD, ODD, "Wren", "Wren", "B", "B"]
SIZES = [(140, 112), (60, 200), (112, 112), (90, 91), (300, 30), (28, 28)]
TRIPLETS = [Triplet(0, 1, 2), Triplet(3, 2, 4), Triplet(5, 4, 1)]
QUESTIONS = ["Which bird is this?", "What is it?", "Who?"]
COLUMNS = {"images": "anchor", "image_noisy": "positive", "image_aug": "negative"}


@pytest.fixture(scope="module")
def images():
    return [draw(s, 5).resize(size) for s, size in zip(evaluation_species(), SIZES)]


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triplets")
    assert export_triplets(TRIPLETS, images, LABELS, QUESTIONS, folder) == folder / "data"
    return folder


def read(folder, tmp_path):
    """As the released code opens a folder: the type from the first file's name, then `load_dataset`."""
    (kind,) = {path.suffix[1:] for path in (folder / "data").iterdir()}
    return datasets.load_dataset(kind, data_dir=str(folder / "data"), split="train", cache_dir=str(tmp_path))


def test_columns_hold_what_the_released_code_expects(folder, images, tmp_path):
    rows = read(folder, tmp_path)
    assert rows.column_names == ["images", "image_noisy", "image_aug", "problem", "answer"]
    assert rows["problem"] == [f"<image>{q}" for q in QUESTIONS]
    assert rows["answer"] == [LABELS[t.anchor] for t in TRIPLETS]
    asked = Template((folder / "format_prompt.jinja").read_text()).render(content=f"<image>{QUESTIONS[0]}")
    assert asked == f"<image>{instructed(QUESTIONS[0])}"  # as the policy was taught


def test_the_three_images_give_the_same_image_tokens(folder, images, tmp_path):
    """That is what the sizes are for: the released code gives all three the anchor's placeholders."""
    processor = load_base(get_profile("cpu")).processor.image_processor
    grids = lambda pictures: processor(pictures, return_tensors="pt")["image_grid_thw"].tolist()
    for row, triplet in zip(read(folder, tmp_path), TRIPLETS):
        one, two, three = grids([row[c][0] for c in COLUMNS])
        assert one == two == three
    unequal = [grids([images[i] for i in t]) for t in TRIPLETS]
    assert any(one != two for one, two, _ in unequal)  # else the test above says nothing


def test_the_parquet_is_self_contained_and_older_datasets_can_open_it(folder):
    (path,) = (folder / "data").iterdir()
    (picture,) = pd.read_parquet(path)["image_aug"][0]
    assert picture["path"] is None and Image.open(io.BytesIO(picture["bytes"])).size == SIZES[0]
    types = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert {types[c]["_type"] for c in COLUMNS} == {"Sequence"}  # "List" is unknown before datasets 4.0


@pytest.mark.parametrize("name", ["data/train-00000-of-00001.parquet", "data"])
def test_triplets_are_read_back(folder, images, name):
    rows = read_triplets(folder / name)
    assert rows["question"][:] == QUESTIONS and rows["label"][:] == [LABELS[t.anchor] for t in TRIPLETS]
    for made, triplet in zip(rows, TRIPLETS):
        for role, index in triplet._asdict().items():
            expected = images[index].resize(SIZES[triplet.anchor], Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(np.asarray(made[role]), np.asarray(expected), err_msg=role)


@pytest.mark.parametrize(("triplets", "questions", "message"), [
    ([Triplet(0, 2, 4)], ["?"], "do not fit"), ([Triplet(0, 1, 0)], ["?"], "do not fit"),
    ([Triplet(0, 1, 2)], ["<image> ?"], "'<image> .' do not fit"), (TRIPLETS, ["?"], "shorter"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(triplets, questions, message, images, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_triplets(triplets, images, LABELS, questions, tmp_path / "new")
    assert not (tmp_path / "new").exists()
