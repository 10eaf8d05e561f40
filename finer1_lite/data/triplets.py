"""Triplets as a data set that the released TAPO code (on EasyR1 / verl) trains on; written and read back.

Each row has the released columns. What they hold was read from github.com/PKU-ICST-MIPL/FineR1_ICLR2026
(`TAPO/verl/utils/dataset.py`, `TAPO/verl/trainer/ray_trainer_new.py`):

    images       list of one image: the anchor
    image_noisy  list of one image: the positive. Answers are sampled from it beside the anchor's and share
                 their advantages (`worker.actor.is_noisy`); the name comes from NoisyRollout
    image_aug    list of one image: the negative. Answers are scored again under it, for the KL term; the name
                 comes from PAPO, where it is the anchor with patches blackened
    problem      "<image>" and the bare question; the format instruction comes from a template
    answer       the label

The names mislead: `image_aug`, in spite of "intra-class augmentation", is not the positive.
"""

import io
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
        triplets.jsonl, images/             the same rows with paths relative to `folder`; the released code
                                            looks for them from the folder that it is started in
        format_prompt.jinja                 our instruction, to give as `data.format_prompt`: with it a policy
                                            of chapter 2 is asked as it was taught

    triplets: indices into `images` and `labels`. questions: the bare question of each triplet. Positive and
    negative are resized to the anchor's size: an answer is scored under each of them with the anchor's
    placeholders, so all three must give the same number of image tokens. ValueError, before anything is written, for
    labels that do not fit, a question that holds "<image>", and without one question for each triplet.
    """
    folder, inside, beside = Path(folder), [], []
    for row, (triplet, question) in enumerate(zip(triplets, questions, strict=True)):
        anchor, positive, negative = (labels[i] for i in triplet)
        if anchor != positive or anchor == negative or MARK in question:
            raise ValueError(f"{triplet} has the labels {anchor!r}, {positive!r}, {negative!r}: two of one class and one"
                             f" of another are needed, and a question without {MARK}: {question!r}")  # fmt: skip
        texts = {"problem": f"{MARK}{question}", "answer": anchor}
        pngs = {column: _png(triplet, role, images) for column, role in ROLES.items()}
        inside.append({column: [{"bytes": png, "path": None}] for column, png in pngs.items()} | texts)
        # the name of a file holds no label, which could be any text
        beside.append({column: [f"images/{row:06d}_{role}.png"] for column, role in ROLES.items()} | texts)
    for files, pictures in zip(beside, inside):
        for column in ROLES:
            write_whole(folder / files[column][0], pictures[column][0]["bytes"])
    write_jsonl(folder / "triplets.jsonl", beside)
    write_whole(folder / "format_prompt.jinja", "{{ content | trim }} " + THINK_INSTRUCTION)
    table = Dataset.from_list(inside, features=FEATURES).with_format("arrow")[:]
    # before 4.0 `datasets` had no "List" and refuses the file; its "Sequence" is understood by all
    types = table.schema.metadata[b"huggingface"].replace(b'"List"', b'"Sequence"')
    data = folder / "data"
    data.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata({b"huggingface": types}), data / "train-00000-of-00001.parquet")
    return data


def _png(triplet: Triplet, role: str, images: Sequence[Image.Image]) -> bytes:
    """One image of the triplet in the anchor's size."""
    size, file = as_rgb(images[triplet.anchor]).size, io.BytesIO()
    as_rgb(images[getattr(triplet, role)]).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


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
