"""A stand-in for the Hugging Face hub: a server on this machine that speaks the routes in use.

Files are served as the hub serves large ones, by a redirect to another path, and taken by Git LFS
where they end with .safetensors. The real client of the package talks to it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

TOKEN = "hf_right"
LICENCES = ("mit", "apache-2.0", "cc-by-nc-4.0", "other", "unknown")


@dataclass
class Repository:
    """One on the hub."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    commits: int = 1
    claimed: int | None = None
    """The size that it says of its files; None: the true one."""

    @property
    def commit(self) -> str:
        return hashlib.sha1(str((self.commits, sorted(self.files.items()))).encode()).hexdigest()


class Hub:
    """What is on the hub, and what it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        """By SHA-256."""
        self.asked: list[str] = []
        """Method and path of each request."""
        self.broken = False
        """Answers 503 to everything."""
        self.stranger = False
        """Answers as any web server would."""
        self.address = self.elsewhere = ""
        """Of the hub, and of the host that serves large files, which must see no token."""

    def downloads(self) -> set[str]:
        """The files that somebody has asked for."""
        return {path.rpartition("/")[2] for path in self.asked if "/resolve/" in path}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def answer(self, content: object = b"", status: int = 200, **headers: str) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        size = {} if "Content_Length" in headers else {"Content_Length": str(len(content))}
        for name, value in {**headers, **size}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.broken:
            return self.refuse(503, message="the hub is being mended")
        if self.hub.stranger:
            return self.answer(b"<html>")
        for route, act in _ROUTES:
            match = re.fullmatch(f"{route}", f"{self.command} {path}")
            if match:
                return act(self, *match.groups(), body)
        return self.refuse(404, "", "no such route")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def permitted(self, name: str, writing: bool = False) -> Repository | None:
        """The repository, or None after an answer that says why not."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not token):
            return self.refuse(401 if not token else 404, "RepoNotFound", "Repository not found")
        if repository.gated:
            return self.refuse(403, "GatedRepo", "Access is restricted")
        if writing and (not token or not name.startswith("joe/")):
            return self.refuse(403, "", "You are not allowed to write")
        return repository

    def resolve(self, name: str, revision: str, file: str, body: bytes) -> None:
        repository = self.permitted(name)
        if repository is None:
            return
        if revision not in ("main", repository.commit):
            return self.refuse(404, "RevisionNotFound", "Revision not found")
        if file not in repository.files:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound",
                               X_Repo_Commit=repository.commit)
        content = repository.files[file]
        digest = hashlib.sha256(content).hexdigest()
        self.hub.stored[digest] = content
        size = len(content) if repository.claimed is None else repository.claimed
        self.answer(b"", 302, Location=f"{self.hub.elsewhere}/cdn/{digest}",
                    X_Repo_Commit=repository.commit, X_Linked_Etag=f'"{digest}"',
                    X_Linked_Size=str(size))

    def stored(self, digest: str, body: bytes) -> None:
        if self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == digest
            self.hub.stored[digest] = body
            return self.answer()
        assert "Authorization" not in self.headers
        self.answer(self.hub.stored[digest])

    def create(self, body: bytes) -> None:
        given = json.loads(body)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != TOKEN:
            return self.refuse(401, "", "Invalid username or password.")
        name = f"{given.get('organization') or 'joe'}/{given['name']}"
        if not name.startswith("joe/"):
            return self.refuse(403, "", "You don't have the rights to create a model there")
        if name in self.hub.repositories:
            return self.answer({"url": f"{self.hub.address}/{name}"}, 409)
        self.hub.repositories[name] = Repository(
            private=bool(given.get("private")) or given.get("visibility") == "private")
        self.answer({"url": f"{self.hub.address}/{name}"})

    def info(self, name: str, body: bytes) -> None:
        repository = self.permitted(name)
        if repository is not None:
            siblings = [{"rfilename": file} for file in repository.files]
            self.answer({"id": name, "sha": repository.commit, "private": repository.private,
                         "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        (licence,) = re.findall(r"^license: (.*)$", content, re.MULTILINE)
        if licence not in LICENCES:
            return self.answer({"errors": [{"message": '"license" must be one of many'}]}, 400)
        self.answer({"errors": [], "warnings": []})

    def preupload(self, name: str, body: bytes) -> None:
        if self.permitted(name, writing=True):
            files = [{"path": file["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if file["path"].endswith("s") else "regular"}
                     for file in json.loads(body)["files"]]
            self.answer({"files": files})

    def batch(self, name: str, body: bytes) -> None:
        objects = [{**wanted, "actions": {"upload": {
            "href": f"{self.hub.address}/cdn/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]]
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, name: str, body: bytes) -> None:
        repository = self.permitted(name, writing=True)
        if repository is None:
            return
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commits += 1
        self.answer({"commitUrl": f"{self.hub.address}/{name}/commit/{repository.commit}",
                     "commitOid": repository.commit})


_MODEL = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    (rf"(?:HEAD|GET) /{_MODEL}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"(?:HEAD|GET|PUT) /cdn/(\w+)", _Handler.stored),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/models/{_MODEL}", _Handler.info),
    (rf"POST /api/models/{_MODEL}/preupload/main", _Handler.preupload),
    (rf"POST /{_MODEL}\.git/info/lfs/objects/batch", _Handler.batch),
    (rf"POST /api/models/{_MODEL}/commit/main", _Handler.commit),
]


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """The hub in the place of huggingface.co, with an empty cache, and nobody logged in.

    For this process by the package's own constants, for others by the environment.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub()
    server.hub.address = address = f"http://127.0.0.1:{server.server_port}"
    server.hub.elsewhere = address.replace("127.0.0.1", "localhost")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy",
                 "ALL_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    values = {"HF_HUB_CACHE": str(folder / "cache"), "HF_TOKEN_PATH": str(folder / "token"),
              "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "ENDPOINT": address,
              "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}"}
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    template = "HUGGINGFACE_CO_URL_TEMPLATE"
    if hasattr(file_download, template):  # older versions have copied it
        monkeypatch.setattr(file_download, template, values[template])
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HOME", str(folder / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    try:
        yield server.hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
