"""Texts over the endpoints that are OpenAI's, asked by the openai client of tiny models."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch
from peft import PeftModel

from models import lora, tiny_llama
from serving import served
from tiny_runs import CHAT_TEMPLATE
from tiny_tokenizers import byte_bpe
from varlora.posterior import DiagonalGaussian, point_mass_of
from varlora.prediction.generation import generate
from varlora.serve import ServeSettings, create_app, language_model
from varlora.serve.language_model import LanguageModel, add_adapter

PROMPTS = ("a fine film", "Question: which one barks?", "A. cat B. dog C. cow D. hen Answer:", "x")
SAMPLES = 6


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = byte_bpe()
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> PeftModel:
    return lora(tiny_llama(vocab_size=len(tokenizer)), task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def posterior(model: PeftModel) -> DiagonalGaussian:
    mean = {key: tensor.clone() for key, tensor in point_mass_of(model, method="ivon").mean.items()}
    return DiagonalGaussian(mean=mean, precision={key: torch.full_like(t, 40.0) for key, t in mean.items()})


@pytest.fixture(scope="module")
def base_url(model: PeftModel, tokenizer: Any, posterior: DiagonalGaussian) -> Iterator[str]:
    other = {key: -tensor for key, tensor in posterior.mean.items()}
    add_adapter(model, "other", model.peft_config["default"], other)
    shared: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    models = {
        "drawn": LanguageModel(name="drawn", adapter="default", posterior=posterior, samples=SAMPLES, **shared),
        "other": LanguageModel(name="other", adapter="other", **shared),
        "base": LanguageModel(name="base", adapter=None, **shared),
    }
    with served(create_app(models, settings=ServeSettings(max_rows=64))) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as made:
        yield made


def test_draws_that_fail_half_way_leave_no_adapter_behind(
    tokenizer: Any, posterior: DiagonalGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = lora(tiny_llama(vocab_size=len(tokenizer)), task_type="CAUSAL_LM")
    made = LanguageModel(
        name="drawn", adapter="default", posterior=posterior, samples=3, model=own, tokenizer=tokenizer
    )
    write, calls = language_model.set_peft_model_state_dict, itertools.count(1)

    def fail_at_the_second(*given: Any, **named: Any) -> Any:
        if next(calls) == 2:
            raise MemoryError("no room")
        return write(*given, **named)

    monkeypatch.setattr(language_model, "set_peft_model_state_dict", fail_at_the_second)
    with pytest.raises(MemoryError):
        made.adapters(2)
    assert (list(own.peft_config), own.active_adapter) == (["default"], "default")
    assert made.adapters(3) == [f"default-draw{number}" for number in range(3)]
    assert len(own.peft_config) == 4


def prompt_batch(tokenizer: Any, prompt: str) -> dict[str, Any]:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def written(tokenizer: Any, prompt: str, choice: Any) -> list[int]:
    """The tokens of a text whose tokens come as ids."""
    return [int(token.removeprefix("token_id:")) for token in choice.logprobs.tokens]


def log_probs_of(model: PeftModel, adapter: str, ids: torch.Tensor) -> torch.Tensor:
    former = model.active_adapter
    model.set_adapter(adapter)
    with torch.no_grad():
        found = model(input_ids=ids).logits.double().log_softmax(-1)
    model.set_adapter(former)
    return found


def test_one_token_comes_with_exact_log_probabilities(client: openai.OpenAI, model: PeftModel, tokenizer: Any) -> None:
    for prompt in PROMPTS:
        for name, adapter in (("drawn", "default"), ("other", "other")):
            completion = client.completions.create(
                model=name, prompt=prompt, max_tokens=1, logprobs=20, extra_body={"return_tokens_as_token_ids": True}
            )
            expected = log_probs_of(model, adapter, prompt_batch(tokenizer, prompt)["input_ids"])[0, -1]
            top = completion.choices[0].logprobs.top_logprobs[0]
            assert len(top) == 20
            for token, log_prob in top.items():
                assert log_prob == pytest.approx(float(expected[int(token.removeprefix("token_id:"))]), abs=1e-5)
            assert min(top.values()) == pytest.approx(float(expected.topk(20).values[-1]), abs=1e-5)


def test_named_tokens_come_however_unlikely_they_are(client: openai.OpenAI, model: PeftModel, tokenizer: Any) -> None:
    wanted = [7, 100, 250]
    completion = client.completions.create(
        model="drawn",
        prompt=[tokenizer(prompt)["input_ids"] for prompt in PROMPTS[:2]],
        max_tokens=1,
        logprobs=1,
        extra_body={"return_tokens_as_token_ids": True, "logprob_token_ids": wanted},
    )
    for choice, prompt in zip(completion.choices, PROMPTS, strict=False):
        expected = log_probs_of(model, "default", prompt_batch(tokenizer, prompt)["input_ids"])[0, -1]
        top = choice.logprobs.top_logprobs[0]
        for token in wanted:
            assert top[f"token_id:{token}"] == pytest.approx(float(expected[token]), abs=1e-5)


def test_an_echoed_prompt_is_scored(client: openai.OpenAI, model: PeftModel, tokenizer: Any) -> None:
    prompt = PROMPTS[2]
    ids = prompt_batch(tokenizer, prompt)["input_ids"]
    expected = log_probs_of(model, "default", ids)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    completion = client.completions.create(model="drawn", prompt=prompt, max_tokens=0, logprobs=1, echo=True)
    choice = completion.choices[0]
    assert choice.text == prompt
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected.tolist(), abs=1e-5)
    assert "".join(choice.logprobs.tokens) == prompt


def test_greedy_texts_are_the_librarys_alone_and_together(
    client: openai.OpenAI, model: PeftModel, tokenizer: Any
) -> None:
    model.set_adapter("default")
    expected = {
        prompt: generate(model, None, [prompt_batch(tokenizer, prompt)], tokenizer=tokenizer, max_new_tokens=12)
        for prompt in PROMPTS
    }

    def ask(n: int) -> Any:
        name = ("drawn", "other", "base")[n % 3]
        return client.completions.create(model=name, prompt=PROMPTS[n // 3 % 4], max_tokens=12, logprobs=0)

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, range(36)))
    for n, completion in enumerate(together):
        choice = completion.choices[0]
        if n % 3 == 0:
            known = expected[PROMPTS[n // 3 % 4]]
            assert choice.text == known.texts[0][0]
            assert choice.varlora["log_likelihood_per_token"] == pytest.approx(
                float(known.log_likelihood_per_token), abs=1e-5
            )
            assert sum(choice.logprobs.token_logprobs) == pytest.approx(float(known.log_likelihoods), abs=1e-4)
            assert choice.finish_reason == ("stop" if bool(known.finished) else "length")
    alone = [ask(n) for n in range(3)]
    for n, completion in enumerate(together):
        if n % 12 < 3:
            assert completion.choices[0].text == alone[n % 3].choices[0].text


def test_a_vote_is_the_librarys(
    client: openai.OpenAI, model: PeftModel, tokenizer: Any, posterior: DiagonalGaussian
) -> None:
    model.set_adapter("default")
    agreements = []
    for prompt in PROMPTS:
        known = generate(
            model, posterior, [prompt_batch(tokenizer, prompt)], SAMPLES, tokenizer=tokenizer, max_new_tokens=4
        )
        completion = client.completions.create(
            model="drawn", prompt=prompt, max_tokens=4, extra_body={"samples": SAMPLES}
        )
        ours = completion.choices[0].varlora
        assert ours["answer"] == known.majority[0]
        assert ours["agreement"] == pytest.approx(float(known.agreement))
        assert completion.choices[0].text == known.texts[0][known.answers[0].index(known.majority[0])]
        assert sum(one["share"] for one in ours["answers"]) == pytest.approx(1)
        assert ours["mutual_information"] == ours["entropy"] >= 0
        agreements.append(ours["agreement"])
    assert min(agreements) < 1, "draws must differ for this to show anything"


def test_a_stream_is_the_text(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Answer: yes"}]
    options: Any = {"model": "drawn", "messages": messages, "max_tokens": 12, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].message.role == "assistant"
    pieces = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == whole.choices[0].message.content
    scored = [one for p in pieces if p.choices and p.choices[0].logprobs for one in p.choices[0].logprobs.content]
    assert [one.logprob for one in scored] == pytest.approx([one.logprob for one in whole.choices[0].logprobs.content])
    assert len(scored[0].top_logprobs) == 2
    ends = [p.choices[0].finish_reason for p in pieces if p.choices and p.choices[0].finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    assert pieces[-1].usage == whole.usage
    assert len(pieces) > 5, "the text came in one piece"
    voted = list(
        client.chat.completions.create(
            model="drawn", messages=messages, max_tokens=4, stream=True, extra_body={"samples": 4}
        )
    )
    at_once = client.chat.completions.create(model="drawn", messages=messages, max_tokens=4, extra_body={"samples": 4})
    assert "".join(p.choices[0].delta.content or "" for p in voted) == at_once.choices[0].message.content
    assert voted[-1].choices[0].varlora == at_once.choices[0].varlora


def test_a_stop_string_ends_the_text_and_is_not_in_it(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="drawn", prompt=PROMPTS[0], max_tokens=24).choices[0].text
    stop = whole[8:11]
    at = whole.index(stop)
    options: Any = {"model": "drawn", "prompt": PROMPTS[0], "max_tokens": 24, "stop": [stop], "logprobs": 0}
    choice = client.completions.create(**options).choices[0]
    assert choice.text == whole[:at]
    assert choice.finish_reason == "stop"
    assert all(offset < at for offset in choice.logprobs.text_offset)
    streamed = client.completions.create(**options, stream=True)
    assert "".join(p.choices[0].text for p in streamed if p.choices) == whole[:at]


def test_tokens_drawn_with_a_seed_can_be_repeated(client: openai.OpenAI) -> None:
    options: Any = {"model": "drawn", "prompt": PROMPTS[1], "max_tokens": 8, "temperature": 1.5, "n": 3}
    first = client.completions.create(**options, seed=5)
    assert [c.text for c in first.choices] == [c.text for c in client.completions.create(**options, seed=5).choices]
    assert len({c.text for c in first.choices}) > 1
    unseeded = client.completions.create(**{**options, "n": 1})
    again = client.completions.create(**{**options, "n": 1}, seed=unseeded.choices[0].varlora["seed"])
    assert again.choices[0].text == unseeded.choices[0].text
    narrow = client.completions.create(**{**options, "n": 2}, top_p=1e-9)
    greedy = client.completions.create(model="drawn", prompt=PROMPTS[1], max_tokens=8)
    assert {c.text for c in narrow.choices} == {greedy.choices[0].text}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"3": 1}}, "logit_bias"),
        ({"n": 2}, "n"),
        ({"top_p": 0.5}, "top_p"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 200}, "max_tokens"),
        ({"logprobs": 5000}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, 999_999]}, "prompt"),
        ({"extra_body": {"samples": SAMPLES + 1}}, "samples"),
        ({"model": "other", "extra_body": {"samples": 2}}, "samples"),
        ({"extra_body": {"chat_template": "{{ 7 * 7 }}"}}, "chat_template"),
        ({"extra_body": {"guided_json": {}}}, "guided_json"),
        ({"logprobs": 1, "extra_body": {"logprob_token_ids": [331]}}, "logprob_token_ids"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(client: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**{"model": "drawn", "prompt": "a", "max_tokens": 1, **options})
    assert refused.value.param == param
    assert param in refused.value.message


def test_what_asks_for_nothing_is_accepted(client: openai.OpenAI) -> None:
    neutral: dict[str, Any] = {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "top_p": 1, "n": 1}
    assert client.completions.create(model="drawn", prompt="a", max_tokens=1, **neutral).choices


def test_a_model_is_asked_for_what_it_does(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is drawn, other, base"):
        client.completions.create(model="nobody", prompt="a")
    assert [model.id for model in client.models.list()] == ["drawn", "other", "base"]


def test_a_vote_is_repeated_by_its_seed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "drawn", "prompt": PROMPTS[0], "max_tokens": 1, "temperature": 1, "top_p": 0.01}
    for seed in range(8):  # of some, the first draw's text is not the one that wins
        first: Any = client.completions.create(**asked, seed=seed, extra_body={"samples": SAMPLES}).choices[0]
        assert first.varlora["seed"] == seed


def test_an_answers_message_can_be_sent_back(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "a fine film"}]
    message = client.chat.completions.create(model="base", messages=messages, max_tokens=2).choices[0].message
    again = client.chat.completions.create(model="base", messages=[*messages, message, *messages], max_tokens=2)
    assert again.choices[0].finish_reason in ("stop", "length")


def test_half_a_surrogate_pair_is_no_prompt(base_url: str) -> None:
    chat = {"messages": [{"role": "user", "content": "\ud800"}]}
    for path, asked in (("completions", {"prompt": ["a", "\ud800"]}), ("chat/completions", chat)):
        body = json.dumps({"model": "base", **asked}).encode()
        answer = httpx.post(f"{base_url}/{path}", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert "surrogate" in answer.json()["error"]["message"]


def test_log_probabilities_that_would_fill_the_memory_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="log-probabilities; allowed"):
        client.completions.create(model="base", prompt="a", n=64, temperature=1, logprobs=1000, max_tokens=100)
