import time

import pytest
import torch

from speechfuse.bench import epoch as bench
from speechfuse.steps import load_batch

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

TINY = {
    "model_type": "hubert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
}


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    heads = bench.HEADS | {"asr": {"kind": "ctc", "lstm_dim": 4, "project": 4}}
    monkeypatch.setattr(bench, "HEADS", heads)


def test_epochs_are_timed_and_ratios_are_those_of_the_times():
    table = bench.epoch_table(130.0, 1, time.process_time, TINY)
    assert [row[0] for row in table[2]] == [
        "emotion, weighted_sum",
        "emotion, hconv",
        "asr, weighted_sum",
    ]
    assert {len(row) for row in table[2]} == {len(table[1])}
    (row,) = bench.bench_epoch(130.0, 1, config=TINY, cases=bench.CASES[:1])
    assert min(row.stored, row.held, row.alone, row.encoded) > 0
    assert row.overhead == pytest.approx(row.stored / row.alone)
    assert row.gain == pytest.approx(row.encoded / row.stored)
    assert row.encoded > row.alone


def test_batches_in_memory_are_those_of_the_store_and_of_the_run(tmp_path):
    one = bench.Place(tmp_path, 130.0, TINY).training("emotion", "weighted_sum")
    (store,) = one.stores
    held, asked = bench.Held(store, one.batches), []

    class Watched(bench.Held):
        def batch(self, utterances, spans=None):
            asked.append([u.id for u in utterances])
            return super().batch(utterances, spans)

    one.epoch([Watched(store, one.batches)], time.perf_counter)
    drawn = [[u.id for u in members] for members in one.batches]
    assert asked[1 : len(drawn) + 1] == drawn  # after one step of warming up
    for members in one.batches:
        first, second = (
            load_batch(one.data, [source], members, targets=True) for source in (held, store)
        )
        assert first.inputs[0].stacked().equal(second.inputs[0].stacked())
        assert torch.equal(first.targets.ids, second.targets.ids)
