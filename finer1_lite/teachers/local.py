"""A teacher on this machine: any image-text-to-text model of transformers, with its own `generate`.

    teacher = LocalTeacher.from_pretrained("Qwen/Qwen2.5-VL-32B-Instruct", data["image"], four_bit=True)
    build_chains(rows, teacher, teacher, choose_concepts, prompt=explained_prompt)

`policy.rollout` is faster and draws the same way, but reads Qwen2.5-VL only. The files of many models ask for a
repetition penalty or few tokens to choose from; here `temperature` and `top_p` alone say how a text is drawn.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from ..policy.batching import halved_until_it_fits
from ..policy.load import suit_the_card
from ..policy.rollout import forbidden_ids
from .endpoint import bounded

# Fine detail is what the tower is for, so it stays as it is; the names that models give it.
NOT_IN_4_BIT = ["model.visual", "model.vision_tower", "model.vision_model", "lm_head"]


class LocalTeacher:
    """A `teacher.Sampler`: (image index, prompt) pairs to texts, `batch_size` at a time.

    images: anything that gives a PIL image for `images[i]`. temperature 0 takes the most likely tokens. max_pixels:
    larger pictures are scaled down. Two teachers with the same seed answer the same calls with the same texts; the
    random numbers of the rest of the program stay as they were. A batch that does not fit into memory is sampled
    again in halves. ValueError for bad settings.
    """

    def __init__(
        self, model, processor, images: Sequence[Image.Image], seed: int = 0, temperature: float = 1.0,
        top_p: float = 1.0, max_new_tokens: int = 1024, max_pixels: int = 1280 * 28 * 28, batch_size: int = 8,
    ):  # fmt: skip
        if min(max_new_tokens, max_pixels, batch_size) < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                "max_new_tokens, max_pixels and batch_size must be positive, temperature 0 or more, top_p in (0, 1]"
            )
        self.model, self.processor, self.images = model.eval(), processor, images
        self.max_pixels, self.batch_size = max_pixels, batch_size
        draw = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        self._how = (draw if temperature else {"do_sample": False}) | {
            "max_new_tokens": max_new_tokens, "repetition_penalty": 1.0,
            "suppress_tokens": forbidden_ids(model) or None,
        }  # fmt: skip
        self._seeds = torch.Generator().manual_seed(seed)  # one for each batch

    @classmethod
    def from_pretrained(
        cls, model_id: str | Path, images: Sequence[Image.Image], four_bit: bool = False, dtype: str = "auto",
        **settings,
    ) -> "LocalTeacher":  # fmt: skip
        """The model of a folder, or of the Hub, where it is fetched from; as safetensors, without code of its own.

        four_bit: NF4, a quarter of the memory. dtype: "auto" is that of the file; a T4 needs "float16". settings: as
        for `LocalTeacher`.
        """
        compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
        packed = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=NOT_IN_4_BIT,
        ) if four_bit else None  # fmt: skip
        suit_the_card("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForImageTextToText.from_pretrained(
            model_id, dtype=dtype, device_map="auto", quantization_config=packed, use_safetensors=True
        )
        if model.dtype == torch.float16 and hasattr(getattr(model, "model", None), "visual"):  # Qwen's tower overflows fp16
            model.model.visual.float()
        return cls(model, AutoProcessor.from_pretrained(model_id), images, **settings)

    def __call__(self, asked: Sequence[tuple[int, str]]) -> list[str]:
        texts: list[str] = []
        with tqdm(total=len(asked), desc="teacher") as bar:
            while len(texts) < len(asked):
                left, seed = asked[len(texts) :], int(torch.randint(2**62, (), generator=self._seeds))
                made, self.batch_size = halved_until_it_fits(
                    lambda size: self._write(left[:size], seed), self.batch_size, "texts sampled at once (batch_size)"
                )
                texts += made
                bar.update(len(made))
        return texts

    @torch.no_grad()
    def _write(self, asked: Sequence[tuple[int, str]], seed: int) -> list[str]:
        """One batch, padded on the left, so that every text begins right after its prompt."""
        chats = []
        for index, prompt in asked:
            image = {"type": "image", "image": bounded(self.images[index], self.max_pixels)}
            chats.append([{"role": "user", "content": [image, {"type": "text", "text": prompt}]}])
        inputs = self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(self.model.device, self.model.dtype)  # fmt: skip
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)  # `generate` takes no generator
            made = self.model.generate(**inputs, **self._how)
        return self.processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
