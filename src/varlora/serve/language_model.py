"""A causal language model that is served: adapters on a base model, one for the posterior's point and one a draw.

The draws are a fixed, seeded set. Each is an adapter of its own beside the others, so that no weight is ever changed
between two requests, and texts of several adapters are written in one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from varlora.posterior import DropoutMasks, Mixture, Posterior
from varlora.posterior.draws import number_of_draws, weight_draws
from varlora.prediction.decoding import end_tokens
from varlora.serve.errors import invalid
from varlora.tasks import context_length
from varlora.tasks.final_answers import FINAL_ANSWERS, FinalAnswer

BASE = "__base__"
"""PEFT's name for no adapter."""


class LanguageModel:
    """What writes texts under one name.

    Args:
        name: of the model that is served.
        model: the base model, plain or with adapters, which others may share.
        adapter: the name in it of the adapter that holds the point; None is the base model alone.
        tokenizer: the model's.
        posterior: whose draws can be asked for, with its config applied; None where there are none.
        samples: the most draws.
        seed: of the draws.
        final_answer: how the answer is read from a text, for the vote.
    """

    def __init__(
        self,
        *,
        name: str,
        model: Any,
        adapter: str | None,
        tokenizer: PreTrainedTokenizerBase,
        posterior: Posterior | None = None,
        samples: int = 0,
        seed: int = 0,
        final_answer: FinalAnswer = "text",
    ) -> None:
        self.name, self.model, self.adapter, self.tokenizer = name, model, adapter or BASE, tokenizer
        self.posterior, self.seed, self.read_answer = posterior, seed, FINAL_ANSWERS[final_answer]
        drawn = posterior is not None and not isinstance(posterior, DropoutMasks)
        self.samples = number_of_draws(posterior, samples) if drawn and samples else 0
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.base = base
        model.eval()
        self.context = context_length(base.config)
        self.ends = end_tokens(base, tokenizer)
        self.vocabulary = int(base.get_input_embeddings().weight.shape[0])
        self._draws: list[str] = []

    def check_samples(self, samples: int) -> None:
        """Whether texts can be the vote of that many draws.

        Raises:
            RequestError: they cannot.
        """
        if samples == 0 or samples == self.samples:
            return
        if self.samples == 0:
            why = "its weights are not drawn" if self.posterior is None else f"it is of kind {self.posterior.kind}"
            raise invalid("samples", f"model {self.name!r} has no draws ({why}); leave samples out.")
        if samples > self.samples or isinstance(self.posterior, Mixture):
            allowed = f"0 or {self.samples}" if isinstance(self.posterior, Mixture) else f"0 to {self.samples}"
            raise invalid("samples", f"samples is {samples}; model {self.name!r} has {allowed}.")

    def adapters(self, samples: int) -> list[str]:
        """The adapters that write: the point's for 0, else those of the first draws. For the worker's thread alone."""
        if samples == 0:
            return [self.adapter]
        if not self._draws:
            assert self.posterior is not None
            config, made = self.model.peft_config[self.adapter], list[str]()
            try:
                for number, weights in enumerate(weight_draws(self.posterior, self.samples, seed=self.seed)):
                    name = f"{self.adapter}-draw{number}"
                    add_adapter(self.model, name, config, weights)
                    made.append(name)
            except BaseException:
                for name in made:
                    self.model.delete_adapter(name)
                raise
            self._draws = made
        return self._draws[:samples]

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, with those that the tokenizer puts around a text."""
        return list(self.tokenizer(text)["input_ids"])

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a conversation by the folder's chat template, up to where the answer begins.

        Raises:
            RequestError: there is no template, or it refuses these messages.
        """
        if not self.tokenizer.chat_template:
            raise invalid(
                "model", f"model {self.name!r} has no chat template; use /v1/completions.", code="no_chat_template"
            )
        import jinja2

        try:
            text: Any = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise invalid("messages", f"the model's chat template refuses these messages: {error}") from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def check_room(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        """Whether a text fits behind its prompt.

        Raises:
            RequestError: it does not, or the prompt is empty or has tokens that the model does not know.
        """
        if not prompt:
            raise invalid("prompt", "the prompt has no tokens; give some text.")
        if min(prompt) < 0 or max(prompt) >= self.vocabulary:
            raise invalid("prompt", f"the prompt has tokens outside of 0 to {self.vocabulary - 1}.")
        if self.context is not None and len(prompt) + max_new_tokens > self.context:
            raise invalid(
                "max_tokens",
                f"the prompt has {len(prompt)} tokens, behind which {max_new_tokens} new ones do not fit into the "
                f"model's context of {self.context}. Shorten the prompt, or lower max_tokens.",
                code="context_length_exceeded",
            )


def add_adapter(model: PeftModel, name: str, config: Any, weights: Mapping[str, Tensor]) -> None:
    """Puts one more adapter onto a model, in eval mode, as a whole or not at all; the active one stays active.

    Raises:
        ValueError: the weights do not fit.
    """
    active = model.active_adapter
    try:
        model.add_adapter(name, config)
        result = set_peft_model_state_dict(model, dict(weights), adapter_name=name)
        if unexpected := list(getattr(result, "unexpected_keys", ())):
            raise ValueError(f"the weights of adapter {name!r} do not fit the model: {', '.join(unexpected[:4])}.")
    except BaseException:
        if name in model.peft_config:
            model.delete_adapter(name)
        raise
    finally:
        model.set_adapter(active, inference_mode=True)
        model.eval()
        model.requires_grad_(False)


def mixes(config: Any) -> bool:
    """Whether rows of an adapter can stand in one batch with rows of another: PEFT does that for plain LoRA."""
    if config is None:
        return True
    plain = str(getattr(config.peft_type, "value", config.peft_type)) == "LORA"
    return plain and not (
        config.use_dora
        or config.modules_to_save
        or getattr(config, "trainable_token_indices", None)
        or getattr(config, "alora_invocation_tokens", None)
    )


def device_of(model: nn.Module) -> torch.device:
    """Where the model is."""
    return next(iter(model.parameters())).device
