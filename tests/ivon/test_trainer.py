"""Trainer, SFTTrainer and DPOTrainer against the plain loop; resume; the settings that would spoil a posterior."""

import copy
import warnings
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from models import lora, tiny_llama, tiny_qwen3
from varlora import (
    IVON,
    IVONConfig,
    NoiseController,
    VariationalCallback,
    VariationalTrainerMixin,
    load_posterior,
    posterior_from_checkpoint,
    posterior_of,
)
from varlora.ivon import fit_variance

ROWS = [
    {"input_ids": ids, "labels": ids, "attention_mask": [1] * 6}
    for ids in torch.arange(96).view(16, 6).remainder(60).tolist()
]
CONFIG = IVONConfig(recipe="cong2024", lr=1.0, ess=1e4, hess_init=1e-2, betas=(0.9, 0.99))
ADAM = IVONConfig(lr=1e-3, ess=1e4)  # otherwise as recipe "auto" says
LEARNED = IVONConfig(lr=1e-3, ess=1e4, hess_init=1e-2, betas=(0.9, 0.99), prior="adaptive", variance="hessian")


class VariationalTrainer(VariationalTrainerMixin, Trainer):
    pass


@pytest.fixture(autouse=True)
def _noise_of_an_untrained_model(monkeypatch):
    """With its 4 nats a variance that follows the fit would be too small to tell one noise from another."""
    monkeypatch.setattr(fit_variance, "LOSS_EXPONENT", 0.5)
    monkeypatch.setattr(fit_variance, "VARIANCE_PER_RATE", 1.0)


def arguments(folder, **options):
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "lr_scheduler_type": "constant",
            "report_to": "none",
            "use_cpu": True,
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "seed": 3,
            "max_grad_norm": 0.0,
            **options,
        }
    )


def dataset():
    return Dataset.from_list(ROWS).with_format("torch")


def adapter(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def precisions(model, optimizer):
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return {n: optimizer.precision(p).clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **({"rtol": 0, "atol": 0} | tolerance))


def unmodified(model, args, config=CONFIG, **options):
    return Trainer(
        model=model,
        args=args,
        train_dataset=dataset(),
        optimizer_cls_and_kwargs=(IVON, config.optimizer_kwargs()),
        callbacks=[VariationalCallback()],
        **options,
    )


def mixed_in(model, args, config=CONFIG, **options):
    return VariationalTrainer(model=model, args=args, train_dataset=dataset(), variational=config, **options)


def plain_loop(model, batches, accumulation=1, clip=0.0, config=CONFIG, seed=3):
    """What a Trainer must amount to: the batches in its order, forward, backward, step."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = IVON(parameters, **config.optimizer_kwargs())
    NoiseController(model, optimizer, seed=seed)
    for start in range(0, len(batches), accumulation):
        chunk = batches[start : start + accumulation]
        tokens = sum(batch["labels"][:, 1:].numel() for batch in chunk)
        for batch in chunk:
            share = batch["labels"][:, 1:].numel() / tokens
            (model(**batch).loss * share).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def batches_of(trainer, count):
    """The batches that the trainer will see, in order."""
    set_seed(trainer.args.seed)
    batches = []
    loader = trainer.get_train_dataloader()
    for epoch in range(10):
        loader.set_epoch(epoch) if hasattr(loader, "set_epoch") else None
        for batch in loader:
            batches.append(dict(batch.items()))
            if len(batches) == count:
                return batches
    raise AssertionError


CUT, CLIPPED = {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.05}


@pytest.mark.parametrize(
    ("build", "config", "settings"),
    [
        *((tiny_llama, CONFIG, settings) for settings in ({}, CUT, CLIPPED, {"gradient_checkpointing": True})),
        *((tiny_llama, config, settings) for config in (ADAM, LEARNED) for settings in (CUT, CLIPPED)),
        (tiny_qwen3, CONFIG, {}),
    ],
)
def test_both_ways_into_a_trainer_equal_the_plain_loop(tmp_path, build, config, settings):
    twin = lora(build())
    models = [copy.deepcopy(twin) for _ in range(2)]
    accumulation = settings.get("gradient_accumulation_steps", 1)
    batches = batches_of(unmodified(copy.deepcopy(twin), arguments(tmp_path, **settings), config), 4 * accumulation)
    optimizer = plain_loop(twin, batches, accumulation, settings.get("max_grad_norm", 0.0), config)
    for make, model in zip((unmodified, mixed_in), models, strict=True):
        trainer = make(model, arguments(tmp_path, **settings), config)
        trainer.train()
        assert_same(adapter(model), adapter(twin), rtol=1e-5, atol=1e-7)
        assert_same(precisions(model, trainer.optimizer), precisions(twin, optimizer), rtol=1e-5, atol=1e-7)


def test_bf16_autocast_stays_close_to_float32(tmp_path):
    results = []
    for bf16 in (False, True):
        model = lora(tiny_llama(layers=1))
        unmodified(model, arguments(tmp_path, bf16=bf16, max_steps=2)).train()
        results.append(torch.cat([v.flatten() for v in adapter(model).values()]))
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    start = torch.cat([v.flatten() for v in adapter(lora(tiny_llama(layers=1))).values()])
    moved, difference = (results[0] - start).norm(), (results[0] - results[1]).norm()
    assert difference < 0.35 * moved  # sign-like steps at bf16's resolution of the gradient


class WarmerByTheStep(TrainerCallback):
    """Changes λ after every step."""

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["ess"] /= 1.2


@pytest.mark.parametrize("config", [CONFIG, IVONConfig(lr=1e-3)], ids=["newton", "auto"])
@pytest.mark.parametrize("make", [unmodified, mixed_in])
def test_resuming_from_any_step_is_bit_identical(tmp_path, make, config):
    """With dropout on, accumulation and a λ that moves, so that every random stream and number matters."""
    settings = {
        "max_steps": 6,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "save_steps": 1,
        "lr_scheduler_type": "linear",
    }

    def trained(folder, seed, checkpoint=None):
        model = lora(tiny_llama(layers=1), lora_dropout=0.1, seed=seed)
        saving = "steps" if checkpoint is None else "no"
        trainer = make(model, arguments(folder, save_strategy=saving, **settings), config)
        trainer.add_callback(WarmerByTheStep())
        torch.rand(17)  # whatever a new process draws meanwhile
        trainer.train(resume_from_checkpoint=checkpoint)
        return model, trainer.optimizer

    model, optimizer = trained(tmp_path / "whole", seed=1)
    for stop in (1, 3, 5):
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{stop}")
        resumed_model, resumed = trained(tmp_path / str(stop), seed=11, checkpoint=checkpoint)
        assert_same(adapter(model), adapter(resumed_model))
        assert_same(precisions(model, optimizer), precisions(resumed_model, resumed))
        ess = [o.param_groups[0]["ess"] for o in (optimizer, resumed)]
        assert ess[0] == ess[1] == pytest.approx((1600.0 if config.ess is None else 1e4) / 1.2**6)


@pytest.mark.parametrize(("make", "dropout"), [(unmodified, 0.0), (mixed_in, 0.1)])
def test_evaluation_during_training_changes_nothing(tmp_path, make, dropout):
    """An unmodified Trainer's data loader draws from the generator of the dropout masks; the mixin shields it."""
    results = []
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model = lora(tiny_llama(layers=1), lora_dropout=dropout)
        make(model, arguments(tmp_path, **settings), eval_dataset=dataset()).train()
        results.append(adapter(model))
    assert_same(*results)


def test_evaluation_is_at_the_mean(tmp_path):
    model = lora(tiny_llama(layers=1))
    trainer = unmodified(model, arguments(tmp_path), eval_dataset=dataset())
    trainer.train()
    expected = trainer.evaluate()["eval_loss"]
    untouched = lora(tiny_llama(layers=1))
    untouched.load_state_dict(model.state_dict())
    untouched.eval()
    with torch.no_grad():
        batch = dict(next(iter(DataLoader(dataset(), batch_size=16))).items())
        assert untouched(**batch).loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_best_model_comes_with_its_own_hessian(tmp_path):
    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # the worst: surely not the last
    }
    model = lora(tiny_llama(layers=1))
    trainer = unmodified(model, arguments(tmp_path, **settings), eval_dataset=dataset())
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("-4")
    saved = torch.load(f"{best}/optimizer.pt", weights_only=True)
    for index, state in trainer.optimizer.state_dict()["state"].items():
        assert torch.equal(state["hessian"], saved["state"][index]["hessian"])
    with pytest.raises(ValueError, match="save_only_model"):
        unmodified(model, arguments(tmp_path, **settings, save_only_model=True), eval_dataset=dataset()).train()


def test_several_draws_per_step_are_averaged(tmp_path):
    config = IVONConfig(**{**CONFIG.__dict__, "draws": 3})
    model = lora(tiny_llama(layers=1))
    twin = copy.deepcopy(model)
    batches = batches_of(mixed_in(copy.deepcopy(model), arguments(tmp_path)), 4)
    trainer = mixed_in(model, arguments(tmp_path), config)
    trainer.train()
    repeated = [batch for batch in batches for _ in range(3)]
    optimizer = plain_loop(twin, repeated, accumulation=3)
    assert_same(adapter(model), adapter(twin), rtol=1e-5, atol=1e-7)
    assert_same(precisions(model, trainer.optimizer), precisions(twin, optimizer), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [unmodified, mixed_in])
@pytest.mark.parametrize(
    ("config", "ess", "hess_init"),
    [
        (IVONConfig(lr=1e-3), 1600.0, "auto"),
        (IVONConfig(lr=1e-3, variance="hessian"), 1600.0, 0.01),
        (IVONConfig(lr=1e-3, ess=4e3, variance="hessian"), 4e3, 0.004),
        (IVONConfig(recipe="cong2025"), 20000.0, 1e-3),
        (IVONConfig(recipe="cong2024"), 1e6, 1e-3),
    ],
)
def test_ess_and_h0_come_from_the_size_of_the_training_set(tmp_path, make, config, ess, hess_init):
    trainer = make(lora(tiny_llama(layers=1)), arguments(tmp_path, max_steps=1), config)
    trainer.train()
    [(found_ess, found_init)] = {(g["ess"], g["hess_init"]) for g in trainer.optimizer.param_groups if g["params"]}
    assert (found_ess, found_init) == pytest.approx((ess, hess_init))


def test_a_set_without_a_length_needs_its_size_from_the_user(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(dataset())

    def train(callback):
        trainer = Trainer(
            model=lora(tiny_llama(layers=1)),
            args=arguments(tmp_path, max_steps=1),
            train_dataset=Stream(),
            optimizer_cls_and_kwargs=(IVON, IVONConfig(lr=1e-3).optimizer_kwargs()),
            callbacks=[callback],
        )
        trainer.train()
        return trainer.optimizer.param_groups[0]["ess"]

    with pytest.raises(ValueError, match=r"no length\. Pass VariationalCallback\(num_examples="):
        train(VariationalCallback())
    assert train(VariationalCallback(num_examples=50)) == 5000.0


def test_auto_trains_with_the_trainers_learning_rate_and_schedule(tmp_path):
    settings = {"learning_rate": 3e-4, "lr_scheduler_type": "linear", "max_steps": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer = mixed_in(lora(tiny_llama(layers=1)), arguments(tmp_path, **settings), IVONConfig())
    seen = []

    class Rates(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            seen.append(optimizer.param_groups[0]["lr"])

    trainer.add_callback(Rates())
    before = adapter(trainer.model)
    trainer.train()
    assert seen == pytest.approx([3e-4, 2.25e-4, 1.5e-4, 0.75e-4])
    largest = max((value - before[name]).abs().max() for name, value in adapter(trainer.model).items())
    assert 2e-4 < largest < 8e-4  # AdamW's step is of the size of its learning rate


def test_the_mixins_default_is_auto(tmp_path):
    trainer = VariationalTrainer(
        model=lora(tiny_llama(layers=1)), args=arguments(tmp_path, learning_rate=7e-4), train_dataset=dataset()
    )
    [group] = trainer.create_optimizer().param_groups
    assert (group["update"], group["variance"], group["lr"]) == ("adam", "fit", 7e-4)


@pytest.mark.parametrize("make", [unmodified, mixed_in])
@pytest.mark.parametrize("recipe", ["auto", "cong2024"])
def test_a_training_of_no_epoch_is_one(tmp_path, make, recipe):
    config = IVONConfig(lr=1e-3, recipe=recipe, ess=1e4, held_out="none")
    settings = {"max_steps": -1, "num_train_epochs": 0, "learning_rate": 1e-3}
    trainer = make(lora(tiny_llama(layers=1)), arguments(tmp_path, **settings), config)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["variance"] == ("fit" if recipe == "auto" else "hessian")


def test_a_posterior_says_what_its_variance_came_from(tmp_path):
    config = IVONConfig(lr=1e-3, held_out="none")
    settings = {"max_steps": 4, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1}
    trainer = mixed_in(lora(tiny_llama(layers=1)), arguments(tmp_path, **settings), config)
    trainer.train()
    finished = posterior_of(trainer.model, trainer.optimizer)
    early = posterior_from_checkpoint(Path(trainer.args.output_dir) / "checkpoint-1")
    [finished], [early] = (q.meta.diagnostics["fit_variance"] for q in (finished, early))
    assert (finished["lr_sum"], early["lr_sum"]) == (pytest.approx(4e-3), pytest.approx(1e-3))
    assert 0 < early["mean_loss"] < 2 * finished["mean_loss"]
    assert finished["mean_loss"] == pytest.approx(trainer.state.log_history[-1]["train_loss"], rel=0.02)


def test_the_plain_callback_path_needs_the_learning_rate(tmp_path):
    with pytest.raises(ValueError, match=r"IVONConfig\(lr=args\.learning_rate\)"):
        unmodified(lora(tiny_llama(layers=1)), arguments(tmp_path), IVONConfig())


def test_the_trainers_weight_decay_does_not_reach_the_prior_unnoticed(tmp_path):
    config = IVONConfig(recipe="cong2024", lr=1.0, ess=1e4, weight_decay=1e-3)
    with pytest.raises(ValueError, match=r"weight_decay=0\.001 given to IVON was overwritten with 0\.0"):
        unmodified(lora(tiny_llama(layers=1)), arguments(tmp_path), config).train()
    trainer = mixed_in(lora(tiny_llama(layers=1)), arguments(tmp_path, max_steps=1), config)
    trainer.train()
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {1e-3}
    with pytest.raises(ValueError, match="weight_decay"):
        mixed_in(lora(tiny_llama(layers=1)), arguments(tmp_path, weight_decay=0.1), config)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (IVONConfig(recipe="cong2024"), r"recipe='cong2024', lr=0\.03"),
        (IVONConfig(lr=1e-3), r"recipe='auto', lr=0\.001"),
    ],
)
def test_a_learning_rate_that_has_no_effect_is_warned_about(tmp_path, config, named):
    with pytest.warns(UserWarning, match=rf"learning_rate=0\.0001\) has no effect: .*{named}"):
        mixed_in(lora(tiny_llama(layers=1)), arguments(tmp_path, learning_rate=1e-4), config)


def test_a_callback_without_ivon_is_an_error_that_says_what_to_pass(tmp_path):
    trainer = Trainer(
        model=lora(tiny_llama(layers=1)),
        args=arguments(tmp_path),
        train_dataset=dataset(),
        callbacks=[VariationalCallback()],
    )
    with pytest.raises(TypeError, match="optimizer_cls_and_kwargs"):
        trainer.train()


def test_an_interrupted_training_can_start_again(tmp_path):
    model = lora(tiny_llama(layers=1))
    trainer = unmodified(model, arguments(tmp_path))

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    original = nn.functional.silu
    nn.functional.silu = interrupt
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    finally:
        nn.functional.silu = original
    trainer.train()
    assert trainer.state.global_step == 4


def test_an_unmodified_sft_trainer_equals_the_plain_loop(tmp_path):
    trl = pytest.importorskip("trl")
    model = lora(tiny_qwen3())
    twin = copy.deepcopy(model)

    def make(model):
        args = trl.SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            max_steps=3,
            lr_scheduler_type="constant",
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=3,
            max_grad_norm=0.0,
            gradient_checkpointing=False,
        )
        return trl.SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list([{"input_ids": row["input_ids"]} for row in ROWS]),
            processing_class=tokenizer(),
            optimizer_cls_and_kwargs=(IVON, CONFIG.optimizer_kwargs()),
            callbacks=[VariationalCallback()],
        )

    batches = batches_of(make(copy.deepcopy(model)), 3)
    trainer = make(model)
    trainer.train()
    optimizer = plain_loop(twin, batches)
    assert_same(adapter(model), adapter(twin), rtol=1e-4, atol=1e-6)
    assert_same(precisions(model, trainer.optimizer), precisions(twin, optimizer), rtol=1e-4, atol=1e-6)


def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({f"w{i}": i for i in range(62)} | {"<pad>": 62, "<eos>": 63}, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def test_dpo_trains_through_the_mixin(tmp_path):
    trl = pytest.importorskip("trl")

    class VariationalDPOTrainer(VariationalTrainerMixin, trl.DPOTrainer):
        pass

    model = lora(tiny_llama(layers=1))
    before = adapter(model)
    rows = [{"prompt": f"w{i} w{i + 1}", "chosen": f" w{i + 2}", "rejected": f" w{i + 3}"} for i in range(8)]
    trainer = VariationalDPOTrainer(
        model=model,
        args=trl.DPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            max_steps=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        variational=CONFIG,
    )
    trainer.train()
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    assert optimizer.step_index == 2
    assert optimizer.skipped_steps == 0
    for name, value in adapter(model).items():
        assert (value - before[name]).abs().max() == pytest.approx(2e-3, rel=0.51)  # lr * clip_radius a step
        state = optimizer.state[dict(model.named_parameters())[name]]
        assert not torch.equal(state["hessian"], torch.full_like(state["hessian"], 1e-2))


def test_a_plain_accelerate_loop_accumulates_like_one_big_step():
    from accelerate import Accelerator

    model = lora(tiny_llama(layers=1))
    twin = copy.deepcopy(model)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], **CONFIG.optimizer_kwargs())
    loader = DataLoader(dataset(), batch_size=4)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    NoiseController(prepared, optimizer, seed=3)
    prepared.train()
    for batch in loader:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
    batches = [dict(batch.items()) for batch in DataLoader(dataset(), batch_size=4)]
    plain = plain_loop(twin, batches, accumulation=2)
    assert_same(adapter(model), adapter(twin), rtol=1e-5, atol=1e-7)
    assert_same(precisions(model, optimizer), precisions(twin, plain), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("adapter_name", ["default", "mine"])
def test_whatever_way_a_trainer_saves_the_posterior_is_there(tmp_path, monkeypatch, adapter_name):
    pushed = []

    class Hub:
        def upload_folder(self, folder_path, **sent):
            pushed.append({file.name for file in Path(folder_path).iterdir()})
            done = Future()
            done.set_result(None)
            return done

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)

    def no_repository(trainer, **given):
        trainer.hub_model_id, trainer.push_in_progress = "me/model", None

    monkeypatch.setattr(Trainer, "init_hf_repo", no_repository)
    model = get_peft_model(tiny_llama(layers=1), LoraConfig(r=4, target_modules=["q_proj"]), adapter_name=adapter_name)
    args = arguments(tmp_path / "run", save_strategy="steps", save_steps=2, push_to_hub=True, hub_always_push=True)
    trainer = mixed_in(model, args)
    trainer.train()
    assert len(pushed) == 2
    trainer.save_model(tmp_path / "saved")
    trainer.push_to_hub()
    expected = posterior_of(model, trainer.optimizer, num_examples=len(ROWS))
    below = "" if adapter_name == "default" else adapter_name
    if adapter_name == "default":
        assert all({"posterior.json", "posterior.safetensors"} <= files for files in pushed)
    for folder in (tmp_path / "saved", tmp_path / "run", tmp_path / "run" / "checkpoint-4"):
        q = load_posterior(folder / below)
        assert_same(q.mean, expected.mean)
        assert_same(q.precision, expected.precision)
        assert q.meta == expected.meta
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([[3, 4]])).logits
        again = PeftModel.from_pretrained(tiny_llama(layers=1), tmp_path / "saved" / below).eval()
        assert torch.equal(again(input_ids=torch.tensor([[3, 4]])).logits, logits)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    halfway, of_the_optimizer = (
        load_posterior(checkpoint / below),
        posterior_from_checkpoint(checkpoint, adapter=adapter_name),
    )
    assert_same(halfway.mean, of_the_optimizer.mean)
    assert_same(halfway.precision, of_the_optimizer.precision)


def test_a_trainer_that_saves_before_it_trains_says_that_there_is_no_posterior(tmp_path, caplog):
    mixed_in(lora(tiny_llama(layers=1)), arguments(tmp_path)).save_model(tmp_path / "saved")
    assert "saved holds no posterior: there is none before the first training" in caplog.text
    assert not (tmp_path / "saved" / "posterior.json").exists()
