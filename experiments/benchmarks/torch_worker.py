"""The same model in PyTorch with a plain loop: python -m experiments.benchmarks.torch_worker small.

As nanoGPT has it: fused query, key and value product, scaled_dot_product_attention, tied head.
"""

import sys

import torch  # ty: ignore
from torch import nn  # ty: ignore
from torch.nn import functional as F  # ty: ignore

from experiments.benchmarks import worker


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.feedforward_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, -1)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(out.transpose(1, 2).flatten(2))
        hidden = F.gelu(self.up(self.feedforward_norm(x)), approximate="tanh")
        return x + self.down(hidden)


class Transformer(nn.Module):
    def __init__(self, layers, width, heads, length):
        super().__init__()
        self.embed = nn.Embedding(worker.VOCAB, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.embed(tokens) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main(size):
    torch.set_num_threads(worker.THREADS)
    torch.manual_seed(0)
    layers, width, heads, length, batch = worker.SIZES[size]
    model = Transformer(layers, width, heads, length)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == ndim], "weight_decay": decay}
        for ndim, decay in ((2, 0.1), (1, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    tokens = torch.randint(0, worker.VOCAB, (batch, length + 1))

    def run(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            value = loss.item()
        return value

    parameters = sum(parameter.numel() for parameter in model.parameters())
    worker.serve(run, {"loss": run(1), "parameters": parameters, "torch": torch.__version__})


if __name__ == "__main__":
    main(sys.argv[1])
