"""What is kept from training."""

import hashlib


def held_out(name: str, fraction: float = 0.1) -> bool:
    """Whether what is so called is kept from training: a stable hash, so one more moves no other.

    name: of a family of concepts, a draughtsman, ...
    """
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
