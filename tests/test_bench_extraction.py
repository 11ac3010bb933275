import json

import pytest
import torch
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.bench import extraction as bench
from speechfuse.data.batching import batch_seconds
from speechfuse.rates import bench_rates
from speechfuse.upstreams.filterbank import Filterbank
from speechfuse.upstreams.huggingface import HuggingFace, has_bfloat16

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
}


@pytest.fixture
def shapes(monkeypatch):
    found = {
        "wavlm-base": ({"model_type": "wavlm", **TINY}, {"do_normalize": False}),
        "whisper-base": ({"model_type": "whisper", **WHISPER}, {}),
    }
    monkeypatch.setattr(bench, "SHAPES", found)
    monkeypatch.setitem(bench.PRODUCTS, "cpu", (64, 1))
    return found


def test_every_shape_is_measured_in_each_precision(shapes):
    rows = [r for r in bench.bench_extraction(3, 1, list(shapes)) if r.device == "cpu"]
    assert [row.shape for row in rows] == list(shapes)
    kinds = {"float32", *(["bfloat16"] if has_bfloat16() else [])}
    for row in rows:
        assert row.rates.keys() - {"s3prl"} == kinds | {"plain"}
        assert row.gains.keys() == row.of_peak.keys() == kinds
        assert row.gains["float32"] == pytest.approx(row.rates["float32"] / row.rates["plain"])
        assert min(*row.rates.values(), *row.of_peak.values(), *row.memory.values()) > 0
        if row.drift:
            assert 0 < row.drift[1] <= row.drift[0] < 0.1


def test_short_clips_of_whisper_are_measured_for_each_silence(shapes):
    rows = [row for row in bench.bench_short_whisper(8, 1) if row[0] == "cpu"]
    assert [pad for _, pad, *_ in rows] == [0.0, 1.0, 3.0]
    assert all(gain > 1 for *_, gain, _ in rows)


def test_the_durations_are_natural_and_the_same_each_time():
    one, other = bench.natural_clips(300), bench.natural_clips(300)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    seconds = torch.tensor([len(clip) / 16000 for clip in one])
    assert 300 <= seconds.sum() < 315
    assert seconds.min() >= 1
    assert seconds.max() <= 15
    assert 3.5 < seconds.median() < 5.5
    assert seconds.tolist() != sorted(seconds.tolist())


def test_a_cpu_reads_less_at_a_time_than_a_gpu():
    assert batch_seconds(torch.device("cpu")) < batch_seconds(torch.device("cuda", 0))


def test_what_it_prints_as_data_is_what_a_plan_reads(shapes, tmp_path):
    call = ["bench", "extraction", "--shape", "wavlm-base", "--device", "cpu"]
    said = CliRunner().invoke(cli.app, [*call, "--seconds", "1", "--repeats", "1", "--json"])
    assert said.exit_code == 0, said.output
    (tmp_path / "rates.json").write_text(said.stdout)
    data = json.loads(said.stdout)
    assert data["tables"][0]["rows"][0][0] == "wavlm-base, cpu"
    (tmp_path / "config.json").write_text(json.dumps(shapes["wavlm-base"][0]))
    found, where, device = bench_rates(
        tmp_path / "rates.json", {"mine": HuggingFace(source=str(tmp_path)), "mel": Filterbank()}
    )
    assert found == {"mine": data["rates"][0]["rate"]}
    assert found["mine"] > 0
    assert where.startswith("CPU, 1 of ")
    assert device == "cpu"


def test_the_command_refuses_an_unknown_shape():
    result = CliRunner().invoke(cli.app, ["bench", "extraction", "--shape", "hubert-huge"])
    assert "no shape 'hubert-huge'" in str(result.exception)


@pytest.mark.recipe
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.torch.jit")  # the compiler's own imports
def test_compiled_encoders_take_turns_with_the_others(shapes):
    call = ["bench", "extraction", "--shape", "wavlm-base", "--device", "cpu", "--compile"]
    said = CliRunner().invoke(cli.app, [*call, "--seconds", "1", "--repeats", "1", "--json"])
    assert said.exit_code == 0, said.output
    data = json.loads(said.stdout)
    (row,), columns = data["tables"][0]["rows"], data["tables"][0]["columns"]
    found = dict(zip(columns, row, strict=True))
    assert float(found["compiled / float32"]) > 0
    assert {rate["compute"] for rate in data["rates"]} <= {"float32", "bfloat16"}
