"""From (image features, text) rows to the model's inputs and labels; each image is encoded once (`VisionCache`)."""

import hashlib
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from ..images import as_rgb
from ..prompts import RESERVED_SIGNS, messages
from .batching import cut

IGNORE = -100
IMAGE_PAD = "<|image_pad|>"
PATCHES_AT_ONCE = 8192  # in the vision tower: eight images of 448x448


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision tower made of one image: `tokens` (N, H), `grid` (3,) in patches; a digest of the `picture`."""

    tokens: torch.Tensor
    grid: torch.Tensor
    picture: bytes = b""
    deepstack: tuple[torch.Tensor, ...] = ()  # Qwen3-VL's: more (N, H), which the language model's first layers add


Prompt = tuple[str, ImageFeatures | None]  # a question, and the image it is about


def prompt_ids(processor, text: str, features: ImageFeatures | None) -> list[int]:
    """Token ids of a user turn up to the assistant's first token; the image is N placeholders.

    ValueError for a text with a sign of the model's own, as for the answers below.
    """
    check_signs(text)
    rows = messages(text) if features is not None else [{"role": "user", "content": text}]
    chat = processor.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    if features is not None:
        chat = chat.replace(IMAGE_PAD, IMAGE_PAD * len(features.tokens))
    return processor.tokenizer(chat, add_special_tokens=False)["input_ids"]


def check_signs(text: str) -> None:
    """ValueError for a text that holds a sign of the model's own: it would be read as an image, or as an end."""
    if found := RESERVED_SIGNS.search(text):
        raise ValueError(f"a text for the model holds {found[0]!r}, a sign of its own: {text[:60]!r}; take it out")


def answer_ids(processor, answer: str) -> list[int]:
    """Token ids of an assistant turn with its end-of-turn token, on which stopping is learnt."""
    check_signs(answer)
    return processor.tokenizer(answer, add_special_tokens=False)["input_ids"] + [processor.tokenizer.eos_token_id]


def pad(rows: list[list[int]], value: int, side: str) -> torch.Tensor:
    """Rows of different length as one (B, L) tensor, padded on the given side."""
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value, padding_side=side)


def base_model(model) -> torch.nn.Module:
    """The Qwen-VL model with its head, below an adapter if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def model_inputs(model, input_ids: torch.Tensor, attention_mask: torch.Tensor, features: list) -> dict:
    """Keyword arguments for `forward` or `generate`; ids and mask (B, L), features: B of `ImageFeatures` or None."""
    device = model.get_input_embeddings().weight.device
    inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    images = [f for f in features if f is not None]
    if images:  # without types and grids the model would silently take one-dimensional positions
        layers = zip(*((f.tokens, *f.deepstack) for f in images))
        tokens, *deepstack = [tuple(t.to(device) for t in layer) for layer in layers]
        seen = BaseModelOutputWithDeepstackFeatures(pooler_output=tokens, deepstack_features=deepstack or None)
        inputs["image_grid_thw"] = torch.stack([f.grid for f in images]).to(device)
        inputs["mm_encoder_outputs"] = {"image": seen}
    return inputs


def training_batch(model, processor, rows: list[tuple[str, ImageFeatures | None, str]]) -> tuple[dict, torch.Tensor]:
    """Right-padded inputs and labels (B, L) of (question, features, answer) rows; only answers are labelled."""
    prompts = [prompt_ids(processor, text, features) for text, features, _ in rows]
    answers = [answer_ids(processor, answer) for *_, answer in rows]
    ids = pad([p + a for p, a in zip(prompts, answers)], processor.tokenizer.pad_token_id, "right")
    labels = pad([[IGNORE] * len(p) + a for p, a in zip(prompts, answers)], IGNORE, "right")
    mask = pad([[1] * (len(p) + len(a)) for p, a in zip(prompts, answers)], 0, "right")
    inputs = model_inputs(model, ids, mask, [features for _, features, _ in rows])
    return inputs, labels.to(inputs["input_ids"].device)


class VisionCache:
    """Features of a data set's images, each encoded once, kept on the CPU up to `max_bytes`.

    `images[i]` is a PIL image. Beyond `max_bytes` the features that were not asked for the longest are dropped, and
    made again when needed. `patches_encoded` counts what went through the frozen tower.
    """

    def __init__(self, model, processor, images, batch_size: int = 32, max_bytes: int = 4 * 2**30):
        self.processor, self.images, self.batch_size, self.max_bytes = processor, images, batch_size, max_bytes
        self.backbone, self.dtype = base_model(model).model, model.get_input_embeddings().weight.dtype
        self.patches_encoded, self._features, self._about = 0, {}, {}

    @property
    def bytes(self) -> int:
        """How much the kept features take."""
        return sum(t.nbytes for f in self._features.values() for t in (f.tokens, *f.deepstack))

    def get(self, indices) -> list[ImageFeatures]:
        """Features of the images `indices`, in that order. FloatingPointError names an image that overflows."""
        indices = [int(i) for i in indices]
        wanted = {i: self._features[i] for i in dict.fromkeys(indices) if i in self._features}
        missing = [i for i in dict.fromkeys(indices) if i not in wanted]
        for start in range(0, len(missing), self.batch_size):
            wanted |= self._encode(missing[start : start + self.batch_size])
        self._features = {i: f for i, f in self._features.items() if i not in wanted} | wanted  # the newest come last
        while self.bytes > self.max_bytes and len(self._features) > 1:
            del self._features[next(iter(self._features))]
        return [wanted[i] for i in indices]

    def about(self, i: int) -> tuple[tuple[int, int], bytes]:
        """Image i's size in pixels and a digest of its pixels."""
        if i not in self._about:
            image = self.images[i]
            self._about[i] = image.size, hashlib.sha256(image.tobytes()).digest()
        return self._about[i]

    @torch.no_grad()
    def _encode(self, indices: list[int]) -> dict[int, ImageFeatures]:
        scale, made = self.processor.image_processor, {}
        parts = [scale(as_rgb(self.images[i]), return_tensors="pt") for i in indices]  # photographs: one by one
        pixels, grid = [p["pixel_values"] for p in parts], torch.cat([p["image_grid_thw"] for p in parts])
        patches, device = grid.prod(-1).tolist(), self.backbone.visual.device
        for part in cut(patches, PATCHES_AT_ONCE, len(patches)):
            rows, sizes = torch.cat([pixels[k] for k in part]), grid[part.start : part.stop]
            seen = self.backbone.get_image_features(rows.to(device), sizes.to(device))
            for k, *layers in zip(part, seen.pooler_output, *getattr(seen, "deepstack_features", ())):
                tokens, *deepstack = (layer.to("cpu", self.dtype, copy=True) for layer in layers)
                made[indices[k]] = ImageFeatures(tokens, grid[k], self.about(indices[k])[1], tuple(deepstack))
        self.patches_encoded += sum(patches)
        for i, features in made.items():
            if not all(t.isfinite().all() for t in (features.tokens, *features.deepstack)):
                where = "image {} ({}x{} pixels)".format(i, *self.images[i].size)
                raise FloatingPointError(f"features of {where} overflow {self.dtype}; lower max_pixels or use bf16")
        return made
