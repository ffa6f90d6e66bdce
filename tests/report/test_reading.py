import torch

from varlora.report import Comparison, Row, reading


def row(method: str, right: torch.Tensor, seed: int = 0) -> Row:
    log_probs = torch.stack([right, 1 - right], dim=-1).log()
    labels = torch.zeros(len(right), dtype=torch.int64)
    return Row(method=method, seed=seed, split="test", log_probs=log_probs, labels=labels)


def says(*rows: Row, metrics: tuple[str, ...] = ("accuracy", "nll")) -> str:
    return reading(Comparison(task="t", rows=rows, reference=None, resamples=200), metrics=metrics)


HALF = torch.linspace(0.1, 0.9, 200, dtype=torch.float64)


def test_a_clear_winner() -> None:
    rows = [row(name, HALF + gain * (0.08 + 0.01 * s), s) for name, gain in (("A", 0), ("B", 1)) for s in range(3)]
    assert says(*rows) == (
        "On the test split (200 examples, 3 seeds), “B” has the best accuracy (61.2 %) and NLL (0.619), clearly ahead "
        "of “A”."
    )


def test_one_seed_is_called_one() -> None:
    assert says(row("A", HALF), row("B", HALF + 0.09)) == (
        "On the test split (200 examples, 1 seed), “B” has the best accuracy (61.0 %) and NLL (0.619) in this one "
        "seed, which does not tell how another would end."
    )


def test_a_tie_is_called_no_clear_lead() -> None:
    rows = [
        row(name, p - loss * (0.06 + 0.01 * seed), seed)
        for name, p, loss in (("A", HALF, 0), ("B", HALF.flip(0), 0), ("C", HALF, 1))
        for seed in range(3)
    ]
    assert says(*rows, metrics=("accuracy",)) == (
        "On the test split (200 examples, 3 seeds), “A” has the best accuracy (50.0 %), though not clearly better "
        "than “B”."
    )


def test_nobody_wins_when_all_are_alike() -> None:
    pairs = [(n, p) for n, p in (("A", HALF), ("B", HALF.flip(0)), ("C", HALF.flip(0)))]
    assert says(*(row(n, p, seed) for n, p in pairs for seed in (0, 1)), metrics=("accuracy",)).endswith(
        "“A” has the best accuracy (50.0 %), though not clearly better than any other method."
    )


def test_seeds_that_disagree_decide_nothing() -> None:
    rows = [row("A", HALF), row("A", HALF, 1), row("B", HALF + 0.09), row("B", HALF - 0.01, 1)]
    assert "“B” has the best NLL" in says(*rows, metrics=("nll",))
    assert "though not clearly better than “A”" in says(*rows, metrics=("nll",))


def test_one_method_alone() -> None:
    assert says(row("A", HALF), metrics=("accuracy",)).endswith("“A” reaches accuracy (50.0 %).")
