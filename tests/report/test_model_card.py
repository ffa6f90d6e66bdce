import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from varlora.report import Health, model_card
from varlora.report.sampling import Paired
from varlora.report.scales import ScaleGroup, TensorScale

META: dict[str, Any] = {
    "method": "ivon",
    "num_examples": 300,
    "ess": 1e6,
    "base_model": "meta-llama/Llama-3.2-3B",
    "adapter_config": {"peft_type": "LORA"},
    "readout": {"kind": "answer_tokens", "token_ids": [3, 4], "answers": ["A", "B"]},
    "diagnostics": {"hessian_moved": {"overall": 0.031}},
    "history": [{"op": "prune", "fraction": 0.1, "by": "snr"}],
}
METRICS = {
    "test": {
        "mean": {"accuracy": 0.7, "nll": 0.8, "ece_15": 0.1},
        "samples": {"accuracy": 0.714, "nll": 0.744, "ece_15": 0.09},
    }
}


def card(**changes: Any) -> str:
    return model_card(
        name="run-1",
        kind=changes.pop("kind", "diagonal_gaussian"),
        meta={**META, **changes},
        metrics=METRICS,
        task={"name": "arc_easy", "answers": ["A", "B"], "notes": ["validation: 120 rows cut from train"]},
        versions={"varlora": "0.1.0"},
    )


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_hub_reads_the_front_matter() -> None:
    data = ModelCard(card()).data
    assert data.base_model == "meta-llama/Llama-3.2-3B"
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-generation"
    assert data.license is None
    assert "bayesian" in data.tags


@pytest.mark.parametrize("base", [None, "/home/me/models/secret", "../models/x", "./x", "a/b/c"])
def test_only_a_hub_name_becomes_base_model(base: str | None) -> None:
    assert "base_model" not in front_matter(card(base_model=base))


def test_a_local_folder_of_the_same_form_is_no_hub_name(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in front_matter(card(base_model="models/tiny"))


def test_results_and_limitations() -> None:
    lines = card().splitlines()
    assert "| test, averaged over samples | 71.4 | 0.744 | 9.0 |" in lines
    assert "- λ = 1,000,000. N is 300, so λ/N = 3,330: no distance from Bayes' rule, since h was not learned." in lines
    assert "- After training: prune (fraction 0.1, by snr)." in lines
    assert any("not learned" in line for line in lines)


def test_a_temperature_is_told_where_it_acts() -> None:
    text = card(logit_temperatures={"samples": 1.314})
    assert "| test, averaged over samples (T = 1.31) | 71.4 | 0.744 | 9.0 |" in text.splitlines()
    assert "| test, at the mean | 70.0 | 0.800 | 10.0 |" in text.splitlines()
    assert "The logits are to be divided by 1 at the mean and 1.314 averaged over samples: varlora does it" in text
    both = card(logit_temperatures={"mean": 2.0})
    assert "averaged over samples (T = 2.00)" in both
    assert "The logits are to be divided by 2: varlora does it, PEFT does not." in both
    assert "to be divided" not in card()


@pytest.mark.parametrize(("helps", "call"), [(True, "samples=10"), (False, "samples=0")])
def test_the_call_that_is_shown_draws_where_draws_help(helps: bool, call: str) -> None:
    assert f"predict(model, q, batches, {call}, readout" in card(diagnostics={"sampling": {"helps": helps, "why": ""}})
    linearised = card(linearised=True, diagnostics={"sampling": {"helps": helps, "why": ""}})
    assert ("predict_linearised" in linearised) == helps


def test_rows_that_two_splits_share_are_told() -> None:
    task = {"name": "t", "rows": {"train": 9, "test": 7}, "overlap": {"test": {"train": 2}}}
    told = "By prompt, case and spaces aside: 2 of 7 rows of test are in train."
    assert f"- {told}" in model_card(name="r", kind="point_mass", meta={}, metrics={}, task=task).splitlines()
    assert "case and spaces" not in card(), "of a run of before, nothing is known"


def test_a_mean_over_tokens_is_not_compared_with_bayes_rule_at_n() -> None:
    text = card(diagnostics={"counted": {"examples": 300, "mean_over": "tokens"}})
    assert "λ/N says nothing of Bayes' rule, which is λ = number of tokens" in text
    assert "cold posterior" not in text


def test_columns_that_were_not_read_are_told() -> None:
    task = {
        "name": "t",
        "rows": {"train": 9, "test": 7},
        "not_read": {"train": ["context"], "test": ["context", "url"]},
    }
    text = model_card(name="r", kind="point_mass", meta={}, metrics={}, task=task)
    assert "- Columns of the data not read: context, url (test)." in text.splitlines()


def test_a_point_mass_promises_no_uncertainty() -> None:
    text = card(kind="point_mass", method="temperature", logit_temperatures={"mean": 2.6}, diagnostics=None)
    assert "no uncertainty" in text
    assert "divided by 2.6" in text
    assert "λ" not in text
    assert "posterior.safetensors" not in text
    assert "samples=0" in text


@pytest.mark.parametrize("readout", [META["readout"], {"kind": "class_head", "classes": ["no", "yes", "maybe"]}])
def test_the_snippets_are_python(readout: dict[str, Any]) -> None:
    text = card(readout=readout, base_model="it's")
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        ast.parse(snippet)
    assert ("num_labels=3" in text) == (readout["kind"] == "class_head")


def test_names_cannot_break_out() -> None:
    text = model_card(
        name="# x\n<b>",
        kind="point_mass",
        meta={"method": "a|b\n# c"},
        metrics={"te|st": {"mean": {"accuracy": 0.5}}},
        task={"name": "t`\n#", "answers": ["a`b", "c"], "source": "<script>"},
    )
    assert "<b>" not in text
    assert "<script>" not in text
    assert "`` a`b ``" in text
    assert re.findall(r"^#+ .*", text, flags=re.MULTILINE) == [
        "# \\# x &lt;b&gt;",
        "## Task: t\\` \\#",
        "## Results",
        "## Limitations",
    ]


def test_health_stands_between_results_and_loading() -> None:
    health = Health(
        kind="diagonal_gaussian",
        method="ivon",
        draws=10,
        sampling=Paired(difference=-0.12, standard_error=0.03),
        sampling_rows=300,
        validation_rows=300,
        hessian_moved=0.0,
        hessian_kept=True,
        groups=(ScaleGroup(name="LoRA A", tensors=(TensorScale(key="a", noise=1.0, weights=4.0, entries=1),)),),
    )
    text = model_card(name="run_1", kind=health.kind, meta=META, metrics=METRICS, health=health)
    section = text.partition("## Health of the posterior\n")[2].partition("\n## ")[0]
    assert "**Sampling helps here (validation NLL −0.12 ± 0.03, both at T = 1): use samples=10.**" in section
    assert "`varlora tune run_1` chooses how to predict with it on the 300 validation rows." in section
    assert "- **Movement of h**: 0 % median \\|h/h0 − 1\\|: kept at h0 by the recipe." in section
    assert "| LoRA A (1) | 0.25 | 0.25<br>a | 0.25<br>a |" in section
    assert text.index("## Results") < text.index("## Health") < text.index("## How to load it")
    assert "## Health" not in card()
