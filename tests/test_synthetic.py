"""The embedded corpus; needs espeak-ng from the extra `corpus`."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from speechfuse.data.synthetic import acoustics, espeak, sentences, voices
from speechfuse.data.synthetic.corpus import Settings, _plan, prepare_synthetic
from speechfuse.data.synthetic.languages import (
    LanguageSettings,
    language_words,
    plan_languages,
    prepare_languages,
)
from speechfuse.errors import DataError

pytest.importorskip("espeakng_loader")

SMALL = Settings(speakers=(3, 2, 3), utterances=(4, 4, 4))


def digest(folder):
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


@pytest.mark.recipe
def test_the_same_settings_give_the_same_bytes(tmp_path):
    one = prepare_synthetic(tmp_path / "one" / "synthetic", SMALL)
    prepare_synthetic(tmp_path / "two" / "synthetic", SMALL)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert len(one.utterances) == 32
    assert {t.same for t in one.trials} == {True, False}


@pytest.mark.recipe
def test_made_once_and_then_read(tmp_path):
    calls = []
    prepare_synthetic(tmp_path / "synthetic", SMALL, lambda *a: calls.append(a))
    assert len(calls) == 32
    prepare_synthetic(tmp_path / "synthetic", SMALL, lambda *a: calls.append(a))
    assert len(calls) == 32
    other = Settings(speakers=(3, 2, 3), utterances=(4, 4, 4), seed=8)
    prepare_synthetic(tmp_path / "synthetic", other, lambda *a: calls.append(a))
    assert len(calls) == 64


@pytest.mark.parametrize("name", ["thesis.tex", "corpus.json"])
def test_another_folder_is_refused_before_anything_is_spoken(tmp_path, name):
    (tmp_path / name).write_text("years of work")
    calls = []
    with pytest.raises(DataError, match=r"no corpus of ours \(no synthetic\.json\)"):
        prepare_synthetic(tmp_path, SMALL, lambda *a: calls.append(a))
    assert not calls
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_default_corpus_is_as_large_and_disjoint_as_promised():
    planned = list(_plan(Settings()))
    by_split = {s: [p for p in planned if p.split == s] for s in ("train", "dev", "test")}
    speakers = {s: {p.speaker.name for p in members} for s, members in by_split.items()}
    assert sum(map(len, speakers.values())) >= 60
    assert len(speakers["test"]) >= 16
    assert not speakers["train"] & speakers["test"] | speakers["dev"] & speakers["test"]
    texts = [p.text for p in planned]
    assert len(set(texts)) == len(texts)  # no sentence twice, so none in two splits
    assert len({p.speaker.variant for p in planned}) == sum(map(len, speakers.values()))
    for members in by_split.values():
        counts = np.unique([p.emotion for p in members], return_counts=True)[1]
        assert len(counts) == 4
        assert counts.max() <= counts.min() + len(members) // 20


def test_the_grammar_has_more_than_200_words():
    known = sentences.vocabulary()
    assert len(known) >= 200
    random = np.random.default_rng(0)
    drawn = [sentences.draw_sentence(random) for _ in range(500)]
    assert {word for text in drawn for word in text.split()} <= set(known)
    assert len(set(drawn)) > 490


def job(text="hello there", voice="en-us+v"):
    return espeak.Job(text, voice, rate=170, pitch=50, range=50, volume=80)


VARIANT = "language variant\nname v\ngender male\npitch 80 120\nbreath 2 2 2 2 2 2 2 2\n"


def test_audio_does_not_depend_on_the_order():
    jobs = [job(text) for text in ("one", "two words", "and three of them")]
    ahead = [a.tobytes() for a in espeak.synthesise(jobs, {"v": VARIANT})]
    back = [a.tobytes() for a in espeak.synthesise(jobs[::-1], {"v": VARIANT})]
    assert ahead == back[::-1]
    assert min(map(len, ahead)) > 4000


def test_prosody_is_heard():
    settings = [{"rate": 110}, {"rate": 300}, {"volume": 30}, {"volume": 150}]
    jobs = [espeak.Job("hello there", "en-us+v", **{"rate": 170, "pitch": 50, "range": 50, "volume": 80, **s}) for s in settings]  # fmt: skip  # noqa: E501
    slow, fast, quiet, loud = espeak.synthesise(jobs, {"v": VARIANT})
    assert len(slow) > 1.5 * len(fast)
    assert loud.astype(float).std() > 2 * quiet.astype(float).std()


def test_an_unknown_voice_is_named():
    with pytest.raises(DataError, match="knows no voice 'xx-yy"):
        list(espeak.synthesise([job(voice="xx-yy+v")], {"v": VARIANT}))


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    assert "pip install 'speechfuse[corpus]'" in espeak._why("No module named 'espeakng_loader'")


def test_the_child_loads_nothing_heavy():
    """espeak-ng is GPL: it lives in a process that has neither torch nor the rest of us."""
    code = (
        "import speechfuse.data.synthetic.espeak, sys;"
        "mine = [m for m in sys.modules if m.startswith('speechfuse')];"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, mine;"
        "print(sorted(mine))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "speechfuse.types" not in out.stdout


def test_recordings_have_the_noise_and_length_asked_for():
    random = np.random.default_rng(0)
    speech = (0.3 * np.sin(np.arange(16000) * 0.2)).astype(np.float32)
    quiet, loud = (
        acoustics.record(speech, 16000, np.random.default_rng(1), snr=(s, s)) for s in (40, 0)
    )
    assert len(quiet) == len(loud) == 16000
    assert np.abs(loud).max() <= 1.0
    assert np.std(loud[1:] - loud[:-1]) > 2 * np.std(quiet[1:] - quiet[:-1])
    assert random.random() != 1


def test_emotions_overlap_but_differ_on_average():
    random = np.random.default_rng(0)
    drawn = {e: [voices.draw_prosody(e, 1.0, random) for _ in range(300)] for e in voices.EMOTIONS}
    rates = {e: np.array([p.rate for p in members]) for e, members in drawn.items()}
    assert rates["angry"].mean() > 1.15 * rates["sad"].mean()
    assert (rates["angry"] < rates["sad"].mean()).mean() > 0.005  # some angry people are slow


FEW = LanguageSettings(speakers=(2, 1, 1), utterances=1)


@pytest.mark.recipe
def test_every_voice_speaks_every_language(tmp_path):
    """Else the voice would tell the language."""
    corpus = prepare_languages(tmp_path / "languages", FEW)
    spoken = {}
    for u in corpus.utterances:
        spoken.setdefault(u.speaker, []).append(u.language)
    assert {tuple(found) for found in spoken.values()} == {tuple(language_words())}
    assert set(spoken) == {"train00", "train01", "dev00", "test00"}
    assert min(u.duration for u in corpus.utterances) > 0.7
    prepare_languages(tmp_path / "again" / "languages", FEW)
    assert digest(tmp_path / "again" / "languages") == digest(tmp_path / "languages")


def test_voices_and_words_of_one_split_are_in_no_other():
    planned = list(plan_languages(LanguageSettings()))
    for label in ("speaker", "word"):
        found = {"train": set(), "dev": set(), "test": set()}
        for p in planned:
            of_it = p.text.split() if label == "word" else [p.speaker.name]
            found[p.split] |= {(p.language if label == "word" else "", one) for one in of_it}
        assert not found["train"] & found["test"]
        assert not found["dev"] & (found["train"] | found["test"])
        assert min(map(len, found.values())) >= 6


def test_languages_have_as_many_words_in_the_same_groups():
    words = language_words()
    assert {len(known) for known in words.values()} == {40}
    assert all(len(set(known)) == 40 for known in words.values())


def test_one_voice_sounds_different_in_two_languages():
    jobs = [
        p.job
        for p in plan_languages(FEW)
        if p.speaker.name == "train00" and p.language in ("fi", "fr")
    ]
    variant = next(plan_languages(FEW)).speaker.variant
    said = [espeak.Job("1 2 3", job.voice, 170, 50, 50, 80) for job in jobs]
    one, other = espeak.synthesise(said, {"train00": variant})
    assert len(one) != len(other)
