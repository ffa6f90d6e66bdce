"""A posterior's health in words: one sentence, what follows from it, each number with its meaning, and one table.

The terminal, the model card and the HTML page show the same words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from varlora.io.words import counted
from varlora.ivon.ess_control import BOUNDS
from varlora.metrics.metric import MINUS
from varlora.metrics.selection import FEWEST_ROWS
from varlora.report.health import Health, Source, skipped_steps
from varlora.report.sampling import Paired
from varlora.report.scales import ScaleGroup, TensorScale
from varlora.report.tables import Cell, Line, Number, Table
from varlora.report.vocabulary import coldness, fitted, learning, show

RUN = "RUN"
"""What stands for the run's folder where it is not known."""
_TIMES = ("", "", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_VERDICTS = {"helps": "helps", "no gain": "gives no gain", "hurts": "hurts"}
_POINT = {"mixture": "the first member", "dropout_masks": "one pass without dropout"}


def sentence(health: Health) -> str:
    """Whether sampling helps, and what to use, at which temperature.

    Example:
        >>> from varlora.report.sampling import Paired
        >>> gain = Paired(difference=-0.12, standard_error=0.03)
        >>> print(sentence(Health(kind="diagonal_gaussian", method="ivon", draws=10, sampling=gain,
        ...                       sampling_rows=300, temperatures=(1.52, 1.31))))
        Sampling helps here (validation NLL −0.12 ± 0.03, each at its own T): use samples=10 (T = 1.31).
    """
    if health.kind == "point_mass":
        return "It holds one set of weights, so there is nothing to sample: predictions are those of samples=0."
    subject = _subject(health)
    if health.sampling is None:
        return f"Nothing can be said of {subject[0].lower()}{subject[1:]} here: {health.unknown}. {_remedy(health)}"
    statement = f"{subject} {_VERDICTS[health.verdict or 'no gain']} here ({_difference(health)})"
    of_mean, of_draws = map(temperature_in_words, health.temperatures or (1.0, 1.0))
    if health.verdict == "helps":
        draws = "it" if health.linearised else f"samples={health.draws}"
        return f"{statement}: use {draws}{of_draws and f' ({of_draws})'}."
    point = f"{_POINT.get(health.kind, 'the mean')} (samples=0{of_mean and f', {of_mean}'})"
    return f"{statement}: use {point}{'' if health.verdict == 'hurts' else f', {_cheaper(health)}'}."


def reason_for_the_point(health: Health) -> str:
    """Why predictions are made with the point where nobody asks for draws; empty where draws help.

    Example:
        >>> gain = Paired(difference=-0.001, standard_error=0.002)
        >>> reason_for_the_point(
        ...     Health(kind="diagonal_gaussian", method="ivon", draws=10, sampling=gain, sampling_rows=300)
        ... )
        'sampling gives no gain (validation NLL −0.001 ± 0.002, both at T = 1)'
    """
    subject = f"{_subject(health)[0].lower()}{_subject(health)[1:]}"
    if health.sampling is None:
        return f"nothing can be said of {subject}: {health.unknown}"
    verdict = health.verdict or "no gain"
    return "" if verdict == "helps" else f"{subject} {_VERDICTS[verdict]} ({_difference(health)})"


def remarks(health: Health, run: str = RUN) -> list[str]:
    """What else is to be known, a sentence each; empty if nothing is.

    Args:
        health: the numbers.
        run: the run's folder, for commands.
    """
    texts = [warning for warning in (_skipped(health), _not_learned(health)) if warning]
    if health.kind == "point_mass":
        return texts
    texts += [warning] if (warning := _unsettled(health, run)) else []
    texts += [f"λ was not steered by held-out rows: {health.unsteered}."] if health.unsteered else []
    if health.tuned:
        texts.append(
            "It is tuned: predictions are made as `varlora tune` chose (posterior.json), and all of this is as trained."
        )
    elif health.can_be_tuned:
        rows = f"the {health.validation_rows} validation rows"
        texts.append(f"`varlora tune {run}` chooses how to predict with it on {rows}.")
    return texts


def statements(health: Health) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each number that there is, but the scales."""
    return list(_statements(health))


def _statements(health: Health) -> Iterator[tuple[str, str, str]]:
    mixture = health.kind == "mixture"
    if health.skipped_steps:
        yield "Skipped steps", f"{health.skipped_steps} of {health.steps}", "for a gradient that was not finite"
    if health.sampling is not None:
        which = f"{health.sampling_rows} {_which(health.sampling_source)} rows"
        unit = ", a completion" if health.completions else ""
        drawn = f"{health.draws} draws"
        if health.in_training:
            draws = "4" if health.temperatures is None else "as of 10"
            drawn = f"in the last measurements of training, {draws} draws"
        meaning = f"nats{unit}, on {which}, paired; {drawn} averaged; {_temperatures(health)}"
        yield f"Sampled − {'first member' if mixture else 'mean'} NLL", _signed(health.sampling), meaning
    if health.one_draw is not None:
        alike = "both at the draws' T" if health.temperatures is not None else "both at T = 1"
        if mixture:
            name, meaning = "One draw − first member", f"the NLL of a single draw minus the first member's, {alike}"
        else:
            name = "Cost of the noise"
            meaning = f"the NLL of a single draw minus the mean's, {alike}: what averaging has to win back"
        yield name, _signed(health.one_draw), f"nats, {meaning}"
    if (agreement := health.agreement) is not None:
        alike = f"on {_percent(agreement.all_draws)} of {agreement.rows} validation rows all {health.draws} are"
        yield "Agreement of draws", _percent(agreement.single), f"of the draws' answers are the mean's; {alike}"
        meaning = "nats, mean over these rows: how far the draws disagree"
        yield "Mutual information", f"{agreement.mutual_information:.3g}", meaning
    if health.ess is not None and health.num_examples is not None:
        yield "λ/N", _significant(health.ess / health.num_examples), _course(health)
    if (end := health.held_out) is not None:
        meaning = f"of {end.rows} {_which(end.source)} rows at the end; above 0: over-confident"
        yield "Missing temperature log T̂", _signed(end.paired), meaning
    if health.hessian_moved is not None:
        meaning = "kept at h0 by the recipe" if health.hessian_kept else learning(health.hessian_moved)
        yield "Movement of h", f"{100 * health.hessian_moved:.3g} %", f"median |h/h0 − 1|: {meaning}"
    for fit in health.fits:
        yield "Standard deviation", f"{fit['variance'] ** 0.5:.2g}", fitted(fit)
    if health.rate is not None:
        yield "Dropout rate", f"{health.rate:g}", "share of the adapter's inputs that a pass drops"


def scale_table(health: Health) -> Table | None:
    """Noise beside weights by role, with the tensor in the middle and the one of the widest noise; None without any."""
    if not health.groups:
        return None
    rows = tuple(
        (
            f"{group.name} ({len(group.tensors)})",
            (_ratio(group.ratio), *(_ratio(t.ratio, _short(t, group)) for t in (group.median, group.largest))),
        )
        for group in health.groups
    )
    caption = (
        "rms(σ) / rms(m) by role (number of tensors), of the tensor in the middle and of the one with the widest "
        "noise. Far below 1 sampling leaves predictions as they are at the mean; far above, noise drowns the weights."
    )
    if health.exact:
        caption += f" {counted(health.exact, 'other tensor')} {'have' if health.exact > 1 else 'has'} no noise."
    return Table(caption=caption, headings=("Noise / weights", "All", "Median tensor", "Largest"), rows=rows)


def temperature_in_words(temperature: float) -> str:
    """What divides the logits, for a table or a sentence; empty where nothing does.

    Example:
        >>> temperature_in_words(1.3127), temperature_in_words(0.98765), temperature_in_words(1.0)
        ('T = 1.31', 'T = 0.99', '')
    """
    if temperature == 1:
        return ""
    return f"T = {temperature:.2f}" if 0.095 <= temperature < 99.5 else f"T = {temperature:.3g}"


def mode_in_words(mode: str, temperature: float) -> str:
    """A mode of prediction, with what divides its logits.

    Example:
        >>> mode_in_words("samples", 1.3127), mode_in_words("mean", 1.0)
        ('samples (T = 1.31)', 'mean')
    """
    divided = temperature_in_words(temperature)
    return f"{mode} ({divided})" if divided else mode


def _subject(health: Health) -> str:
    return "The linearised posterior" if health.linearised else "Sampling"


def _difference(health: Health) -> str:
    assert health.sampling is not None
    at = "each at its own T" if health.temperatures is not None else "both at T = 1"
    return f"{_rows(health)} {_signed(health.sampling)}, {at}"


def _temperatures(health: Health) -> str:
    """At which temperatures the two were compared."""
    if health.temperatures is None:
        return "both at T = 1"
    of_mean, of_draws = health.temperatures
    first = "the first member" if health.kind == "mixture" else "the mean"
    if health.in_training:
        return f"each at its own T: {first}'s {of_mean:.2f}, the draws' {of_draws:.2f}"
    asked = f"{of_mean:.2f} at {first}, {of_draws:.2f} of the draws"
    return f"each at its own T, fitted to others of them; all ask for {asked}"


def skipped_in_words(diagnostics: Mapping[str, Any]) -> str:
    """How many steps of a training were skipped; empty where none were.

    Args:
        diagnostics: `meta.diagnostics`.

    Example:
        >>> skipped_in_words({"steps": 2, "skipped_steps": 4})
        '4 of 6 steps skipped for a number that was not finite'
    """
    taken, skipped = skipped_steps(diagnostics)
    return f"{skipped} of {taken + skipped} steps skipped for a number that was not finite" if skipped else ""


def _skipped(health: Health) -> str:
    if not health.skipped_steps:
        return ""
    return (
        f"{health.skipped_steps} of {health.steps} steps were skipped, because a number in them was not finite: the "
        "model has learned from the others only. A lower learning rate or another dtype may help."
    )


def _not_learned(health: Health) -> str:
    """That the point is not shown to be better than always giving the most frequent answer, and what to do."""
    learned = health.learned
    if learned is None or learned.beats_most_frequent:
        return ""
    low, high = learned.interval
    what, more = "It is not shown that the model has learned the task", ", or give more validation rows"
    if learned.at_most_as_often:
        what, more = "The model has not learned the task yet", ""
    return (
        f"{what}: it is right on {_percent(learned.right / learned.rows)} of "
        f"{counted(learned.rows, 'validation row')} (95 % interval {100 * low:.0f} to {100 * high:.0f} %), and the "
        f"most frequent answer on {_percent(learned.most_frequent / learned.rows)}. Train for more steps, or with a "
        f"higher learning rate{more}; what is said of sampling and of temperatures may be of a model that knows no "
        "more than that."
    )


def _remedy(health: Health) -> str:
    if health.derived:
        return "`varlora tune` predicts the validation rows of the run that it was made from, if there are some."
    if health.unknown.startswith("validation rows were predicted at the mean only"):
        return "`varlora tune` tries draws on them, if they have labels."
    return f"Train with {FEWEST_ROWS} labelled validation rows or more (validation_file or validation_size) to know."


def _cheaper(health: Health) -> str:
    if health.linearised or health.draws == 1:
        return "which is simpler" if health.draws == 1 else "which is cheaper"
    times = _TIMES[health.draws] if health.draws < len(_TIMES) else str(health.draws)
    return f"it is {times} times cheaper"


def _unsettled(health: Health, run: str) -> str:
    """That λ ended at a bound, or that predictions were off at its end, and what to do."""
    end = health.held_out
    off = end is not None and end.off and health.logit_temperature == 1 and not health.fitted and not health.tuned
    rest = f"log T̂ {_signed(end.paired)}" if end is not None and end.off else ""
    if health.bound == "lower":
        shorter = health.course is not None and health.course.may_be_too_long and not _not_learned(health)
        over = (
            f"λ ended at its lower bound, λ_0/{1 / BOUNDS[0]:g}{rest and f' ({rest})'}: the model is over-confident "
            "with as much noise as is allowed"
        )
        divided = temperature_in_words(health.logit_temperature)
        if divided or health.fitted:
            done = f"its logits are divided ({divided})" if divided else "a temperature was fitted, which stays at 1"
            return f"{over}, and {done}.{' Train for fewer steps.' if shorter else ''}"
        return (
            f"{over}. {'Train for fewer steps, or divide' if shorter else 'Divide'} the logits "
            f"({_dividing(health, run)})."
        )
    if health.bound == "upper":
        return (
            f"λ ended at its upper bound, {BOUNDS[1]:g} λ_0{rest and f' ({rest})'}, where the noise is as good as off: "
            "the model is under-confident by itself. Train for more steps, or with a higher learning rate."
        )
    if not off or end is None:
        return ""
    confident = "over-confident" if end.log_temperature > 0 else "under-confident"
    return (
        f"Held-out predictions were still {confident} at the end ({rest}): λ had not settled. Train for more steps, or "
        f"divide the logits ({_dividing(health, run)})."
    )


def _dividing(health: Health, run: str) -> str:
    return f"`varlora tune {run}`" if health.can_be_tuned else "`varlora tune` does, where there are validation rows"


def _course(health: Health) -> str:
    assert health.ess is not None
    assert health.num_examples is not None
    kind = coldness(health.ess, health.num_examples, health.hessian_moved, fit=bool(health.fits)).partition(": ")[2]
    if health.ess_start is None:
        return kind if health.fits else f"weight of the data against the prior: {kind}"
    start = _significant(health.ess_start / health.num_examples)
    if math.isclose(health.ess, health.ess_start):
        return f"as at the start: held-out rows asked for no other; {kind}"
    return f"from {start} at the start, steered by held-out rows; {kind}"


def _rows(health: Health) -> str:
    if health.sampling_source == "train":
        return "NLL of withheld training rows"
    if health.in_training:
        return "NLL of validation rows in training"
    return f"validation NLL{' of completions' if health.completions else ''}"


def _which(source: Source) -> str:
    return "withheld training" if source == "train" else "validation"


def _signed(paired: Paired) -> str:
    """With two decimals, and up to four where the error needs them to be told from 0."""
    smallest = paired.standard_error or abs(paired.difference)
    digits = min(max(math.ceil(-math.log10(smallest)), 2), 4) if smallest > 0 else 2
    value = f"{paired.difference:+.{digits}f}"
    if float(value) == 0:
        value = value[1:]
    return f"{value.replace('-', MINUS)} ± {paired.standard_error:.{digits}f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _significant(value: float) -> str:
    return show(float(f"{value:.3g}"))


def _ratio(ratio: float, tensor: str = "") -> Cell:
    text = f"{ratio:.2g}" if math.isfinite(ratio) else "∞"
    first: Line = (Number(text, ratio),)
    return Cell(lines=(first, (tensor,)) if tensor else (first,))


def _short(tensor: TensorScale, group: ScaleGroup) -> str:
    """A key without what all keys of its group begin and end with; the word before a number stays."""
    keys = [_parts(t.key) for t in group.tensors]
    own = _parts(tensor.key)
    start = _common(keys) if len(keys) > 1 else max(len(own) - 2, 0)
    if start > 0 and start < len(own) and own[start].isdigit():
        start -= 1
    return ".".join(own[min(start, len(own) - 1) :])


def _parts(key: str) -> list[str]:
    parts = [part for part in key.split(".") if not part.startswith("lora_")]
    while len(parts) > 1 and parts[0] in ("base_model", "model"):
        parts = parts[1:]
    return parts[:-1] if len(parts) > 1 and parts[-1] == "weight" else parts


def _common(keys: Sequence[Sequence[str]]) -> int:
    for place, parts in enumerate(zip(*keys, strict=False)):
        if len(set(parts)) > 1:
            return place
    return min(map(len, keys))
