import torch
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

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
