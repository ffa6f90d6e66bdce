"""A posterior's mean merged into its base model: one ordinary model folder, for whatever loads no adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from varlora.adapters import check_base, load_into
from varlora.io.folders import atomic_folder, check_target
from varlora.prediction.prediction_setup import apply_config, choose_config, remove_tuning
from varlora.readout.readout import ClassHead
from varlora.readout.trunks import is_adapted
from varlora.runs.export import base_model_of, largest_rank, prompt_of, write_beside
from varlora.runs.export_folder import Export
from varlora.runs.folder import EXPORT, RunFolder
from varlora.runs.quiet_transformers import quiet_transformers
from varlora.runs.setting import reload_model


def export_merged(
    run: RunFolder,
    output_dir: str | Path,
    *,
    untuned: bool = False,
    overwrite: bool = False,
) -> Export:
    """Writes a run's mean as one model: the base model's weights with the adapter's update in them, and the tokenizer.

    Args:
        run: The run, with its settings as they are now.
        output_dir: Where to. The folder appears whole or not at all.
        untuned: Leave aside what `varlora tune` chose (pruning, and the temperature of the mean's logits).
        overwrite: Replace an export folder.

    Returns:
        What export.json says of it.

    Raises:
        ValueError: The base model is quantized, or not the one that was trained on; or the folder is taken.
    """
    config = run.config
    check_target(output_dir, overwrite=overwrite, marker=EXPORT)
    if config.quantization != "none":
        raise _quantized(f"the run's base model was loaded with quantization {config.quantization!r}")
    q = remove_tuning(run.posterior) if untuned else run.posterior
    q = apply_config(q, choose_config(q, 0), seed=config.seed)
    loaded = reload_model(run, device="cpu")
    model: Any = loaded.model
    if getattr(model.config, "quantization_config", None) is not None:
        raise _quantized(f"{config.model_name_or_path} is quantized itself")
    check_base(model, q.point.keys(), q.meta.base_fingerprint, q.meta.base_model)
    load_into(model, q.point)
    _untie_adapted(model.get_base_model())
    merged = model.merge_and_unload(safe_merge=True)
    if isinstance(loaded.readout, ClassHead):
        merged.config.id2label = dict(enumerate(loaded.readout.classes))
        merged.config.label2id = {label: index for index, label in merged.config.id2label.items()}
    export = Export(
        kind="merged",
        base_model=base_model_of(q, None),
        base_revision=q.meta.base_revision,
        mode="mean",
        rank=largest_rank(q.meta.adapter_config or {}),
        logit_temperature=q.meta.logit_temperature_of("mean"),
        readout=q.meta.readout,
        prompt=prompt_of(run.path),
    )
    with atomic_folder(output_dir, overwrite=overwrite, marker=EXPORT) as folder, quiet_transformers():
        merged.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        write_beside(export, folder, None, name=Path(output_dir).name)
    return export


def _untie_adapted(base: Any) -> None:
    """Parts an output layer from the token embeddings that it shares its weights with, where one of them is adapted.

    The update of the one would be merged into both.
    """
    layers = [layer for layer in (base.get_input_embeddings(), base.get_output_embeddings()) if layer is not None]
    weights = [getattr(layer, "base_layer", layer).weight for layer in layers]
    if len(weights) < 2 or weights[0] is not weights[1] or not any(map(is_adapted, layers)):
        return
    output = getattr(layers[1], "base_layer", layers[1])
    output.weight = nn.Parameter(weights[1].detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False


def _quantized(why: str) -> ValueError:
    return ValueError(
        f"{why}, and merging would round the adapter's update to its few bits. Serve the adapter beside the base model "
        "(varlora export without --merged), or give the base model in full precision: --quantization none, with "
        "--model_name_or_path where it is elsewhere; its answers differ by the rounding that training saw."
    )
