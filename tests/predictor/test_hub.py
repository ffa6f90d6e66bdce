"""A predictor from the hub: out of the local cache, which no network is asked about."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from varlora import Predictor
from varlora.predictor.hub import NEEDED, local_folder

COMMIT = "0" * 40


@pytest.fixture
def cache(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the run as somebody/films, of which only the needed files were fetched."""
    repository = tmp_path / "hub" / "models--somebody--films"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in trained.iterdir():
        if any(fnmatch(file.name, pattern) for pattern in NEEDED):
            shutil.copyfile(file, snapshot / file.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_the_needed_files_are_enough(cache: Path, predictor: Predictor) -> None:
    assert {"config.yaml", "run.json", "posterior.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        file.name for file in cache.iterdir()
    }
    fetched = Predictor.from_pretrained("somebody/films", samples=6)
    assert fetched.run.path == cache
    assert fetched("a fine cat film") == predictor("a fine cat film")


def test_what_is_not_there_is_said_with_what_to_do(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder somebody/dogs here.*HF_HUB_OFFLINE=1"):
        Predictor.from_pretrained("somebody/dogs")
    with pytest.raises(ValueError, match="is not a folder that exists"):
        Predictor.from_pretrained("./nowhere/at/all")
    with pytest.raises(ValueError, match=r"revision is 'main', and .* is no name on the hub"):
        local_folder(cache, revision="main")


def test_no_pickle_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert local_folder("somebody/films", revision="v1") == tmp_path
    assert (asked["name"], asked["revision"]) == ("somebody/films", "v1")
    for pickle in ("adapter_model.bin", "training_args.bin", "optimizer.pt", "posterior.pkl", "tokenizer.pkl"):
        assert not any(fnmatch(pickle, pattern) for pattern in asked["allow_patterns"])
