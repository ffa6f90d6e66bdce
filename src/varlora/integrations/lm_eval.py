"""A posterior as a model of EleutherAI's lm-evaluation-harness.

The harness asks a model how likely texts are. Each draw of the weights is held for a whole pass over all requests, and
the draws' probabilities are averaged, by default so that a row's choices compare exactly as in `Prediction.probs`
(`varlora.integrations.averages`).
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from peft import PeftModel
from torch import Tensor

from varlora.adapters import applied, check_base
from varlora.adapters.modes import evaluation_mode
from varlora.integrations.averages import average_choices, average_completions
from varlora.integrations.source import read_source
from varlora.io.nearest import nearest
from varlora.posterior.draws import number_of_draws, over_draws
from varlora.prediction.prediction_setup import apply_config, choose_config

try:
    from lm_eval.api.model import CacheHook
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lm_eval":
        raise
    raise ModuleNotFoundError(
        "lm-evaluation-harness is not installed; install it with pip install 'varlora[lm-eval]'.", name=error.name
    ) from error

NAME = "varlora"
"""What the harness calls the model: --model varlora."""

Average = Literal["choices", "completions"]

logger = logging.getLogger(__name__)


class PosteriorLM(HFLM):  # type: ignore[misc]
    """A causal language model with a posterior over its adapter, for the harness.

    `loglikelihood` and `loglikelihood_rolling` average probabilities over the draws. A continuation counts as greedy
    if more than half of the draws would write it. `generate_until` writes with the posterior's point: the harness takes
    one text, and an average of texts is none.

    Args:
        posterior: Folder of a finished run, or of a posterior (`save_posterior`, `varlora merge`); must be given.
        pretrained: The base model, name or folder; what the folder recorded, by default.
        samples: S; 0 is the point (a Gaussian's mean). None: what `varlora tune` chose, or the run's own number.
        seed: Decides the draws; the run's by default, so that they are those of `varlora eval`.
        antithetic: Draw in mirrored pairs.
        average: "choices" or "completions", see `varlora.integrations.averages`.
        logit_temperature: T, of the choices; None takes the posterior's own.
        untuned: Leave aside what `varlora tune` chose.
        revision: Of the base model; the recorded one by default.
        dtype: Of the base model; the run's by default.
        softmax_dtype: In which the harness takes the softmax over the vocabulary.
        device: "cuda" where there is one, by default.
        options: Further arguments of the harness's own model `hf`, and of the base model's `from_pretrained`.

    Raises:
        ValueError: The folder holds no posterior of a causal language model, it does not fit the base model, or an
            argument is out of range.

    Example:
        >>> PosteriorLM("no-such-folder")
        Traceback (most recent call last):
        ...
        ValueError: posterior is 'no-such-folder', which is no folder. Give the output_dir of a finished run.
    """

    cache_hook: Any
    _model: Any

    def __init__(
        self,
        posterior: str | None = None,
        pretrained: str | None = None,
        *,
        samples: int | None = None,
        seed: int | None = None,
        antithetic: bool = True,
        average: Average = "choices",
        logit_temperature: float | None = None,
        untuned: bool = False,
        revision: str | None = None,
        dtype: str | None = None,
        softmax_dtype: str = "float32",
        device: str | None = None,
        **options: Any,
    ) -> None:
        if posterior is None:
            raise ValueError("there is no posterior to measure: give posterior=RUN in --model_args.")
        _check_options(options)
        _check_values(samples=samples, seed=seed, antithetic=antithetic, untuned=untuned, average=average)
        source = read_source(str(posterior), pretrained, untuned=untuned)
        self.average = average
        config = choose_config(source.q, samples, source.samples)
        self.q, self.samples = apply_config(source.q, config), config.draws(source.samples)
        self.seed = source.seed if seed is None else seed
        self.antithetic = antithetic
        self.sampled = self.samples > 0
        self.logit_temperature = self._temperature(logit_temperature)
        self.source = source
        if self.sampled and self.q.meta.linearised:
            logger.info("The run's own predictions are of the linearised model; here its weights are drawn.")
        super().__init__(
            pretrained=source.base,
            revision=revision or source.revision,
            dtype=dtype or source.dtype,
            softmax_dtype=softmax_dtype,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            backend="causal",
            **options,
        )

    def _temperature(self, given: float | None) -> float:
        own = self.q.meta.logit_temperature_of("samples" if self.sampled else "mean")
        if self.average == "completions":
            if given is not None:
                raise ValueError(
                    "logit_temperature divides the choices' log-likelihoods; average=completions has none of that. "
                    "Leave one of them out."
                )
            if own != 1:
                logger.warning("average=completions leaves aside the posterior's logit temperature, %.3g.", own)
            return 1.0
        temperature = own if given is None else given
        if not _is_number(temperature) or not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"logit_temperature is {temperature!r}; allowed: a positive number.")
        return float(temperature)

    def _create_model(self, *args: Any, **options: Any) -> None:
        """The base model as the harness loads it, with the adapter; no embedding is resized."""
        super()._create_model(*args, **options)
        try:
            self._model = PeftModel.from_pretrained(self._model, str(self.source.folder), torch_device=str(self.device))
            with applied(self._model, self.q.point):
                pass
            meta = self.q.meta
            check_base(self._model, self.q.point.keys(), meta.base_fingerprint, meta.base_model)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])  # PyTorch lists every tensor
            raise ValueError(
                f"the adapter of {self.source.folder} does not fit {self.source.base}: {reason} Leave pretrained out, "
                "or give the base model that it was trained on."
            ) from error

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations under the posterior, and whether most draws would write them.

        Requests of the same row (the harness's `task_name` and `doc_id`) are its choices; a request that names no row
        stands alone.
        """
        if not requests:
            return []

        def one_pass() -> list[tuple[float, float]]:
            return [(value, float(greedy)) for value, greedy in HFLM.loglikelihood(self, requests, disable_tqdm)]

        passes = self._passes(one_pass)
        values = self._averaged(passes[..., 0], requests)
        greedy = passes[..., 1].mean(dim=1) > 0.5
        answers = list(zip(values.tolist(), greedy.tolist(), strict=True))
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole documents under the posterior: one draw reads all of a document's windows."""
        if not requests:
            return []
        passes = self._passes(lambda: HFLM.loglikelihood_rolling(self, requests, disable_tqdm))
        values: list[float] = average_completions(passes).tolist()
        for request, value in zip(requests, values, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return values

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts, written with the posterior's point."""
        if self.sampled:
            logger.warning("Texts are generated with the posterior's point, not with its %d draws.", self.num_draws)
        with evaluation_mode(self.model), applied(self.model, self.q.point):
            texts: list[str] = super().generate_until(requests, disable_tqdm)
        return texts

    @property
    def num_draws(self) -> int:
        """How many sets of weights answer: one at the point."""
        return number_of_draws(self.q, self.samples)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Takes the harness's cache of answers, which is kept by request alone.

        Raises:
            ValueError: an answer depends on more than its request, since it is averaged with the row's other choices.
        """
        depends = self.num_draws > 1 or self.logit_temperature != 1
        if cache_hook.dbdict is not None and self.average == "choices" and depends:
            raise ValueError(
                "--use_cache keeps answers by request alone, but these depend on the row's other choices. Leave it "
                "out, or give the model argument average=completions."
            )
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results, and how the posterior was used."""
        ours = {
            "posterior": str(self.source.folder),
            "base_model": self.source.base,
            "method": self.q.meta.method,
            "draws": self.num_draws,
            "sampled": self.sampled,
            "antithetic": self.antithetic,
            "seed": self.seed,
            "average": self.average,
            "logit_temperature": self.logit_temperature,
        }
        return {**super().get_model_info(), "varlora": ours}

    def _passes(self, one_pass: Callable[[], Sequence[Any]]) -> Tensor:
        """One pass over all requests for each draw, (N, S, ...); a single draw's answers never reach the cache."""
        hook = self.cache_hook
        self.cache_hook = CacheHook(None)
        try:
            passes = over_draws(
                self.model,
                self.q,
                self.samples,
                lambda: torch.tensor(one_pass(), dtype=torch.float64),
                antithetic=self.antithetic,
                seed=self.seed,
            )
        finally:
            self.cache_hook = hook
        if bool(passes.isnan().any()):
            raise ValueError(
                "the model gives NaN log-likelihoods; its weights or the posterior's scale are broken. "
                "`varlora health` shows the scales."
            )
        return passes

    def _averaged(self, log_likelihoods: Tensor, requests: Sequence[Any]) -> Tensor:
        if self.average == "completions":
            return average_completions(log_likelihoods)
        averaged = torch.empty(len(requests), dtype=torch.float64)
        for rows in _choices(requests):
            # A request may come twice (the harness repeats some, to occupy all processes): it is one choice.
            distinct = list({(requests[i].idx, requests[i].args): i for i in rows}.values())
            found = average_choices(log_likelihoods[distinct], self.logit_temperature)
            values = {(requests[i].idx, requests[i].args): value for i, value in zip(distinct, found, strict=True)}
            for i in rows:
                averaged[i] = values[requests[i].idx, requests[i].args]
        return averaged


def register() -> None:
    """Makes the harness know the model by the name of `NAME`, in this process.

    Example:
        >>> register()
        >>> from lm_eval.api.registry import get_model
        >>> get_model("varlora").__name__
        'PosteriorLM'
    """
    register_model(NAME)(PosteriorLM)


def _choices(requests: Sequence[Any]) -> list[list[int]]:
    """The requests' indices, those together that are one row's choices.

    The same choices without the row's text (the harness's `acc_mutual_info`) are a group of their own.
    """
    groups: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
        row = (request.task_name, request.doc_id, request.args[0] == "") if request.doc_id is not None else i
        groups.setdefault(row, []).append(i)
    return list(groups.values())


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuses what would contradict us, and what was meant for us: `from_pretrained` takes any name."""
    ours = [name for name in inspect.signature(PosteriorLM).parameters if name != "options"]
    theirs = inspect.signature(HFLM.__init__).parameters
    if taken := sorted({"peft", "delta", "backend"} & options.keys()):
        raise ValueError(f"{taken[0]} is set by posterior=RUN; leave it out.")
    for name in options:
        if name not in theirs and (hint := nearest(name, ours, otherwise="")):
            raise ValueError(f"unknown model argument {name!r}; {hint}")


def _check_values(*, samples: Any, seed: Any, antithetic: Any, untuned: Any, average: Any) -> None:
    """The harness reads `--model_args` without knowing types."""
    for name, value in (("samples", samples), ("seed", seed)):
        if value is not None and not (type(value) is int and value >= 0):
            raise ValueError(f"{name} is {value!r}; allowed: 0, 1, 2, ...")
    for name, value in (("antithetic", antithetic), ("untuned", untuned)):
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; allowed: true, false.")
    if average not in get_args(Average):
        raise ValueError(f"average is {average!r}; allowed: {', '.join(get_args(Average))}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
