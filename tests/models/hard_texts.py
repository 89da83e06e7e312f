"""Texts on which tokenizers differ: digits, runs of spaces and newlines, scripts, emoji, code, contractions."""

import random

import tiny

_PIECES = [
    *("0", "7", "12", "123", "1234", "3.14", "1,234.50", "1e-5", "0x1F", "²", "½", "٣", "१२", "Ⅷ"),
    *(" ", "  ", "   ", "    ", "        ", "\t", "\t\t", " \t ", "\u00a0", "\u3000", "\u200b", "\u2009"),
    *("\n", "\n\n", "\n\n\n", "\r\n", "\r", " \n", "\n ", " \n \n", "\n    "),
    *("Hello", "world", "the", "Rust", "naïve", "Straße", "déjà", "e\u0301", "ﬁ", "İ", "ǅ", "camelCase", "Zebra"),
    *(
        "Привет",
        "мир",
        "你好",
        "世界",
        "こんにちは",
        "カタカナ",
        "안녕",
        "नमस्ते",
        "สวัสดี",
        "שלום",
        "مرحبا",
        "ქართული",
        "ཀ",
    ),
    *("🙂", "👩‍👩‍👧", "🇩🇪", "👍🏽", "❤️", "𝕏", "€", "£", "™", "→", "∑", "…", "—", "«»"),
    *("it's", "I'LL", "can't", "we've", "'S", "'re", "O'Brien", "'''", "''", "'", "’s"),
    *(
        "x=1;",
        "y+=2",
        "==",
        "!=",
        "->",
        "//",
        "/* a_b */",
        "{}",
        "[0]",
        "(a, b)",
        "$",
        "#",
        "@",
        "`",
        "~",
        "^",
        "|",
        "<>",
        "\\",
    ),
    *("def f(x):", "return", "</div>", "https://a.b/c?d=1&e=2", "...", "?!", ".", ",", ":", "%", "_", "__init__"),
    *tiny.SPECIAL,
]


def hard_texts(count: int, seed: int = 0) -> list[str]:
    """`count` texts, the same for the same seed. Some begin or end with white space; none is empty."""
    draw = random.Random(seed)
    return ["".join(draw.choices(_PIECES, k=draw.randint(1, 14))) for _ in range(count)]
