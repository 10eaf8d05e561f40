"""Trains the tiny SigLIP of the bird world: `python -m finer1_lite.birds.clip`, a quarter of an hour on one thread.

It stands where SigLIP-L stands in the paper's table, which has read the web's alt-texts: so it learns **all** 200
species from noisy captions. Unlike the base, it **has met the evaluated species by name**; a table must say so.
Departures from SigLIP (arXiv 2303.15343): 1 M parameters, 128 pairs a batch, no species twice in it, a bias of -5.
"""

import json
import math

import numpy as np
import torch
from torch import nn
from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor, set_seed

from ..config import ASSETS, versions
from ..evaluate.siglip import ENSEMBLE, Siglip, choose
from ..files import write_whole
from .dataset import FIRST, evaluation_species
from .model import build_tokenizer
from .pretrain import augment, fit
from .render import SIZE, draw
from .species import ATTRIBUTES, Species, all_species, look_alikes

SEED, PICTURES, STEPS, MAX_TOKENS = 0, 40, 2200, 32
FIRST_PICTURE = 10_000  # far from those of the data set (dataset.FIRST)
NAMED, WRONG, LOOKS = 0.6, 0.1, 0.5  # shares: captions with a name, names of a look-alike, looks beside a name


def caption(rng: np.random.Generator, s: Species) -> str:
    """What the web writes beside a picture of `s`: its name, a look-alike's, or "bird"; and some of its looks."""
    named, subject = rng.random() < NAMED, "bird"
    if named:
        others = look_alikes(s.name)
        subject = others[int(rng.integers(len(others)))].name if rng.random() < WRONG else s.name
    text = ENSEMBLE[int(rng.integers(len(ENSEMBLE)))].format(subject)
    if named and rng.random() >= LOOKS:
        return text
    parts = rng.permutation(list(ATTRIBUTES))[: int(rng.integers(4, len(ATTRIBUTES) + 1))]
    return f"{text} with {s.describe([a for a in ATTRIBUTES if a in parts])}"


def build_processor() -> SiglipProcessor:
    """SigLIP's processor for pictures of 112x112; the words are byte pairs, so that it needs no SentencePiece."""
    rng = np.random.default_rng(SEED)
    tokenizer = build_tokenizer([f" {s.name} {caption(rng, s)}" for s in all_species() for _ in range(9)])
    tokenizer.model_max_length, tokenizer.chat_template = MAX_TOKENS, None
    return SiglipProcessor(SiglipImageProcessor(size={"height": SIZE, "width": SIZE}), tokenizer)


def build_model(vocabulary: int, pad: int) -> SiglipModel:
    """Three vision layers and two text layers of width 128, with SigLIP's own start of the temperature."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    ids = {"pad_token_id": pad, "bos_token_id": pad, "eos_token_id": pad, "vocab_size": -(-vocabulary // 64) * 64}
    text = shape | ids | {"num_hidden_layers": 2, "max_position_embeddings": MAX_TOKENS}
    vision = shape | {"num_hidden_layers": 3, "image_size": SIZE, "patch_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    nn.init.constant_(model.logit_scale, math.log(10))
    nn.init.constant_(model.logit_bias, -5.0)
    return model


def train(model: SiglipModel, processor: SiglipProcessor, images: np.ndarray, steps: int, batch: int = 128) -> None:
    """Train in place with the sigmoid loss on uint8 (species, pictures, 112, 112, 3); a step sees `batch` species."""
    rng, generator = np.random.default_rng(SEED), torch.Generator().manual_seed(SEED)

    def losses():
        rows = rng.permutation(len(images))[:batch]
        pixels = torch.from_numpy(images[rows, rng.integers(images.shape[1], size=batch)]).permute(0, 3, 1, 2)
        pixels = augment(pixels / 127.5 - 1, generator)  # the processor's scale: mean and deviation 0.5
        texts = [caption(rng, all_species()[i]) for i in rows]
        ids = processor.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        yield model(input_ids=ids, pixel_values=pixels, return_loss=True).loss

    fit(list(model.parameters()), losses, steps, lr=1.5e-3, betas=(0.9, 0.98))


def main() -> None:
    """Train, and write `siglip` and its accuracies on new pictures, `siglip.json`, into the package's assets."""
    torch.set_num_threads(1)  # part of the recipe: another number changes the order of sums
    set_seed(SEED)
    processor = build_processor()
    model = build_model(len(processor.tokenizer), processor.tokenizer.pad_token_id)
    numbers = range(FIRST_PICTURE, FIRST_PICTURE + PICTURES)
    train(model, processor, np.stack([[np.asarray(draw(s, i)) for i in numbers] for s in all_species()]), STEPS)
    model.half().save_pretrained(ASSETS / "siglip")
    processor.save_pretrained(ASSETS / "siglip")
    siglip, species = Siglip(ASSETS / "siglip"), [s for s in evaluation_species() for _ in range(3)]
    names, right = [s.name for s in all_species()], [s.name for s in species]
    seen = siglip.images([draw(s, FIRST["val"] + 500 + i % 3) for i, s in enumerate(species)])
    scores = seen @ siglip.classes(names).T
    alike = [[s.name, *(x.name for x in look_alikes(s.name))] for s in species]
    said = {"four look-alikes": choose(scores, names, alike), "all 200": choose(scores, names)}
    figures = {f"names among {k}": round(float(np.mean(np.array(got) == right)), 4) for k, got in said.items()}
    write_whole(ASSETS / "siglip.json", json.dumps(figures | versions(), indent=1) + "\n")


if __name__ == "__main__":
    main()
