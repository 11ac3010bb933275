"""Copies of training utterances: which there are, what a run makes of them, where they are not."""

import json

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file

from speechfuse import build
from speechfuse.build import read_recipe
from speechfuse.clips import read_batch
from speechfuse.errors import DataError, RecipeError
from speechfuse.extract import extraction_jobs, fill_stores
from speechfuse.plan import _copies, plan_recipe
from speechfuse.recipe import merged
from speechfuse.taskdata import load_tasks
from speechfuse.train import train_run

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

AUGMENT = {"speed": [0.9, 1.0, 1.25], "noise": {"snr": [5, 15], "copies": 2}}


@pytest.fixture
def recipe(tone_recipe):
    tone_recipe["tasks"] = {"emotion": tone_recipe["tasks"]["emotion"]}
    return merged(tone_recipe, {"tasks": {"emotion": {"augment": AUGMENT}}})


def splits(recipe, name="emotion", overrides=()):
    return load_tasks(read_recipe(recipe, overrides))[name].splits


def test_the_training_split_alone_has_copies(workspace, recipe):
    plain = splits(recipe, overrides=["tasks.emotion.augment=null"])
    found = splits(recipe)
    assert found["dev"] == plain["dev"]
    assert found["test"] == plain["test"]
    size = len(plain["train"])
    assert found["train"][:size] == plain["train"]
    copies = found["train"][size:]
    assert len(copies) == 4 * size
    assert all(one.alteration is not None for one in copies)
    assert len({u.id for u in found["train"]}) == 5 * size
    assert {u.emotion for u in copies[:size]} == {"calm", "loud"}


def test_a_copy_is_as_long_as_it_says_and_as_noisy(workspace, recipe, encoder):
    read = read_recipe(recipe)
    upstream = build.build_upstream(read, "mel")
    first, *_ = whole = splits(recipe)["train"]
    mine = [u for u in whole if u.audio == first.audio]
    wav = read_batch(mine, upstream)
    for u, size in zip(mine, wav.lengths.tolist(), strict=True):
        assert u.duration == pytest.approx(size / 16000, abs=1 / 16000)
    assert wav.lengths.tolist() == [6400, round(6400 / 0.9), 5120, 6400, 6400]
    speech = wav.samples[0, :6400].double()
    for row in (3, 4):
        noise = wav.samples[row, :6400].double() - speech
        snr = 10 * float((speech.square().mean() / noise.square().mean()).log10())
        how = mine[row].alteration
        assert snr == pytest.approx(how.snr, abs=0.05)
        assert 5 <= how.snr <= 15


def test_copies_are_the_same_whatever_the_seed_of_training(workspace, recipe):
    one, other = (splits(recipe | {"seed": seed})["train"] for seed in (1, 2))
    assert one == other
    drawn = splits(recipe, overrides=["tasks.emotion.augment.noise.seed=1"])["train"]
    assert [u.alteration for u in drawn] != [u.alteration for u in one]


def test_their_layers_are_stored_once_and_hit(workspace, recipe):
    first = read_recipe(recipe)
    tasks = load_tasks(first)
    fill_stores(first, tasks)
    (job,) = extraction_jobs(first, tasks)
    assert len(job.wanted) == sum(len(s) for s in tasks["emotion"].splits.values())
    assert job.missing == {}
    other = read_recipe(recipe | {"seed": 9}, ["tasks.emotion.augment.speed=[0.9]"])
    (job,) = extraction_jobs(other, load_tasks(other))
    assert job.missing == {}
    more = read_recipe(recipe, ["tasks.emotion.augment.speed=[0.8]"])
    (job,) = extraction_jobs(more, load_tasks(more))
    assert len(job.missing) == len(tasks["emotion"].splits["train"]) // 5


def test_another_recording_of_noise_is_another_entry(workspace, recipe):
    (workspace / "noises").mkdir()
    random = np.random.default_rng(0)
    recipe["tasks"]["emotion"]["augment"] = {"noise": {"source": "noises"}}
    keys = []
    for _ in range(2):
        soundfile.write(workspace / "noises" / "a.wav", random.uniform(-1, 1, 8000), 16000)
        read = read_recipe(recipe)
        (job,) = extraction_jobs(read, load_tasks(read))
        keys.append({key for key, u in job.wanted.items() if u.alteration})
    assert len(keys[0]) == 32
    assert not keys[0] & keys[1]


def test_a_stopped_run_goes_on_to_the_same_weights(workspace, recipe):
    def stop(what, done, total):
        if what == "training steps" and done == 7:
            raise KeyboardInterrupt

    read = read_recipe(recipe)
    whole = train_run(read, workspace / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_run(read, workspace / "parts", stop)
    assert train_run(read, workspace / "parts")["test"] == whole["test"]
    one, other = (load_file(workspace / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_voice_at_another_speed_may_be_another_speaker(workspace, tone_recipe):
    tone_recipe["tasks"] = {"verification": tone_recipe["tasks"]["verification"]}
    for choice, count in (("same", 4), ("new", 8)):
        augment = {"speed": [1.1], "speed_speakers": choice}
        change = {"tasks": {"verification": {"augment": augment}}}
        data = load_tasks(read_recipe(merged(tone_recipe, change)))["verification"]
        assert data.task.head_options() == {"num_classes": count}
        assert {u.speaker for u in data.splits["test"]} == {"s6", "s7"}


def test_the_plan_counts_them(workspace, recipe):
    read = read_recipe(recipe)
    train = load_tasks(read)["emotion"].splits["train"]  # prepares the corpus
    assert "with 128 altered copies" in plan_recipe(read)[-1][0]
    assert _copies(read) == train[32:]
    plain = read_recipe(recipe, ["tasks.emotion.augment=null"])
    assert "copies" not in plan_recipe(plain)[-1][0]


def test_masks_alone_make_no_copies_and_copies_alone_no_masks(workspace, recipe):
    names = {"emotion": load_tasks(read_recipe(recipe))["emotion"].task}
    for augment, before in ((AUGMENT, False), ({"time_masks": 1, "time_width": 2}, True)):
        recipe["tasks"]["emotion"]["augment"] = augment
        read = read_recipe(recipe)
        model = build.build_model(read, build.stack_specs(read), names)
        assert ("emotion" in model.before) == before


@pytest.mark.parametrize(
    ("augment", "error", "said"),
    [
        ({"speed": [9]}, RecipeError, "a factor from 0.5 to 2"),
        ({"noise": {"snr": [20, 5]}}, RecipeError, "the least and the most dB"),
        ({"noise": {"source": "nowhere"}}, DataError, "'nowhere' is no folder that holds audio"),
        ({"speed": [0.9], "speed_speakers": "new"}, DataError, "tasks that learn speakers"),
    ],
)
def test_what_cannot_be_done_is_named(workspace, recipe, augment, error, said):
    recipe["tasks"]["emotion"]["augment"] = augment
    with pytest.raises(error, match=said):
        load_tasks(read_recipe(recipe))


def test_turns_are_not_moved(workspace, tone_recipe, tiny_corpus):
    rows = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    for row in rows:
        row |= {
            "turns": f"{row['speaker']} 0.0 0.3",
            "audio": str(tiny_corpus.parent / row["audio"]),
        }
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (workspace / "turns.jsonl").write_text(lines)
    task = {"kind": "diarization", "corpus": "turns.jsonl", "augment": {"speed": [0.9]}}
    tone_recipe["tasks"] = {"who": task | {"head": {"kind": "diarization"}}}
    with pytest.raises(DataError, match="turns would be at other times"):
        load_tasks(read_recipe(tone_recipe))
