"""The policy's shortcuts give the same numbers as the plain way: cached images, own decoding, scoring."""

import warnings

import pytest
import torch

from finer1_lite.birds.dataset import evaluation_species
from finer1_lite.birds.render import draw
from finer1_lite.config import get_profile
from finer1_lite.losses import selective_log_softmax
from finer1_lite.policy.dense import dense
from finer1_lite.policy.inputs import IGNORE, VisionCache, model_inputs, pad, prompt_ids, training_batch
from finer1_lite.policy.load import load_base, load_policy
from finer1_lite.policy.rollout import forbidden_ids, rollout, sample_tokens
from finer1_lite.policy.scoring import completion_logps
from finer1_lite.prompts import ANSWER_INSTRUCTION, QUESTIONS, messages

ASK = ["Describe the bird.", f"{QUESTIONS[0]} {ANSWER_INSTRUCTION}", "What does the beak look like?", "Describe the bird."]


@pytest.fixture(scope="module")
def images():
    return [draw(s, 7) for s in evaluation_species()[:4]]


@pytest.fixture(scope="module")
def policy():
    return load_policy(get_profile("cpu"), seed=3)


@pytest.fixture(scope="module")
def cache(policy, images):
    return VisionCache(policy.model, policy.processor, images)


@pytest.fixture(scope="module")
def plain(policy, images):
    """The library's own inputs for the same questions: pixels, left-padded."""
    chats = [
        policy.processor.apply_chat_template(messages(q), tokenize=False, add_generation_prompt=True) for q in ASK
    ]
    return policy.processor(text=chats, images=images, padding=True, padding_side="left", return_tensors="pt")


def test_cached_features_give_the_same_logits_as_pixels(policy, cache, plain):
    ours, _ = training_batch(policy.model, policy.processor, list(zip(ASK, cache.get(range(4)), ["a"] * 4)))
    with torch.no_grad():
        expected, got = policy.model(**plain).logits, policy.model(**ours).logits
    for row in range(4):
        n = int(plain["attention_mask"][row].sum())
        torch.testing.assert_close(got[row, :n], expected[row, -n:], atol=2e-4, rtol=1e-4)


def test_every_image_is_encoded_once(policy, images):
    cache = VisionCache(policy.model, policy.processor, images)
    cache.get([0, 1, 1, 2])
    cache.get([2, 0, 3])
    assert cache.patches_encoded == 4 * 64


def test_greedy_rollout_is_what_generate_gives(policy, cache, plain):
    generated = policy.model.generate(
        **plain, do_sample=False, max_new_tokens=60, bad_words_ids=[[i] for i in forbidden_ids(policy.model)]
    )
    texts = policy.processor.batch_decode(generated[:, plain["input_ids"].shape[1] :], skip_special_tokens=True)
    ours = rollout(policy, list(zip(ASK, cache.get(range(4)))), 1, None, temperature=0, max_new_tokens=60)
    assert ours.texts == texts
    assert len(set(texts)) > 1


def test_plain_matrices_decode_like_the_packed_ones_and_leave_them_alone(policy):
    changed = load_policy(policy.profile, seed=3)
    with torch.no_grad():
        for name, p in changed.model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(40).view(2, 20)
    before = {n: p.clone() for n, p in changed.model.named_parameters()}
    for model in (changed, load_base(policy.profile)):
        with torch.no_grad():
            packed = model.backbone(input_ids=ids).last_hidden_state
            with dense(model):
                layers = model.backbone.language_model.layers.named_modules()
                kinds = {type(m).__name__ for n, m in layers if n.endswith("_proj")}
                plain = model.backbone(input_ids=ids).last_hidden_state
            again = model.backbone(input_ids=ids).last_hidden_state
        assert kinds == {"Linear"} and torch.equal(packed, again)
        torch.testing.assert_close(plain, packed, atol=1e-4, rtol=1e-4)
    after = dict(changed.model.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[n], p) for n, p in before.items())
    assert all(after[n].requires_grad == ("lora" in n) for n in after)


def test_repeated_prompts_give_rows_side_by_side(policy, cache):
    prompts = list(zip(ASK, cache.get(range(4))))
    one = rollout(policy, prompts, 1, None, temperature=0, max_new_tokens=40).texts
    three = rollout(policy, prompts, 3, None, temperature=0, max_new_tokens=40).texts
    assert three == [t for t in one for _ in range(3)]


def test_the_same_seed_samples_the_same_texts(policy, cache):
    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        return rollout(policy, list(zip(ASK, cache.get(range(4)))), 4, generator, 1.5, 0.99, 30).texts

    assert sample(1) == sample(1) != sample(2)


def test_masks_end_with_the_end_token_and_nothing_follows(policy, cache):
    generator = torch.Generator().manual_seed(0)
    made = rollout(policy, list(zip(ASK, cache.get(range(4)))), 5, generator, max_new_tokens=25)
    eos = policy.processor.tokenizer.eos_token_id
    for ids, mask in zip(made.completion_ids, made.completion_mask):
        n = int(mask.sum())
        assert mask[:n].all() and not mask[n:].any()
        assert eos not in ids[: n - 1] and (ids[n - 1] == eos or n == 25)


def test_scores_are_the_log_probs_of_the_plain_model(policy, cache, images):
    prompts = list(zip(ASK, cache.get(range(4))))
    generator = torch.Generator().manual_seed(0)
    made = rollout(policy, prompts, 2, generator, max_new_tokens=30)
    doubled = [p for p in prompts for _ in range(2)]
    scored = completion_logps(policy, doubled, made.completion_ids, made.completion_mask).detach()
    assert not scored[made.completion_mask == 0].any()
    for row in (0, 3, 6):
        n = int(made.completion_mask[row].sum())
        text = policy.processor.apply_chat_template(messages(ASK[row // 2]), tokenize=False, add_generation_prompt=True)
        inputs = policy.processor(text=[text], images=[images[row // 2]], return_tensors="pt")
        completion = made.completion_ids[row : row + 1, :n]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], completion], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(completion)], 1)
        with torch.no_grad():
            logits = policy.model(**inputs).logits[:, -n - 1 : -1]
        torch.testing.assert_close(scored[row, :n], selective_log_softmax(logits, completion)[0], atol=2e-4, rtol=1e-4)


def test_shared_prompts_give_the_gradients_of_padded_rows(policy, cache):
    """Scoring reads each prompt once; the plain way is one padded row for every completion."""
    policy = load_policy(policy.profile, seed=3)
    prompts = [p for p in zip(ASK, cache.get(range(4))) for _ in range(3)]
    made = rollout(policy, prompts, 1, torch.Generator().manual_seed(0), max_new_tokens=30)
    weight = torch.randn(made.completion_mask.shape, generator=torch.Generator().manual_seed(1))

    def gradients(logps):
        policy.model.zero_grad()
        (logps * weight * made.completion_mask).sum().backward()
        return [p.grad.clone() for p in policy.trainable()]

    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    shared = completion_logps(policy, prompts, made.completion_ids, made.completion_mask)
    ids = [prompt_ids(policy.processor, text, seen) for text, seen in prompts]
    left, left_mask = pad(ids, policy.processor.tokenizer.pad_token_id, "left"), pad([[1] * len(i) for i in ids], 0, "left")
    whole, mask = torch.cat([left, made.completion_ids], 1), torch.cat([left_mask, made.completion_mask], 1)
    logits = policy.model(**model_inputs(policy.model, whole, mask, [s for _, s in prompts])).logits
    padded = selective_log_softmax(logits[:, left.shape[1] - 1 : -1], made.completion_ids)
    torch.testing.assert_close(shared, padded * made.completion_mask, atol=1e-4, rtol=1e-4)
    for a, b in zip(gradients(shared), gradients(padded)):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-4)


def test_only_answers_are_labelled_and_the_end_token_is(policy, cache):
    rows = [(ASK[0], cache.get([0])[0], "red crown."), (ASK[1], None, "a")]
    inputs, labels = training_batch(policy.model, policy.processor, rows)
    tokenizer = policy.processor.tokenizer
    assert [tokenizer.decode(row[row != IGNORE]) for row in labels] == ["red crown.<|im_end|>", "a<|im_end|>"]
    assert (inputs["input_ids"][labels != IGNORE] == labels[labels != IGNORE]).all()


def test_nf4_spares_the_vision_tower_and_the_head_and_lora_spares_the_tower(policy):
    from bitsandbytes.nn import Linear4bit

    names = [n for n, m in policy.model.named_modules() if isinstance(m, Linear4bit)]
    assert len(names) == 7 * 5 and all("language_model" in n for n in names)
    trained = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 5 and all("lora" in n and "language_model" in n for n in trained)


def test_a_fresh_adapter_changes_nothing_and_a_saved_one_comes_back(policy, cache, tmp_path):
    prompts = list(zip(ASK, cache.get(range(4))))

    def greedy(p):
        return rollout(p, prompts, 1, None, temperature=0, max_new_tokens=30).texts

    assert greedy(load_base(policy.profile)) == greedy(policy)
    changed = load_policy(policy.profile, seed=3)
    with torch.no_grad():
        for name, p in changed.model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft warns with a path of this machine if it has to guess
        changed.save(tmp_path / "a")
    assert greedy(load_policy(policy.profile, tmp_path / "a")) == greedy(changed) != greedy(policy)
    with pytest.raises(FileNotFoundError, match="no adapter"):
        load_policy(policy.profile, tmp_path / "nothing")


def test_sampling_respects_temperature_and_nucleus():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)

    def share(temperature, top_p):
        return torch.bincount(sample_tokens(logits, temperature, top_p, generator), minlength=4) / 4000

    torch.testing.assert_close(share(1.0, 1.0), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03, rtol=0)
    torch.testing.assert_close(share(1.0, 0.7), torch.tensor([0.625, 0.375, 0, 0]), atol=0.03, rtol=0)
    assert share(0, 1.0)[0] == 1
    assert share(0.5, 1.0)[0] > 0.6


def test_the_prompt_holds_one_placeholder_for_each_image_token(policy, cache):
    seen = cache.get([0])[0]
    ids = prompt_ids(policy.processor, ASK[0], seen)
    assert ids.count(policy.model.config.image_token_id) == len(seen.tokens) == 16
