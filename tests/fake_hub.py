"""A model hub on the loopback: as much of its API as an upload asks for, strict about what it gets."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_aSecretThatNothingMayPrint"
ACCOUNT = {
    "type": "user",
    "name": "ann",
    "orgs": [{"type": "org", "name": "Guild"}],
    "auth": {"accessToken": {"displayName": "tests", "role": "write"}},
}
REPOSITORY = r"(?P<name>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """What was committed, and whether it is private (None: nobody said)."""

    private: bool | None = None
    files: dict[str, bytes] = field(default_factory=dict)


class FakeHub:
    """`with FakeHub() as hub`: answers at `hub.url`, keeps what it gets in `repositories`, and each request in `seen`.

    refusals: (method and path as a regular expression) → (status, message) to answer instead; large: names of files
    that go to the large file store; account: what whoami says. strange: requests that no upload makes.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.seen: list[str] = []
        self.strange: list[str] = []
        self.large = r".*\.safetensors"
        self.account: object = ACCOUNT
        self.stored: dict[str, bytes] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, folder) -> dict[str, str]:
        """What a process needs to take this for the hub; `folder` is its home of the hub's client."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
        }


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **more):
        super().__init__(message)
        self.status, self.code, self.content = status, code, {"error": message, **more}


class Handler(BaseHTTPRequestHandler):
    """One request. Every route is `name_METHOD(body, match)`, and returns what is answered as JSON."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.seen.append(f"{self.command} {path}")
        try:
            status, found = 200, self.routed(path, body)
            headers = {}
        except Refused as refused:
            status, found = refused.status, refused.content
            headers = {"X-Error-Code": refused.code} if refused.code else {}
        content = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer

    def routed(self, path: str, body: bytes) -> object:
        asked = f"{self.command} {path}"
        for pattern, (status, message) in self.hub.refusals.items():
            if re.fullmatch(pattern, asked):
                raise Refused(status, message)
        for pattern, route in ROUTES.items():
            if match := re.fullmatch(pattern, asked):
                given = self.headers.get("Authorization")
                # A card's own check sends no token, nor does what goes to a store.
                free = route is Handler.store or (route is Handler.validate and given is None)
                if given != f"Bearer {TOKEN}" and not free:
                    raise Refused(401, "Invalid username or password.")
                return route(self, body, **match.groupdict())
        self.hub.strange.append(asked)
        raise Refused(404, f"no such page: {asked}")

    def whoami(self, body: bytes) -> object:
        return self.hub.account

    def create(self, body: bytes) -> object:
        asked = json.loads(body)
        name = f"{asked.get('organization') or ACCOUNT['name']}/{asked['name']}"
        if name in self.hub.repositories:
            raise Refused(409, "You already created this model repo", url=f"{self.hub.url}/{name}")
        private = asked["visibility"] == "private" if "visibility" in asked else asked.get("private")
        self.hub.repositories[name] = Repository(private)
        return {"url": f"{self.hub.url}/{name}", "name": name}

    def repository(self, name: str) -> Repository:
        if name not in self.hub.repositories:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self.hub.repositories[name]

    def info(self, body: bytes, name: str) -> object:
        private = bool(self.repository(name).private)
        return {"id": name, "modelId": name, "private": private, "sha": "0" * 40, "tags": [], "siblings": []}

    def validate(self, body: bytes) -> object:
        asked = json.loads(body)
        if faults := card_faults(asked["content"]):
            raise Refused(400, "; ".join(faults))
        return {"errors": [], "warnings": []}

    def preupload(self, body: bytes, name: str) -> object:
        self.repository(name)
        files = []
        for each in json.loads(body)["files"]:
            mode = "lfs" if re.fullmatch(self.hub.large, each["path"]) else "regular"
            files.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None})
        return {"files": files}

    def batch(self, body: bytes, name: str) -> object:
        self.repository(name)
        objects = json.loads(body)["objects"]
        place = f"{self.hub.url}/store/{{}}"
        return {
            "transfer": "basic",
            "objects": [{**each, "actions": {"upload": {"href": place.format(each["oid"])}}} for each in objects],
        }

    def store(self, body: bytes, oid: str) -> object:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the content is not what its digest says")
        self.hub.stored[oid] = body
        return {}

    def commit(self, body: bytes, name: str) -> object:
        files = self.repository(name).files
        header, *operations = map(json.loads, body.splitlines())
        if header["key"] != "header" or not header["value"]["summary"]:
            raise Refused(400, "no summary")
        for each in operations:
            value = each["value"]
            if each["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif each["key"] == "lfsFile" and len(self.hub.stored.get(value["oid"], b"")) == value["size"]:
                files[value["path"]] = self.hub.stored[value["oid"]]
            else:
                raise Refused(400, f"cannot commit {value['path']}")
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}


ROUTES = {
    "GET /api/whoami-v2": Handler.whoami,
    "POST /api/repos/create": Handler.create,
    f"GET /api/models/{REPOSITORY}": Handler.info,
    "POST /api/validate-yaml": Handler.validate,
    f"POST /api/models/{REPOSITORY}/preupload/main": Handler.preupload,
    f"POST /{REPOSITORY}[.]git/info/lfs/objects/batch": Handler.batch,
    "PUT /store/(?P<oid>[0-9a-f]{64})": Handler.store,
    f"POST /api/models/{REPOSITORY}/commit/main": Handler.commit,
}
"""Method and path → what answers."""


def card_faults(content: str) -> list[str]:
    """What is wrong with a card's front matter, by the documented form of the hub's metadata; empty if nothing is."""
    block = re.match(r"^---\n(.*?)\n---[ \t]*(\n|$)", content, re.DOTALL)
    if not block:
        return ["no metadata"]
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"no YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata is no mapping"]
    known = {"language", "library_name", "license", "pipeline_tag", "tags", "base_model", "base_model_relation"}
    faults = [f"{name} is unknown" for name in data.keys() - known - {"model-index"}]
    texts = [name for name in known - {"tags"} if name in data]
    faults += [f"{name} is no text" for name in texts if not isinstance(data[name], str)]
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        faults.append("tags are no texts")
    if "base_model" in data and not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(data["base_model"]), re.ASCII):
        faults.append("base_model is no id")
    if data.get("base_model_relation", "finetune") not in ("adapter", "merge", "quantized", "finetune"):
        faults.append("base_model_relation is unknown")
    for model in data.get("model-index", []):
        faults += [f"model-index: {fault}" for fault in _model_faults(model)]
    return faults


def _model_faults(model: dict) -> list[str]:
    faults = [] if isinstance(model.get("name"), str) and model.get("results") else ["no name, or no results"]
    for result in model.get("results", []):
        needed = {"task": ("type",), "dataset": ("type", "name")}
        allowed = {"task": ("name",), "dataset": ("config", "split", "revision", "args")}
        for part, names in needed.items():
            faults += [f"{part}.{name}" for name in names if not isinstance(result[part].get(name), str)]
            faults += [f"{part}.{name}" for name in result[part].keys() - {*names, *allowed[part]}]
        if not result["metrics"]:
            faults.append("no metrics")
        for metric in result["metrics"]:
            faults += [f"metric.{name}" for name in ("type", "name") if not isinstance(metric.get(name), str)]
            faults += [f"metric.{name}" for name in metric.keys() - {"type", "name", "value", "args", "verified"}]
            if isinstance(metric.get("value"), bool) or not isinstance(metric.get("value"), int | float):
                faults.append("metric.value is no number")
            if metric.get("verified") is not False or not isinstance(metric.get("args", {}), dict):
                faults.append("metric.verified, or its args")
    return faults
