"""A second drawn world: a folder of fish as a practitioner would bring it, faults included; new to the base model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import write_csv
from .render import BACK, BELLY, CROWN, DARK, photograph, scene, shade

ATTRIBUTES = {
    "back": tuple(BACK), "belly": tuple(BELLY), "fin": tuple(CROWN),
    "side": ("plain", "spotted", "streaked", "banded"), "tail": ("short", "long", "forked"),
}  # fmt: skip
# Words that the tiny model spells with one or two of its tokens.
EPITHETS = "bell birch cliff dune fennel mast meadow morrow reef rust sand sorrel star steel stone tor".split()
TAILS = {
    "short": [(-0.8, -0.08), (-1.12, -0.28), (-1.12, 0.28), (-0.8, 0.08)],
    "long": [(-0.8, -0.07), (-1.7, -0.2), (-1.7, 0.2), (-0.8, 0.07)],
    "forked": [(-0.8, -0.08), (-1.5, -0.6), (-1.05, 0.0), (-1.5, 0.6), (-0.8, 0.08)],
}
SPOTS = [(-0.45, -0.05), (-0.2, 0.12), (0.0, -0.1), (0.2, 0.14), (0.35, -0.06), (-0.05, 0.26), (-0.3, 0.24)]
STRIPES = {
    "streaked": [([(-0.6, y), (0.4, y)], 0.06) for y in (-0.12, 0.06, 0.24)],
    "banded": [([(x, -0.3), (x, 0.36)], 0.13) for x in (-0.4, -0.08, 0.24)],
}


@dataclass(frozen=True)
class Fish:
    """One species: its looks by attribute."""
    index: int
    name: str
    family: str
    looks: dict[str, str]

    def concepts(self) -> list[str]:
        """The looks as phrases: "green back", "banded side", ..."""
        return [f"{value} {part}" for part, value in self.looks.items()]


def all_fish() -> list[Fish]:
    """Sixteen species of four families; those of a family share back and belly, any two differ."""
    rng, made = np.random.default_rng(3), []
    backs, bellies = (rng.permutation(ATTRIBUTES[part]) for part in ("back", "belly"))
    for f, family in enumerate(("cod", "bream", "gar", "dab")):
        fins, sides = rng.permutation(ATTRIBUTES["fin"]), rng.permutation(ATTRIBUTES["side"])
        for i in range(4):
            own = (backs[f], bellies[f], fins[i // 2], sides[i], rng.choice(ATTRIBUTES["tail"]))
            looks = {part: str(value) for part, value in zip(ATTRIBUTES, own)}
            made.append(Fish(len(made), f"{EPITHETS[len(made)]} {family}", family, looks))
    return made


def draw(fish: Fish, index: int, seed: int = 0) -> Image.Image:
    """One picture of `fish`: RGB, 112x112, the same for the same `(seed, fish.index, index)`."""
    rng = np.random.default_rng([seed, 1000 + fish.index, index])
    looks, (image, canvas) = fish.looks, scene(rng, 0.06, (0.03, 0), (0.26, 0.33), 0.35)
    back, fin = shade(BACK[looks["back"]], rng.uniform(0.9, 1.1)), CROWN[looks["fin"]]
    canvas.polygon(TAILS[looks["tail"]], fin)
    canvas.polygon([(-0.45, -0.35), (-0.1, -0.78), (0.3, -0.72), (0.35, -0.32)], fin)
    canvas.ellipse(0.0, 0.0, 0.95, 0.46, back)
    canvas.ellipse(0.04, 0.17, 0.78, 0.28, BELLY[looks["belly"]])
    for x, y in SPOTS if looks["side"] == "spotted" else ():
        canvas.ellipse(x, y, 0.07, 0.07, DARK)
    for line, width in STRIPES.get(looks["side"], ()):
        canvas.line(line, DARK, width)
    canvas.polygon([(0.2, 0.08), (-0.12, 0.42), (0.3, 0.3)], fin)
    canvas.ellipse(0.66, -0.1, 0.1, 0.1, (250, 250, 250))
    canvas.ellipse(0.68, -0.1, 0.055, 0.055, (15, 15, 15))
    return photograph(image, rng, 0.75)


def draw_folder(folder: str | Path, per_class: int = 12, seed: int = 0) -> Path:
    """Write `folder/class_name/000.png`, ... and `guide.csv` (name, looks), with faults; returns the folder."""
    folder, species = Path(folder), all_fish()
    own, lonely = [folder / fish.name.replace(" ", "_") for fish in species], folder / "unknown_shape"
    lonely.mkdir(parents=True, exist_ok=True)
    for fish, place in zip(species, own):
        place.mkdir(exist_ok=True)
        for i in range(per_class):
            draw(fish, i, seed).save(place / f"{i:03d}.png")
    draw(species[0], per_class, seed + 1).save(lonely / "000.png")  # a class with one picture
    whole = (own[0] / "000.png").read_bytes()
    (own[0] / "cut_off.png").write_bytes(whole[: len(whole) // 3])
    (own[0] / "notes.jpg").write_text("not a picture")
    (own[1] / "a_friend_sent_this.png").write_bytes(whole)
    draw(species[2], per_class, seed).convert("CMYK").save(own[2] / "from_print.jpg", quality=92)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    draw(species[2], per_class + 1, seed).rotate(90).save(own[2] / "from_phone.jpg", exif=turned, quality=92)
    write_csv(folder / "guide.csv", ({"name": f.name, "looks": ", ".join(f.concepts())} for f in species))
    return folder
