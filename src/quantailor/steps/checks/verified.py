"""What a verdict must not keep quiet about: another model's file, a text that is not held out, a base that is quantized itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quantailor.analysis.texts import Part, parts_of, read_text
from quantailor.errors import AlreadyQuantizedError, CorpusError, StrategyMismatchError
from quantailor.evidence.grounds import text_place
from quantailor.evidence.strategies import embedded_strategy
from quantailor.ggml import library
from quantailor.models.source import ModelSource
from quantailor.present import words
from quantailor.records import Strategy
from quantailor.session import CALIBRATION_TEXT, OpenedModel, Workspace

_MAY_DIFFER = ("output.weight", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that a file may have or lack beside its base: tied embeddings, and tables that are computed from the metadata."""
PASSAGES, PASSAGE_LENGTH = 500, 64
"""How many passages of a text are looked for in another one, and their characters: no two works share so many in a row by chance."""
_DOUBT = "probably"
_TOKENS = ("tokenizer.ggml.model", "tokenizer.ggml.tokens")


def require_same_model(file: ModelSource, base: ModelSource) -> None:
    """Raise StrategyMismatchError where a file was not made from such a base: architecture, tensors, vocabulary."""
    remedy = "Give --base the model that the file was made from"
    if file.architecture != base.architecture:
        message = f"{file.location} is of the architecture {file.architecture}, and its base {base.location} of {base.architecture}"
        raise StrategyMismatchError(message, remedy=remedy)
    ours, theirs = ({tensor.name: tensor.shape for tensor in source.tensors} for source in (file, base))
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(name), theirs.get(name)
        if here != there and not (name in _MAY_DIFFER and None in (here, there)):
            said = (" x ".join(map(str, shape)) if shape else "missing" for shape in (here, there))
            raise StrategyMismatchError(
                f"{file.location} is not made from {base.location}: {name} is {next(said)} here and {next(said)} there", remedy=remedy
            )
    for key in _TOKENS:
        values = [source.metadata[key].value if key in source.metadata else None for source in (file, base)]
        if values[0] != values[1]:
            message = f"{file.location} is not made from {base.location}: {key} differs, so that they read text differently"
            raise StrategyMismatchError(message, remedy=remedy)


def other_words(file: ModelSource, base: ModelSource) -> list[str]:
    """What a file says otherwise of text than its base, in a sentence: templates, special tokens, how text is split."""
    keys = sorted({key for source in (file, base) for key in source.metadata if key.startswith("tokenizer.")})
    differing = [key for key in keys if file.metadata.get(key) != base.metadata.get(key)]
    if not differing:
        return []
    name, named = Path(file.location).name, words.listed(differing)
    return [
        f"{name} has another {named} than its base: programs may treat text differently with it; here all files read the base's tokens."
    ]


def require_presets(base: ModelSource) -> None:
    """Raise AlreadyQuantizedError where llama.cpp's presets cannot be made from a base, which is quantized itself."""
    if quantized := library.quantized_types(base.tensors):
        message = f"the base {base.location} is quantized itself ({', '.join(quantized)}), and presets cannot be made from it"
        raise AlreadyQuantizedError(message, remedy='Give --base the 16-bit model, or compare with no preset: --against ""')


def reservations(workspace: Workspace, model: OpenedModel, file: Path, text: Path) -> list[str]:
    """What limits the worth of a verdict on a text, one sentence each. Raises CorpusError where the text cannot be read."""
    found = []
    if quantized := library.quantized_types(model.source.tensors):
        found.append(
            f"The base {model.path.name} is itself quantized ({', '.join(quantized)}): divergences are from it, not from the 16-bit model."
        )
    embedded = embedded_strategy(workspace, file)
    if embedded is not None and embedded.model_fingerprint != model.fingerprint:
        made_from = f"{embedded.model_name} ({embedded.model_fingerprint[:12]})".lstrip()
        found.append(f"The file says that it was made from {made_from}, and {model.path.name} is another model ({model.fingerprint[:12]}).")
    for part in parts_of(text):
        content, sha256 = part.read()
        for what, digests in _seen(workspace, model, embedded).items():
            seen = _texts(workspace, digests)
            if sha256 in seen:
                found.append(_not_held_out(part, what))
                continue
            shares = {place.name: _shared(content, read_text(place)[0]) for place in seen.values() if place is not None and place.is_file()}
            found += [
                f"{words.percent(share, 0)} of {part.path.name} is also in {name}, from which the file's {what} computed: "
                "that much is not held out, and the file looks too good."
                for name, share in shares.items()
                if share
            ]
    return found


def require_held_out(workspace: Workspace, model: OpenedModel, file: Path, text: Path) -> None:
    """Raise CorpusError where a file's importance matrix, covariances or probes are known to be of that text, or of one in it."""
    embedded = embedded_strategy(workspace, file)
    if embedded is None:
        return
    for part in parts_of(text):
        _, sha256 = part.read()
        for what, digests in _seen(workspace, model, embedded).items():
            if _DOUBT not in what and sha256 in _texts(workspace, digests):
                raise CorpusError(_not_held_out(part, what).removesuffix("."), remedy="Verify it on a text that it has not seen")


def require_apart(calibration: Path, heldout: Path) -> None:
    """Raise CorpusError where a text is to be held out and calibrated on."""
    seen = {part.read()[1] for part in parts_of(calibration)}
    for part in parts_of(heldout):
        if part.read()[1] in seen:
            message = f"{part.path.name} would be calibration text and held-out text at once: the file would look too good"
            raise CorpusError(message, remedy="Give another --verify-text, or --no-verify")


def _not_held_out(part: Part, what: str) -> str:
    return f"{part.path.name} is the text from which the file's {what} computed: it is not held out, and the file looks too good."


def _texts(workspace: Workspace, digests: Iterable[str]) -> dict[str, Path | None]:
    """Texts by the SHA-256 of their bytes, with where they lie: those of mixes and conversations in place of the whole."""
    found = dict[str, Path | None]()
    for corpus in sorted(digests):
        places = workspace.store.locations("part", corpus)
        found |= {read_text(place)[1]: place for place in places if place.is_file()} if places else {corpus: text_place(workspace, corpus)}
    return found


def _shared(text: str, other: str) -> float:
    """The share of a text that is word for word in another one, 0 to 1, from passages all over it; line breaks do not count."""
    text, other = (" ".join(each.split()) for each in (text, other))
    n_passages = max(1, min(PASSAGES, len(text) // PASSAGE_LENGTH))
    starts = [round(index * max(0, len(text) - PASSAGE_LENGTH) / max(1, n_passages - 1)) for index in range(n_passages)]
    return sum(text[start : start + PASSAGE_LENGTH] in other for start in starts) / n_passages


def _seen(workspace: Workspace, model: OpenedModel, embedded: Strategy | None) -> dict[str, set[str]]:
    """The texts that a file was made with, by their SHA-256, as the strategy in it and the home tell."""
    store = workspace.store
    if embedded is None:
        # Another program's file does not tell; the texts of this model's importance matrices in this home are the likely ones.
        return {f"importance matrix was {_DOUBT}": store.imatrix_texts(model.fingerprint)}
    inputs = embedded.inputs
    matrices, probes = ({str(inputs[key])} if inputs.get(key) else set() for key in ("imatrix_text_sha256", "probe_text_sha256"))
    if inputs.get("imatrix"):
        matrices |= store.imatrix_texts(model.fingerprint, str(inputs["imatrix"]))
    if inputs.get("probes"):
        probes |= {key.corpus for key in store.swap_runs(model.fingerprint) if key.run == inputs["probes"]}
    if not (matrices or probes) and (inputs.get("imatrix") or inputs.get("probes")):
        return {f"importance matrix or probes were {_DOUBT}": {read_text(CALIBRATION_TEXT)[1]}}
    covariances = store.covariance_texts(model.fingerprint, str(inputs["covariances"])) if inputs.get("covariances") else set()
    return {"importance matrix was": matrices, "input covariances were": covariances - matrices, "probes were": probes}
