"""A small local server with the requests of the Hugging Face hub that a push, a pull and timm make.

Contents are kept in memory. `received` holds every byte of the bodies that arrive, `requests` each method and path.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"


class Hub:
    """Repositories by name, and what arrived; a failure is a part of "METHOD path" and the status of one answer."""

    def __init__(self):
        self.repos, self.objects, self.requests, self.received = {}, {}, [], []
        self.datasets, self.failures = set(), []
        self.small_bytes = 100_000  # of regular files, without LFS
        self.url = ""

    def make_repo(self, name, *, private=True):
        """Create an empty repository."""
        self.repos[name] = {"private": private, "commits": [{}]}

    def add_files(self, name, files):
        """Add a commit with these contents by path."""
        commits = self.repos[name]["commits"]
        commits.append(commits[-1] | {path: bytes(content) for path, content in files.items()})

    def get_files(self, name):
        """Return the contents of the newest commit by path."""
        return self.repos[name]["commits"][-1]

    def find_commit(self, name, revision):
        """Return number and files of a commit, or None."""
        commits = self.repos[name]["commits"]
        numbers = {make_commit(name, number): number for number in range(len(commits))}
        number = len(commits) - 1 if revision in (None, "main") else numbers.get(revision)
        return None if number is None else (number, commits[number])


def make_commit(name, number):
    return hashlib.sha1(f"{name}{number}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        """Print nothing."""

    def handle_one(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.read_body()
        self.hub.received.append(body)
        for failure in self.hub.failures:
            if failure[0] in f"{self.command} {path}":
                self.hub.failures.remove(failure)
                return self.answer(failure[1], {"error": "planned failure"})
        for method, pattern, function in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                return function(self, body, *match.groups())
        return self.answer(404, {"error": "unknown path"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def read_body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status, content=None, headers=()):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": len(data), "Content-Type": "application/json"} | dict(headers)).items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def has_token(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def find_repo(self, name):
        """Return the repository, or answer as the hub does for one that is missing or private."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo["private"] and not self.has_token()):
            status = 404 if self.has_token() else 401
            self.answer(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def find_files(self, name, revision):
        if self.find_repo(name) is None:
            return None
        found = self.hub.find_commit(name, revision)
        if found is None:
            self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return found

    def require_write(self):
        if not self.has_token():
            self.answer(401, {"error": "Invalid credentials"})
        return self.has_token()

    def create(self, body):
        if not self.require_write():
            return
        options = json.loads(body)
        name = f"{options['organization']}/{options['name']}"
        private = options.get("visibility") == "private" or options.get("private", False)
        if name in self.hub.repos:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
            return
        self.hub.make_repo(name, private=private)
        self.answer(200, {"url": f"{self.hub.url}/{name}", "id": name})

    def show(self, body, name, revision=None):
        if found := self.find_files(name, revision):
            number, files = found
            siblings = [{"rfilename": path} for path in files]
            private = self.hub.repos[name]["private"]
            sha = make_commit(name, number)
            self.answer(200, {"id": name, "sha": sha, "private": private, "siblings": siblings, "tags": []})

    def show_other(self, body, kind, name):
        known = name in self.hub.datasets and kind == "datasets"
        content = {"id": name, "sha": "0" * 40, "private": False, "siblings": [], "tags": []}
        self.answer(200 if known else 404, content, {} if known else {"X-Error-Code": "RepoNotFound"})

    def list_tree(self, body, name, revision):
        if found := self.find_files(name, revision):
            entries = [describe_file(path, content, self.hub.small_bytes) for path, content in found[1].items()]
            folders = {path.rpartition("/")[0] for path in found[1]} - {""}
            entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
            self.answer(200, entries)

    def validate_yaml(self, body):
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body, name, revision):
        if self.require_write() and self.find_repo(name):
            modes = [
                {
                    "path": file["path"], "shouldIgnore": False,
                    "uploadMode": "regular" if file["size"] < self.hub.small_bytes else "lfs",
                }
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            self.answer(200, {"files": modes})

    def start_lfs(self, body, name):
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}
            known = one["oid"] in self.hub.objects
            objects.append(one | {"authenticated": True} | ({} if known else {"actions": {"upload": upload}}))
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.answer(200, {})

    def commit(self, body, name, revision):
        repo = self.find_repo(name) if self.require_write() else None
        if repo is None:
            return
        files = dict(repo["commits"][-1])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            parent = value.get("parentCommit")
            if item["key"] == "header" and parent not in (None, make_commit(name, len(repo["commits"]) - 1)):
                self.answer(412, {"error": "A commit has happened since"})
                return
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"])
        repo["commits"].append(files)
        oid = make_commit(name, len(repo["commits"]) - 1)
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def resolve(self, body, name, revision, path):
        if found := self.find_files(name, revision):
            number, files = found
            headers = {"X-Repo-Commit": make_commit(name, number)}
            if path not in files:
                self.answer(404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"})
                return
            headers |= {"ETag": f'"{hashlib.sha256(files[path]).hexdigest()}"'}
            self.answer(200, files[path], headers)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("GET", f"/api/models/{NAME}", Handler.show),
    ("GET", f"/api/models/{NAME}/revision/([^/]+)", Handler.show),
    ("GET", f"/api/(datasets|spaces)/{NAME}", Handler.show_other),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)", Handler.list_tree),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/models/{NAME}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.start_lfs),
    ("PUT", "/lfs/([0-9a-f]{64})", Handler.store),
    ("POST", f"/api/models/{NAME}/commit/([^/]+)", Handler.commit),
    ("HEAD", f"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("GET", f"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


def describe_file(path, content, small_bytes):
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # as git
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if len(content) < small_bytes:
        return entry
    return entry | {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}


@contextmanager
def run_hub():
    """Run a hub on a free port of this computer; yield it, and stop it at the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    with run_hub() as running:
        print(running.url, flush=True)
        threading.Event().wait()
