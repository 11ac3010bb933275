"""Two processes on the CPU, most of which have nothing to train; what they train: test_group.py."""

import multiprocessing
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from speechfuse import ranks
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.errors import DataError, RunError
from speechfuse.heads.standardize import Standardize
from speechfuse.launch import run_together
from speechfuse.recipe import merged
from speechfuse.train import train_run
from together import failing, failing_hard, sleeping, standardise, standardised, stepping

pytestmark = [pytest.mark.recipe, pytest.mark.timeout(600)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def train(recipe, folder, processes, progress=None):
    changed = merged(recipe, {"training": {"devices": processes}})
    return train_run(read_recipe(changed), folder, progress)


def at_step(number, act):
    def progress(what, done, total):
        if what == "training steps" and done == number:
            act()

    return progress


def second_process():
    return max(multiprocessing.active_children(), key=lambda child: child.pid).pid


class TestTogether:
    def test_a_process_is_killed_and_one_alone_goes_on(self, workspace, tone_recipe):
        change = {"steps": 10, "evaluate_every": 2, "keep": "last"}
        recipe = merged(tone_recipe, {"training": change})
        metrics = train(recipe, workspace / "whole", 1)
        kill = at_step(5, lambda: os.kill(second_process(), signal.SIGKILL))
        message = "process 2 of 2 was ended by SIGKILL, .* run it again to go on"
        with pytest.raises(RunError, match=message):
            train(recipe, workspace / "parts", 2, kill)
        assert not multiprocessing.active_children()
        steps = []
        found = train(recipe, workspace / "parts", 1, lambda w, d, n: steps.append((w, d)))
        assert found["test"] == metrics["test"]
        assert min(d for w, d in steps if w == "training steps") > 4
        assert Run(workspace / "parts").recipe().training.devices == 1
        whole, parts = weights(workspace / "whole"), weights(workspace / "parts")
        for name, weight in whole.items():
            torch.testing.assert_close(parts[name], weight, atol=2e-5, rtol=1e-4)

    def test_a_process_that_hangs_is_not_waited_for_for_ever(self, monkeypatch):
        monkeypatch.setattr(ranks, "SILENCE", 5.0)
        hang = at_step(3, lambda: os.kill(second_process(), signal.SIGSTOP))
        message = "process 2 of 2 has given no sign of life for 5 s, .* run it again to go on"
        with pytest.raises(RunError, match=message):
            run_together(stepping, (), 2, hang)
        assert not multiprocessing.active_children()

    def test_a_second_ctrl_c_does_not_wait(self):
        with pytest.raises(KeyboardInterrupt):
            run_together(sleeping, (), 1, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert not multiprocessing.active_children()

    def test_sigterm_of_the_whole_group_is_a_stop_and_no_loss(self):
        """Processes that have not begun to train do not wait for the end of a step."""

        def end_all(*_):
            os.kill(os.getpid(), signal.SIGTERM)
            for child in multiprocessing.active_children():
                child.terminate()

        with pytest.raises(KeyboardInterrupt):
            run_together(sleeping, (), 1, end_all)

    def test_the_error_of_a_process_is_that_of_the_run(self):
        with pytest.raises(DataError, match="a clip of the second"):
            run_together(failing, (DataError("a clip of the second"),), 2, None)
        with pytest.raises(RuntimeError, match=r"process 1 of 1 failed:(.|\n)*ZeroDivisionError"):
            run_together(failing, (ZeroDivisionError("a bug"),), 1, None)

    def test_a_process_that_said_why_it_ends_is_heard_however_it_ends(self, tmp_path):
        """Torch aborts a process in whose threads it is busy when the interpreter goes."""
        with pytest.raises(DataError, match="a clip of the second"):
            run_together(failing_hard, (tmp_path,), 2, None)
        assert (tmp_path / "threads").read_text() == ""

    def test_standardised_vectors_have_the_statistics_of_the_whole_batch(self, tmp_path):
        rows = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        norm = Standardize(4).double()
        expected, gradient = standardised(norm, rows, slice(None))
        run_together(standardise, (rows, tmp_path), 2, None)
        for number in range(2):
            found, own, state = torch.load(tmp_path / f"{number}.pt")
            torch.testing.assert_close(found, expected[number::2])
            torch.testing.assert_close(own, gradient[number::2])
            torch.testing.assert_close(state, dict(norm.state_dict()))
