"""PCA of each layer: against an SVD of all frames, and what it is fitted to in a run."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speechfuse.build import build_fusion, read_recipe
from speechfuse.cache.store import Store
from speechfuse.checkpoint import Run
from speechfuse.errors import DataError, RecipeError, RunError
from speechfuse.evaluate import evaluate_again
from speechfuse.interfaces.pca_concat import PCAConcat
from speechfuse.predict import predict_files
from speechfuse.recipe import merged
from speechfuse.taskdata import load_tasks
from speechfuse.train import train_run
from speechfuse.types import LayerStack, StackSpec


@pytest.fixture
def pca_recipe(tone_recipe):
    tone_recipe["fusion"] = {"interface": {"kind": "pca_concat", "components": 5}}
    tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
    return tone_recipe


def test_equals_the_svd_of_all_valid_frames_at_once():
    """A large mean and five batches with garbage behind the valid frames."""
    torch.manual_seed(0)
    scale = torch.linspace(1, 3, 8)
    spread = torch.randn(3, 8, 8) * scale
    batches, frames = [], []
    for lengths in ((9, 4), (3, 7), (11, 2), (5, 5), (1, 8)):
        hidden = torch.randn(3, 2, max(lengths), 8) @ spread[:, None] + 300.0
        frames += [hidden[:, row, :size] for row, size in enumerate(lengths)]
        for row, size in enumerate(lengths):
            hidden[:, row, size:] = -1e6
        batches.append(LayerStack(tuple(hidden), torch.tensor(lengths), 50.0))
    part = PCAConcat(StackSpec(3, 8, 50.0), tasks=["asr"], components=4)
    part.fit(iter(batches))  # an iterator: there is no second pass
    out = part(batches[0], "asr").hidden[0]
    for layer in range(3):
        data = torch.cat(frames, 1)[layer].double().numpy()
        _, _, axes = np.linalg.svd(data - data.mean(0), full_matrices=False)
        axes = axes[:4].T * np.sign(axes[:4].T[np.abs(axes[:4]).argmax(1), range(4)])
        expected = (frames[0][layer].double().numpy() - data.mean(0)) @ axes
        found = out[:, 4 * layer : 4 * layer + 4].numpy()
        np.testing.assert_allclose(found, expected, atol=2e-3)
    assert out.shape[-1] == part.out_dim == 12
    assert not list(part.parameters())


def test_components_are_as_wide_as_one_layer_in_the_paper(caplog):
    assert PCAConcat(StackSpec(13, 768, 50.0), tasks=["asr"]).out_dim == 780
    assert not caplog.text
    assert PCAConcat(StackSpec(2, 8, 50.0), tasks=["asr"]).out_dim == 16
    assert "components reduced from 60 to 8" in caplog.text


def test_use_before_the_fit_and_a_fit_to_nothing_are_refused(stack):
    given = stack()
    part = PCAConcat(given.spec, tasks=["asr"], components=3)
    with pytest.raises(RunError, match="not fitted; train does that"):
        part(given, "asr")
    with pytest.raises(DataError, match="0 frames to fit to"):
        part.fit([])


def test_only_training_utterances_are_read_in_the_fit(workspace, pca_recipe, monkeypatch):
    read, seen, fit = [], [], PCAConcat.fit

    def watched(self, utterances, spans=None):
        read.extend(u.id for u in utterances)
        return batch(self, utterances, spans)

    def fitted(self, stacks):
        read.clear()
        fit(self, stacks)
        seen.append(list(read))

    batch = Store.batch
    monkeypatch.setattr(Store, "batch", watched)
    monkeypatch.setattr(PCAConcat, "fit", fitted)
    recipe = read_recipe(pca_recipe)
    train_run(recipe, workspace / "run")
    (ids,) = seen
    splits = load_tasks(recipe)["emotion"].splits
    assert sorted(ids) == sorted(u.id for u in splits["train"])


@pytest.mark.recipe
@pytest.mark.parametrize("order", ["merge_first", "layers_first"])
def test_a_run_keeps_its_fit_and_goes_on_with_it(workspace, pca_recipe, tiny_corpus, order):
    class Stop(Exception):
        pass

    def interrupt(what, done, total):
        if what == "training steps" and done == 7:
            raise Stop

    mels = {"mel": {"kind": "filterbank", "num_mels": 24}, "other": {"kind": "filterbank"}}
    change = {
        "upstreams": mels,
        "fusion": {"order": order, "merge": {"kind": "concat"}},
        "training": {"steps": 8, "evaluate_every": 4},
    }
    recipe = read_recipe(merged(pca_recipe, change))
    metrics = train_run(recipe, workspace / "run")
    with pytest.raises(Stop):
        train_run(recipe, workspace / "parts", interrupt)
    train_run(recipe, workspace / "parts")
    whole, parts = (load_file(workspace / n / "model.safetensors") for n in ("run", "parts"))
    assert sum(name.endswith(".axes") for name in whole) == (1 if order == "merge_first" else 2)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert evaluate_again(workspace / "run") == metrics
    (line,) = predict_files(workspace / "run", [tiny_corpus.parent / "s7-0.wav"])
    assert line.split("\t")[1] == "emotion"
    assert Run(workspace / "run").finished


def test_layers_that_change_in_training_are_refused(workspace, pca_recipe, encoder):
    specs = [StackSpec(3, 24, 50.0)] * 2
    for merge in ({"kind": "gated"}, {"kind": "concat", "projection": "before"}):
        recipe = read_recipe(merged(pca_recipe, {"fusion": {"merge": merge}}))
        with pytest.raises(RecipeError, match="fitted before training, to what merge"):
            build_fusion(recipe, specs, ["emotion"])
    gated = {"fusion": {"order": "layers_first", "merge": {"kind": "gated"}}}
    build_fusion(read_recipe(merged(pca_recipe, gated)), specs, ["emotion"])
    ssl = {"ssl": {"kind": "huggingface", "source": str(encoder("hubert"))}}
    tuned = pca_recipe | {"upstreams": ssl}
    tuned["training"] = tuned["training"] | {"train_upstream": "top_1"}
    with pytest.raises(RecipeError, match="to layers of ssl that are trained"):
        train_run(read_recipe(tuned), workspace / "run")
    everyone = {"tasks": {"emotion": {"split": {"all_test": True}}}}
    with pytest.raises(RecipeError, match=r"split\.all_test"):
        train_run(read_recipe(merged(pca_recipe, everyone)), workspace / "run")
    assert not (workspace / "run").exists()
