import pytest
import torch

from speechfuse.upstreams.ragged import Ragged


@pytest.mark.parametrize("sizes", [(5,), (3, 3), (4, 1, 6)])
def test_rows_and_padded_frames_are_one_another(sizes):
    ragged = Ragged(torch.tensor(sizes), together=False)
    rows = torch.randn(sum(sizes), 2)
    padded = ragged.padded(rows)
    assert padded.shape == (len(sizes), max(sizes), 2)
    assert torch.equal(ragged.rows(padded), rows)
    for frames, size in zip(padded, sizes, strict=True):
        assert (frames[size:] == 0).all()
    longer = torch.cat([padded, torch.ones(len(sizes), 2, 2)], dim=1)
    assert torch.equal(ragged.rows(longer), rows)


@pytest.mark.parametrize("sizes", [(5,), (3, 3), (4, 1, 6)])
def test_along_time_each_utterance_is_by_itself(sizes):
    rows = torch.randn(sum(sizes), 2)

    def centred(hidden, valid):
        valid = torch.ones(hidden.shape[:2]) if valid is None else valid
        count = valid.sum(1)[:, None, None]
        return hidden - (hidden * valid[..., None]).sum(1, keepdim=True) / count

    expected = torch.cat([part - part.mean(0) for part in rows.split(sizes)])
    for together in (False, True):
        ragged = Ragged(torch.tensor(sizes), together)
        torch.testing.assert_close(ragged.along_time(centred, rows), expected)
