"""No secret leaves the process in a text, whoever wrote that."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import make_scene, random_pixels

from tileseg.base.redact import Redacted, redact

ROOT = Path(__file__).parents[1]
CANARY = "Zq7cAnArY9xK2"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIA" + "ABCDEFGH12345678",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}/secret+key=",
    "AWS_SESSION_TOKEN": f"{CANARY}-session",
    "AZURE_STORAGE_ACCOUNT_KEY": f"{CANARY}-azure",
    "AZURE_STORAGE_SAS_TOKEN": f"sv=1&sig={CANARY}",
    "GOOGLE_SERVICE_ACCOUNT_KEY": f'{{"private_key": "{CANARY}"}}',
    "RAY_AUTH_TOKEN": f"{CANARY}-ray-token-that-is-long-enough-0123456789",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/a.tif?X-Amz-Signature=CANARY", "https://h/a.tif?[hidden]"),
        ("https://user:CANARY@h:8443/a.tif", "https://[hidden]@h:8443/a.tif"),
        ("'https://CANARY@h/a?CANARY#CANARY'.", "'https://[hidden]@h/a?[hidden]'."),
        ("s3://b/a.tif?versionId=CANARY, no", "s3://b/a.tif?[hidden] no"),
        ("proxy HTTP://a:CANARY@proxy:80", "proxy HTTP://[hidden]@proxy:80"),
        ("key AKIAABCDEFGH12345678.", "key [hidden]."),
        ("https://h/a.tif and b?c@d", "https://h/a.tif and b?c@d"),
        ("/data/a?b@c.tif: no", "/data/a?b@c.tif: no"),
        ("a\x1b[2J\x9bb\rc\td", "a?[2J?b?c\td"),
    ],
)
def test_what_is_shown_of_a_text(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_of_the_environment_is_never_shown(monkeypatch, name):
    monkeypatch.setenv(name, SECRETS[name])

    assert redact(f"<{SECRETS[name]}>") == "<[hidden]>"


def test_what_is_no_secret_is_shown(monkeypatch):
    for name in ("AWS_REGION", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.setenv(name, "some-value-that-is-long")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a")  # else every a would be hidden

    assert redact("a some-value-that-is-long") == "a some-value-that-is-long"


@given(st.dictionaries(st.text(), st.text()))
def test_a_document_stays_one(values):
    """What is redacted as a text is still JSON with the same keys or fewer letters."""
    urls = {"href": "https://a:b@h/c?d=e", **values}

    assert isinstance(json.loads(redact(json.dumps(urls))), dict)


@pytest.mark.parametrize("part", ["a.", "a://", "a@", "://a?", "AKIA"])
def test_a_long_text_takes_no_longer_than_its_length(part):
    """A file may have a band of such a name, and every name is told."""
    start = process_time()
    redact(part * 300_000)

    assert process_time() - start < 5


def test_a_traceback_is_redacted_too():
    try:
        int(f"https://h/a?sig={CANARY}")
    except ValueError:
        record = logging.LogRecord(
            "x", logging.ERROR, "x", 1, "y", None, sys.exc_info()
        )

    text = Redacted("%(message)s").format(record)

    assert "https://h/a?[hidden]" in text
    assert "Traceback" in text
    assert CANARY not in text


def leaks(folder):
    """Return the files below a folder in which the canary is, or a key's id."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if CANARY.encode() in data or SECRETS["AWS_ACCESS_KEY_ID"].encode() in data:
                found.append(str(path))
    return found


@pytest.mark.parametrize(
    "engine", ["local", pytest.param("ray", marks=pytest.mark.slow)]
)
def test_no_byte_that_a_job_leaves_has_a_secret(model_path, tmp_path, engine):
    """Outputs, work, streams and Ray's session, with everything told that can be."""
    scene = make_scene(tmp_path / "scene.tif", random_pixels(100, 110))
    session = Path("/tmp", f"tr{os.getpid()}")  # noqa: S108  (sockets' names are short)
    (session / "ray").mkdir(parents=True)
    environment = {
        **os.environ,
        **SECRETS,
        "PYTHONPATH": str(ROOT),
        "CPL_DEBUG": "ON",
        "CPL_CURL_VERBOSE": "YES",
        "CPL_LOG": str(tmp_path / "cpl.log"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(session),
        "HTTPS_PROXY": f"http://user:{CANARY}@127.0.0.1:9",
    }
    job = [sys.executable, str(ROOT / "jobs" / "segment.py"), "-vv"]
    job += ["--model", str(model_path), "--engine", engine, "--polygons", "gpkg"]
    missing = f"https://user:{CANARY}@127.0.0.1:9/a.tif?X-Amz-Signature={CANARY}"
    config = tmp_path / "job.toml"
    config.write_text("shard = 96\nkeep_work = true\n")

    answers = [
        subprocess.run(
            [*job, "--config", str(config), "--input", name, "--output", str(out)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for name, out in ((str(scene), tmp_path / "a"), (missing, tmp_path / "b"))
    ]

    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[1].returncode in (2, 3, 4, 6)
    assert "CPL_DEBUG" in answers[0].stderr
    for answer in answers:
        assert CANARY not in answer.stdout + answer.stderr
        assert SECRETS["AWS_ACCESS_KEY_ID"] not in answer.stdout + answer.stderr
    assert leaks(tmp_path) == []
    assert leaks(session) == []
    assert not (tmp_path / "cpl.log").exists()
    _remove(session)


def _remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()
