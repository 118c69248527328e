"""The answer normalisation of VQA's public evaluation code (GT-Vision-Lab/VQA, vqaEval.py), which METER uses too."""

from __future__ import annotations

import re

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0", **{word: str(value) for value, word in enumerate(_NUMBERS)}}
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # a decimal point stays

# The contractions that the definition knows. Those with "I" are not among them, as text is lower case by then.
_CONTRACTED = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _misspelt() -> dict[str, str]:
    """Every form with one of its apostrophes forgotten -> the form."""
    table = {
        form[:place] + form[place + 1 :]: form
        for form in _CONTRACTED.split()
        for place, letter in enumerate(form)
        if letter == "'"
    }
    return {**table, "somebody'd": "somebodyd"}  # the definition has this one the wrong way round


CONTRACTIONS = _misspelt()


def strip_punctuation(text: str) -> str:
    """A mark that stands next to a space somewhere in the text goes, another becomes a space; periods go.

    Where a comma stands between digits, all marks go. A period before a digit stays.
    """
    grouped = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        goes = grouped or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", result)


def normalize_words(text: str) -> str:
    """Lower case, number words to digits, no articles, apostrophes put back into contractions."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def tidy(text: str) -> str:
    """Line breaks and tabs to spaces, none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalize(text: str) -> str:
    """An answer in the form that answers are compared in: ``"Two cats!"`` is ``"2 cats"``."""
    return normalize_words(strip_punctuation(tidy(text)))
