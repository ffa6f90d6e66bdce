"""Texts by draw: coherent draws, a restored model, the vote, and the file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from sklearn.metrics import roc_auc_score

from models import lora, tiny_llama
from readout.test_frozen_layers_decoders import CONFIGS, adapted
from texts_of_draws import OPTIONS, ROWS, TOKENIZER, batches, posterior
from varlora.adapters import applied, trained_tensors
from varlora.posterior import DropoutMasks, Mixture, PointMass, batched_draws
from varlora.posterior.draws import weight_draws
from varlora.prediction.averaged_texts import generate_averaged
from varlora.prediction.decoding import Greedy
from varlora.prediction.generation import Generations, generate
from varlora.readout.draws_as_rows import DrawsAsRows, _OncePerBatch


@pytest.fixture
def model() -> PeftModel:
    return lora(tiny_llama(vocab_size=len(TOKENIZER)), task_type="CAUSAL_LM", lora_dropout=0.3)


def texts_at(model: PeftModel, weights: Any) -> list[str]:
    with applied(model, weights):
        model.eval()
        return [Greedy(model, TOKENIZER, 6)(batches(1)[i]).texts[0] for i in range(len(ROWS))]


def test_one_set_of_weights_writes_all_texts_of_a_draw(model: PeftModel) -> None:
    q = posterior(model)
    found = generate(model, q, batches(), 5, seed=3, **OPTIONS)

    draws = [texts_at(model, weights) for weights in weight_draws(q, 5, seed=3)]
    assert [list(column) for column in zip(*found.texts, strict=True)] == draws
    assert len({tuple(draw) for draw in draws}) > 1, "the draws must differ for this to show anything"
    assert (found.mode, found.antithetic, found.seed, found.ids) == ("samples", True, 3, ("0", "1", "2", "3"))
    assert generate(model, q, batches(1), 5, seed=3, **OPTIONS).texts == found.texts
    assert generate(model, q, batches(), 5, seed=4, **OPTIONS).texts != found.texts
    independent = generate(model, q, batches(), 5, seed=3, antithetic=False, **OPTIONS)
    expected = [texts_at(model, weights) for weights in weight_draws(q, 5, antithetic=False, seed=3)]
    assert [list(column) for column in zip(*independent.texts, strict=True)] == expected


def test_all_draws_write_in_one_call_of_generate(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    q, rows = posterior(model), []
    alone = generate(model, q, batches(), 5, seed=3, **OPTIONS)
    call = Greedy.__call__
    monkeypatch.setattr(Greedy, "__call__", lambda *args: rows.append(len(args[1]["input_ids"])) or call(*args))
    together = generate(model, q, batches(), 5, seed=3, **OPTIONS)
    assert rows == [10, 10], "five draws of two prompts"
    rows.clear()
    monkeypatch.setitem(batched_draws.TOKENS, "cpu", 1)
    in_turn = generate(model, q, batches(), 5, seed=3, **OPTIONS)
    assert rows == [2] * 10
    assert alone.texts == together.texts == in_turn.texts
    assert torch.equal(together.num_tokens, in_turn.num_tokens)
    assert torch.equal(together.finished, in_turn.finished)
    torch.testing.assert_close(together.log_likelihoods, in_turn.log_likelihoods, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_that_no_draw_changes_write_once_for_all_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = copy.deepcopy(CONFIGS[name])
    config.vocab_size = len(TOKENIZER)
    model = adapted(config)  # the upper two of four layers
    q, below, above = posterior(model, 1.0), list[int](), list[int]()
    layers = model.get_base_model().model.layers
    layers[1].self_attn.register_forward_hook(lambda *a: below.append(len(a[2][0])))
    layers[2].self_attn.register_forward_hook(lambda *a: above.append(len(a[2][0])))
    generate(model, q, batches(), 5, seed=3, **OPTIONS)  # which compares once
    below.clear(), above.clear()
    together = generate(model, q, batches(), 5, seed=3, **OPTIONS)
    assert set(above) == {10}, "five draws of two prompts"
    assert below[0] == 2, "the prompts are the same for all draws"
    assert 10 in below, "the draws must differ for this to show anything"
    below.clear()
    averaged = generate_averaged(model, q, batches(), 5, seed=3, **OPTIONS)
    assert set(below) == {2}
    monkeypatch.setitem(batched_draws.TOKENS, "cpu", 1)
    monkeypatch.setattr(DrawsAsRows, "shares_lower_layers", False)
    above.clear()
    in_turn = generate(model, q, batches(), 5, seed=3, **OPTIONS)
    assert set(above) == {2}
    assert together.texts == in_turn.texts
    torch.testing.assert_close(together.log_likelihoods, in_turn.log_likelihoods, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(_OncePerBatch, "begin", lambda self, given: setattr(self, "rows", None))
    for one, other in zip(averaged, generate_averaged(model, q, batches(), 5, seed=3, **OPTIONS), strict=True):
        assert one.text == other.text
        torch.testing.assert_close(one.mutual_information, other.mutual_information, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "tokens"), [("llama", 1), ("gemma3", 1), ("mistral", 4)])
def test_layers_that_no_draw_changes_read_a_prompt_once_for_draws_in_several_calls(
    name: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy.deepcopy(CONFIGS[name])
    config.vocab_size = len(TOKENIZER)
    model = adapted(config)
    q, read = posterior(model, 1.0), {1: list[int](), 2: list[int]()}  # the rows of prompts, by layer
    for number, rows in read.items():
        attention = model.get_base_model().model.layers[number].self_attn
        attention.register_forward_hook(
            lambda *a, rows=rows: rows.append(len(a[2][0])) if a[2][0].shape[1] > 1 else None
        )
    together = generate(model, q, batches(), 5, seed=3, **OPTIONS)
    monkeypatch.setitem(batched_draws.TOKENS, "cpu", tokens)  # a draw in each call, or two
    [rows.clear() for rows in read.values()]
    apart = generate(model, q, batches(), 5, seed=3, **OPTIONS)
    assert read == {1: [2, 2], 2: ([2] * 5 if tokens == 1 else [4, 4, 2]) * 2}
    assert apart.texts == together.texts
    torch.testing.assert_close(apart.log_likelihoods, together.log_likelihoods, atol=1e-5, rtol=1e-5)


def test_the_point_is_written_with_at_zero_draws(model: PeftModel) -> None:
    q = posterior(model)
    at_mean = generate(model, q, batches(), 0, **OPTIONS)

    assert [row[0] for row in at_mean.texts] == texts_at(model, q.mean)
    assert (at_mean.mode, at_mean.seed, at_mean.num_draws) == ("mean", None, 1)
    assert generate(model, PointMass(mean=q.mean), batches(), **OPTIONS).texts == at_mean.texts
    assert generate(model, None, batches(), **OPTIONS).mode == "model"


def test_a_mixture_and_dropout_masks_write_with_their_own_draws(model: PeftModel) -> None:
    q = posterior(model)
    members = [PointMass(mean=dict(weights)) for weights in weight_draws(q, 3, antithetic=False, seed=8)]
    found = generate(model, Mixture(components=members), batches(), 10, **OPTIONS)
    assert [list(column) for column in zip(*found.texts, strict=True)] == [texts_at(model, m.mean) for m in members]

    masks = DropoutMasks(mean=q.mean, rate=0.3)
    first = generate(model, masks, batches(), 4, seed=1, **OPTIONS)
    assert first.texts == generate(model, masks, batches(), 4, seed=1, **OPTIONS).texts
    assert len({tuple(draw) for draw in zip(*first.texts, strict=True)}) > 1


def test_the_model_and_the_random_state_are_what_they_were(model: PeftModel) -> None:
    model.train()
    before = {key: p.detach().clone() for key, p in trained_tensors(model).items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    generate(model, posterior(model), batches(), 3, **OPTIONS)

    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p, before[key]) for key, p in trained_tensors(model).items())


def test_nonsense_is_refused(model: PeftModel) -> None:
    q = posterior(model)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        generate(model, q, batches(), tokenizer=TOKENIZER, max_new_tokens=0)
    with pytest.raises(ValueError, match="there is no batch"):
        generate(model, q, [], **OPTIONS)
    with torch.no_grad():
        model.get_base_model().model.embed_tokens.weight[9] = torch.nan
    with pytest.raises(ValueError, match="NaN logits, first for prompt 2"):
        generate(model, q, batches(), 0, tokenizer=TOKENIZER, max_new_tokens=1)


def some(**options: Any) -> Generations:
    """Six rows of three draws; right are rows 0, 1 and 2."""
    texts = (
        ("#### 1", "so 1", "9"),
        ("2", "2.0", "$2"),
        ("3", "3", "x"),
        ("8", "8", "4"),
        ("7", "8", "5"),
        ("x", "y", "z"),
    )
    given: dict[str, Any] = {
        "texts": texts,
        "num_tokens": torch.tensor([[2, 2, 1]] * 6),
        "log_likelihoods": torch.tensor(
            [[-2.0, -4, -1], [-2, -2, -2], [-4, -4, -2], [-6, -6, -3]] + [[-2, -2, -3]] * 2
        ).double(),
        "finished": torch.tensor([[True, True, False]] * 6),
        "references": ("1", "2", "3", "4", "5", "6"),
        "final_answer": "number",
        "max_new_tokens": 2,
        "mode": "samples",
    }
    return Generations(**{**given, **options})


def test_the_vote_and_its_metrics_are_counted_by_hand() -> None:
    found = some()

    assert found.majority == ("1", "2", "3", "8", "7", None)
    assert found.agreement.tolist() == pytest.approx([2 / 3, 1, 2 / 3, 2 / 3, 1 / 3, 0])
    likelihood = [-(1 + 2 + 1) / 3, -(1 + 1 + 2) / 3, -2, -3, -5 / 3, -5 / 3]
    assert found.log_likelihood_per_token.tolist() == pytest.approx(likelihood)
    metrics = found.metrics()
    right = [1, 1, 1, 0, 0, 0]
    share = [2 / 3, 1, 2 / 3, 2 / 3, 1 / 3, 0]
    assert metrics["exact_match"] == 0.5
    assert metrics["exact_match_per_draw"] == pytest.approx((2 + 3 + 2 + 1 + 1) / 18)
    assert metrics["agreement"] == pytest.approx(sum(share) / 6)
    # (0, .1]: 0, wrong; (.3, .4]: wrong; (.6, .7]: 2 of 3 right at 2/3; 1: right.
    assert metrics["agreement_ece_10"] == pytest.approx((0 + 1 / 3 + 0 + 0) / 6)
    assert metrics["agreement_auroc"] == pytest.approx(roc_auc_score(right, share))
    assert metrics["likelihood_auroc"] == pytest.approx(roc_auc_score(right, likelihood))
    assert metrics["answered"] == pytest.approx(14 / 18)
    assert metrics["finished"] == pytest.approx(2 / 3)
    assert metrics["tokens_per_text"] == pytest.approx(5 / 3)


def test_texts_without_right_answers_have_no_metrics() -> None:
    with pytest.raises(ValueError, match="without `references`"):
        some(references=()).metrics()


def test_the_file_keeps_everything(tmp_path: Path) -> None:
    for given in (some(ids=tuple("abcdef"), antithetic=True, seed=7), some(references=(), final_answer="text")):
        loaded = Generations.load(given.save(tmp_path / "texts.parquet"))
        for name in Generations.__dataclass_fields__:
            first, second = getattr(given, name), getattr(loaded, name)
            same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
            assert same, name
    with pytest.raises(FileNotFoundError):
        Generations.load(tmp_path / "nothing")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet holds no generations"):
        Generations.load(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": ()}, "N rows of S texts"),
        ({"texts": (("a",), ("a", "b"))}, "N rows of S texts"),
        ({"num_tokens": torch.ones(6, 3)}, "num_tokens must be torch.int64 of shape"),
        ({"finished": torch.ones(6, 2, dtype=torch.bool)}, r"finished must be torch.bool of shape \(6, 3\)"),
        ({"ids": ("a",)}, "1 ids for 6 rows"),
        ({"references": ("a",)}, "1 references for 6 rows"),
        ({"final_answer": "letter"}, "allowed: number, text"),
        ({"mode": "sampled"}, "mode 'sampled'; allowed"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        some(**options)


def test_the_text_of_least_risk_is_closest_to_the_others() -> None:
    texts = (("a b c d", "a b c e", "x y"), ("p", "q", "q"))
    ones = torch.ones(2, 3, dtype=torch.int64)
    found = Generations(
        texts=texts, num_tokens=ones, finished=ones.bool(), log_likelihoods=-ones.double(), max_new_tokens=4
    )
    assert found.minimum_bayes_risk() == ("a b c d", "q")
    assert found.minimum_bayes_risk(lambda candidate, reference: -len(candidate)) == ("x y", "p")
