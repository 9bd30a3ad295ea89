"""The adversarial training step of a codec in PyTorch, for `tools.bench.reference`.

Multi-scale complex STFT discriminators, hinge and feature losses, loss balancer, distillation; from the descriptions in
arXiv 2210.13438 section 3.4 and arXiv 2410.00037 section 3.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

TRANSFORMERS = ("encoder_transformer", "decoder_transformer")
WEIGHTS = {"adversarial": 4.0, "feature": 4.0}
RATE, BETAS, DECAY = 8e-4, (0.5, 0.9), 0.05
AVERAGE, BALANCER = 0.99, 0.999


class Discriminator(nn.Module):
    """Logits and feature maps of a waveform [B, N], for one window size."""

    def __init__(self, window: int, filters: int, dilations: tuple[int, ...] = (1, 2, 4)):
        super().__init__()
        self.window = window
        hann = torch.hann_window(window)
        self.register_buffer("hann", hann / hann.square().sum().sqrt())
        layers = [nn.Conv2d(2, filters, (3, 9), padding=(1, 4))]
        for d in dilations:
            layers.append(nn.Conv2d(filters, filters, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4)))
        layers += [nn.Conv2d(filters, filters, (3, 3), padding=1), nn.Conv2d(filters, 1, (3, 3), padding=1)]
        self.layers = nn.ModuleList([layers[0], *map(weight_norm, layers[1:])])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        size = self.window
        z = torch.stft(x, size, size // 4, window=self.hann, center=False, return_complex=True).transpose(1, 2)
        x, features = torch.stack([z.real, z.imag], 1), []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.3)
            features.append(x)
        return self.layers[-1](x), features

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor], prefix: str) -> None:
        """Set kernels [frames, frequencies, in, out] as lengths and directions."""
        for i, layer in enumerate(self.layers):
            name = f"{prefix}conv_{i}/"
            layer.bias.copy_(tensors[name + "bias"])
            if i == 0:
                layer.weight.copy_(tensors[name + "kernel"].permute(3, 2, 0, 1))
            else:
                direction, length = tensors[name + "kernel_direction"], tensors[name + "kernel_scale"]
                length = length / direction.flatten(0, 2).norm(dim=0)
                layer.weight = (direction * length).permute(3, 2, 0, 1).contiguous()


def per_row(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).mean(1)


class Training:
    """Training steps, all on the same batch."""

    def __init__(self, mimi: nn.Module, tensors: dict[str, torch.Tensor], windows: list[int], filters: int):
        self.mimi, self.waveform, self.teacher = mimi.train(), tensors["waveform"], tensors["teacher"]
        for side in (mimi.encoder, mimi.decoder):
            convolutions = [m for m in side.modules() if isinstance(m, nn.Conv1d)]
            transposed = [m for m in side.modules() if isinstance(m, nn.ConvTranspose1d)]
            for module, dim in [(m, 0) for m in convolutions] + [(m, 1) for m in transposed]:
                weight_norm(module, dim=dim)
        self.judges = nn.ModuleList(Discriminator(window, filters) for window in windows)
        for judge in self.judges:
            judge.load(tensors, f"discriminators/window_{judge.window}/")
        self.head = nn.Parameter(tensors["teacher_projection"].clone())
        named = dict(mimi.named_parameters())
        decayed = [p for name, p in named.items() if name.startswith(TRANSFORMERS)]
        plain = [p for name, p in named.items() if not name.startswith(TRANSFORMERS)]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": [*plain, self.head], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)
        self.judges_optimizer = torch.optim.AdamW(self.judges.parameters(), lr=RATE, betas=BETAS, weight_decay=0.0)
        self.learnt = [*decayed, *plain, self.head]
        self.average = [p.detach().clone() for p in self.learnt]
        self.norms, self.weight = dict.fromkeys(WEIGHTS, 0.0), 0.0

    def codec(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return decoded waveform, semantic level after its projection, and commitment loss."""
        mimi = self.mimi
        x = mimi.encoder(self.waveform[:, None])
        (x,) = mimi.encoder_transformer(x)
        latent = mimi._to_framerate(x)
        semantic = mimi.quantizer.rvq_first(latent, mimi.frame_rate)
        acoustic = mimi.quantizer.rvq_rest(latent, mimi.frame_rate)
        levels = [result.codes.shape[1] for result in (semantic, acoustic)]
        commitment = (semantic.penalty * levels[0] + acoustic.penalty * levels[1]) / sum(levels)
        (x,) = mimi.decoder_transformer(mimi._to_encoder_framerate(semantic.x + acoustic.x))
        return mimi.decoder(x)[:, 0, : self.waveform.shape[1]], semantic.x, commitment

    def step(self) -> dict[str, float]:
        y, semantic, commitment = self.codec()
        rows, count = len(y), len(self.judges)

        judged = torch.zeros(())
        for judge in self.judges:
            logits, _ = judge(torch.cat([self.waveform, y.detach()]))
            judged = judged + F.relu(1 - logits[:rows]).mean() + F.relu(1 + logits[rows:]).mean()
        self.judges_optimizer.zero_grad(set_to_none=True)
        (judged / count).backward()
        self.judges_optimizer.step()

        output = y.detach().requires_grad_()
        losses = dict.fromkeys(WEIGHTS, 0.0)
        for judge in self.judges.requires_grad_(False):
            logits, features = judge(output)
            with torch.no_grad():
                _, wanted = judge(self.waveform)
            losses["adversarial"] = losses["adversarial"] - per_row(logits) / count
            maps = [per_row((a - b).abs()) for a, b in zip(features, wanted, strict=True)]
            losses["feature"] = losses["feature"] + sum(maps) / len(maps) / count
        self.judges.requires_grad_(True)
        gradient, self.weight = torch.zeros_like(y), self.weight * BALANCER + 1
        for i, (name, loss) in enumerate(losses.items()):
            (slope,) = torch.autograd.grad(loss.sum(), output, retain_graph=i + 1 < len(losses))
            self.norms[name] = self.norms[name] * BALANCER + slope.norm(dim=1).mean()
            gradient += slope * (WEIGHTS[name] / sum(WEIGHTS.values()) / (self.norms[name] / self.weight + 1e-12))

        target = F.avg_pool1d(self.teacher.transpose(1, 2), 8, 4, padding=2, count_include_pad=False).transpose(1, 2)
        distillation = (1 - F.cosine_similarity(semantic.transpose(1, 2) @ self.head.T, target, dim=-1)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([y, commitment + distillation], [gradient / rows, None])
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.learnt], 1 - AVERAGE)
        values = {name: loss.mean() for name, loss in losses.items()}
        values |= {"discriminator": judged / count, "commitment": commitment, "distillation": distillation}
        return {name: float(value.detach()) for name, value in values.items()}
