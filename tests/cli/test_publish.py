"""`publish` against a small hub: what is sent and what stays here, once, and again after an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from commands import Command, validate
from hub_server import HubServer

from quantailor.models.hub.publishing import Place

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""huggingface_hub hands files to httpx in an older way."""
CARD = b"---\nlicense: mit\nbase_model: org/original\n---\n# Model\n"
FILES: dict[str, bytes] = {
    "Model-Q4_K_M.gguf": b"GGUF, the fourth",
    "Model-4.02bpw-Q3_K_M.gguf": b"GGUF, another one",
    "README.md": CARD,
    "ladder.png": b"a picture",
    "strategies/Q4_K_M.yaml": b"types: {}",
    "recipe.yaml": b"model: ../../home/someone/private/Model\nsizes: [Q4_K_M]\nfile: ../secret/notes.txt\n",
}
KEPT_BACK = {"base.gguf": b"GGUF, the base", "ladder.json": b"{}", "notes.txt": b"mine", "verdicts/Model.json": b"{}"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `make --sizes` leaves, in few bytes, and files that are nobody else's business."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the small hub takes large files the older way
    place = tmp_path / "out"
    for name, data in {**FILES, **KEPT_BACK}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def test_a_dry_run_says_what_would_be_sent_and_asks_nobody(hub: HubServer, run: Command, folder: Path) -> None:
    outcome = run("publish", folder, "--repo", "me/model", "--dry-run", "--json")
    validate(outcome.out)
    assert {file["name"] for file in outcome.result["files"]} == set(FILES)
    assert {file["state"] for file in outcome.result["files"]} == {"to be sent"}
    assert outcome.result["notes"] == []
    assert hub.asked == []
    assert "nothing was sent" in run("publish", folder, "--repo", "me/model", "--dry-run").out


def test_a_directory_becomes_a_repository_and_is_sent_once(hub: HubServer, run: Command, folder: Path) -> None:
    outcome = run("publish", folder, "--repo", "me/model", "--private", "--json")
    validate(outcome.out)
    assert {file["state"] for file in outcome.result["files"]} == {"new"}
    repo = hub.repos["me/model"]
    assert repo.private
    assert repo.files.keys() == FILES.keys()
    assert {name: data for name, data in repo.files.items() if name != "recipe.yaml"} == {
        name: data for name, data in FILES.items() if name != "recipe.yaml"
    }
    assert b"model: Model\n" in repo.files["recipe.yaml"]
    assert b"file: notes.txt\n" in repo.files["recipe.yaml"]
    sent = len([asked for asked in hub.asked if asked.method == "PUT"])
    again = run("publish", folder, "--repo", "me/model", "--json").result
    assert {file["state"] for file in again["files"]} == {"there already"}
    assert len([asked for asked in hub.asked if asked.method == "PUT"]) == sent == 2
    assert {job["title"] for job in run("jobs", "--json").result} == {"out -> me/model"}


def test_an_interrupted_upload_goes_on(hub: HubServer, run: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, sent = Place.commit, list[str]()

    def breaking(place: Place, files: Mapping[str, Path], message: str) -> None:
        if len(sent) == 1:
            sent.append("nothing")
            raise KeyboardInterrupt
        sent.extend(files)
        commit(place, files, message)

    monkeypatch.setattr(Place, "commit", breaking)
    assert run("publish", folder, "--repo", "me/model").code != 0
    assert hub.repos["me/model"].files.keys() == {"Model-Q4_K_M.gguf"}
    assert run("publish", folder, "--repo", "me/model").code == 0
    assert hub.repos["me/model"].files.keys() == FILES.keys()
    assert sent.count("Model-Q4_K_M.gguf") == 1


def test_what_others_put_there_is_not_replaced(hub: HubServer, run: Command, folder: Path) -> None:
    hub.add("me/model", {"README.md": b"by hand", "other.gguf": b"theirs"})
    line = run("publish", folder, "--repo", "me/model").error_line
    assert "me/model has another README.md. Give --force to replace it" in line
    assert hub.repos["me/model"].files == {"README.md": b"by hand", "other.gguf": b"theirs"}
    assert run("publish", folder, "--repo", "me/model", "--force").code == 0
    assert hub.repos["me/model"].files["README.md"] == CARD
    assert hub.repos["me/model"].files["other.gguf"] == b"theirs"


def test_tokens_follow_the_rules_of_downloads(
    hub: HubServer, run: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(hub.user("no-permission"))
    line = run("publish", folder, "--repo", "me/model", "--token-file", tmp_path / "token").error_line
    assert "the token (--token-file) may not write to me/model" in line
    monkeypatch.delenv("HF_TOKEN")
    line = run("publish", folder, "--repo", "me/model").error_line
    assert "uploading to me/model needs a token with write access, and you are not logged in. Run `hf auth login`" in line
    assert "me/model" not in hub.repos
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert run("publish", folder, "--repo", "me/model").code == 0


def test_what_lacks_a_card_files_or_a_name_is_told(hub: HubServer, run: Command, folder: Path, tmp_path: Path) -> None:
    assert "'model' is not the name of a repository" in run("publish", folder, "--repo", "model", "--dry-run").error_line
    (folder / "README.md").write_bytes(b"# no front matter\n")
    (folder / "Model-Q4_K.gguf").write_bytes(b"GGUF")
    notes = run("publish", folder, "--repo", "me/model", "--dry-run", "--json").result["notes"]
    assert notes[0] == "The card's front matter names no licence and no original model; the hub shows what it names."
    assert notes[1] == "The hub's list does not show the type of Model-Q4_K.gguf: its name ends in no preset's."
    for head in ("license: null\nbase_model: [null, 3]", "license: {a: 1}\nbase_model: ''", "license: 2024-02-30"):
        (folder / "README.md").write_text(f"---\n{head}\n---\n# A model\n", encoding="utf-8")
        assert run("publish", folder, "--repo", "me/model", "--dry-run", "--json").result["notes"] == notes
    (folder / "README.md").unlink()
    line = run("publish", folder, "--repo", "me/model").error_line
    assert f"{folder} has no card (README.md). Write one: `quantailor card {folder}" in line
    assert "holds no GGUF file to publish" in run("publish", tmp_path / "nowhere", "--repo", "me/model").error_line
    assert hub.asked == []
