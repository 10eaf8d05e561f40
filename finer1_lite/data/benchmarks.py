"""The paper's data sets as their authors give them out: one reader for each unpacked archive, and iNaturalist 2021.

Each reader gives the entries of `sources`: names cleaned for people, the official split, and a family (a coarser
class) where the archive knows one. It reads lists alone: a picture that is listed but missing is found by
`load_images`. A wrong folder is a FileNotFoundError that says what was looked for; a broken line, row or number is a
ValueError that says where it is.

The layouts come from read-me files of the archives (aircraft, pets, iNaturalist) and from other projects' readers. They
were tried here on small copies made by hand, not on the archives. Names of flowers and pets are spelt as in the
released closed-world files, and names of cars pass unchanged (tested), so that `splits.released_classes` fits.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import loadmat

from .names import clean_name
from .sources import Entry

# Copies on the Hub that much public code reads, for `sources.hub_images`. None was downloaded or tried here: columns
# may have other names (of the aircraft: label="variant") and classes other spellings, or numbers.
HUB = {
    "cub_200": "bentrevett/caltech-ucsd-birds-200-2011",
    "stanford_cars": "tanganke/stanford_cars",
    "stanford_dogs": "maurice-fp/stanford-dogs",
    "flowers_102": "nelorth/oxford-flowers",
    "oxford_pets": "timm/oxford-iiit-pet",
    "fgvc_aircraft": "mteb/FGVCAircraft",
}
# The archive has numbers only. The names in its order, as the released files spell them: they say globe flower for
# globe-flower (16), pink and yellow dahlia for pink-yellow dahlia (60), and air plant for ball moss (93).
FLOWERS = (
    "pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, "
    "moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear "
    "thistle, yellow iris, globe flower, purple coneflower, peruvian lily, balloon flower, giant white arum "
    "lily, fire lily, pincushion flower, fritillary, red ginger, grape hyacinth, corn poppy, prince of wales "
    "feathers, stemless gentian, artichoke, sweet william, carnation, garden phlox, love in the mist, mexican "
    "aster, alpine sea holly, ruby-lipped cattleya, cape flower, great masterwort, siam tulip, lenten rose, "
    "barbeton daisy, daffodil, sword lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup, "
    "oxeye daisy, common dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff, "
    "gaura, geranium, orange dahlia, pink and yellow dahlia, cautleya spicata, japanese anemone, black-eyed "
    "susan, silverbush, californian poppy, osteospermum, spring crocus, bearded iris, windflower, tree poppy, "
    "gazania, azalea, water lily, rose, thorn apple, morning glory, passion flower, lotus, toad lily, "
    "anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen, "
    "watercress, canna lily, hippeastrum, bee balm, air plant, foxglove, bougainvillea, camellia, mallow, "
    "mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily"
).split(", ")
LONG_MAKES = ("AM General", "Aston Martin", "Land Rover")  # the other makes of Stanford Cars are one word
INATURALIST_PARTS = {"train": "train", "train_mini": "train", "val": "val"}


class _Line(NamedTuple):
    value: str
    where: str


def cub_200(folder: str | Path) -> list[Entry]:
    """CUB-200-2011: the folder `CUB_200_2011`. Family: the last word of the name, as in "Black footed Albatross"."""
    names = ("images", "classes", "image_class_labels", "train_test_split")
    layout = f"{', '.join(f'{name}.txt' for name in names)} and images/001.Black_footed_Albatross/"
    images, classes, labels, parts = (_table(_file(folder, layout, f"{name}.txt")) for name in names)
    entries = []
    for image, (path, where) in images.items():
        number, labelled = _find(labels, image, where, "image_class_labels.txt")
        raw, listed = _find(classes, number, labelled, "classes.txt")
        part, marked = _find(parts, image, where, "train_test_split.txt")
        split = _find({"1": "train", "0": "test"}, part, marked, "the two values, 1 (train) and 0 (test)")
        label = clean_name(_match(r"\d+\.(.+)", raw, listed, "001.Black_footed_Albatross"))
        entries.append(Entry(Path(folder) / "images" / path, label, label.split()[-1], split))
    return entries


def stanford_cars(folder: str | Path) -> list[Entry]:
    """Stanford Cars: make, model, kind and year, as in "Audi A5 Coupe 2012". Family: the make.

    `cars_test_annos_withlabels.mat` is a download of its own; it may lie beside `devkit` or in it.
    """
    labelled = "cars_test_annos_withlabels.mat"
    layout = f"cars_train/, cars_test/, devkit/cars_meta.mat, devkit/cars_train_annos.mat and {labelled}"
    names, _ = _mat(_file(folder, layout, "devkit/cars_meta.mat"), "class_names")
    files = {
        "train": _file(folder, layout, "devkit/cars_train_annos.mat"),
        "test": _file(folder, layout, labelled, f"devkit/{labelled}"),
    }
    entries = []
    for split, path in files.items():
        rows, places = _mat(path, "annotations")
        if missing := {"fname", "class"} - set(rows.dtype.names or ()):
            raise ValueError(f"{path}: the annotations have no {sorted(missing)[0]!r}; take the file that has labels")
        for row, where in zip(rows, places):
            label = clean_name(_numbered(names, row["class"], where))
            make = next((m for m in LONG_MAKES if label.startswith(f"{m} ")), label.split()[0])
            entries.append(Entry(Path(folder) / f"cars_{split}" / row["fname"], label, make, split))
    return entries


def stanford_dogs(folder: str | Path) -> list[Entry]:
    """Stanford Dogs: names as ImageNet writes them, as in "Old English sheepdog". No families."""
    layout = "Images/n02085620-Chihuahua/, train_list.mat and test_list.mat"
    entries = []
    for split in ("train", "test"):
        for path, where in zip(*_mat(_file(folder, layout, f"{split}_list.mat"), "file_list")):
            raw = _match(r"n\d+-([^/]+)/[^/]+", str(path), where, "n02085620-Chihuahua/n02085620_10074.jpg")
            entries.append(Entry(Path(folder) / "Images" / str(path), clean_name(raw), split=split))
    return entries


def flowers_102(folder: str | Path) -> list[Entry]:
    """Flowers-102, names: FLOWERS. The authors train and validate on ten images a class each. No families."""
    layout = "jpg/image_00001.jpg, imagelabels.mat and setid.mat"
    labels = list(zip(*_mat(_file(folder, layout, "imagelabels.mat"), "labels")))
    path, entries = _file(folder, layout, "setid.mat"), []
    for key, split in {"trnid": "train", "valid": "val", "tstid": "test"}.items():
        for image, where in zip(*_mat(path, key)):
            label, labelled = _numbered(labels, image, where)
            file = Path(folder) / "jpg" / f"image_{int(image):05d}.jpg"
            entries.append(Entry(file, _numbered(FLOWERS, label, labelled), split=split))
    return entries


def oxford_pets(folder: str | Path) -> list[Entry]:
    """Oxford-IIIT Pets: each word of a name with a capital, as in "American Bulldog". Family: cat or dog.

    `trainval.txt` is the split "train". It and `test.txt` have the columns of `list.txt`, which is not needed.
    """
    layout = "images/Abyssinian_100.jpg, annotations/trainval.txt and annotations/test.txt"
    entries = []
    for name, split in {"trainval": "train", "test": "test"}.items():
        for image, (numbers, where) in _table(_file(folder, layout, f"annotations/{name}.txt")).items():
            breed = _match(r"(.+)_\d+", image, where, "Abyssinian_100")
            species = _match(r"\d+ (\d+) \d+", numbers, where, "1 1 1")
            family = _find({"1": "cat", "2": "dog"}, species, where, "the species, 1 (cat) and 2 (dog)")
            entries.append(Entry(Path(folder) / "images" / f"{image}.jpg", clean_name(breed).title(), family, split))
    return entries


def fgvc_aircraft(folder: str | Path) -> list[Entry]:
    """FGVC-Aircraft: the folder that holds `data`. Label: the variant, as in "707-320"; family: as in "Boeing 707"."""
    layout = "data/images/, data/images_variant_train.txt, data/images_family_train.txt, the same for val and test"
    entries = []
    for split in ("train", "val", "test"):
        variants = _table(_file(folder, layout, f"data/images_variant_{split}.txt"))
        families = _table(_file(folder, layout, f"data/images_family_{split}.txt"))
        for image, (variant, where) in variants.items():
            family = _find(families, image, where, f"images_family_{split}.txt").value
            path = Path(folder) / "data" / "images" / f"{image}.jpg"
            entries.append(Entry(path, clean_name(variant), clean_name(family), split))
    return entries


def inaturalist(folder: str | Path, part: str = "train") -> list[Entry]:
    """iNaturalist 2021. Label: the common name, and the binomial where there is none or several species share it.

    part: "train" (2.7 million pictures), "train_mini" or "val"; the test has no labels. Family: the genus.
    """
    if part not in INATURALIST_PARTS:
        raise ValueError(f"part is {part!r}; choose one of {tuple(INATURALIST_PARTS)}")
    path = _file(folder, f"{part}.json and the pictures in {part}/", f"{part}.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    files = {image: file for image, file, _ in _records(path, content, "images", "id", "file_name")}
    species = _species(_records(path, content, "categories", "id", "name", "common_name", "genus"))
    entries = []
    for image, category, where in _records(path, content, "annotations", "image_id", "category_id"):
        label, genus = _find(species, category, where, "the ids of categories")
        file = Path(folder) / _find(files, image, where, "the ids of images")
        entries.append(Entry(file, label, genus, INATURALIST_PARTS[part]))
    return entries


def _species(rows: Iterable[tuple]) -> dict[int, tuple[str, str]]:
    """(label, genus) of each category. Two species of one common name would else become one class."""
    rows = [(number, clean_name(name), clean_name(common or ""), genus) for number, name, common, genus, _ in rows]
    uses = Counter(common.casefold() for _, _, common, _ in rows)
    return {n: (common if common and uses[common.casefold()] == 1 else name, genus) for n, name, common, genus in rows}


def _file(folder: str | Path, layout: str, *names: str) -> Path:
    """The first of the names that is a file of the folder."""
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise FileNotFoundError(f"no {' or '.join(names)} in {folder}: give the folder that holds {layout}")


def _table(path: Path) -> dict[str, _Line]:
    """The rest of each line by its first word. Lines that are empty or start with # are passed over."""
    table = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        where, words = f"{path}, line {number}", line.split(maxsplit=1)
        if len(words) < 2:
            raise ValueError(f"{where}: {line!r} should be a name or number, a space and its value")
        if words[0] in table:
            raise ValueError(f"{where}: {words[0]!r} was there before")
        table[words[0]] = _Line(words[1].strip(), where)
    return table


def _mat(path: Path, key: str) -> tuple[np.ndarray, list[str]]:
    """A variable of a MATLAB file as a row, and where each element is, in words."""
    try:
        values = np.atleast_1d(loadmat(path, squeeze_me=True, variable_names=[key])[key])
    except KeyError:
        raise ValueError(f"{path} has no variable {key!r}") from None
    except Exception as error:  # a file that is cut off, or no MATLAB file: scipy raises almost anything
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
    return values, [f"{path}, {key}, row {number}" for number in range(1, len(values) + 1)]


def _records(path: Path, content, section: str, *keys: str) -> Iterator[tuple]:
    """The values of the keys, and where they are, of each object of a section of a JSON file."""
    rows = content.get(section) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"{path} has no list {section!r}")
    for number, row in enumerate(rows):
        where = f"{path}, {section}[{number}]"
        if not isinstance(row, dict) or not set(keys) <= set(row):
            raise ValueError(f"{where}: should be an object with {', '.join(keys)}")
        yield *(row[key] for key in keys), where


def _find(table: dict, key, where: str, name: str):
    if key not in table:
        raise ValueError(f"{where}: {key!r} is not in {name}")
    return table[key]


def _numbered(items, number, where: str):
    """The element with this number, counted from 1."""
    if not 1 <= number <= len(items):
        raise ValueError(f"{where}: number {number} is not in 1-{len(items)}")
    return items[int(number) - 1]


def _match(pattern: str, text: str, where: str, example: str) -> str:
    found = re.fullmatch(pattern, text)
    if not found:
        raise ValueError(f"{where}: {text!r} should look like {example!r}")
    return found.group(1)
