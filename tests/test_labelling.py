"""Pseudo-labels: what two kinds of teachers answer, stops at any moment, and wrong input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from architectures import CONV, CONV_INPUT, LARGE
from speechfuse import cli
from speechfuse.audio import read_audio
from speechfuse.build import read_recipe
from speechfuse.data.manifests import prepare
from speechfuse.data.teachers import Seen, read_cards
from speechfuse.errors import DataError, RunError, SpeechFuseError, UpstreamError
from speechfuse.predict import predict_files
from speechfuse.pseudo import labelling
from speechfuse.pseudo.labelling import find_teacher, pseudo_label
from speechfuse.pseudo.teacher import Teacher
from speechfuse.recipe import merged
from speechfuse.train import train_run

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

LABELS = {0: "neu", 1: "hap", 2: "ang", 3: "sad", 4: "other"}
MAP = {"neu": "neutral", "hap": "happy", "ang": "angry"}


class Loudness(Teacher):
    """Sure of loud and of soft clips, and not of those between; counts what it is asked."""

    source, label, seen, name = "loudness", "emotion", (Seen("elsewhere"),), "loudness@1"
    classes = ["soft", "loud"]
    wanted = ["soft", "loud"]

    def __init__(self):
        self.asked = 0

    def identity(self):
        return {"weights_sha256": "1"}

    def load(self):
        pass

    def probabilities(self, clips):
        self.asked += len(clips)
        loud = torch.tensor([float(np.abs(clip).max()) for clip in clips]).double()
        return torch.stack([1 - loud, loud], dim=1)


@pytest.fixture
def unlabelled(workspace):
    """Twelve clips of four lengths, from soft to loud, with columns of their own."""
    rows = []
    for index in range(12):
        samples = np.full(4000 + 400 * (index % 4), (index + 0.5) / 12, np.float32)
        soundfile.write(workspace / f"u{index}.flac", samples, 16000, subtype="PCM_16")
        rows.append({"id": f"u{index}", "audio": f"u{index}.flac", "speaker": f"x{index % 3}"})
        rows[-1] |= {"text": 'says "hm"\t', "mood": "good" if index % 2 else "bad"}
    path = workspace / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def label(corpus, folder="out", teacher=None, **options):
    return pseudo_label(str(corpus), teacher or Loudness(), Path(folder), **options)


def manifest(folder="out"):
    return [json.loads(line) for line in Path(folder, "manifest.jsonl").read_text().splitlines()]


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class TestManifest:
    def test_labels_keep_their_origin_and_every_column(self, unlabelled, workspace):
        summary = label(unlabelled, threshold=0.8)
        assert [row["id"] for row in manifest()] == ["u0", "u1", "u10", "u11"]
        corpus = prepare(workspace / "out" / "manifest.jsonl", workspace / "corpora" / "labelled")
        one = corpus.utterances[-1]
        assert (one.id, one.emotion, one.speaker, one.text) == ("u11", "loud", "x2", 'says "hm"\t')
        sure = float(one.extra["emotion_confidence"])
        assert sure == pytest.approx(11.5 / 12, abs=1e-4)
        assert {**one.extra, "emotion_confidence": sure} == {
            "mood": "good",
            "emotion_origin": "loudness@1",
            "emotion_confidence": sure,
        }
        assert one.audio == workspace / "u11.flac"
        assert one.duration == pytest.approx((4000 + 400 * 3) / 16000)
        (card,) = corpus.teachers
        assert (card.name, card.threshold, card.seen) == ("loudness@1", 0.8, (Seen("elsewhere"),))
        assert corpus.source == "clips"
        assert summary == json.loads((workspace / "out" / "summary.json").read_text())
        assert summary["kept"] == 4
        assert summary["classes"]["soft"]["below the threshold"] == 4
        assert summary["classes"]["soft"]["named"] == 6

    def test_other_thresholds_choose_anew_without_asking(self, unlabelled):
        label(unlabelled)
        teacher = Loudness()
        summary = label(unlabelled, teacher=teacher, threshold=0.5, balance=4)
        assert teacher.asked == 0
        assert summary["kept"] == 8
        assert summary["classes"]["loud"]["over the cap"] == 2
        assert [row["id"] for row in manifest()] == [f"u{i}" for i in (0, 1, 2, 3, 8, 9, 10, 11)]

    def test_a_part_of_a_corpus(self, unlabelled):
        label(unlabelled, only={"mood": ["good"]}, threshold=0.8)
        assert [row["id"] for row in manifest()] == ["u1", "u11"]
        with pytest.raises(DataError, match=r"no mood is 'god'; .*'good'"):
            label(unlabelled, "other", only={"mood": ["god"]})

    def test_what_it_was_called_before_is_kept_and_compared(self, unlabelled, workspace):
        rows = [json.loads(line) for line in unlabelled.read_text().splitlines()]
        told = [row | {"emotion": "loud"} for row in rows]
        path = workspace / "told.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in told))
        summary = label(path, threshold=0.8)
        assert {row["emotion_given"] for row in manifest()} == {"loud"}
        assert (summary["had a label"], summary["of these the same"]) == (4, 2)

    def test_clips_that_cannot_be_read_or_are_too_short_are_counted(self, unlabelled, workspace):
        corpus = prepare(unlabelled, workspace / "corpora" / "clips")
        (workspace / "u3.flac").write_bytes(b"broken")
        teacher = Loudness()
        teacher.min_samples, teacher.max_samples = 4100, 5000
        summary = label("clips", teacher=teacher, threshold=0.5)
        assert summary["dropped"] == {
            "longer than the teacher reads": 2,
            "too short for the teacher": 3,
            "unreadable": 1,
        }
        assert teacher.asked == len(corpus.utterances) - 6


class TestStops:
    def test_a_stop_between_any_two_batches_changes_nothing(self, unlabelled, monkeypatch):
        monkeypatch.setattr(labelling, "BATCH_SECONDS", 0.6)
        label(unlabelled, "whole", threshold=0.6)
        for stop in range(1, 12):
            teacher, folder = Loudness(), f"parts{stop}"

            def interrupt(what, done, total, stop=stop):
                if what == "utterances labelled" and done >= stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                label(unlabelled, folder, teacher, threshold=0.6, progress=interrupt)
            assert not Path(folder, "manifest.jsonl").exists()
            label(unlabelled, folder, teacher, threshold=0.6)
            assert teacher.asked == 12
            assert files(folder) == files("whole")

    def test_a_line_that_was_cut_off_is_asked_again(self, unlabelled):
        label(unlabelled, "whole", threshold=0.6)
        whole = files("whole")["answers.jsonl"]
        for size in range(0, len(whole), 23):
            Path("whole", "answers.jsonl").write_bytes(whole[:size])
            label(unlabelled, "whole", threshold=0.6)
            assert files("whole")["answers.jsonl"] == whole

    @pytest.mark.recipe
    def test_a_killed_process_goes_on_to_the_same_bytes(self, unlabelled, hub):
        """Clips of a length each, so that there are twelve batches; killed after some of them."""
        for index in range(12):
            samples = np.random.default_rng(index).uniform(-0.3, 0.3, 16000 + 160 * index)
            soundfile.write(f"u{index}.flac", samples, 16000, subtype="PCM_16")
        chosen = ["--balance", "none", "--threshold", "0.2"]
        chosen += ["--map", "neu=neutral,hap=happy,ang=angry"]
        asked = ["pseudo-label", str(unlabelled), "--teacher", str(hub), *chosen, "--out"]
        assert CliRunner().invoke(cli.app, [*asked, "whole"]).exit_code == 0
        for number in (signal.SIGKILL, signal.SIGINT):
            process = subprocess.Popen(
                [sys.executable, "-m", "speechfuse.cli", *asked, number.name],
                stderr=subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            answers = Path(number.name, "answers.jsonl")
            while process.poll() is None and not (
                answers.is_file() and answers.stat().st_size > 200
            ):
                time.sleep(0.001)
            os.kill(process.pid, number)
            errors = process.communicate()[1].decode()
            if number == signal.SIGINT and process.returncode == 130:
                assert "what is done is kept; the same command goes on" in errors
            done = CliRunner().invoke(cli.app, [*asked, number.name])
            assert done.exit_code == 0, done.output
            assert "kept " in done.stdout
            assert files(number.name) == files("whole")


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A tiny random HuBERT with a classifier that is sure of something, and a card."""
    return _saved(tmp_path_factory.mktemp("hub") / "hubert-er", "Hubert", CONV)


def _saved(folder, kind, config, **more):
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(3)
    names = {name: index for index, name in LABELS.items()}
    made = getattr(transformers, f"{kind}Config")(
        **config, classifier_proj_size=16, id2label=LABELS, label2id=names, **more
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(made)
    model.classifier.weight.data *= 20
    model.save_pretrained(folder)
    getattr(transformers, CONV_INPUT)().save_pretrained(folder)
    (folder / "README.md").write_text("---\ndatasets:\n- superb\nlicense: mit\n---\n# A card\n")
    return folder


class TestHubTeacher:
    @pytest.mark.recipe
    @pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert", "WavLM"])
    @pytest.mark.parametrize("config", [CONV, CONV | LARGE], ids=["base", "large"])
    def test_it_answers_as_the_library_does_for_one_clip(self, tmp_path, unlabelled, kind, config):
        import transformers

        folder = _saved(tmp_path / "m", kind, config, use_weighted_layer_sum=config is not CONV)
        teacher = find_teacher(str(folder))
        teacher.load()
        clips = [read_audio(Path(f"u{i}.flac")) for i in range(12)]
        noise = [np.random.default_rng(i).normal(0, 0.1, len(c)) for i, c in enumerate(clips)]
        clips = [(c * 0.1 + n).astype(np.float32) for c, n in zip(clips, noise, strict=True)]
        together = teacher.probabilities(clips)
        classifier = transformers.AutoModelForAudioClassification.from_pretrained(folder)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        for clip, row in zip(clips, together, strict=True):
            inputs = extractor(clip, sampling_rate=16000, return_tensors="pt")
            with torch.no_grad():
                expected = classifier(**inputs).logits[0].softmax(-1)
            torch.testing.assert_close(row.float(), expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(teacher.probabilities([clip])[0], row, rtol=1e-5, atol=1e-7)

    def test_its_card_tells_what_it_has_seen(self, hub):
        assert find_teacher(str(hub)).seen == (Seen("iemocap"),)

    def test_a_name_on_the_hub_is_fetched_with_its_card(self, hub, monkeypatch):
        asked = []

        def fetch(source, revision, allow_patterns):
            asked.append((source, revision, sorted(allow_patterns)))
            return str(hub)

        monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
        teacher = find_teacher("org/emotion2vec_plus_base", revision="abc")
        files = ["README.md", "config.json", "preprocessor_config.json"]
        assert asked == [("org/emotion2vec_plus_base", "abc", files)]  # no weights to read a card
        assert len(teacher.seen) == 32
        teacher.load()
        assert asked[-1] == ("org/emotion2vec_plus_base", "abc", ["*.safetensors*", *files])
        assert teacher.name.startswith("emotion2vec_plus_base@")

    def test_a_broken_card_tells_nothing(self, tmp_path):
        folder = _saved(tmp_path / "m", "Hubert", CONV)
        (folder / "README.md").write_text("---\ndatasets: [\n---\n")
        assert find_teacher(str(folder)).seen == ()

    def test_the_shortest_clip_is_known(self, hub):
        teacher = find_teacher(str(hub))
        teacher.load()
        assert teacher.min_samples == 400
        assert teacher.probabilities([np.ones(400, np.float32)]).sum() == pytest.approx(1.0)

    def test_whisper_reads_30_seconds(self, tmp_path):
        import transformers

        from architectures import WHISPER

        config = transformers.WhisperConfig(**WHISPER, num_labels=2, classifier_proj_size=8)
        model = transformers.WhisperForAudioClassification(config)
        model.save_pretrained(tmp_path / "w")
        transformers.WhisperFeatureExtractor().save_pretrained(tmp_path / "w")
        teacher = find_teacher(str(tmp_path / "w"))
        teacher.load()
        assert teacher.max_samples == 30 * 16000
        assert teacher.classes == ["LABEL_0", "LABEL_1"]
        clips = [np.ones(5000, np.float32) * 0.1, np.zeros(7000, np.float32)]
        together = teacher.probabilities(clips)
        torch.testing.assert_close(teacher.probabilities(clips[1:])[0], together[1])

    def test_an_encoder_without_classifier_is_no_teacher(self, encoder, unlabelled):
        with pytest.raises(UpstreamError, match=r"lack \d tensors of a classifier, the first is"):
            label(unlabelled, teacher=find_teacher(str(encoder("hubert"))), labels=["LABEL_0"])
        assert not Path("out").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"problem_type": "regression"}, "is trained for regression; a teacher names one"),
            ({"model_type": "nothing"}, "cannot be read as a model of audio"),
        ],
    )
    def test_a_model_of_another_kind_is_no_teacher(self, tmp_path, change, message):
        folder = _saved(tmp_path / "m", "Hubert", CONV)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UpstreamError, match=message):
            find_teacher(str(folder))

    def test_pickled_weights_are_never_read(self, tmp_path, unlabelled):
        folder = _saved(tmp_path / "m", "Hubert", CONV)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(UpstreamError, match=r"has no .*safetensors, pickled weights are never"):
            label(unlabelled, teacher=find_teacher(str(folder)), mapping=MAP)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_corpus):
    """A run of two tasks on the tones that is sure of calm and loud."""
    folder = tmp_path_factory.mktemp("trained")
    corpus = str(tiny_corpus)
    recipe = {
        "upstreams": {"mel": {"kind": "filterbank", "num_mels": 24}},
        "store": {"folder": str(folder / "stores")},
        "fusion": {"interface": {"kind": "weighted_sum"}},
        "tasks": {
            "emotion": {"corpus": corpus, "head": {"kind": "classifier"}},
            "speaker": {
                "kind": "verification",
                "corpus": corpus,
                "head": {"kind": "speaker", "embedding_dim": 4},
            },
        },
        "training": {"steps": 80, "batch_seconds": 8, "learning_rate": 0.03},
    }
    before = os.environ.get("SPEECHFUSE_CORPORA")
    os.environ["SPEECHFUSE_CORPORA"] = str(folder / "corpora")
    try:
        train_run(read_recipe(recipe), folder / "run")
    finally:
        os.environ.pop("SPEECHFUSE_CORPORA")
        if before:
            os.environ["SPEECHFUSE_CORPORA"] = before
    return folder / "run"


class TestRunTeacher:
    @pytest.mark.recipe
    def test_it_answers_as_predict_does_alone_and_in_a_batch(self, trained, tiny_corpus):
        teacher = find_teacher(str(trained))
        assert (teacher.classes, teacher.label, teacher.task) == (
            ["calm", "loud"],
            "emotion",
            "emotion",
        )
        teacher.load()
        paths = sorted(tiny_corpus.parent.glob("*.wav"))[:9]
        clips = [read_audio(path)[: 6000 - 300 * i] for i, path in enumerate(paths)]
        together = teacher.probabilities(clips)
        torch.testing.assert_close(together.sum(1), torch.ones(9).double())
        for clip, row in zip(clips, together, strict=True):
            torch.testing.assert_close(teacher.probabilities([clip])[0], row, rtol=1e-5, atol=1e-7)
        whole = teacher.probabilities([read_audio(path) for path in paths]).argmax(-1).tolist()
        found = [line.split("\t")[2] for line in predict_files(trained, paths, ["emotion"])]
        assert [teacher.classes[index] for index in whole] == found

    @pytest.mark.recipe
    def test_one_that_reads_through_a_prompted_transformer(
        self, workspace, tone_recipe, tiny_corpus
    ):
        context = {"layers": 2, "dim": 16, "heads": 2, "join": 2}
        change = {"context": context, "training": {"steps": 3}}
        tone_recipe["tasks"].pop("verification")
        tone_recipe["tasks"].pop("asr")
        train_run(read_recipe(merged(tone_recipe, change)), workspace / "run")
        teacher = find_teacher("run")
        teacher.load()
        paths = sorted(tiny_corpus.parent.glob("*.wav"))[:5]
        clips = [read_audio(path)[: 6000 - 700 * i] for i, path in enumerate(paths)]
        together = teacher.probabilities(clips)
        for clip, row in zip(clips, together, strict=True):
            torch.testing.assert_close(teacher.probabilities([clip])[0], row, rtol=1e-4, atol=1e-6)
        whole = teacher.probabilities([read_audio(path) for path in paths]).argmax(-1).tolist()
        found = [line.split("\t")[2] for line in predict_files(Path("run"), paths)]
        assert [teacher.classes[index] for index in whole] == found

    def test_it_labels_what_it_has_learned(self, trained, tiny_corpus, workspace):
        summary = label(tiny_corpus, teacher=find_teacher(str(trained)), threshold=0.7)
        assert summary["kept"] > 20
        assert summary["of these the same"] == summary["had a label"] == summary["kept"]
        assert summary["speakers that it was trained on"] == 6
        (card,) = read_cards(workspace / "out")
        assert card.name.startswith("run/emotion@")
        (seen,) = card.seen
        assert (seen.corpus, seen.speakers) == (
            tiny_corpus.parent.name,
            ("s0", "s1", "s2", "s3", "s4", "s5"),
        )

    def test_an_older_run_has_seen_all_of_its_corpus(self, trained, tiny_corpus, workspace):
        import shutil

        shutil.copytree(trained, workspace / "old")
        (workspace / "old" / "seen.json").unlink()
        assert find_teacher("old").seen == (Seen(tiny_corpus.parent.name),)

    def test_a_task_that_names_no_class_is_refused(self, trained, workspace, tone_recipe):
        with pytest.raises(RunError, match=r"names no class by speaker; .*besides: emotion"):
            find_teacher(str(trained), "speaker")
        with pytest.raises(RunError, match=r"no task 'emotio'; .*'emotion'"):
            find_teacher(str(trained), "emotio")
        tone_recipe["tasks"].pop("verification")
        tone_recipe["tasks"]["mood"] = {**tone_recipe["tasks"]["emotion"], "kind": "emotion"}
        train_run(read_recipe(merged(tone_recipe, {"training": {"steps": 1}})), workspace / "two")
        with pytest.raises(RunError, match=r"has the tasks emotion, mood; say which .* --task"):
            find_teacher("two")
        assert find_teacher("two", "mood").name.startswith("two/mood@")
        (workspace / "two" / "metrics.json").unlink()
        with pytest.raises(RunError, match="two is not trained to its end"):
            find_teacher("two", "mood")


class TestWrongInput:
    """Exit code 2, one message, and nothing is written."""

    @pytest.mark.recipe
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--teacher", "nowhere"], "no folder at nowhere; give a folder or a hub name"),
            (["--teacher", "empty"], "empty is no teacher: neither a run .* nor a model"),
            (["--teacher", "HUB"], r"no angry and no happy .*--map ang=angry,hap=happy,neu=neut"),
            (["--teacher", "HUB", "--task", "emotion"], "is no run, it has no tasks; leave it out"),
            (["--threshold", "1.5"], "threshold 1.5 is no probability; expected 0 to 1"),
            (["--balance", "half"], "expected equal, none or a number"),
            (["--balance", "0"], "balance 0: expected a number above 0"),
            (["--map", "neu"], "expected TEACHER=WANTED"),
            (["--map", "neu=a,neu=b"], "each teacher once"),
            (["--out", "clips.jsonl"], "clips.jsonl is a file, expected a folder to write"),
            (["--out", "full"], "full is not empty and holds no pseudo-labels"),
        ],
    )
    def test_each_has_its_message(self, unlabelled, hub, arguments, message):
        Path("empty").mkdir()
        Path("full").mkdir()
        Path("full", "x").write_text("x")
        usual = {"--teacher": "HUB", "--out": "out", "--map": "neu=neutral,hap=happy,ang=angry"}
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        if given.get("--teacher") == "HUB":
            usual.pop("--map")
        words = [word for pair in (usual | given).items() for word in pair]
        words = [str(hub) if word == "HUB" else word for word in words]
        result = CliRunner().invoke(cli.app, ["pseudo-label", str(unlabelled), *words])
        assert isinstance(result.exception, SpeechFuseError)
        with pytest.raises(SpeechFuseError, match=message):
            raise result.exception
        assert not Path("out").exists()
        assert [path.name for path in Path("full").iterdir()] == ["x"]

    def test_a_corpus_without_audio(self, unlabelled, workspace):
        prepare(unlabelled, workspace / "corpora" / "clips")
        for path in workspace.glob("u1*.flac"):
            path.unlink()
        with pytest.raises(
            DataError, match=r"clips has no audio for 3 of 12 utterances, first .*u1"
        ):
            label("clips")
        assert not Path("out").exists()

    def test_a_folder_of_other_labels(self, unlabelled, workspace):
        label(unlabelled, threshold=0.6)
        before = files("out")

        class Other(Loudness):
            name = "other@2"

        with pytest.raises(
            RunError, match=r"labels of another teacher \(loudness@1, now other@2\)"
        ):
            label(unlabelled, teacher=Other())
        with pytest.raises(RunError, match=r"labels of another corpus .*12 utterances"):
            label(unlabelled, only={"mood": ["good"]})
        assert files("out") == before

    def test_nothing_sure_is_said_and_the_answers_stay(self, unlabelled):
        with pytest.raises(DataError, match=r"soft 0, loud 0 .* lower --threshold"):
            label(unlabelled, threshold=0.99)
        with pytest.raises(DataError, match=r"no answer of loudness is a label at a threshold of"):
            label(unlabelled, threshold=0.99, balance="none")
        assert not Path("out", "manifest.jsonl").exists()
        teacher = Loudness()
        label(unlabelled, teacher=teacher, threshold=0.6)
        assert teacher.asked == 0


def test_the_command_shows_classes_and_what_was_dropped(unlabelled, hub):
    words = ["--teacher", hub, "--out", "out", "--map", "neu=neutral,hap=happy,ang=angry"]
    words += ["--threshold", "0.2", "--balance", "none", "--only", "mood=good"]
    result = CliRunner().invoke(cli.app, ["pseudo-label", str(unlabelled), *map(str, words)])
    assert result.exit_code == 0, result.output
    assert "below the threshold" in result.output
    assert "the teacher was trained on: iemocap" in result.output
    assert f"kept {len(manifest())} of 6: out/manifest.jsonl" in result.output
