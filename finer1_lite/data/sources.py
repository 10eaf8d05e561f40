"""Pictures from a folder for each class, a table of paths or a data set of the Hub, and what is left out of them."""

import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets, load_dataset
from datasets import Image as ImageColumn
from PIL.Image import DecompressionBombWarning
from tqdm.auto import tqdm

from ..files import read_csv, read_jsonl
from ..images import SUFFIXES, read_image
from .names import clean_names

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Entry:
    """One picture file and what is known of it."""

    path: Path
    label: str
    family: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Loaded:
    """What `load_images` made, and what is not in it."""

    data: Dataset
    skipped: list[tuple[Path, str]]  # with the reason
    renamed: list[tuple[str, str]]  # raw name, clean name
    lost: list[str]  # classes of which no picture can be read

    def report(self) -> str:
        """What was left out, what is scarce and what was renamed, in words."""
        sizes, lines = Counter(self.data["label"]), [f"no picture left: {name}" for name in self.lost]
        lines.insert(0, f"{len(self.data)} pictures of {len(sizes)} classes")
        lines += [f"one picture only: {name}" for name in sorted(sizes) if sizes[name] == 1]
        lines += [f"left out: {path.parent.name}/{path.name}: {reason}" for path, reason in self.skipped]
        return "\n".join(lines + [f"renamed: {raw} -> {clean}" for raw, clean in self.renamed])


def folder_entries(folder: str | Path) -> list[Entry]:
    """A folder for each class, `folder/Class/*.jpg`, perhaps below `train`, `val` and `test`; sorted.

    Hidden and other files are passed over. ValueError where there are no class folders or one of them is empty.
    """
    inside = _folders(Path(folder))
    parts = [p for p in inside if p.name.lower() in SPLITS]
    if 0 < len(parts) < len(inside):
        raise ValueError(f"{folder} holds {parts[0].name!r} beside other folders: are they splits or classes?")
    classes = [(c, SPLITS[p.name.lower()]) for p in parts for c in _folders(p)] or [(c, None) for c in inside]
    entries = []
    for home, split in classes:
        files = [p for p in sorted(home.rglob("*")) if p.suffix.lower() in SUFFIXES and not p.is_dir()]
        shown = [p for p in files if not any(part.startswith(".") for part in p.relative_to(home).parts)]
        if not shown:
            raise ValueError(f"the class folder {home} holds no picture ({', '.join(SUFFIXES[:4])}, ...); remove it")
        entries += [Entry(path, home.name, split=split) for path in shown]
    return entries


def _folders(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))
    if not found:
        raise ValueError(f"{folder} has no class folders: put each class's pictures into a folder with its name")
    return found


def table_entries(path: str | Path) -> list[Entry]:
    """A CSV or JSONL with `path` and `label`, perhaps `family` and `split`; paths are relative to the table.

    ValueError naming the line for a missing field or an unknown split, and as `files.read_csv`.
    """
    path, entries = Path(path), []
    rows = read_csv(path, ("path", "label")) if path.suffix.lower() == ".csv" else read_jsonl(path)
    for number, row in rows:
        cells = ("" if row.get(k) is None else str(row[k]).strip() for k in ("path", "label", "family", "split"))
        file, label, family, split = cells
        if not file or not label:
            raise ValueError(f"{path}, line {number}: a row needs path and label, it has {[k for k in row if k]}")
        if split and split.lower() not in SPLITS:
            raise ValueError(f"{path}, line {number}: unknown split {split!r}; use train, val or test")
        entries.append(Entry(path.parent / file, label, family or None, SPLITS.get(split.lower())))
    return entries


def counts(entries: Sequence[Entry]) -> pd.DataFrame:
    """The dry run: pictures of each class, by split, fewest first. Opens no file. Raises as `names.clean_names`."""
    names = clean_names(e.label for e in entries)
    rows = pd.DataFrame({"class": [names[e.label] for e in entries], "split": [e.split or "all" for e in entries]})
    table = pd.crosstab(rows["class"], rows["split"])
    return table.assign(pictures=table.sum(axis=1)).sort_values("pictures", kind="stable")


def load_images(entries: Sequence[Entry]) -> Loaded:
    """The data set of `entries`, names cleaned, without files that cannot be read or were listed before.

    Columns: image, label, and family and split where they are known. ValueError where nothing is left.
    """
    names = clean_names(e.label for e in entries)
    first = {e.path: i for i, e in reversed(list(enumerate(entries)))}

    def fault(number: int, entry: Entry) -> str | None:
        if not str(entry.path).isprintable() and "\\udc" in ascii(str(entry.path)):
            return "its name is not UTF-8; rename it"
        if first[entry.path] != number:
            return f"listed before, as {entries[first[entry.path]].label!r}: a picture may be in one split only"
        try:
            read_image(entry.path)
        except ValueError as error:
            return str(error)

    with warnings.catch_warnings(action="ignore", category=DecompressionBombWarning), ThreadPoolExecutor(8) as pool:
        checked = pool.map(fault, range(len(entries)), entries)
        faults = list(tqdm(checked, total=len(entries), desc="open pictures", mininterval=5))
    good = [e for e, reason in zip(entries, faults) if reason is None]
    skipped = [(e.path, reason) for e, reason in zip(entries, faults) if reason]
    if not good:
        raise ValueError(f"none of {len(entries)} pictures can be read; the first: {skipped[:1]}")
    columns = {"image": [str(e.path) for e in good], "label": [names[e.label] for e in good]}
    columns |= {"family": [e.family for e in good], "split": [e.split for e in good]}
    columns = {name: values for name, values in columns.items() if any(values)}
    features = {name: ImageColumn() if name == "image" else Value("string") for name in columns}
    data, lost = Dataset.from_dict(columns, features=Features(features)), set(names.values()) - set(columns["label"])
    return Loaded(data, skipped, [(raw, clean) for raw, clean in names.items() if raw != clean], sorted(lost))


def hub_images(repo_id: str, image: str = "image", label: str = "label", **options) -> Loaded:
    """A data set of the Hub (downloads it) or of a local folder that `datasets.load_dataset` reads.

    image, label: its columns' names. Class numbers become names, the Hub's splits the column `split`. ValueError for
    a part that is no split ("unlabelled"), and for a row without a label.
    """
    parts = load_dataset(repo_id, **options)
    parts = parts if isinstance(parts, dict) else {str(parts.split): parts}
    pieces, raw, splits = [], [], []
    for name, part in parts.items():
        split = SPLITS.get(name.partition("[")[0].lower())  # "train[:10%]" is train
        if split is None and len(parts) > 1:
            raise ValueError(f"is the part {name!r} of {repo_id} train, val or test? split={name!r} takes it alone")
        kind, values = part.features[label], part[label][:]
        if None in values:
            raise ValueError(f"{repo_id}, {name}[{values.index(None)}] has no {label!r}: leave such rows out first")
        raw += [kind.int2str(v) if isinstance(kind, ClassLabel) else str(v) for v in values]
        splits += [split] * len(part)
        pieces.append(part.select_columns([image]).rename_columns({image: "image"}))
    names = clean_names(raw)
    data = concatenate_datasets(pieces).add_column("label", [names[r] for r in raw])
    data = data.add_column("split", splits, feature=Value("string"))
    return Loaded(data, [], [(r, c) for r, c in names.items() if r != c], [])
