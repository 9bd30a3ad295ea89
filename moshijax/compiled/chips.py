"""What is known of accelerators: peak arithmetic, bandwidth and memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Figures of one device, from the data sheet of its maker.

    Attributes:
      part: A part of the lower-case name by which the device calls itself.
      flops: Dense bfloat16 peak, in FLOP/s.
      bandwidth: Of its memory, in bytes/s.
      memory: In bytes.
    """

    part: str
    flops: float
    bandwidth: float
    memory: float


#: The first whose part is in the name of a device is meant.
CHIPS = (
    Chip("h200", 989e12, 4.80e12, 151_397_597_184),
    Chip("h100", 989e12, 3.352e12, 84_942_979_072),
    Chip("a100", 312e12, 2.039e12, 85_031_714_816),
    Chip("l40s", 362e12, 0.864e12, 47_810_936_832),
    Chip("l40", 181e12, 0.864e12, 47.8e9),
    Chip("l4", 121e12, 0.300e12, 24.2e9),
    Chip("v6e", 918e12, 1.64e12, 32e9),
    Chip("v6 lite", 918e12, 1.64e12, 32e9),
    Chip("v5p", 459e12, 2.765e12, 95e9),
    Chip("v5e", 197e12, 0.819e12, 16e9),
    Chip("v5 lite", 197e12, 0.819e12, 16e9),
    Chip("tpu v5", 459e12, 2.765e12, 95e9),  # v5p, as it calls itself
    Chip("v4", 275e12, 1.228e12, 32e9),
)


def find(kind: str) -> Chip | None:
    """Return what is known of a kind of device, such as "NVIDIA H100 80GB HBM3" or "h100"; None if nothing is."""
    return next((chip for chip in CHIPS if chip.part in kind.lower()), None)
