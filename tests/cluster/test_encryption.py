"""Schedulers that speak TLS, as Dask's own settings say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from commands import Command
from real_workers import cluster, result, start

from small_base import write_small_base

dask_config = pytest.importorskip("dask.config")  # comes with distributed, which is what we ask for
KEYS = [f"distributed.comm.tls.{name}" for name in ("ca-file", "client.cert", "client.key")]
VARIABLES = ["CA_FILE", *(f"{role}__{kind}" for role in ("CLIENT", "WORKER", "SCHEDULER") for kind in ("CERT", "KEY"))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_base(tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.mark.parametrize(
    ("settings", "address", "says"),
    [
        ({}, "tls://127.0.0.1:1", "tls://127.0.0.1:1 needs certificates, and Dask's settings name none"),
        (dict.fromkeys(KEYS, "/no/such.pem"), "tls://127.0.0.1:1", "Dask's TLS settings cannot be used"),
        ({"distributed.comm.require-encryption": True}, "tcp://127.0.0.1:1", "Dask's settings require encryption"),
        ({"distributed.comm.require-encryption": True}, "local:1", "local:1 needs certificates"),
    ],
)
def test_settings_that_do_not_fit_are_named_before_anything_connects(
    run: Command, base: Path, settings: dict[str, object], address: str, says: str
) -> None:
    with dask_config.set(settings):
        line = run("measure", base, "--types", "Q8_0", "--cluster", address).error_line
    assert says in line
    assert "Set DASK_DISTRIBUTED__COMM__TLS__CA_FILE" in line or "as tls://HOST:PORT" in line


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="nothing here makes certificates")
def test_a_scheduler_with_certificates_is_one_like_any(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1")
    subprocess.run(["openssl", *new, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    for name in VARIABLES:
        monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{name}", str(key if name.endswith("KEY") else certificate))
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION", "True")
    with cluster(tmp_path / "cluster", 1, protocol="tls") as running:
        found = result(start(tmp_path / "home", "measure", base, "--types", "Q8_0", "--cluster", running.address))
        assert found["n_tensors"] == 16
        monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TLS__CA_FILE", str(key))
        refused = start(tmp_path / "home", "measure", base, "--types", "Q4_K", "--cluster", running.address)
        assert "Dask's TLS settings cannot be used" in refused.communicate(timeout=60)[1]
