"""Writes the questions that ship with Quantailor: `python -m tools.choices`; a test keeps the file so.

Each question is the beginning of a paragraph of the held-out text, and has to be told from three others what goes on in it:

1. Paragraphs are what empty lines divide; the words of one are what spaces and line breaks divide. Those of at least 36 words count.
2. Of n such paragraphs, the questions are taken from the numbers n * i // 300, for i from 0 to 299.
3. A question is the paragraph's first 24 words. Its right choice is the next 12 words; the others are the same words of the paragraphs a
   quarter, a half and three quarters of n further on, from the beginning again after the end.
4. The right choice is put before so many of the others as the first byte of the question's SHA-256 says, modulo 4.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
from pathlib import Path

from quantailor.analysis.evals.questions import Question

DATA = Path(__file__).parents[1] / "src" / "quantailor" / "data"
N_QUESTIONS = 300
N_BEFORE, N_AFTER = 24, 12
"""Words of a question, and of a choice."""


def questions(text: str) -> list[Question]:
    """The questions of a text."""
    paragraphs = [words for paragraph in text.split("\n\n") if len(words := paragraph.split()) >= N_BEFORE + N_AFTER]
    n = len(paragraphs)
    found = list[Question]()
    for number in range(N_QUESTIONS):
        place = n * number // N_QUESTIONS
        asked = " ".join(paragraphs[place][:N_BEFORE])
        right, *choices = (" ".join(paragraphs[(place + n * quarter // 4) % n][N_BEFORE : N_BEFORE + N_AFTER]) for quarter in range(4))
        answer = hashlib.sha256(asked.encode()).digest()[0] % 4
        choices.insert(answer, right)
        found.append(Question(asked, tuple(choices), (answer,)))
    return found


def lines(found: list[Question]) -> str:
    """Questions as JSON Lines."""
    rows = ({"question": each.text, "choices": each.choices, "answer": each.right[0]} for each in found)
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def binary(found: list[Question]) -> bytes:
    """Questions as llama-perplexity reads them."""

    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack("<I", len(data)) + data

    tasks = list[bytes]()
    for each in found:
        labels = [int(number in each.right) for number in range(len(each.choices))]
        listed = struct.pack("<I", len(labels)) + b"".join(map(text, each.choices)) + struct.pack(f"<{len(labels)}i", *labels)
        tasks.append(text(each.text) + 2 * listed)
    begin = 4 + 4 * len(tasks)
    places = [begin + sum(map(len, tasks[:number])) for number in range(len(tasks))]
    return struct.pack(f"<{1 + len(tasks)}I", len(tasks), *places) + b"".join(tasks)


def hellaswag(found: list[Question]) -> str:
    """Questions as llama-perplexity reads HellaSwag."""
    return "".join(f"{each.text}\n{each.right[0]}\n" + "".join(f"{choice}\n" for choice in each.choices) for each in found)


def winogrande(found: list[Question]) -> str:
    """Of each question a sentence that lacks two words, as llama-perplexity reads Winogrande: the right choice's, or those of the next one.

    Without those that its reader could not tell apart.
    """
    rows = list[str]()
    for each in found:
        right, other = ((each.choices[(each.right[0] + more) % 4]).split() for more in (0, 1))
        options = [" ".join(words[:2]) for words in (right, other)]
        sentence = f"{each.text} _ {' '.join(right[2:])}"
        if not set('",_') & set("".join(options)) and sentence.count("_") == 1 and '"' not in sentence and options[0] != options[1]:
            answer = 1 + len(rows) % 2
            rows.append(f'{len(rows)},"{sentence}",{",".join(options[:: 3 - 2 * answer])},{answer}\n')
    return "".join(rows)


def main() -> None:
    """Write them, or the same as llama-perplexity reads them."""
    parser = argparse.ArgumentParser(description="Write the questions that ship with Quantailor")
    parser.add_argument("--binary", type=Path, help="write them here in llama.cpp's format instead")
    parser.add_argument("--hellaswag", type=Path, help="or as HellaSwag's text")
    parser.add_argument("--winogrande", type=Path, help="or sentences made of them as Winogrande's table")
    places = parser.parse_args()
    found = questions((DATA / "heldout.txt").read_text(encoding="utf-8"))
    if places.binary is not None:
        places.binary.write_bytes(binary(found))
    elif places.hellaswag is not None:
        places.hellaswag.write_text(hellaswag(found), encoding="utf-8")
    elif places.winogrande is not None:
        places.winogrande.write_text(winogrande(found), encoding="utf-8")
    else:
        (DATA / "choices.jsonl").write_text(lines(found), encoding="utf-8")


if __name__ == "__main__":
    main()
