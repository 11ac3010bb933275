import pytest
import yaml

from speechfuse.build import read_recipe
from speechfuse.errors import RecipeError
from speechfuse.recipe import apply_override, load_recipe, merged

RECIPE = {
    "upstreams": {"mel": {"kind": "filterbank"}},
    "fusion": {"interface": {"kind": "hconv", "stride": 3}},
    "tasks": {"asr": {"corpus": "synthetic", "head": {"kind": "ctc"}}},
}


def wrong(overrides, base=RECIPE):
    with pytest.raises(RecipeError) as error:
        read_recipe(base, overrides)
    return str(error.value).splitlines()


def test_defaults_are_filled_in():
    recipe = read_recipe(RECIPE)
    assert recipe.training.steps == 2000
    assert recipe.fusion.merge.kind == "add"
    assert recipe.tasks["asr"].split.test_speakers is None


def test_overrides_set_any_value():
    recipe = read_recipe(
        RECIPE,
        [
            "training.learning_rate=1e-3",
            "upstreams.mel.num_mels=40",
            "fusion.interface.kind=weighted_sum",
            "fusion.interface={kind: single_layer, layer: 0}",
            "tasks.emotion={corpus: synthetic, head: {kind: classifier}, labels: [a, b]}",
        ],
    )
    assert recipe.training.learning_rate == 0.001
    assert recipe.upstreams["mel"].options["num_mels"] == 40
    assert recipe.fusion.interface.options == {"layer": 0}
    options = recipe.tasks["emotion"].options
    assert (options["label"], options["labels"]) == ("emotion", ["a", "b"])


def test_overrides_reach_into_lists():
    data = {"a": [{"b": 1}, {"b": 2}]}
    apply_override(data, "a.1.b=5")
    assert data == {"a": [{"b": 1}, {"b": 5}]}
    for bad in ("a.7.b=1", "a.0.b.c=1"):
        with pytest.raises(RecipeError, match="override"):
            apply_override(data, bad)
    with pytest.raises(RecipeError, match="not KEY=VALUE"):
        apply_override(data, "a.b")
    with pytest.raises(RecipeError, match=r"'a=\{b: c': the value '\{b: c' is not YAML"):
        apply_override(data, "a={b: c")
    assert data == {"a": [{"b": 1}, {"b": 5}]}


def test_every_error_is_told_at_once_with_the_nearest_name():
    lines = wrong(
        [
            "training.stesp=3",
            "training.learning_rate=fast",
            "fusion.order=sideways",
            "fusion.interface.strid=2",
            "upstreams.two={kind: huggingfaec}",
            "tasks.asr.head.lstm_layers=x",
            "tasks.asr.head.num_tokens=5",
            "tasks.emotion={corpus: synthetic, lables: [a], head: {kind: classifier}}",
        ]
    )
    text = "\n".join(lines)
    assert len(lines) == 8
    assert "Did you mean 'steps'" in text
    assert "training.learning_rate" in text
    assert "fusion.order" in text
    assert "hconv has no such option; known: compat, kernel_size, stride. Did you mean" in text
    assert "Did you mean 'huggingface'" in text
    assert "Did you mean 'labels'" in text


@pytest.mark.parametrize("name", ["type", "all_tasks", "forward"])
def test_a_task_name_that_the_model_needs_is_refused(name):
    recipe = {**RECIPE, "tasks": {name: {**RECIPE["tasks"]["asr"], "kind": "asr"}}}
    (line,) = wrong([], recipe)
    assert "the name is taken" in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fusion.interface.stride=1", "greater than or equal to 2"),
        ("tasks.asr.head.dropout=2", "less than 1"),
        ("tasks.asr.head.join=0", "greater than or equal to 1"),
        ("tasks.asr=5", "tasks.asr: expected a mapping of settings (found 5)"),
        ("tasks.asr.head=ctc", "tasks.asr.head: expected a mapping of settings (found 'ctc')"),
        ("tasks=", "tasks: expected a mapping of settings (found None)"),
        ("fusion.interface={}", "fusion.interface.kind: is missing"),
        ("seed=-1", "greater than or equal to 0"),
        ("training.interleave={asr: -1}", "greater than or equal to 0"),
        ("training.interleave={asr: 0}", "all shares are 0"),
        ("training.interleave=propotional", "Input should be 'proportional' (found 'propotional')"),
        ("training.interleave={temperature: 0}", "interleave.temperature: Input should be greater"),
        ("training.interleave={temperature: .inf}", "temperature: Input should be a finite number"),
        ("training.interleave={loss_aware: hot}", "loss_aware: Input should be a valid number"),
        ("training.interleave={loss_aware: 1, asr: 1}", "{loss_aware: 1} stands alone"),
        (
            "training={turns: even, interleave: {loss_aware: 1}}",
            "has an order that no loss changes",
        ),
        ("training.interleave=3", "interleave: expected a mapping of settings (found 3)"),
        ("training={average: 3, keep: last}", "training.average: keep is 'last'"),
        ("tasks.emotion={corpus: synthetic, head: {kind: speaker}}", "use classifier"),
        ("tasks.asr.head={kind: classifier}", "use ctc"),
        ("training.train_upstream=top_0", "expected none, all or top_N, for example top_2"),
        ("training.train_upstream=2", "or a valid dictionary (found 2)"),
        ("training.train_upstream={mel: most}", "expected none, all or top_N"),
        ("training.train_upstream={mle: all}", "Did you mean 'mel'"),
        ("training.train_upstream={mel: all}", "mel: 'filterbank' has no weights"),
        ("training.train_upstream=all", "no upstream of this recipe has weights"),
        ("training.lora={}", "no upstream of this recipe has weights"),
        ("training={lora: {}, train_upstream: none}", "so there are no adapters; use all"),
        ("training.lora={rank: 0}", "training.lora.rank: Input should be greater than 0"),
        ("training.lora={targets: []}", "training.lora.targets"),
        ("training.lora={rnak: 8}", "Did you mean 'rank'"),
    ],
)
def test_what_cannot_work_is_refused_as_it_is_read(override, message):
    (line,) = wrong([override])
    assert message in line


def test_a_trained_encoder_has_the_precision_of_training():
    upstream = "upstreams.w={kind: huggingface, source: x, compute: bfloat16}"
    (line,) = wrong([upstream, "training.train_upstream={w: all}"])
    assert "use training.precision=bf16-mixed" in line


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("40", "Input should be less than 30, or '30s' (found 40)"),
        ("long", "a valid number, unable to parse string as a number, or '30s' (found 'long')"),
        ("[]", "Input should be a valid number, or '30s' (found [])"),
    ],
)
def test_a_setting_of_several_types_is_told_in_one_line(value, message):
    upstream = f"upstreams.w={{kind: huggingface, source: x, whisper_pad: {value}}}"
    (line,) = wrong([upstream])
    assert line.startswith("recipe: upstreams.w: whisper_pad: Input should be ")
    assert line.endswith(message)


def test_a_task_without_a_share_is_named():
    emotion = "tasks.emotion={corpus: synthetic, head: {kind: classifier}}"
    (line,) = wrong([emotion, "training.interleave={asr: 1}"])
    assert "training.interleave.emotion: is missing; give its share, or 0" in line


def test_an_unknown_setting_is_compared_with_its_neighbours():
    lines = wrong(["stroe.x=1", "tasks.asr.split.tst_speakers=[a]", "store.foldr=x"])
    hints = ["Did you mean 'store'", "Did you mean 'test_speakers'", "Did you mean 'folder'"]
    assert all(any(hint in line for line in lines) for hint in hints)


@pytest.mark.parametrize(
    ("change", "where", "meant"),
    [
        ("steps=3", "steps: unknown setting", "'training.steps'"),
        (
            "tasks.asr.head.units=characters",
            "tasks.asr.head: units: ctc has no",
            "'tasks.asr.units'",
        ),
        ("tasks.asr.lstm_layers=2", "tasks.asr: lstm_layers: asr has no", "'tasks.asr.head.lstm_l"),
        ("fusion.kernel_size=3", "fusion.kernel_size: unknown", "'fusion.interface.kernel_size'"),
        ("training.corpus=x", "training.corpus: unknown", "'tasks.asr.corpus'"),
        (
            "batch_seconds=9",
            "batch_seconds: unknown",
            "'training.batch_seconds' or 'tasks.asr.batch_seconds'?",
        ),
    ],
)
def test_a_setting_in_the_wrong_section_is_told_where_it_belongs(change, where, meant):
    (line,) = wrong([change])
    assert where in line
    assert f"Did you mean {meant}" in line


@pytest.mark.parametrize("name", ["asr/en", "a,b", "a|b", "a b", "2nd", ""])
def test_a_task_that_cannot_name_a_file_is_refused(name):
    recipe = {**RECIPE, "tasks": {name: {**RECIPE["tasks"]["asr"], "kind": "asr"}}}
    (line,) = wrong([], recipe)
    assert line.endswith(
        f"the name of a task is a letter, then letters, digits, '_' or '-' (found {name!r})"
    )
    assert "[key]" not in line


def test_a_task_s_name_has_no_dot_and_no_line_end():
    entry = {**RECIPE["tasks"]["asr"], "kind": "asr"}
    for name in ("asr.en", "asr\n"):
        assert "the name of a task" in "".join(wrong([], {**RECIPE, "tasks": {name: entry}}))
    for name in ("asr-en", "asr_en", "Asr2"):
        assert read_recipe({**RECIPE, "tasks": {name: entry}}).tasks.keys() == {name}


def test_shares_are_of_tasks_that_exist():
    (line,) = wrong(["training.interleave={asr: 1, emotoin: 2}"])
    assert "training.interleave.emotoin: no such task" in line
    line, _ = wrong(["training.interleave={tempreature: 2}"])
    assert "no such task; known: asr, loss_aware, temperature. Did you mean 'temperature'?" in line


@pytest.mark.parametrize("interleave", ["proportional", {"temperature": 5.0}, {"loss_aware": 0.5}])
def test_a_schedule_is_read_back_as_it_is_kept(interleave):
    recipe = read_recipe(merged(RECIPE, {"training": {"interleave": interleave}}))
    kept = recipe.model_dump(mode="json")
    assert kept["training"]["interleave"] == interleave
    assert read_recipe(kept) == recipe


def test_another_schedule_replaces_shares_and_shares_are_laid_over_shares():
    base = {"interleave": {"asr": 1, "emotion": 2}}
    for change in ("proportional", {"temperature": 5}, {"loss_aware": 1}):
        assert merged(base, {"interleave": change}) == {"interleave": change}
        assert merged({"interleave": change}, base) == base
    assert merged(base, {"interleave": {"asr": 3}}) == {"interleave": {"asr": 3, "emotion": 2}}


def test_variables_are_filled_in_or_named(monkeypatch):
    changed = merged(RECIPE, {"tasks": {"asr": {"corpus": "${SOME_DATA}/emodb"}}})
    assert "needs the environment variable SOME_DATA" in wrong([], changed)[0]
    monkeypatch.setenv("SOME_DATA", "/data")
    assert read_recipe(changed).tasks["asr"].corpus == "/data/emodb"


def test_a_file_that_is_no_recipe(tmp_path):
    for text, message in (
        ("- 1\n", "holds list, expected a mapping"),
        ("", "holds nothing, expected a mapping"),
        ("a: [", "not readable YAML"),
        ("tasks:\n  asr: {x: 1}\n  asr: {x: 2}\n", r"'asr' stands twice in one section\n.* line 3"),
    ):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "missing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="not readable YAML"):
        load_recipe(tmp_path / "bytes.yaml")


def test_yaml_tags_run_nothing(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("upstreams: !!python/object/apply:os.system ['echo no']\n")
    with pytest.raises(RecipeError, match="not readable YAML"):
        load_recipe(path)


def test_a_resolved_recipe_reads_back_the_same():
    recipe = read_recipe(RECIPE)
    again = load_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))))
    assert again == recipe


def test_merged_replaces_parts_of_another_kind():
    base = {"fusion": {"order": "merge_first", "interface": {"kind": "hconv", "stride": 2}}}
    out = merged(base, {"fusion": {"interface": {"kind": "weighted_sum"}}})
    assert out == {"fusion": {"order": "merge_first", "interface": {"kind": "weighted_sum"}}}
    assert base["fusion"]["interface"]["stride"] == 2


def test_a_sweep_is_no_recipe(tmp_path):
    (tmp_path / "sweep.yaml").write_text("rows: {}\nrecipe: {}\n")
    with pytest.raises(RecipeError, match=r"is a sweep, of many runs; run it with: speechfuse"):
        load_recipe(tmp_path / "sweep.yaml")
