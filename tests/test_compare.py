"""Finished runs compared: who is one system, which differences are real, what is refused."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from speechfuse import build, cli
from speechfuse.checkpoint import Run
from speechfuse.errors import RunError
from speechfuse.experiments.compare import _names, compare, find_systems
from speechfuse.recipe import merged


@pytest.fixture
def made(workspace, tone_recipe):
    """Write a finished run of the emotion task in which so many of each speaker's 10 are right."""

    def make(folder, right, *, seed=1, speakers=range(8), change=None, reference="calm"):
        tasks = {"emotion": tone_recipe["tasks"]["emotion"]}
        recipe = build.read_recipe(
            merged({**tone_recipe, "tasks": tasks, "seed": seed}, change or {})
        )
        run = Run(workspace / folder)
        run.begin(recipe)
        rows = [
            {
                "id": f"s{s}-{i}",
                "speaker": f"s{s}",
                "reference": reference if i == 0 else "calm",
                "prediction": "calm" if i < right + s % 2 else "loud",
            }
            for s in speakers
            for i in range(10)
        ]
        for split in ("dev", "test"):
            run.save_table(split, "emotion", rows)
        run.save_metrics({})
        return Path(folder)

    return make


OTHER = {"fusion": {"interface": {"kind": "single_layer", "layer": 0}}}


def test_runs_that_differ_by_seed_are_one_system_and_their_mean_is_compared(made):
    folders = [made("a/seed1", 5), made("a/seed2", 7, seed=2), made("b/seed1", 8, change=OTHER)]
    folders += [made("b/seed2", 8, seed=2, change=OTHER)]
    systems = find_systems(folders)
    assert [s.name for s in systems] == ["a", "b"]
    assert [[*s.runs] for s in systems] == [[1, 2], [1, 2]]
    difference = compare(systems)[0]
    assert (difference.task, difference.metric) == ("emotion", "accuracy")
    assert difference.first.value == pytest.approx(0.65)
    assert difference.value.value == pytest.approx(0.85)
    assert difference.difference.value == pytest.approx(0.2)
    assert difference.seeds == (2, 2)
    assert difference.verdict == "better"
    assert [s.name for s in find_systems([Path("a"), Path("b")])] == ["a", "b"]


def test_every_speaker_gaining_the_same_is_real_and_one_of_eight_is_not(made, workspace):
    base = made("base", 5)
    worse = made("worse", 4, change=OTHER)
    lucky = made("lucky", 5, change={"training": {"steps": 13}})
    path = workspace / lucky / "predictions" / "test_emotion.tsv"
    path.write_text(path.read_text().replace("s0-9\ts0\tcalm\tloud", "s0-9\ts0\tcalm\tcalm"))
    found = {d.system: d for d in compare(find_systems([base, worse, lucky]))}
    assert found["worse"].verdict == "worse"
    assert found["worse"].difference.high == pytest.approx(-0.1)
    assert found["lucky"].difference.value == pytest.approx(1 / 80)
    assert found["lucky"].verdict == "not told apart"


def test_nothing_is_called_real_on_four_speakers(made):
    systems = find_systems(
        [made("a", 2, speakers=range(4)), made("b", 8, speakers=range(4), change=OTHER)]
    )
    assert {d.verdict for d in compare(systems)} == {"too few speakers"}


def test_folds_are_pooled(made):
    for row, right, change in (("a", 5, {}), ("b", 6, OTHER)):
        for fold, speakers in enumerate((range(4), range(4, 8))):
            split = {"split": {"test_speakers": [f"s{s}" for s in speakers]}}
            folded = merged({"tasks": {"emotion": split}}, change)
            made(f"{row}/fold{fold}", right, speakers=speakers, change=folded)
    systems = find_systems([Path("a"), Path("b")])
    assert [len(s.runs[1]) for s in systems] == [2, 2]
    assert compare(systems)[0].difference.speakers == 8


def test_runs_scored_on_other_data_are_refused_with_what_differs(made):
    base = made("base", 5)
    fewer = made("fewer", 5, speakers=range(7), change=OTHER)
    relabelled = made("relabelled", 5, reference="loud", change={"training": {"steps": 13}})
    with pytest.raises(RunError, match="10 of 80 are only in base, such as s7-0"):
        compare(find_systems([base, fewer]))
    with pytest.raises(RunError, match="s0-0 has reference 'calm' in base and 'loud' in relab"):
        compare(find_systems([base, relabelled]))


def test_what_cannot_be_compared_is_refused(made, workspace):
    one, same = made("one", 5), made("same", 5)
    with pytest.raises(RunError, match="2 runs of one recipe, which are one system"):
        find_systems([one, same])
    other = made("other", 5, change=OTHER)
    with pytest.raises(RunError, match="have one recipe, seed 1 and both s0-0 in"):
        compare(find_systems([one, same, other]))
    with pytest.raises(RunError, match="nowhere is no run folder and has none below"):
        find_systems([Path("nowhere")])
    renamed = {"tasks": {"mood": {"kind": "emotion"}}}
    recipe = build.read_recipe(workspace / "one" / "recipe.yaml").model_dump(mode="json")
    tasks = {"mood": recipe["tasks"]["emotion"] | renamed["tasks"]["mood"]}
    Run(workspace / "mood").begin(build.read_recipe({**recipe, "tasks": tasks}))
    with pytest.raises(RunError, match="mood is not finished"):
        find_systems([one, Path("mood")])
    Run(workspace / "mood").save_metrics({})
    with pytest.raises(RunError, match="has the tasks mood and one emotion"):
        compare(find_systems([one, Path("mood")]))
    (workspace / "one" / "upstreams.json").write_text("{}")
    assert len(find_systems([one, same])) == 2  # other weights behind the same recipe


def test_the_command_prints_a_table_or_data(made):
    made("a", 5), made("b", 8, change=OTHER)
    shown = CliRunner().invoke(cli.app, ["compare", "a", "b"], catch_exceptions=False).stdout
    assert "+30.0" in shown
    assert "better" in shown
    assert "b: seed 1; differs in fusion.interface." in shown
    assert "2 of 2 differences are real" in shown
    data = json.loads(CliRunner().invoke(cli.app, ["compare", "a", "b", "--json"]).stdout)
    assert [s["name"] for s in data["systems"]] == ["a", "b"]
    assert data["differences"][0]["difference"]["value"] == pytest.approx(0.3)
    assert data["differences"][0]["verdict"] == "better"


def test_systems_are_named_by_what_their_folders_do_not_share():
    one, two = [Path("/out/runs/a/seed1")], [Path("/out/runs/b/seed1"), Path("/out/runs/b/seed2")]
    assert _names([one, two]) == ["a/seed1", "b"]
    assert _names([[Path("runs/a")], [Path("/out/b")]]) == ["runs/a", "/out/b"]
