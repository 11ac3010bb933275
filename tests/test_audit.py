"""An audit finds what was put wrong, and nothing else."""

import io
import json

import numpy as np
import pytest
import soundfile
import soxr
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.audit.duplicates import SAME_BITS, overlapping
from speechfuse.audit.fingerprint import bit_errors, fingerprint, sketch
from speechfuse.audit.listening import listen
from speechfuse.audit.run import audit_corpus, audit_json, audit_tables
from speechfuse.errors import DataError
from speechfuse.taskdata import find_corpus
from speechfuse.types import Utterance

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

RATE = 16000


def noise(seconds, seed, level=0.1):
    """Noise whose bands rise and fall several times a second, as those of speech do."""
    random = np.random.default_rng(seed)
    samples = random.standard_normal(round(seconds * RATE))
    spectrum = np.fft.rfft(samples.reshape(-1, 1600))
    spectrum *= random.uniform(0.05, 1, (len(spectrum), 12)).repeat(67, axis=1)[:, :801]
    shaped = np.fft.irfft(spectrum).reshape(-1)
    return level * shaped / shaped.std()


@pytest.fixture
def corpus(workspace):
    """Write a manifest of 6 speakers with 6 clips of their own; changes replace or add rows."""

    def make(**changes):
        rows = {}
        for speaker in range(6):
            for index in range(6):
                name = f"s{speaker}-{index}"
                soundfile.write(workspace / f"{name}.wav", noise(1.5, 10 * speaker + index), RATE)
                rows[name] = {
                    "id": name,
                    "audio": f"{name}.wav",
                    "speaker": f"s{speaker}",
                    "text": f"this is sentence {speaker} {index}",
                    "emotion": ("calm", "loud")[index % 2],
                    "split": ("train", "train", "train", "dev", "test", "test")[speaker],
                }
        for name, change in changes.items():
            name = name.replace("_", "-")
            rows[name] = rows.get(name, {"id": name, "audio": f"{name}.wav"}) | change
        (workspace / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows.values())))
        return str(workspace / "manifest.jsonl")

    return make


def checks(audit):
    return {one.check: one for one in audit.findings}


def test_a_sound_corpus_has_no_findings_but_that_dev_is_small(corpus):
    found = checks(audit_corpus(find_corpus(corpus())))
    assert set(found) == {"emotion balance"}
    assert found["emotion balance"].level == "warning"  # 3 of each in dev


def test_speakers_and_texts_in_two_splits_are_found(corpus):
    path = corpus(s0_0={"split": "test"}, s5_0={"text": "This is sentence 0, 1!"})
    audit = audit_corpus(find_corpus(path))
    found = checks(audit)
    speakers = found["speakers, test in train"]
    assert (speakers.level, speakers.count, speakers.of) == ("serious", 1, 3)
    assert list(speakers.examples) == ["s0"]
    texts = found["transcripts, test in train"]
    assert (texts.level, texts.count, list(texts.examples)) == (
        "warning",
        1,
        ["this is sentence 0 1"],
    )
    assert audit.serious
    allowed = audit_corpus(find_corpus(path), allow=["speakers"])
    assert not allowed.serious
    assert "transcripts, test in train" not in checks(audit_corpus(find_corpus(path), ["emotion"]))


def test_copies_are_found_by_bytes_by_samples_and_by_ear(corpus, workspace):
    corpus()
    (workspace / "bytes.wav").write_bytes((workspace / "s0-0.wav").read_bytes())
    soundfile.write(workspace / "flac.flac", *soundfile.read(workspace / "s0-1.wav"))
    quieter = 0.4 * soundfile.read(workspace / "s0-2.wav")[0][3000:]
    soundfile.write(workspace / "quieter.wav", quieter, RATE)
    soundfile.write(workspace / "slow.wav", soundfile.read(workspace / "s0-3.wav")[0], 8000)
    path = corpus(
        s4_0={"audio": "bytes.wav"},
        s4_1={"audio": "flac.flac"},
        s4_2={"audio": "quieter.wav"},
        s1_3={"audio": "slow.wav"},
    )
    audit = audit_corpus(find_corpus(path))
    found = checks(audit)
    for check, pair in [
        ("same file", "s0-0 (train) = s4-0 (test)"),
        ("same samples", "s0-1 (train) = s4-1 (test)"),
        ("near copy", "s0-2 (train) = s4-2 (test), "),
    ]:
        one = found[f"{check}, in test and elsewhere"]
        assert (one.level, one.count) == ("serious", 2), check
        assert one.examples[0].startswith(pair)
    assert found["same samples, in one split"].level == "note"
    assert found["sample rate"].examples[0].endswith("8000 and 16000 Hz")
    assert found["labels of copies"].level == "warning"  # they are of two speakers
    assert "speaker s0 and s4" in found["labels of copies"].examples[0]


@pytest.mark.parametrize("what", ["gain", "telephone", "mp3", "cut"])
def test_a_copy_keeps_its_fingerprint_and_others_do_not(what):
    samples = noise(3, 1).astype(np.float32)
    if what == "mp3":
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format="MP3", subtype="MPEG_LAYER_III")
        buffer.seek(0)
        copy = soundfile.read(buffer, dtype="float32")[0]
    else:
        copy = {
            "gain": 0.2 * samples,
            "telephone": soxr.resample(soxr.resample(samples, RATE, 8000), 8000, RATE),
            "cut": samples[5001:],
        }[what]
    mine, its, other = (fingerprint(x) for x in (samples, copy, noise(3, 2).astype(np.float32)))
    assert bit_errors(*mine, *its) <= SAME_BITS
    assert bit_errors(*mine, *other) > 0.35
    assert len({*sketch(*mine).tolist()} & {*sketch(*its).tolist()}) >= 2
    assert bit_errors(*mine, *fingerprint(np.zeros(9000, np.float32))) == 1.0


def test_bad_audio_is_measured(corpus, workspace):
    sine = np.sin(2 * np.pi * 220 * np.arange(RATE) / RATE)
    tones = {
        "clip": np.clip(2 * sine, -0.8, 0.8),
        "full": np.clip(2 * sine, -1, 1),
        "quiet": 1e-4 * noise(1, 1),
        "gaps": np.concatenate([noise(0.2, 3), np.zeros(3 * RATE)]),
        "offset": 0.05 + noise(1, 4),
        "short": noise(0.1, 5),
        "narrow": soxr.resample(soxr.resample(noise(2, 6), RATE, 8000), 8000, RATE),
    }
    for name, samples in tones.items():
        soundfile.write(workspace / f"{name}.wav", samples, RATE)
    names = {f"s0_{i}": {"audio": f"{name}.wav"} for i, name in enumerate([*tones][:6])}
    path = corpus(**names, s1_0={"audio": "narrow.wav"}, s1_1={"text": "a" * 200})
    found = checks(audit_corpus(find_corpus(path)))
    for check, examples in {
        "clipped": {"s0-0", "s0-1"},
        "silent": {"s0-2"},
        "mostly silence": {"s0-3"},
        "DC offset": {"s0-4"},
        "very short": {"s0-5"},
        "band-limited": {"s1-0"},
        "text and audio": {"s1-1", "s0-5"},
    }.items():
        assert {e.split(" ")[0] for e in found[check].examples} == examples, check
    assert found["clipped"].count == 2


def test_a_loud_sine_is_not_clipped_and_wide_noise_not_narrow(workspace):
    sine = 0.9 * np.sin(2 * np.pi * 220 * np.arange(RATE) / RATE)
    soundfile.write("sine.wav", sine, RATE)
    soundfile.write("noise.wav", noise(1, 1), RATE)
    assert listen((workspace / "sine.wav", 0.0, None)).clipped == 0
    heard = listen((workspace / "noise.wav", 0.0, None))
    assert abs(heard.drop) < 15
    assert heard.seconds == 1
    assert listen((workspace / "noise.wav", 0.5, 2.0)).missing == pytest.approx(1.5)


def test_broken_and_shortened_files_are_serious(corpus, workspace):
    prepared = find_corpus(corpus())
    (workspace / "s0-0.wav").write_bytes(b"RIFF, but no more")
    soundfile.write(workspace / "s0-1.wav", soundfile.read(workspace / "s0-1.wav")[0], 32000)
    audit = audit_corpus(prepared)
    found = checks(audit)
    assert found["audio"].count == 1
    assert found["audio"].examples[0].startswith("s0-0 (train): ")
    assert found["missing audio"].examples == ["s0-1 (train): 0.75 s short"]
    assert audit.serious


def test_labels_are_compared_between_splits(corpus):
    rows = {f"s5_{i}": {"emotion": "sad"} for i in range(6)}
    found = audit_corpus(find_corpus(corpus(**rows)), ["emotion"]).findings
    texts = {one.text: one for one in found}
    lost = texts["of test have another emotion than any training utterance"]
    assert (lost.level, lost.count, list(lost.examples)) == ("serious", 6, ["sad"])
    assert texts["% of test would need another emotion to be shared out as in train"].count == 50


def test_a_dev_split_that_is_drawn_is_said_to_be(corpus):
    """Every speaker of train has a clip in test, so that whoever is drawn is blamed, too."""
    rows = {f"s{s}_{i}": {"split": "train" if i else "test"} for s in range(4) for i in range(6)}
    path = corpus(**rows)
    audit = audit_corpus(find_corpus(path))
    assert "no dev: drawn from train, as training does" in audit_tables(audit)[0][0].splitlines()
    blamed = checks(audit)["speakers, test in dev"]
    assert blamed.text.startswith("speakers of test are in dev drawn from train, too: ")
    assert audit_json(audit)["dev_drawn"]
    whole = audit_corpus(find_corpus(corpus(s0_0={"split": "test"})))
    assert not audit_json(whole)["dev_drawn"]
    assert "\n" not in audit_tables(whole)[0][0]


def test_a_label_that_is_written_in_two_ways_is_found(corpus):
    rows = {
        "s0_0": {"emotion": "Calm"},
        "s1_0": {"emotion": "calm "},
        "s2_1": {"emotion": "calmer"},
    }
    found = checks(audit_corpus(find_corpus(corpus(**rows)), ["emotion"]))["emotion spelling"]
    assert (found.level, found.count, found.of) == ("warning", 18, 36)
    assert list(found.examples) == ["'Calm' = 'calm' = 'calm '"]


def test_overlapping_spans_of_one_recording_are_pairs(tmp_path):
    spans = [(0, 2), (1, 2), (2.95, 1), (5, 1)]
    utterances = [Utterance(str(i), tmp_path / "a", s, d) for i, (s, d) in enumerate(spans)]
    assert overlapping(utterances) == [(0, 1)]


def test_an_unknown_task_is_refused(corpus):
    with pytest.raises(DataError, match=r"no task and no column of .* Did you mean 'emotion'"):
        audit_corpus(find_corpus(corpus()), ["emotoin"])


@pytest.mark.recipe
def test_several_processes_hear_the_same(corpus):
    prepared = find_corpus(corpus(s0_0={"split": "test"}))
    assert audit_corpus(prepared, jobs=2).members.heard == audit_corpus(prepared).members.heard


def test_the_command_exits_with_1_on_a_leak(corpus):
    path = corpus(s0_0={"split": "test"})
    done = CliRunner().invoke(cli.app, ["audit", path, "--jobs", "1"])
    assert done.exit_code == 1
    assert "speakers, test in train" in done.stdout
    data = CliRunner().invoke(
        cli.app, ["audit", path, "--json", "--jobs", "1", "--allow", "speakers"]
    )
    assert data.exit_code == 0
    found = json.loads(data.stdout)
    assert found["serious"] is False
    assert found["findings"][0]["check"] == "speakers, test in train"
    assert found["labels"]["emotion"]["train"] == {"calm": 8, "loud": 9}
