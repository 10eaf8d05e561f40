"""Are the tests any good? Each mutant is a deliberately wrong version of the code that tests must notice.

A mutant replaces one piece of a module's source. The module is built anew from it, put in the place of the
true one in a copy of the test module, and the named tests run. A mutant that one of its tests does not notice
fails, and so does one whose piece of source has gone.
"""

import importlib.util
import itertools
import sys
import types
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

from finer1_lite import losses, rewards, samplers

MODULES = {"losses": losses, "samplers": samplers, "rewards": rewards}
ALIAS = {"losses": "L", "samplers": "S", "rewards": "R"}  # the name by which the tests call the module


class Mutant(NamedTuple):
    module: str
    what: str  # what is wrong with it
    old: str  # a piece of the source that occurs once
    new: str
    caught_by: str  # "test file: test, test" without the prefix test_; each must fail on the mutant


MUTANTS = [Mutant(*fields) for fields in [
    # ---- advantages and groups
    ("losses", "std over G instead of G - 1", "grouped.std(dim=1, keepdim=True)",
     "grouped.std(dim=1, keepdim=True, unbiased=False)",
     "losses: group_advantages_by_hand; losses_released: advantages"),
    ("losses", "std of the whole batch", "grouped.std(dim=1, keepdim=True)", "grouped.std()",
     "losses: group_advantages_by_hand"),
    ("losses", "mean of the whole batch", "grouped.mean(dim=1, keepdim=True)\n", "grouped.mean()\n",
     "losses: group_advantages_by_hand"),
    ("losses", "advantage with the wrong sign", "centred = grouped - grouped.mean(dim=1, keepdim=True)",
     "centred = grouped.mean(dim=1, keepdim=True) - grouped",
     "losses: group_advantages_by_hand; losses_released: advantages"),
    ("losses", "no eps", "keepdim=True) + eps)", "keepdim=True))",
        "losses: group_advantages_of_equal_rewards_are_zero"),
    ("losses", "rounding of the mean counts as a signal", "centred.masked_fill(equal, 0.0)", "centred",
     "losses: rounding_of_the_mean_is_no_signal"),
    ("losses", "one equal pair silences the group", ".all(dim=1, keepdim=True)", "[:, 1:2]",
     "losses: rounding_of_the_mean_is_no_signal"),
    ("losses", "eps inside the root", "(grouped.std(dim=1, keepdim=True) + eps)",
     "(grouped.var(dim=1, keepdim=True) + eps).sqrt()", "losses: group_advantages_eps_is_outside_the_root"),
    ("losses", "scale is ignored", 'if scale == "std":', "if True:", "losses: group_advantages_by_hand"),
    ("losses", "groups are strided instead of consecutive", "_fp32(x).view(-1, num_generations)",
     "_fp32(x).view(num_generations, -1).T", "losses: group_advantages_by_hand"),
    ("losses", "groups with every answer right are kept", "(correct > 0) & (correct < num_generations)",
        "correct > 0",
     "losses: keep_groups_paper_rule"),
    ("losses", "groups with every answer wrong are kept", "(correct > 0) & (correct < num_generations)",
     "correct < num_generations", "losses: keep_groups_paper_rule"),
    ("losses", "no 'keep all if none survives'", 'kept if rule == "released" and kept.any() else',
     'kept if rule == "released" else', "losses: keep_groups_released_rule"),
    ("losses", "bounds include the limits", "(mean > low) & (mean < high)", "(mean >= low) & (mean <= high)",
     "losses: keep_groups_released_rule"),
    ("losses", "overlong line starts too late", "(max_length - buffer - lengths) / buffer",
     "(max_length - lengths) / buffer", "losses: overlong_penalty_by_hand"),
    # ---- log-probs
    ("losses", "the mask drops the EOS", "((is_eos.cumsum(dim=1) - is_eos) == 0)",
        "(is_eos.cumsum(dim=1) == 0)",
     "losses: completion_mask_by_hand"),
    ("losses", "the mask stops at the last EOS", "((is_eos.cumsum(dim=1) - is_eos) == 0)",
     "(is_eos.flip(1).cumsum(1).flip(1) + 0 * is_eos > 0)", "losses: completion_mask_by_hand"),
    ("losses", "log-probs are shifted by one token",
        "chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)",
     "chosen = logits.gather(-1, ids.roll(1, -1).unsqueeze(-1)).squeeze(-1)",
     "losses: selective_log_softmax_by_hand_and_by_loop, chunked_logps_equal_the_naive_ones"),
    ("losses", "log-probs without normalisation", "return chosen - logits.logsumexp(dim=-1)", "return chosen",
     "losses: selective_log_softmax_by_hand_and_by_loop"),
    ("losses", "naive softmax overflows", "logits.logsumexp(dim=-1)\n\n\ndef entropy",
     "logits.exp().sum(dim=-1).log()\n\n\ndef entropy", "losses: selective_log_softmax_survives_huge_logits"),
    ("losses", "half precision stays half", "return x.float() if x.dtype in", "return x if x.dtype in",
     "losses: half_precision_inputs_are_computed_in_fp32"),
    ("losses", "sampled entropy with the wrong sign", "return -_fp32(per_token_logps)",
        "return _fp32(per_token_logps)",
     "losses: entropy_terms_by_hand, tapo_loss_equals_the_slow_loops; "
     "losses_released: whole_loss_of_the_released_preset"),
    ("losses", "suppressed ids make the entropy NaN", "logits.masked_fill(logits == -torch.inf, 0.0)",
        "logits",
     "losses: full_entropy_ignores_suppressed_ids"),
    ("losses", "temperature multiplies", "_fp32(rows @ weight.T) / temperature",
        "_fp32(rows @ weight.T) * temperature",
     "losses: chunked_logps_equal_the_naive_ones"),
    ("losses", "chunks are not checkpointed",
        "checkpoint(one_chunk, rows, weight, row_ids, use_reentrant=False)",
     "one_chunk(rows, weight, row_ids)", "losses: chunked_logps_never_hold_the_full_logits"),
    ("losses", "one chunk for everything", "hidden.split(chunk_size), ids.split(chunk_size)",
        "[hidden], [ids]",
     "losses: chunked_logps_never_hold_the_full_logits"),
    ("losses", "old log-probs always under the anchor",
        'old = anchor_logps if old_image == "anchor" else own_logps',
     "old = anchor_logps", "losses: condition_logps, importance_correction_is_unbiased_before_clipping"),
    ("losses", "update always under the anchor",
        'current = anchor_logps if update_image == "anchor" else own_logps',
     "current = anchor_logps", "losses: condition_logps"),
    ("losses", "old log-probs carry a gradient", "return current, old.detach()", "return current, old",
     "losses: condition_logps"),
    # ---- policy loss
    ("losses", "policy loss with the wrong sign", "loss = -torch.minimum(ratio", "loss = torch.minimum(ratio",
     "losses: policy_loss_by_hand; losses_released: policy_loss"),
    ("losses", "maximum instead of minimum", "loss = -torch.minimum(ratio", "loss = -torch.maximum(ratio",
     "losses: policy_loss_by_hand; losses_released: policy_loss"),
    ("losses", "inverse ratio", "log_ratio = _fp32(log_p) - _fp32(log_q)",
        "log_ratio = _fp32(log_q) - _fp32(log_p)",
     "losses: policy_loss_by_hand, inter_class_kl_by_hand; losses_released: policy_loss"),
    ("losses", "symmetric clip", "ratio.clamp(1 - epsilon_low, 1 + epsilon_high)",
     "ratio.clamp(1 - epsilon_low, 1 + epsilon_low)", "losses: policy_loss_by_hand"),
    ("losses", "epsilons swapped", "ratio.clamp(1 - epsilon_low, 1 + epsilon_high)",
     "ratio.clamp(1 - epsilon_high, 1 + epsilon_low)", "losses: policy_loss_by_hand"),
    ("losses", "no clip at all", "ratio.clamp(1 - epsilon_low, 1 + epsilon_high)", "ratio",
        "losses: policy_loss_by_hand"),
    ("losses", "dual clip for every advantage", "torch.where(advantages < 0, torch.minimum",
        "torch.where(advantages < 9, torch.minimum",
     "losses: policy_loss_by_hand"),
    ("losses", "dual clip from below", "torch.minimum(loss, -dual_clip", "torch.maximum(loss, -dual_clip",
     "losses: policy_loss_by_hand; losses_released: policy_loss"),
    ("losses", "log-ratio clamp is ignored", "log_ratio if clamp is None else log_ratio.clamp(-clamp, clamp)",
     "log_ratio", "losses: log_ratio_clamp, inter_class_kl_by_hand"),
    ("losses", "low and high clip fractions swapped", '"low": (ratio < 1 - epsilon_low) & (advantages < 0)',
     '"low": (ratio < 1 - epsilon_low) & (advantages > 0)',
     "losses: policy_loss_by_hand, metrics_are_the_parts_of_the_loss"),
    # ---- inter-class KL
    ("losses", "paper's form with the inverse ratio", '"paper": lambda: x.expm1() - x',
        '"paper": lambda: (-x).expm1() + x',
     "losses: inter_class_kl_by_hand, tapo_loss_equals_the_slow_loops"),
    ("losses", "released form with the paper's ratio", '"released": lambda: (-x).expm1() + x',
        '"released": lambda: x.expm1() - x',
     "losses: inter_class_kl_by_hand; losses_released: inter_class_kl"),
    ("losses", "log g is added", '"paper": lambda: x.expm1() - x', '"paper": lambda: x.expm1() + x',
     "losses: inter_class_kl_by_hand; losses_properties: kl_is_zero_iff_equal_and_never_negative"),
    ("losses", "rounding noise near x = 0", '"paper": lambda: x.expm1() - x',
        '"paper": lambda: x.exp() - x - 1',
     "losses: kl_of_nearly_equal_branches_in_fp32"),
    ("losses", "mse without its half", "x.square() / 2", "x.square()",
        "losses: inter_class_kl_by_hand; losses_released: inter_class_kl"),
    ("losses", "gradient always flows through pi_neg",
     "negative = negative_per_token_logps if negative_grad else negative_per_token_logps.detach()",
     "negative = negative_per_token_logps", "losses: negative_grad_off_is_a_constant_branch"),
    ("losses", "gradient never flows through pi_neg",
     "negative = negative_per_token_logps if negative_grad else negative_per_token_logps.detach()",
     "negative = negative_per_token_logps.detach()",
     "losses: inter_class_kl_by_hand, gradient_switches_of_the_loss"),
    ("losses", "released form without its cap", 'cap = 10.0 if cap is None and form == "released" else cap',
        "pass",
     "losses: inter_class_kl_by_hand"),
    ("losses", "cap only from below", "kl.clamp(-cap, cap)", "kl.clamp(min=-cap)",
        "losses: kl_cap_and_clamp_off"),
    ("losses", "no clamp of the exponential forms",
        'if log_ratio_clamp is None and form in ("paper", "released"):',
     "if False:",
     "losses: inter_class_kl_by_hand"),
    ("losses", "weight on the correct ones", "torch.where(correct.bool(), 1.0, wrong_weight)",
     "torch.where(correct.bool(), wrong_weight, 1.0)", "losses: kl_weight_of_wrong_rollouts"),
    # ---- aggregation
    ("losses", "missing mask", "kept = _keep(_fp32(per_token), mask)", "kept = _fp32(per_token)",
        "losses: aggregate_by_hand"),
    ("losses", "mask as a product",
        "return torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))",
     "return x * mask", "losses: masked_infinities_leave_no_trace"),
    ("losses", "inputs of the loss are not masked", "logps = _keep(_fp32(per_token_logps), completion_mask)",
     "logps = _fp32(per_token_logps)", "losses: masked_infinities_leave_no_trace"),
    ("losses", "num_items is ignored", "if num_items is None:\n", "if True:\n",
     "losses: aggregate_with_the_count_of_a_larger_step, "
     "micro_batch_mean_depends_on_the_cut_and_no_other_does"),
    ("losses", "token mean is a micro-batch mean",
        'if how == "token":\n        return kept.sum() / num_items',
     'if how == "token":\n        return kept.sum() / mask.sum()',
     "losses: aggregate_with_the_count_of_a_larger_step; "
     "losses_properties: the_cut_into_micro_batches_does_not_matter"),
    ("losses", "token mean over padding too", "return int(mask.sum())", "return int(mask.numel())",
     "losses: aggregate_by_hand; losses_released: policy_loss"),
    ("losses", "sequence mean over padding too", "(kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum()",
     "kept.mean(dim=1).sum()", "losses: aggregate_by_hand; losses_released: policy_loss"),
    ("losses", "division by zero tokens", "kept.sum() / mask.sum().clamp(min=1) / num_items",
     "kept.sum() / mask.sum() / num_items", "losses: aggregate_of_nothing_is_zero"),
    ("losses", "constant ignores the rows", "kept.sum() / (num_items * constant_length)",
        "kept.sum() / constant_length",
     "losses: aggregate_by_hand"),
    # ---- the whole loss
    ("losses", "the KL is made smaller", 'total - config.gamma * parts["inter_kl"]',
        'total + config.gamma * parts["inter_kl"]',
     "losses: tapo_loss_equals_the_slow_loops; losses_released: whole_loss_of_the_released_preset"),
    ("losses", "the negative entropy is made larger", '+ config.eta2 * parts["negative_entropy"]',
     '- config.eta2 * parts["negative_entropy"]', "losses: tapo_loss_equals_the_slow_loops"),
    ("losses", "eta1 and eta2 swapped", "total = total + config.eta1 *", "total = total + config.eta2 *",
     "losses: tapo_loss_equals_the_slow_loops, gradient_switches_of_the_loss"),
    ("losses", "entropy_sign is ignored", 'return entropy if config.entropy_sign == "entropy" else -entropy',
     "return entropy", "losses: tapo_loss_equals_the_slow_loops"),
    ("losses", "entropy_grad is ignored",
        'parts["entropy"] if config.entropy_grad else parts["entropy"].detach()',
     'parts["entropy"]', "losses: gradient_switches_of_the_loss"),
    ("losses", "H[pi_neg] trains in the released preset",
        "entropy if config.negative_grad else entropy.detach()",
     "entropy", "losses: released_preset_is_every_switch_of_the_released_code"),
    ("losses", "old log-probs of the loss carry a gradient", "(logps, old.detach(), advantages)",
        "(logps, old, advantages)",
     "losses: old_logps_never_carry_a_gradient; losses_properties: first_step_has_zero_loss_and_a_gradient"),
    ("losses", "the released preset clips like the paper", "negative_grad=False, dual_clip=3.0,",
        "negative_grad=False,",
     "losses: released_preset_is_every_switch_of_the_released_code"),
    ("losses", "the paper's preset clips symmetrically", "epsilon_high: float = 0.28\n    dual",
        "epsilon_high: float = 0.2\n    dual",
     "losses: presets_are_the_paper_and_its_relatives; losses_released: whole_loss_of_the_released_preset"),
    ("losses", "ratio metric is not clamped", "_log_ratio(*arguments[:2], config.log_ratio_clamp).exp()",
     "_log_ratio(*arguments[:2], None).exp()", "losses_properties: clamps_bound_every_term_for_any_logits"),
    # ---- samplers
    ("samplers", "the anchor is its own positive", "if i != anchor])", "])",
        "samplers: ten_thousand_triplets_never_break_the_rules"),
    ("samplers", "the positive is always the first", "positive = _pick(rng, [", "positive = min([",
     "samplers: frequencies_are_uniform"),
    ("samplers", "the last item is never drawn", "items[int(rng.random() * len(items))]",
     "items[int(rng.random() * max(1, len(items) - 1))]", "samplers: frequencies_are_uniform"),
    ("samplers", "biased shuffle", "other = int(rng.random() * (last + 1))",
        "other = int(rng.random() * last)",
     "samplers: frequencies_are_uniform, same_seed_same_triplets_on_every_python"),
    ("samplers", "anchors with replacement", "anchor = self._order[1][position]",
     "anchor = _pick(_rng(self.seed, 'a', self.drawn), self.anchors)",
     "samplers: every_epoch_visits_every_anchor_once_in_a_new_order"),
    ("samplers", "every epoch in the same order", '_rng(self.seed, "order", epoch)',
        '_rng(self.seed, "order")',
     "samplers: every_epoch_visits_every_anchor_once_in_a_new_order"),
    ("samplers", "every epoch draws the same partners", '_rng(self.seed, "triplet", epoch, position)',
     '_rng(self.seed, "triplet", position)', "samplers: frequencies_are_uniform"),
    ("samplers", "the seed is ignored", 'return random.Random("/".join(map(str, key)))',
     'return random.Random("/".join(map(str, key[1:])))', "samplers: seeds_differ_and_repeat"),
    ("samplers", "global random state", 'return random.Random("/".join(map(str, key)))', "return random",
     "samplers: seeds_differ_and_repeat, a_resumed_sampler_continues_the_sequence"),
    ("samplers", "seeding by the salted hash()", 'random.Random("/".join(map(str, key)))',
        "random.Random(hash(key))",
     "samplers: same_seed_same_triplets_on_every_python"),
    ("samplers", "the negative is the least similar", "round((1 - self.current_hardness()) *",
        "round(self.current_hardness() *",
     "samplers: ten_thousand_triplets_never_break_the_rules, hardness_picks_the_rank"),
    ("samplers", "the curriculum goes from hard to easy", "return start + (end - start) *",
        "return end + (start - end) *",
     "samplers: curriculum_goes_from_easy_to_hard"),
    ("samplers", "the curriculum never ends", "min(1.0, self.drawn / self.curriculum_triplets)",
     "min(1.0, self.drawn / self.curriculum_triplets / 2)", "samplers: curriculum_goes_from_easy_to_hard"),
    ("samplers", "a negative of the anchor's class",
        "others = [name for name in self.images if name != label]",
     "others = list(self.images)", "samplers: ten_thousand_triplets_never_break_the_rules"),
    ("samplers", "confusion is not consulted", 'if self.negative == "online" else None\n',
        "if False else None\n",
     "samplers: ten_thousand_triplets_never_break_the_rules, online_negatives_resume_with_their_counts"),
    ("samplers", "the position is not restored", 'self.drawn = state["drawn"]', "pass",
     "samplers: a_resumed_sampler_continues_the_sequence"),
    ("samplers", "the counts are not restored", 'self.confusion.load_state_dict(state["confusion"])', "pass",
     "samplers: online_negatives_resume_with_their_counts"),
    ("samplers", "the class's ranking wins over the image's",
        "nearest[index] if index in nearest else nearest.get(label, ())",
     "nearest.get(label, ())", "samplers: ranking_per_image_wins_over_the_class"),
    ("samplers", "classes without images are offered",
        "present = [name for name in ranked if name in self.images]",
     "present = list(ranked)", "samplers: classes_without_images_are_passed_over"),
    ("samplers", "fewest shots of the first images", '_shuffled(_rng(seed, "k_shot", name), images)[:k]',
        "images[:k]",
     "samplers: k_shot_is_uniform, k_shot_takes_k_of_each_class"),
    ("samplers", "one shot too many", "images)[:k]", "images)[:k + 1]",
        "samplers: k_shot_takes_k_of_each_class"),
    ("samplers", "seen classes rounded up", "math.floor(seen_fraction * len(names) + 1e-9)",
     "math.ceil(seen_fraction * len(names))", "samplers: split_sizes_are_the_papers"),
    ("samplers", "split depends on the order given", "_shuffled(_rng(seed, \"split\"), names)[:count]",
        "names[:count]",
     "samplers: split_depends_on_the_seed_alone"),
    ("samplers", "two spellings of a class pass", 'name.casefold().split()', "name.split()",
        "samplers: names_that_are_no_classes"),
    ("samplers", "least similar class first", "key=lambda j: (-round(", "key=lambda j: (round(",
     "samplers: nearest_classes_by_hand, nearest_classes_against_a_loop"),
    ("samplers", "a class is its own look-alike", "for j in order if names[j] != own]", "for j in order]",
     "samplers: nearest_classes_by_hand"),
    ("samplers", "image features are not normalised", "return rows / length", "return rows",
        "samplers: nearest_classes_by_hand"),
    ("samplers", "confusion never fades", "count * self.decay for", "count for",
        "samplers: confusion_counts_by_hand, confusion_follows_the_policy"),
    ("samplers", "right answers count as confusion", "if predicted != true:", "if True:",
        "samplers: confusion_counts_by_hand"),
    ("samplers", "least confused class", "row = [(-count, name)", "row = [(count, name)",
        "samplers: confusion_counts_by_hand"),
    ("samplers", "one round too few", "and rounds < max_rounds:", "and rounds < max_rounds - 1:",
     "samplers: fill_batch_gives_up_with_a_warning"),
    ("samplers", "what is filtered out is kept", "zip(items, flags) if flag]",
        "zip(items, flags) if not flag]",
     "samplers: fill_batch_refills_until_full"),
    ("samplers", "no warning", "if len(kept) < batch_size:\n        warnings", "if False:\n        warnings",
     "samplers: fill_batch_gives_up_with_a_warning"),
    ("samplers", "too many items", "Filled(kept[:batch_size],", "Filled(kept,",
        "samplers: fill_batch_never_returns_more_than_asked"),
    # ---- rewards
    ("rewards", "format anywhere in the text", "re.fullmatch(pattern", "re.search(pattern",
        "rewards: format; losses_released: rewards"),
    ("rewards", "the dot does not match newlines", "strip_tags_space(completion), re.DOTALL) is not None",
     "strip_tags_space(completion)) is not None", "rewards: format; losses_released: rewards"),
    ("rewards", "words between the parts", r"</think>\s*<answer>", "</think>.*?<answer>", "rewards: format"),
    ("rewards", "white space in tags is kept", r're.sub(r"\s*([<>/])\s*", r"\1", completion)', "completion",
     "rewards: format, extract_answer; losses_released: rewards"),
    ("rewards", "greedy answer", "<answer>(.*?)</answer>", "<answer>(.*)</answer>",
        "rewards: extract_answer; losses_released: rewards"),
    ("rewards", "case matters", "strip_tags_space(label).lower() in answer.lower()", "strip_tags_space(label) in answer",
        "rewards: accuracy_is_containment; losses_released: rewards"),
    ("rewards", "the whole text is searched", "strip_tags_space(label).lower() in answer.lower()",
        "label.lower() in completion.lower()",
     "rewards: accuracy_reads_the_answer_only; losses_released: rewards"),
    ("rewards", "equality instead of containment", "strip_tags_space(label).lower() in answer.lower()",
        "label.lower() == answer.lower()",
     "rewards: accuracy_is_containment; losses_released: rewards"),
    ("rewards", "weights swapped", "ACCURACY_WEIGHT * accuracy + FORMAT_WEIGHT * format_score",
     "FORMAT_WEIGHT * accuracy + ACCURACY_WEIGHT * format_score",
     "rewards: released_reward; losses_released: rewards"),
    ("rewards", "strict match by containment", "normalise(answer) == normalise(label)",
        "normalise(label) in normalise(answer)",
     "rewards: strict_accuracy"),
    ("rewards", "bare answers are paid for thinking", '"<think>" not in strip_tags_space',
     '"<think>" in strip_tags_space',
     "rewards: bare_reward"),
    ("rewards", "hyphens count", "float(normalise(label) in normalise(extract_answer",
        "float(label in str(extract_answer", "rewards: loose_reward"),
    ("rewards", "names inside longer names count", 'rest = rest.replace(phrase, " | ")', "pass",
        "rewards: names_in, names_several"),
    ("rewards", "parts of words count", 'phrase = f" {normalise(label)} "', "phrase = normalise(label)",
        "rewards: names_in"),
    ("rewards", "the guard is off", 'if scores["accuracy"] and names_other(', "if False and names_other(",
     "rewards: guarded_reward_closes_the_hack"),
    ("rewards", "the guard sees one name as several",
        "return len(names_in(answer, {label, *all_labels})) > 1",
     "return len(names_in(answer, {label, *all_labels})) > 0", "rewards: names_several"),
    ("rewards", "credit for every family", "family_of[named[0]] == family_of[label]", "True",
        "rewards: look_alike_reward"),
    ("rewards", "credit for several names", "len(named) == 1 and", "len(named) >= 1 and",
        "rewards: look_alike_reward"),
]]


def load_tests(name):
    """A fresh copy of a test module, so that a mutant in it cannot leak into the true one."""
    path = Path(__file__).with_name(f"test_{name}.py")
    spec = importlib.util.spec_from_file_location(f"copy_of_test_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def copies():
    names = ("losses", "losses_released", "losses_properties", "samplers", "rewards")
    return {name: load_tests(name) for name in names}


def build(mutant):
    """The mutated module."""
    true = MODULES[mutant.module]
    source = Path(true.__file__).read_text()
    times = source.count(mutant.old)
    assert times == 1, f"the source to mutate occurs {times} times: {mutant.old}"
    made = types.ModuleType(f"mutant_of_{mutant.module}")
    made.__file__ = true.__file__
    sys.modules[made.__name__] = made  # dataclasses look their module up
    exec(compile(source.replace(mutant.old, mutant.new), true.__file__, "exec"), made.__dict__)
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
    """Whether the test fails on any of its parameters."""
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


def named_tests(mutant, copies):
    for group in mutant.caught_by.split("; "):
        file, tests = group.split(": ")
        for name in tests.split(", "):
            yield file, getattr(copies[file], f"test_{name}")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.module}: {m.what}")
def test_mutant_is_caught(mutant, copies, monkeypatch):
    mutated = build(mutant)
    for file, test in named_tests(mutant, copies):
        monkeypatch.setattr(copies[file], ALIAS[mutant.module], mutated)
        assert fails(test), f"{test.__name__} does not notice: {mutant.what}"


def test_the_named_tests_pass_on_the_true_code(copies):
    named = {test.__name__: test for mutant in MUTANTS for _, test in named_tests(mutant, copies)}
    slow = "in_other_processes"
    assert [name for name, test in named.items() if slow not in name and fails(test)] == []


def test_every_public_function_has_a_mutant():
    """A function whose body no mutant touches would be a function whose tests are not tested."""
    untouched = set()
    for name, module in MODULES.items():
        source = Path(module.__file__).read_text()
        lines = {source[: source.index(m.old)].count("\n") + 1 for m in MUTANTS if m.module == name}
        for function in vars(module).values():
            if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                first, last = function.__code__.co_firstlineno, max(l for *_,
                    l in function.__code__.co_lines() if l)
                if not any(first <= line <= last for line in lines):
                    untouched.add(function.__name__)
    # Functions of a line or two, whose body is the function that they call.
    assert untouched <= {
        "_one_of", "_by_class", "_class_means", "nearest_by_name", "nearest_by_table", "nearest_classes",
        "nearest_classes_per_image", "released_reward", "names_other",
    }
