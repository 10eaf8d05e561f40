"""Readers of the benchmarks' archives: small copies of the real layouts, every field, and what may be broken."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from finer1_lite.data.benchmarks import (
    FLOWERS, cub_200, fgvc_aircraft, flowers_102, grocery_store, inaturalist, oxford_pets, stanford_cars, stanford_dogs,
)  # fmt: skip
from finer1_lite.data.formats import read_closed_world
from finer1_lite.data.health import check_health
from finer1_lite.data.names import clean_names
from finer1_lite.data.sources import Entry, folder_entries, load_images
from finer1_lite.data.splits import few_shot

RELEASED = Path(__file__).parents[1].parent / "shared" / "data"
CAR_NAMES = ["AM General Hummer SUV 2000", "Aston Martin V8 Vantage Coupe 2012", "Land Rover LR2 SUV 2012",
             "Ram C/V Cargo Van Minivan 2012", "smart fortwo Convertible 2012"]  # fmt: skip


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def cell(strings, column=False):
    return np.array(strings, dtype=object).reshape((-1, 1) if column else (1, -1))


def save(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def cub(root):
    write(root / "classes.txt", "1 001.Black_footed_Albatross\n2 002.Wren\n3 003.Chuck_will_Widow\n")
    paths = "1 001.Black_footed_Albatross/a_0046_18.jpg\n2 002.Wren/b 1.jpg\n4 003.Chuck_will_Widow/c.jpg"
    write(root / "images.txt", paths)
    write(root / "image_class_labels.txt", "1 1\n2 2\n4 3\n")
    write(root / "train_test_split.txt", "1 0\n2 1\n4 1\n")
    return [
        ("images/001.Black_footed_Albatross/a_0046_18.jpg", "Black footed Albatross", "Albatross", "test"),
        ("images/002.Wren/b 1.jpg", "Wren", "Wren", "train"),
        ("images/003.Chuck_will_Widow/c.jpg", "Chuck will Widow", "Widow", "train"),
    ]


def annotations(rows):
    """A 1 x n struct array with the boxes of the real files, each field a matrix of its own."""
    dtype = [(f, object) for f in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "fname", "class")]
    array = np.empty((1, len(rows)), dtype=dtype)
    for i, (name, number) in enumerate(rows):
        array[0, i] = (*[np.array([[39]], dtype=np.uint8)] * 4, name, np.array([[number]], dtype=np.uint8))
    return array


def cars(root, test="cars_test_annos_withlabels.mat"):
    save(root / "devkit" / "cars_meta.mat", class_names=cell(CAR_NAMES))
    for path, rows in (("devkit/cars_train_annos.mat", (1, 5, 3)), (test, (2, 4))):
        save(root / path, annotations=annotations([(f"{i:05d}.jpg", n) for i, n in enumerate(rows, 1)]))
    return [
        ("cars_train/00001.jpg", CAR_NAMES[0], "AM General", "train"),
        ("cars_train/00002.jpg", CAR_NAMES[4], "smart", "train"),
        ("cars_train/00003.jpg", CAR_NAMES[2], "Land Rover", "train"),
        ("cars_test/00001.jpg", CAR_NAMES[1], "Aston Martin", "test"),
        ("cars_test/00002.jpg", CAR_NAMES[3], "Ram", "test"),
    ]


def dogs(root):
    train = ["n02085620-Chihuahua/n02085620_5927.jpg", "n02105641-Old_English_sheepdog/n02105641_1.jpg"]
    test = ["n02100236-German_short-haired_pointer/n02100236_7.jpg"]
    for split, files in {"train": train, "test": test}.items():
        rows = np.arange(1, len(files) + 1, dtype=np.uint8).reshape(-1, 1)
        save(root / f"{split}_list.mat", file_list=cell(files, column=True), labels=rows)
    return [
        ("Images/n02085620-Chihuahua/n02085620_5927.jpg", "Chihuahua", None, "train"),
        ("Images/n02105641-Old_English_sheepdog/n02105641_1.jpg", "Old English sheepdog", None, "train"),
        ("Images/n02100236-German_short-haired_pointer/n02100236_7.jpg", "German short-haired pointer", None, "test"),
    ]


def flowers(root):
    save(root / "imagelabels.mat", labels=np.array([[77, 1, 102, 60]], dtype=np.uint8))
    sets = {"trnid": [3], "valid": [2], "tstid": [4, 1]}
    save(root / "setid.mat", **{k: np.array([v], dtype=np.uint16) for k, v in sets.items()})
    return [
        ("jpg/image_00003.jpg", "blackberry lily", None, "train"),
        ("jpg/image_00002.jpg", "pink primrose", None, "val"),
        ("jpg/image_00004.jpg", "pink and yellow dahlia", None, "test"),
        ("jpg/image_00001.jpg", "passion flower", None, "test"),
    ]


def pets(root):
    write(root / "annotations" / "trainval.txt", "Abyssinian_100 1 1 1\namerican_pit_bull_terrier_7 3 2 2\n")
    write(root / "annotations" / "test.txt", "#Image CLASS-ID SPECIES BREED ID\nBritish_Shorthair_20 10 1 6\n")
    return [
        ("images/Abyssinian_100.jpg", "Abyssinian", "cat", "train"),
        ("images/american_pit_bull_terrier_7.jpg", "American Pit Bull Terrier", "dog", "train"),
        ("images/British_Shorthair_20.jpg", "British Shorthair", "cat", "test"),
    ]


def aircraft(root):
    made = [("0034309", "707-320", "Boeing 707", "train"), ("1025794", "A300B4", "A300", "val"),
            ("0059305", "F/A-18", "F/A-18", "test")]  # fmt: skip
    for image, variant, family, split in made:
        write(root / "data" / f"images_variant_{split}.txt", f"{image} {variant}\n")
        write(root / "data" / f"images_family_{split}.txt", f"{image} {family}\n")
    return [(f"data/images/{image}.jpg", *rest) for image, *rest in made]


def grocery(root):
    write(root / "classes.csv", "Class Name (str),Class ID (int),Coarse Class Name (str)\nGranny-Smith,1,Apple\n"
          "Red-Beet,7,Red-Beet\n")  # fmt: skip
    made = [("train/Fruit/Apple/Granny-Smith/Granny-Smith_001.jpg", "Granny Smith", "Apple", "train"),
            ("val/Vegetables/Red-Beet/Red-Beet_001.jpg", "Red Beet", "Red Beet", "val"),
            ("test/Vegetables/Red-Beet/Red-Beet_002.jpg", "Red Beet", "Red Beet", "test")]  # fmt: skip
    for path, *_ in made:
        write(root / path, "")
    return made


NATURE = {
    "images": [{"id": i, "file_name": f"val/0{i}_Animalia/{i}.jpg", "width": 500} for i in (7, 3, 5, 9)],
    "annotations": [{"id": i, "image_id": i, "category_id": c} for i, c in ((3, 0), (5, 2), (7, 1), (9, 4))],
    "categories": [
        {"id": 0, "name": "Lumbricus terrestris", "common_name": "Common Earthworm", "genus": "Lumbricus"},
        {"id": 1, "name": "Sabella spallanzanii", "common_name": "", "genus": "Sabella"},
        {"id": 2, "name": "Serpula vermicularis", "common_name": "Red Tube Worm", "genus": "Serpula"},
        {"id": 4, "name": "Serpula columbiana", "common_name": "red tube worm", "genus": "Serpula"},
    ],
}


def nature(root):
    write(root / "val.json", json.dumps(NATURE))
    return [
        ("val/03_Animalia/3.jpg", "Common Earthworm", "Lumbricus", "val"),
        ("val/05_Animalia/5.jpg", "Serpula vermicularis", "Serpula", "val"),
        ("val/07_Animalia/7.jpg", "Sabella spallanzanii", "Sabella", "val"),
        ("val/09_Animalia/9.jpg", "Serpula columbiana", "Serpula", "val"),
    ]


@pytest.mark.parametrize("make, read, needed", [
    (cub, cub_200, "image_class_labels.txt"), (cars, stanford_cars, "cars_test_annos_withlabels.mat"),
    (dogs, stanford_dogs, "test_list.mat"), (flowers, flowers_102, "setid.mat"),
    (pets, oxford_pets, "annotations/test.txt"), (aircraft, fgvc_aircraft, "data/images_family_test.txt"),
    (grocery, grocery_store, "classes.csv"), (nature, partial(inaturalist, part="val"), "val.json"),
])  # fmt: skip
def test_every_entry_of_a_small_copy_and_a_missing_file(tmp_path, make, read, needed):
    expected = make(tmp_path)
    assert read(str(tmp_path)) == read(tmp_path) == [Entry(tmp_path / path, *rest) for path, *rest in expected]
    (tmp_path / needed).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {needed} .*: give the folder that the archive unpacks to"):
        read(tmp_path)


def test_other_layouts(tmp_path):
    cars(tmp_path, test="devkit/cars_test_annos_withlabels.mat")
    assert [e.label for e in stanford_cars(tmp_path) if e.split == "test"] == [CAR_NAMES[1], CAR_NAMES[3]]
    write(tmp_path / "train_mini.json", json.dumps(NATURE))
    assert {e.split for e in inaturalist(tmp_path, "train_mini")} == {"train"}


def released(name):
    path = RELEASED / f"closed_world_{name}_200.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    return {row["ground_truth"] for row in read_closed_world(path).rows}


def test_flowers_and_pets_are_spelt_as_in_the_released_files(tmp_path):
    assert len(FLOWERS) == len(set(FLOWERS)) == 102 and clean_names(FLOWERS) == {name: name for name in FLOWERS}
    assert [FLOWERS[i - 1] for i in (16, 44, 77, 93)] == ["globe flower", "poinsettia", "passion flower", "air plant"]
    assert released("flower_unseen") <= set(FLOWERS)
    breeds = released("pet_seen") | released("pet_unseen")
    for part in ("trainval", "test"):
        lines = [f"{breed.replace(' ', '_').lower()}_1 1 2 1\n" for breed in sorted(breeds)]
        write(tmp_path / "annotations" / f"{part}.txt", "".join(lines))
    assert {e.label for e in oxford_pets(tmp_path)} == breeds


@pytest.mark.skipif(not (RELEASED / "grocery").is_dir(), reason="the photographs are not there")
def test_photographs_are_read_split_and_found_sound():
    """600 of 50 kinds."""
    groceries = load_images(grocery_store(RELEASED / "grocery"))
    assert len(groceries.data) == 600 and groceries.skipped == groceries.lost == groceries.mended == []
    nested = {(e.path, e.label.replace("-", " ")) for e in folder_entries(RELEASED / "grocery")}
    assert nested == {(e.path, e.label) for e in grocery_store(RELEASED / "grocery")}
    made = few_shot(groceries.data, seen_fraction=1.0)
    assert [len(made[part]) for part in ("train", "val", "test")] == [200, 100, 200]
    health = check_health(made)
    assert health.sizes["shortest_side"].min() >= 256 and set(health.counts["test"]) == {4}
