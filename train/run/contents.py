"""What the folder of a run holds: its files, and what each number in `metrics.jsonl` and beside it means.

Names in angle brackets stand for what differs: `<effort>` low, medium or high, `<channel>` analysis, commentary or
final, `<set>` the name of a held-out set, `<reward>` of a reward, `<code>` of a rule of the checker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

FILES: Mapping[str, str] = {
    "config.yaml": "every setting, defaults written out; a run file like any other",
    "versions.json": "packages, commit, machine",
    "run.json": "seeds, fingerprint of the data, state (running, finished, stopped, failed), last step",
    "metrics.jsonl": "one object a log interval or measurement; the numbers below",
    "log.txt": "what happened, with times, and the warnings of all libraries",
    "bad_rows.jsonl": "rows that could not be trained, with the reason and their bytes",
    "bad_held_out_rows.jsonl": "the same of held-out data",
    "rollouts.jsonl": "`grpo`: every rollout with its rewards, calls and text",
    "engine": "`grpo` with `rollout.engine: vllm` or `server`: what they were given of the weights",
    "journal": "`grpo` with `rollout.engine: server`: finished groups that no checkpoint stands behind yet",
    "data.jsonl": "`distill`: the rows that came of it, for `data.train` of the next run",
    "distilled.jsonl": "`distill`: every accepted answer as it came, from which a resumed run goes on",
    "refused.jsonl": "`distill`: answers that were not accepted, with the reason",
    "adapter.jsonl": "by step: experts that had gradient, the load of each expert, the router's change",
    "checkpoints/step-<step>": "a complete checkpoint, from which `--resume` goes on",
    "eval/metrics.jsonl": "one object an evaluation; the numbers below",
    "eval/step-<step>-<who>.jsonl": "every sample of an evaluation, of the tuned model or of its base",
    "adapter": "the result: an adapter in PEFT's format",
    "model": "the result of a run without adapter: all weights",
    "report.html": "the report, one page without other files",
    "report.json": "what the report shows, for programs",
    "figures": "the report's figures as SVG and PNG",
    "lock": "pid and host of the process that uses the folder, touched while it lives",
    "overwritten": "with `--overwrite`, what was here before, until the new run trains",
    ".rows-<host>-<token>": "while it trains: its rows as tokens, which all processes of a machine read",
    "wandb": "what wandb keeps until it is synced; `data` and `cache` beside it too",
    "tensorboard": "events of TensorBoard",
    "mlflow.db": "what MLflow keeps, where it is told no other place",
    "mlflow_run.txt": "the run that a resumed one goes on with",
}
"""Path in the folder -> what it holds."""

METRICS: Mapping[str, str] = {
    "step": "optimizer steps done",
    "epoch": "passes over the training rows",
    "loss": "mean loss since the last line: weighted sum over all trained tokens by the sum of their weights",
    "loss_<channel>": "the same of the tokens of one channel",
    "grad_norm": "norm of the gradient before clipping (`train.max_grad_norm`)",
    "learning_rate": "rate of the step",
    "tokens": "tokens seen since the run began, context included, of all processes",
    "trained_tokens": "of them, those with a weight",
    "tokens_per_second": "tokens a second of training steps; evaluation and saving do not count",
    "trained_tokens_per_second": "the same of trained tokens",
    "valid_loss": "loss of all held-out rows; for pairs the loss of `dpo.losses`",
    "valid_loss_<channel>": "the same of one channel",
    "valid_<set>_loss": "the same of one named set",
    "valid_<set>_loss_<channel>": "the same of one channel of a named set",
    "valid_accuracy": "share of held-out pairs whose chosen side has the larger implicit reward",
    "valid_<set>_accuracy": "the same of one named set",
    "valid_margin": "mean difference of the implicit rewards of held-out pairs",
    "valid_<set>_margin": "the same of one named set",
    "valid_reward": "mean weighted sum of the rewards of held-out prompts, one rollout each",
    "valid_rewards/<reward>": "mean of one reward there",
    "valid_channel_correct": "share of those rollouts that break no rule of the checker",
    "valid_<set>_reward": "mean weighted sum of the rewards of one named set",
    "rewards/chosen": "`dpo`: mean implicit reward of chosen sides, beta times the log ratio to the reference",
    "rewards/rejected": "`dpo`: the same of rejected sides",
    "rewards/margins": "`dpo`: mean difference of the two",
    "rewards/accuracies": "`dpo`: share of pairs whose chosen side has the larger one",
    "logps/chosen": "`dpo`: mean log-probability of a chosen side (sum over its tokens)",
    "logps/rejected": "`dpo`: the same of rejected sides",
    "logits/chosen": "`dpo`: mean logit of the tokens of chosen sides",
    "logits/rejected": "`dpo`: the same of rejected sides",
    "kl": "`dpo.losses: kto`: estimate of the divergence from the reference; `grpo.beta`: the same of rollouts",
    "mean_token_accuracy": "`dpo`: share of tokens of chosen sides that are the model's first choice",
    "entropy": "mean entropy of the model's next-token distribution, nats",
    "num_tokens": "`dpo`, `grpo`: tokens seen since the run began",
    "reward": "`grpo`: mean weighted sum of the rewards of the step's rollouts",
    "reward_std": "`grpo`: mean standard deviation of it within a group",
    "frac_reward_zero_std": "`grpo`: share of groups whose rollouts all have the same sum: they teach nothing",
    "rewards/<reward>/mean": "`grpo`: mean of one reward",
    "rewards/<reward>/std": "`grpo`: its standard deviation over all rollouts",
    "rewards/<reward>/zero_variance": "`grpo`: share of groups in which it is the same for all",
    "rewards/<reward>/<part>/mean": "`grpo`: mean of a number that an environment or a function names",
    "rewards/<reward>/failures": "`grpo`: rollouts for which it failed: 0, or invalid (function, code, judge, grader)",
    "rewards/<reward>/tokens": "`grpo`: tokens that its judge has taken so far, cached answers aside",
    "invalid": "`grpo`: share of rollouts of which nothing is learned: their environment or a reward failed",
    "environments/<environment>/reward": "`rollout.environments`: mean weighted sum of what one of them gives",
    "environments/<environment>/rewards/<reward>": "the same of one of its rewards",
    "environments/<environment>/turns": "mean number of user messages of its rollouts",
    "environments/<environment>/invalid": "share of its rollouts that failed",
    "turns": "`grpo` in an environment: mean number of user messages of a rollout",
    "channel_correct": "`grpo`: share of rollouts that break no rule of the checker",
    "analysis_tokens/<effort>": "`grpo`: mean length of the analysis at an effort",
    "tools/calls": "`grpo`: mean number of calls of a rollout",
    "tools/faults": "`grpo`: share of calls that failed",
    "tools/solved": "`grpo`: share of rollouts that called tools without a fault and were right",
    "completions/mean_length": "`grpo`: mean length of rollouts, tokens",
    "completions/min_length": "`grpo`: the shortest",
    "completions/max_length": "`grpo`: the longest",
    "completions/mean_terminated_length": "`grpo`: mean length of those that ended by themselves",
    "completions/min_terminated_length": "`grpo`: the shortest of them",
    "completions/max_terminated_length": "`grpo`: the longest of them",
    "completions/clipped_ratio": "`grpo`: share that was cut at the longest length",
    "aux_loss": "`train.router_aux_loss_coef` with `dpo` and `grpo`: the load-balancing loss, 1 or more",
    "groups/learned": "`grpo.oversample`: groups that are learned from, as a share of those wanted",
    "off_policy/masked": "`grpo.off_policy`: share of rows that do not count",
    "clip_ratio/low_mean": "`grpo`: share of tokens whose ratio was clipped from below",
    "clip_ratio/high_mean": "`grpo`: share clipped from above",
    "clip_ratio/region_mean": "`grpo`: share clipped at all",
    "cispo_clip_ratio": "`grpo.loss: cispo`: share of tokens whose ratio was capped",
    "vespo/phi_seq_mean": "`grpo.loss: vespo`: mean weight of a rollout",
    "sampling/sampling_logp_difference/mean": "`grpo` with another engine: mean difference of its log-probabilities",
    "sampling/sampling_logp_difference/max": "`grpo` with another engine: the largest",
    "sampling/importance_sampling_ratio/min": "`grpo` with another engine: smallest ratio that corrects for it",
    "sampling/importance_sampling_ratio/mean": "`grpo` with another engine: mean ratio",
    "sampling/importance_sampling_ratio/max": "`grpo` with another engine: largest ratio",
    "sampling/capped": "`grpo` with another engine: share of ratios above the cap",
    "routes/differing": "`rollout.routes: replay`: share of experts that the trainer's router would not have picked",
    "routes/conflicts": "`rollout.routes: replay`: share of shared tokens that went elsewhere in a later rollout",
    "routes/logp_difference_without": "`rollout.routes: replay`: mean difference to the engine with the router's own "
    "picks, of the step's first rows (with replay: `sampling/sampling_logp_difference/mean`)",
    "teacher/reverse_kl": "`grpo.teacher`: mean divergence from the teacher on sampled tokens, nats a token",
    "rollouts/idle": "`rollout.engine: server`: seconds that the step waited for its rollouts",
    "rollouts/age/mean": "`rollout.engine: server`: mean number of steps since a group's weights were new",
    "rollouts/age/max": "`rollout.engine: server`: the largest",
    "rollouts/group_seconds/p95": "`rollout.engine: server`: seconds that 95 of 100 groups take at most",
    "rollouts/advised_staleness": "`rollout.engine: server`: `rollout.staleness` that leaves little to wait for",
    "step_time": "`grpo`: seconds of a step, rollouts included",
}
"""Number of a line of `metrics.jsonl` -> what it is. `dpo`: also with `losses: kto`."""

EVALUATION_METRICS: Mapping[str, str] = {
    "step": "optimizer steps done",
    "who": "`tuned`, or `base` for the model without its adapter",
    "engine": "what sampled: `transformers`, the model in memory, or `server`, those of `rollout.server`",
    "seconds": "time of the evaluation",
    "channel_correct": "share of samples that break no rule of the checker",
    "channel_correct_low": "lower end of its 95% interval",
    "channel_correct_high": "upper end of it",
    "channel_correct/<effort>": "the same share at one effort",
    "with_analysis": "share of samples with a non-empty analysis",
    "valid_calls": "share of calls that break no rule of tools",
    "right": "share of samples with a truth that score 1: answers and expected calls",
    "right/<effort>": "the same at one effort",
    "right_answers": "of those that ask for an answer",
    "right_calls": "of those that ask for a call: its tool and its arguments",
    "score": "mean score of all samples with a truth, 0 to 1",
    "scorer_failures": "samples whose scorer raised, hung or gave no number",
    "violations/<code>": "share of samples that break a rule",
    "analysis_tokens/<effort>": "mean length of the analysis at an effort",
    "final_tokens/<effort>": "mean length of the final at an effort",
    "<task>/rewards/<reward>": "`eval.tasks`, and prompts with tools (`prompts`): mean of a reward over valid rollouts",
    "<task>/score": "mean score there, 0 to 1",
    "<task>/turns": "mean number of user messages of a rollout there",
    "<task>/calls": "mean number of calls of a rollout there",
    "<task>/faults": "share of those calls that failed",
    "<task>/invalid": "share of rollouts whose environment or own reward failed",
    "<task>/channel_correct": "share of rollouts that break no rule of the checker",
    "effort_growth": "how many times longer the analysis is at the highest effort than at the lowest",
}
"""Number of a line of `eval/metrics.jsonl` -> what it is; trackers have them as `eval/...` and `eval_base/...`."""

ROUTING_METRICS: Mapping[str, str] = {
    "step": "optimizer steps done",
    "experts_with_gradient": "by projection and layer, experts whose adapter had a gradient",
    "adapter/experts_with_gradient": "the smallest share of them of a projection",
    "load": "by layer, share of tokens that each expert gets, on the first rows of training",
    "entropy": "by layer, entropy of that load, 1 where all are alike",
    "router/entropy": "mean of it",
    "router/largest_load": "the largest share",
    "router/drift": "distance of the loads from those of the base: 0 the same, 1 disjoint experts",
    "router/changed": "share of picks of an expert that the base did not make for the same token",
}
"""Number of a line of `adapter.jsonl` -> what it is."""


def meaning_of(name: str, table: Mapping[str, str]) -> str | None:
    """What a number or a path is; of several patterns the one with the fewest angle brackets."""
    if name in table:
        return table[name]
    fitting = [pattern for pattern in table if "<" in pattern and _expression(pattern).fullmatch(name)]
    return table[min(fitting, key=lambda pattern: pattern.count("<"))] if fitting else None


def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"<\w+>", r"[\\w.-]+", re.sub(r"[.]", r"\\.", pattern)))
