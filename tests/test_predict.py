"""Answers for files: layers are fused as they are made, where the interface can."""

import weakref

import pytest

from speechfuse import predict
from speechfuse.build import read_recipe
from speechfuse.predict import predict_files
from speechfuse.train import train_run
from speechfuse.upstreams.huggingface import HuggingFace


@pytest.mark.parametrize(
    ("fusion", "streams"),
    [
        ({"interface": {"kind": "weighted_sum"}}, True),
        ({"interface": {"kind": "hconv"}, "normalize": "layer_norm", "per_task": False}, True),
        ({"interface": {"kind": "frame_gating"}}, False),
        ({"interface": {"kind": "weighted_sum"}, "order": "layers_first"}, False),
    ],
)
def test_layers_are_not_held_and_the_answers_are_those_of_whole_stacks(
    workspace, tone_recipe, tiny_corpus, encoder, monkeypatch, fusion, streams
):
    tone_recipe["upstreams"] = {"ssl": {"kind": "huggingface", "source": str(encoder("hubert"))}}
    tone_recipe["tasks"] = {n: tone_recipe["tasks"][n] for n in ("asr", "verification")}
    tone_recipe["training"]["steps"] = 2
    train_run(read_recipe(tone_recipe | {"fusion": fusion}), workspace / "run")
    files = [tiny_corpus.parent / f"s{i}-0.wav" for i in (7, 3)]
    made, held = [], []
    whole = HuggingFace.stream

    def watched(self, wav):
        lengths, layers = whole(self, wav)

        def watch():
            for hidden in layers:
                held.append(sum(ref() is not None for ref in made))
                made.append(weakref.ref(hidden))
                yield hidden

        return lengths, watch()

    monkeypatch.setattr(HuggingFace, "stream", watched)
    found = list(predict_files(workspace / "run", files))
    assert len(made) >= 2 * 3
    assert (max(held) <= 1) == streams
    monkeypatch.setattr(predict, "_streamed", lambda *_: {})
    assert list(predict_files(workspace / "run", files)) == found
