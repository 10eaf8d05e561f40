"""Triplets as a data set that the released TAPO code (on EasyR1 / verl) trains on; written and read back.

Each row has the released columns. What they hold was read from github.com/PKU-ICST-MIPL/FineR1_ICLR2026
(`TAPO/verl/utils/dataset.py`, `TAPO/verl/trainer/ray_trainer_new.py`). The names mislead:

    images       list of one image: the anchor
    image_noisy  list of one image: the positive. Answers are sampled from it beside the anchor's and share
                 their advantages (`worker.actor.is_noisy`)
    image_aug    list of one image: the negative. Answers are scored again under it, for the KL term
    problem      "<image>" and the bare question; the format instruction comes from a template
    answer       the label
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageColumn
from PIL import Image

from ..files import read_jsonl, write_jsonl, write_whole
from ..images import as_rgb
from ..prompts import THINK_INSTRUCTION
from ..samplers import Triplet

ROLES = {"images": "anchor", "image_noisy": "positive", "image_aug": "negative"}
FEATURES = Features({c: List(ImageColumn()) for c in ROLES} | dict.fromkeys(("problem", "answer"), Value("string")))
MARK = "<image>"


def export_triplets(
    triplets: Sequence[Triplet], images: Sequence[Image.Image], labels: Sequence[str],
    questions: Sequence[str], folder: str | Path,
) -> Path:  # fmt: skip
    """Write the triplets in two forms and return the folder `data`, the one to give as `data.train_files`.

        data/train-00000-of-00001.parquet   with the images inside: needs nothing else
        triplets.jsonl, images/             the same rows with paths relative to `folder`, to be started there
        format_prompt.jinja                 our instruction, to give as `data.format_prompt`

    triplets: indices into `images` and `labels`. questions: the bare question of each triplet. Positive and
    negative are resized to the anchor's size: an answer is scored under each of them with the anchor's
    placeholders, so all three must give the same number of image tokens. ValueError, before anything is written, for
    labels that do not fit, a question that holds "<image>", and without one question for each triplet.
    """
    for triplet, question in zip(triplets, questions, strict=True):
        anchor, positive, negative = (labels[i] for i in triplet)
        if anchor != positive or anchor == negative or MARK in question:
            raise ValueError(f"the labels {anchor!r}, {positive!r}, {negative!r} or {question!r} do not fit")
    folder, inside, beside = Path(folder), [], []
    for part in ("images", "data"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for row, (triplet, question) in enumerate(zip(triplets, questions)):
        size, files = as_rgb(images[triplet.anchor]).size, {}
        for column, role in ROLES.items():
            files[column] = f"images/{row:06d}_{role}.png"  # a label could be any text
            picture = as_rgb(images[getattr(triplet, role)])
            picture.resize(size, Image.Resampling.BICUBIC).save(folder / files[column])
        texts = {"problem": f"{MARK}{question}", "answer": labels[triplet.anchor]}
        beside.append({column: [file] for column, file in files.items()} | texts)
        pngs = {column: (folder / file).read_bytes() for column, file in files.items()}
        inside.append({column: [{"bytes": png, "path": None}] for column, png in pngs.items()} | texts)
    write_jsonl(folder / "triplets.jsonl", beside)
    write_whole(folder / "format_prompt.jinja", "{{ content | trim }} " + THINK_INSTRUCTION)
    table = Dataset.from_list(inside, features=FEATURES).with_format("arrow")[:]
    # before 4.0 `datasets` had no "List" and refuses the file; its "Sequence" is understood by all
    types = table.schema.metadata[b"huggingface"].replace(b'"List"', b'"Sequence"')
    table = table.replace_schema_metadata({b"huggingface": types})
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    return folder / "data"


def read_triplets(path: str | Path) -> Dataset:
    """The triplets of `export_triplets` with the columns anchor, positive, negative, question and label.

    path: the parquet file, its folder `data`, or triplets.jsonl. Pictures are decoded when they are asked for.
    """
    path, made = Path(path), []
    listed = path.suffix == ".jsonl"
    for row in [row for _, row in read_jsonl(path)] if listed else pq.read_table(path).to_pylist():
        pictures = {role: row[column][0] for column, role in ROLES.items()}
        if listed:
            pictures = {role: str(path.parent / file) for role, file in pictures.items()}
        made.append(pictures | {"question": row["problem"].removeprefix(MARK), "label": row["answer"]})
    features = dict.fromkeys(ROLES.values(), ImageColumn()) | dict.fromkeys(("question", "label"), Value("string"))
    return Dataset.from_list(made, features=Features(features))
