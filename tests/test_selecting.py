"""Selection: what is there is ranked first, and the test split is never read."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import spearmanr
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.errors import DataError, RecipeError, RunError
from speechfuse.experiments.probing.properties import Clips
from speechfuse.experiments.selecting import probes, trained
from speechfuse.experiments.selecting.file import read_selection
from speechfuse.experiments.selecting.run import Candidate, Pair, Selected, drawn, gain, select
from speechfuse.experiments.sweep import read_sweep
from speechfuse.metrics import SpeakerSums, share_right
from speechfuse.recipe import Part, TaskRecipe
from speechfuse.types import Utterance

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

SPEAKERS = [f"s{i:02d}" for i in range(20)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture
def clips():
    return Clips([Utterance(f"{s}-{i}", None, speaker=s) for s in SPEAKERS for i in range(6)])


def voices(noise, dims=10, seed=0):
    """Every clip its speaker's vector in a few dimensions, beside large ones that say nothing."""
    of_speaker = randn(len(SPEAKERS), dims, seed=seed).repeat_interleave(6, 0)
    return torch.cat(
        [of_speaker + noise * randn(120, dims, seed=seed + 1), 30 * randn(120, 20, seed=seed + 2)],
        1,
    )


def test_verification_finds_voices_among_large_dimensions(clips):
    clear = probes.probe_verification(voices(0.1), clips, 5, 1).point()
    blurred = probes.probe_verification(voices(1.0), clips, 5, 1).point()
    none = probes.probe_verification(randn(120, 30), clips, 5, 1).point()
    assert clear < 0.05 < blurred < none
    assert 0.35 < none < 0.6


def test_verification_is_alike_with_more_dimensions_than_clips(clips):
    wide = torch.cat([voices(0.5), torch.zeros(120, 300).double()], 1)
    narrow = probes.probe_verification(voices(0.5), clips, 5, 1)
    both = probes.probe_verification(wide + 1e-9 * randn(120, 330), clips, 5, 1)
    assert narrow.same.tolist() == both.same.tolist()
    assert probes.probe_verification(wide, clips, 5, 1).point() == pytest.approx(
        narrow.point(), abs=0.03
    )


def test_no_speaker_of_a_trial_was_fitted_to(clips, monkeypatch):
    fitted = []
    real = probes.discriminant

    def watched(x, rows, speakers):
        fitted.append(set(speakers))
        return real(x, rows, speakers)

    monkeypatch.setattr(probes, "discriminant", watched)
    found = probes.probe_verification(voices(0.5), clips, 4, 1)
    for speakers, fold in zip(fitted, probes.members_of(clips, 4, 1), strict=True):
        assert not speakers & {clips.speakers[i] for i in fold}
    assert (found.enrolment != found.test).any()


def test_what_the_second_adds_is_what_the_first_lacks():
    speakers = [s for s in SPEAKERS for _ in range(10)]
    one, two = randn(200, 4), randn(200, 4, seed=1)
    targets = one @ randn(4, 2, seed=2) + two @ randn(4, 2, seed=3)
    assert probes.residual_r2(one, two, targets, speakers, 5, 1) > 0.9
    assert probes.residual_r2(one, randn(200, 4, seed=4), targets, speakers, 5, 1) < 0.05
    assert probes.residual_r2(one, one, targets, speakers, 5, 1) < 0.05


def test_cka_is_one_up_to_rotation_and_scale_and_small_of_strangers():
    x = randn(300, 6)
    rotation = torch.linalg.qr(randn(6, 6, seed=1))[0]
    assert probes.cka(x, 5 * x + 2) == pytest.approx(1)
    assert probes.cka(x, x @ rotation) > 0.9
    assert probes.cka(x, randn(300, 6, seed=2)) < 0.1


def test_a_sample_is_even_over_speakers_and_the_same_each_time():
    utterances = [Utterance(f"{s}-{i}", None, speaker=s) for s in "abc" for i in range(40)]
    utterances += [Utterance(f"d-{i}", None, speaker="d") for i in range(2)]
    found = drawn(utterances, 32)
    assert {s: sum(u.speaker == s for u in found) for s in "abcd"} == {
        **dict.fromkeys("abc", 10),
        "d": 2,
    }
    assert drawn(utterances[::-1], 32) == found


def sums(right):
    """20 speakers with 100 answers each, so many right; more or less of each speaker."""
    rows = np.array([[min(100, right + s % 5), 100.0] for s in range(20)], dtype=float)
    return SpeakerSums(SPEAKERS, rows, share_right)


def chosen(values):
    singles = [Candidate((("e", layer),), [sums(v)]) for layer, v in enumerate(values)]
    singles.sort(key=lambda c: -c.point)
    clips = Clips([Utterance(s, None, speaker=s, emotion="a") for s in SPEAKERS])
    return Selected("emotion", "emotion", clips, singles, ())


def test_layers_that_are_not_told_apart_are_as_good():
    found = chosen([50, 80, 60])
    assert [c.layers[0][1] for c in found.singles] == [1, 2, 0]
    assert [found.as_good(c) for c in found.singles] == [True, False, False]
    twin = Candidate((("e", 9),), [sums(80)])
    assert found.as_good(twin)
    pair = Pair(Candidate((("e", 1), ("f", 0)), [sums(85)]), found.singles[0], 1, None, 0.5)
    assert pair.gain.value == pytest.approx(0.05, abs=0.005)
    assert gain(found.singles[1], found.singles[0], -1).value > 0  # of an error less is better


def test_rank_correlation_is_that_of_scipy_and_groups_are_ranked_apart():
    x, y = np.array([3.0, 1, 4, 1, 5, 9]), np.array([2.0, 7, 1, 8, 2, 8])
    assert trained.spearman([(x, y)]) == pytest.approx(spearmanr(x, y).statistic)
    rising = np.arange(5.0)
    assert trained.spearman([(rising, rising), (rising + 100, rising)]) == pytest.approx(1)
    assert trained.spearman([(rising, rising), (rising, -rising)]) == pytest.approx(0)


def test_agreement_counts_errors_as_less_is_better():
    found = chosen([50, 60, 70, 80, 90])
    runs = [
        trained.Trained((("e", layer),), "emotion", {"wer": 0.5 - layer / 10}, False)
        for layer in range(5)
    ]
    (agreement,) = trained.agreements([found], runs)
    assert (agreement.cells, agreement.rho) == (5, pytest.approx(1))
    assert agreement.what.endswith("WER")
    worse = [trained.Trained(r.layers, "emotion", r.scores, True) for r in runs]
    assert next(trained.agreements([found], worse)).rho == pytest.approx(-1)


@pytest.fixture
def selection(workspace, tiny_corpus):
    """Two log-mel encoders, one of them nearly blind, on the tones."""
    data = {
        "name": "tones",
        "upstreams": {
            "fine": {"kind": "filterbank", "num_mels": 24},
            "coarse": {"kind": "filterbank", "num_mels": 4},
        },
        "tasks": {
            "emotion": {"corpus": str(tiny_corpus)},
            "verification": {"corpus": str(tiny_corpus)},
        },
        "folds": 3,
    }
    path = workspace / "selection.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_the_test_split_is_never_read_and_nothing_is_done_twice(selection, workspace, monkeypatch):
    read = read_selection(selection)
    found = select(read, workspace / "out")
    for selected in found:
        assert {u.split for u in selected.clips.utterances} == {"train", "dev"}
        assert len(selected.pairs) == 1
    emotion, verification = found
    assert emotion.singles[0].value.value > 0.95
    assert verification.sign == -1
    assert verification.singles[0].point <= verification.singles[-1].point
    monkeypatch.setattr("speechfuse.experiments.selecting.run.probe", None)
    again = select(read, workspace / "out")
    assert [c.value for c in again[0].singles] == [c.value for c in emotion.singles]
    assert again[1].pairs[0].gain == verification.pairs[0].gain
    assert again[0].pairs[0].residual == emotion.pairs[0].residual
    with pytest.raises(TypeError):  # other folds are other probes
        select(read_selection(selection, ["seeds=[2]"]), workspace / "out")


@pytest.mark.recipe
def test_the_command_prints_tables_advice_and_data(selection, workspace):
    done = CliRunner().invoke(
        cli.app, ["select", str(selection), "--out", "out"], catch_exceptions=False
    )
    assert "best layer of each encoder" in done.stdout
    assert "emotion: take " in done.stdout
    page = (workspace / "out" / "report.html").read_text()
    assert page.count("<table>") == 3
    assert "src=" not in page
    data = json.loads(
        CliRunner().invoke(cli.app, ["select", str(selection), "--out", "out", "--json"]).stdout
    )
    assert data["tasks"]["verification"]["higher_is_better"] is False
    assert len(data["tasks"]["emotion"]["layers"]) == 2


def test_trained_runs_of_the_candidates_are_found(selection, workspace, tone_recipe):
    from speechfuse.build import read_recipe
    from speechfuse.train import train_run

    corpus = tone_recipe["tasks"]["emotion"]["corpus"]
    for mels in (24, 4, 16):
        recipe = {
            "upstreams": {"mel": {"kind": "filterbank", "num_mels": mels}},
            "fusion": {"interface": {"kind": "single_layer"}},
            "tasks": {"emotion": {"corpus": corpus, "head": {"kind": "classifier"}}},
            "training": {"steps": 1, "batch_seconds": 4},
        }
        train_run(read_recipe(recipe), workspace / "runs" / str(mels))
    read = read_selection(selection)
    found = trained.read_trained(read, workspace / "runs")
    assert sorted(one.layers for one in found) == [(("coarse", 0),), (("fine", 0),)]
    assert set(found[0].scores) == {"accuracy", "balanced_accuracy"}
    with pytest.raises(RunError, match=r"no finished run below .* reads one layer of each"):
        trained.read_trained(read, workspace / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tasks.diarization={corpus: x}", r"tasks\.diarization: there is no probe for it"),
        ("tasks.emotion.lable=x", r"tasks\.emotion: .*lable"),
        ("upstreams.fine.kind=filterbnk", "Did you mean 'filterbank'"),
        ("limits.utterance=9", "utterance"),
    ],
)
def test_a_wrong_file_is_refused_at_once(selection, change, message):
    with pytest.raises(RecipeError, match=message):
        read_selection(selection, [change])


def test_a_task_that_cannot_be_probed_spares_the_others(selection, workspace, tiny_corpus):
    """All speakers say the same text, so that none could be held out."""
    rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(tiny_corpus.parent / row["audio"])
        row["text"] = "low mid"
    (workspace / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    also = ["tasks.asr={corpus: said.jsonl}", "tasks.emotion.label=mood"]
    done = CliRunner().invoke(
        cli.app, ["select", str(selection), "--out", "out", *also], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "verification: take " in done.stdout
    said = "asr is left out: 1 texts in 48 utterances"
    lines = {
        "emotion is left out: no utterance of tones0 has mood",
        f"{said}, so that 0 are left to train on without the texts of other speakers, and a probe "
        "could not tell characters from whole texts; raise limits.utterances, or take another "
        "corpus",
    }
    assert lines <= {line.removeprefix("warning: ") for line in done.stdout.splitlines()}
    assert said in (workspace / "out" / "report.html").read_text()
    again = ["select", str(selection), "--out", "out", "--json", *also]
    data = json.loads(CliRunner().invoke(cli.app, again).stdout)
    assert [*data["tasks"]] == ["verification"]
    assert {*data["left_out"]} == {"emotion", "asr"}
    with pytest.raises(DataError, match=r"(?s)tasks\.emotion: .*tasks\.asr: "):  # nobody is told
        select(read_selection(selection, also), workspace / "out")
    with pytest.raises(DataError, match=r"(?s)tasks\.emotion: .*tasks\.veri"):  # none is left
        select(read_selection(selection, ["folds=7"]), workspace / "out", left_out={})


def test_a_sample_that_cannot_hold_out_is_refused(selection, workspace):
    with pytest.raises(DataError, match="folds: 7 folds need as many speakers, there are 6"):
        select(read_selection(selection, ["folds=7"]), workspace / "out")
    with pytest.raises(DataError, match="it needs two speakers and a speaker with two clips"):
        select(read_selection(selection, ["folds=4"]), workspace / "out")


@pytest.mark.parametrize(
    ("selection", "trained"),
    [
        ("selection.yaml", "experiments/selection.yaml"),
        ("real/selection.yaml", "real/selection_trained.yaml"),
    ],
)
def test_shipped_selections_have_the_encoders_and_splits_of_what_is_trained(
    selection, trained, workspace, monkeypatch
):
    monkeypatch.setenv("SPEECHFUSE_REAL", str(workspace))
    recipes = Path(__file__).parents[1] / "recipes"
    read, sweep = read_selection(recipes / selection), read_sweep(recipes / trained)
    shared = json.loads(os.path.expandvars(json.dumps(sweep.recipe)))
    assert {n: p.model_dump() for n, p in read.upstreams.items()} == {
        n: Part.model_validate(p).model_dump() for n, p in shared["upstreams"].items()
    }
    for name in read.tasks:
        mine, theirs = read.entry(name), TaskRecipe.model_validate(shared["tasks"][name])
        assert (mine.corpus, mine.split) == (theirs.corpus, theirs.split)
    assert len(sweep.seeds) == 3
