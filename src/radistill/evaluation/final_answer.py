r"""The answer that a response commits itself to: a number, or words.

The rules, in their order:

1. What a response has thought (`<think>`) is not said. A further question ends the text, once a number has been said: a
   model without turns goes on asking itself.
2. A mark goes before everything else: `<answer>` or `[ANSWER]` tags, `####` before a number, `\boxed{}`, "the answer
   is". The strongest one counts, at its last place. `####` before words is a heading, and so is `#### 2. Total` above a
   text.
3. Behind a mark the first sentence with a number counts, without its reasons ("because …") and asides in brackets.
   Without a mark it is the last sentence with a number, unless that says that there is no answer.
4. The value is what follows the last `=` or "is" with a number behind it; a sum that is not worked out is none.
5. Of several numbers it is the first behind a mark, else the last; numbers that only say when, for how many, or at what
   price ("in 5 days"), or compare ("5 more"), come after all others.
"""

import re
import unicodedata
from collections.abc import Callable
from itertools import islice, pairwise

_THOUGHT_ENDS = ("</think>", "</thinking>", "[/THINK]")  # the prompt may have begun it
_TAG = re.compile(r"<answer>(.*?)</answer>|\[answer\](.*?)\[/answer\]", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_BOX = re.compile(r"\\f?box(?:ed)?\s*(?=[{0-9])")
_ANSWER_IS = re.compile(
    r"\banswer(?:\s+to\s+(?:the|this|your)\s+\w+)?(?:,[^,.\n]{1,30},)?"  # "the answer to this problem, then,"
    r"(?:[*_\s\"]*(?:(?:is|equals|comes to|(?:would|should|will|must) be)\b(?!\s+not\b)|[:=|\u2013\u2192])|[*_ \t]*\n)"
    r"(?:[\s*_:=|`>$]|\\[\[(])*(?=(\S[^\n]*))",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"\n[ \t]*[#*\[<|> ]*(?:(?:next|another|new|second)\s+)?"
    r"(?:question|problem|exercise|inst(?:ruction)?|user|human|q)\b"
    r"(?:[ \t]*\d*[\]*]*[:.]|[ \t]*\d+\**[ \t]*(?=\n)|\|>|\])",
    re.IGNORECASE,
)
_FURTHER, _NEAR = 10, 40  # questions and characters to look at: no text shall take time without end
_STEP = re.compile(r"\b(?:step|part)\s*\d+", re.IGNORECASE)
_HEADING = re.compile(r"\d+[.):]\s+[*_]*[^\W\d]")
_REFUSAL = re.compile(
    r"\b(?:can(?:no|')t|can not|could(?: no|n')t|(?:unable|impossible|not able|not possible|not enough|insufficient))\b"
    r"(?:\W+\w+){0,4}?\W+(?:answer|solve|say|tell|know|determine|calculate|compute|information|data)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[\u3002\uff01\uff1f\u061f\u06d4\u0964\n]+")
_ASIDE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_REASON = re.compile(r"\b(?:which|because|since|as|where|so)\b", re.IGNORECASE)
_EQUALS = re.compile(r"[=≈]|\\approx|\b(?:is|are|was|were|equals?|makes?|gives?|costs?|totals?)\b", re.IGNORECASE)
_OPERATOR = re.compile(r"(?:[-+*/×÷·^]|\\times|\\cdot|\\div|\bx)[\s($]*$")
_CIRCUMSTANCE = re.compile(
    r"\b(?:in|after|within|during|per|every|each|over|out of|than|from|since|before|at|with|if|when|the|these|those|"
    r"for(?!\s*[$£€₹¥]|\s*\S+\s(?:dollars?|cents?|euros?|pounds?)\b))\s*[*_$£€₹¥]*$",
    re.IGNORECASE,
)
_COMPARISON = re.compile(r"\s*(?:more|fewer|less|times)\b", re.IGNORECASE)
_IRRATIONAL = re.compile(r"\\sqrt|√|\\pi\b|π")

# What stands before a digit within a word, as in "x12"; scripts without spaces are not among them.
_IN_WORD = r"(?<![0-9A-Za-z\u00c0-\u024f\u0370-\u052f])"
_NUMBER = re.compile(
    rf"(?:{_IN_WORD}(?<![.)\]])([-+]))?[$£€₹¥]?"  # a minus after a digit, letter or closing bracket is a subtraction
    rf"{_IN_WORD}(?<![0-9]:)(?<!\.)"  # "8:30" is a time or a ratio
    r"(?>(?P<whole>[0-9]{1,6})[ -](?P<part>[0-9]{1,6}/[0-9]{1,6})"  # 2 1/2
    r"|(?P<european>[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+|[0-9]{1,3}(?:\.[0-9]{3}){2,})(?![.,]?[0-9])"  # 1.234,56
    r"|(?P<grouped>[1-9][0-9]{0,2}(?:,[0-9]{2,3})*,[0-9]{3}(?:\.[0-9]+)?)(?!,?[0-9])"  # 1,234.5 and 1,23,456
    r"|(?P<comma>(?<![0-9],)[0-9]+,[0-9]+)(?!,?[0-9])"  # 12,5
    r"|(?P<plain>[0-9]+(?:\.[0-9]+)?|\.[0-9]+))"
    r"(?P<exponent>(?:[eE][-+]?[0-9]+)?)(?P<divisor>(?:\s*/\s*[0-9]+(?:\.[0-9]+)?(?!/))?)(?!:[0-9])"
)
_SAME_NUMBER: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\\(?:text|math|operatorname)[a-z]*\s*\{([^{}]*)\}", r"\1"),
    (r"(?<=[0-9])(?=\\[dt]?frac|[¼-¾⅐-⅞])", " "),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2"),
    (r"\\[dt]?frac\s*([0-9])\s*([0-9])", r"\1/\2"),
    ("[¼-¾⅐-⅞]", lambda found: unicodedata.normalize("NFKC", found[0])),
    ("\u2044", "/"),
    (r"\\(?=[$%])", ""),
    (r"\{,\}", ","),
    (r"(?<=[A-Za-z])\^\{?[0-9]\}?", ""),  # of a unit
    # Signs, first of all those that group digits by thousands.
    (r"(?<=[0-9])(?:\\[,;!: ]|['_\u00a0\u2009\u202f\u2019\u066c])(?=[0-9]{3}(?![0-9]))", ""),
    (r"(?<=[0-9])\uff0c(?=[0-9])", ","),
    (r"(?<=[0-9])[\u066b\uff0e](?=[0-9])", "."),
    (r"[\u2212\u2013\uff0d](?=[$£€₹¥.0-9])", "-"),
    (r"\b(?:negative|minus)\s+(?=[$£€₹¥]?[0-9])", "-"),
    (r"(?<![0-9])(?:\*\*|__)|(?:\*\*|__)(?![0-9])|`", ""),  # emphasis, and no power
    (r"(?<=[0-9])\s*(?:[×*·x]|\\times|\\cdot)\s*10\s*\^\s*\{?\s*([-+]?[0-9]+)\s*\}?", r"e\1"),
    (r"(?<![0-9.^])10\s*\^\s*\{?\s*([-+]?[0-9]+)\s*\}?", r"1e\1"),
)


def extract_answer(text: str) -> str | None:
    """The answer that a response commits itself to.

    Returns:
        A number as plain digits, without grouping, currency or percent signs, perhaps with an exponent or a divisor;
        or words; None if there is neither a mark nor a number.
    """
    text = _first_problem(text)
    marked = _marked(text)
    if marked is None:
        return _number(text, is_marked=False) or _headed(text)
    number = _number(marked, is_marked=True)
    if number is None and (symbol := re.fullmatch(r"\W*([A-Za-z])\W*", marked)):
        values = re.findall(rf"\b{symbol[1]}\s*=[^\n]*", text)
        number = _number(values[-1], is_marked=True) if values else None
    return number or marked


def extract_words(text: str) -> str:
    """The answer in words: what stands at a mark, else behind the last `####`, else the whole text."""
    problem = _first_problem(text)
    return _marked(problem) or _headed(problem) or text.strip()


def spoken(text: str) -> str:
    """A response without what it has thought before; all of it, if nothing is said after that."""
    for end in _THOUGHT_ENDS:
        said = text.rpartition(end)[2]
        text = said if said.strip() else text
    return text


def plain_number(text: str) -> str | None:
    """The digits of a text that is one number and nothing else; None if it is not."""
    match = _NUMBER.fullmatch(text.strip().rstrip("%").rstrip("."))
    return _digits(match) if match else None


def _first_problem(text: str) -> str:
    text = spoken(text)
    for further in islice(_QUESTION.finditer(text), _FURTHER):
        before = text[: further.start()]
        if _marked(before) or (_NUMBER.search(_STEP.sub("", _plain(before))) and not _TAG.search(text)):
            return before
    return text


def _marked(text: str) -> str | None:
    """What stands at the strongest mark of an answer, at its last place; None without any.

    Only what stands in tags is exactly what the response wrote; elsewhere emphasis and a full stop are taken off.
    """
    if tagged := [content for found in _TAG.findall(text) if (content := "".join(found).strip())]:
        return str(tagged[-1])
    hashes = [found[1] for found in _HASHES.finditer(text) if _is_number(found)]
    for contents in (hashes, _boxed(text), _ANSWER_IS.findall(text)):
        if found := [words for content in contents if (words := _trimmed(content))]:
            return found[-1]
    return None


def _headed(text: str) -> str | None:
    headings = _HASHES.findall(text)
    return _trimmed(headings[-1]) or None if headings else None


def _trimmed(words: str) -> str:
    return words.strip("*_$ \t").rstrip(".").rstrip("*_$ \t")


def _is_number(hashes: re.Match[str]) -> bool:
    content = _plain(hashes[1]).lstrip(" \t=~<[({*_\\")
    is_above_text = hashes.string[hashes.end() :].strip() != ""
    return _NUMBER.match(content) is not None and not (_HEADING.match(content) and is_above_text)


def _boxed(text: str) -> list[str]:
    r"""The last content of a `\boxed{}` that is not blank, braces within it included."""
    for box in reversed(list(_BOX.finditer(text))):
        depth, position = 0, box.end()
        while position < len(text):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            position += 1
            if depth <= 0 and not (position < len(text) and text[box.end()] != "{" and text[position].isdigit()):
                break
        content = text[box.end() : position].removeprefix("{")
        content = content.removesuffix("}") if depth == 0 else content
        content = re.sub(r"\\(?:text|math)[a-z]*\s*\{([^{}]*)\}", r"\1", content)
        if content.strip():
            return [content]
    return []


def _plain(text: str) -> str:
    """The same numbers in ASCII digits, with a hyphen as minus and a point before the decimals."""
    text = "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text)
    for pattern, replacement in _SAME_NUMBER:
        text = re.sub(pattern, replacement, text)
    return text


def _number(text: str, is_marked: bool) -> str | None:
    plain = _plain(text)
    if is_marked:
        plain = re.sub(r"(?<![0-9])([0-9]{1,3}(?: [0-9]{3})+)(?![0-9])", lambda found: found[1].replace(" ", ""), plain)
    outside = _ASIDE.sub(lambda aside: f"({' ' * (len(aside[0]) - 2)})", plain)
    sentences = [part for part in _SENTENCE_END.split(outside) if _NUMBER.search(part)]
    if not sentences:  # all of them stand in brackets
        sentences = [part for part in _SENTENCE_END.split(plain) if _NUMBER.search(part)]
    if not sentences:
        return None
    if is_marked:
        return _committed(sentences[0], first=True)
    if _REFUSAL.search(outside, outside.rfind(sentences[-1])):
        return None
    return _committed(sentences[-1], first=False)


def _committed(sentence: str, first: bool) -> str | None:
    """The number that a sentence comes to."""
    number = _NUMBER.search(sentence)
    assert number
    if first and (reason := _REASON.search(sentence, number.end())):
        committed = _come_to(sentence[: reason.start()], first)
        if committed is not None:  # "4 * 5, which is 20" has its number behind
            return committed
    return _come_to(sentence, first)


def _come_to(sentence: str, first: bool) -> str | None:
    sides, start = [], 0
    for sign in [*_EQUALS.finditer(sentence), None]:
        end = sign.start() if sign else len(sentence)
        numbers = list(_NUMBER.finditer(sentence, start, end))
        if numbers and not (_is_sum(numbers) or _IRRATIONAL.search(sentence, start, end)):
            sides.append(numbers)
        start = sign.end() if sign else end
    which = 0 if first else -1
    for side in reversed(sides):
        if told := [found for found in side if not _is_circumstance(found)]:
            return _digits(told[which])
    if sides:
        return _digits(sides[-1][which])
    return None if first else _digits(list(_NUMBER.finditer(sentence))[-1])


def _is_sum(numbers: list[re.Match[str]]) -> bool:
    """Whether a sign of arithmetic stands between two of them."""
    return any(
        _OPERATOR.search(one.string, one.end(), other.start())
        or (other[1] and not one.string[one.end() : other.start()].strip())
        for one, other in pairwise(numbers)
    )


def _is_circumstance(number: re.Match[str]) -> bool:
    text, start = number.string, max(0, number.start() - _NEAR)
    if text[start : number.start()].endswith(("=", "= ")):
        return False
    return bool(_CIRCUMSTANCE.search(text, start, number.start()) or _COMPARISON.match(text, number.end()))


def _digits(number: re.Match[str]) -> str:
    if number["whole"]:
        above, below = map(int, number["part"].split("/"))
        value = f"{int(number['whole']) * below + above}/{below}"
    elif number["european"]:
        value = number["european"].replace(".", "").replace(",", ".")
    else:
        value = number["plain"] or (number["grouped"] or "").replace(",", "") or number["comma"].replace(",", ".")
    divisor = "".join(number["divisor"].split())
    return ("-" if number[1] == "-" else "") + value + number["exponent"] + divisor
