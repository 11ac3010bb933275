"""Each fault is made to happen, and the doctor names it with what to do about it."""

import json
import os
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from speechfuse import cli
from speechfuse.doctor import libraries, machine, report
from speechfuse.doctor.encoder import encoder_checks, normalisation, patients
from speechfuse.doctor.finding import Finding, run_checks
from speechfuse.doctor.report import examine
from speechfuse.recipe import merged

BROKEN = 'raise OSError("libcudart.so.13: cannot open shared object file")'


def only(findings):
    (one,) = findings
    return one


@pytest.fixture
def with_module(tmp_path, monkeypatch):
    """Puts a module of that name and text before all others, for new processes and this one."""

    def put(name, text):
        (tmp_path / "modules" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "modules" / name / "__init__.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=os.pathsep)
        monkeypatch.syspath_prepend(tmp_path / "modules")

    return put


def without(monkeypatch, *names):
    found = libraries.importlib.util.find_spec

    def find(name, *rest):
        return None if name in names else found(name, *rest)

    monkeypatch.setattr(libraries.importlib.util, "find_spec", find)


class TestLibraries:
    def test_versions_out_of_range_and_missing_are_named(self, monkeypatch):
        true = libraries.metadata.version

        def version(name):
            if name == "urllib3":
                raise libraries.metadata.PackageNotFoundError(name)
            return {"transformers": "4.57.0"}.get(name) or true(name)

        monkeypatch.setattr(libraries.metadata, "version", version)
        found = {one.about: one for one in libraries.versions()}
        assert found["transformers"].status == found["urllib3"].status == "problem"
        assert found["transformers"].found == "transformers 4.57.0"
        assert found["transformers"].remedy == "pip install 'transformers<6,>=5.20'"
        assert found["urllib3"].found == "urllib3 is missing"
        assert found["Python"].status == "ok"

    def test_an_old_python_is_a_problem(self, monkeypatch):
        monkeypatch.setattr(libraries.sys, "version_info", (3, 9, 1))
        one = next(libraries.versions())
        assert (one.status, one.found, one.remedy) == ("problem", "3.9.1", "use Python >=3.11")

    def test_what_cannot_be_imported_says_why(self):
        """In processes of their own: one may crash."""
        crash = "import ctypes; ctypes.string_at(0)"
        found = libraries.import_errors({"well": "pass", "away": "import nowhere", "crash": crash})
        assert found["well"] is None
        assert found["away"] == "ModuleNotFoundError: No module named 'nowhere'"
        assert found["crash"]

    def test_a_broken_torchaudio_is_to_be_taken_away(self, with_module, monkeypatch):
        with_module("torchaudio", BROKEN)
        monkeypatch.setattr(libraries, "NEEDED", {})
        monkeypatch.setattr(libraries, "OTHERS", ("torchaudio",))
        one = only(f for f in libraries.imports() if f.about == "torchaudio")
        assert one.status == "problem"
        assert "libcudart.so.13" in one.found
        assert one.remedy.startswith("pip uninstall torchaudio")

    def test_transformers_beside_it_says_so_too(self, monkeypatch):
        said = {"transformers": "ImportError: cannot import name 'x'", "torchaudio": "OSError: y"}
        said |= {"lhotse": "ModuleNotFoundError: No module named 'urllib3.x'", "lightning": None}
        monkeypatch.setattr(libraries, "import_errors", lambda asked: said)
        found = {one.about: one.remedy for one in libraries.imports()}
        assert found["import transformers"] == "pip uninstall torchaudio, which is broken"
        assert found["import lhotse"] == "pip install urllib3"
        said["torchaudio"] = None
        found = {one.about: one.remedy for one in libraries.imports()}
        assert found["import transformers"] == "pip install --force-reinstall transformers"

    def test_a_broken_torchcodec_is_only_a_warning(self, with_module, monkeypatch):
        with_module("torchcodec", 'raise RuntimeError("Could not load libtorchcodec")')
        monkeypatch.setattr(libraries, "NEEDED", {})
        monkeypatch.setattr(libraries, "OTHERS", ("torchcodec",))
        one = only(f for f in libraries.imports() if f.about == "torchcodec")
        assert one.status == "warning"
        assert "Could not load libtorchcodec" in one.found

    def test_an_old_libsndfile_reads_no_mp3(self, monkeypatch):
        import soundfile

        assert only(libraries.audio_files()).status == "ok"
        known = soundfile.available_formats()
        monkeypatch.setattr(
            soundfile, "available_formats", lambda: {k: v for k, v in known.items() if k != "MP3"}
        )
        one = only(libraries.audio_files())
        assert one.status == "warning"
        assert "cannot read MP3" in one.found

    def test_an_espeak_that_cannot_be_loaded(self, with_module, monkeypatch):
        with_module("espeakng_loader", "def get_library_path(): return '/nowhere/libespeak.so'")
        one = only(libraries.espeak())
        assert one.status == "warning"
        assert "/nowhere/libespeak.so" in one.found
        without(monkeypatch, "espeakng_loader")
        assert list(libraries.espeak()) == []

    def test_extras_that_are_not_there_need_not_be(self, monkeypatch):
        without(monkeypatch, "peft", "parselmouth")
        one = only(libraries.extras())
        assert one.status == "ok"
        assert "not lora, probe (pip install 'speechfuse[lora,probe]')" in one.found

    def test_all_extras_of_a_user_are_looked_for(self):
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
        ours = {"dev", "docs", "pretrain"}
        assert {*project["project"]["optional-dependencies"]} - ours == {*libraries.EXTRAS}

    def test_offline_is_said(self, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in only(libraries.hub()).found


class TestMachine:
    def test_more_threads_than_cores(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
        one = only(machine.cores())
        assert one.status == "warning"
        assert one.remedy == f"export OMP_NUM_THREADS={int(machine.usable_cores())}"

    def test_a_quota_counts(self, tmp_path):
        quota = tmp_path / "cpu.max"
        quota.write_text("50000 100000\n")
        assert machine.usable_cores(quota) == 0.5
        quota.write_text("max 100000\n")
        assert machine.usable_cores(quota) >= 1

    @pytest.mark.parametrize(
        ("cuda", "seen", "hidden", "status", "words"),
        [
            (None, True, None, "problem", "install torch with CUDA"),
            ("13.0", True, None, "problem", "update the driver"),
            ("13.0", True, "", "ok", ""),
            ("13.0", False, None, "ok", ""),
        ],
    )
    def test_a_gpu_that_torch_cannot_use(self, monkeypatch, cuda, seen, hidden, status, words):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(machine, "nvidia_smi", lambda: [("H1", "470.1")] if seen else [])
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if hidden is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        one = only(machine.gpu())
        assert one.status == status
        assert words in one.remedy

    def test_a_gpu_that_others_have_filled(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"H{i}")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: [(1e9, 8e10), (7e10, 8e10)][i])
        monkeypatch.setattr(machine, "nvidia_smi", list)
        one, other = machine.gpu()
        assert (one.status, other.status) == ("warning", "ok")
        assert one.found.startswith("H0, 1 of 80 GB free")

    def test_what_nvidia_smi_says_is_read(self, tmp_path, monkeypatch):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho 'NVIDIA A, B, 570.1'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        assert machine.nvidia_smi() == [("NVIDIA A, B", "570.1")]
        tool.write_text("#!/bin/sh\necho broken; exit 9\n")
        assert machine.nvidia_smi() == []

    def test_little_memory(self, tmp_path, monkeypatch):
        info = tmp_path / "meminfo"
        info.write_text("MemTotal: 9 kB\nMemAvailable:    5000000 kB\n")
        assert machine.free_memory(info, tmp_path) == 5000000 * 1024
        (tmp_path / "memory.max").write_text("3000000000\n")
        (tmp_path / "memory.current").write_text("1000000000\n")
        assert machine.free_memory(info, tmp_path) == 2e9
        assert machine.free_memory(tmp_path / "no", tmp_path / "no") is None
        monkeypatch.setattr(machine, "free_memory", lambda: 2e9)
        assert only(machine.memory()).status == "warning"

    def test_kinds_of_file_systems(self, tmp_path):
        mounts = tmp_path / "mounts"
        lines = ["a / ext4 rw 0 0", "b /data nfs4 rw 0 0", "c /data/own\\040disk xfs rw 0 0"]
        mounts.write_text("\n".join(lines))
        kinds = [
            machine.filesystem(Path(path), mounts)
            for path in ("/home", "/data/x", "/data/own disk/y", "/database")
        ]
        assert kinds == ["ext4", "nfs4", "xfs", "ext4"]

    @pytest.mark.parametrize(
        ("kind", "free", "speed", "status", "words"),
        [
            ("ext4", 1e12, 1e9, "ok", ""),
            ("nfs4", 1e12, 1e9, "warning", "a disk of this machine"),
            ("ext4", 1e9, 1e9, "problem", "free some"),
            ("ext4", 1e10, 1e9, "warning", "store.budget_gb=8"),
            ("ext4", 1e12, 1e7, "warning", "elsewhere"),
        ],
    )
    def test_disks(self, workspace, monkeypatch, kind, free, speed, status, words):
        monkeypatch.setattr(machine, "filesystem", lambda folder: kind)
        monkeypatch.setattr(machine, "write_speed", lambda folder: speed)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda f: SimpleNamespace(free=free))
        one = only(machine.disk(Path("new/stores"), 20.0))
        assert one.status == status
        assert words in one.remedy

    def test_a_folder_that_may_not_be_written(self, workspace, monkeypatch):
        def refuse(folder):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(machine, "write_speed", refuse)
        assert "Permission denied" in only(machine.disk(Path("stores"), 20.0)).found

    def test_speed_is_measured_and_nothing_stays(self, workspace):
        assert machine.write_speed(workspace, 2 << 20) > 0
        assert list(workspace.iterdir()) == []


@pytest.fixture
def look():
    """Findings of one encoder, by what they are about."""

    def call(folder, dtype=None, **options):
        parts = {"ssl": ("huggingface", {"source": str(folder), **options})}
        for name, patient in patients(parts):
            return {f.about: f for f in run_checks(encoder_checks(name, patient, dtype))}
        raise AssertionError("no encoder")

    return call


class TestEncoder:
    @pytest.mark.recipe
    def test_the_policy_that_is_best_and_what_padding_costs(self, encoder, look):
        found = look(encoder("hubert"))
        assert {one.status for one in found.values()} == {"ok"}
        assert found["ssl"].found.startswith("4 layers x 32 at 50 Hz")
        words = found["ssl, lengths"].found
        assert "masked nothing, equal nothing, padded" in words
        assert "best is masked" in words
        one = look(encoder("hubert"), length_policy="padded")["ssl, lengths"]
        assert one.status == "warning"
        assert one.remedy == "set length_policy: masked"

    def test_a_masked_encoder_that_is_not_exact_gets_equal(self, encoder, look, monkeypatch):
        from speechfuse.doctor import encoder as module

        def drift(upstream, clips):
            return 0.3 if len({c.duration for c in clips}) > 1 else 0.0

        monkeypatch.setattr(module, "drift", drift)
        assert look(encoder("wavlm"))["ssl, lengths"].remedy == "set length_policy: equal"
        assert look(encoder("whisper"))["ssl, lengths"].status == "warning"

    @pytest.mark.recipe
    @pytest.mark.parametrize("name", ["whisper", "w2v-bert"])
    def test_encoders_without_policies_are_measured_too(self, encoder, look, name):
        found = look(encoder(name))
        assert {one.status for one in found.values()} == {"ok"}
        assert "differs from the same alone by" in found["ssl, lengths"].found

    def changed(self, source, folder, change):
        shutil.copytree(source, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    @pytest.mark.recipe
    def test_states_beyond_float16(self, encoder, look, tmp_path):
        def grow(tensors):
            tensors["encoder.layers.2.final_layer_norm.weight"].fill_(1e5)

        folder = self.changed(encoder("hubert"), tmp_path / "large", grow)
        assert look(folder)["ssl, values"].status == "warning"
        assert look(folder, "bfloat16")["ssl, values"].status == "ok"
        one = look(folder, "float16")["ssl, values"]
        assert one.status == "problem"
        assert one.remedy == "set store.dtype: bfloat16"

    def test_states_that_are_no_numbers(self, encoder, look, tmp_path):
        def spoil(tensors):
            tensors["encoder.layers.1.final_layer_norm.weight"].fill_(float("nan"))

        folder = self.changed(encoder("hubert"), tmp_path / "nan", spoil)
        one = look(folder)["ssl, values"]
        assert one.status == "problem"
        assert one.found == "states 2, 3 hold NaN or infinite numbers"

    def test_a_folder_without_preprocessor(self, encoder, look, tmp_path):
        shutil.copytree(encoder("hubert"), tmp_path / "bare")
        (tmp_path / "bare" / "preprocessor_config.json").unlink()
        one = look(tmp_path / "bare")["ssl, input"]
        assert one.status == "warning"
        assert "no preprocessor_config.json" in one.found

    def test_normalisation_is_that_of_the_preprocessor(self, encoder, look, tmp_path):
        for value in (True, False):
            folder = tmp_path / str(value)
            shutil.copytree(encoder("hubert"), folder)
            path = folder / "preprocessor_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": value}))
            one = look(folder)["ssl, input"]
            assert one.status == "ok"
            assert one.found.endswith(f"do_normalize is {str(value).lower()}")

    def test_normalisation_that_is_not_is_a_problem(self, encoder):
        for name, patient in patients({"ssl": ("huggingface", {"source": str(encoder("hubert"))})}):
            patient.upstream.preprocessor = {"do_normalize": False}
            one = only(normalisation(name, patient, None))
        assert one.status == "problem"
        assert one.found == "audio is as it is, do_normalize is true"

    def test_weights_that_cannot_be_read_are_one_problem(self, encoder, tmp_path, monkeypatch):
        monkeypatch.setattr(report, "library_checks", list)
        monkeypatch.setattr(report, "machine_checks", lambda *_: [])
        shutil.copytree(encoder("hubert"), tmp_path / "cut")
        (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut off")
        one = only(examine(source=str(tmp_path / "cut")))
        assert one.status == "problem"
        assert "cannot read the weights" in one.found
        assert "no folder at" in only(examine(source="./nowhere")).found


def test_broken_libraries_come_first(monkeypatch):
    broken = [("torch", lambda: [Finding("torch", "problem", "gone", "pip install torch")])]
    monkeypatch.setattr(report, "library_checks", lambda: broken)
    monkeypatch.setattr(report, "machine_checks", lambda *_: [])
    assert [one.about for one in examine(source="x")] == ["torch", "encoders"]


def test_a_check_that_fails_is_a_problem():
    def fail():
        raise ImportError("no\nmodule")

    one = only(run_checks([("GPU", fail)]))
    assert (one.about, one.status, one.found) == ("GPU", "problem", "no module")


class TestCommand:
    @pytest.fixture
    def run(self, workspace, monkeypatch):
        """With one check in place of those of libraries and machine."""

        def call(*arguments, status="ok"):
            one = Finding("torch", status, "found this", "do that" if status != "ok" else "")
            monkeypatch.setattr(report, "library_checks", lambda: [("torch", lambda: [one])])
            monkeypatch.setattr(report, "machine_checks", lambda *_: [])
            return CliRunner().invoke(cli.app, ["doctor", *map(str, arguments)])

        return call

    @pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
    def test_a_problem_ends_with_1(self, run, status, code):
        found = run(status=status)
        assert found.exit_code == code
        assert f"{status}: 1" in found.stdout
        assert ("-> do that" in found.stdout) == (status != "ok")

    def test_json_is_for_programs(self, run):
        found = run("--json", status="warning")
        (one,) = json.loads(found.stdout)
        assert one == {
            "about": "torch",
            "status": "warning",
            "found": "found this",
            "remedy": "do that",
        }

    def test_every_encoder_of_a_recipe(self, run, workspace, tone_recipe, encoder):
        ssl = {"kind": "huggingface", "source": str(encoder("hubert"))}
        recipe = merged(tone_recipe, {"upstreams": {"ssl": ssl}})
        (workspace / "r.yaml").write_text(yaml.safe_dump(recipe))
        found = run("r.yaml", "--json", "upstreams.ssl.length_policy=padded")
        by_name = {one["about"]: one for one in json.loads(found.stdout)}
        assert {"mel", "ssl", "mel, lengths", "ssl, lengths", "ssl, input"} <= by_name.keys()
        assert by_name["ssl, lengths"]["status"] == "warning"
        assert by_name["mel, lengths"]["status"] == "ok"

    def test_a_recipe_or_an_encoder(self, run, workspace):
        found = run("r.yaml", "--encoder", "x")
        assert "give one of them" in str(found.exception)
