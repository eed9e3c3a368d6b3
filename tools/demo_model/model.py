"""The network, a Llama: RMS norms, rotary positions (interleaved pairs), grouped-query attention, SwiGLU.

All sequences of a batch have one length; outside attention the batch is flat, (n_tokens, n_embd), so that the compiled
parts see one shape only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import CONTEXT, HEAD_DIM, RMS_EPS, ROPE_BASE, Shape


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """(n, n_embd) -> (n, n_embd), computed in float32."""
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + RMS_EPS) * weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on pairs (2i, 2i + 1). x: (n, heads, head_dim); cos, sin: (n, head_dim / 2)."""
    a, b = x.float().unflatten(-1, (HEAD_DIM // 2, 2)).unbind(-1)
    c, s = cos[:, None], sin[:, None]
    return torch.stack([a * c - b * s, a * s + b * c], -1).to(x.dtype).flatten(-2)


def attention_inputs(
    x: Tensor, norm: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, each (n, n_head, head_dim); keys and values repeated for the query heads that share them."""
    h = rms_norm(x, norm)
    q = rotate(F.linear(h, wq.to(h.dtype)).unflatten(-1, (-1, HEAD_DIM)), cos, sin)
    k = rotate(F.linear(h, wk.to(h.dtype)).unflatten(-1, (-1, HEAD_DIM)), cos, sin)
    v = F.linear(h, wv.to(h.dtype)).unflatten(-1, (-1, HEAD_DIM))
    n_shared = q.shape[1] // k.shape[1]
    return q, k.repeat_interleave(n_shared, 1), v.repeat_interleave(n_shared, 1)


def block_output(
    x: Tensor, attended: Tensor, wo: Tensor, norm: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor
) -> Tensor:
    """The rest of a layer: output projection and feed-forward, each added to x (n, n_embd)."""
    x = x + F.linear(attended, wo.to(x.dtype))
    h = rms_norm(x, norm)
    return x + F.linear(F.silu(F.linear(h, w_gate.to(h.dtype))) * F.linear(h, w_up.to(h.dtype)), w_down.to(h.dtype))


def token_losses(x: Tensor, norm: Tensor, embedding: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log likelihood (n,) of the targets (n,), and the most likely tokens (n,)."""
    logits = F.linear(rms_norm(x, norm), embedding.to(x.dtype)).float()
    loss = torch.logsumexp(logits, -1) - logits.gather(-1, targets[:, None]).squeeze(-1)
    return loss, logits.argmax(-1)


class Llama(nn.Module):
    """Parameters stacked over layers, float32; ``dtype`` is that of the computation."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        n, d, ff = shape.n_layer, shape.n_embd, shape.n_ff
        d_q, d_kv = shape.n_head * HEAD_DIM, shape.n_head_kv * HEAD_DIM

        def matrices(n_out: int, n_in: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(n, n_out, n_in) * scale)

        scale = 0.6 / d**0.5
        self.embedding = nn.Parameter(torch.randn(shape.n_vocab, d) * 0.02)  # also the output matrix
        self.attn_norm, self.ffn_norm = nn.Parameter(torch.ones(n, d)), nn.Parameter(torch.ones(n, d))
        self.output_norm = nn.Parameter(torch.ones(d))
        self.wq, self.wk, self.wv = matrices(d_q, d, scale), matrices(d_kv, d, scale), matrices(d_kv, d, scale)
        self.wo = matrices(d, d_q, 0.0)
        self.w_gate, self.w_up = matrices(ff, d, scale), matrices(ff, d, scale)
        self.w_down = matrices(d, ff, 0.0)
        frequencies = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
        angles = torch.arange(CONTEXT, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        self.attention_inputs, self.block_output, self.token_losses = attention_inputs, block_output, token_losses

    def compile_parts(self) -> None:
        """Compile everything but attention."""
        self.attention_inputs = torch.compile(attention_inputs, dynamic=False)
        self.block_output = torch.compile(block_output, dynamic=False)
        self.token_losses = torch.compile(token_losses, dynamic=False)

    def matrices(self) -> list[nn.Parameter]:
        """What Muon trains: (n_layer, n_out, n_in) each."""
        return [self.wq, self.wk, self.wv, self.wo, self.w_gate, self.w_up, self.w_down]

    def vectors(self) -> list[nn.Parameter]:
        """What Adam trains: the embedding and the norms."""
        return [self.embedding, self.attn_norm, self.ffn_norm, self.output_norm]

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and most likely token of each position, flat. ids: (batch, length); targets: (batch * length,)."""
        batch, length = ids.shape
        cos, sin = self.cos[:length].repeat(batch, 1), self.sin[:length].repeat(batch, 1)
        x = F.embedding(ids.reshape(-1), self.embedding).to(self.dtype)
        names = (self.attn_norm, self.wq, self.wk, self.wv, self.wo, self.ffn_norm, self.w_gate, self.w_up, self.w_down)
        for layer in zip(*(parameter.unbind(0) for parameter in names), strict=True):
            norm, wq, wk, wv, wo, ffn_norm, w_gate, w_up, w_down = layer
            qkv = self.attention_inputs(x, norm, wq, wk, wv, cos, sin)
            q, k, v = (t.unflatten(0, (batch, length)).transpose(1, 2) for t in qkv)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            attended = attended.transpose(1, 2).reshape(batch * length, -1)
            x = self.block_output(x, attended, wo, ffn_norm, w_gate, w_up, w_down)
        return self.token_losses(x, self.output_norm, self.embedding, targets)
