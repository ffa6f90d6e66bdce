"""States of rows that several runs share: whose they are, and what is left aside."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn

from readout.test_frozen_layers import CONFIGS as ENCODERS
from readout.test_frozen_layers import adapted as adapted_encoder
from readout.test_frozen_layers_decoders import CONFIGS, adapted, calls_of, rows
from varlora.readout import shared_states
from varlora.readout.frozen_layers import cached_frozen_layers
from varlora.readout.shared_states import SharedRowStates, states_fingerprint
from varlora.readout.trunks import trunk_of

MINE = "12" * 32


def states_of(folder: Path, fingerprint: str = MINE) -> SharedRowStates:
    return SharedRowStates(folder, fingerprint, memory=2**30)


def given(count: int) -> dict[bytes, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"row {n}".encode(): torch.randn(1 + n % 3, 8, generator=generator) for n in range(count)}


def filled(folder: Path, count: int) -> list[Path]:
    states = states_of(folder)
    for key, row in given(count).items():
        states[key] = row
    states.close()
    return sorted(folder.rglob("*.safetensors"))


def test_rows_come_back_to_whoever_comes_later_or_at_the_same_time(tmp_path: Path) -> None:
    one, other = states_of(tmp_path), states_of(tmp_path)
    for key, row in given(40).items():
        assert key not in one
        one[key] = row
        if key not in other:  # those that one has not written yet
            other[key] = row
    one.close()
    other.close()
    files = list(tmp_path.rglob("*.safetensors"))
    later = states_of(tmp_path)
    for key, row in given(40).items():
        assert torch.equal(later[key], row)
    assert b"row 40" not in later
    later[b"row 40"] = torch.ones(2, 8).bfloat16()
    later.close()
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(files) + 1
    assert states_of(tmp_path)[b"row 40"].dtype == torch.bfloat16
    assert b"row 0" not in states_of(tmp_path, "34" * 32)


def test_rows_whose_file_does_not_read_back_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states = states_of(tmp_path)
    monkeypatch.setattr(shared_states, "ROWS_PER_FILE", 4)

    def refuse(*_: Any, **__: Any) -> Any:
        raise SafetensorError("cut short")

    monkeypatch.setattr(shared_states, "safe_open", refuse)
    for key, row in given(4).items():
        states[key] = row

    assert "was written and does not read; its 4 rows are kept here: cut short" in caplog.text
    assert all(torch.equal(states[key], row) for key, row in given(4).items())


def test_a_row_that_another_process_writes_while_it_is_computed_is_kept_once(tmp_path: Path) -> None:
    states, row = states_of(tmp_path), given(1)[b"row 0"]
    assert b"row 0" not in states
    filled(tmp_path, 1)
    states[b"row 0"] = row
    states.close()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert torch.equal(states_of(tmp_path)[b"row 0"], row)


def broken(kind: str, file: Path) -> None:
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "of other layers":
        tensors = load(file.read_bytes())
        save_file(tensors, file, metadata={"format": "1", "fingerprint": "34" * 32})
    elif kind == "changed":
        content = bytearray(file.read_bytes())
        with safe_open(file, framework="pt") as opened:
            first = opened.get_tensor("states")[0].numpy().tobytes()
        content[content.index(first)] ^= 1
        file.write_bytes(content)
    else:
        save_file({"weight": torch.ones(3)}, file, metadata={"format": "1", "fingerprint": MINE})


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut", "is left aside, and its rows are computed anew: "),
        ("of other layers", "it holds no states of these layers"),
        ("something else", "it holds other tensors than states do"),
        ("changed", "are damaged"),
    ],
)
def test_a_broken_file_is_named_and_its_rows_are_computed_anew(
    kind: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [file] = filled(tmp_path, 3)
    broken(kind, file)
    states = states_of(tmp_path)
    with caplog.at_level(logging.WARNING):
        there = [key in states for key in given(3)]
    assert there == ([False, True, True] if kind == "changed" else [False] * 3)
    assert str(tmp_path) in caplog.text
    assert words in caplog.text
    for key, row in given(3).items():
        if key not in states:
            states[key] = row
        assert torch.equal(states[key], row)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / MINE[:16]).write_text("a file")
    states = states_of(tmp_path)
    for key, row in given(40).items():
        states[key] = row
    assert all(torch.equal(states[key], row) for key, row in given(40).items())
    assert "states of 32 rows are not shared" in caplog.text


def fingerprint_of(model: Any, layers: int = 2) -> str:
    return states_fingerprint(trunk_of(model), layers)


def test_a_fingerprint_is_of_the_frozen_layers_alone() -> None:
    mine, same = fingerprint_of(adapted()), adapted()
    same.get_base_model().config._name_or_path = "moved"
    with torch.no_grad():
        for name, parameter in same.named_parameters():
            if "lora_" in name or "layers.3" in name or "lm_head" in name or "model.norm" in name:
                parameter.add_(1)
    assert fingerprint_of(same) != mine, "the norm above counts, too: what is not known to be above does"
    with torch.no_grad():
        same.get_base_model().model.norm.weight.sub_(1)  # type: ignore[union-attr, operator]
    assert fingerprint_of(same) == mine
    others = [fingerprint_of(adapted(), 1), fingerprint_of(adapted().to(torch.bfloat16))]
    for part in ("embed_tokens.weight", "layers.1.mlp.up_proj.weight"):
        changed = adapted()
        with torch.no_grad():
            changed.get_base_model().model.get_parameter(part)[-1, -1] += 1e-6  # type: ignore[union-attr, operator]
        others.append(fingerprint_of(changed))
    rotated = adapted()
    rotated.get_base_model().model.rotary_emb.inv_freq[0] += 1e-3  # type: ignore[union-attr, index, operator]
    others.append(fingerprint_of(rotated))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        others.append(fingerprint_of(adapted()))
    finally:
        torch.set_num_threads(threads)
    assert len({mine, *others}) == 1 + len(others)


def test_a_fingerprint_is_of_the_processor_of_an_encoder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr(shared_states, "_processor", lambda device: devices.append(device) or [])
    fingerprint_of(adapted_encoder(ENCODERS["bert"]))
    assert devices == [torch.device("cpu")]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2"])
@torch.no_grad()
def test_numbers_are_the_same_whoever_has_computed_the_states(name: str, side: str, tmp_path: Path) -> None:
    """From a folder that is empty, full, or not there, in whatever batches; and those of the whole model."""
    model = adapted(CONFIGS[name])
    batches = [rows(side, [0, 1, 2]), rows(side, [4, 2, 3, 3], padding=2)]
    whole = [model(**batch).logits for batch in batches]
    own = [batch["attention_mask"].bool() for batch in batches]
    found, calls = {}, {}
    for how, order in {"empty": (0, 1), "full": (1, 0), "not there": (1, 0)}.items():
        computed = calls_of(model)
        with cached_frozen_layers(model, folder=tmp_path if how != "not there" else tmp_path / "new", shared=True):
            logits = {batch: model(**batches[batch]).logits for batch in order}
        found[how], calls[how] = logits, list(computed)
    assert calls == {"empty": [1] * 5, "full": [1], "not there": [1] * 5}
    for i, mask in enumerate(own):
        torch.testing.assert_close(found["empty"][i][mask], whole[i][mask], rtol=0, atol=1e-5)
        assert torch.equal(found["full"][i][mask], found["empty"][i][mask])
        assert torch.equal(found["not there"][i][mask], found["empty"][i][mask])
    assert not (tmp_path / "new").exists()


@torch.no_grad()
def test_states_of_another_model_are_not_taken(tmp_path: Path) -> None:
    model, batch = adapted(), rows("left")
    with cached_frozen_layers(model, folder=tmp_path, shared=True):
        before = model(**batch).logits
    nn.init.normal_(model.get_base_model().model.layers[0].mlp.up_proj.weight)  # type: ignore[union-attr, index]
    computed = calls_of(model)
    with cached_frozen_layers(model, folder=tmp_path, shared=True):
        after = model(**batch).logits
    assert computed == [1] * 5
    assert not torch.allclose(before, after, atol=1e-3)
    one, other = (folder for folder in tmp_path.iterdir())
    there = states_fingerprint(trunk_of(model), 2)[:16]
    wrong, right = (one, other) if other.name == there else (other, one)
    for file in right.iterdir():
        file.unlink()
    for file in wrong.iterdir():
        tensors = load(file.read_bytes())
        fingerprint = states_fingerprint(trunk_of(model), 2)
        save_file(tensors, right / file.name, metadata={"format": "1", "fingerprint": fingerprint})
    with cached_frozen_layers(model, folder=tmp_path, shared=True):
        with pytest.raises(ValueError, match=r"are not those that this model computes\. Delete that folder"):
            model(**batch)
