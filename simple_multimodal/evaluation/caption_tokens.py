"""Tokens of captions, as the scores of captioning papers count them, without the Java program that defines them."""

from __future__ import annotations

import re
import unicodedata

_MARKS = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)).startswith("M"))
WORD = rf"[^\W_](?:[^\W_]|[{_MARKS}])*"
"""Pattern of a word in any script: letters and digits with their combining marks."""

_LETTER = r"[^\W\d_]"
_END = r"(?![^\W_])"

_ABBREVIATIONS = (
    "adm|al|ala|alex|apr|ariz|asst|assn|atty|aug|ave|bldg|blvd|bros|calif|capt|cf|cmdr|co|col|colo|conn|corp|cos|cpl|"
    "dec|dept|det|dr|drs|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|govs|hon|inc|ind|insp|intl|jan|jr|jul|jun|kan|ky|"
    "lieut|lt|ltd|maj|mar|md|messrs|mich|minn|mlle|mme|mo|mon|mont|mr|mrs|ms|mt|neb|nev|nov|oct|okla|penn|ph\\.d|pp|"
    "pres|prof|profs|pvt|rd|rep|reps|rev|sen|sens|sep|sept|sgt|spc|sr|st|ste|supt|tel|tenn|tex|thu|thurs|treas|tue|"
    "tues|univ|va|vs|vt|wed|wis|wm|wyo"
)
"""Words that keep a full stop behind them."""

_RULES = {
    "link": rf"(?:https?://|www\.)\S*[^\s.,;:!?'\"()\[\]{{}}]|{_LETTER}+(?:\.{_LETTER}+)+/\S*[^\W_]",
    "address": rf"[\w.+-]{{0,63}}\w@{WORD}(?:[.-]{WORD})*|[@#]{_LETTER}\w*",
    "tag": r"</?[a-z!?][^<>]*>",
    "smiley": r"[<>]?[:;=]'?-?(?:[()]|[dp](?!\w))",
    "brackets": r"[()\[\]{}]",
    "initials": rf"(?:{_LETTER}\.)+{_END}(?:(?<=\.{_LETTER}\.)(?:-{WORD})+)?",
    "abbreviation": rf"(?:{_ABBREVIATIONS})\.{_END}|(?:no|fig)\.(?=\s*\d)|{_LETTER}+\.(?=[,;:])",
    "dotted": rf"{_LETTER}[^\W_]*(?:\.{_LETTER}[^\W_]*)+(?:-{WORD})*",
    "negated": rf"(?:{WORD}-)*{_LETTER}+?(?=n['’]t{_END})",
    "negation": rf"n['’]t{_END}",
    "first_half": r"(?:can(?=not)|(?:gon|wan)(?=na)|got(?=ta)|(?:gim|lem)(?=me))(?=\w+\b(?!['-]))|'t(?=(?:is|was)\b)",
    "clitic": rf"['’](?:s|m|d|re|ve|ll){_END}",
    "decade": r"'\d\ds?\b(?!')",
    "elision": rf"['’]n(?:['’]|{_END})|'(?:em|til|cause){_END}|ol'{_END}",
    "contraction": rf"(?:[dl]['’]|o['’](?!s\b)|qu'|c'|n'){_LETTER}{{2,}}|(?:cap|ma|ne|e)['’](?:n|am|er)\b|y'(?=all)",
    "number": r"(?<!\w)[-+]\.?\d+(?:[.,:]\d+)*|\d+(?:[.,:]\d+)+|\.\d+(?:[.,:]\d+)*",
    "company": r"(?-i:[A-Z]+&[A-Z]+)\b",
    "language": r"[cf]\#|c\+\+",
    "word": rf"{WORD}(?:[-_/]{WORD})*",
    "run": r"[?!]{2,}|\*+|\#+|_+",
    "symbol": r"\S",
}
"""Patterns of tokens in the order in which they are tried."""

_TOKEN = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _RULES.items()), re.IGNORECASE)

_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_FRACTIONS = {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3"}
_INVISIBLE = {"\xad": "", "\u200b": " ", "\ufeff": " ", "\ufe0f": ""}
_REWRITTEN = _ENTITIES | _FRACTIONS | _INVISIBLE
_REWRITE = re.compile("|".join(map(re.escape, _REWRITTEN)))

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CURRENCIES = {"€": "$", "£": "#", "¢": "cents"}
_PUNCTUATION = frozenset(".,:;?!-–—―…\"'`’‘“”«»‹›")
"""Marks that do not count as tokens when they stand alone."""


def caption_tokens(caption: str) -> list[str]:
    """
    Split a caption into lower-case tokens without punctuation.

    The captioning field's scores are defined on the tokens of the Java program `PTBTokenizer` of Stanford CoreNLP
    3.4.1, from which `pycocoevalcap` 1.2 drops punctuation. These rules were written from what that program prints for
    given sentences; `docs/translation.md` lists where they are known to differ.

    Args:
        caption (`str`): A caption; line breaks are white space.

    Returns:
        `list[str]`: Its tokens.

    Example:

    ```python
    >>> caption_tokens("The man's dog isn't here (yet): it costs $5!")
    ['the', 'man', "'s", 'dog', 'is', "n't", 'here', '-lrb-', 'yet', '-rrb-', 'it', 'costs', '$', '5']
    ```
    """
    text = _REWRITE.sub(lambda found: _REWRITTEN[found[0]], caption)
    tokens = (_normalized(found[0], found.lastgroup) for found in _TOKEN.finditer(text))
    return [token for token in tokens if token]


def _normalized(token: str, rule: str | None) -> str:
    """Return a token as it is counted; empty for punctuation and for characters that are dropped."""
    if rule == "symbol":
        if token in _PUNCTUATION or ord(token) > 0xFFFF:  # such as emoji, which the Java program does not know
            return ""
        return _CURRENCIES.get(token, token)
    if rule in ("smiley", "brackets"):
        return "".join(_BRACKETS.get(character, character) for character in token).lower()
    if rule in ("clitic", "negation"):
        token = token.replace("’", "'")
    return token.lower()
