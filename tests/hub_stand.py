"""A stand-in for the part of the hub's HTTP interface that an upload needs. It keeps uploads in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What was sent to the stand-in.

    Attributes:
        files: Content by path, after the last commit.
        repositories: Bodies of the requests that made a repository.
        summaries: The summaries of the commits.
        refuses: Whether it answers that the token is not valid.
        address: The address where it listens.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.repositories: list[dict[str, Any]] = []
        self.summaries: list[str] = []
        self.refuses = False
        self.address = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, value: Any, status: int = 200) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            if "/tree/" in self.path:
                files = [
                    {"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in hub.files.items()
                ]
                return self._answer(files)
            if self.path.startswith("/api/models/"):
                return self._answer({"id": "me/desk", "sha": "0" * 40, "siblings": [], "tags": []})
            self._answer({"error": f"no {self.path} here"}, 404)

        def do_PUT(self) -> None:
            hub.blobs[self.path.rpartition("/")[2]] = self._body()
            self._answer({})

        def do_POST(self) -> None:
            body = self._body()
            if hub.refuses:
                return self._answer({"error": "Invalid username or password."}, 401)
            if self.path == "/api/repos/create":
                hub.repositories.append(json.loads(body))
                return self._answer({"url": f"{hub.address}/me/desk", "id": "me/desk", "name": "me/desk"})
            if self.path == "/api/validate-yaml":
                return self._answer({"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                modes = [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for each in json.loads(body)["files"]
                ]
                return self._answer({"files": modes})
            if self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**each, "actions": {"upload": {"href": f"{hub.address}/blob/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                return self._answer({"transfer": "basic", "objects": objects})
            if "/commit/" in self.path:
                for line in body.splitlines():
                    self._take(json.loads(line))
                return self._answer(
                    {"success": True, "commitOid": "1" * 40, "commitUrl": f"{hub.address}/c/1"}
                )
            self._answer({"error": f"no {self.path} here"}, 404)

        def _take(self, entry: dict[str, Any]) -> None:
            value = entry["value"]
            if entry["key"] == "header":
                hub.summaries.append(value["summary"])
            elif entry["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                blob = hub.blobs[value["oid"]]
                assert hashlib.sha256(blob).hexdigest() == value["oid"]
                hub.files[value["path"]] = blob
            elif entry["key"] == "deletedFile":
                del hub.files[value["path"]]

    return Handler


@contextmanager
def hub_stand() -> Iterator[Hub]:
    """Run the stand-in while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
