"""The bird world as a `datasets.DatasetDict`: the paper's split, four training images for each seen species."""

from datasets import Dataset, DatasetDict, Features, Image, Value

from ..samplers import split_classes
from .render import draw
from .species import ATTRIBUTES, Species, all_species

SHOTS = 4
FIRST = {"train": 0, "val": 1000, "test": 2000}  # picture numbers: no two splits share one
PER_CLASS = {"val": {True: 2, False: 3}, "test": {True: 6, False: 8}}  # 576 seen, 512 unseen test images
FEATURES = Features({
    "image": Image(), "label": Value("string"), "family": Value("string"), "seen": Value("bool"),
    "attributes": {name: Value("string") for name in ATTRIBUTES}, "picture": Value("int32"),
})  # fmt: skip


def evaluation_species() -> tuple[Species, ...]:
    """The 160 species that are evaluated: all but the common ones."""
    return tuple(s for s in all_species() if not s.common)


def load_birds(split_seed: int = 0, per_class=PER_CLASS) -> DatasetDict:
    """Splits `train` (4 images of each seen species), `val` and `test` (seen and unseen species).

    split_seed: draws which 60% of the 160 evaluated species are seen. per_class: as `PER_CLASS`, seen: True.
    """
    species = evaluation_species()
    seen = set(split_classes([s.name for s in species], seen_fraction=0.6, seed=split_seed)[0])
    counts = {"train": {True: SHOTS, False: 0}} | per_class

    def rows(split):
        for s in species:
            for i in range(FIRST[split], FIRST[split] + counts[split][s.name in seen]):
                yield {
                    "image": draw(s, i), "label": s.name, "family": s.family, "seen": s.name in seen,
                    "attributes": dict(zip(ATTRIBUTES, s.looks)), "picture": i,
                }  # fmt: skip

    found = {split: list(rows(split)) for split in counts}
    return DatasetDict({  # by columns, as a split may have no rows
        split: Dataset.from_dict({name: [row[name] for row in part] for name in FEATURES}, features=FEATURES)
        for split, part in found.items()
    })  # fmt: skip
