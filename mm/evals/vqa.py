"""The accuracy of answers, as the VQA benchmark counts it (Antol et al. 2015, section 3)."""

import re
from collections.abc import Sequence

_NUMBERS = "none=0 zero=0 one=1 two=2 three=3 four=4 five=5 six=6 seven=7 eight=8 nine=9 ten=10"
_NUMBERS = dict(pair.split("=") for pair in _NUMBERS.split())
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Written without one of its apostrophes, each of these gets it back. Those that would then be
# another word ("its", "were", "well") are not among them.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
you've
""".split()
_REPAIRED = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTIONS
    for i, character in enumerate(word)
    if character == "'"
}


def normalized(answer: str) -> str:
    """Lower case, without articles, numbers up to ten as digits, apostrophes where they belong.

    Punctuation becomes a space; it goes without one if a space is beside it, or a comma stands in a
    number. Periods go, but not before a digit. Apostrophes and colons stay.
    """
    text = answer
    in_number = re.search(r"\d,\d", answer) is not None
    for mark in _PUNCTUATION:
        alone = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if alone or in_number else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    found = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_REPAIRED.get(word, word) for word in found if word not in _ARTICLES)


def same(answer: str, other: str) -> bool:
    """Whether they are one when both are `normalized`; what that leaves nothing of, as it is."""
    found = normalized(answer)
    return found == normalized(other) and (bool(found) or answer.strip() == other.strip())


def accuracy(answer: str, references: Sequence[str]) -> float:
    """min(people who say the same / 3, 1), the mean over all ways to leave one of the people out.

    As the benchmark's program has it: where all people say the same, nothing is normalized. It is
    made for ten people: of fewer than four, 3 is the number of the others, so that who says what
    all say has 1; of a single one it is whether the answer is the same.
    """
    answer, *references = (" ".join(text.split()) for text in (answer, *references))
    if len(set(references)) > 1:
        answer, *references = map(normalized, (answer, *references))
    same = [reference == answer for reference in references]
    if len(same) == 1:
        return float(same[0])
    enough = min(3, len(same) - 1)
    return sum(min((sum(same) - own) / enough, 1) for own in same) / len(same)
