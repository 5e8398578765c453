"""Texts that a decoder writes, a token at a time. Models know nothing of this."""

from mm.generation.generate import Beam, Generated, Greedy, Method, Nucleus, Prompt, generate

__all__ = ["Beam", "Generated", "Greedy", "Method", "Nucleus", "Prompt", "generate"]
