import torch
from torch import nn

from speechfuse.upstreams.products import linear, product


def test_with_and_without_onednn_products_are_those_of_linear(monkeypatch):
    module, rows = nn.Linear(12, 5), torch.randn(7, 12)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        with torch.no_grad():
            expected = module.float()(rows)
            module.to(dtype)
            for there in (torch.backends.mkldnn.is_available(), False):
                monkeypatch.setattr(
                    torch.backends.mkldnn, "is_available", lambda there=there: there
                )
                made = linear(module, rows)
                bare = product(rows, module.weight, None)
                assert made.dtype == dtype
                torch.testing.assert_close(made.float(), expected, atol=tolerance, rtol=tolerance)
                torch.testing.assert_close(bare + module.bias, made, atol=tolerance, rtol=tolerance)
