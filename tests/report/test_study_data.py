import json
import math

import pytest

from varlora.metrics import reliability_bins, risk_coverage
from varlora.report import results_table
from varlora.report.study import Block, Example, ModuleScale, Study, TrainingCurve
from varlora.report.study_data import EXAMPLES, most_telling, place_of, study_data


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("base_model.model.model.layers.11.self_attn.q_proj.lora_A.weight", (11, "q_proj A")),
        ("base_model.model.model.layers.0.mlp.down_proj.lora_B.weight", (0, "down_proj B")),
        ("base_model.model.bert.encoder.layer.5.attention.self.query.lora_A.weight", (5, "query A")),
        ("base_model.model.transformer.h.3.attn.c_attn.lora_B.weight", (3, "c_attn B")),
        ("base_model.model.model.layers.2.self_attn.q_proj.lora_magnitude_vector", (2, "q_proj magnitude")),
        ("base_model.model.classifier.weight", (None, "classifier")),
        ("base_model.model.classifier.bias", (None, "classifier.bias")),
        ("base_model.model.model.embed_tokens.lora_embedding_A", (None, "embed_tokens A")),
        ("weight", (None, "weight")),
    ],
)
def test_layer_and_module_of_a_tensor(key: str, place: tuple[int | None, str]) -> None:
    assert place_of(key) == place


def test_tables_are_exact(study: Study) -> None:
    data = study_data(study)
    comparison = study.blocks[0].comparison
    assert comparison is not None
    for split in comparison.splits:
        shown = data["blocks"][0]["splits"][split]["results"]["rows"]
        summaries = comparison.summary(split)
        assert [row["name"] for row in shown] == list(summaries)
        for row in shown:
            for cell in row["cells"]:
                estimate = summaries[row["name"]].metrics[cell["metric"]]
                numbers = [part["value"] for line in cell["lines"] for part in line if not isinstance(part, str)]
                assert numbers == [estimate.mean, estimate.se, estimate.low, estimate.high]
    assert results_table(comparison).caption == data["blocks"][0]["splits"]["test"]["results"]["caption"]


def test_figures_are_those_of_the_metrics(study: Study) -> None:
    split = study_data(study)["blocks"][1]["splits"]["test"]
    comparison = study.blocks[1].comparison
    assert comparison is not None
    for method in comparison.methods:
        runs = comparison.runs(method, "test")
        curves = [risk_coverage(row.examples.confidence, row.examples.correct)[1] for row in runs]
        last = [float(curve[-1]) for curve in curves]
        assert math.isclose(split["risk"][method]["risk"][-1], sum(last) / len(last))
        bins = split["bins"][method]
        assert sum(bin["count"] for bin in bins) == 2 * 40
        correct = sum(int(row.examples.correct.sum()) for row in runs)
        assert sum(bin["right"] for bin in bins) == correct
        assert sum(bin["wrong"] for bin in bins) == 2 * 40 - correct
    assert len(bins) == len(reliability_bins(runs[0].examples.confidence, runs[0].examples.correct))


def test_json_has_it_all_and_the_same_every_time(study: Study) -> None:
    first, second = (json.dumps(study_data(study), allow_nan=False) for _ in range(2))
    assert first == second
    data = json.loads(first)
    assert [block["task"] for block in data["blocks"]] == ["first", "second", "third"]
    assert data["blocks"][2]["splits"] == {}
    assert len(data["blocks"][0]["scales"]["tensors"]) == 12 * 7 * 2
    assert data["blocks"][0]["frontiers"][0]["points"][0]["value"] == 0.0
    assert [row["name"] for row in data["overview"]["test"]["record"]["rows"]] == [
        "AdamW + temperature",
        "IVON, 10 samples",
    ]
    assert data["overview"]["test"]["metrics"]["nll"]["headings"] == ["NLL ↓", "first", "second"]


def example(number: int, probability: float, information: float, label: str = "A") -> Example:
    return Example(
        id=str(number),
        prompt="?",
        label=label,
        probabilities={"IVON": (1 - probability, probability), "AdamW": (0.9, 0.1)},
        mutual_information={"IVON": information},
    )


def test_the_most_confident_errors_and_the_highest_information() -> None:
    examples = [example(i, 0.5 + 0.01 * i, 0.1) for i in range(20)]  # all wrong: the answer is B
    examples += [example(20, 0.1, 0.9), example(21, 0.1, 0.8)]  # right, with draws that disagree
    chosen = most_telling(examples, ("A", "B"), cap=2)
    assert [e.id for e in chosen] == ["18", "19", "20", "21"]
    assert EXAMPLES == 20


def test_an_answer_is_named_with_its_probabilities() -> None:
    block = Block(model="m", task="t", comparison=None, examples=(example(0, 0.8, 0.3),), classes=("A", "B"))
    (shown,) = study_data(Study(name="s", reference="r", blocks=(block,)))["blocks"][0]["examples"]
    assert shown["answers"]["IVON"] == {
        "answer": "B",
        "confidence": 0.8,
        "right": 1 - 0.8,
        "mutual_information": 0.3,
    }
    assert shown["answers"]["AdamW"]["mutual_information"] is None


def test_numbers_that_json_lacks_are_none(study: Study) -> None:
    empty = study_data(study)["blocks"][0]["splits"]["test"]["bins"]["AdamW"][0]
    assert (empty["count"], empty["confidence"], empty["accuracy"]) == (0, None, None)


def test_long_curves_are_thinned_and_gaps_left_out() -> None:
    steps = tuple(range(1, 2002))
    curve = TrainingCurve(
        label="ivon",
        seed=0,
        steps=steps,
        values={"loss": tuple(1.0 / s for s in steps), "eval_loss": (None,) * 2000 + (0.5,), "ess": (None,) * 2001},
    )
    block = Block(model="m", task="t", comparison=None, curves=(curve,))
    (shown,) = study_data(Study(name="s", reference="r", blocks=(block,)))["blocks"][0]["curves"]
    loss = shown["values"]["loss"]
    assert len(loss["steps"]) == len(loss["values"]) <= 150
    assert loss["steps"][-1] == 2001
    assert len(set(map(int.__sub__, loss["steps"][1:], loss["steps"][:-1]))) == 1
    assert loss["values"] == [1.0 / step for step in loss["steps"]]
    assert shown["values"]["eval_loss"] == {"steps": [2001], "values": [0.5]}
    assert shown["values"]["ess"] == {"steps": [], "values": []}


def test_trainings_with_different_tensors_have_gaps() -> None:
    def scale(label: str, side: str, std: float) -> ModuleScale:
        key = f"layers.0.q_proj.lora_{side}.weight"
        return ModuleScale(label=label, seed=0, key=key, std=std, weights=1.0, snr=math.inf, entries=4)

    scales = (scale("ivon", "A", 0.1), scale("ivon", "B", 0.2), scale("laplace", "B", 0.3))
    block = Block(model="m", task="t", comparison=None, scales=scales)
    shown = study_data(Study(name="s", reference="r", blocks=(block,)))["blocks"][0]["scales"]
    assert [tensor["module"] for tensor in shown["tensors"]] == ["q_proj A", "q_proj B"]
    assert [(m["label"], m["std"], m["snr"]) for m in shown["maps"]] == [
        ("ivon", [0.1, 0.2], [None, None]),
        ("laplace", [None, 0.3], [None, None]),
    ]


def test_completions_are_a_table_of_their_own() -> None:
    block = Block(model="m", task="t", comparison=None, completions={"test": {"ivon": {"exact_match": (0.5, 0.75)}}})
    (table,) = study_data(Study(name="s", reference="r", blocks=(block,)))["blocks"][0]["completions"]
    assert table["headings"] == ["Method", "Exact match % ↑"]
    assert table["rows"][0]["cells"][0]["lines"][0][0] == {"text": "62.5", "value": 0.625}
