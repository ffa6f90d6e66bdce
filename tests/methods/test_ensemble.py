"""Deep ensembles: whose members are what, what is averaged, and that a kill at any moment changes nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback

from small_runs import KeepKilled, config, save_model
from tiny_runs import save_encoder
from varlora.adapters import reset_adapter, trained_tensors
from varlora.methods import AdamW, ensemble
from varlora.methods.ensemble import Ensemble, member_seed
from varlora.posterior import Mixture, PointMass, Posterior, PredictionConfig
from varlora.prediction.prediction import Prediction
from varlora.runs.predict import predict_split
from varlora.runs.run import train
from varlora.runs.setting import Setting, load_setting

OPTIONS = {"learning_rate": 0.02}
ENSEMBLE = Ensemble(members=3, **OPTIONS)
KILLS = [
    (2, 24),  # in the first member, before its first checkpoint
    (13, 3 + 2 + 8 - 2 + 2),  # in the second, five steps in, at checkpoint 3
    (9, 16),  # in the second, before its first checkpoint
    (23, 2),  # in the last, at checkpoint 6
]
"""After how many steps in all a kill comes, and how many are left then."""


class Seen(TrainerCallback):
    """The members' starts, and how many steps were made in all."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Tensor]] = []
        self.seeds: list[int] = []
        self.best: list[str | None] = []
        self.steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.starts.append({key: p.detach().clone() for key, p in trained_tensors(kwargs["model"]).items()})
        self.seeds.append(args.seed)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.best.append(state.best_model_checkpoint)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), layers=1)


def fresh(folder: Path, model: str, **options: Any) -> Setting:
    given = {"method": "adamw", "max_steps": 8, "save_steps": 3, "lora_dropout": 0.1, **OPTIONS, **options}
    return load_setting(config(folder, model, **given))


def fitted(
    folder: Path,
    model: str,
    *callbacks: TrainerCallback,
    method: Ensemble = ENSEMBLE,
    resume: bool = False,
    **options: Any,
) -> Any:
    """The setting and what training it gave."""
    setting = fresh(folder, model, **options)
    checkpoints = folder / "checkpoints"
    done = train(setting, method, checkpoints=checkpoints, resume=resume, progress=False, callbacks=callbacks)
    return setting, done


def members(q: Posterior) -> list[dict[str, Tensor]]:
    assert isinstance(q, Mixture)
    assert all(isinstance(component, PointMass) for component in q.components)
    return [dict(component.point) for component in q.components]


def equal(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An ensemble trained without interruption, and the folder of what kills on the way would have left."""
    folder, seen = tmp_path_factory.mktemp("whole"), Seen()
    keep = KeepKilled(folder / "checkpoints", folder / "killed", [stop for stop, _ in KILLS])
    setting, done = fitted(folder, model_folder, seen, keep)
    return setting, done, seen, folder / "killed"


def test_every_member_is_adamws_training_from_its_own_seed(whole: Any, model_folder: str, tmp_path: Path) -> None:
    _, done, seen, _ = whole
    assert seen.seeds == [member_seed(0, i) for i in range(3)] == done.posterior.meta.diagnostics["seeds"]
    for i, member in enumerate(members(done.posterior)):
        setting = fresh(tmp_path / str(i), model_folder)
        if i > 0:
            reset_adapter(setting.model, member_seed(0, i))
        setting = replace(setting, config=replace(setting.config, seed=member_seed(0, i)))
        alone = train(setting, AdamW(**OPTIONS), checkpoints=tmp_path / f"{i}-checkpoints", progress=False)
        assert equal(alone.posterior.point, member)
        assert [{"member": i, **entry} for entry in alone.log if "loss" in entry] == [
            entry for entry in done.log if entry["member"] == i and "loss" in entry
        ]


def test_members_differ_in_start_and_end(whole: Any) -> None:
    _, done, seen, _ = whole
    ends = members(done.posterior)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        for key in ends[0]:
            assert torch.equal(seen.starts[one][key], seen.starts[other][key]) == ("lora_B" in key)
            assert not torch.allclose(ends[one][key], ends[other][key], atol=1e-3)
    assert all(not start[key].any() for start in seen.starts for key in start if "lora_B" in key)


def test_probabilities_are_averaged_not_logits(whole: Any) -> None:
    setting, done, *_ = whole
    prediction = predict_split(setting, done.posterior, "test", PredictionConfig(samples=10))
    assert isinstance(prediction, Prediction)
    assert prediction.num_draws == 3
    assert (prediction.mode, prediction.antithetic) == ("samples", False)
    alone = []
    for component in done.posterior.components:
        found = predict_split(setting, component, "test", PredictionConfig(samples=10))
        assert isinstance(found, Prediction)
        alone.append(found.probs)
    torch.testing.assert_close(prediction.probs, torch.stack(alone).mean(0), atol=1e-12, rtol=0)
    of_logits = prediction.log_probs.mean(1).softmax(-1)
    assert (prediction.probs - of_logits).abs().max() > 1e-4
    first = predict_split(setting, done.posterior, "test", PredictionConfig(mode="mean"))
    assert isinstance(first, Prediction)
    assert torch.equal(first.probs, alone[0])


def test_the_model_holds_the_first_member(whole: Any) -> None:
    setting, done, *_ = whole
    live = {key: p.detach() for key, p in trained_tensors(setting.model).items()}
    assert equal(live, members(done.posterior)[0])


def test_logs_say_whose_they_are(whole: Any) -> None:
    log = whole[1].log
    assert sorted({entry["member"] for entry in log}) == [0, 1, 2]
    assert [entry["member"] for entry in log] == sorted(entry["member"] for entry in log)


@pytest.mark.parametrize(("stop_after", "left"), KILLS)
def test_a_kill_changes_nothing(whole: Any, model_folder: str, tmp_path: Path, stop_after: int, left: int) -> None:
    shutil.copytree(whole[3] / str(stop_after), tmp_path / "checkpoints")
    seen = Seen()
    setting, done = fitted(tmp_path, model_folder, seen, resume=True)
    assert seen.steps == left
    for member, expected in zip(members(done.posterior), members(whole[1].posterior), strict=True):
        assert equal(member, expected)
    assert done.posterior.meta == whole[1].posterior.meta
    assert equal({k: p.detach() for k, p in trained_tensors(setting.model).items()}, done.posterior.point)
    assert [entry for entry in done.log if "loss" in entry] == [entry for entry in whole[1].log if "loss" in entry]


def test_a_kill_while_a_member_is_put_away_changes_nothing(
    whole: Any, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = ensemble.write_posterior_files, []

    def interrupted(q: Posterior, folder: Path) -> None:
        calls.append(folder)
        write(q, folder)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ensemble, "write_posterior_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path, model_folder)
    assert not (tmp_path / "checkpoints" / "member-1" / "finished").exists()
    seen = Seen()
    _, done = fitted(tmp_path, model_folder, seen, resume=True)
    assert seen.steps == 8  # the third; the second's last checkpoint is at its end
    assert all(equal(m, e) for m, e in zip(members(done.posterior), members(whole[1].posterior), strict=True))


def test_each_member_stops_at_its_own_best(model_folder: str, tmp_path: Path) -> None:
    seen = Seen()
    hasty = Ensemble(members=3, learning_rate=0.3)
    _, done = fitted(tmp_path, model_folder, seen, method=hasty, early_stopping=True, eval_steps=2)
    stops = []
    for i, member in enumerate(members(done.posterior)):
        losses = {e["step"]: e["eval_loss"] for e in done.log if e["member"] == i and "eval_loss" in e}
        best = min(losses, key=lambda step: (losses[step], step))
        folder = Path(str(seen.best[i]))
        assert folder == tmp_path / "checkpoints" / f"member-{i}" / f"checkpoint-{best}"
        assert equal(safetensors.torch.load_file(folder / "adapter_model.safetensors"), member)
        stops.append(best)
    assert min(stops) < 8, "some member was best before its end"


def test_patience_is_each_members_own(model_folder: str, tmp_path: Path) -> None:
    setting = fresh(tmp_path, model_folder, early_stopping=True, eval_steps=1, max_steps=6)
    patience = EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=10.0)  # never improves enough
    seen = Seen()
    train(setting, ENSEMBLE, checkpoints=tmp_path / "c", progress=False, callbacks=[patience, seen])
    assert seen.steps == 3 * 3
    assert patience.early_stopping_patience_counter == 0


def test_heads_start_alike_since_they_may_be_pre_trained(tmp_path: Path) -> None:
    seen = Seen()
    model = save_encoder(tmp_path / "model")
    _, done = fitted(tmp_path, model, seen, model_class="encoder", lora_target_modules="query")
    heads = [key for key in seen.starts[0] if "lora_" not in key]
    assert heads
    for key in heads:
        assert torch.equal(seen.starts[0][key], seen.starts[2][key])
        assert not torch.equal(members(done.posterior)[0][key], members(done.posterior)[2][key])


def test_members_of_another_training_are_not_taken_over(whole: Any, model_folder: str, tmp_path: Path) -> None:
    setting = fresh(tmp_path, model_folder)
    shutil.copytree(whole[3].parent / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"member-0 holds a member of an earlier training"):
        train(setting, ENSEMBLE, checkpoints=tmp_path / "checkpoints", progress=False)


def test_a_start_that_cannot_be_drawn_again_is_refused_before_anything_is_trained(
    model_folder: str, tmp_path: Path
) -> None:
    setting, seen = fresh(tmp_path, model_folder), Seen()
    setting.model.peft_config["default"].init_lora_weights = "pissa"  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match="init_lora_weights='pissa' is no random start"):
        train(setting, ENSEMBLE, checkpoints=tmp_path / "c", progress=False, callbacks=[seen])
    assert seen.steps == 0


@pytest.mark.parametrize(("count", "allowed"), [(1, "at least 2"), (0, "at least 2"), (2.5, "a whole number")])
def test_too_few_members_are_refused(count: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"members is {count}; it must be {allowed}"):
        Ensemble(members=count)


def test_seeds_of_members_are_numpys_and_shared_by_no_two_ensembles() -> None:
    seeds = [member_seed(seed, i) for seed in range(50) for i in range(10)]
    assert len(set(seeds)) == 500
    assert all(0 <= seed < 2**32 for seed in seeds)
