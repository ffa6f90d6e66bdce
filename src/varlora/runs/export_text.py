"""The page of an export folder: the commands that serve its adapters, and how an answer is asked for."""

from __future__ import annotations

import json
import shlex
from typing import Any

from varlora.runs.export_folder import Export

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""
MOST_TOKEN_IDS = 128
"""Tokens that vLLM tells the log-probabilities of by their ids, in one request."""
PORTS = {"vLLM": 8000, "SGLang": 30000}


def export_readme(export: Export, *, name: str) -> str:
    """README.md of an export folder.

    Args:
        export: what the folder holds.
        name: of the folder.
    """
    parts = [f"# {name}", _what(export), _average(export)]
    if export.kind == "merged":
        parts.append(_merged())
    elif export.not_plain:
        parts.append(_not_served(export))
    else:
        parts += [*_serving(export), _asking(export, name)]
    parts.append(
        "These commands were written from the servers' documentation; varlora does not run them. Load the base model "
        "in the data type of training: in another the numbers are another rounding's."
    )
    return "\n\n".join(parts) + "\n"


def _completion_request(export: Export) -> dict[str, Any]:
    """The body of a request for the answers' log-probabilities under one adapter, in vLLM's form."""
    tokens = list((export.readout or {}).get("token_ids", ()))
    body: dict[str, Any] = {"model": export.adapters[0].name, "prompt": "...", "max_tokens": 1, "temperature": 0}
    if tokens:
        body |= {"logprobs": len(tokens), "return_tokens_as_token_ids": True}
        if len(tokens) <= MOST_TOKEN_IDS:
            body["logprob_token_ids"] = tokens
    return body


def _base(export: Export) -> str:
    revision = export.base_revision
    named = shlex.quote(export.base_model)
    return f"{named} --revision {shlex.quote(revision)}" if revision else named


def _what(export: Export) -> str:
    if export.kind == "merged":
        return f"The mean of a posterior over LoRA weights, merged into its base model, {export.base_model}."
    number = len(export.adapters)
    if export.mode == "mean":
        return f"The mean of a posterior over LoRA weights, as one plain PEFT adapter of {export.base_model}."
    adapters = "1 draw" if number == 1 else f"{number} draws"
    return (
        f"{adapters} (seed {export.seed}) of a posterior over LoRA weights, as plain PEFT adapters of "
        f"{export.base_model}. A name ends in a hash of the weights, so that no cache takes one for another."
    )


def _average(export: Export) -> str:
    readout, temperature = export.readout or {}, export.logit_temperature
    many = len(export.adapters) > 1
    lines = []
    if "token_ids" in readout:
        pairs = ", ".join(
            f"`{answer}` {token}" for answer, token in zip(readout["answers"], readout["token_ids"], strict=True)
        )
        lines.append(f"The answers are single tokens behind the prompt, by their ids: {pairs}.")
    elif readout.get("kind") == "choice_texts":
        lines.append("The answer is the choice whose text is likeliest behind the prompt.")
    elif "classes" in readout:
        lines.append(f"The answers are the classes of the head, in order: {', '.join(readout['classes'])}.")
    if readout:
        divided = f" divided by {temperature:.6g}" if temperature != 1 else ""
        average = ", and the probabilities (never the logits) are averaged over the adapters" if many else ""
        lines.append(f"The probability of each is the softmax of these log-probabilities{divided}{average}.")
    return " ".join(lines) or "It writes texts; ask each adapter for its own, and count the answers."


def _serving(export: Export) -> list[str]:
    """How each server is started."""
    base, number = _base(export), len(export.adapters)
    places = " ".join(f"{adapter.name}=./{adapter.name}" for adapter in export.adapters)
    rank = next((rank for rank in RANKS if rank >= export.rank), export.rank)
    vllm = f"--enable-lora --max-loras {number} --max-cpu-loras {number} --max-lora-rank {rank}"
    sglang = f"--enable-lora --max-loras-per-batch {number} \\\n  --max-lora-rank {export.rank}"
    commands = {
        "vLLM": ("In", f"vllm serve {base} {vllm} \\\n  --lora-modules {places}"),
        "SGLang": ("In", f"python -m sglang.launch_server --model-path {base} {sglang} --lora-paths {places}"),
        "varlora": ("Plainly, as the others do; in", f"varlora serve {places}"),
    }
    return [f"## {name}\n\n{where} this folder:\n\n```bash\n{line}\n```" for name, (where, line) in commands.items()]


def _asking(export: Export, name: str) -> str:
    tokens = (export.readout or {}).get("token_ids", ())
    parts = [
        "## Asking",
        "`varlora` asks all of them and averages, with the prompt, the temperature and the decision of this folder:",
        f'```python\nfrom varlora import Predictor\n\npredictor = Predictor.from_pretrained("{name}", '
        f'backend="http://localhost:{PORTS["vLLM"]}/v1")\npredictor("...")\n```',
    ]
    if tokens:
        parts.append("Anything else asks each adapter for one token, and for the log-probabilities of the answers':")
        request = f"curl http://localhost:{PORTS['vLLM']}/v1/completions -H 'Content-Type: application/json' -d"
        parts.append(f"```bash\n{request} '{json.dumps(_completion_request(export))}'\n```")
        parts.append(
            "`logprob_token_ids` is known to recent versions of vLLM. An older one tells the likeliest tokens only: "
            "raise `logprobs` as far as `--max-logprobs` allows (20 unless given, -1 for all). SGLang's own "
            '`/generate` takes `"return_logprob": true, "token_ids_logprob": [...]`, and the adapter as `lora_path`.'
        )
    return "\n\n".join(parts)


def _not_served(export: Export) -> str:
    return (
        f"vLLM and SGLang do not load these adapters: they have {', '.join(export.not_plain)}. PEFT does "
        f'(`PeftModel.from_pretrained(base, "{export.adapters[0].name}")`), and `varlora serve`, with the run\'s '
        "own folder, answers with the posterior itself. `varlora export --merged` makes one whole model, and `varlora "
        "distill` one adapter that answers like the average."
    )


def _merged() -> str:
    return "## Serving\n\n" + "\n\n".join(
        (
            "It is an ordinary model folder: `vllm serve .`, `python -m sglang.launch_server --model-path .`.",
            "For llama.cpp and Ollama (a causal language model), with llama.cpp's own converter:",
            "```bash\npython llama.cpp/convert_hf_to_gguf.py . --outfile model.gguf --outtype f16\n"
            "printf 'FROM ./model.gguf\\n' > Modelfile\nollama create my-model -f Modelfile\n```",
        )
    )
