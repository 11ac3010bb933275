from speechfuse import catalog
from speechfuse.build import read_recipe
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
