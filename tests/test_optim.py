import pytest
import torch
from torch import nn

from speechfuse.build import read_recipe
from speechfuse.optim import make_optimizer, make_rates


class Gates(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.ParameterDict({t: nn.Parameter(torch.zeros(3)) for t in ("asr", "shared")})


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.upstreams = nn.ModuleList([Gates()])
        self.gates = Gates()
        self.mixed = nn.ParameterList([torch.zeros(3)])
        self.merge = nn.Module()
        self.merge.logits = nn.Parameter(torch.zeros(2))
        self.head = nn.Module()
        self.head.logits = nn.Linear(2, 2)
        self.head.rest = nn.Parameter(torch.zeros(2), requires_grad=False)


def test_logits_of_layers_have_their_own_rate_and_no_decay(tone_recipe):
    """One tensor, or one for each task; a layer that gives logits is none of them."""
    recipe = read_recipe(
        tone_recipe,
        ["training.learning_rate=0.1", "training.layer_rate=10", "training.weight_decay=0.5"],
    )
    model = Model()
    found = {}
    for group in make_optimizer(recipe.training, model).param_groups:
        for parameter in group["params"]:
            (name,) = (n for n, p in model.named_parameters() if p is parameter)
            found[name] = (group["lr"], group["weight_decay"])
    upstream = recipe.training.upstream_learning_rate
    assert found == {
        "upstreams.0.logits.asr": (upstream, 0.5),
        "upstreams.0.logits.shared": (upstream, 0.5),
        "gates.logits.asr": (1.0, 0.0),
        "gates.logits.shared": (1.0, 0.0),
        "mixed.0": (0.1, 0.5),
        "merge.logits": (1.0, 0.0),
        "head.logits.weight": (0.1, 0.5),
        "head.logits.bias": (0.1, 0.5),
    }


@pytest.mark.parametrize(("schedule", "last"), [("linear", 0.2), ("constant", 1.0)])
def test_the_rate_falls_or_stays(tone_recipe, schedule, last):
    overrides = [f"training.schedule={schedule}", "training.steps=10", "training.warmup=0.5"]
    recipe = read_recipe(tone_recipe, [*overrides, "training.optimizer=adam"])
    optimizer = make_optimizer(recipe.training, nn.Linear(2, 2))
    scheduler = make_rates(recipe.training, optimizer)
    assert type(optimizer) is torch.optim.Adam
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"] / recipe.training.learning_rate)
        optimizer.step()
        scheduler.step()
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[9] == pytest.approx(last)


def test_after_warm_up_the_rate_falls_along_the_cosine_of_torch(tone_recipe):
    overrides = ["training.schedule=cosine", "training.steps=20", "training.warmup=0.25"]
    recipe = read_recipe(tone_recipe, overrides)
    optimizer = make_optimizer(recipe.training, nn.Linear(2, 2))
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=recipe.training.learning_rate)
    scheduler = make_rates(recipe.training, optimizer)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(other, T_max=15)
    for step in range(20):
        rate = optimizer.param_groups[0]["lr"]
        if step < 5:
            assert rate == pytest.approx((step + 1) / 5 * recipe.training.learning_rate)
        else:
            assert rate == pytest.approx(other.param_groups[0]["lr"])
            other.step()
            theirs.step()
        optimizer.step()
        scheduler.step()
