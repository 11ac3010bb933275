"""Real speech and a real encoder: skipped, saying so, where $SPEECHFUSE_REAL names no folder."""

import math
import os
from pathlib import Path

import pytest
import soundfile
import torch

from speechfuse.audio import pad_clips, read_audio
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.sweep import cells, read_sweep, summarise
from speechfuse.upstreams.huggingface import HuggingFace

RECIPES = Path(__file__).parents[1] / "recipes" / "real"
REAL = os.environ.get("SPEECHFUSE_REAL", "")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL, reason="set SPEECHFUSE_REAL to a folder with real speech"),
    pytest.mark.timeout(300),
]


def speech(count):
    """The longest utterances of LibriSpeech."""
    paths = sorted((Path(REAL) / "data" / "librispeech_test_other_100" / "audio").rglob("*.*"))
    paths = sorted(paths, key=lambda path: soundfile.info(path).frames)[-count:]
    return [torch.from_numpy(read_audio(path)) for path in paths]


def test_whisper_base_gives_the_states_of_transformers():
    import transformers

    folder = str(Path(REAL) / "upstreams" / "whisper-base-encoder")
    clips = speech(2)
    ours = HuggingFace(source=folder, whisper_pad="30s")(pad_clips(clips))
    config = transformers.WhisperConfig.from_pretrained(folder)
    model = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    from safetensors.torch import load_file

    weights = load_file(Path(folder) / "model.safetensors")
    model.load_state_dict({k.split("encoder.", 1)[-1]: v.float() for k, v in weights.items()})
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    given = extractor([c.numpy() for c in clips], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        theirs = model(given.input_features, output_hidden_states=True).hidden_states
    assert len(ours.layers) == len(theirs) == 7
    for row, clip in enumerate(clips):
        frames = math.ceil(len(clip) / 320)
        assert int(ours.lengths[row]) == frames
        for one, other in zip(ours.layers, theirs, strict=True):
            # of the layer's size: its largest values are hundreds
            error = (one[row, :frames] - other[row, :frames]).norm() / other[row, :frames].norm()
            assert error < 1e-3


def test_trials_give_the_known_error_rates(tmp_path, monkeypatch):
    """A plain probe had .129 for log-mel and .214 for layer 1, with its own pooling and silence."""
    monkeypatch.chdir(tmp_path)
    sweep = read_sweep(RECIPES / "librispeech_trials.yaml")
    done = run_sweep(sweep, tmp_path / "out", rows=["log-mel", "Whisper, layer 1"])
    found = {result.row: result.value.value for result in summarise(sweep, done)}
    assert found["log-mel"] == pytest.approx(0.129, abs=0.03)
    assert found["Whisper, layer 1"] == pytest.approx(0.214, abs=0.03)


@pytest.mark.parametrize(
    ("recipe", "folds", "speakers"),
    [("emodb", 10, 10), ("fsdd", 3, 6), ("librispeech_10min", 5, 10)],
)
def test_every_fold_tests_other_speakers(recipe, folds, speakers, tmp_path):
    sweep = read_sweep(RECIPES / f"{recipe}.yaml")
    row = next(name for name in sweep.rows if name != "chosen layer")
    task = next(iter(sweep.recipe["tasks"]))
    found = cells(sweep, tmp_path, [row])
    first = [c for c in found if c.condition == found[0].condition and c.seed == sweep.seeds[0]]
    tested = [name for cell in first for name in cell.recipe.tasks[task].split.test_speakers]
    assert len(first) == folds
    assert len(tested) == len(set(tested)) == speakers
