"""Runs the same small recipes with two versions of varlora's source, and compares every number that they leave.

    git worktree add /tmp/before REVISION
    python benchmarks/same_numbers.py /tmp/before            this tree's source against that one's

Every method trains on labels, and IVON on questions and completions; what comes of it is evaluated, tuned, asked,
pruned, tempered, merged, compared in a plan and reported, all through the command line. The two results must hold the
same adapters, posteriors and predictions bit for bit, the same metrics, and print the same lines, but for times and
memory. What differs is listed; the exit status is 1 if anything does. `--keep FOLDER` keeps the two results there;
what is there already is not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ANIMALS = ("cat", "dog", "cow", "hen")
METHODS: Mapping[str, Sequence[str]] = {
    "adamw": (),
    "temperature": (),
    "laplace": (),
    "blob": (),
    "scalabl": (),
    "swag": ("--snapshots", "4"),
    "tfb": (),
    "ema": ("--ema_decay", "0.8"),
    "ensemble": ("--members", "2"),
    "mc_dropout": (),
    "ivon": (),
    "cong2025": ("--method", "ivon", "--recipe", "cong2025", "--learning_rate", "0.3"),
}
PLAN = """\
name: small
reference: AdamW
seeds: [0, 1]
settings: {lora_target_modules: all-linear, learning_rate: 0.02, max_steps: 10, samples: 4}
models:
  tiny: {model_name_or_path: MODEL}
tasks:
  films: {train_file: DATA/train.jsonl, validation_file: DATA/validation.jsonl, test_file: DATA/test.jsonl}
methods:
  adamw:
    settings: {method: adamw}
    rows:
      AdamW: {mode: mean}
      AdamW + temperature: {mode: mean, logit_temperature: validation}
  laplace:
    settings: {method: laplace}
    rows:
      Laplace: {mode: linearised}
  ivon:
    settings: {method: ivon}
    rows:
      mean: {mode: mean}
      samples: {mode: samples}
      pruned: {mode: samples, prune: validation}
      tuned: {tune: true}
    curves:
      - {over: temperature, values: [0, 1, 2], mode: samples}
      - {over: samples, values: [2, 8], mode: samples}
"""
UNITS = r"(s|ms|min|h|seconds?|minutes?)"
TIMES = re.compile(rf"(\d+(\.\d+)?(e-?\d+)? ?{UNITS}\b)|\b[0-9a-f]{{12,64}}\b|\d{{4}}-\d\d-\d\d\S*")
COSTS = re.compile(r"Train s.*?(end\{tabular\}|\n\n|\Z)", re.DOTALL)
NOT_COMPARED = {
    "seconds",
    "peak_memory_bytes",
    "versions",
    "started",
    "finished",
    "code_version",
    "files",
    "sha256",
    "size",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="root of the other version's tree")
    parser.add_argument("--keep", type=Path, help="folder for the two results")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make)
        return 0
    with contextlib.ExitStack() as stack:
        kept = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        inputs = kept / "inputs"
        if not inputs.exists():
            write_inputs(inputs)
        results = [kept / "before", kept / "after"]
        for tree, result in zip((arguments.other, ROOT), results, strict=True):
            if not (result / "made").exists():
                command = [sys.executable, __file__, str(tree), "--make", str(result.resolve())]
                subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(tree.resolve() / "src")})
        differences = list(compare(*results))
    for line in differences:
        print(line)
    print(f"{len(differences)} difference(s)")
    return 1 if differences else 0


def write_inputs(folder: Path) -> None:
    """A tiny Llama, and rows of three kinds."""
    sys.path.insert(0, str(ROOT / "tests"))
    from models import tiny_llama
    from tiny_tokenizers import word_level

    words = ("fine", "dull", "film", "negative", "positive", "a", "cat", "dog", "cow", "hen")
    tokenizer = word_level(words=words)
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, first, rows in (("train", 0, 64), ("validation", 64, 60), ("test", 124, 60)):
        numbers = range(first, first + rows)
        write(folder / f"{name}.jsonl", [film(i) for i in numbers])
        write(folder / f"{name}-choice.jsonl", [question(i) for i in numbers])
        write(folder / f"{name}-completion.jsonl", [completion(i) for i in numbers])


def film(number: int) -> dict[str, Any]:
    """A film, fine or dull, one of seven of which has the wrong label."""
    herd = " ".join(ANIMALS[number // divisor % 4] for divisor in (2, 8, 32))
    return {
        "text": f"a {('dull', 'fine')[number % 2]} {herd}{' film' * (number % 3)}",
        "label": ("negative", "positive")[(number + (number % 7 == 0)) % 2],
    }


def question(number: int) -> dict[str, Any]:
    turn = number % 4
    return {
        "question": f"which one barks? {ANIMALS[number // 4 % 4]} film {number}",
        "choices": list(ANIMALS[turn:] + ANIMALS[:turn]),
        "answer": (1 - number) % 4,
    }


def completion(number: int) -> dict[str, Any]:
    return {"prompt": f"a {ANIMALS[number % 4]}", "completion": f" {ANIMALS[(number + 1) % 4]} film"}


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def commands(inputs: Path) -> Iterator[list[str]]:
    """Command lines, in order; folders are relative to the result."""
    model = ["--model_name_or_path", str(inputs / "model"), "--no_progress"]

    def train(name: str, kind: str, options: Sequence[str]) -> list[str]:
        data = [f"--{split}_file={inputs / f'{split}{kind}.jsonl'}" for split in ("train", "validation", "test")]
        given = [
            "--lora_target_modules",
            "all-linear",
            "--learning_rate",
            "0.02",
            "--max_steps",
            "12",
            "--samples",
            "4",
        ]
        return ["train", *model, *data, *given, "--output_dir", name, *options]

    for name, options in METHODS.items():
        yield train(name, "", [*([] if "--method" in options else ["--method", name]), *options])
    yield train("second", "", ["--method", "ivon", "--max_train_samples", "40"])
    yield train("early", "", ["--method", "ivon", "--early_stopping", "True", "--temperature_scaling", "True"])
    yield train("choice", "-choice", ["--method", "ivon"])
    yield train("completion", "-completion", ["--method", "ivon", "--final_answer", "text", "--max_new_tokens", "4"])
    yield train("completion-adamw", "-completion", ["--method", "adamw"])
    for name in ("ivon", "laplace", "ensemble", "swag", "choice", "completion"):
        yield ["eval", name, "--output_file", f"{name}.eval.json", "--resamples", "50", "--no_progress"]
        yield ["health", name]
        yield ["tune", name, "--samples", "4", "8", "--no_progress"]
    test = str(inputs / "test.jsonl")
    for name in ("ivon", "laplace", "adamw", "mc_dropout"):
        for more in ([], ["--untuned", "--samples", "3"], ["--coverage", "0.8"], ["--prediction_sets", "0.8"]):
            if name != "ivon" and len(more) == 3:
                continue
            file = f"{name}{''.join(more)}.answers.parquet"
            yield ["predict", name, "--input_file", test, "--output_file", file, "--no_progress", *more]
    yield ["prune", "cong2025", "--fraction", "0.3", "--output_dir", "pruned"]
    yield ["temper", "cong2025", "--temperature", "2", "--output_dir", "tempered"]
    yield ["merge", "ivon", "second", "--output_dir", "merged"]
    yield ["compare", "plan.yaml", "--output_dir", "compared", "--no_progress"]
    yield ["report", "adamw", "laplace", "ema", "--reference", "adamw, mean", "--format", "latex"]


def make(result: Path) -> None:
    """Runs all commands with the varlora that is imported; in `result`."""
    from varlora.cli import main as varlora

    result.mkdir(parents=True, exist_ok=True)
    os.chdir(result)
    inputs = result.parent / "inputs"
    plan = PLAN.replace("MODEL", str(inputs / "model")).replace("DATA", str(inputs))
    Path("plan.yaml").write_text(plan, encoding="utf-8")
    for command in commands(inputs):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = varlora(command)
        name = " ".join(command[:2]).replace(str(inputs), "").replace("/", "")
        number = len(list(Path().glob("*.said")))
        Path(f"{number:03d} {name}.said").write_text(f"{said.getvalue()}status {status}\n", encoding="utf-8")
    Path("made").touch()


def compare(before: Path, after: Path) -> Iterator[str]:
    """What differs between two results, in words."""
    old, new = named(before), named(after)
    for where, names in (("before", old.keys() - new.keys()), ("after", new.keys() - old.keys())):
        yield from (f"only {where}: {name}" for name in sorted(names))
    kinds = {
        ".safetensors": tensor_differences,
        ".parquet": table_differences,
        ".json": lambda one, two: json_differences(read(one), read(two)),
        ".said": line_differences,
        ".md": line_differences,
    }
    for name in sorted(old.keys() & new.keys()):
        yield from (f"{name}: {difference}" for difference in kinds[old[name].suffix](old[name], new[name]))


def named(result: Path) -> dict[str, Path]:
    """The files to compare by names that hold no hash: a cell of a comparison is named by its method and seed."""
    cells = {}
    for config in result.glob("compared/**/config.yaml"):
        text = config.read_text(encoding="utf-8")
        facts = [re.search(rf"^{key}: (.*)$", text, re.MULTILINE) for key in ("method", "seed")]
        cells[str(config.parent.relative_to(result))] = "cell " + " ".join(m[1] for m in facts if m)
    kept: dict[str, Path] = {}
    for file in sorted(result.rglob("*")):
        name = str(file.relative_to(result))
        for folder, cell in cells.items():
            name = name.replace(folder, cell)
        hashed = re.search(r"[0-9a-f]{16}", name) or "variants/" in name or file.name == "cells.json"
        if hashed or "tokenizer" in name or re.fullmatch(r"\d+ compare .*", name):  # tables.md has its tables
            continue
        if file.suffix in (".safetensors", ".parquet", ".json", ".said") or file.name == "tables.md":
            kept[name] = file
    return kept


def tensor_differences(before: Path, after: Path) -> Iterator[str]:
    from safetensors.torch import load_file

    one, two = load_file(before), load_file(after)
    yield from (f"{key} only in one" for key in sorted(one.keys() ^ two.keys()))
    for key in sorted(one.keys() & two.keys()):
        if one[key].dtype != two[key].dtype or one[key].shape != two[key].shape:
            yield f"{key} has another type or shape"
        elif one[key].numpy().tobytes() != two[key].numpy().tobytes():
            yield f"{key} has other bits"


def table_differences(before: Path, after: Path) -> Iterator[str]:
    import pyarrow.parquet as pq

    one, two = pq.read_table(before), pq.read_table(after)
    yield from (f"column {name} only in one" for name in sorted(set(one.column_names) ^ set(two.column_names)))
    for name in sorted(set(one.column_names) & set(two.column_names)):
        if not one[name].equals(two[name]):
            yield f"column {name} differs"


def line_differences(before: Path, after: Path) -> Iterator[str]:
    one, two = (without_times(COSTS.sub("", f.read_text(encoding="utf-8"))).splitlines() for f in (before, after))
    if len(one) != len(two):
        yield f"{len(one)} lines are {len(two)}"
    for old, new in zip(one, two, strict=False):
        if old.split() != new.split():
            yield f"\n    - {old}\n    + {new}"


def without_times(text: str) -> str:
    return TIMES.sub("#", text)


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def json_differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Numbers and texts that differ, and keys that are in one of the two."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            if key in NOT_COMPARED or "seconds" in key:
                continue
            if key not in before or key not in after:
                yield f"{place}.{key} only {'after' if key in after else 'before'}"
            else:
                yield from json_differences(before[key], after[key], f"{place}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, two) in enumerate(zip(before, after, strict=True)):
            yield from json_differences(one, two, f"{place}[{i}]")
    elif before != after and not (isinstance(before, str) and without_times(before) == without_times(str(after))):
        yield f"{place}: {before!r} is {after!r}"[:300]


if __name__ == "__main__":
    sys.exit(main())
