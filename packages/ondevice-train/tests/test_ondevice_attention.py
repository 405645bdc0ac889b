"""Attention run again from 8 bits: exact outputs, the gradients of torch at the rounded input, the bytes promised."""

import pytest
import torch
from edge_shared.memory import measure
from ondevice_train.compression.attention import self_attends
from ondevice_train.compression.quantise import dequantise, quantise
from ondevice_train.compression.recompute import Recomputed, recompute_bytes
from torch import nn

CALLS = {
    "self": lambda attention, x: attention(x, x, x, need_weights=False),
    "masked": lambda attention, x: attention(x, x, x, need_weights=False, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1)),
    "weights asked for": lambda attention, x: attention(x, x, x),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_torch_at_the_rounded_input(call, bias):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True, dtype=torch.float64)
    x = torch.randn(4, 5, 12, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(x)
    rounded = dequantise(quantise(x, 20), 20, x.shape, x.dtype).requires_grad_()
    y = CALLS[call](attention, x)[0]
    expected = torch.autograd.grad(CALLS[call](attention, rounded)[0], [rounded, *attention.parameters()], g)
    Recomputed(attention, eight_bit=True).install()
    found = CALLS[call](attention, x)[0]
    torch.testing.assert_close(found, y, rtol=1e-12, atol=1e-12)
    kept = measure.saved_bytes(lambda: CALLS[call](attention, x)[0], [*attention.parameters()]).bytes
    assert kept == recompute_bytes(x.shape, 8)
    for ours, theirs in zip(torch.autograd.grad(found, [x, *attention.parameters()], g), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_below_the_first_trained_layer_attention_is_torchs_and_keeps_nothing(call, dropout):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, dropout, batch_first=True).requires_grad_(False)
    x = torch.randn(4, 5, 12)
    torch.manual_seed(1)
    y = CALLS[call](attention, x)[0]
    Recomputed(attention, eight_bit=True).install()
    torch.manual_seed(1)
    found = CALLS[call](attention, x)[0]
    torch.testing.assert_close(found, y, rtol=1e-6, atol=1e-6)
    assert not found.requires_grad


def test_a_frozen_projection_gets_no_gradient():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.in_proj_weight.requires_grad_(False)
    Recomputed(attention, eight_bit=True).install()
    x = torch.randn(2, 3, 8)
    attention(x, x, x, need_weights=False)[0].sum().backward()
    assert attention.in_proj_weight.grad is None
    assert attention.out_proj.weight.grad is not None


def test_what_is_plain_self_attention():
    x = torch.randn(2, 3, 8)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    assert self_attends(attention, (x, x, x), {"need_weights": False})
    assert not self_attends(attention, (x, x.clone(), x), {"need_weights": False})
    assert not self_attends(attention, (x, x, x), {})
    assert not self_attends(attention, (x, x, x), {"need_weights": False, "is_causal": True})
    assert not self_attends(nn.MultiheadAttention(8, 2), (x, x, x), {"need_weights": False})
    assert not self_attends(nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True), (x, x, x), {"need_weights": False})
    assert not self_attends(nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True), (x, x, x), {"need_weights": False})
