"""What is stored under a VERSION is always the same: other numbers need another VERSION."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from architectures import ARCHITECTURES
from speechfuse.clips import read_batch
from speechfuse.extract import VERSION
from speechfuse.types import Utterance
from speechfuse.upstreams.filterbank import Filterbank
from speechfuse.upstreams.huggingface import HuggingFace

NUMBERS = Path(__file__).with_suffix(".json")
SECONDS = (0.6, 0.9)  # of two clips, so that one is padded
TOLERANCE = 1e-4  # of a layer's root mean square


def drawn(name, *shape):
    """Normal numbers of this name, the same with every version of every library."""
    state = np.random.RandomState(zlib.crc32(name.encode()))  # its stream is frozen
    return state.standard_normal(shape).astype(np.float32)


def made(name, folder):
    """An encoder whose weights are drawn by their names."""
    import transformers

    config, changes, extractor = ARCHITECTURES[name]
    model = transformers.AutoModel.from_config(getattr(transformers, config)(**changes))
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = drawn(key, *tensor.shape)
            if tensor.dim() > 1:
                values /= np.sqrt(values[0].size)
            else:  # gains and variances about one, the rest about zero
                values = 0.1 * values + (not key.endswith(("bias", "mean")))
            tensor.copy_(torch.from_numpy(values))
    model.save_pretrained(folder)
    getattr(transformers, extractor)().save_pretrained(folder)
    return HuggingFace(source=str(folder))


def clips(folder, rate):
    """Noise whose level rises."""
    found = []
    for seconds in SECONDS:
        size = round(seconds * rate)
        samples = 0.1 * np.linspace(0.1, 1, size) * drawn(f"clip of {size}", size)
        soundfile.write(folder / f"{size}.wav", samples, rate, subtype="FLOAT")
        found.append(Utterance(f"{size}", folder / f"{size}.wav", 0.0, seconds))
    return found


def summary(stack):
    """Of each layer its root mean square, and two sums of it with signs, as large."""
    rows = []
    for number, layer in enumerate(stack.layers):
        valid = [one[:size] for one, size in zip(layer, stack.lengths.tolist(), strict=True)]
        values = torch.cat(valid).double().numpy()
        signs = [np.sign(drawn(f"signs {number} {turn}", *values.shape)) for turn in range(2)]
        sums = [float((values * sign).sum() / np.sqrt(values.size)) for sign in signs]
        rows.append([float(np.sqrt((values**2).mean())), *sums])
    return rows


def check(name, found):
    wanted = json.loads(NUMBERS.read_text())
    rows = [[round(value, 6) for value in row] for row in found]
    assert wanted["version"] == VERSION, (
        f"VERSION is {VERSION}, {NUMBERS.name} is of {wanted['version']}; write what is found "
        f"there, for {name} {rows}"
    )
    scale = np.array([[row[0]] for row in wanted["layers"][name]])
    wrong = np.abs(np.array(found) - np.array(wanted["layers"][name])) / scale
    assert wrong.max() <= TOLERANCE, (
        f"layers of {name} are off by {wrong.max():.1e} of their size, so a store would mix old "
        f"ones and new ones: raise VERSION in extract.py, which is {VERSION}, and write what is "
        f"found into {NUMBERS.name}: {rows}"
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_encoder_gives_the_numbers_of_this_version(tmp_path, name):
    upstream = made(name, tmp_path / "encoder")
    check(name, summary(upstream(read_batch(clips(tmp_path, 16000), upstream))))


@pytest.mark.parametrize(
    ("name", "rate", "noise"), [("resampled", 22050, None), ("noise", 16000, 10.0)]
)
def test_a_filterbank_gives_the_numbers_of_this_version(tmp_path, name, rate, noise):
    upstream = Filterbank(num_mels=24)
    check(
        f"filterbank, {name}", summary(upstream(read_batch(clips(tmp_path, rate), upstream, noise)))
    )
