"""Probes: what is there is found, what is not is not, and no speaker is on both sides."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.errors import DataError, RecipeError
from speechfuse.experiments.probing.acoustics import frame_acoustics
from speechfuse.experiments.probing.file import read_probe, variants
from speechfuse.experiments.probing.folds import group_folds
from speechfuse.experiments.probing.properties import (
    Clips,
    check_property,
    probe_characters,
    probe_classes,
    probe_frames,
)
from speechfuse.experiments.probing.report import curves, findings, probe_table, write_probe_report
from speechfuse.experiments.probing.ridge import Moments, fit, rows_held_out
from speechfuse.experiments.probing.run import probed_clips, run_probe
from speechfuse.metrics import r_squared
from speechfuse.types import Utterance

SPEAKERS = [f"s{i}" for i in range(12)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def clips(labels, per_speaker=10):
    """Clips of twelve speakers; labels: of clip and speaker number."""
    found = []
    for s, speaker in enumerate(SPEAKERS):
        for i in range(per_speaker):
            name = f"{speaker}-{i}"
            text = "".join(np.random.default_rng(len(found)).choice([*"abcdef"], 12))
            found.append(Utterance(name, None, text=text, speaker=speaker, emotion=labels(i, s)))
    return Clips(found)


def frame_sums(target_of):
    """Sums of random features of each speaker, and of a target made of them."""
    found = {}
    for s, speaker in enumerate(SPEAKERS):
        x = randn(200, 8, seed=s) + 50.0
        found[speaker] = Moments.of(x, target_of(x, s))
    return found


def test_moments_give_the_solution_and_the_errors_that_rows_give():
    x, y = randn(60, 5) * torch.arange(1.0, 6) + 3, randn(60, 2, seed=1)
    y = y + x[:, :2]
    sums = Moments.of(x[:20], y[:20]) + Moments.of(x[20:], y[20:])
    strength = 0.3
    from_sums, from_rows = sums.solve([strength]), fit(x, y, torch.ones(60).double(), [strength])
    # By hand: standardised features, the mean of squares, an intercept without a penalty.
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    right = z.T @ (y - y.mean(0)).numpy() / 60
    by_hand = np.linalg.solve(z.T @ z / 60 + strength * np.eye(5), right)
    expected = torch.from_numpy(z @ by_hand) + y.mean(0)
    for linear in (from_sums, from_rows):
        torch.testing.assert_close(linear(x)[0], expected)
    torch.testing.assert_close(sums.errors(from_sums)[0], (y - expected).square().sum(0))


def test_more_features_than_rows_are_solved_like_few():
    x, y = randn(30, 12), randn(30, 2, seed=1)
    weights = torch.rand(30, generator=torch.Generator().manual_seed(2)).double() + 0.1
    wide = torch.cat([x, torch.zeros(30, 40).double()], 1)  # features that never vary
    few, many = fit(x, y, weights)(x), fit(wide, y, weights)(wide)
    torch.testing.assert_close(few, many)


def test_a_weight_of_two_is_a_row_twice():
    x, y = randn(20, 3), randn(20, 1, seed=1)
    weights = torch.tensor([1.0, 2.0]).double().repeat(10)
    twice = torch.cat([torch.arange(20), torch.arange(1, 20, 2)])
    one, other = fit(x, y, weights), fit(x[twice], y[twice], torch.ones(30).double())
    torch.testing.assert_close(one(x), other(x))


def test_a_layer_that_is_the_property_explains_all_of_it():
    evidence, _ = probe_frames(frame_sums(lambda x, s: 2 * x[:, 3:4] - 7), 4, seed=1)
    assert evidence.point() > 0.9999
    assert [*evidence.speakers] == sorted(SPEAKERS)


def test_noise_explains_nothing():
    sums = frame_sums(lambda x, s: randn(len(x), 1, seed=100 + s))
    evidence, strengths = probe_frames(sums, 4, seed=1)
    assert abs(evidence.point()) < 0.01
    assert min(strengths) >= 0.1  # the inner folds see that there is nothing


def test_what_differs_between_speakers_alone_is_not_explained_by_other_speakers():
    """Each speaker has a level of his own that no feature tells."""
    levels = randn(12, seed=5)
    sums = frame_sums(lambda x, s: levels[s].expand(len(x), 1))
    evidence, _ = probe_frames(sums, 4, seed=1)
    assert evidence.point() < 0.05


def test_r2_is_that_of_the_formula():
    y, found = np.random.default_rng(0).normal(size=(2, 50, 3))
    columns = [np.full(3, 50.0), y.sum(0), (y**2).sum(0), ((y - found) ** 2).sum(0)]
    variance = ((y - y.mean(0)) ** 2).sum()
    expected = 1 - ((y - found) ** 2).sum() / variance
    assert r_squared(np.concatenate(columns)) == pytest.approx(expected)


def test_folds_share_no_group_and_the_seed_draws_them():
    groups = [s for s in SPEAKERS for _ in range(3)]
    drawn = [group_folds(groups, 5, seed) for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    for folds in drawn:
        assert set(folds) == set(range(5))
        for speaker in SPEAKERS:
            assert len({f for g, f in zip(groups, folds, strict=True) if g == speaker}) == 1


def test_neither_a_fit_nor_the_choice_of_its_strength_sees_the_rows_held_out():
    """Rows held out may be anything: predictions of them stay those of their features."""
    x, folds = randn(60, 4), torch.arange(60) % 4
    y = x[:, :1] + 0.5 * randn(60, 1, seed=1)
    looked = []

    def weigh(rest, held):
        assert not set(folds[rest].tolist()) & set(folds[held].tolist())
        return torch.ones(len(rest)).double()

    def score(rows, found):
        looked.append(rows)
        return -float((y[rows] - found).square().sum())

    found, strengths = rows_held_out(x, y, folds, weigh, score)
    out = folds == 2
    spoilt = y.clone()
    spoilt[out] = 1e6
    y_before, y = y, spoilt
    again, _ = rows_held_out(x, spoilt, folds, weigh, score)
    torch.testing.assert_close(again[out], found[out])
    assert not torch.allclose(again[~out], found[~out])
    y = y_before
    assert len(strengths) == 4


def test_classes_that_are_in_the_features_are_named():
    data = clips(lambda i, s: ("calm", "loud", "loud")[i % 3])
    hot = torch.tensor([[float(u.emotion == "loud")] for u in data.utterances])
    evidence, _ = probe_classes(torch.cat([hot, randn(120, 5)], 1), "emotion", data, 4, seed=1)
    assert evidence.point() == 1.0


def test_labels_that_follow_the_speaker_are_at_chance():
    """Features tell every speaker, each has one label: to other speakers that is of no use."""
    points, leaky = [], []
    for seed in range(8):
        label = np.random.default_rng(seed).permutation([0, 1] * 6)
        data = clips(lambda i, s, label=label: ("calm", "loud")[label[s]])
        voice = randn(12, 20, seed=seed).repeat_interleave(10, 0) + 0.1 * randn(120, 20, seed=99)
        points.append(probe_classes(voice, "emotion", data, 4, seed)[0].point())
        everyone = Clips(
            [Utterance(u.id, None, speaker=u.id, emotion=u.emotion) for u in data.utterances]
        )
        leaky.append(probe_classes(voice, "emotion", everyone, 4, seed)[0].point())
    assert abs(np.mean(points) - 0.5) < 0.12
    assert min(leaky) > 0.95  # what held-out clips instead of speakers would have told


def test_speakers_are_told_on_texts_that_were_not_trained_on():
    data = clips(lambda i, s: "calm")
    voice = randn(12, 20).repeat_interleave(10, 0) + 0.1 * randn(120, 20, seed=1)
    assert probe_classes(voice, "speaker", data, 5, 1)[0].point() > 0.95
    noise = randn(120, 20, seed=2)
    assert probe_classes(noise, "speaker", data, 5, 1)[0].point() < 0.25
    text = [u.text for u in data.utterances]
    same = Clips(
        [
            Utterance(u.id, None, speaker=u.speaker, text=text[i % 3])
            for i, u in enumerate(data.utterances)
        ]
    )
    with pytest.raises(DataError, match="as many different texts, there are 3"):
        check_property("speaker", same, 5)


def test_many_classes_that_are_weakly_told_are_not_shrunk_away():
    """Two loud directions hide the voices; a strength chosen by squared error names 41 %."""
    data = clips(lambda i, s: "calm")
    voice = randn(12, 20).repeat_interleave(10, 0) + 1.5 * randn(120, 20, seed=1)
    loud = 20 * randn(120, 2, seed=2) @ randn(2, 20, seed=3)
    assert probe_classes(voice + loud, "speaker", data, 5, 1)[0].point() > 0.48


def test_characters_are_read_from_means_that_hold_them():
    data = clips(lambda i, s: "calm")
    texts = [u.text for u in data.utterances]
    shares = torch.tensor([[t.count(c) / len(t) for c in "abcdef"] for t in texts]).double()
    mixed = torch.cat([shares @ randn(6, 9), randn(120, 3, seed=1)], 1)
    assert probe_characters(mixed, data, 4, 1)[0].point() > 0.99
    assert abs(probe_characters(randn(120, 9, seed=2), data, 4, 1)[0].point()) < 0.1


def test_texts_that_everyone_says_are_no_test_of_characters():
    data = clips(lambda i, s: "calm")
    same = Clips(
        [
            Utterance(u.id, None, speaker=u.speaker, text=f"text {i % 10}")
            for i, u in enumerate(data.utterances)
        ]
    )
    with pytest.raises(DataError, match=r"10 texts in 120 utterances.*use text"):
        check_property("characters", same, 4)
    check_property("text", same, 4)


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("emotion", lambda i, s: None, "120 of 120 utterances have no emotion"),
        ("emotion", lambda i, s: "calm", "all utterances are 'calm'"),
        ("emotion", lambda i, s: SPEAKERS[s], "only speaker 's0' has 's0'"),
    ],
)
def test_a_property_that_cannot_be_held_out_is_refused(name, label, message):
    with pytest.raises(DataError, match=message):
        check_property(name, clips(label), 4)


def tone(folder, hertz, seconds=1.0, level=0.2):
    import soundfile

    time = np.arange(round(seconds * 16000)) / 16000
    samples = level * sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 9))
    samples[len(samples) // 2 :] = 0
    path = folder / f"{hertz}.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    return Utterance(f"{hertz}", path), samples


@pytest.mark.parametrize("hertz", [90, 210, 440])
def test_pitch_and_energy_are_those_of_the_tone(tmp_path, hertz):
    utterance, samples = tone(tmp_path, hertz)
    found = frame_acoustics(utterance, 50.0)
    assert found.shape == (51, 2)
    voiced = ~found[:, 0].isnan()
    assert voiced[3:22].all()
    assert not voiced[30:].any()  # silence has no pitch
    torch.testing.assert_close(
        found[3:22, 0], torch.full((19,), math.log(hertz)).double(), atol=0.01, rtol=0
    )
    middle = samples[round(10.5 / 50 * 16000) - 200 :][:400]
    assert float(found[10, 1]) == pytest.approx(math.log((middle**2).mean()))
    assert float(found[40, 1]) == pytest.approx(math.log(1e-8))


def test_a_clip_too_short_for_praat_has_no_pitch(tmp_path):
    utterance, _ = tone(tmp_path, 200, seconds=0.05)
    assert frame_acoustics(utterance, 50.0)[:, 0].isnan().all()


@pytest.fixture
def file(workspace, tiny_corpus, encoder):
    random = {"kind": "huggingface", "source": str(encoder("whisper")), "weights": "random"}
    data = {
        "name": "tones",
        "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}, "random": random},
        "corpus": str(tiny_corpus),
        "properties": ["pitch", "energy", "speaker", "emotion"],
        "folds": 4,
        "seeds": [1, 2],
        "baseline": "mel",
    }
    path = workspace / "probe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def probed(file, out, *overrides):
    read = read_probe(file, overrides)
    clips = probed_clips(read)
    return read, clips, run_probe(read, clips, out)


@pytest.mark.recipe
def test_layers_keep_their_numbers(file, workspace):
    read, data, results = probed(file, workspace / "out", "upstreams.random.layers=[1, 3]")
    assert {r.layer for r in results if r.encoder == "random"} == {1, 3}
    _, _, rows = probe_table(read, data, results)
    assert [row[0] for row in rows] == ["mel", "random, layer 1", "random, layer 3", "chance"]


@pytest.mark.recipe
def test_every_layer_is_probed_and_nothing_twice(file, workspace):
    read, data, results = probed(file, workspace / "out")
    layers = 1 + len({r.layer for r in results if r.encoder == "random"})
    lines = (workspace / "out" / "results.jsonl").read_text().splitlines()
    assert len(results) == len(lines) == layers * 4 * 2
    whole = curves(results)
    assert whole["emotion"][0].values[0].value > 0.95  # loud and calm tones
    assert whole["energy"][0].values[0].value > 0.5
    # Stopped while it wrote its last but third line: it goes on, to the same numbers.
    path = workspace / "out" / "results.jsonl"
    path.write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:40])
    _, _, again = probed(file, workspace / "out")
    kept = path.read_text().splitlines()
    assert kept[: len(lines) - 3] == lines[:-3]
    assert [json.loads(k)["rows"] for k in kept[-3:]] == [json.loads(k)["rows"] for k in lines[-3:]]
    assert [r.evidence.point() for r in again] == [r.evidence.point() for r in results]
    title, columns, rows = probe_table(read, data, results)
    assert "8 speakers, 64 clips, 4 folds, 2 seeds" in title
    assert len(columns) == 5
    assert rows[-1] == ["chance", "0.0", "0.0", "12.5", "50.0"]
    assert rows[0][0] == "mel"
    assert rows[1][0] == "random, layer 0"
    assert len(findings(read, results)) == 4
    page = write_probe_report(read, data, results, workspace / "out").read_text()
    assert page.count("<svg") == 1
    assert "Seeds 1, 2 draw other folds" in page
    assert "draw the weights of random" in page
    assert (workspace / "out" / "layers.png").stat().st_size > 10_000


def test_the_command_prints_table_and_words_and_says_where_the_report_is(file, workspace):
    overrides = ["properties=[emotion]", "upstreams={mel: {kind: filterbank, num_mels: 8}}"]
    result = CliRunner().invoke(cli.app, ["probe", str(file), "--out", "out", *overrides])
    assert result.exit_code == 0, result.output
    assert "│ chance │" in result.output
    assert "Emotion: mel " in result.output
    assert "report: out/report.html" in result.output
    assert (workspace / "out" / "report.html").is_file()


def test_random_weights_are_drawn_by_the_seed_unless_they_have_one(file):
    read = read_probe(file)
    drawn = [(v.encoder, v.seeds) for v in variants(read)]
    assert drawn == [("mel", (1, 2)), ("random", (1,)), ("random", (2,))]
    fixed = read_probe(file, ["upstreams.random.seed=5"])
    assert [v.seeds for v in variants(fixed)] == [(1, 2), (1, 2)]


def test_utterances_are_chosen_by_column(file):
    kept = probed_clips(read_probe(file, ["only={split: [train, dev]}"]))
    assert {u.split for u in kept.utterances} == {"train", "dev"}
    with pytest.raises(DataError, match=r"no utterance of .* has these values"):
        probed_clips(read_probe(file, ["only={emotion: [sad]}"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("folds=2", "folds: .*greater than or equal to 3"),
        ("baseline=mol", "baseline: no upstream 'mol'.*Did you mean 'mel'"),
        ("properties=[pitch, pitch]", "properties: 'pitch' stands twice"),
        ("store={reduce: mean}", "store.reduce: mean, but probes read every frame"),
        ("upstreams.mel.num_mel=3", "upstreams.mel: .*num_mel.*Did you mean 'num_mels'"),
        ("propertys=[pitch]", "propertys: unknown setting.*Did you mean 'properties'"),
        ("tasks={}", "is no file of probes.*speechfuse train"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(file, override, message):
    with pytest.raises(RecipeError, match=message):
        read_probe(file, [override])


def test_too_few_speakers_for_the_folds_are_said(file):
    with pytest.raises(DataError, match="9 folds need as many speakers, there are 8; lower folds"):
        probed_clips(read_probe(file, ["folds=9", "properties=[emotion]"]))
