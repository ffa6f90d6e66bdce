"""The row of a table without training: the base model's own answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from small_runs import config, save_model
from tiny_runs import save_encoder
from varlora.methods import METHODS
from varlora.posterior import PointMass
from varlora.runs.folder import read_run
from varlora.runs.run import run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


def test_it_answers_as_the_base_model_and_its_folder_is_a_runs(model: str, tmp_path: Path) -> None:
    result = run(config(tmp_path, model, method="zero_shot"), progress=False)
    setting, finished = result.setting, read_run(tmp_path / "run")
    assert setting.readout is not None
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    encoded = setting.encoded("test")
    with torch.no_grad():
        expected = torch.cat([setting.readout.logits(base, batch) for batch in setting.batches(encoded)])

    found = finished.prediction("test", "mean")

    torch.testing.assert_close(found.log_probs[:, 0], expected.double().log_softmax(-1), rtol=0, atol=1e-5)
    assert found.ids == tuple(encoded["id"])
    assert isinstance(finished.posterior, PointMass)
    assert finished.posterior.meta.method == "zero_shot"
    assert all(not mean.any() for key, mean in finished.posterior.point.items() if "lora_B" in key)
    assert METHODS["zero_shot"]().costs().passes == 0


def test_what_has_no_effect_or_has_learned_nothing_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early_stopping has no effect on method 'zero_shot'"):
        run(config(tmp_path / "stopped", model, method="zero_shot", early_stopping=True), progress=False)
    encoder = save_encoder(tmp_path / "encoder")
    with pytest.raises(ValueError, match="a classification head begins at random"):
        run(config(tmp_path / "head", encoder, method="zero_shot"), progress=False)
