"""Trainer, SFTTrainer and DPOTrainer against the plain loop; resume; the settings that would spoil a posterior."""

import copy

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed

from models import lora, tiny_llama, tiny_qwen3
from varlora import IVON, IVONConfig, NoiseController, VariationalCallback, VariationalTrainerMixin
from varlora.training import default_ess

ROWS = [
    {"input_ids": ids, "labels": ids, "attention_mask": [1] * 6}
    for ids in torch.arange(96).view(16, 6).remainder(60).tolist()
]
CONFIG = IVONConfig(lr=1.0, ess=1e4, hess_init=1e-2, betas=(0.9, 0.99), weight_decay=0.0)


class VariationalTrainer(VariationalTrainerMixin, Trainer):
    pass


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


def hessians(model, optimizer):
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return {n: optimizer.state[p]["hessian"].clone() for n, p in model.named_parameters() if p.requires_grad}


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


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3])
@pytest.mark.parametrize("make", [unmodified, mixed_in])
@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.05}, {"gradient_checkpointing": True}]
)
def test_trainer_equals_the_plain_loop(tmp_path, build, make, settings):
    model = lora(build())
    twin = copy.deepcopy(model)
    trainer = make(model, arguments(tmp_path, **settings))
    accumulation = settings.get("gradient_accumulation_steps", 1)
    batches = batches_of(make(copy.deepcopy(model), arguments(tmp_path, **settings)), 4 * accumulation)
    trainer.train()
    optimizer = plain_loop(twin, batches, accumulation, settings.get("max_grad_norm", 0.0))
    assert_same(adapter(model), adapter(twin), rtol=1e-5, atol=1e-7)
    assert_same(hessians(model, trainer.optimizer), hessians(twin, optimizer), rtol=1e-5, atol=1e-7)


def test_bf16_autocast_stays_close_to_float32(tmp_path):
    results = []
    for bf16 in (False, True):
        model = lora(tiny_llama())
        unmodified(model, arguments(tmp_path, bf16=bf16, max_steps=2)).train()
        results.append(torch.cat([v.flatten() for v in adapter(model).values()]))
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    start = torch.cat([v.flatten() for v in adapter(lora(tiny_llama())).values()])
    moved, difference = (results[0] - start).norm(), (results[0] - results[1]).norm()
    assert difference < 0.35 * moved  # sign-like steps at bf16's resolution of the gradient


@pytest.mark.parametrize("make", [unmodified, mixed_in])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resuming_from_any_step_is_bit_identical(tmp_path, make, stop):
    """With dropout on and accumulation, so that every random stream matters."""
    settings = {
        "max_steps": 6,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "linear",
    }
    model = lora(tiny_llama(), lora_dropout=0.1)
    trainer = make(model, arguments(tmp_path, **settings))
    trainer.train()

    resumed_model = lora(tiny_llama(), lora_dropout=0.1, seed=11)
    resumed = make(resumed_model, arguments(tmp_path, **settings))
    torch.rand(17)  # whatever the new process drew meanwhile
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert_same(adapter(model), adapter(resumed_model))
    assert_same(hessians(model, trainer.optimizer), hessians(resumed_model, resumed.optimizer))


@pytest.mark.parametrize(("make", "dropout"), [(unmodified, 0.0), (mixed_in, 0.1)])
def test_evaluation_during_training_changes_nothing(tmp_path, make, dropout):
    """An unmodified Trainer's data loader draws from the generator of the dropout masks; the mixin shields it."""
    results = []
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model = lora(tiny_llama(), lora_dropout=dropout)
        make(model, arguments(tmp_path, **settings), eval_dataset=dataset()).train()
        results.append(adapter(model))
    assert_same(*results)


def test_evaluation_is_at_the_mean(tmp_path):
    model = lora(tiny_llama())
    trainer = unmodified(model, arguments(tmp_path), eval_dataset=dataset())
    trainer.train()
    expected = trainer.evaluate()["eval_loss"]
    untouched = lora(tiny_llama())
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
    model = lora(tiny_llama())
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
    model = lora(tiny_llama())
    twin = copy.deepcopy(model)
    batches = batches_of(mixed_in(copy.deepcopy(model), arguments(tmp_path)), 4)
    trainer = mixed_in(model, arguments(tmp_path), config)
    trainer.train()
    repeated = [batch for batch in batches for _ in range(3)]
    optimizer = plain_loop(twin, repeated, accumulation=3)
    assert_same(adapter(model), adapter(twin), rtol=1e-5, atol=1e-7)
    assert_same(hessians(model, trainer.optimizer), hessians(twin, optimizer), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [unmodified, mixed_in])
def test_ess_comes_from_the_size_of_the_training_set(tmp_path, make):
    config = IVONConfig(lr=1.0)
    trainer = make(lora(tiny_llama()), arguments(tmp_path, max_steps=1), config)
    trainer.train()
    assert {group["ess"] for group in trainer.optimizer.param_groups} == {default_ess(16)} == {20000.0}


def test_the_trainers_weight_decay_does_not_reach_the_prior_unnoticed(tmp_path):
    config = IVONConfig(lr=1.0, ess=1e4, weight_decay=1e-3)
    with pytest.raises(ValueError, match=r"weight_decay=0\.001 given to IVON was overwritten with 0\.0"):
        unmodified(lora(tiny_llama()), arguments(tmp_path), config).train()
    trainer = mixed_in(lora(tiny_llama()), arguments(tmp_path, max_steps=1), config)
    trainer.train()
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {1e-3}
    with pytest.raises(ValueError, match="weight_decay"):
        mixed_in(lora(tiny_llama()), arguments(tmp_path, weight_decay=0.1), config)


def test_a_learning_rate_that_has_no_effect_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match=r"learning_rate=0\.0001\) has no effect"):
        mixed_in(lora(tiny_llama()), arguments(tmp_path, learning_rate=1e-4))


def test_a_callback_without_ivon_is_an_error_that_says_what_to_pass(tmp_path):
    trainer = Trainer(
        model=lora(tiny_llama()),
        args=arguments(tmp_path),
        train_dataset=dataset(),
        callbacks=[VariationalCallback()],
    )
    with pytest.raises(TypeError, match="optimizer_cls_and_kwargs"):
        trainer.train()


def test_an_interrupted_training_can_start_again(tmp_path):
    model = lora(tiny_llama())
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
    assert_same(hessians(model, trainer.optimizer), hessians(twin, optimizer), rtol=1e-4, atol=1e-6)


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

    model = lora(tiny_llama())
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

    model = lora(tiny_llama())
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
    assert_same(hessians(model, optimizer), hessians(twin, plain), rtol=1e-5, atol=1e-7)
