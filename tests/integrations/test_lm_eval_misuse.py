"""What the harness's model refuses, and what it says then."""

from __future__ import annotations

import importlib
import logging
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from integrations.harness import PAIRS, Harness, asks

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; pip install 'varlora[lm-eval]'")

from varlora.integrations.lm_eval import PosteriorLM


def test_a_base_model_that_has_moved(
    harness: Harness, lm: PosteriorLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(lm.source.base, tmp_path / "moved")

    with caplog.at_level(logging.WARNING, logger="varlora.integrations"):
        moved = PosteriorLM(str(harness.run), pretrained=str(tmp_path / "moved"), batch_size=7)

    assert f"it is used with {tmp_path / 'moved'}" in caplog.text
    assert moved.loglikelihood(asks(*PAIRS)) == lm.loglikelihood(asks(*PAIRS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": -1}, "samples is -1; allowed: 0, 1, 2"),
        ({"samples": True}, "samples is True"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"antithetic": "no"}, "antithetic is 'no'; allowed: true, false"),
        ({"untuned": 1}, "untuned is 1"),
        ({"average": "draws"}, "average is 'draws'; allowed: choices, completions"),
        ({"logit_temperature": 0}, "logit_temperature is 0"),
        ({"logit_temperature": "hot"}, "logit_temperature is 'hot'"),
        ({"logit_temperature": 2.0, "average": "completions"}, "Leave one of them out"),
        ({"temperature": 2.0}, "did you mean 'logit_temperature'"),
        ({"sample": 3}, "did you mean 'samples'"),
        ({"peft": "x"}, "peft is set by posterior=RUN"),
        ({"delta": "x"}, "delta is set by posterior=RUN"),
        ({"backend": "seq2seq"}, "backend is set by posterior=RUN"),
    ],
)
def test_arguments_that_do_not_fit(harness: Harness, options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        PosteriorLM(str(harness.run), **options)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize(
    "sizes",
    [{"hidden_size": 64}, {"num_hidden_layers": 1}, {"num_hidden_layers": 6}],
    ids=["narrow", "shallow", "deep"],
)
def test_a_base_model_that_does_not_fit(
    harness: Harness, sizes: Mapping[str, int], llama_of: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=r"does not fit .*or give the base model that it was trained on") as refused:
        PosteriorLM(str(harness.run), pretrained=str(llama_of(**sizes)))
    assert str(harness.run) in str(refused.value)


@pytest.fixture
def llama_of(tmp_path: Path) -> Callable[..., Path]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from varlora.demo.data import model_folder

    def made(**sizes: int) -> Path:
        config = AutoConfig.from_pretrained(model_folder())
        for name, value in sizes.items():
            setattr(config, name, value)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
        AutoTokenizer.from_pretrained(model_folder()).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return made


def test_a_broken_model_is_an_error_and_no_request_is_none(lm: PosteriorLM, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lm._model_call
    monkeypatch.setattr(lm, "_model_call", lambda *inputs: real(*inputs) * math.nan)

    with pytest.raises(ValueError, match="NaN log-likelihoods"):
        lm.loglikelihood(asks(*PAIRS))
    assert lm.loglikelihood([]) == lm.loglikelihood_rolling([]) == []


def test_without_the_harness_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "varlora.integrations.lm_eval")

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'varlora\[lm-eval\]'"):
        importlib.import_module("varlora.integrations.lm_eval")
