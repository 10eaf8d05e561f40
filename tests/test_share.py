"""The result in a stranger's hands: card, plain reload, merged model, folders of pictures, streaming, upload."""

import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
from test_policy import qwen3_profile, trained

from finer1_lite import share, use
from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.render import draw
from finer1_lite.config import ASSETS, PROFILES, QWEN_3B, get_profile
from finer1_lite.evaluate.statistics import COLUMNS
from finer1_lite.policy.load import Policy, load_policy, profile_of
from finer1_lite.policy.rollout import rollout
from finer1_lite.prompts import ANSWER_INSTRUCTION, QUESTIONS, instructed
from finer1_lite.share import merge_16bit, model_card, push, save_for_sharing
from finer1_lite.use import (
    PROMPT, classify_batches, classify_folder, main, prompt_of, read_answer, see, stream_answer,
)  # fmt: skip

RESULTS = pd.DataFrame(
    [("tapo", "seen", "open", "accuracy", 0.8819, 576, 0), ("tapo", "unseen", "open", "accuracy", 0.6641, 512, 0),
     ("tapo", "seen", "open", "words", 55.0, 576, 0), ("dapo", "seen", "open", "accuracy", 0.1234, 576, 0)],
    columns=COLUMNS,
)  # fmt: skip
RUNS = (  # what trained it, which no profile need say
    {"stage": "SFT", "steps": 96, "seed": 0, "lr": 0.002, "end": "a"},
    {"stage": "RL", "steps": 40, "seed": 0, "lr": 0.0006, "kl_form": "released", "reward": "my_reward", "end": "b"},
)


@pytest.fixture(scope="module")
def policy():
    return replace(load_policy(get_profile("cpu"), ASSETS / "reference" / "tapo", trainable=False), runs=RUNS)


@pytest.fixture(scope="module")
def birds():
    return [draw(s, 2005) for s in evaluation_species()[:24]]


@pytest.fixture(scope="module")
def texts(policy, birds):
    return rollout(policy, [(PROMPT, see(policy, bird)) for bird in birds], 1, None, temperature=0).texts


@pytest.fixture(scope="module")
def shared(policy, tmp_path_factory):
    return save_for_sharing(policy, tmp_path_factory.mktemp("hub") / "tapo", "tapo", "96 birds", RESULTS)


@pytest.fixture(scope="module")
def merged(policy, shared, tmp_path_factory):
    folder, card = tmp_path_factory.mktemp("hub") / "merged", model_card(policy, "tapo", "96 birds", merged=True)
    return merge_16bit(policy.profile, shared, folder, card)


def answers(texts):
    return [read_answer(Path(), text).answer for text in texts]


def same(a, b):
    return np.mean([x == y for x, y in zip(a, b, strict=True)])


def test_the_card_is_filled_from_the_run(policy, shared):
    card = ModelCard.load(shared / "README.md")
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "image-text-to-text"
    assert card.data.license == "mit" and card.data.metrics == ["accuracy"] and "lora" in card.data.tags
    assert card.data.base_model is None  # the tiny base is not on the Hub, and the Hub refuses a path
    for part in ("96 birds", "r 16, alpha 32", PROMPT,
                 "stage RL, steps 40, seed 0, lr 0.0006, kl_form released, reward my_reward\n",
                 "stage SFT, steps 96, seed 0, lr 0.002\n",
                 "| open | seen | 88.2 | 576 | 0 |", "| open | unseen | 66.4 | 512 | 0 |", "peft 0."):  # fmt: skip
        assert part in card.text, f"the card lacks {part!r}"
    assert "12.3" not in card.text and "55.0" not in card.text  # another method's, and not an accuracy
    own = model_card(replace(policy, runs=()), "tapo", "my fish", prompt="Which fish is this?")
    assert 'question = "Which fish is this?"' in own and PROMPT not in own and "does not say how it was" in own
    assert load_policy(policy.profile, shared).runs == RUNS


def test_no_file_tells_where_it_was_made(shared, merged):
    for file in (*shared.iterdir(), *merged.iterdir()):
        for here in (ASSETS.parents[2], Path.home(), shared.parent, merged.parent):
            assert str(here).encode() not in file.read_bytes(), file.name


@pytest.mark.parametrize("merged, library, relation", [(0, "peft", "adapter"), (1, "transformers", "finetune")])
def test_the_card_of_the_3b_names_base_and_licence(merged, library, relation):
    card = ModelCard(model_card(Policy(None, None, PROFILES["l4"]), "cot_sft", "birds", merged=merged))
    assert card.data.base_model == QWEN_3B and card.data.base_model_relation == relation
    assert card.data.library_name == library and card.data.metrics is None and "Not measured." in card.text
    assert (card.data.license, card.data.license_name) == ("other", "qwen-research")
    assert card.data.license_link.startswith("https://") and "Improved using Qwen" in card.text
    assert "TAPO" not in card.text and ("bnb_4bit_compute_dtype='bfloat16'" in card.text) != merged
    assert (f'from_pretrained("{QWEN_3B}"' in card.text) != merged


@pytest.mark.parametrize("model_id, licence", [
    ("some/Other", "unknown"), *[(PROFILES[name].model_id, "apache-2.0") for name in ("l4_qwen3", "a100_7b")],
])  # fmt: skip
def test_the_card_of_another_base_allows_as_much_as_that_base_does(model_id, licence):
    card = ModelCard(model_card(Policy(None, None, replace(PROFILES["l4"], model_id=model_id)), "sft_answers", "birds"))
    assert card.data.license == licence and card.data.base_model == model_id and "Research License" not in card.text
    assert "<think>" not in card.text  # answers alone were trained, so no chain is asked for


def test_a_qwen3_is_merged_and_loaded_by_the_class_on_the_card(tmp_path):
    policy = trained(Policy(None, None, qwen3_profile(tmp_path / "base")))
    folder = save_for_sharing(policy, tmp_path / "adapter", "tapo", "birds")
    merged = merge_16bit(policy.profile, folder, tmp_path / "merged", "the card")
    whole, ids = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32), torch.arange(40).view(2, 20)
    with torch.no_grad():
        ours, theirs = policy.model(input_ids=ids).logits, whole(input_ids=ids).logits
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.999
        with policy.model.disable_adapter():
            assert torch.cosine_similarity(policy.model(input_ids=ids).logits.flatten(), theirs.flatten(), 0) < 0.99


def test_a_qwen3_streams_what_it_rolls_out(tmp_path, birds):
    policy = load_policy(qwen3_profile(tmp_path))
    written = "".join(stream_answer(policy, birds[0]))
    assert [written] == rollout(policy, [(PROMPT, see(policy, birds[0]))], 1, None, temperature=0).texts


@pytest.mark.parametrize("method, results, message", [
    ("base", None, "choose one of: sft_answers"), ("cot_sft", RESULTS, "only of: tapo, dapo"),
])  # fmt: skip
def test_a_wrong_method_leaves_no_folder(policy, tmp_path, method, results, message):
    with pytest.raises(ValueError, match=message):
        save_for_sharing(policy, tmp_path / "x", method, "birds", results)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["shared", "merged"])
def test_the_code_on_the_card_runs_and_names_the_bird(kind, birds, texts, tmp_path, request, monkeypatch, capsys):
    folder = request.getfixturevalue(kind)
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    load, _ = code.split("from PIL import Image")
    assert len([line for line in load.splitlines() if line and "ASSETS  #" not in line]) <= 5
    label = evaluation_species()[0].name
    assert answers(texts)[0] == label  # a bird that the policy gets right
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    birds[0].save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert read_answer(Path(), capsys.readouterr().out).answer == label


def test_plain_transformers_and_peft_give_our_answers(shared, birds, texts):  # but for the order of sums
    options = re.search(r"=(BitsAndBytesConfig\(.*?\))`", (shared / "README.md").read_text()).group(1)
    how = {"quantization_config": eval(options, {"BitsAndBytesConfig": BitsAndBytesConfig}), "dtype": torch.float32}
    model = AutoModelForImageTextToText.from_pretrained(ASSETS / "base", **how)
    model, processor = PeftModel.from_pretrained(model, shared), AutoProcessor.from_pretrained(shared)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[prompt] * len(birds), images=birds, return_tensors="pt")  # all of one length
    made = model.generate(**inputs, max_new_tokens=112, do_sample=False)
    made = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert same(made, texts) >= 0.8 and same(answers(made), answers(texts)) >= 0.9


def test_merged_weights_are_the_unpacked_base_plus_adapter(merged, shared):
    base, made = (load_file(folder / "model.safetensors") for folder in (ASSETS / "base", merged))
    config = json.loads((merged / "config.json").read_text())
    assert "quantization_config" not in config
    assert {part["dtype"] for part in (config, config["text_config"], config["vision_config"])} == {"bfloat16"}
    adapter = load_file(shared / "adapter_model.safetensors")
    assert base.keys() == made.keys() and {w.dtype for w in made.values()} == {torch.bfloat16}
    changed = {name for name in base if not torch.equal(base[name], made[name])}
    downs = {name: w for name, w in adapter.items() if ".lora_A." in name}
    assert len(downs) == len(changed) == 7 * 5
    for name, down in downs.items():
        (target,) = [n for n in changed if n.endswith(name.partition("layers.")[2].replace("lora_A.", ""))]
        packed, state = quantize_4bit(base[target].float(), blocksize=64, quant_type="nf4", compress_statistics=True)
        met = dequantize_4bit(packed, state)  # the weight that the adapter was trained beside
        assert (met - base[target]).abs().max() > 0.01 * base[target].abs().max()
        expected = met + 32 / 16 * adapter[name.replace("lora_A", "lora_B")] @ down
        torch.testing.assert_close(made[target].float(), expected, rtol=2**-7, atol=1e-3)


def test_the_profile_s_pixels_are_saved_with_the_processor(policy, shared, birds, tmp_path):
    merge_16bit(replace(policy.profile, max_pixels=56 * 56), shared, tmp_path, "card")
    for folder, patches in ((tmp_path, 4 * 4), (shared, 8 * 8)):
        images = AutoProcessor.from_pretrained(folder).image_processor(birds[:1], return_tensors="pt")
        assert len(images["pixel_values"]) == patches
        left = json.loads((folder / "tokenizer_config.json").read_text())
        assert not {"max_pixels", "local_files_only"} & left.keys()  # else every call of the processor warns


@pytest.fixture(scope="module")
def album(birds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    birds[0].save(folder / "a plain.png")
    birds[1].save(folder / "b Häher 鸟 #1.PNG")
    birds[1].convert("CMYK").save(folder / "c cmyk.jpg", quality=95)
    (folder / "d text.jpg").write_text("not a picture")
    (folder / "e cut off.png").write_bytes((folder / "a plain.png").read_bytes()[:2000])
    Image.new("RGB", (900, 4)).save(folder / "f thin.png")
    Image.new("RGB", (1, 1)).save(folder / "g dot.bmp")
    (folder / "h folder.png").mkdir()
    (folder / "._a plain.png").write_text("what a Mac leaves on a stick")
    return folder


@pytest.fixture(scope="module")
def found(policy, album):
    return {c.path.name[0]: c for c in classify_folder(policy, album)}


def test_every_picture_of_a_folder_gets_a_result_which_is_the_policys(found, album, texts):
    assert list(found) == list("abcdefg")
    errors = {name: c.error for name, c in found.items() if c.error}
    assert list(errors) == list("def") == [name for name, c in found.items() if c.answer is None]
    assert all(found[name].chain.startswith("Analysis:") for name in "abc")
    assert "900 x 4" in errors["f"] and str(album) not in "".join(errors.values())
    for name, text in (("a", texts[0]), ("b", texts[1])):
        expected = read_answer(found[name].path, text)
        assert found[name].answer == expected.answer
        assert found[name].chain.splitlines()[0] == expected.chain.splitlines()[0]  # all eight attributes
    assert found["c"].answer == found["b"].answer  # colours survive CMYK


def test_batches_come_one_by_one_and_a_picture_that_overflows_stops_none(policy, album, found, monkeypatch):
    def overflow(policy, picture):
        if picture.size == (1, 1):
            raise FloatingPointError("the features of image 0 (1x1 pixels) overflow")
        return see(policy, picture)

    monkeypatch.setattr(use, "see", overflow)
    batches = classify_batches(policy, album, batch_size=3)
    first = next(batches)
    assert [c.path.name[0] for c in first] == list("abc")
    *every, last = first + [c for batch in batches for c in batch]
    assert same([c.answer for c in every], [c.answer for c in found.values()][:-1]) >= 0.8  # padding moves roundings
    assert last.answer is None and "overflow" in last.error and last.path == found["g"].path


def test_an_adapter_says_all_that_is_needed_to_use_it(policy, album, tmp_path, monkeypatch):
    """`python -m finer1_lite.use` gets the folder and the adapter alone, and answers as chapter 6 does."""
    small = replace(policy, profile=replace(policy.profile, max_new_tokens=100, system="You know birds."))
    small.save(tmp_path / "own")
    assert profile_of(tmp_path / "own") == small.profile
    shipped = ASSETS / "reference" / "tapo"
    own = load_policy(profile_of(shipped), shipped)
    assert own.profile == policy.profile and prompt_of(own) in {instructed(q) for q in QUESTIONS}
    assert prompt_of(load_policy(own.profile, ASSETS / "reference" / "sft_answers")).endswith(ANSWER_INSTRUCTION)
    monkeypatch.setattr("sys.argv", ["use", str(album), "--adapter", str(shipped), "--out", str(tmp_path / "a.csv")])
    main()
    rows = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    expected = [(c.path.name, c.answer or "", c.error or "") for c in classify_folder(own, album)]
    assert [tuple(row) for row in rows[["file", "answer", "error"]].to_numpy()] == expected


def test_an_adapter_of_another_base_names_it(policy, tmp_path):
    for base in ("some/Base", "my_base"):
        replace(policy, profile=replace(policy.profile, model_id=base)).save(tmp_path / base)
    assert profile_of(tmp_path / "some/Base").model_id == "some/Base"
    with pytest.raises(ValueError, match="give its folder as `model_id`"):
        profile_of(tmp_path / "my_base")
    assert profile_of(tmp_path / "my_base", str(ASSETS)).model_id == str(ASSETS)


def test_a_folder_without_pictures_is_an_error(policy, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="no pictures in .*jpg"):
        classify_folder(policy, tmp_path)
    with pytest.raises(NotADirectoryError):
        classify_folder(policy, tmp_path / "notes.txt")


def test_a_stream_comes_in_pieces_and_stops_with_its_reader_and_raises_what_went_wrong(policy, birds, texts):
    before, calls, fail = threading.active_count(), [], False

    def hook(module, inputs, logits):
        logits[..., policy.model.config.image_token_id] += 1e4  # never said, however likely
        calls.append(1)
        if fail and len(calls) == 5:
            raise RuntimeError("the card fell out")

    handle = policy.model.get_base_model().lm_head.register_forward_hook(hook)
    try:
        pieces = [list(stream_answer(policy, bird)) for bird in birds[:3]]
        assert all(len(p) > 30 and all(p) for p in pieces)
        joined = ["".join(p) for p in pieces]
        assert same(joined, texts[:3]) >= 0.6 and answers(joined) == answers(texts[:3])
        calls.clear()
        stream = stream_answer(policy, birds[0])
        next(stream)
        stream.close()
        assert threading.active_count() == before and len(calls) < 60
        calls.clear()
        fail = True
        with pytest.raises(RuntimeError, match="fell out"):
            list(stream_answer(policy, birds[0]))
        assert threading.active_count() == before
    finally:
        handle.remove()


def test_push_is_private_and_takes_only_what_belongs_to_the_model(shared, tmp_path, monkeypatch):
    asked = []

    class Hub:
        def create_repo(self, repo_id, **how):
            asked.append((repo_id, how))

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            names = [str(f.relative_to(folder_path)) for f in folder_path.rglob("*") if f.is_file()]
            return set(filter_repo_objects(names, allow_patterns=allow_patterns))

    monkeypatch.setattr(share, "HfApi", Hub)
    ours = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    others = ("kaggle.json", "credentials.json", "secret.safetensors", "model.safetensors.bak", "my_config.json")
    for name in (*ours, *others, "token.txt", "optimizer.pt", ".env", "private/state.json", "deep/README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    assert push(tmp_path, "me/tapo") == ours
    assert asked == [("me/tapo", {"private": True, "exist_ok": True})]
    shards = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"}
    for name in shards:
        (tmp_path / name).write_text("text")
    assert push(tmp_path, "me/tapo") == ours | shards
    (tmp_path / "README.md").unlink()  # a folder that is not ready
    with pytest.raises(FileNotFoundError, match="no README.md and weights"):
        push(tmp_path, "me/tapo")
