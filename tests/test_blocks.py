from functools import partial

import torch
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from speechfuse.measure import peak_bytes
from speechfuse.upstreams import blocks
from speechfuse.upstreams.blocks import RelativeAttention
from speechfuse.upstreams.ragged import Ragged


def test_a_table_of_distances_is_wavlm_s_bias(monkeypatch):
    """Against transformers' own attention, clip by clip; also with a head at a time."""
    torch.manual_seed(0)
    attention = WavLMAttention(24, 4, num_buckets=32, max_distance=40).eval()
    torch.nn.init.normal_(attention.gru_rel_pos_const)
    sizes = (90, 17, 1)
    rows = torch.randn(sum(sizes), 24)
    with torch.no_grad():
        expected = torch.cat([attention(part[None])[0][0] for part in rows.split(sizes)])
        for together in (False, True):
            for scores in (1, 1 << 18):
                monkeypatch.setattr(blocks, "IN_CACHE", scores)
                ragged = Ragged(torch.tensor(sizes), together)
                mixed = RelativeAttention(attention, max(sizes))(attention, rows, ragged)
                torch.testing.assert_close(
                    attention.out_proj(mixed), expected, atol=1e-5, rtol=1e-4
                )


def test_of_long_utterances_no_scores_of_all_pairs_are_written(monkeypatch):
    """A few rows of queries at a time; short ones are as they were, bit for bit."""
    torch.manual_seed(0)
    attention = WavLMAttention(16, 2, num_buckets=32, max_distance=40).eval()
    torch.nn.init.normal_(attention.gru_rel_pos_const)
    sizes, fits = (1500, 700), blocks.AT_ONCE
    rows = torch.randn(sum(sizes), 16)

    monkeypatch.setattr(blocks, "PIECE", 10**5)

    def mixed(scores, together):
        monkeypatch.setattr(blocks, "AT_ONCE", scores)
        ragged = Ragged(torch.tensor(sizes), together)
        return RelativeAttention(attention, max(sizes))(attention, rows, ragged)

    with torch.no_grad():
        for together in (False, True):
            whole = mixed(fits, together)
            torch.testing.assert_close(mixed(10**6, together), whole, atol=1e-6, rtol=1e-4)
            assert torch.equal(mixed(2 * 2 * 1500**2, together), whole)
        peaks = [peak_bytes(partial(mixed, scores, False)) for scores in (10**6, fits)]
        assert 3 * peaks[0] < peaks[1]
