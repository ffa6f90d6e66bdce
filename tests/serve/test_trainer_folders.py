"""What a Trainer and `save_posterior` left, served: what says its task answers by classes, the rest writes."""

from __future__ import annotations

import httpx
import pytest

from serving import served
from small_runs import films
from trainer_folders import TrainerFolders
from varlora.predictor.predictor import Predictor
from varlora.serve import create_app
from varlora.serve.language_model import LanguageModel
from varlora.serve.load import LoadOptions, load_models

TEXTS = [row["text"] for row in films(3, offset=5)]


def test_a_folder_that_says_its_task_classifies(folders: TrainerFolders) -> None:
    paths = {"saved": str(folders.saved), "posterior": str(folders.posterior), "plain": str(folders.plain)}
    models = load_models(paths, LoadOptions(samples=4))
    saved, posterior, plain = (models[name] for name in paths)
    assert isinstance(saved, Predictor)
    assert isinstance(posterior, Predictor)
    assert isinstance(plain, LanguageModel)
    assert saved.loaded.model is posterior.loaded.model
    alone = Predictor.from_pretrained(folders.posterior, samples=4)(TEXTS)
    with served(create_app(models)) as url, httpx.Client(base_url=url, timeout=30, verify=False) as client:
        done = client.post("/v1/classify", json={"model": "posterior", "texts": TEXTS})
        written = client.post("/v1/completions", json={"model": "saved", "prompt": "a film", "max_tokens": 2})
    assert (done.status_code, written.status_code) == (200, 200), (done.text, written.text)
    for answer, expected in zip(done.json()["answers"], alone, strict=True):
        assert answer["probabilities"] == pytest.approx(dict(expected.probabilities), abs=1e-5)
