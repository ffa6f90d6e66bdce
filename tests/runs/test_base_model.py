"""Where a base model is: names, packages, and GGUF files, which become ordinary folders."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import cast

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gguf_files import PACKED, llama_in_file, write_gguf
from small_runs import config
from varlora.compare.cell import identity_of
from varlora.integrations.source import read_source
from varlora.posterior import PointMass, PredictionConfig
from varlora.runs import base_model
from varlora.runs.base_model import ModelFiles, locate_model, pretrained_name
from varlora.runs.config import RunConfig
from varlora.runs.finished import run_now
from varlora.runs.folder import Facts, RunFolder, read_run
from varlora.runs.predict import predict_split
from varlora.runs.run import run
from varlora.runs.setting import reload_setting

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the library gguf is not installed (pip install gguf)"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where unpacked models go."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "varlora"


def package(folder: Path) -> Path:
    """The folder of a package that must not be imported."""
    (folder / "carrier" / "model").mkdir(parents=True)
    (folder / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')")
    return folder / "carrier"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "package:no_such_package/model",
            "no package 'no_such_package'; .* pip install no-such-package",
        ),
        ("package:varlora/demo/absent", "the package varlora has no folder 'demo/absent'"),
        ("package:varlora/demo/absent.gguf", "the package varlora has no file 'demo/absent.gguf'"),
        ("package:../varlora", r"no package '\.\.'"),
        ("package:math/model", "no package 'math'"),
    ],
)
def test_a_model_inside_a_package_that_is_not_there_says_so(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        locate_model(name)


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carrier = package(tmp_path)
    (carrier / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)

    assert locate_model("package:carrier/model") == ModelFiles(name=str(carrier / "model"))
    assert locate_model("package:carrier/tiny.gguf") == ModelFiles(name=str(carrier), gguf_file="tiny.gguf")
    assert locate_model("package:carrier", "tiny.gguf") == locate_model("package:carrier/tiny.gguf")
    with pytest.raises(ValueError, match="names a file already; leave gguf_file out"):
        locate_model("package:carrier/tiny.gguf", "tiny.gguf")


def test_a_gguf_file_that_is_not_there_or_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "real.gguf").write_bytes(b"no model")

    with pytest.raises(ValueError, match=rf"gguf_file is 'other.gguf', and {tmp_path} holds real.gguf"):
        locate_model(str(tmp_path), "other.gguf")
    with pytest.raises(ValueError, match=f"--model_name_or_path {tmp_path} --gguf_file real.gguf"):
        locate_model(str(tmp_path / "real.gguf"))
    with pytest.raises(ValueError, match=r"real\.gguf is no GGUF file"):
        pretrained_name(str(tmp_path), "real.gguf")
    with pytest.raises(ValueError, match=r"no some\.gguf can be loaded from there"):
        pretrained_name("someone/nothing", "some.gguf")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(base_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the library gguf: pip install 'varlora\[gguf\]'"):
        pretrained_name(str(tmp_path), "tiny.gguf")


def test_a_place_for_unpacked_models_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    (tmp_path / "hf").write_text("a file")
    with pytest.raises(ValueError, match=r"hf/varlora cannot be written to .* Set the environment variable HF_HOME"):
        pretrained_name(str(tmp_path), "tiny.gguf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gguf_file": "x.gguf", "quantization": "4bit"}, "quantization is '4bit', and the base model is a GGUF file"),
        ({"model_name_or_path": "package:p/x.gguf", "quantization": "8bit"}, "the base model is a GGUF file"),
        ({"gguf_file": "x.gguf", "model_class": "encoder"}, "model_class is 'encoder'"),
        ({"gguf_file": "model.bin"}, r"gguf_file is 'model.bin'; it must be the name of a file \*.gguf"),
    ],
)
def test_options_that_contradict_a_gguf_file(options: dict[str, str], message: str) -> None:
    given = {"model_name_or_path": "m", "task": "sst2", "output_dir": "o"}
    with pytest.raises(ValueError, match=message):
        RunConfig.from_dict({**given, **options})


def test_settings_without_a_gguf_file_keep_their_fingerprint() -> None:
    made = RunConfig(model_name_or_path="m", task="sst2", output_dir="o", method="adamw")
    assert made.fingerprint == "82553358d20cd438"


def test_another_place_says_anew_whether_the_model_is_a_file() -> None:
    trained = RunFolder(
        path=Path("o"),
        config=RunConfig(model_name_or_path="m", gguf_file="x.gguf", task="sst2", output_dir="o"),
        posterior=PointMass(mean={"w": torch.zeros(1)}),
        metrics={},
        facts=cast(Facts, {"task": {"kind": "label", "answers": []}}),
    )

    def now(**given: str) -> tuple[str, str | None]:
        there = run_now(trained, **given).config
        return there.model_name_or_path, there.gguf_file

    assert now() == ("m", "x.gguf")
    assert now(gguf_file="y.gguf") == ("m", "y.gguf")
    assert now(model_name_or_path="folder") == ("folder", None)
    assert now(model_name_or_path="folder", gguf_file="y.gguf") == ("folder", "y.gguf")


@needs_gguf
def test_a_gguf_file_becomes_an_ordinary_folder_with_its_weights(tmp_path: Path, cache: Path) -> None:
    held = write_gguf(tmp_path / "models" / "tiny.gguf")
    folder = Path(pretrained_name(str(tmp_path / "models"), "tiny.gguf"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    assert folder.parent == cache
    found = model.state_dict()
    assert found.keys() == held.keys()
    assert all(torch.equal(found[name], held[name]) for name in held)
    there, theirs = llama_in_file()
    assert not torch.equal(held[PACKED], there.state_dict()[PACKED])
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    assert AutoConfig.from_pretrained(folder).architectures == ["LlamaForCausalLM"]
    text = "Question: which one barks? A. cat Answer: B"
    assert tokenizer(text, add_special_tokens=False).input_ids == theirs(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        ids = torch.tensor([[1, 20, 30, 40]])
        there.load_state_dict(held)
        assert torch.equal(model(ids).logits, there(ids).logits)


@needs_gguf
def test_a_file_is_unpacked_once_and_another_of_its_name_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    unpack = base_model._unpack
    monkeypatch.setattr(base_model, "_unpack", lambda file, *rest: (calls.append(file), unpack(file, *rest)))
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    first = pretrained_name(str(tmp_path), "tiny.gguf")
    assert pretrained_name(str(tmp_path), "tiny.gguf", dtype="float32") == first
    assert len(calls) == 1

    half = pretrained_name(str(tmp_path), "tiny.gguf", dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype == torch.bfloat16
    write_gguf(file, seed=1)
    other = pretrained_name(str(tmp_path), "tiny.gguf")
    assert len({first, half, other}) == len(calls) == 3


@needs_gguf
def test_a_file_without_all_weights_is_refused(tmp_path: Path, cache: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", without="model.layers.1.mlp.down_proj.weight")
    with pytest.raises(ValueError, match=r"lacks the weights of model\.layers\.1\.mlp\.down_proj\.weight"):
        pretrained_name(str(tmp_path), "tiny.gguf")
    assert not [path for path in cache.iterdir() if path.is_dir()]


@needs_gguf
def test_a_run_on_a_gguf_file_comes_back_and_refuses_another(tmp_path: Path) -> None:
    write_gguf(tmp_path / "models" / "tiny.gguf")
    settings = config(tmp_path, str(tmp_path / "models"), gguf_file="tiny.gguf", max_steps=2, label_answers="letters")
    result = run(settings, progress=False)
    finished = read_run(settings.output_dir)
    again = reload_setting(finished)
    recorded = json.loads((finished.path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert recorded == pretrained_name(str(tmp_path / "models"), "tiny.gguf")
    assert read_source(settings.output_dir).base == recorded  # the harness's, too
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(recorded), finished.path)
    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.no_grad():
        assert torch.equal(alone(ids).logits, again.model.eval()(ids).logits)
    assert (finished.config.model_name_or_path, finished.config.gguf_file) == (str(tmp_path / "models"), "tiny.gguf")

    predicted = predict_split(again, finished.posterior, "test", PredictionConfig(mode="samples", samples=4))
    assert torch.equal(predicted.log_probs, result.predictions["test"]["samples"].log_probs)

    write_gguf(tmp_path / "models" / "tiny.gguf", seed=1)
    other = reload_setting(finished)
    with pytest.raises(ValueError, match="this is not the base model that the posterior was trained on"):
        predict_split(other, finished.posterior, "test", PredictionConfig(mode="mean"))


@needs_gguf
def test_a_cell_knows_a_gguf_file_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carrier = package(tmp_path)
    write_gguf(carrier / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    there = {"task": "sst2", "output_dir": "o"}
    by_name = RunConfig(model_name_or_path="package:carrier/tiny.gguf", **there)
    by_place = RunConfig(model_name_or_path=str(carrier), gguf_file="tiny.gguf", **there)
    known = identity_of(by_name)
    assert identity_of(by_place) == known
    write_gguf(carrier / "tiny.gguf", seed=1)
    assert identity_of(by_name) == identity_of(by_place) != known
