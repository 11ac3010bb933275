"""How long an encoder takes: by arithmetic, measured, or as somebody says."""

import pytest
import torch

from speechfuse import rates
from speechfuse.errors import RecipeError
from speechfuse.rates import EFFICIENCY, duration, find_rates
from speechfuse.upstreams.filterbank import Filterbank
from speechfuse.upstreams.huggingface import HuggingFace

CPU = torch.device("cpu")


@pytest.fixture
def product(monkeypatch):
    """Of this machine: a hundred thousand million multiply-adds a second."""
    monkeypatch.setattr(rates, "product_rate", lambda device: 1e11)


def test_a_guess_is_by_multiply_adds(product, encoder):
    upstream = HuggingFace(source=str(encoder("hubert")))
    found, how = find_rates({"one": upstream}, CPU, {})
    assert found == {"one": pytest.approx(EFFICIENCY * 1e11 / upstream.plan.macs_per_second)}
    assert how == "guessed from multiply-adds, cpu"
    assert upstream.states is None  # no weights are read


def test_what_is_given_counts_and_the_rest_is_guessed_or_measured(product):
    upstreams = {"one": Filterbank(), "two": Filterbank()}
    assert find_rates(upstreams, CPU, {"": 50.0, "two": 7.0}) == (
        {"one": 50.0, "two": 7.0},
        "rates as given",
    )
    found, how = find_rates(upstreams, CPU, {"one": 50.0})
    assert found["one"] == 50.0
    assert how == "rates as given and guessed from multiply-adds, cpu"
    with pytest.raises(RecipeError, match=r"--rate tow: no such upstream; .* mean 'two'"):
        find_rates(upstreams, CPU, {"tow": 7.0})


def test_a_measurement_reads_the_weights_and_times_the_second_pass(encoder, monkeypatch):
    upstream = HuggingFace(source=str(encoder("hubert")))
    passes = []
    forward = HuggingFace.forward

    def watched(self, wav):
        passes.append(wav.samples.shape)
        return forward(self, wav)

    monkeypatch.setattr(HuggingFace, "forward", watched)
    found, how = find_rates({"one": upstream}, CPU, {}, measure=True)
    assert passes == [(1, 64000)] * 2
    assert found["one"] > 1
    assert how == "measured on 4 s clips, cpu"


def test_durations_are_for_reading():
    assert [duration(s) for s in (3.2, 90, 5400)] == ["3 s", "1.5 min", "1.5 h"]
