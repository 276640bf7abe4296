"""Seeds as a pure function of names and numbers: the same on every machine, Python version and rank."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from `parts`, for example `derive_seed(seed, "noise", step, micro_batch, rank)`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
