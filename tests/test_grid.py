"""The papers' grid: every cell builds at full size, one of each task trains on a tiny corpus."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import trees
from speechfuse import build, plan
from speechfuse.checkpoint import Run
from speechfuse.data.manifests import prepare
from speechfuse.data.readers.table import READERS
from speechfuse.errors import RecipeError
from speechfuse.experiments.averages import averages
from speechfuse.experiments.grid import read_grid
from speechfuse.experiments.report import result_tables
from speechfuse.experiments.runner import run_sweep
from speechfuse.experiments.sweep import cells, read_sweep
from speechfuse.metrics import relative_gain

UNIFY = Path(__file__).parents[1] / "recipes" / "unify"
SWEEPS = sorted(p.stem for p in UNIFY.glob("*.yaml") if p.stem != "grid")
# Width, blocks and feed-forward width of each encoder as its authors publish it.
BASE, LARGE = (768, 12, 3072), (1024, 24, 4096)
SIZES = {
    "hubert": ("hubert", BASE),
    "wavlm": ("wavlm", BASE),
    "wavlm_base": ("wavlm", BASE),
    "data2vec": ("data2vec-audio", BASE),
    "whisper": ("whisper", BASE),
    "whisper_en": ("whisper", BASE),
    "hubert_large": ("hubert", LARGE),
    "wavlm_large": ("wavlm", LARGE),
    "data2vec_large": ("data2vec-audio", LARGE),
    "whisper_medium": ("whisper", LARGE),
    "whisper_medium_en": ("whisper", LARGE),
    "xlsr": ("wav2vec2", LARGE),
}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """Folders with the configuration of every encoder, and overrides that name them."""
    root = tmp_path_factory.mktemp("full")
    overrides = {}
    for name, (kind, (dim, layers, ffn)) in SIZES.items():
        config = {"model_type": kind, "hidden_size": dim, "num_hidden_layers": layers}
        config |= {"intermediate_size": ffn, "num_attention_heads": dim // 64}
        if kind == "whisper":
            config = {"model_type": kind, "d_model": dim, "encoder_layers": layers}
            config |= {"encoder_ffn_dim": ffn, "encoder_attention_heads": dim // 64}
            config |= {"num_mel_bins": 80, "max_source_positions": 1500}
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
        overrides[name] = f"recipe.upstreams.{name}.source={root / name}"
    return overrides


ONE_CONDITION = ["conditions={one: {}}", "average_conditions=null"]


def opened(name, overrides=()):
    return read_sweep(UNIFY / f"{name}.yaml", overrides)


def fusion_parameters(interface, models, layers, dim):
    """By arithmetic, of models of one shape; none are published for CHConv."""
    joined = models * dim
    back = joined * dim + dim if models > 1 else 0
    last = {13: (5, 2), 25: (9, 3)}[layers][1]

    def hconv(width):
        out = -(-width // last)
        return 5 * width * width + width + 5 * width * out + out

    return {
        "WS": models * layers + back,
        "GumD": models * layers * dim + back,
        "HConv": hconv(dim),
        "CHConv": hconv(joined) + back,
        "PCA+Concat": 0,
    }.get(interface)


@pytest.mark.recipe
@pytest.mark.parametrize("name", SWEEPS)
def test_every_cell_builds_at_full_size(name, full_size, workspace):
    here = [full_size[encoder] for encoder in opened(name).recipe["upstreams"]]
    sweep = opened(name, ["folds=null", *ONE_CONDITION, *here])
    found = cells(sweep, workspace)
    assert [cell.row for cell in found] == list(sweep.rows)
    for cell in found:
        specs = build.stack_specs(cell.recipe)
        with torch.device("meta"):
            fusion = build.build_fusion(cell.recipe, specs, list(cell.recipe.tasks))
            (entry,) = cell.recipe.tasks.values()
            head = build.build_head(entry, fusion.out_dim, plan.ASSUMED)
        layers, dim = specs[0].num_layers, specs[0].dim
        assert (layers, dim) in ((13, 768), (25, 1024))
        assert {(spec.num_layers, spec.dim, spec.frame_rate) for spec in specs} == {
            (layers, dim, 50)
        }
        interface = cell.row.rsplit(", ", 1)[1]
        assert fusion.out_dim == (13 * 60 if interface == "PCA+Concat" else dim)
        expected = fusion_parameters(interface, len(specs), layers, dim)
        if expected is not None:
            assert sum(p.numel() for p in fusion.parameters()) == expected, cell.row
        assert sum(p.numel() for p in head.parameters()) > 1000


@pytest.mark.parametrize("size", ["1h", "10min"])
def test_a_monolingual_row_is_thirteen_runs(workspace, size):
    found = cells(opened(f"ml_superb_mono_{size}"), workspace, ["HuBERT, HConv"])
    runs = read_grid(UNIFY / "grid.yaml").mono_runs
    assert tuple(cell.condition for cell in found) == runs
    for cell in found:
        entry = cell.recipe.tasks["asr"]
        assert entry.corpus == f"ml-superb-{size}-{cell.condition[:3]}"
        assert entry.split.learn_from.keys() == {"dataset"}
        assert entry.options["blanks"] == (cell.condition not in ("jpn", "cmn"))


def test_arithmetic_agrees_with_what_the_papers_say():
    assert fusion_parameters("WS", 1, 13, 768) == 13
    assert fusion_parameters("HConv", 1, 13, 768) == 4_424_832
    assert fusion_parameters("CHConv", 2, 13, 768) == 17_697_024 + 1_180_416


@pytest.mark.parametrize(
    ("row", "alone", "published"),
    [
        ("Whisper Small + best SSL, WS", ["Whisper Small, WS", "data2vec, WS"], 14.74),
        ("Whisper Small + best SSL, CHConv", ["Whisper Small, HConv", "data2vec, HConv"], 8.35),
        ("data2vec + WavLM, HConv", ["data2vec, HConv", "WavLM Base+, HConv"], -4.17),
        ("data2vec + WavLM, GumD", [], None),
        ("HuBERT, HConv", [], None),
    ],
)
def test_a_fusion_is_set_beside_its_models_alone(row, alone, published):
    """The paper's relative gains are those over these rows, up to rounding."""
    rows = opened("superb_sv").rows
    assert sorted(rows[row].gain_over) == sorted(alone)
    if alone:
        fused, *singles = (rows[name].number("verification", "eer", "") for name in (row, *alone))
        found = 100 * relative_gain(fused, singles, higher_is_better=False)
        assert found == pytest.approx(published, abs=0.25)


def recognised(cell, errors):
    """A finished run with as many wrong characters of 1,000, on two speakers of its language."""
    run = Run(cell.folder)
    cell.folder.mkdir(parents=True)
    rows = []
    for place, wrong in enumerate((errors - 5, errors + 5)):
        text = "b" * wrong + "a" * (1000 - wrong)
        speaker = f"{cell.condition[:3]}{place}"
        rows.append(
            {"id": str(place), "speaker": speaker, "reference": "a" * 1000, "prediction": text}
        )
    run.save_table("test", "asr", rows)
    run.save_metrics({"dev": {}, "test": {}, "parameters": {"asr": 1}, "seconds": 1})
    return cell


@pytest.mark.recipe
def test_a_monolingual_sweep_ends_with_the_average_of_table_iii(workspace):
    """Runs with the errors of all 21 rows, by language, give what is printed as their average."""
    grid = read_grid(UNIFY / "grid.yaml")
    languages = {n: r.languages["Mono-1h"] for n, r in grid.rows.items() if r.languages}
    assert len(languages) == 21
    sweep = opened("ml_superb_mono_1h", ["baseline='WavLM Base+, WS'"])
    errors = {
        (row, run): round(10 * rate)
        for row, rates in languages.items()
        for run, rate in zip(grid.mono_runs, rates, strict=True)
    }
    todo = cells(sweep, workspace, list(languages))
    done = [recognised(cell, errors[cell.row, cell.condition]) for cell in todo]
    found = {r.row: r for r in averages(sweep, done) if r.metric == "cer"}
    assert list(found) == list(languages)
    for row, result in found.items():
        assert result.published == grid.rows[row].published["Mono-1h"]
        assert 100 * result.value.value == pytest.approx(result.published, abs=0.0101), row
        assert result.value.low < result.value.value < result.value.high
        assert result.value.speakers == 2 * 9
    shown = ["WavLM Base+, WS", "WavLM Base+, HConv", "Whisper Small, HConv"]
    shown += ["data2vec, WS", "data2vec + WavLM, WS", "data2vec + WavLM, GumD"]
    shown += ["Whisper Small + best SSL, HConv"]
    tables = result_tables(sweep, [cell for cell in done if cell.row in shown])
    assert len(tables) == len(grid.mono_runs) + 1
    title, columns, rows = tables[-1]
    assert ": mean over eng, fra, deu, rus, swa, swe, jpn, cmn, xty\n" in title
    assert "18 test speakers" in title
    place = columns.index("CER")
    assert columns[place + 1] == "published"
    ours, published = {r[0]: r for r in rows}["WavLM Base+, HConv"][place : place + 2]
    value, _, difference = ours.split("\n")
    assert (value, published, difference.split()[0]) == ("30.7", "30.74", "-1.3")
    place = columns.index("relative gain")
    gains = {row[0]: row[place].split("\n")[0] for row in rows}
    assert gains["Whisper Small + best SSL, HConv"] == "+5.1"  # (26.23 - 24.88) / 26.23
    assert gains["data2vec + WavLM, WS"] in ("-0.0", "+0.0")
    assert gains["WavLM Base+, HConv"] == gains["data2vec + WavLM, GumD"] == ""


def test_averages_that_alone_are_published_stand_beside_the_average(workspace):
    rows = {"HuBERT, WS": "42.85", "HuBERT, PCA+Concat": "45.16"}
    sweep = opened("ml_superb_mono_10min")
    done = [recognised(cell, 400) for cell in cells(sweep, workspace, list(rows))]
    *of_runs, (_, columns, found) = result_tables(sweep, done)
    assert [one for one in of_runs if "published" in one[1]] == []
    place = columns.index("published")
    assert {row[0]: row[place] for row in found} == rows


def test_the_grid_has_both_tables_and_a_recipe_for_every_column():
    grid = read_grid(UNIFY / "grid.yaml")
    counts = {c: sum(c in row.published for row in grid.rows.values()) for c in grid.columns}
    assert counts == {
        "LS": 36,
        "Mono-1h": 42,
        "Mono-10min": 8,
        "Multi-1h": 30,
        "Multi-10min": 0,
        "SV": 36,
        "ER": 36,
        "PR": 15,
        "IC": 15,
        "LID-1h": 15,
    }
    texts = [(UNIFY / f"{name}.yaml").read_text() for name in SWEEPS]
    named = sorted(
        column for text in texts for column in grid.columns if f"column: {column}}}" in text
    )
    assert named == sorted(grid.columns)


def test_whisper_is_english_for_english_recognition_only():
    for name in SWEEPS:
        used = set(opened(name).recipe["upstreams"])
        assert ("whisper_en" in used, "whisper" in used) in (
            (name == "superb_asr", name != "superb_asr"),
            (False, False),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("column: ER", "column: EER"), "grid.column: no column 'EER' .*Did you mean 'ER'"),
        (("column: ER", "colum: ER"), "grid.colum"),
        (("file: grid.yaml", "file: nothing.yaml"), "no recipe at .*nothing.yaml"),
    ],
)
def test_a_wrong_choice_is_named(workspace, change, message):
    (workspace / "grid.yaml").write_text((UNIFY / "grid.yaml").read_text())
    (workspace / "er.yaml").write_text((UNIFY / "superb_er.yaml").read_text().replace(*change))
    with pytest.raises(RecipeError, match=f"er.yaml: .*{message}"):
        read_sweep(workspace / "er.yaml")


def test_a_wrong_grid_is_named(workspace):
    text = (UNIFY / "grid.yaml").read_text()
    text = text.replace(
        "encoders: [hubert]\n    interface: WS", "encoders: [hubet]\n    interface: WX", 1
    )
    (workspace / "grid.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        read_grid(workspace / "grid.yaml")
    first, second = str(error.value).splitlines()
    assert "row 'HuBERT, WS': no encoder 'hubet'" in first
    assert "row 'HuBERT, WS': no interface 'WX'" in second


def filled(source):
    """Three seconds of noise in every recording, other ones in each."""
    for number, path in enumerate(sorted([*source.rglob("*.wav"), *source.rglob("*.flac")])):
        random = np.random.default_rng(number)
        soundfile.write(path, 0.1 * random.standard_normal(48000), 16000)
    return source


BOTH = "Whisper Small + best SSL"
ENGLISH = "conditions={eng1: {tasks: {asr: {corpus: CORPUS, split: {learn_from: {dataset: mls}}}}}}"
CTC = ["asr.head.project=16", "asr.head.lstm_dim=16"]
BLOCKS = ["asr.head.dim=16", "asr.head.ffn_dim=16"]
CLEAN = ["train-clean-100", "dev-clean", "test-clean"]
# Sweep: reader, what is kept of its corpus, row, metric and its published number, smaller options.
TINY = {
    "superb_asr": ("librispeech", {"part": CLEAN}, f"{BOTH}, CHConv", "WER", "4.52", CTC),
    "superb_er": ("iemocap", {}, f"{BOTH}, HConv", "accuracy (WA)", "71.29", []),
    "superb_sv": (
        "voxceleb1",
        {},
        f"{BOTH}, GumD",
        "EER",
        "5.95",
        ["verification.crop_seconds=1"],
    ),
    "superb_pr": (
        "librispeech",
        {},
        "HuBERT, HConv",
        "phone error rate (PER)",
        "3.07",
        ["phones.lexicon=lexicon.txt"],
    ),
    "superb_ic": (
        "fluent_commands",
        {},
        "HuBERT, CLS",
        "intent accuracy (all slots right)",
        "99.45",
        [],
    ),
    "ml_superb_mono_1h": (
        "ml_superb",
        {"language": ["eng"]},
        f"{BOTH}, HConv",
        "CER",
        "23",
        BLOCKS,
    ),
    "ml_superb_mono_10min": (
        "ml_superb_10min",
        {"language": ["eng"]},
        "HuBERT, PCA+Concat",
        "CER",
        None,
        BLOCKS,
    ),
    "ml_superb_multi_1h": ("ml_superb", {}, f"{BOTH}, CHConv", "CER", "20.2", BLOCKS),
    "ml_superb_lid_1h": (
        "ml_superb",
        {"few_shot": ["no"]},
        "HuBERT, HConv",
        "accuracy (WA)",
        "81.7",
        ["language.head.dim=16", "language.head.ffn_dim=16", "language.head.blocks=2"],
    ),
    "ml_superb_multi_10min": ("ml_superb_10min", {}, f"{BOTH}, WS", "CER", None, BLOCKS),
}


@pytest.mark.recipe
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SWEEPS)
def test_a_cell_of_every_task_trains(name, workspace, encoder, tmp_path):
    """Two steps on a corpus in its owner's layout; the published number stands beside ours."""
    reader, only, row, metric, published, options = TINY[name]
    source = tmp_path / "source"
    source.mkdir()
    getattr(trees, reader.removesuffix("_10min"))(source)
    for speaker in range(4, 8) if reader == "voxceleb1" else ():
        for clip in range(2):
            trees.sound(source / "wav" / f"id1000{speaker}" / "video" / f"{clip}.wav")
    (workspace / "lexicon.txt").write_text("CHAPTER CH AE1 P T ER0\nONE W AH1 N\n")
    corpus = prepare(filled(source), tmp_path / "corpus", reader=READERS[reader], only=only)
    sweep = opened(name)
    (task,) = sweep.recipe["tasks"]
    used = {u.split("_")[0] for u in sweep.rows[row].use}
    assert len(used) == len(sweep.rows[row].use)
    overrides = [
        f"recipe.tasks.{task}.corpus={corpus.folder}",
        "recipe.training.steps=2",
        "recipe.training.evaluate_every=1",
        "recipe.training.batch_utterances=3",
        "recipe.training.accumulate=2",
        *(f"recipe.upstreams.{u}.source={encoder(u.split('_')[0])}" for u in sweep.rows[row].use),
        *(f"recipe.tasks.{option}" for option in options),
    ]
    if "mono" in name:
        overrides.append(ENGLISH.replace("CORPUS", str(corpus.folder)))
        overrides.append("average_conditions=null")
    sweep = opened(name, overrides)
    done = run_sweep(sweep, workspace / "out", rows=[row])
    assert len(done) == (5 if name == "superb_er" else 1)
    (table,) = result_tables(sweep, done)
    columns, (values,) = table[1:]
    place = columns.index(metric)
    assert float(values[place].split("\n")[0]) >= 0
    if published is None:
        assert "published" not in columns
    else:
        assert (columns[place + 1], values[place + 1]) == ("published", published)
    if name == "superb_er":
        folds = [cell.recipe.tasks[task].split.test_speakers for cell in done]
        assert folds == [(f"Ses0{i}F", f"Ses0{i}M") for i in range(1, 6)]
