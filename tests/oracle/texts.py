"""200 texts of many kinds to tokenize."""

from __future__ import annotations

import random
from collections.abc import Mapping

_WORDS: Mapping[str, str] = {
    "English": "the measure of cloth and thread; don't we'll it's HE'S quantum Tailor",
    "numbers": "1 12 123 1234 12345 3.14 1,000,000 0xff 2026-11-24 50% $5",
    "European": "naïve Größe façade señor Łódź Ærø İstanbul żółć",
    "Cyrillic": "нитка мера ткань Москва Ўзбек",
    "Greek": "μέτρο ύφασμα Αθήνα",
    "Chinese": "我 想在 苹果 工作 天安门 人工智能",
    "Japanese": "東京 ひらがな カタカナ 日本語",
    "Korean": "한국어 서울 안녕하세요",
    "Arabic": "السلام عليكم שלום עולם हिन्दी ภาษาไทย",
    "emoji": "😀 🚀 👨‍👩‍👧‍👦 🇩🇪 ✅ ❤️",
    "code": "def f(x): return x**2; if(a!=b) {c+=1;} <html> foo_bar camelCase SELECT * \\n #include <a.h>",
    "signs": "... !!! ??? --- === ((( ))) [x] {y} ~~ `code` \" ' « » “quoted”",
}
_GAPS = (" ", "  ", "   ", "\n", "\n\n", "\t", " \n ", "\r\n", "", "")


def varied_texts() -> list[str]:
    """Words of one or several kinds with all sorts of gaps; the same on every machine."""
    drawn = random.Random(7)
    texts = list(_WORDS.values())
    kinds = [words.split() for words in texts]
    while len(texts) < 200:
        some = drawn.sample(kinds, drawn.randint(1, 4))
        words = [drawn.choice(drawn.choice(some)) for _ in range(drawn.randint(1, 25))]
        texts.append("".join(word + drawn.choice(_GAPS) for word in words))
    return texts
