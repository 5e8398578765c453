"""What open_clip does to a text before it is split: the ids of its CLIP models depend on it.

Hugging Face's CLIP tokenizers leave out ftfy (mojibake, control characters, curly quotes, wide
letters) and the entities of HTML, and lowercase letter by letter (a final sigma stays a sigma).
"""

import html

import ftfy


def clip(text: str) -> str:
    """As `clean="lower"` of open_clip 3.3 (open_clip/tokenizer.py), with the same ftfy."""
    # Of such a text ftfy and unescape change nothing, and they take 20 times as long.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()
