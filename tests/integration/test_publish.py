"""`sdpo push` against a stand-in for a hub's HTTP interface: what is sent, who may see it, and that it asks."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command import sdpo
from small_runs import settings, trained

from sdpo_mlx.runs.folder import RunFolder


class Hub:
    """Takes repositories and commits; keeps what it was told."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.keys: set[str | None] = set()
        self.refuses = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.keys.add(self.headers.get("Authorization"))
                status, answer = outer.answer(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self.send_response(200)
                content = json.dumps({"sha": "0" * 40, "siblings": [], "id": "me/first"}).encode()
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if self.refuses:
            return 403, {"error": "not yours"}
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            return 200, {"url": f"{self.endpoint}/me/first", "id": "me/first"}
        if re.search(r"/preupload/", path):
            asked = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if re.search(r"/commit/", path):
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return 200, {"commitUrl": f"{self.endpoint}/me/first/commit/1", "commitOid": "1" * 40, "success": True}
        return 200, {"errors": [], "warnings": []}


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    cfg = settings(rollout={"group_size": 2, "max_tokens": 8}, train={"steps": 1})
    trained(folder, cfg)
    RunFolder(folder).write_config(cfg)
    (folder / "README.md").write_text("---\nlibrary_name: mlx\n---\n# first\n")
    return folder


def pushed(hub: Hub, run: Path, *words: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, whose hub is the stand-in."""
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_of_the_test", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "sdpo_cli.main", "push", str(run), "me/first", *words]
    return subprocess.run(command, env=env, input=answer, capture_output=True, text=True, check=False)


def visibility(hub: Hub) -> str:
    """What the repository was made as, in the words of newer and older clients."""
    made = hub.made[0]
    return str(made.get("visibility", "private" if made.get("private") else "public"))


def test_push_sends_adapter_and_card_privately_after_asking(hub: Hub, run: Path) -> None:
    done = pushed(hub, run, answer="y\n")
    assert done.returncode == 0, done.stderr
    assert "private?" in done.stderr
    assert visibility(hub) == "private"
    assert set(hub.files) == {"adapters.safetensors", "adapter_config.json", "README.md"}
    for name, content in hub.files.items():
        assert content == (run / name).read_bytes()
    assert hub.keys == {"Bearer hf_of_the_test"}
    assert "hf_of_the_test" not in done.stdout + done.stderr


def test_push_sends_nothing_when_the_answer_is_no(hub: Hub, run: Path) -> None:
    done = pushed(hub, run, answer="n\n")
    assert (done.returncode, hub.made, hub.files) == (1, [], {})


def test_push_is_public_only_when_said(hub: Hub, run: Path) -> None:
    done = pushed(hub, run, "--public", "--yes", "--json")
    assert json.loads(done.stdout)["public"] is True
    assert visibility(hub) == "public"


def test_hub_that_refuses_is_one_line(hub: Hub, run: Path) -> None:
    hub.refuses = True
    done = pushed(hub, run, "--yes")
    assert done.returncode == 5
    warning, fault = done.stderr.strip().splitlines()  # the run's adapter is that of step 0
    assert "changes nothing" in warning
    assert "the upload failed" in fault


def test_mistakes_are_told_before_anybody_is_asked(run: Path, tmp_path: Path) -> None:
    for words, code, said in (
        ((str(run), "name"), 2, "OWNER/NAME"),
        ((str(run), "a/b/c"), 2, "OWNER/NAME"),
        ((str(tmp_path), "me/first"), 5, "no adapter"),
    ):
        found, _, err = sdpo("push", *words)
        assert (found, len(err.strip().splitlines())) == (code, 1)
        assert said in err
