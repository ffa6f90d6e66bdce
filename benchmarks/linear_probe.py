"""What a logistic regression on the frozen model's last state reaches: how much of a task needs no adapter at all.

The state is the one behind a prompt's last token, from which a causal model reads its answer. The strength of the
regression's penalty is chosen by validation NLL. Rows, wording and seeds are those of a plan's cells; states of frozen
layers that its cells have computed are taken from their folder.

    python -m benchmarks.linear_probe recipes/llm/trec6.yaml --data DATA           # a table in Markdown
    python -m benchmarks.linear_probe recipes/llm/trec6.yaml --data DATA --json
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from varlora.compare.plan_file import read_plan
from varlora.metrics import METRICS, evaluate
from varlora.readout.answer_logits import last_positions
from varlora.readout.readout import AnswerTokens
from varlora.report.seeds import over_seeds
from varlora.runs.batching import batch_by_length
from varlora.runs.config import RunConfig
from varlora.runs.predict import frozen_layers_once
from varlora.runs.setting import Setting, load_setting

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of scikit-learn's C, the inverse of the penalty, that validation rows choose from."""
SHOWN = ("accuracy", "nll", "ece_15", "brier")


@torch.inference_mode()
def last_states(setting: Setting, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The states (N, H) behind the last token of a split's prompts, and its labels (N,)."""
    batches, back, _ = batch_by_length(setting, setting.encoded(split))
    trunk = setting.model.get_base_model().get_decoder()
    states, labels = list[Tensor](), list[Tensor]()
    with frozen_layers_once(setting):
        for batch in batches:
            mask = batch["attention_mask"]
            hidden = trunk(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
            states.append(hidden[torch.arange(len(mask)), last_positions(mask)].float())
            labels.append(batch["labels"])
    return torch.cat(states)[back].numpy(), torch.cat(labels)[back].numpy()


def probe(config: RunConfig) -> dict[str, Mapping[str, float]]:
    """Metrics of the regression by split.

    Raises:
        ValueError: the answers are no single tokens of a causal model.
    """
    setting = load_setting(config)
    if not isinstance(setting.readout, AnswerTokens):
        raise ValueError(
            f"a probe reads a causal model's answer tokens, and {config.task} is read by {setting.readout!r}."
        )
    setting.model.eval()
    rows = {split: last_states(setting, split) for split in setting.task.splits}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fits = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(*rows["train"])
            for c in PENALTIES
        ]
    answers = len(setting.task.answers)

    def log_probs(fit: Any, split: str) -> Tensor:
        full = np.full((len(rows[split][0]), answers), np.log(1e-6))  # of an answer that no training row has
        full[:, fit.classes_] = fit.predict_log_proba(rows[split][0])
        return torch.as_tensor(full).log_softmax(-1)

    def measure(fit: Any, split: str) -> Mapping[str, float]:
        return evaluate(log_probs(fit, split), torch.as_tensor(rows[split][1]))

    best = min(fits, key=lambda fit: measure(fit, "validation")["nll"])
    return {split: measure(best, split) for split in setting.task.splits if split not in ("train", "validation")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan")
    parser.add_argument("--data")
    parser.add_argument("--output_dir", help="of the plan's cells, whose frozen layers' states are taken")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    plan = read_plan(options.plan, data=options.data, output_dir=options.output_dir)
    method = next(iter(plan.methods))
    probes = [
        {"model": model, "task": task, "seed": seed, "splits": probe(plan.cell(model, task, method, seed).config)}
        for model in plan.models
        for task in plan.tasks
        for seed in plan.seeds
    ]
    if options.json:
        print(json.dumps(probes, indent=2, default=float))
        return
    print(f"| model | task | split | {' | '.join(METRICS[name].heading for name in SHOWN)} |")
    print("| --- " * (3 + len(SHOWN)) + "|")
    for model in plan.models:
        for task in plan.tasks:
            by_seed = [one["splits"] for one in probes if (one["model"], one["task"]) == (model, task)]
            for split in by_seed[0]:
                cells = [_cell(name, [splits[split][name] for splits in by_seed]) for name in SHOWN]
                print(f"| {model} | {task} | {split} | {' | '.join(cells)} |")


def _cell(name: str, values: Sequence[float]) -> str:
    """The mean over seeds ± its standard error."""
    seeds = over_seeds(values)
    return METRICS[name].show(seeds.mean) + ("" if seeds.se is None else f" ± {METRICS[name].show(seeds.se)}")


if __name__ == "__main__":
    main()
