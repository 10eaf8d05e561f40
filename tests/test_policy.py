"""The policy's shortcuts give the same numbers as the plain way: cached images, own decoding, scoring."""

import json
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import linear
from transformers import (
    AutoConfig, AutoProcessor, Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor,
    Qwen3VLVideoProcessor, set_seed,
)  # fmt: skip
from transformers.integrations import sdpa_attention

from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.render import draw
from finer1_lite.config import ASSETS, get_profile
from finer1_lite.logprobs import selective_log_softmax
from finer1_lite.policy import lora as lora_module
from finer1_lite.policy.inputs import (
    IGNORE, VisionCache, answer_ids, base_model, model_inputs, pad, prompt_ids, training_batch,
)  # fmt: skip
from finer1_lite.policy.load import LORA_TARGETS, load_base, load_policy, load_processor, suit_the_card
from finer1_lite.policy.lora import add_products, decoding
from finer1_lite.policy.rollout import forbidden_ids, rollout, sample_tokens
from finer1_lite.policy.scoring import completion_logps
from finer1_lite.prompts import ANSWER_INSTRUCTION, QUESTIONS, messages

ASK = ["Describe the bird.", f"{QUESTIONS[0]} {ANSWER_INSTRUCTION}", "What colour is the beak?", "Describe the bird."]
FAMILIES = [None, "Qwen3-VL"]  # None: the birds' Qwen2.5-VL


def qwen3_profile(folder):
    """A profile for a random Qwen3-VL of the real classes, written to `folder`: the birds' words, patches of 16."""
    set_seed(5)
    tokenizer = load_processor(get_profile("cpu")).tokenizer
    birds = AutoConfig.from_pretrained(ASSETS / "base")
    ids = {f"{n}_token_id": getattr(birds, f"{n}_token_id") for n in "image video vision_start vision_end".split()}
    text = dict(
        vocab_size=birds.text_config.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, initializer_range=0.2, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
    )  # fmt: skip
    vision = dict(depth=3, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64, patch_size=16,
                  num_position_embeddings=16, deepstack_visual_indexes=[0, 1], initializer_range=0.2)  # fmt: skip
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    scale = Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 1024, "longest_edge": 2**24})
    Qwen3VLProcessor(scale, tokenizer, Qwen3VLVideoProcessor()).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()  # on the Hub it may lie in a file that the processor alone reads
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": tokenizer.chat_template}))
    return replace(get_profile("cpu"), model_id=str(folder), max_pixels=128 * 128)


@pytest.fixture(scope="module")
def images():
    return [draw(s, 7) for s in evaluation_species()[:4]]


@pytest.fixture(scope="module")
def policy(request, tmp_path_factory):
    other = getattr(request, "param", None)
    return load_policy(qwen3_profile(tmp_path_factory.mktemp(other)) if other else get_profile("cpu"), seed=3)


@pytest.fixture(scope="module")
def prompts(policy, images):
    return list(zip(ASK, VisionCache(policy.model, policy.processor, images).get(range(4))))


@pytest.fixture(scope="module")
def plain(policy, images):
    """The library's own inputs for the same questions: pixels, left-padded."""
    processor = policy.processor
    chats = [processor.apply_chat_template(messages(q), tokenize=False, add_generation_prompt=True) for q in ASK]
    return processor(text=chats, images=images, padding=True, padding_side="left", return_tensors="pt")


def test_a_system_turn_stands_before_every_question_and_is_saved_with_the_processor(policy, prompts, tmp_path):
    turn = 'You "think" {{ first }}.\nThen you name it, 鸟.'
    processor = load_processor(replace(policy.profile, system=turn))
    processor.save_pretrained(tmp_path)
    chat = [{"role": "system", "content": turn}, *messages(ASK[0])]
    for one in (processor, AutoProcessor.from_pretrained(tmp_path)):
        ids = prompt_ids(one, *prompts[0])
        plain = policy.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert turn in plain and one.tokenizer.decode(ids).replace("<|image_pad|>" * 16, "<|image_pad|>") == plain
        assert one.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == plain  # its own stays


def trained(policy, scale=0.05, **changed):
    """A policy as if it were trained: its adapter changes something."""
    other = load_policy(replace(policy.profile, **changed), seed=3)
    generator = torch.Generator().manual_seed(1)
    for name, p in other.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, 0, scale, generator=generator)
    return other


def states(policy):
    return policy.backbone(input_ids=torch.arange(40).view(2, 20)).last_hidden_state


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_cached_features_give_the_same_logits_as_pixels(policy, prompts, plain):
    ours, _ = training_batch(policy.model, policy.processor, [(*prompt, "a") for prompt in prompts])
    with torch.no_grad():
        expected, got = policy.model(**plain).logits, policy.model(**ours).logits
    for row in range(4):
        n = int(plain["attention_mask"][row].sum())
        torch.testing.assert_close(got[row, :n], expected[row, -n:], atol=2e-4, rtol=1e-4)
    deepstack = prompts[0][1].deepstack
    assert len(deepstack) == (2 if policy.model.config.model_type == "qwen3_vl" else 0)
    if deepstack:  # and they count
        ours["mm_encoder_outputs"]["image"].deepstack_features = []
        with torch.no_grad():
            assert (policy.model(**ours).logits - got).abs().max() > 0.1


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_every_image_is_encoded_once_and_a_full_cache_forgets_the_oldest(policy, images):
    cache = VisionCache(policy.model, policy.processor, images)
    first, width = [f.tokens for f in cache.get([0, 1, 1, 2])], 3 * 64 if cache.get([0])[0].deepstack else 128
    cache.get([2, 0, 3])
    assert cache.patches_encoded == 4 * 64
    small = VisionCache(policy.model, policy.processor, images, max_bytes=2 * 16 * width * 4)  # two images
    small.get([0, 1, 2]), small.get([2]), small.get([1])
    assert small.bytes == 2 * 16 * width * 4 and small.patches_encoded == 3 * 64
    assert torch.allclose(small.get([0])[0].tokens, first[0], atol=1e-5) and small.patches_encoded == 4 * 64


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_pictures_of_many_sizes_are_encoded_as_one_by_one(policy, images):
    mixed = [images[0], images[1].resize((300, 200)), images[2].convert("L"), images[3]]
    together = VisionCache(policy.model, policy.processor, mixed).get(range(4))
    for i, features in enumerate(together):
        alone = VisionCache(policy.model, policy.processor, mixed).get([i])[0]
        assert torch.equal(alone.grid, features.grid)
        for a, b in zip((alone.tokens, *alone.deepstack), (features.tokens, *features.deepstack), strict=True):
            assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_features_that_overflow_half_precision_name_the_image(policy, images):
    half = load_policy(replace(policy.profile, quantize=False, dtype="float16"))
    assert half.backbone.visual.dtype == torch.float32 and half.backbone.language_model.dtype == torch.float16
    assert VisionCache(half.model, half.processor, images).get([0])[0].tokens.dtype == torch.float16
    deepstack = getattr(half.backbone.visual, "deepstack_merger_list", None)
    with torch.no_grad():
        (deepstack[1].linear_fc2 if deepstack else half.backbone.visual.merger.mlp[2]).weight.mul_(1e7)
    with pytest.raises(FloatingPointError, match=r"image 1 \(112x112 pixels\).*max_pixels"):
        VisionCache(half.model, half.processor, images).get([1])


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_prompts_hold_image_placeholders_and_only_answers_are_labelled(policy, prompts):
    inputs, labels = training_batch(policy.model, policy.processor, [(*prompts[0], "red crown."), (ASK[1], None, "a")])
    tokenizer, image = policy.processor.tokenizer, policy.model.config.image_token_id
    assert (inputs["input_ids"] == image).sum(-1).tolist() == [len(prompts[0][1].tokens), 0] == [16, 0]
    assert [tokenizer.decode(row[row != IGNORE]) for row in labels] == ["red crown.<|im_end|>", "a<|im_end|>"]
    assert (inputs["input_ids"][labels != IGNORE] == labels[labels != IGNORE]).all()


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_nf4_spares_the_vision_tower_and_the_head_and_lora_spares_the_tower(policy):
    names = [n for n, m in policy.model.named_modules() if isinstance(m, Linear4bit)]
    assert len(names) == 7 * 5 and all("language_model" in n for n in names)
    # Where the CPU has AVX512-BF16, bitsandbytes would pack the weights for a bfloat16 kernel without gradients.
    assert not any(m.support_avx512bf16_for_cpu for m in policy.model.modules() if isinstance(m, Linear4bit))
    trained = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 5 and all("lora" in n and "language_model" in n for n in trained)


def test_a_fresh_adapter_changes_nothing_and_a_saved_one_comes_back(policy, prompts, tmp_path):
    def greedy(p):
        return rollout(p, prompts, 1, None, temperature=0, max_new_tokens=30).texts

    assert greedy(load_base(policy.profile)) == greedy(policy)
    changed = trained(policy, 0.5)
    with warnings.catch_warnings(action="error", category=UserWarning):  # peft's, with a path of this machine
        changed.save(tmp_path / "a")
    assert greedy(load_policy(policy.profile, tmp_path / "a")) == greedy(changed) != greedy(policy)
    with pytest.raises(FileNotFoundError, match="no adapter"):
        load_policy(policy.profile, tmp_path / "nothing")


@pytest.mark.parametrize("sign", ["<|im_end|>", "<|image_pad|>", "<image>", "\ud83d"])
def test_signs_of_the_model_are_refused_in_questions_and_answers(policy, sign):
    text = f"Which bird {sign} is this?"
    for make, how in ((prompt_ids, (text, None)), (answer_ids, (text,))):
        with pytest.raises(ValueError, match="a sign of its own.*take it out"):
            make(policy.processor, *how)


def test_an_adapter_is_whole_and_of_this_base_or_refused(policy, tmp_path):
    """Else the base would answer, under the adapter's name; without its weights PEFT asks the Hub or reads a pickle."""
    trained(policy, 0.5).save(tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    with safe_open(weights, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    names = sorted(tensors)
    for kept, told, message in [
        (dict(list(tensors.items())[::2]), about, "35 tensors are missing and 0 are of another model"),
        ({f"x.{name}": tensors[name] for name in names}, about, "70 tensors are missing and 70 are of another"),
        (tensors | {names[0]: tensors[names[0]][:, :8]}, about, "does not fit this base"),
        (tensors, about | {"base": "0" * 16}, "trained on another base"),
    ]:
        save_file({name: tensor.contiguous() for name, tensor in kept.items()}, weights, told)
        with pytest.raises(ValueError, match=message):
            load_policy(policy.profile, tmp_path / "a")
    save_file(tensors, weights)  # of another tool, which says no base
    load_policy(policy.profile, tmp_path / "a")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="adapter_model.safetensors is damaged"):
        load_policy(policy.profile, tmp_path / "a")
    weights.rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors is missing"):
        load_policy(policy.profile, tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        load_base(replace(policy.profile, model_id=str(tmp_path)))
    with pytest.raises(ValueError, match="siglip is a model of the kind 'siglip': set a Qwen2.5-VL's or Qwen3-VL's"):
        load_base(replace(policy.profile, model_id=str(ASSETS / "siglip")))


@pytest.mark.parametrize("kind", ({"use_dora": True}, {"lora_dropout": 0.1}))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_that_are_more_than_two_matrices_are_refused(policy, tmp_path, kind):
    config = LoraConfig(r=4, target_modules=LORA_TARGETS, **kind)
    get_peft_model(load_base(policy.profile).model, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not plain LoRA"):
        load_policy(policy.profile, tmp_path)


@pytest.mark.parametrize("card, grouped", [((7, 5), False), ((8, 9), True)])
def test_a_card_has_its_settings(monkeypatch, card, grouped):
    """No attention of cuDNN, no sums in fp16; only cards without flash attention pack heads themselves."""
    cuda, key, before, asked = torch.backends.cuda, torch.zeros(1, 2, 3, 128), sdpa_attention.use_gqa_in_sdpa, []
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", before)  # put back at the end
    monkeypatch.setattr(cuda, "matmul", SimpleNamespace(allow_fp16_reduced_precision_reduction=True))
    monkeypatch.setattr(cuda, "enable_cudnn_sdp", asked.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card)
    suit_the_card("cpu")
    assert asked == [] and cuda.matmul.allow_fp16_reduced_precision_reduction
    suit_the_card("cuda")
    assert asked == [False] and not cuda.matmul.allow_fp16_reduced_precision_reduction
    assert before(None, key, key) and sdpa_attention.use_gqa_in_sdpa(None, key, key) == grouped


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
@pytest.mark.parametrize("dense, kind", ((True, linear), (False, add_products)))
def test_decoding_computes_the_same_and_leaves_the_policy_alone(policy, dense, kind):
    changed = trained(policy, dense_rollout=dense)
    before = {n: p.clone() for n, p in changed.model.named_parameters()}
    layer = changed.backbone.language_model.layers[0].self_attn.q_proj
    for model in (changed, load_base(changed.profile)):
        with torch.no_grad():
            whole, forward = states(model), [vars(m).get("forward") for m in model.model.modules()]
            with decoding(model):
                light = states(model)
                assert model is not changed or layer.forward.func is kind
            assert [vars(m).get("forward") for m in model.model.modules()] == forward
            assert torch.equal(whole, states(model))
        torch.testing.assert_close(light, whole, atol=1e-4, rtol=1e-4)
    with torch.no_grad(), changed.model.disable_adapter(), decoding(changed):
        torch.testing.assert_close(states(changed), whole, atol=1e-4, rtol=1e-4)  # the base's
    after = dict(changed.model.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[n], p) for n, p in before.items())
    assert all(after[n].requires_grad == ("lora" in n) for n in after)


@pytest.mark.parametrize("quantize", (True, False))
def test_adapters_give_pefts_bits_and_gradients_in_fewer_passes(policy, quantize):
    (ours, our_size), (pefts, their_size) = ours_and_pefts(trained(policy, quantize=quantize))
    assert len(ours) == 71 and all(torch.equal(a, b) for a, b in zip(ours, pefts, strict=True))
    assert our_size <= their_size and all(g.abs().max() > 0 for g in ours)


def test_in_16_bits_adapters_compute_as_under_autocast(policy):
    """Close to PEFT's fp32 adapters on the same base; gradients arrive in fp32, and less is kept for them."""
    (ours, size), (pefts, their_size) = ours_and_pefts(trained(policy, dtype="bfloat16"))
    gradient, theirs = (torch.cat([g.flatten() for g in made[1:]]) for made in (ours, pefts))
    assert gradient.dtype == torch.float32 and size < 0.9 * their_size
    assert torch.cosine_similarity(ours[0].float().flatten(), pefts[0].float().flatten(), 0) > 0.999
    assert torch.cosine_similarity(gradient, theirs, 0) > 0.99


def ours_and_pefts(policy):
    """Hidden states with all gradients, and the bytes kept for them: by our forward of adapters, and by PEFT's."""
    found = []
    for _ in range(2):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            made = states(policy)
        policy.model.zero_grad()
        made.float().pow(2).sum().backward()
        found.append(([made.detach(), *(p.grad.clone() for p in policy.trainable())], sum(kept)))
        for layer in policy.model.modules():
            if isinstance(layer, LoraLayer):
                vars(layer).pop("forward", None)
    return found


@pytest.mark.parametrize("dense", (True, False))
def test_in_16_bits_rollouts_come_from_the_policy_that_is_scored(policy, dense):
    """A matrix of bfloat16 with the adapter added to it would be rounded, and be another policy."""
    own = trained(policy, 1e-3, dtype="bfloat16", dense_rollout=dense)
    with torch.no_grad():
        scored = states(own)
        with decoding(own):
            rolled = states(own)
        with own.model.disable_adapter():
            assert not torch.equal(scored, states(own))
    assert torch.equal(rolled, scored)


def test_a_rollout_that_stops_while_it_begins_leaves_the_policy_whole(policy, monkeypatch):
    before, made = [vars(m).get("forward") for m in policy.model.modules()], []

    def stop(*_):
        made.append(1)
        if len(made) == 6:
            raise KeyboardInterrupt
        return print

    monkeypatch.setattr(lora_module, "decoding_forward", stop)
    with pytest.raises(KeyboardInterrupt), decoding(policy):
        raise AssertionError("it should not come this far")
    assert [vars(m).get("forward") for m in policy.model.modules()] == before


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_greedy_rollout_is_what_generate_gives_side_by_side(policy, prompts, plain):
    how = {"do_sample": False, "suppress_tokens": forbidden_ids(policy.model)}
    generated = policy.model.generate(**plain, **how, max_new_tokens=60)
    texts = policy.processor.batch_decode(generated[:, plain["input_ids"].shape[1] :], skip_special_tokens=True)
    one, three = (rollout(policy, prompts, n, None, temperature=0, max_new_tokens=60).texts for n in (1, 3))
    assert one == texts and three == [t for t in texts for _ in range(3)] and len(set(texts)) > 1


def test_the_same_seed_samples_the_same_and_nothing_follows_an_end_token(policy, prompts):
    def sample(seed):
        return rollout(policy, prompts, 5, torch.Generator().manual_seed(seed), 1.5, 0.99, 25)

    made, eos = sample(1), policy.processor.tokenizer.eos_token_id
    assert made.texts == sample(1).texts != sample(2).texts
    for ids, mask in zip(made.completion_ids, made.completion_mask):
        n = int(mask.sum())
        assert mask[:n].all() and not mask[n:].any()
        assert eos not in ids[: n - 1] and (ids[n - 1] == eos or n == 25)
    assert made.ended == [bool((ids == eos).any()) for ids in made.completion_ids]


def test_every_end_token_of_the_generation_config_ends_an_answer(policy, prompts, monkeypatch):
    """Qwen2.5-VL's file names two; here a word that each greedy answer holds is made the second."""
    plain = rollout(policy, prompts[:1], 1, None, temperature=0, max_new_tokens=25)
    own, second = policy.processor.tokenizer.eos_token_id, int(plain.completion_ids[0, 3])
    assert rollout(policy, prompts[:1], 1, None, temperature=0, max_new_tokens=2).ended == [False]
    monkeypatch.setattr(base_model(policy.model).generation_config, "eos_token_id", [own, second])
    made = rollout(policy, prompts[:1], 1, None, temperature=0, max_new_tokens=25)
    longer = rollout(policy, prompts[:1], 1, None, temperature=0, max_new_tokens=25, min_new_tokens=9)
    first = plain.completion_ids[0].tolist().index(second) + 1
    assert made.completion_ids[0].tolist() == plain.completion_ids[0, :first].tolist() and made.ended == [True]
    assert len(longer.completion_ids[0]) > 9 and second not in longer.completion_ids[0, :9]


def test_a_rollout_that_does_not_fit_is_sampled_again_in_halves(policy, prompts):
    """The fault is real to the caller: the model raises what CUDA raises while more than 4 rows are decoded."""
    tight = load_policy(replace(policy.profile, rollout_batch=8))

    def full(module, arguments, keywords):
        if len(keywords["inputs_embeds"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    tight.backbone.language_model.register_forward_pre_hook(full, with_kwargs=True)
    with pytest.warns(RuntimeWarning, match="rollout_batch.* lowered from 4 to 2"):
        made = rollout(tight, prompts, 2, torch.Generator().manual_seed(0), max_new_tokens=8)
    assert tight.profile.rollout_batch == 4 and len(made.texts) == 8
    assert made.texts[:4] == rollout(tight, prompts[:2], 2, torch.Generator().manual_seed(0), max_new_tokens=8).texts
    with pytest.raises(MemoryError, match="even 1 does not fit"):
        rollout(tight, prompts, 5, torch.Generator().manual_seed(0), max_new_tokens=8)


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "packed"])
def test_shared_prompts_give_the_numbers_and_gradients_of_padded_rows(policy, prompts, checkpointing):
    """Scoring reads each prompt once; the plain way is a padded row for every completion. Without NF4, so in fp32."""
    policy = trained(policy, quantize=False, checkpointing=checkpointing)
    prompts = [p for p in prompts for _ in range(3)]
    made = rollout(policy, prompts, 1, torch.Generator().manual_seed(0), max_new_tokens=30)
    made.completion_mask[4, 1:], made.completion_mask[5, 7:] = 0, 0  # one token only; a short one
    weight = torch.randn(made.completion_ids.shape, generator=torch.Generator().manual_seed(1)) * made.completion_mask
    policy.scoring_mode()
    layers = [m for m in policy.backbone.language_model.layers if m.gradient_checkpointing and m.training]
    assert len(layers) == (5 if checkpointing else 0)
    shared = completion_logps(policy, prompts, made.completion_ids, made.completion_mask, temperature=0.7)
    ours = torch.autograd.grad((shared * weight).sum(), policy.trainable())
    ids = [prompt_ids(policy.processor, text, f) for text, f in prompts]
    left = pad(ids, policy.processor.tokenizer.pad_token_id, "left")
    left_mask = pad([[1] * len(i) for i in ids], 0, "left")
    whole, mask = torch.cat([left, made.completion_ids], 1), torch.cat([left_mask, made.completion_mask], 1)
    logits = policy.model(**model_inputs(policy.model, whole, mask, [s for _, s in prompts])).logits
    padded = selective_log_softmax(logits[:, left.shape[1] - 1 : -1] / 0.7, made.completion_ids)
    torch.testing.assert_close(shared, padded * made.completion_mask, atol=1e-5, rtol=1e-5)
    for a, b in zip(ours, torch.autograd.grad((padded * weight).sum(), policy.trainable())):
        assert (a - b).norm() < 1e-4 * b.norm()


@pytest.mark.parametrize("temperature, top_p", ((1.0, 0.9), (0.5, 0.7), (1.5, 1.0)))
def test_the_nucleus_is_drawn_as_if_it_were_sorted(temperature, top_p):
    """Against a plain reference: rank, cut, renormalise; over a vocabulary with forbidden tokens."""
    logits = 2 * torch.randn(300, generator=torch.Generator().manual_seed(1))
    logits[:20] = -torch.inf
    ranked, order = (logits / temperature).softmax(-1).sort(descending=True)
    expected = torch.zeros(300).scatter(0, order, ranked * (ranked.cumsum(-1) - ranked < top_p))
    drawn = sample_tokens(logits.repeat(20_000, 1), temperature, top_p, torch.Generator().manual_seed(0))
    found = torch.bincount(drawn, minlength=300) / 20_000
    assert not found[expected == 0].any()
    expected /= expected.sum()
    some = expected > 0
    chi2, freedom = (20_000 * (found - expected)[some] ** 2 / expected[some]).sum(), int(some.sum()) - 1
    assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("bad", (torch.nan, torch.inf))
@pytest.mark.parametrize("temperature, top_p", ((1.0, 0.9), (1.0, 1.0), (0, 1.0)))
def test_broken_logits_and_an_empty_nucleus_are_refused(bad, temperature, top_p):
    with pytest.raises(FloatingPointError, match="not numbers"):
        sample_tokens(torch.full((2, 5), bad), temperature, top_p, torch.Generator().manual_seed(0))
    for wrong in (math.nan, math.inf, -1.0, 1e-45):
        with pytest.raises(ValueError, match="temperature is .*must be 0 .greedy. or at least 0.001"):
            sample_tokens(torch.zeros(2, 5), wrong, 1.0, torch.Generator())
    with pytest.raises(ValueError, match="top_p"):
        sample_tokens(torch.zeros(2, 5), temperature, 0, torch.Generator().manual_seed(0))
