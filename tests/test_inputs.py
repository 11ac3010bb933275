"""What stands for a store where an upstream is trained: audio, and lengths before it is run."""

import pytest
import torch

from architectures import ARCHITECTURES
from speechfuse.build import read_recipe
from speechfuse.cache.store import Store
from speechfuse.extract import fill_stores
from speechfuse.inputs import Clips, find_inputs
from speechfuse.taskdata import load_tasks
from speechfuse.upstreams.huggingface import HuggingFace


def tuned_recipe(base, folder, **changes):
    base = base | {"upstreams": {"ssl": {"kind": "huggingface", "source": str(folder)}}, **changes}
    return read_recipe(base | {"training": {"train_upstream": "all"}})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lengths_are_known_and_spans_give_so_many_frames(workspace, tone_recipe, encoder, name):
    recipe = tuned_recipe(tone_recipe, encoder(name))
    members = load_tasks(recipe)["asr"].splits["dev"][:4]
    clips, part = Clips(recipe, "ssl", None), HuggingFace(source=str(encoder(name)))
    assert part(clips.batch(members)).lengths.tolist() == [clips.frames(u) for u in members]
    whole = clips.frames(members[3])
    spans = [slice(0, 5), slice(2, 9), slice(10, 11), slice(0, whole)]
    assert part(clips.batch(members, spans)).lengths.tolist() == [5, 7, 1, whole]


def test_a_span_begins_where_its_frame_begins(workspace, tone_recipe, encoder):
    recipe = tuned_recipe(tone_recipe, encoder("hubert"))
    members = load_tasks(recipe)["asr"].splits["dev"][:2]
    clips = Clips(recipe, "ssl", None)
    whole, cut = clips.batch(members), clips.batch(members, [slice(3, 7), slice(0, 2)])
    assert torch.equal(cut.samples[0], whole.samples[0, 3 * 320 : 6 * 320 + 400])
    assert torch.equal(cut.samples[1, :720], whole.samples[1, :720])
    assert (cut.samples[1, 720:] == 0).all()


def test_frozen_ones_keep_their_stores_in_recipe_order(workspace, tone_recipe, encoder):
    source = {"kind": "huggingface", "source": str(encoder("hubert"))}
    upstreams = {"a": source, "mel": {"kind": "filterbank"}, "b": source}
    recipe = tone_recipe | {"upstreams": upstreams}
    recipe["training"] = {"train_upstream": {"b": "top_1"}}
    recipe = read_recipe(recipe)  # the same encoder frozen and tuned is no repeat
    tasks = load_tasks(recipe)
    found = find_inputs(recipe, tasks)
    for task in tasks:
        assert [type(one) for one in found[task]] == [Store, Store, Clips]
        assert [one.spec.dim for one in found[task]] == [32, 80, 32]
        a, _, b = found[task]
        (u, *_) = tasks[task].splits["train"]
        assert a.frames(u) == b.frames(u)
    assert len(fill_stores(recipe, tasks)["asr"]) == 2


def test_a_noisy_task_hears_the_noise(workspace, tone_recipe, encoder):
    tone_recipe["tasks"]["emotion"]["noise_snr"] = 0.0
    recipe = tuned_recipe(tone_recipe, encoder("hubert"))
    tasks = load_tasks(recipe)
    found = find_inputs(recipe, tasks)
    (u, *_) = tasks["asr"].splits["train"]
    clean, noisy = (found[task][0].batch([u]).samples for task in ("asr", "emotion"))
    assert 0.3 < float((noisy - clean).norm() / clean.norm()) < 3
