"""The paper's data sets as their authors give them out: one reader for each unpacked archive; also iNaturalist
2021 and groceries, a small set that anyone may have (github.com/marcusklasson/GroceryStoreDataset).

Names are cleaned; family: a coarser class. FileNotFoundError for a wrong folder. Tried on small copies of layouts
only. Cars, flowers and pets are spelt as in the released closed-world files.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from ..files import read_csv
from .names import clean_name
from .sources import Entry

FLOWERS = Path(__file__).with_name("flowers.txt").read_text().splitlines()  # the archive has numbers
LONG_MAKES = ("AM General", "Aston Martin", "Land Rover")  # the other makes of Stanford Cars are one word


def cub_200(folder: str | Path) -> list[Entry]:
    """CUB-200-2011: the folder `CUB_200_2011`. Family: the last word of the name, as in "Black footed Albatross"."""
    names = ("images", "classes", "image_class_labels", "train_test_split")
    images, classes, labels, training = (_table(folder, f"{name}.txt") for name in names)
    entries = []
    for image, path in images.items():
        label = clean_name(classes[labels[image]].partition(".")[2])  # "001.Black_footed_Albatross"
        split = "train" if training[image] == "1" else "test"
        entries.append(Entry(Path(folder) / "images" / path, label, label.split()[-1], split))
    return entries


def stanford_cars(folder: str | Path) -> list[Entry]:
    """Stanford Cars: the folder that holds `devkit`. Label: as in "Audi A5 Coupe 2012"; family: the make.

    `cars_test_annos_withlabels.mat` is a download of its own; it may lie beside `devkit` or in it.
    """
    names = _mat(folder, "class_names", "devkit/cars_meta.mat")
    labelled = "cars_test_annos_withlabels.mat"
    places, entries = {"train": ["devkit/cars_train_annos.mat"], "test": [labelled, f"devkit/{labelled}"]}, []
    for split in places:
        for row in _mat(folder, "annotations", *places[split]):
            label = clean_name(names[int(row["class"]) - 1])
            make = next((m for m in LONG_MAKES if label.startswith(f"{m} ")), label.split()[0])
            entries.append(Entry(Path(folder) / f"cars_{split}" / row["fname"], label, make, split))
    return entries


def stanford_dogs(folder: str | Path) -> list[Entry]:
    """Stanford Dogs: the folder that holds `Images`. Names are ImageNet's ("Old English sheepdog"). No families."""
    entries = []
    for split in ("train", "test"):
        for path in map(str, _mat(folder, "file_list", f"{split}_list.mat")):
            label = clean_name(path.split("/")[0].partition("-")[2])  # "n02085620-Chihuahua/n02085620_10074.jpg"
            entries.append(Entry(Path(folder) / "Images" / path, label, split=split))
    return entries


def flowers_102(folder: str | Path) -> list[Entry]:
    """Flowers-102: the folder that holds `jpg`. Ten images of a class are for training, ten for val. No families."""
    labels, entries = _mat(folder, "labels", "imagelabels.mat"), []
    for key, split in {"trnid": "train", "valid": "val", "tstid": "test"}.items():
        for image in map(int, _mat(folder, key, "setid.mat")):
            file = Path(folder) / "jpg" / f"image_{image:05d}.jpg"
            entries.append(Entry(file, FLOWERS[int(labels[image - 1]) - 1], split=split))
    return entries


def oxford_pets(folder: str | Path) -> list[Entry]:
    """Oxford-IIIT Pets: the folder that holds `annotations`. Label: as in "American Bulldog"; family: cat or dog."""
    entries = []
    for name, split in {"trainval": "train", "test": "test"}.items():
        for image, numbers in _table(folder, f"annotations/{name}.txt").items():  # "Abyssinian_100", "1 1 1"
            family = {"1": "cat", "2": "dog"}[numbers.split()[1]]
            label = clean_name(image.rpartition("_")[0]).title()
            entries.append(Entry(Path(folder) / "images" / f"{image}.jpg", label, family, split))
    return entries


def fgvc_aircraft(folder: str | Path) -> list[Entry]:
    """FGVC-Aircraft: the folder that holds `data`. Label: the variant ("707-320"); family: as in "Boeing 707"."""
    entries = []
    for split in ("train", "val", "test"):
        families = _table(folder, f"data/images_family_{split}.txt")
        for image, variant in _table(folder, f"data/images_variant_{split}.txt").items():
            path = Path(folder) / "data" / "images" / f"{image}.jpg"
            entries.append(Entry(path, clean_name(variant), clean_name(families[image]), split))
    return entries


def inaturalist(folder: str | Path, part: str = "train") -> list[Entry]:
    """iNaturalist 2021. Label: the common name, and the binomial where there is none or several species share it.

    part: "train" (2.7 million pictures), "train_mini" or "val"; the folder holds `train` and `train.json` (or those
    of the other part). Family: the genus.
    """
    content = json.loads(_file(folder, f"{part}.json").read_text(encoding="utf-8"))
    files = {row["id"]: row["file_name"] for row in content["images"]}
    common = {row["id"]: clean_name(row["common_name"] or "") for row in content["categories"]}
    uses, species = Counter(name.casefold() for name in common.values()), {}
    for row in content["categories"]:
        name = common[row["id"]]
        species[row["id"]] = name if name and uses[name.casefold()] == 1 else clean_name(row["name"]), row["genus"]
    pairs = [(files[row["image_id"]], *species[row["category_id"]]) for row in content["annotations"]]
    return [Entry(Path(folder) / file, label, genus, part.removesuffix("_mini")) for file, label, genus in pairs]


def grocery_store(folder: str | Path) -> list[Entry]:
    """Grocery Store: the folder that holds `classes.csv`. Label: as in "Granny Smith"; family: the coarse class."""
    rows, entries = read_csv(_file(folder, "classes.csv"), keys := ("Class Name (str)", "Coarse Class Name (str)")), []
    families = {row[keys[0]]: row[keys[1]].replace("-", " ") for _, row in rows}
    for split in ("train", "val", "test"):
        for path in sorted(Path(folder, split).rglob("*.jpg")):  # "Fruit/Apple/Granny-Smith/Granny-Smith_001.jpg"
            name = path.parent.name
            entries.append(Entry(path, name.replace("-", " "), families[name], split))
    return entries


def _file(folder: str | Path, *names: str) -> Path:
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise FileNotFoundError(f"no {' or '.join(names)} in {folder}: give the folder that the archive unpacks to")


def _table(folder: str | Path, name: str) -> dict[str, str]:
    """The rest of each line by its first word; lines that start with # are passed over."""
    lines = _file(folder, name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    return {first: rest.strip() for first, rest in pairs}


def _mat(folder: str | Path, key: str, *names: str) -> np.ndarray:
    return np.atleast_1d(loadmat(_file(folder, *names), squeeze_me=True, variable_names=[key])[key])
