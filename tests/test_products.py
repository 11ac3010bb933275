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


def test_a_bias_of_more_bits_is_added_without_onednn_too(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    hidden, weight, bias = torch.randn(3, 8), torch.randn(4, 8).bfloat16(), torch.randn(4)
    found = product(hidden, weight, bias)
    expected = torch.nn.functional.linear(hidden, weight.float(), bias)
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)
