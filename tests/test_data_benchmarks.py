"""Readers of the benchmarks' archives: small copies of the real layouts, every field, and what may be broken."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from finer1_lite.data.benchmarks import (
    FLOWERS,
    HUB,
    cub_200,
    fgvc_aircraft,
    flowers_102,
    inaturalist,
    oxford_pets,
    stanford_cars,
    stanford_dogs,
)  # fmt: skip
from finer1_lite.data.names import clean_names
from finer1_lite.data.sources import Entry
from finer1_lite.data.splits import released_classes

RELEASED = Path(__file__).parents[1].parent / "shared" / "data"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def cell(strings, column=False):
    """A cell array of strings, 1 x n or n x 1."""
    return np.array(strings, dtype=object).reshape((-1, 1) if column else (1, -1))


def save(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def cub(root):
    write(root / "classes.txt", "1 001.Black_footed_Albatross\n2 002.Wren\n3 003.Chuck_will_Widow\n")
    paths = ("1 001.Black_footed_Albatross/a_0046_18.jpg", "2 002.Wren/b 1.jpg", "4 003.Chuck_will_Widow/c.jpg")
    write(root / "images.txt", "\n".join(paths))
    write(root / "image_class_labels.txt", "1 1\n2 2\n4 3\n")
    write(root / "train_test_split.txt", "1 0\n2 1\n4 1\n")


CUB = [
    ("images/001.Black_footed_Albatross/a_0046_18.jpg", "Black footed Albatross", "Albatross", "test"),
    ("images/002.Wren/b 1.jpg", "Wren", "Wren", "train"),
    ("images/003.Chuck_will_Widow/c.jpg", "Chuck will Widow", "Widow", "train"),
]


def annotations(rows, fields=("fname", "class")):
    """A 1 x n struct array with the boxes of the real files, each field a matrix of its own."""
    dtype = [(f, object) for f in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *fields)]
    array = np.empty((1, len(rows)), dtype=dtype)
    for i, row in enumerate(rows):
        boxes = [np.array([[39]], dtype=np.uint8)] * 4
        array[0, i] = (*boxes, *(np.array([[v]], dtype=np.uint8) if isinstance(v, int) else v for v in row))
    return array


CAR_NAMES = ["AM General Hummer SUV 2000", "Aston Martin V8 Vantage Coupe 2012", "Land Rover LR2 SUV 2012",
             "Ram C/V Cargo Van Minivan 2012", "smart fortwo Convertible 2012"]  # fmt: skip


def cars(root, test="cars_test_annos_withlabels.mat"):
    save(root / "devkit" / "cars_meta.mat", class_names=cell(CAR_NAMES))
    train = [("00001.jpg", 1), ("00002.jpg", 5), ("00003.jpg", 3)]
    save(root / "devkit" / "cars_train_annos.mat", annotations=annotations(train))
    save(root / test, annotations=annotations([("00001.jpg", 2), ("00002.jpg", 4)]))


CARS = [
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


DOGS = [
    ("Images/n02085620-Chihuahua/n02085620_5927.jpg", "Chihuahua", None, "train"),
    ("Images/n02105641-Old_English_sheepdog/n02105641_1.jpg", "Old English sheepdog", None, "train"),
    ("Images/n02100236-German_short-haired_pointer/n02100236_7.jpg", "German short-haired pointer", None, "test"),
]


def flowers(root, labels=(77, 1, 102, 60), trnid=(3,)):
    save(root / "imagelabels.mat", labels=np.array([labels], dtype=np.uint8))
    sets = {"trnid": trnid, "valid": [2], "tstid": [4, 1]}
    save(root / "setid.mat", **{k: np.array([v], dtype=np.uint16) for k, v in sets.items()})


FLOWER_ENTRIES = [
    ("jpg/image_00003.jpg", "blackberry lily", None, "train"),
    ("jpg/image_00002.jpg", "pink primrose", None, "val"),
    ("jpg/image_00004.jpg", "pink and yellow dahlia", None, "test"),
    ("jpg/image_00001.jpg", "passion flower", None, "test"),
]


def pets(root):
    write(root / "annotations" / "trainval.txt", "Abyssinian_100 1 1 1\namerican_pit_bull_terrier_7 3 2 2\n")
    write(root / "annotations" / "test.txt", "#Image CLASS-ID SPECIES BREED ID\nBritish_Shorthair_20 10 1 6\n")


PET_TEST = "annotations/test.txt"
PETS = [
    ("images/Abyssinian_100.jpg", "Abyssinian", "cat", "train"),
    ("images/american_pit_bull_terrier_7.jpg", "American Pit Bull Terrier", "dog", "train"),
    ("images/British_Shorthair_20.jpg", "British Shorthair", "cat", "test"),
]


def aircraft(root):
    kinds = {"variant": ("707-320", "A300B4", "F/A-18"), "family": ("Boeing 707", "A300", "F/A-18")}
    for kind, names in kinds.items():
        for split, image, name in zip(("train", "val", "test"), ("0034309", "1025794", "0059305"), names):
            write(root / "data" / f"images_{kind}_{split}.txt", f"{image} {name}\n")


AIRCRAFT = [
    ("data/images/0034309.jpg", "707-320", "Boeing 707", "train"),
    ("data/images/1025794.jpg", "A300B4", "A300", "val"),
    ("data/images/0059305.jpg", "F/A-18", "F/A-18", "test"),
]

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


def val(folder):
    return inaturalist(folder, "val")


NATURE_ENTRIES = [
    ("val/03_Animalia/3.jpg", "Common Earthworm", "Lumbricus", "val"),
    ("val/05_Animalia/5.jpg", "Serpula vermicularis", "Serpula", "val"),
    ("val/07_Animalia/7.jpg", "Sabella spallanzanii", "Sabella", "val"),
    ("val/09_Animalia/9.jpg", "Serpula columbiana", "Serpula", "val"),
]


@pytest.mark.parametrize(
    "make, read, expected",
    [
        (cub, cub_200, CUB), (cars, stanford_cars, CARS), (dogs, stanford_dogs, DOGS), (pets, oxford_pets, PETS),
        (flowers, flowers_102, FLOWER_ENTRIES), (aircraft, fgvc_aircraft, AIRCRAFT), (nature, val, NATURE_ENTRIES),
    ],
)  # fmt: skip
def test_every_entry_of_a_small_copy(tmp_path, make, read, expected):
    make(tmp_path)
    entries = [Entry(tmp_path / path, *rest) for path, *rest in expected]
    assert read(tmp_path) == entries
    assert read(str(tmp_path)) == entries


def test_labels_of_the_cars_test_may_lie_in_the_devkit(tmp_path):
    cars(tmp_path, test="devkit/cars_test_annos_withlabels.mat")
    assert [e.label for e in stanford_cars(tmp_path) if e.split == "test"] == [CAR_NAMES[1], CAR_NAMES[3]]


def test_small_training_part_of_inaturalist_is_training(tmp_path):
    write(tmp_path / "train_mini.json", json.dumps(NATURE))
    assert {e.split for e in inaturalist(tmp_path, "train_mini")} == {"train"}


# ---- names


def test_flower_names_are_102_different_ones():
    assert len(FLOWERS) == len(set(FLOWERS)) == 102 and clean_names(FLOWERS) == {name: name for name in FLOWERS}
    assert [FLOWERS[i - 1] for i in (16, 44, 77, 93)] == ["globe flower", "poinsettia", "passion flower", "air plant"]


def released(name):
    path = RELEASED / f"closed_world_{name}_200.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    return set(released_classes(path))


def test_flowers_are_spelt_as_in_the_released_file():
    assert released("flower_unseen") <= set(FLOWERS)


@pytest.mark.parametrize("name", ["pet_seen", "pet_unseen"])
def test_pets_are_spelt_as_in_the_released_file(name, tmp_path):
    breeds = released(name)
    for part in ("trainval", "test"):
        lines = [f"{breed.replace(' ', '_').lower()}_1 1 2 1\n" for breed in sorted(breeds)]
        write(tmp_path / "annotations" / f"{part}.txt", "".join(lines))
    assert {e.label for e in oxford_pets(tmp_path)} == breeds


def test_cars_are_spelt_as_in_the_released_file(tmp_path):
    names = sorted(released("car_seen"))
    cars(tmp_path)
    save(tmp_path / "devkit" / "cars_meta.mat", class_names=cell(names))
    rows = [("1.jpg", number) for number in range(1, len(names) + 1)]
    save(tmp_path / "devkit" / "cars_train_annos.mat", annotations=annotations(rows))
    assert [e.label for e in stanford_cars(tmp_path) if e.split == "train"] == names


def test_hub_has_an_id_for_each_reader_of_the_paper():
    readers = (cub_200, stanford_cars, stanford_dogs, flowers_102, oxford_pets, fgvc_aircraft)
    assert list(HUB) == [reader.__name__ for reader in readers]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+", name) for name in HUB.values())


# ---- breaks


@pytest.mark.parametrize(
    "make, read, missing, layout",
    [
        (cub, cub_200, "images.txt", "train_test_split.txt"),
        (cub, cub_200, "classes.txt", "train_test_split.txt"),
        (cub, cub_200, "image_class_labels.txt", "train_test_split.txt"),
        (cub, cub_200, "train_test_split.txt", "image_class_labels.txt"),
        (cars, stanford_cars, "devkit/cars_meta.mat", "cars_train/"),
        (cars, stanford_cars, "devkit/cars_train_annos.mat", "cars_train/"),
        (cars, stanford_cars, "cars_test_annos_withlabels.mat", "cars_train/"),
        (dogs, stanford_dogs, "train_list.mat", "Images/n02085620-Chihuahua/"),
        (dogs, stanford_dogs, "test_list.mat", "Images/n02085620-Chihuahua/"),
        (flowers, flowers_102, "imagelabels.mat", "jpg/image_00001.jpg"),
        (flowers, flowers_102, "setid.mat", "jpg/image_00001.jpg"),
        (pets, oxford_pets, "annotations/trainval.txt", "images/Abyssinian_100.jpg"),
        (pets, oxford_pets, "annotations/test.txt", "images/Abyssinian_100.jpg"),
        (aircraft, fgvc_aircraft, "data/images_variant_val.txt", "data/images/"),
        (aircraft, fgvc_aircraft, "data/images_family_test.txt", "data/images/"),
        (nature, val, "val.json", "pictures in val/"),
    ],
)
def test_a_missing_file_is_named_with_the_layout(tmp_path, make, read, missing, layout):
    make(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"no {missing} ") and f"in {tmp_path}: give the folder" in str(error.value)
    assert layout in str(error.value).split(": give the folder")[1]


@pytest.mark.parametrize(
    "make, read, file, text, said",
    [
        (cub, cub_200, "image_class_labels.txt", "1 1\n2 9\n4 3\n", "txt, line 2: '9' is not in classes.txt"),
        (cub, cub_200, "image_class_labels.txt", "1 1\n4 3\n", "line 2: '2' is not in image_class_labels.txt"),
        (cub, cub_200, "images.txt", "1 a/b.jpg\n\n2\n", "images.txt, line 3: '2' should be a name or number"),
        (cub, cub_200, "images.txt", "1 a/b.jpg\n1 a/c.jpg\n", "images.txt, line 2: '1' was there before"),
        (cub, cub_200, "classes.txt", "1 Albatross\n", "classes.txt, line 1: 'Albatross' should look like '001.Black"),
        (cub, cub_200, "train_test_split.txt", "1 0\n2 2\n", "split.txt, line 2: '2' is not in the two values"),
        (cub, cub_200, "train_test_split.txt", "1 0\n4 1\n", "images.txt, line 2: '2' is not in train_test_split.txt"),
        (pets, oxford_pets, PET_TEST, "pug_1 1 2 1\npug_2 1 3 1\n", "test.txt, line 2: '3' is not in the species"),
        (pets, oxford_pets, PET_TEST, "pug_1 1 2\n", "test.txt, line 1: '1 2' should look like '1 1 1'"),
        (pets, oxford_pets, PET_TEST, "pug 1 2 1\n", "test.txt, line 1: 'pug' should look like 'Abyssinian_100'"),
        (aircraft, fgvc_aircraft, "data/images_variant_val.txt", "1\n", "images_variant_val.txt, line 1: '1' should"),
        (aircraft, fgvc_aircraft, "data/images_family_val.txt", "1 A\n", "'1025794' is not in images_family_val.txt"),
        (cars, stanford_cars, "devkit/cars_meta.mat", "not found", "cars_meta.mat cannot be read as a MATLAB file"),
        (nature, val, "val.json", '{"images": [', "val.json: Expecting value"),
        (nature, val, "val.json", "[]", "val.json has no list 'images'"),
    ],
)
def test_a_broken_text_is_named_with_its_line(tmp_path, make, read, file, text, said):
    make(tmp_path)
    write(tmp_path / file, text)
    with pytest.raises(ValueError, match=re.escape(said)):
        read(tmp_path)


@pytest.mark.parametrize("number", [0, 6])
def test_car_classes_out_of_range(tmp_path, number):
    cars(tmp_path)
    rows = [("00001.jpg", 1), ("00002.jpg", number)]
    save(tmp_path / "cars_test_annos_withlabels.mat", annotations=annotations(rows))
    with pytest.raises(ValueError, match=rf"withlabels.mat, annotations, row 2: number {number} is not in 1-5"):
        stanford_cars(tmp_path)


def test_car_file_without_labels(tmp_path):
    cars(tmp_path)
    save(tmp_path / "cars_test_annos_withlabels.mat", annotations=annotations([("1.jpg",)], fields=("fname",)))
    with pytest.raises(ValueError, match="the annotations have no 'class'; take the file that has labels"):
        stanford_cars(tmp_path)


def test_flower_labels_and_ids_out_of_range(tmp_path):
    flowers(tmp_path, labels=(77, 1, 103, 60))
    with pytest.raises(ValueError, match=r"imagelabels.mat, labels, row 3: number 103 is not in 1-102"):
        flowers_102(tmp_path)
    flowers(tmp_path, trnid=(3, 5))
    with pytest.raises(ValueError, match=r"setid.mat, trnid, row 2: number 5 is not in 1-4"):
        flowers_102(tmp_path)


def test_mat_file_without_the_variable(tmp_path):
    dogs(tmp_path)
    save(tmp_path / "test_list.mat", labels=np.ones((1, 1)))
    with pytest.raises(ValueError, match=r"test_list.mat has no variable 'file_list'"):
        stanford_dogs(tmp_path)


def test_dog_without_a_wordnet_id(tmp_path):
    dogs(tmp_path)
    save(tmp_path / "test_list.mat", file_list=cell(["n1-pug/1.jpg", "pug/2.jpg"], column=True))
    with pytest.raises(ValueError, match=r"test_list.mat, file_list, row 2: 'pug/2.jpg' should look like"):
        stanford_dogs(tmp_path)


@pytest.mark.parametrize(
    "section, row, said",
    [
        ("annotations", {"image_id": 3, "category_id": 3}, "annotations[1]: 3 is not in the ids of categories"),
        ("annotations", {"image_id": 4, "category_id": 0}, "annotations[1]: 4 is not in the ids of images"),
        ("annotations", {"image_id": 3}, "annotations[1]: should be an object with image_id, category_id"),
        ("images", None, "images[1]: should be an object with id, file_name"),
        ("categories", {"id": 1, "name": "a"}, "categories[1]: should be an object with id, name, common_name, genus"),
    ],
)
def test_broken_rows_of_inaturalist(tmp_path, section, row, said):
    write(tmp_path / "val.json", json.dumps(NATURE | {section: [NATURE[section][0], row]}))
    with pytest.raises(ValueError, match=re.escape(said)):
        val(tmp_path)


def test_unknown_part_of_inaturalist(tmp_path):
    with pytest.raises(ValueError, match="part is 'public_test'; choose one of"):
        inaturalist(tmp_path, "public_test")
