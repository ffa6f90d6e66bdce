"""Which module reads which parameter."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from models import lora, tiny_llama
from noisy_nets import OPTIONS
from varlora import IVON, NoiseController
from varlora.adapters import unwrapped_model
from varlora.ivon.noise import ReplayedNoise
from varlora.ivon.noise.places import Site, refuse_data_parallel, scopes_of


def test_trained_embeddings_and_their_lora_are_covered():
    model = get_peft_model(
        tiny_llama(), LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False)
    )
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], **OPTIONS)
    controller = NoiseController(model, optimizer)
    ids = torch.arange(8).view(1, 8)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert len(controller.collect()) == sum(p.requires_grad for p in model.parameters())


def test_tied_parameters_share_one_noise():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = Tied()
    optimizer = IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=1.0)
    eps = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    controller = NoiseController(model, optimizer, ReplayedNoise({"a.weight": [eps]}))
    x = torch.ones(1, 3)
    weight = (model.a.weight + eps / 10.0**0.5).detach().requires_grad_()
    expected = (x @ weight.T @ weight.T).sum()
    (gradient,) = torch.autograd.grad(expected, weight)
    out = model(x).sum()
    out.backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(controller.collect()[model.a.weight], gradient * eps / 10.0**0.5)


def test_weights_read_behind_the_modules_back_are_refused():
    class Sneaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return F.linear(self.other(x), self.inner.weight)

    model = Sneaky()
    optimizer = IVON([*model.other.parameters(), model.inner.weight], lr=0.1, ess=10.0, hess_init=1.0)
    NoiseController(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=r"inner\.weight"):
        optimizer.step()


def test_attention_reads_its_projection_through_the_attention_layer():
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    optimizer = IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=1.0)
    NoiseController(model, optimizer)
    x = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    model(x, x, x)[0].sum().backward()
    optimizer.step()
    assert optimizer.state[model.out_proj.weight]["step"] == 1


def places_of(model):
    """For each module: the names of the parameters that it reads."""
    trained = {name: Site(name, p) for name, p in model.named_parameters() if p.requires_grad}
    names = {module: name for name, module in model.named_modules()}
    return {names[scope]: sorted(p.site.name for p in places) for scope, places in scopes_of(model, trained).items()}


def test_a_lora_layer_reads_for_its_submodules():
    found = places_of(lora(tiny_llama(layers=1), target_modules=("q_proj",), use_dora=True))
    [(scope, names)] = found.items()
    assert scope.endswith("q_proj")
    ours = [name.removeprefix(f"{scope}.") for name in names]
    assert ours == ["lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight"]


def test_a_parameter_list_is_read_by_the_module_that_holds_it():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))])

        def forward(self, x):
            return x * self.weights[0] + self.weights[1]

    assert places_of(nn.Sequential(Listed())) == {"0": ["0.weights.0", "0.weights.1"]}


def test_a_module_that_is_there_twice_is_listed_once():
    layer = nn.Linear(2, 2, bias=False)
    assert places_of(nn.Sequential(layer, layer)) == {"0": ["0.weight"]}


def test_names_do_not_depend_on_compilation():
    model = nn.Linear(2, 2)
    assert unwrapped_model(torch.compile(model, backend="eager")) is model
    assert unwrapped_model(model) is model
    with pytest.raises(ValueError, match="one process per device"):
        refuse_data_parallel(nn.DataParallel(model))
