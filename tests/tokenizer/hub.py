"""A hub on the loopback interface: as much of its HTTP interface as creating, committing and downloading need."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """One repository at a time; every commit is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, dict[str, bytes]] = {"0" * 40: {}}
        self.branches = {"main": "0" * 40}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = f"{len(self.commits):040x}"
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments) -> None:
        pass

    def answer(self, content=b"", *, status=200, **headers) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.server.branches.get(revision, revision)
        if sha in self.server.commits:
            return sha, self.server.commits[sha]
        self.answer({"error": "Invalid rev id"}, status=404, X_Error_Code="RevisionNotFound")
        return None

    def do_PUT(self) -> None:
        self.server.objects[self.path.rsplit("/", 1)[1]] = self.body()
        self.answer()

    def do_POST(self) -> None:
        path, content = unquote(urlsplit(self.path).path), self.body()
        if path.endswith("/objects/batch"):
            found = [self.place(item["oid"], item["size"]) for item in json.loads(content)["objects"]]
            return self.answer({"transfer": "basic", "objects": found})
        if match := re.search(r"/commit/(.+)$", path):
            return self.commit(match[1], [json.loads(line) for line in content.splitlines()])
        values = json.loads(content or b"{}")
        self.server.requests.append((path, self.headers.get("Authorization"), values))
        if path == "/api/repos/create":
            name = "/".join(filter(None, (values.get("organization"), values["name"])))
            return self.answer({"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.split("/")[-2] == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in values["files"]
            ]
            return self.answer({"files": modes})
        if path.split("/")[-2] == "branch":
            self.server.branches.setdefault(path.split("/")[-1], self.server.branches["main"])
            return self.answer({}, status=201)
        return self.answer({"error": path}, status=404)

    def place(self, oid: str, size: int) -> dict:
        return {"oid": oid, "size": size, "actions": {"upload": {"href": f"{self.server.address}/lfs/{oid}"}}}

    def commit(self, branch: str, lines: list[dict]) -> None:
        files = dict(self.server.commits[self.server.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                assert hashlib.sha256(self.server.objects[value["oid"]]).hexdigest() == value["oid"]
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                self.server.requests.append(("commit", branch, value))
        sha = self.server.commit(branch, files)
        self.answer({"commitUrl": f"{self.server.address}/someone/model/commit/{sha}", "commitOid": sha})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.search(r"/resolve/([^/]+)/(.+)$", path):
            return self.file(match[1], match[2])
        if match := re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/([^/]+)", path):
            return self.tree(match[1])
        if match := re.fullmatch(r"/api/models/[^/]+/[^/]+(?:/revision/([^/]+))?", path):
            return self.information(match[1] or "main")
        return self.answer({"error": path}, status=404)

    do_HEAD = do_GET

    def information(self, revision: str) -> None:
        if (found := self.files(revision)) is not None:
            sha, files = found
            self.answer({"id": "someone/model", "sha": sha, "siblings": [{"rfilename": name} for name in files]})

    def tree(self, revision: str) -> None:
        if (found := self.files(revision)) is not None:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in found[1].items()
            ]
            self.answer(entries)

    def file(self, revision: str, name: str) -> None:
        if (found := self.files(revision)) is None:
            return
        sha, files = found
        if name not in files:
            return self.answer({"error": name}, status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        tag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
        self.answer(files[name], ETag=tag, X_Repo_Commit=sha)


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
