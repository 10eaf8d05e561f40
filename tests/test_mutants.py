"""Are the tests any good? Each mutant replaces a piece of a module's source by a wrong one, which tests must notice.

The module is built anew and put into a copy of the test module. A piece that is no longer there fails too."""

import importlib.util
import itertools
import sys
import types
import warnings
from pathlib import Path

import pytest

from finer1_lite import logprobs, losses, rewards, samplers

MODULES = {"losses": losses, "logprobs": logprobs, "samplers": samplers, "rewards": rewards}
ALIAS = {"losses": "L", "logprobs": "P", "samplers": "S", "rewards": "R"}  # the tests' names of the modules
TESTS = {"losses": "losses", "logprobs": "losses", "samplers": "samplers", "rewards": "rewards"}

# module: what is wrong, a piece of the source that occurs once, what replaces it, the tests that must fail on it
# ("test, test; other test file: test", all without the prefix test_)
MUTANTS = {
    "losses": [
        ("std over G instead of G - 1", "grouped.std(dim=1, keepdim=True)",
         "grouped.std(dim=1, keepdim=True, unbiased=False)", "group_advantages_by_hand; losses_released: advantages"),
        ("std of the whole batch", "grouped.std(dim=1, keepdim=True)", "grouped.std()", "group_advantages_by_hand"),
        ("mean of the whole batch", "grouped.mean(dim=1, keepdim=True))", "grouped.mean())",
         "group_advantages_by_hand"),
        ("advantage with the wrong sign", "(grouped - grouped.mean(dim=1, keepdim=True))",
         "(grouped.mean(dim=1, keepdim=True) - grouped)", "group_advantages_by_hand; losses_released: advantages"),
        ("no eps", "keepdim=True) + 1e-6)", "keepdim=True))", "group_advantages_eps_is_outside_the_root"),
        ("rounding of the mean counts as a signal", ".masked_fill(equal, 0.0)", "",
         "rounding_of_the_mean_is_no_signal"),
        ("one equal pair silences the group", ".all(dim=1, keepdim=True)", "[:, 1:2]",
         "rounding_of_the_mean_is_no_signal"),
        ("eps inside the root", "(grouped.std(dim=1, keepdim=True) + 1e-6)",
         "(grouped.var(dim=1, keepdim=True) + 1e-6).sqrt()", "group_advantages_eps_is_outside_the_root"),
        ("scale is ignored", 'if scale == "std":', "if True:", "group_advantages_by_hand"),
        ("groups are strided instead of consecutive", "fp32(rewards).view(-1, num_generations)",
         "fp32(rewards).view(num_generations, -1).T", "group_advantages_by_hand"),
        ("groups with every answer right are kept", "(correct > 0) & (correct < num_generations)", "correct > 0",
         "keep_groups"),
        ("groups with every answer wrong are kept", "(correct > 0) & (correct < num_generations)",
         "correct < num_generations", "keep_groups"),
        ("no 'keep all if none survives'", 'kept if rule == "released" and kept.any() else',
         'kept if rule == "released" else', "keep_groups_released_rule"),
        ("bounds include the limits", "(mean > 0.01) & (mean < 0.99)", "(mean >= 0.01) & (mean <= 0.99)",
         "keep_groups_released_rule"),
        ("sampled entropy with the wrong sign", "return -fp32(per_token_logps)", "return fp32(per_token_logps)",
         "entropy_terms_by_hand, tapo_loss_equals_the_slow_loops; losses_released: whole_loss"),
        ("old log-probs always under the anchor", 'old = anchor_logps if old_image == "anchor" else own_logps',
         "old = anchor_logps", "condition_logps"),
        ("update always under the anchor", 'current = anchor_logps if update_image == "anchor" else own_logps',
         "current = anchor_logps", "condition_logps"),
        ("old log-probs carry a gradient", "return current, old.detach()", "return current, old", "condition_logps"),
        ("policy loss with the wrong sign", "loss = -torch.minimum(ratio", "loss = torch.minimum(ratio",
         "policy_loss_by_hand; losses_released: policy_loss"),
        ("maximum instead of minimum", "loss = -torch.minimum(ratio", "loss = -torch.maximum(ratio",
         "policy_loss_by_hand; losses_released: policy_loss"),
        ("inverse ratio", "(fp32(log_p) - fp32(log_q))", "(fp32(log_q) - fp32(log_p))",
         "policy_loss_by_hand, inter_class_kl_by_hand; losses_released: policy_loss"),
        ("symmetric clip", "ratio.clamp(1 - epsilon_low, 1 + epsilon_high)",
         "ratio.clamp(1 - epsilon_low, 1 + epsilon_low)", "policy_loss_by_hand"),
        ("epsilons swapped", "ratio.clamp(1 - epsilon_low, 1 + epsilon_high)",
         "ratio.clamp(1 - epsilon_high, 1 + epsilon_low)", "policy_loss_by_hand"),
        ("no clip at all", "ratio.clamp(1 - epsilon_low, 1 + epsilon_high)", "ratio", "policy_loss_by_hand"),
        ("dual clip for every advantage", "torch.where(advantages < 0, torch.minimum",
         "torch.where(advantages < 9, torch.minimum", "policy_loss_by_hand"),
        ("dual clip from below", "torch.minimum(loss, -dual_clip", "torch.maximum(loss, -dual_clip",
         "policy_loss_by_hand; losses_released: policy_loss"),
        ("log-ratio clamp is ignored", ".clamp(-20.0, 20.0)", "",
         "policy_loss_is_bounded_by_the_clamp, inter_class_kl_by_hand; losses_properties: clamps_bound_every_term"),
        ("low and high clip fractions swapped", '"low": (ratio < 1 - epsilon_low) & (advantages < 0)',
         '"low": (ratio < 1 - epsilon_low) & (advantages > 0)',
         "policy_loss_by_hand, metrics_are_the_parts_of_the_loss"),
        ("paper's form with the inverse ratio", "kl = x.expm1() - x", "kl = (-x).expm1() + x",
         "inter_class_kl_by_hand, tapo_loss_equals_the_slow_loops"),
        ("released form with the paper's ratio", "else (-x).expm1() + x", "else x.expm1() - x",
         "inter_class_kl_by_hand; losses_released: inter_class_kl"),
        ("log g is added", "kl = x.expm1() - x", "kl = x.expm1() + x",
         "inter_class_kl_by_hand; losses_properties: kl_is_zero_iff_equal_and_never_negative"),
        ("rounding noise near x = 0", "kl = x.expm1() - x", "kl = x.exp() - x - 1",
         "kl_of_nearly_equal_branches_in_fp32"),
        ("gradient always flows through pi_neg",
         "negative_per_token_logps if negative_grad else negative_per_token_logps.detach()",
         "negative_per_token_logps", "inter_class_kl_by_hand"),
        ("gradient never flows through pi_neg",
         "negative_per_token_logps if negative_grad else negative_per_token_logps.detach()",
         "negative_per_token_logps.detach()", "inter_class_kl_by_hand, gradient_switches_of_the_loss"),
        ("released form without its cap", 'cap = 10.0 if cap is None and form == "released" else cap', "pass",
         "inter_class_kl_by_hand"),
        ("cap only from below", "kl.clamp(max=cap)", "kl.clamp(min=-cap)", "kl_cap"),
        ("weight on the correct ones", "torch.where(correct.bool(), 1.0, wrong_weight)",
         "torch.where(correct.bool(), wrong_weight, 1.0)", "kl_weight_of_wrong_rollouts"),
        ("missing mask", ".masked_fill(mask == 0, 0.0)", "", "aggregate_by_hand"),
        ("mask as a product", "fp32(per_token).masked_fill(mask == 0, 0.0)", "fp32(per_token) * mask",
         "masked_infinities_leave_no_trace"),
        ("num_items is ignored", "if num_items is None:\n", "if True:\n",
         "aggregate_by_hand, micro_batch_mean_depends_on_the_cut"),
        ("token mean is a micro-batch mean", 'if how == "token":\n        return kept.sum() / num_items',
         'if how == "token":\n        return kept.sum() / mask.sum()',
         "aggregate_by_hand; losses_properties: the_cut_into_micro_batches_does_not_matter"),
        ("a question's mean is the step's", 'return (kept.sum(dim=1) / tokens).sum() / items',
         'return kept.sum() / mask.sum() / items', "the_mean_of_a_question_and_then_over_questions"),
        ("token mean over padding too", "return int(mask.sum())", "return int(mask.numel())",
         "aggregate_by_hand; losses_released: policy_loss"),
        ("sequence mean over padding too", "(kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum()",
         "kept.mean(dim=1).sum()", "aggregate_by_hand; losses_released: policy_loss"),
        ("division by zero tokens", "kept.sum() / mask.sum().clamp(min=1) / num_items",
         "kept.sum() / mask.sum() / num_items", "aggregate_by_hand"),
        ("constant ignores the rows", "kept.sum() / (num_items * constant_length)", "kept.sum() / constant_length",
         "aggregate_by_hand"),
        ("the KL is made smaller", 'total - c.gamma * parts["inter_kl"]', 'total + c.gamma * parts["inter_kl"]',
         "tapo_loss_equals_the_slow_loops; losses_released: whole_loss"),
        ("the negative entropy is made larger", '+ c.eta2 * parts["negative_entropy"]',
         '- c.eta2 * parts["negative_entropy"]', "tapo_loss_equals_the_slow_loops"),
        ("eta1 and eta2 swapped", "total = total + c.eta1 *", "total = total + c.eta2 *",
         "tapo_loss_equals_the_slow_loops, gradient_switches_of_the_loss"),
        ("entropy_sign is ignored", '1 if config.entropy_sign == "entropy" else -1', "1",
         "tapo_loss_equals_the_slow_loops"),
        ("entropy_grad is ignored", "logps if c.entropy_grad else logps.detach()", "logps",
         "gradient_switches_of_the_loss"),
        ("H[pi_neg] trains in the released preset",
         "negative_per_token_logps if c.negative_grad else negative_per_token_logps.detach()",
         "negative_per_token_logps", "released_preset_is_every_switch_of_the_released_code"),
        ("old log-probs of the loss carry a gradient", "(logps, old.detach(), advantages,",
         "(logps, old, advantages,", "gradient_switches_of_the_loss"),
        ("the released preset clips like the paper", "negative_grad=False, dual_clip=3.0,", "negative_grad=False,",
         "released_preset_is_every_switch_of_the_released_code"),
        ("the paper's preset clips symmetrically", "epsilon_high: float = 0.28\n    dual",
         "epsilon_high: float = 0.2\n    dual", "presets_are_the_paper_and_its_relatives; losses_released: whole_loss"),
        ("ratio metric is not clamped", "_log_ratio(*arguments[:2]).exp()", "(arguments[0] - arguments[1]).exp()",
         "losses_properties: clamps_bound_every_term"),
    ],
    "logprobs": [
        ("the mask drops the EOS", "((is_eos.cumsum(dim=1) - is_eos) == 0)", "(is_eos.cumsum(dim=1) == 0)",
         "completion_mask_by_hand"),
        ("the mask stops at the last EOS", "((is_eos.cumsum(dim=1) - is_eos) == 0)",
         "(is_eos.flip(1).cumsum(1).flip(1) + 0 * is_eos > 0)", "completion_mask_by_hand"),
        ("log-probs are shifted by one token", "chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)",
         "chosen = logits.gather(-1, ids.roll(1, -1).unsqueeze(-1)).squeeze(-1)",
         "selective_log_softmax_by_hand_and_by_loop, chunked_logps_equal_the_naive_ones"),
        ("log-probs without normalisation", "return chosen - logits.logsumexp(dim=-1)", "return chosen",
         "selective_log_softmax_by_hand_and_by_loop"),
        ("naive softmax overflows", "logits.logsumexp(dim=-1)", "logits.exp().sum(dim=-1).log()",
         "selective_log_softmax_by_hand_and_by_loop"),
        ("half precision stays half", "return x.float() if x.dtype in", "return x if x.dtype in",
         "half_precision_inputs_are_computed_in_fp32"),
        ("temperature multiplies", "fp32(rows @ weight.T) / temperature", "fp32(rows @ weight.T) * temperature",
         "chunked_logps_equal_the_naive_ones"),
        ("chunks are not checkpointed", "checkpoint(one_chunk, rows, weight, row_ids, use_reentrant=False)",
         "one_chunk(rows, weight, row_ids)", "chunked_logps_never_hold_the_full_logits"),
        ("one chunk for everything", "hidden.split(chunk_size), ids.split(chunk_size)", "[hidden], [ids]",
         "chunked_logps_never_hold_the_full_logits"),
    ],
    "samplers": [
        ("the anchor is its own positive", "if i != anchor] or [anchor])", "])",
         "ten_thousand_triplets_never_break_the_rules"),
        ("the positive is always the first", "positive = _pick(rng, [", "positive = min([", "frequencies_are_uniform"),
        ("the last item is never drawn", "items[int(rng.random() * len(items))]",
         "items[int(rng.random() * max(1, len(items) - 1))]", "frequencies_are_uniform"),
        ("biased shuffle", "other = int(rng.random() * (last + 1))", "other = int(rng.random() * last)",
         "frequencies_are_uniform, same_seed_same_triplets_on_every_python"),
        ("anchors with replacement", '_shuffled(_rng(self.seed, "order", epoch), range(len(self)))[position]',
         "_pick(_rng(self.seed, 'a', self.drawn), range(len(self)))",
         "every_epoch_visits_every_anchor_once_in_a_new_order"),
        ("every epoch in the same order", '_rng(self.seed, "order", epoch)', '_rng(self.seed, "order")',
         "every_epoch_visits_every_anchor_once_in_a_new_order"),
        ("every epoch draws the same partners", '_rng(self.seed, "triplet", epoch, position)',
         '_rng(self.seed, "triplet", position)', "frequencies_are_uniform"),
        ("the seed is ignored", 'return random.Random("/".join(map(str, key)))',
         'return random.Random("/".join(map(str, key[1:])))', "the_sequence_depends_on_the_seed_and_not_on_batches"),
        ("global random state", 'return random.Random("/".join(map(str, key)))', "return random",
         "the_sequence_depends_on_the_seed_and_not_on_batches, a_resumed_sampler_continues_the_sequence"),
        ("seeding by the salted hash()", 'random.Random("/".join(map(str, key)))', "random.Random(hash(key))",
         "same_seed_same_triplets_on_every_python"),
        ("the negative is the least similar", "round((1 - hardness) *", "round(hardness *",
         "ten_thousand_triplets_never_break_the_rules, hardness_picks_the_rank"),
        ("the curriculum goes from hard to easy", "hardness = start + (end - start) *",
         "hardness = end + (start - end) *", "curriculum_goes_from_easy_to_hard"),
        ("the curriculum never ends", "min(1.0, self.drawn / self.curriculum_triplets)",
         "min(1.0, self.drawn / self.curriculum_triplets / 2)", "curriculum_goes_from_easy_to_hard"),
        ("a negative of the anchor's class", "others = [name for name in self.images if name != label]",
         "others = list(self.images)", "ten_thousand_triplets_never_break_the_rules"),
        ("confusion is not consulted", 'if self.negative == "online" else None\n', "if False else None\n",
         "ten_thousand_triplets_never_break_the_rules, online_negatives_resume_with_their_counts"),
        ("the position is not restored", 'self.drawn = state["drawn"]', "pass",
         "a_resumed_sampler_continues_the_sequence"),
        ("the counts are not restored", 'self.confusion.counts = dict(state["confusion"])', "pass",
         "online_negatives_resume_with_their_counts"),
        ("classes without images are offered", "present = [other for other in ranked if other in self.images]",
         "present = list(ranked)", "classes_without_images_are_passed_over"),
        ("fewest shots of the first images", '_shuffled(_rng(seed, "k_shot", name), images)[:k]', "images[:k]",
         "k_shot_is_uniform, k_shot_takes_k_of_each_class"),
        ("one shot too many", "images)[:k]", "images)[:k + 1]", "k_shot_takes_k_of_each_class"),
        ("seen classes rounded up", "math.floor(seen_fraction * len(names) + 1e-9)",
         "math.ceil(seen_fraction * len(names))", "split_sizes_are_the_papers"),
        ("split depends on the order given", '_shuffled(_rng(seed, "split"), names)[:count]', "names[:count]",
         "split_depends_on_the_seed_alone"),
        ("two spellings of a class pass", "name.casefold().split()", "name.split()", "names_that_are_no_classes"),
        ("least similar class first", "@ means.T * -1e9", "@ means.T * 1e9", "nearest_classes_by_hand"),
        ("a class is its own look-alike", "np.iinfo(np.int64).max", "np.iinfo(np.int64).min",
         "nearest_classes_by_hand"),
        ("image features are not normalised", "(own / length).mean", "own.mean",
         "nearest_classes_by_hand"),
        ("confusion never fades", "count * self.decay for", "count for", "confusion_counts_by_hand"),
        ("right answers count as confusion", "if predicted != true:", "if True:", "confusion_counts_by_hand"),
        ("least confused class", "row = [(-n, name)", "row = [(n, name)", "confusion_counts_by_hand"),
        ("one round too few", "and rounds < max_rounds:", "and rounds < max_rounds - 1:",
         "fill_batch_gives_up_with_a_warning"),
        ("what is filtered out is kept", "strict=True) if useful]", "strict=True) if not useful]",
         "fill_batch_refills_until_full"),
        ("no warning", "if len(kept) < batch_size:\n        warnings", "if False:\n        warnings",
         "fill_batch_gives_up_with_a_warning"),
        ("a saved state moves with the sampler", "dict(self.confusion.counts)", "self.confusion.counts",
         "online_negatives_resume_with_their_counts"),
        ("a forgotten confusion counts", "if n >= 0.1 and", "if", "confusion_counts_by_hand"),
    ],
    "rewards": [
        ("format anywhere in the text", 'text.startswith("<think>") and', '"<think>" in text and',
         "format; losses_released: rewards"),
        ("words between the parts", 'middle in text[len("<think>") : -len("</answer>")]', '"</think>" in text',
         "format"),
        ("white space in tags is kept", "part.strip() for part in middle", "part for part in middle",
         "format, extract_answer; losses_released: rewards"),
        ("greedy answer", 'rest.partition("</answer>")', 'rest.rpartition("</answer>")',
         "extract_answer; losses_released: rewards"),
        ("case matters", "strip_tags_space(label).lower() in answer.lower()", "strip_tags_space(label) in answer",
         "accuracy_is_containment_in_the_answer; losses_released: rewards"),
        ("the whole text is searched", "strip_tags_space(label).lower() in answer.lower()",
         "label.lower() in completion.lower()", "accuracy_is_containment_in_the_answer; losses_released: rewards"),
        ("equality instead of containment", "strip_tags_space(label).lower() in answer.lower()",
         "label.lower() == answer.lower()", "accuracy_is_containment_in_the_answer; losses_released: rewards"),
        ("weights swapped", "ACCURACY_WEIGHT * accuracy + FORMAT_WEIGHT * format_score",
         "FORMAT_WEIGHT * accuracy + ACCURACY_WEIGHT * format_score",
         "released_ending_and_bare_reward; losses_released: rewards"),
        ("strict match by containment", "normalise(tagged_answer(completion)) == normalise(label)",
         "normalise(label) in normalise(tagged_answer(completion))", "strict_accuracy"),
        ("bare answers are paid for thinking", "strict_format(completion, think=False)", "strict_format(completion)",
         "released_ending_and_bare_reward"),
        ("an answer may go on", "text.count(tag) == n for", "text.count(tag) >= n for",
         "strict_format_has_each_part_once_and_nothing_more"),
        ("hyphens count", "holds_name(tagged_answer(completion), label)", "label in tagged_answer(completion)",
         "loose_reward, another_spelling_is_the_same_name"),
        ("names inside longer names count", 'rest = rest.replace(phrase, " | ")', "pass", "names_in"),
        ("parts of words count", 'phrase = f" {words[label]} "', "phrase = words[label]", "names_in"),
        ("the guard is off", "if others else scores", "if False else scores", "guarded_reward_closes_the_hack"),
        ("credit for every family", "family_of[named[0]] == family_of[label]", "True", "look_alike_reward"),
        ("credit for several names", "len(named) == 1 and", "len(named) >= 1 and", "look_alike_reward"),
        ("the label counts as another name", "!= spelling(label)]", "!= label]", "guarded_reward_closes_the_hack"),
    ],
}
ALL = [(module, *mutant) for module, mutants in MUTANTS.items() for mutant in mutants]


@pytest.fixture(scope="module")
def copies():
    """Fresh copies of test modules, so that a mutant in one cannot leak into the true one."""
    made = {}
    for name in {*TESTS.values(), "losses_released", "losses_properties"}:
        path = Path(__file__).with_name(f"test_{name}.py")
        spec = importlib.util.spec_from_file_location(f"copy_of_test_{name}", path)
        made[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made[name])
    return made


def build(module, old, new):
    source = Path(MODULES[module].__file__).read_text()
    assert source.count(old) == 1, f"the source to mutate occurs {source.count(old)} times: {old}"
    made = types.ModuleType(f"mutant_of_{module}")
    made.__package__ = "finer1_lite"
    sys.modules[made.__name__] = made  # dataclasses look their module up
    exec(compile(source.replace(old, new), module, "exec"), made.__dict__)
    return made


def cases(test):
    """Every combination of a test's parametrize marks, as keyword arguments."""
    axes = []
    for mark in (m for m in getattr(test, "pytestmark", []) if m.name == "parametrize"):
        names, values = mark.args[0].replace(" ", "").split(","), mark.args[1]
        axes.append([dict(zip(names, v if len(names) > 1 else (v,))) for v in values])
    for choice in itertools.product(*axes):
        yield {name: value for part in choice for name, value in part.items()}


def fails(test):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for arguments in cases(test):
            try:
                test(**arguments)
            except (NameError, AttributeError, ImportError):
                raise  # the mutant is broken, not wrong
            except (Exception, pytest.fail.Exception):
                return True
    return False


@pytest.mark.parametrize("mutant", ALL, ids=lambda m: f"{m[0]}: {m[1]}")
def test_mutant_is_caught(mutant, copies, monkeypatch):
    module, what, old, new, caught_by = mutant
    mutated = build(module, old, new)
    for group in caught_by.split("; "):
        *file, names = group.split(": ")
        tests = copies[file[0] if file else TESTS[module]]
        monkeypatch.setattr(tests, ALIAS[module], mutated)
        for name in names.split(", "):
            assert fails(getattr(tests, f"test_{name}")), f"{name} does not notice: {what}"
