import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.core import TyperCommand
from typer.testing import CliRunner

from snippets import runs_as_named
from speechfuse import cli
from speechfuse.bench.fusion import Timing, bench_fusion, bench_table, convolved
from speechfuse.interfaces.hconv import HConv
from speechfuse.measure import devices, median_ratio, median_seconds, peak_bytes


def test_every_shape_and_precision_is_timed():
    rows = list(bench_fusion(frames=4, repeats=1, shapes=((1, 5, 8), (2, 5, 8))))
    cpu = [row for row in rows if row.device == "cpu"]
    assert len({(r.interface, r.shape, r.dtype, r.backward) for r in cpu}) == len(cpu) == 24
    assert all(min(r.ours, r.reference, r.ceiling, r.memory) > 0 for r in rows)
    assert all((r.streamed is not None) == (not r.backward and r.dtype != "mixed") for r in rows)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed"])
def test_a_ceiling_is_the_work_that_the_fusion_cannot_do_without(dtype, backward):
    rows = {
        (r.interface, r.shape): r
        for r in bench_fusion(frames=4, repeats=1, shapes=((1, 5, 8), (2, 5, 8)), device="cpu")
        if (r.dtype, r.backward) == (dtype, backward)
    }
    size = 2 if dtype == "bfloat16" else 4
    for models, shape in ((1, "5 x 8"), (2, "2 x 5 x 8")):
        # 5 layers become 2 that read 3 and 4 layers, 4 features each; taps have a gradient too.
        assert rows["HConv", shape].work == (1 + backward) * 2 * 4 * 8 * 4 * (3 + 4)
        assert rows["weighted sum", shape].work == (1 + backward) * models * 5 * 4 * 8 * size


def test_the_table_says_what_the_ceilings_are(monkeypatch):
    timing = Timing("cpu", "HConv", "5 x 8", "mixed", False, 2.0, 4.0, 1.0, 3e9, 10, 20, None)
    read = replace(timing, interface="weighted sum", work=5e9)
    monkeypatch.setattr("speechfuse.bench.fusion.bench_fusion", lambda *_, **__: [timing, read])
    _, columns, rows = bench_table(frames=4, repeats=1)
    cells = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [c["of the ceiling"] for c in cells] == ["50 %"] * 2
    assert [c["ceiling"] for c in cells] == ["3.0 GFLOP/s", "5.0 GB/s"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    assert devices("all") == devices("cpu") == ["cpu"]
    found = CliRunner().invoke(cli.app, ["bench", "fusion", "--device", "cuda"])
    assert "no CUDA GPU" in str(found.exception)


def test_the_help_tells_options_of_one_benchmark_from_those_of_others():
    shown = CliRunner().invoke(cli.app, ["bench", "--help"]).stdout
    sections = dict(re.findall(r"^Options of (.*):\n((?:  .*\n)+)", shown, re.MULTILINE))
    options = {
        name: set(re.findall("^  (--[a-z]+)", text, re.M)) for name, text in sections.items()
    }
    assert options["every benchmark"] == {"--threads", "--json", "--help"}
    assert options["serve"] == {"--run", "--clients"}
    assert options["fusion, harmonifuse and extraction"] == {"--device"}
    assert "[default: 1024; x>=2]" in sections["fusion"]


@pytest.mark.parametrize(
    ("given", "option", "of"),
    [
        ("cache --tokens 4", "--tokens", "harmonifuse"),
        ("serve --repeats 3", "--repeats", "fusion or harmonifuse or cache or epoch"),
        ("fusion --processor", "--processor", "cache or epoch or scaling or extraction"),
        ("--seconds 60", "--seconds", "cache or epoch"),  # fusion, if none is named
    ],
)
def test_an_option_of_another_benchmark_is_refused(given, option, of):
    done = CliRunner().invoke(cli.app, ["bench", *given.split()])
    assert done.exit_code == 2
    what = given.split()[0].replace("--seconds", "fusion")
    assert f"'{option}': bench {what} has no such option, it is one of bench {of}" in done.stderr


@pytest.mark.parametrize("path", ["README.md", "Makefile", "docs"])
def test_every_benchmark_that_is_written_down_has_its_options(path, monkeypatch):
    """Those that are written are read, without running them."""
    root = Path(__file__).parents[1] / path
    files = [root] if root.is_file() else [*root.rglob("*.md")]
    written = [
        line.group(1).partition("#")[0].partition(">")[0].split()
        for file in files
        for line in re.finditer(r"speechfuse bench ([^`\n]*)", file.read_text())
    ]
    assert written or path == "README.md"
    read = []
    monkeypatch.setattr(TyperCommand, "invoke", lambda self, context: read.append(context.params))
    for given in written:
        with runs_as_named():
            done = CliRunner().invoke(cli.app, ["bench", *given])
        assert done.exit_code == 0, (given, done.output)
    assert len(read) == len(written)


def test_the_reference_is_the_same_method(stack):
    inputs = stack(layers=13, dim=24)
    hconv = HConv(inputs.spec, tasks=["asr"])
    reference = convolved(inputs.stacked(), hconv)
    torch.testing.assert_close(reference, hconv(inputs, "asr").hidden, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "tensors"),
    [
        (lambda x: x + 1, 1),
        (lambda x: (x + 1) + 1, 2),
        (lambda x: (x + 1) + (x + 2), 3),
        (lambda x: sum([x + 1, x + 2, x + 3]), 5),
        (lambda x: x.view(-1), 0),
        (lambda x: x.add_(1), 0),
    ],
)
def test_peak_memory_counts_what_is_held_at_one_time(call, tensors):
    x = torch.ones(1000)
    assert peak_bytes(lambda: call(x)) == tensors * 4000


def test_calls_take_turns():
    order = []
    seconds = median_seconds({n: lambda n=n: order.append(n) for n in "ab"}, repeats=2)
    assert order == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_a_ratio_is_that_of_a_turn():
    """A machine that is ten times as busy in one turn is so for both."""
    assert median_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0
