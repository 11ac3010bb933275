import re

import pytest
import torch
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.bench import harmonifuse as bench
from speechfuse.decoding import driven, generate
from speechfuse.interfaces.prompt_adaptive import PromptAdaptiveFusion
from speechfuse.interfaces.single_layer import SingleLayer

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

SIZES = bench.Sizes("tiny", seconds=0.5, tokens=6)


def test_writing_is_timed_for_every_batch():
    rows = [r for r in bench.bench_writing(SIZES, 1, batches=(1, 2)) if r.device == "cpu"]
    assert [row.batch for row in rows] == [1, 2]
    for row in rows:
        assert min(row.fused, row.bare, row.uncached) > 0
        assert row.cost_of_fusion == pytest.approx(row.fused / row.bare)  # of a single turn
        assert row.gain_of_cache > 0


def test_all_write_as_many_tokens_and_no_end():
    reader, head = bench._model(SIZES, PromptAdaptiveFusion, "cpu")
    frames = bench._frames(SIZES, 2, "cpu")
    heard = reader.context.packed(frames, bench.TASK).valid
    written = generate(reader, head, frames, bench.TASK)
    written += generate(reader, head, frames, bench.TASK, use_cache=False)
    written += driven(bench.bare_decoder(reader, head), heard, head)
    assert all(one.cut and len(one.ids) == 6 for one in written)


def test_the_bare_decoder_is_the_same_without_fusion():
    """Its scores after a causal text are those of a model that reads the last layer."""
    reader, head = bench._model(SIZES, SingleLayer, "cpu")
    bare, context = bench.bare_decoder(reader, head), reader.context
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    there = torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        layers = context.run(context.embed(ids, bench.TASK), there, None)
        scores = head.logits(context.finish(layers[-1]))
        torch.testing.assert_close(bare(ids).logits, scores)


def test_a_training_step_is_timed_and_fusion_has_a_share_of_it():
    (row, *_) = bench.bench_training(SIZES, 1)
    assert min(row.fused, row.last_layer, row.memory, row.last_layer_memory) > 0
    assert row.share == pytest.approx(1 - row.last_layer / row.fused)
    assert 0 < row.profiled < 0.5
    assert row.memory > row.last_layer_memory


def test_tables_are_printed():
    options = ["--preset", "tiny", "--tokens", "4", "--repeats", "1"]
    found = CliRunner().invoke(cli.app, ["bench", "harmonifuse", *options])
    assert found.exit_code == 0, found.output
    assert re.search(r"uncached\s+time", found.output)
    assert re.search(r"preset tiny,\s+5 s of speech,\s+4 tokens", found.output)
