"""The adapters of an export, served plainly by `varlora serve` and averaged by a client, are the posterior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving import served
from small_runs import finish_herds, herds
from varlora import Predictor, export_adapters
from varlora.runs.folder import read_run
from varlora.serve import ServeSettings, create_app
from varlora.serve.load import LoadOptions, load_models

TEXTS = [row["text"] + " film" * (n % 3) for n, row in enumerate(herds(40))]


@pytest.mark.parametrize("style", ["varlora", "cloze"])
def test_k_plain_adapters_are_the_posterior(
    trained: Path, base: str, tmp_path: Path, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = trained if style == "varlora" else finish_herds(tmp_path, base, prompt_style=style, max_steps=4)
    run = read_run(run_folder)
    export = export_adapters(run.posterior, tmp_path / "herds", samples=3, seed=run.config.seed, source=run_folder)
    here = Predictor.from_pretrained(run_folder, samples=3).prediction(TEXTS)
    folders = {adapter.name: str(tmp_path / "herds" / adapter.name) for adapter in export.adapters}
    settings = ServeSettings(api_key="secret")

    monkeypatch.setenv("VARLORA_API_KEY", "secret")
    with served(create_app(load_models(folders, LoadOptions()), settings=settings)) as url:
        there = Predictor.from_pretrained(tmp_path / "herds", backend=f"{url}/v1").prediction(TEXTS)

    assert (there.ids, there.num_draws, there.mode) == (here.ids, 3, "samples")
    np.testing.assert_allclose(there.log_probs.numpy(), here.log_probs.numpy(), atol=1e-5)
