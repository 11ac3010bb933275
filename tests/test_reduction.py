"""What is stored smaller is the same to what is learned, or it is refused."""

import random
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

import killing
from speechfuse import build
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.clips import read_batch
from speechfuse.errors import RecipeError
from speechfuse.evaluate import evaluate_again
from speechfuse.experiments.layers import run_layer_use
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.sweep import SweepFile
from speechfuse.extract import extract, extraction_jobs
from speechfuse.inputs import find_inputs
from speechfuse.predict import predict_files
from speechfuse.recipe import merged
from speechfuse.reduction import with_reduction
from speechfuse.taskdata import load_tasks
from speechfuse.train import train_run

pytestmark = pytest.mark.recipe  # seconds in all: run by make test

TWO_RATES = {
    "mel": {"kind": "filterbank", "num_mels": 24},
    "coarse": {"kind": "filterbank", "num_mels": 24, "frame_rate": 40},
}


@pytest.fixture
def base(workspace, tone_recipe, encoder):
    """Emotions from two encoders of one width and depth, layers in float32."""
    source = {"kind": "huggingface", "source": str(encoder("hubert"))}
    return tone_recipe | {
        "upstreams": {"ssl": source, "random": source | {"weights": "random"}},
        "fusion": {"interface": {"kind": "weighted_sum"}, "normalize": "layer_norm"},
        "tasks": {"emotion": tone_recipe["tasks"]["emotion"]},
        "store": {"dtype": "float32"},
    }


def recipe_with(data, kind, **changes):
    return read_recipe(merged(merged(data, changes), {"store": {"reduce": kind}}))


def one_encoder(data):
    return data | {"upstreams": {"ssl": data["upstreams"]["ssl"]}}


CASES = {
    "merged": ("merged", {}),
    "mean": ("mean", {}),
    "mean of one": ("mean", {"one": True}),
    "mean of one, state 0 dropped": (
        "mean",
        {"one": True, "fusion": {"interface": {"kind": "gated_encoder"}, "normalize": "none"}},
    ),
    "mean beside a projection": (
        "mean",
        {
            "fusion": {"merge": {"kind": "concat"}, "interface": {"kind": "concat_project"}},
            "tasks": {"emotion": {"head": {"kind": "classifier", "project": 8, "dropout": 0.3}}},
        },
    ),
    "merged, two rates and depths": (
        "merged",
        {"more": True, "fusion": {"interface": {"kind": "hconv"}, "drop_state_0": True}},
    ),
    "mean, two rates and depths": (
        "mean",
        {"more": True, "fusion": {"interface": {"kind": "gated_encoder"}}},
    ),
    "merged, cropped": ("merged", {"tasks": {"emotion": {"crop_seconds": 0.2}}}),
    "merged, fitted before": (
        "merged",
        {"fusion": {"interface": {"kind": "pca_concat", "components": 4}}},
    ),
    "mean of drawn layers": (
        "mean",
        {"fusion": {"interface": {"kind": "gumbel_selection"}}},
    ),
}


def of_case(data, changes):
    changes = dict(changes)
    if changes.pop("one", False):
        data = one_encoder(data)
    if changes.pop("more", False):  # 1 layer of 24 beside 4 of 32, 40 Hz beside 50
        mel = {"kind": "filterbank", "num_mels": 24, "frame_rate": 40}
        data = data | {"upstreams": {"ssl": data["upstreams"]["ssl"], "mel": mel}}
        data = merged(data, {"fusion": {"merge": {"kind": "add", "width": "interpolate"}}})
    return merged(data, changes)


SOME = ("mean", "merged, two rates and depths")


@pytest.mark.parametrize(
    "case", [c if c in SOME else pytest.param(c, marks=pytest.mark.recipe) for c in CASES]
)
def test_a_run_learns_the_same_scores_the_same_and_answers_the_same(base, workspace, case):
    kind, changes = CASES[case]
    data = of_case(base, changes)
    whole, reduced = workspace / "whole", workspace / "reduced"
    wanted = train_run(recipe_with(data, "none"), whole)
    found = train_run(recipe_with(data, kind), reduced)
    assert (found["dev"], found["test"]) == (wanted["dev"], wanted["test"])
    losses = [[v for _, name, v in Run(f).log() if "loss" in name] for f in (whole, reduced)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    theirs, mine = (load_file(folder / "model.safetensors") for folder in (whole, reduced))
    assert theirs.keys() == mine.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, atol=1e-4, rtol=1e-3)
    assert evaluate_again(reduced)["test"] == found["test"]
    clips = [u.audio for u in load_tasks(read_recipe(data))["emotion"].splits["test"][:3]]
    assert [*predict_files(reduced, clips)] == [*predict_files(whole, clips)]


@pytest.mark.recipe
@pytest.mark.parametrize("kind", ["merged", "mean"])
def test_what_is_read_is_what_would_have_been_merged(base, kind):
    recipe = recipe_with(base, kind)
    tasks = load_tasks(recipe)
    members = tasks["emotion"].splits["dev"][:5]
    ((store,),) = find_inputs(recipe, tasks).values()
    found = store.batch(members)
    plain = with_reduction(recipe, "none")
    fusion = build.build_fusion(plain, build.stack_specs(plain), ["emotion"])
    for row, utterance in enumerate(members):
        upstreams = [build.build_upstream(recipe, name) for name in recipe.upstreams]
        alone = fusion.merged([one(read_batch([utterance], one)) for one in upstreams])
        for layer, wanted in zip(found.layers, alone.layers, strict=True):
            wanted = wanted[0].mean(0, keepdim=True) if kind == "mean" else wanted[0]
            assert found.lengths[row] == len(wanted)
            torch.testing.assert_close(layer[row, : len(wanted)], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.recipe
def test_layers_show_the_same_weights(base, workspace):
    uses = {}
    for kind in ("none", "merged", "mean"):
        train_run(recipe_with(base, kind), workspace / kind)
        uses[kind] = run_layer_use(workspace / kind)
    (plain,) = (use for use in uses["none"] if use.weights)
    for kind in ("merged", "mean"):
        (use,) = (use for use in uses[kind] if use.weights)
        assert (use.model, use.layers) == (plain.model, plain.layers)
        assert use.weights == pytest.approx(plain.weights, abs=1e-5)
        assert use.gradient == [pytest.approx(row, abs=1e-5) for row in plain.gradient]
        assert [one.model for one in uses[kind] if one.ablation] == ["ssl + random"]


@pytest.mark.recipe
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "shard"), [("merged", killing.SHARD_BYTES), ("mean", 500)])
def test_killed_and_run_again_it_is_byte_for_byte_the_same(base, kills, tmp_path, kind, shard):
    recipe = base | {"upstreams": TWO_RATES, "store": {"reduce": kind}}
    load_tasks(read_recipe(recipe))

    def run(name, wait=None):
        recipe["store"]["folder"] = str(tmp_path / name)
        began = time.monotonic()
        process = killing.begin(recipe, shard_bytes=shard)
        process.join(wait)
        process.kill()
        process.join()
        return process.exitcode, time.monotonic() - began

    assert run("first")[0] == 0  # waits for imports
    code, seconds = run("whole")
    whole = contents(tmp_path / "whole")
    assert code == 0
    assert sum(name.endswith(".safetensors") for name in whole) >= 5
    times = max(5, kills // 4)
    moments, cut = random.Random(kills), 0
    for number in range(times):
        cut += run("killed", moments.uniform(0, seconds))[0] != 0
        assert run("killed")[0] == 0
        assert contents(tmp_path / "killed") == whole, f"kill {number}"
        shutil.rmtree(tmp_path / "killed")
    assert cut >= times / 3


@pytest.mark.recipe
@pytest.mark.timeout(600)  # two processes begin, on a machine that may be busy
def test_two_processes_write_what_one_does(base):
    stores = []
    for processes in (1, 2):
        recipe = recipe_with(base, "mean", store={"folder": f"stores{processes}"})
        jobs = extraction_jobs(recipe, load_tasks(recipe))
        extract(recipe, jobs, processes=processes)
        stores.append(contents(jobs[0].store.root))
    assert stores[0] == stores[1]


def contents(folder):
    """Every file by its place, but for what is remembered of other files."""
    others = {".jsonl", ".use"}  # of other files, and of stores that a test still has
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in others)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.recipe
def test_sizes_are_told_as_they_are_written(base):
    sizes = {}
    for kind in ("none", "merged", "mean"):
        recipe = recipe_with(base, kind)
        jobs = extraction_jobs(recipe, load_tasks(recipe))
        told = sum(job.missing_bytes for job in jobs)
        extract(recipe, jobs)
        written = sum(job.store.read(u).nbytes for job in jobs for u in job.wanted.values())
        assert written == pytest.approx(told, rel=0.1 if kind != "mean" else 1e-9)
        sizes[kind] = written
    assert sizes["none"] == 2 * sizes["merged"]
    assert sizes["merged"] > 10 * sizes["mean"]  # frames in an utterance


def test_rows_that_read_the_same_share_a_store(base):
    def missing(kind="mean", **changes):
        recipe = recipe_with(base, kind, **changes)
        (job,) = extraction_jobs(recipe, load_tasks(recipe))
        return len(job.missing)

    recipe = recipe_with(base, "mean")
    extract(recipe, extraction_jobs(recipe, load_tasks(recipe)))
    assert missing() == 0
    assert missing(fusion={"interface": {"kind": "gated_encoder"}}) == 0  # without state 0
    assert missing(fusion={"interface": {"kind": "single_layer"}}) == 0
    assert missing("merged") > 0
    assert missing(fusion={"normalize": "none"}) > 0
    assert missing(fusion={"merge": {"kind": "concat"}}) > 0
    assert missing(upstreams={"random": {**base["upstreams"]["random"], "seed": 5}}) > 0


def test_a_subset_of_layers_is_merged_by_its_numbers(base):
    """With the same numbers a layer means the same in every stack; with others it does not."""

    def job_of(ssl, random):
        numbers = {"ssl": {"layers": ssl}, "random": {"layers": random}}
        parts = {n: base["upstreams"][n] | numbers[n] for n in numbers}
        recipe = recipe_with(base | {"upstreams": parts}, "merged")
        (job,) = extraction_jobs(recipe, load_tasks(recipe))
        return recipe, job

    recipe, whole = job_of([0, 1, 2], [0, 1, 2])
    extract(recipe, [whole])
    _, part = job_of([0, 2], [0, 2])
    _, other = job_of([0, 2], [0, 1])
    assert part.store.layers == (0, 2)
    assert not part.missing
    assert other.missing
    (u, *_) = whole.wanted.values()
    assert torch.equal(part.store.read(u), whole.store.read(u)[[0, 2]])


REFUSED = {
    "merge 'gated' learns": ("merged", {"fusion": {"merge": {"kind": "gated"}}}),
    "merge 'add' learns with these options": (
        "merged",
        {"fusion": {"merge": {"kind": "add", "width": "project"}}},
    ),
    "order 'layers_first' fuses": ("merged", {"fusion": {"order": "layers_first"}}),
    "upstream 'ssl' is trained": ("merged", {"training": {"train_upstream": {"ssl": "all"}}}),
    "interface 'hconv' needs every frame": ("mean", {"fusion": {"interface": {"kind": "hconv"}}}),
    "interface 'pca_concat'": ("mean", {"fusion": {"interface": {"kind": "pca_concat"}}}),
    "task 'emotion': head 'classifier' with these options": (
        "mean",
        {"tasks": {"emotion": {"head": {"kind": "classifier", "mean_std": True}}}},
    ),
    "crop_seconds reads another stretch": ("mean", {"tasks": {"emotion": {"crop_seconds": 1}}}),
    "augment changes single frames": (
        "mean",
        {"tasks": {"emotion": {"augment": {"time_masks": 1}}}},
    ),
    "utterance_norm mean takes": ("mean", {"tasks": {"emotion": {"utterance_norm": "mean"}}}),
    "context 'prompted_transformer' reads every frame": ("mean", {"context": {"preset": "tiny"}}),
    "int8 keeps a scale": ("mean", {"store": {"dtype": "int8"}}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_exact_is_refused_with_its_reason(base, why):
    kind, changes = REFUSED[why]
    with pytest.raises(RecipeError, match=why) as error:
        recipe_with(base, kind, **changes)
    for line in str(error.value).splitlines():
        assert line.startswith(f"store.reduce={kind}: ")
        assert line.endswith("; or set store.reduce to none")


def test_a_head_that_reads_frames_is_named_with_its_task(tone_recipe):
    with pytest.raises(RecipeError) as error:
        recipe_with(tone_recipe, "mean")
    lines = str(error.value).splitlines()
    assert [line.split(":")[1] for line in lines] == [" task 'asr'", " task 'verification'"]


def test_one_encoder_has_nothing_to_merge(base):
    recipe = recipe_with(one_encoder(base), "merged", fusion={"order": "layers_first"})
    assert [*build.read_upstreams(recipe)] == ["ssl"]
    assert type(build.read_upstreams(recipe)["ssl"]).__name__ == "HuggingFace"


def test_a_sweep_refuses_a_row_before_anything_is_computed(base, workspace):
    """Crops of 40 and 50 Hz begin together every 100 ms, those of the merged stack do not."""
    rows = {
        "fine": {"use": ["ssl", "random"]},
        "crops": {"use": ["mel", "coarse"], "tasks": {"emotion": {"crop_seconds": 0.2}}},
    }
    recipe = base | {
        "upstreams": base["upstreams"] | TWO_RATES,
        "store": {"reduce": "merged"},
    }
    sweep = SweepFile(name="s", recipe=recipe, rows=rows)
    with pytest.raises(RecipeError, match=r"at 100, 40 Hz, before they are merged to 100 Hz"):
        run_sweep(sweep, workspace / "out")
    assert not (workspace / "out").exists()
    assert not (workspace / "stores").exists()
