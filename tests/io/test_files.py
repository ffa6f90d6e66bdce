"""Files that are no files: none of them hangs, runs, or takes the memory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from readers import posteriors, sign
from varlora import load_posterior, posterior_from_checkpoint, save_posterior
from varlora.io.files import read_bytes, read_json, read_json_lines
from varlora.io.yaml_files import load_yaml
from varlora.posterior import KroneckerGaussian, Mixture, PointMass, PosteriorMeta
from varlora.posterior.folder import CheckpointError
from varlora.prediction.prediction import Prediction
from varlora.tasks.files import read_records

POINT = {"w": torch.ones(1, 2)}


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def as_hole(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 40)


READERS: dict[str, Callable[[Path], Any]] = {
    "bytes": read_bytes,
    "json": lambda path: read_json(path, dict[str, Any]),
    "json lines": lambda path: read_json_lines(path, dict[str, Any]),
    "yaml": load_yaml,
    "rows": read_records,
    "prediction": Prediction.load,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("kind", [as_pipe, as_device, as_hole])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: Callable[[Path], None], reader: Any) -> None:
    kind(tmp_path / "file")
    raised: list[Exception] = []

    def read() -> None:
        try:
            reader(tmp_path / "file")
        except (ValueError, OSError) as error:
            raised.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert len(raised) == 1
    assert str(tmp_path / "file") in str(raised[0])


@pytest.mark.parametrize("name", ["posterior.json", "adapter_config.json", "posterior.safetensors"])
@pytest.mark.parametrize("kind", [as_pipe, as_device, as_hole])
def test_a_posterior_folder_with_such_a_file_is_refused(
    tmp_path: Path, kind: Callable[[Path], None], name: str
) -> None:
    folder = save_posterior(posteriors()["diagonal"], tmp_path / "q")
    (folder / name).unlink()
    kind(folder / name)
    with pytest.raises(CheckpointError, match=name):
        load_posterior(folder)


def test_a_mixture_whose_names_count_to_a_billion_is_refused_without_counting() -> None:
    tensors = {f"component.{10**9}.point_mass/point/w": torch.ones(1, 2)}
    with pytest.raises(ValueError, match=r"no point for component\(s\) \[1\] of 1000000001"):
        Mixture.from_tensors(POINT, tensors, PosteriorMeta())


def test_factors_with_more_vectors_than_entries_are_refused_before_they_are_multiplied() -> None:
    tensors = {
        "w.out_vectors": torch.zeros(1, 10**6),  # their Gram matrix would have 8 TB
        "w.out_values": torch.zeros(10**6),
        "w.in_vectors": torch.eye(2),
        "w.in_values": torch.ones(2),
        "w.prior_precision": torch.tensor(1.0),
    }
    with pytest.raises(ValueError, match="out_vectors of w are 1000000 of 1 entries"):
        KroneckerGaussian.from_tensors(POINT, tensors, PosteriorMeta())


def test_a_table_that_says_it_holds_far_more_than_its_bytes_is_refused(tmp_path: Path) -> None:
    rows = 2 * 10**7
    table = pa.table({"label": pa.array(torch.zeros(rows, dtype=torch.int8).numpy())})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=rows)
    assert (tmp_path / "t.parquet").stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"t\.parquet .*bytes that say they hold 20,000,000 values"):
        Prediction.load(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet.*bytes that say they hold 20,000,000 values"):
        read_records(tmp_path / "t.parquet")


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, "100,000 values, aliases written out"),
        ("a: &a [1]\n" + "".join(f"b{i}: *a\n" for i in range(101)), "more than 100 aliases"),
        ("a: &a [*a]", "an alias of what it is part of"),
        ("a: " + "[" * 200 + "]" * 200, "more than 50 levels"),
        ("a: '" + "x" * (1 << 20) + "'", "bytes, and a file of its kind at most 1,048,576"),
        ("? [a]\n: 1", "a key is a list or mapping"),
        ("a: 2020-99-99", "not valid YAML"),
    ],
)
def test_yaml_is_bounded(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        load_yaml(tmp_path / "a.yaml")
    assert str(tmp_path / "a.yaml") in str(raised.value)


def test_a_few_aliases_and_merge_keys_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 1e-4}\n")
    assert load_yaml(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 1e-4}}


CODE: dict[str, tuple[dict[str, Any], str]] = {
    "megatron_core": ({"megatron_core": "planted", "megatron_config": {}}, "megatron_core is 'planted', a module"),
    "megatron_config": ({"megatron_config": {"a": 1}}, "megatron_config is set"),
    "remote code": ({"tokenizer_kwargs": {"trust_remote_code": True}}, r"tokenizer_kwargs\.trust_remote_code is True"),
    "a pickle": ({"corda_config": {"cache_file": "a.pt"}}, r"corda_config\.cache_file is 'a\.pt'"),
    "a prompt's pickle": ({"prompt_tuning_init_state_dict_path": "a.pt"}, "prompt_tuning_init_state_dict_path"),
    "rank": ({"r": 10**9}, "r is 1000000000, and the adapter's tensors have at most"),
    "rank pattern": ({"rank_pattern": {"q": 10**9}}, r"rank_pattern\['q'\] is 1000000000"),
}


@pytest.mark.parametrize(("changes", "message"), CODE.values(), ids=CODE)
def test_an_adapter_config_that_would_run_or_open_something_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = save_posterior(posteriors()["diagonal"], tmp_path / "q")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    sign(folder)
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {message}"):
        load_posterior(folder)
    (folder / "optimizer.pt").touch()
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {message}"):
        posterior_from_checkpoint(folder)


def test_an_optimizer_state_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    import zipfile

    save_posterior(PointMass(mean=POINT), tmp_path / "q")
    (tmp_path / "q" / "mean.safetensors").rename(tmp_path / "model.safetensors")
    torch.save({"param_groups": [], "state": {}}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "optimizer.pt", "w", compression=zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(CheckpointError, match=r"optimizer\.pt .*it is compressed"):
        posterior_from_checkpoint(tmp_path)
