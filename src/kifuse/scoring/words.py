"""Splits texts in any script into words, for the metrics that count words."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex

from kifuse.scoring.identity import answer_form

# Scripts that are written without spaces between words: each letter is a word, together with its marks.
_ALONE = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Tham}]&&\p{L}]"
)
_JOINERS = r"\u200c\u200d"
_LETTERS_ALONE = regex.compile(rf"(?V1){_ALONE}[\p{{M}}{_JOINERS}]*")
_WORD = rf"[[\p{{L}}\p{{N}}]--{_ALONE}][[\p{{L}}\p{{M}}\p{{N}}{_JOINERS}]--{_ALONE}]*"
# Emoji, arrows and the like; ASCII and currency symbols are not words, as in the rouge-score package.
_SYMBOL = r"(?=[[\p{S}\p{Co}\p{Cn}]--[\x00-\x7f]--\p{Sc}])\X"
_WORDS = regex.compile(rf"(?V1){_ALONE}[\p{{M}}{_JOINERS}]*|{_WORD}|\p{{M}}+|{_SYMBOL}")

# Characters that separate words and mean nothing else, unless a digit follows directly.
_STOPS = ".,!?;:…。．，、！？；：؟،؛।॥·・"
_SILENT = "\"'`´‘’“”«»‹›„‚「」『』—―⸺"
_PARTS = regex.compile(
    rf"(?V1)(?P<word>{_ALONE}[\p{{M}}{_JOINERS}]*|{_WORD}|\p{{M}}+)|(?P<indent>\n\s+)|(?P<space>\s+)|(?P<other>\X)"
)
_NEAR = 40  # number of characters on either side of a mark that are checked
_OPERATOR = regex.compile(r"(?V1)[[\p{S}*/\\%^&@#=_]--[`´|]]")


@lru_cache(maxsize=4096)
def words(text: str) -> tuple[str, ...]:
    """Split a text into words by the kinds of its characters.

    Runs of letters and digits are words, and so is each emoji or other symbol. In scripts without spaces
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each letter is a word, together with its marks. In English
    text the words are those of the ``rouge-score`` package.

    Args:
        text: Any text.

    Returns:
        Its words in lower case.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return tuple(found[0] for found in _WORDS.finditer(folded))


@lru_cache(maxsize=1024)
def fine_words(text: str) -> tuple[str, ...]:
    """Split a text into words and everything else that changes its meaning.

    Besides the words these are symbols, the signs, points and commas of numbers, operators, and the
    indentation of lines, but not the punctuation of ordinary sentences.

    Args:
        text: Any text.

    Returns:
        The parts, in lower case.
    """
    form = answer_form(text)
    calculates = _OPERATOR.search(form) is not None
    return tuple(
        part[0]
        for part in _PARTS.finditer(form)
        if part.lastgroup != "space"
        and (part.lastgroup != "other" or _says_something(form, part, calculates))
    )


def spaced(text: str) -> str:
    """Put spaces around the letters of scripts without spaces, for functions that split at spaces.

    Args:
        text: Any text.

    Returns:
        The text; a text in a script with spaces is unchanged.
    """
    return _LETTERS_ALONE.sub(r" \g<0> ", text)


def _says_something(form: str, part: regex.Match[str], calculates: bool) -> bool:
    """Whether a character that is not part of a word changes the meaning of a text."""
    mark = part[0]
    before, after = form[max(part.start() - _NEAR, 0) : part.start()], form[part.end() :][:_NEAR]
    last, following = before[-1:], after[:1]
    if mark[0] in "'\"" and last.isnumeric() and form.count(mark[0]) % 2:
        return True  # the mark means feet or inches
    if mark[0] in _SILENT or unicodedata.category(mark[0]) in ("Cc", "Cf", "Zs"):
        return False
    if mark[0] in _STOPS:
        inside = last.strip() and following.isalpha() and mark[0] in ".:"
        negates = mark[0] == "!" and not last.strip() and following.isalpha()
        return bool(following.isnumeric() or inside or negates)
    if mark[0] == "|":  # between spaces it separates the parts of a line
        return bool(last.strip() or following.strip())
    if mark[0] in "()":
        return calculates or (mark[0] == "(" and last.isalnum())
    if unicodedata.category(mark[0]) == "Pd":
        return _is_sign(before, after)
    return True


def _is_sign(before: str, after: str) -> bool:
    """Whether a dash between two texts is a sign, not a hyphen or the dash of a sentence."""
    last, following = before.rstrip()[-1:], after.lstrip()[:1]
    if following.isnumeric() or following == "." or _OPERATOR.match(following) or _OPERATOR.match(last):
        return True
    touches_left, touches_right = bool(before[-1:].strip()), bool(after[:1].strip())
    return touches_left != touches_right or (touches_left and last.isnumeric())
