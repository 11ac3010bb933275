"""Two processes on the CPU; each begins with seconds of imports, most are of the recipe tier."""

import inspect
import multiprocessing
import os
import signal
import threading

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, nn

from speechfuse import ranks
from speechfuse.build import read_recipe
from speechfuse.checkpoint import Run
from speechfuse.errors import DataError, RunError
from speechfuse.group import joined
from speechfuse.heads.standardize import Standardize
from speechfuse.launch import run_together
from speechfuse.recipe import merged
from speechfuse.train import train_run

together = [pytest.mark.recipe, pytest.mark.timeout(600)]


SEPARATE = {
    "fusion": {"interface": {"kind": "hconv"}},
    "tasks": {
        "emotion": {"crop_seconds": 0.2, "head": {"kind": "classifier", "standardize": False}},
        "verification": {"batch_seconds": 0.1},
    },
}
HARMONIFUSE = {
    "fusion": {"per_task": False, "interface": {"kind": "gated_encoder"}},
    "context": {"layers": 2, "dim": 16, "heads": 2, "join": 2, "dropout": 0.0},
    "tasks": {"asr": {"head": {"kind": "text"}}},
}


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
    pytestmark = together

    @pytest.mark.parametrize("change", [SEPARATE, HARMONIFUSE])
    def test_two_processes_give_the_weights_of_one(self, workspace, tone_recipe, change):
        """Three tasks in turns that follow their losses, steps of two batches, crops, a batch for
        each utterance of one task, which both compute; and several tasks in one transformer.
        """
        training = {"steps": 12, "accumulate": 2, "keep": "last", "weight_decay": 0.5}
        training |= {"batch_utterances": 5, "interleave": {"loss_aware": 2}, "evaluate_every": 6}
        recipe = merged(merged(tone_recipe, change), {"training": training})
        metrics = [train(recipe, workspace / str(n), n) for n in (1, 2)]
        one, two = (weights(workspace / name) for name in "12")
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, atol=2e-5, rtol=1e-4)
        assert metrics[0]["test"] == metrics[1]["test"]
        logs = [Run(workspace / name).log() for name in "12"]
        assert [row[:2] for row in logs[0]] == [row[:2] for row in logs[1]]
        assert [v for *_, v in logs[0]] == pytest.approx([v for *_, v in logs[1]], rel=1e-4)
        assert {name for _, name, _ in logs[0]} >= {"train/verification/loss", "dev/error"}

    def test_a_stop_keeps_the_step_and_the_run_goes_on_to_the_same_weights(
        self, workspace, tone_recipe
    ):
        """With dropout, bit for bit; and with another number of processes up to rounding."""
        dropout = {"kind": "ctc", "project": 8, "lstm_dim": 8, "dropout": 0.3}
        change = {
            "training": {"steps": 10, "evaluate_every": 4, "keep": "last"},
            "tasks": {"asr": {"head": dropout}},
        }
        recipe = merged(tone_recipe, change)
        train(recipe, workspace / "whole", 2)
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        stop = at_step(6, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, workspace / "parts", 2, stop)
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
        assert not multiprocessing.active_children()
        steps = []
        train(recipe, workspace / "parts", 2, lambda w, d, n: steps.append((w, d)))
        first = min(d for w, d in steps if w == "training steps")
        assert 6 < first < 10  # a step or two are taken while it is told
        whole, parts = weights(workspace / "whole"), weights(workspace / "parts")
        assert all(torch.equal(whole[k], parts[k]) for k in whole)

    def test_a_process_is_killed_and_one_alone_goes_on(self, workspace, tone_recipe):
        change = {"steps": 10, "evaluate_every": 2, "keep": "last"}
        recipe = merged(tone_recipe, {"training": change})
        train(recipe, workspace / "whole", 1)
        kill = at_step(5, lambda: os.kill(second_process(), signal.SIGKILL))
        message = "process 2 of 2 was ended by SIGKILL, .* run it again to go on"
        with pytest.raises(RunError, match=message):
            train(recipe, workspace / "parts", 2, kill)
        assert not multiprocessing.active_children()
        steps = []
        train(recipe, workspace / "parts", 1, lambda w, d, n: steps.append((w, d)))
        assert min(d for w, d in steps if w == "training steps") > 4
        assert Run(workspace / "parts").recipe().training.devices == 1
        whole, parts = weights(workspace / "whole"), weights(workspace / "parts")
        for name, weight in whole.items():
            torch.testing.assert_close(parts[name], weight, atol=2e-5, rtol=1e-4)

    def test_a_process_that_hangs_is_not_waited_for_for_ever(
        self, workspace, tone_recipe, monkeypatch
    ):
        monkeypatch.setattr(ranks, "SILENCE", 5.0)
        tone_recipe["training"]["steps"] = 10000
        hang = at_step(3, lambda: os.kill(second_process(), signal.SIGSTOP))
        message = "process 2 of 2 has given no sign of life for 5 s, .* run it again to go on"
        with pytest.raises(RunError, match=message):
            train(tone_recipe, workspace / "run", 2, hang)
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


def standardised(norm, rows, part):
    own = rows[part].clone().requires_grad_()
    wanted = torch.arange(rows.numel(), dtype=torch.float64).reshape(rows.shape)[part]
    found = norm(own)
    (found**2 * wanted).sum().backward()
    return found.detach(), own.grad


def standardise(rows, folder, progress, rank):
    norm: nn.Module = Standardize(4).double()
    norm.parts = rank.count
    with joined(rank):
        found = standardised(norm, rows, rank.part(len(rows)))
    torch.save((*found, dict(norm.state_dict())), folder / f"{rank.number}.pt")


def failing(error, progress, rank):
    """The last process fails, the others wait for it."""
    with joined(rank):
        if rank.number == rank.count - 1:
            raise error
        distributed.barrier()


def failing_hard(folder, progress, rank):
    """As `failing`, and the end of the last process comes by a signal."""
    tell = inspect.currentframe().f_back.f_locals["tell"]
    try:
        failing(DataError("a clip of the second"), progress, rank)
    except DataError as error:
        names = [thread.name for thread in threading.enumerate() if "_look" in thread.name]
        (folder / "threads").write_text(" ".join(names))
        tell(error)
        os.abort()


def sleeping(progress, rank):
    while True:
        progress("naps", 1, 1)
        signal.sigtimedwait([], 0.2)
