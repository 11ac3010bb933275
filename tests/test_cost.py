import pytest

from speechfuse import catalog
from speechfuse.build import read_recipe, stack_specs
from speechfuse.cost import Cost, interface_costs


def recipe(*merge):
    return read_recipe(
        {
            "upstreams": {
                "a": {"kind": "filterbank", "num_mels": 24},
                "b": {"kind": "filterbank", "num_mels": 12},
            },
            "fusion": {"merge": {"kind": "concat"}, "interface": {"kind": "hconv"}},
            "tasks": {"asr": {"corpus": "x", "head": {"kind": "ctc"}}},
        },
        merge,
    )


def test_every_interface_has_its_cost():
    found = {c.interface: c for c in interface_costs(recipe(), seconds=0.2, repeats=1)}
    assert set(found) == set(catalog.ROLES["interface"])
    assert all(min(c.forward, c.training) > 0 for c in found.values())
    # One layer of 36 features at 100 Hz: one tap of a convolution, then 36 to 24.
    assert found["hconv"].macs == 100 * (36 * 36 + 36 * 24)
    assert found["hconv"].parameters == 5 * 36 * 36 + 36 + 36 * 24 + 24
    assert found["weighted_sum"].parameters == 1 + 36 * 24 + 24


def test_an_interface_of_ones_own_is_measured_too(monkeypatch):
    monkeypatch.chdir("examples")
    costs = interface_costs(recipe(), ["mean_of_layers:MeanOfLayers"], seconds=0.2, repeats=1)
    assert isinstance(costs[-1], Cost)
    assert costs[-1].parameters == 36 * 24 + 24


def test_one_that_cannot_be_built_says_why():
    costs = interface_costs(recipe("fusion.merge.projection=inside"), seconds=0.2, repeats=1)
    refused = dict(c for c in costs if not isinstance(c, Cost))
    assert "cannot" in refused["weighted_sum"]
    assert "hconv" not in refused


@pytest.fixture
def deep(encoder):
    """Costs over 4 s of encoders of 4 layers of 32 features at 50 Hz, added if several."""

    def costs(*names, seconds=4.0):
        sources = {n: {"kind": "huggingface", "source": str(encoder(n))} for n in names}
        deep = read_recipe(
            {
                "upstreams": sources,
                "fusion": {"merge": {"kind": "add"}, "interface": {"kind": "hconv"}},
                "tasks": {"asr": {"corpus": "x", "head": {"kind": "ctc"}}},
            }
        )
        assert {(s.num_layers, s.dim, s.frame_rate) for s in stack_specs(deep)} == {(4, 32, 50.0)}
        return {c.interface: c for c in interface_costs(deep, seconds=seconds, repeats=1)}

    return costs


OUTPUT = 4 * 50 * 32 * 4  # bytes of 4 s


def test_products_are_those_of_every_layer(deep):
    one, two = deep("hubert"), deep("hubert", "wavlm")
    frame = {
        "single_layer": 0,
        "weighted_sum": 4 * 32,
        "concat_project": 4 * 32 * 32,
        "hconv": (3 + 3) * 32 * 16,  # two outputs, half as wide, that read three layers each
    }
    for name, macs in frame.items():
        assert one[name].macs == 50 * macs
        assert two[name].macs == 50 * macs * (2 if name == "weighted_sum" else 1)
        assert one[name].parameters == two[name].parameters
    assert one["hconv"].parameters == 5 * 32 * 16 + 16


def test_memory_is_what_is_held_beside_the_layers(deep):
    one, two = deep("hubert"), deep("hubert", "wavlm")
    # Of two encoders: a sum of each and the sum of both, or four added layers.
    outputs = {"single_layer": (0, 4), "weighted_sum": (1, 3), "hconv": (2, 2 + 4)}
    for name, (alone, added) in outputs.items():
        assert one[name].memory == pytest.approx(alone * OUTPUT, abs=100)  # weights, lengths
        assert two[name].memory == pytest.approx(added * OUTPUT, abs=100)
    assert one["cls_pooling"].memory > 5 * OUTPUT  # four layers and a token, side by side


def test_memory_is_of_the_pass_and_the_rest_of_a_second(deep):
    one, longer = deep("hubert"), deep("hubert", seconds=8.0)
    for name in ("weighted_sum", "hconv", "concat_project"):
        assert longer[name].memory == pytest.approx(2 * one[name].memory, abs=100)
        assert longer[name].macs == one[name].macs
