"""What an `adapter_config.json` of unknown origin may not say: what makes PEFT import a module or read another file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MEGATRON = "megatron.core"
_FILES = ("prompt_tuning_init_state_dict_path", "cache_file", "covariance_file")
"""Keys, at any depth, that name files which PEFT opens with `torch.load`."""


def refuse_foreign(config: Mapping[str, Any]) -> None:
    """Refuses a configuration with which loading the adapter would run or read something from elsewhere.

    `auto_mapping` may name any class: it is looked at by PEFT's AutoPeftModel alone, which varlora does not use, and
    which from PEFT 0.20 on imports what its own list allows.

    Args:
        config: content of adapter_config.json.

    Raises:
        ValueError: the key, its value, and what to do.

    Example:
        >>> refuse_foreign({"r": 8, "megatron_config": None, "megatron_core": "megatron.core"})
        >>> refuse_foreign({"r": 8, "megatron_config": {}, "megatron_core": "planted"})
        Traceback (most recent call last):
        ValueError: megatron_core is 'planted', a module that PEFT would import. Take the key out if you trust the rest.
    """
    advice = "Take the key out if you trust the rest."
    if config.get("megatron_core") not in (None, _MEGATRON):
        raise ValueError(f"megatron_core is {config['megatron_core']!r}, a module that PEFT would import. {advice}")
    if config.get("megatron_config") is not None:
        raise ValueError(f"megatron_config is set, with which PEFT imports {_MEGATRON}; varlora knows no such layer.")
    if not isinstance(config.get("peft_type", ""), str):
        raise ValueError(f"peft_type is {config['peft_type']!r}; it must be text.")
    for at, key, value in _entries(config):
        if key == "trust_remote_code" and value:
            raise ValueError(f"{at} is {value!r}, which lets a model's own code run. {advice}")
        if key in _FILES and value is not None:
            raise ValueError(f"{at} is {value!r}, a file that PEFT would open as a pickle. {advice}")


def refuse_large(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a rank that no tensor of the adapter has room for: PEFT makes the layers before it reads their weights.

    Args:
        config: content of adapter_config.json.
        shapes: those of the adapter's tensors, by checkpoint key.

    Raises:
        ValueError: the key, its value, and the largest dimension there is.

    Example:
        >>> refuse_large({"r": 10**9}, {"q.lora_A.weight": (8, 64)})
        Traceback (most recent call last):
        ValueError: r is 1000000000, and the adapter's tensors have at most 64 rows or columns.
    """
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    patterns = config.get("rank_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise ValueError(f"rank_pattern is {patterns!r}; it must map names to ranks.")
    for name, rank in (
        ("r", config.get("r", 1)),
        *((f"rank_pattern[{key!r}]", rank) for key, rank in patterns.items()),
    ):
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise ValueError(f"{name} is {rank!r}; it must be a whole number.")
        if rank > largest:
            raise ValueError(f"{name} is {rank}, and the adapter's tensors have at most {largest} rows or columns.")


def _entries(config: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, str, Any]]:
    for key, value in config.items():
        name = f"{at}.{key}" if at else str(key)
        yield name, str(key), value
        if isinstance(value, Mapping):
            yield from _entries(value, name)
