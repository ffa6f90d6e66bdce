"""The harness's numbers are ours: on the same prompts, at the mean and under the same draws."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from integrations.harness import PAIRS, SAMPLES, Harness, asks, log_likelihood, restored, token_log_probs
from varlora.adapters import applied
from varlora.posterior import Mixture, PointMass, PredictionConfig
from varlora.posterior.draws import weight_draws
from varlora.posterior.folder import load_posterior, save_posterior
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import choose_config
from varlora.runs.predict import predict_split
from varlora.tasks.prompts import LETTERS

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; pip install 'varlora[lm-eval]'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from varlora.integrations.lm_eval import PosteriorLM, register

OURS = "varlora.integrations"


def measured(harness: Harness, model: Any, **options: Any) -> tuple[float, Tensor, list[Mapping[str, Any]]]:
    """The harness's accuracy, its log-likelihoods (N, C), and all that it kept of the rows."""
    register()
    tasks = TaskManager(include_path=str(harness.tasks), include_defaults=False)
    options = {"batch_size": 7, "bootstrap_iters": 0, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # pip and compilers are asked for it
        found = simple_evaluate(model=model, tasks=["lettered"], task_manager=tasks, **options)
    rows = sorted(found["samples"]["lettered"], key=lambda row: row["doc_id"])
    values = torch.tensor([[value for value, _ in row["filtered_resps"]] for row in rows], dtype=torch.float64)
    return found["results"]["lettered"]["acc,none"], values, rows


def predicted(setting: Any, q: Any, samples: int) -> Prediction:
    prediction = predict_split(setting, q, "test", choose_config(q, samples))
    assert isinstance(prediction, Prediction)
    return prediction


def by_hand(setting: Any, q: Any, samples: int, pairs: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Log-likelihoods (N, S) of texts, and whether they are greedy, one plain forward each."""
    draws = []
    setting.model.eval()
    for weights in weight_draws(q, samples, seed=3):
        with applied(setting.model, weights):
            draws.append([log_likelihood(setting.model, setting.tokenizer, *pair) for pair in pairs])
    answers = torch.tensor(draws, dtype=torch.float64)
    return answers[..., 0].T, answers[..., 1].T


def log_mean(values: Tensor) -> Tensor:
    return values.exp().mean(dim=-1).log()


@pytest.mark.parametrize("samples", [0, SAMPLES])
def test_its_accuracy_and_its_probabilities_are_ours(harness: Harness, setting: Any, samples: int) -> None:
    q = load_posterior(harness.run)
    prediction = predicted(setting, q, samples)
    assert prediction.num_draws == max(samples, 1)
    assert samples == 0 or float(prediction.log_probs.std(dim=1).max()) > 0.3, "the draws should differ"
    arguments = {"posterior": str(harness.run), **({"samples": 0} if samples == 0 else {})}

    accuracy, values, rows = measured(harness, "varlora", model_args=arguments)

    assert [row["arguments"][0][0] for row in rows] == setting.task.rows("test")["prompt"]
    assert [pair[1] for pair in rows[0]["arguments"]] == [f" {letter}" for letter in LETTERS[:4]]
    assert torch.equal(values.argmax(1), prediction.probs.argmax(1))
    assert accuracy == float((prediction.probs.argmax(1) == prediction.labels).double().mean())
    torch.testing.assert_close(values.softmax(1).log(), prediction.probs.log(), atol=1e-5, rtol=0)


def test_the_seed_decides_the_draws_as_in_predict(harness: Harness, setting: Any) -> None:
    q = load_posterior(harness.run)
    other = dataclasses.replace(setting, config=dataclasses.replace(setting.config, seed=4))

    _, values, _ = measured(harness, PosteriorLM(str(harness.run), seed=4, samples=4))

    torch.testing.assert_close(values.softmax(1), predicted(other, q, 4).probs, atol=1e-6, rtol=0)
    assert (values.softmax(1) - predicted(setting, q, 4).probs).abs().max() > 1e-3


def test_a_texts_probability_is_averaged_over_the_draws(harness: Harness, setting: Any) -> None:
    drawn, _ = by_hand(setting, load_posterior(harness.run), SAMPLES, PAIRS)

    for average in ("choices", "completions"):  # a request of no row is no choice
        found = PosteriorLM(str(harness.run), average=average, batch_size=2).loglikelihood(asks(*PAIRS))
        values = torch.tensor([value for value, _ in found], dtype=torch.float64)
        torch.testing.assert_close(values, log_mean(drawn), atol=1e-5, rtol=0)


def test_a_rows_choices_divide_each_draws_probability(lm: PosteriorLM, harness: Harness, setting: Any) -> None:
    pairs = PAIRS[:2]
    drawn, _ = by_hand(setting, load_posterior(harness.run), SAMPLES, pairs)
    shares = drawn.softmax(0)
    expected = shares.mean(1).log() + log_mean(drawn.logsumexp(0))
    repeated = asks(*pairs, row=7)
    without_text = asks(*[("", answer) for _, answer in pairs], row=7)  # as the harness asks for acc_mutual_info

    found = lm.loglikelihood([*repeated, repeated[1], *without_text])  # the harness may repeat a request

    values = torch.tensor([value for value, _ in found], dtype=torch.float64)
    torch.testing.assert_close(values[[0, 1, 2]], expected[[0, 1, 1]], atol=1e-5, rtol=0)
    alone = torch.tensor([value for value, _ in lm.loglikelihood(without_text)], dtype=torch.float64)
    torch.testing.assert_close(values[3:], alone)
    assert (expected - log_mean(drawn)).abs().max() > 1e-3, "the two averages should differ"


def test_greedy_is_what_most_draws_write(lm: PosteriorLM, harness: Harness, setting: Any) -> None:
    start = "What will mik want?\nA. lamps\nB. ropes\nC. books\nD. knives\nAnswer:"
    pairs = [(start, f" {letter}") for letter in "ABCD"]
    _, greedy = by_hand(setting, load_posterior(harness.run), SAMPLES, pairs)
    assert ((greedy.mean(1) > 0) & (greedy.mean(1) < 1)).any(), "the draws should disagree"

    assert [greedy for _, greedy in lm.loglikelihood(asks(*pairs, row=0))] == (greedy.sum(1) > SAMPLES / 2).tolist()


def test_a_document_is_read_by_one_draw_at_a_time(harness: Harness, setting: Any) -> None:
    text = "What will mik want?\nA. lamps\nB. ropes\nC. books\nD. knives\nAnswer: A"
    ids = setting.tokenizer(text)["input_ids"]
    assert len(ids) > 12, "more than one window"
    lm = PosteriorLM(str(harness.run), max_length=6, batch_size=1)
    drawn = []
    for weights in weight_draws(load_posterior(harness.run), SAMPLES, seed=3):
        with applied(setting.model, weights):
            drawn.append(sum(_window(setting.model, lm.prefix_token_id, ids, start) for start in range(0, len(ids), 6)))

    found = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])

    assert found == [pytest.approx(float(log_mean(torch.tensor(drawn, dtype=torch.float64))), abs=1e-4)]


def _window(model: Any, prefix: int, ids: list[int], start: int) -> float:
    """The harness's windows: the first after a prefix; each predicts up to six tokens from up to six before."""
    end = min(start + 6, len(ids))
    before = [prefix] if start == 0 else ids[max(end - 7, 0) : start]
    seen = [*before, *ids[start:end]]
    rows = token_log_probs(model, seen)[len(before) - 1 :]
    return float(rows.gather(1, torch.tensor(ids[start:end])[:, None]).sum())


def test_texts_are_written_at_the_point(
    lm: PosteriorLM, harness: Harness, setting: Any, caplog: pytest.LogCaptureFixture
) -> None:
    source = torch.Generator().manual_seed(0)
    point = load_posterior(harness.run).point
    other = PointMass(mean={key: torch.randn(mean.shape, generator=source) for key, mean in point.items()})
    context = "What will mik want?"
    inputs = setting.tokenizer(context, return_tensors="pt")["input_ids"]
    request = Instance("generate_until", {}, (context, {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}), 0)
    written = []
    setting.model.eval()
    for q in (lm.q, other):
        with applied(setting.model, q.point):
            tokens = setting.model.generate(input_ids=inputs, max_new_tokens=8, do_sample=False)
        written.append(setting.tokenizer.decode(tokens[0, inputs.shape[1] :], skip_special_tokens=True))
    assert written[0] != written[1]

    with caplog.at_level(logging.WARNING, logger=OURS), restored(lm.model):
        assert lm.generate_until([request]) == written[:1]
    assert f"not with its {SAMPLES} draws" in caplog.text

    held, lm.q = lm.q, other  # a point that is not what the adapter's file holds
    try:
        assert lm.generate_until([request]) == written[1:]
    finally:
        lm.q = held


@pytest.mark.parametrize("method", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_weights_and_modes_are_back_after_an_exception(
    lm: PosteriorLM, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: Mapping[str, tuple[Any, ...]] = {
        "loglikelihood": PAIRS[0],
        "loglikelihood_rolling": ("What will mik want?",),
        "generate_until": ("What", {"until": ["\n"], "max_gen_toks": 8}),
    }
    calls = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append([lora.detach().clone() for name, lora in lm.model.named_parameters() if "lora_" in name])
        assert not any(module.training for module in lm.model.modules())
        if len(calls) == 3 or method == "generate_until":
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    name = "_model_generate" if method == "generate_until" else "_model_call"
    real, hook = getattr(lm, name), lm.cache_hook
    monkeypatch.setattr(lm, name, failing)
    lm.model.train()
    try:
        with restored(lm.model):
            with pytest.raises(KeyboardInterrupt):
                getattr(lm, method)([Instance(method, {}, arguments[method], 0)])
    finally:
        lm.model.eval()
    assert lm.cache_hook is hook
    if method != "generate_until":
        assert any(not torch.equal(a, b) for a, b in zip(calls[0], calls[1], strict=True)), "weights should be drawn"


def test_a_model_in_training_mode_answers_without_dropout(lm: PosteriorLM) -> None:
    expected = lm.loglikelihood(asks(*PAIRS))
    lm.model.train()
    try:
        assert lm.loglikelihood(asks(*PAIRS)) == expected
    finally:
        lm.model.eval()


def test_the_global_random_state_is_left_alone(lm: PosteriorLM) -> None:
    before = torch.get_rng_state()
    lm.loglikelihood(asks(PAIRS[0]))

    assert torch.equal(torch.get_rng_state(), before)


def tuned_posterior(harness: Harness, folder: Path) -> Any:
    chosen = PredictionConfig(samples=4, temperature=0.25, logit_temperature=1.7)
    q = load_posterior(harness.run)
    q = dataclasses.replace(q, meta=dataclasses.replace(q.meta, tuned=chosen))  # type: ignore[type-var]
    save_posterior(q, folder)
    return q


def test_it_predicts_as_was_tuned(harness: Harness, setting: Any, tmp_path: Path) -> None:
    q = tuned_posterior(harness, tmp_path / "tuned")
    setting = dataclasses.replace(setting, config=dataclasses.replace(setting.config, seed=0))  # of a folder of no run
    expected = predict_split(setting, q, "test", choose_config(q)).probs  # type: ignore[union-attr]

    _, values, _ = measured(harness, lm := PosteriorLM(str(tmp_path / "tuned")))

    assert (lm.num_draws, lm.logit_temperature) == (4, 1.7)
    torch.testing.assert_close(values.softmax(1), expected, atol=1e-6, rtol=0)
    untuned = PosteriorLM(str(tmp_path / "tuned"), untuned=True, samples=2)
    assert (untuned.q.meta.tuned, untuned.num_draws, untuned.logit_temperature) == (None, 2, 1.0)
    unscaled = PosteriorLM(str(tmp_path / "tuned"), logit_temperature=1)
    assert unscaled.loglikelihood(asks(*PAIRS[:2], row=0)) != lm.loglikelihood(asks(*PAIRS[:2], row=0))


def test_a_mixture_gives_each_of_its_members(harness: Harness, setting: Any, tmp_path: Path) -> None:
    q = load_posterior(harness.run)
    members = [PointMass(mean=dict(weights), meta=q.meta) for weights in weight_draws(q, 2, antithetic=False, seed=9)]
    save_posterior(mixture := Mixture(components=members, meta=q.meta), tmp_path / "mixture")
    drawn, _ = by_hand(setting, mixture, 2, PAIRS)

    lm = PosteriorLM(str(tmp_path / "mixture"))

    assert lm.num_draws == 2
    values = torch.tensor([value for value, _ in lm.loglikelihood(asks(*PAIRS))], dtype=torch.float64)
    torch.testing.assert_close(values, log_mean(drawn), atol=1e-5, rtol=0)


def test_a_point_mass_is_one_draw(harness: Harness, tmp_path: Path) -> None:
    q = load_posterior(harness.run)
    save_posterior(PointMass(mean=q.point, meta=q.meta), tmp_path / "point")

    lm = PosteriorLM(str(tmp_path / "point"), samples=10)

    assert (lm.num_draws, lm.sampled) == (1, False)
    assert lm.loglikelihood(asks(*PAIRS)) == PosteriorLM(str(harness.run), samples=0).loglikelihood(asks(*PAIRS))


def test_the_cache_holds_averages_and_no_draw(harness: Harness, tmp_path: Path) -> None:
    def model(**options: Any) -> PosteriorLM:
        return PosteriorLM(str(harness.run), **options)

    with pytest.raises(ValueError, match="average=completions"):
        measured(harness, model(), use_cache=str(tmp_path / "refused"))
    cache = {"use_cache": str(tmp_path / "cache")}
    stored: list[Any] = []
    first = model(average="completions")
    listening = type("Hook", (), {"add_partial": lambda self, *entry: stored.append(entry), "dbdict": {}})()
    first.set_cache_hook(listening)
    answers = first.loglikelihood(asks(*PAIRS))

    assert stored == [("loglikelihood", pair, answer) for pair, answer in zip(PAIRS, answers, strict=True)]
    _, values, _ = measured(harness, model(average="completions"), **cache)
    again = model(average="completions")
    again._model_call = pytest.fail  # all is in the cache
    assert torch.equal(measured(harness, again, **cache)[1], values)
    assert model(samples=0).set_cache_hook(listening) is None


def test_results_say_how_they_came_about(lm: PosteriorLM, harness: Harness) -> None:
    told = lm.get_model_info()["varlora"]

    assert told["posterior"] == str(harness.run)
    assert (told["method"], told["draws"], told["seed"], told["average"]) == ("ivon", SAMPLES, 3, "choices")
