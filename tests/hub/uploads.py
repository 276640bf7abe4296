"""What clients write: repositories, commits, large files, branches, tags; as the Hub answers `huggingface_hub`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from answers import Answer, Refusal, as_json
from store import LARGE, Repository

if TYPE_CHECKING:
    from handlers import HubHandler
    from server import LoopbackHub

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def write(handler: HubHandler, path: str) -> Answer | None:
    """The answer to a request that writes; None if it only reads."""
    if handler.command != "POST":
        return None
    if path == "/api/validate-yaml":
        return _validated(json.loads(handler.form)["content"])
    if path == "/api/repos/create":
        return _create(handler, json.loads(handler.form))
    if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
        _may_write(handler, match[1])
        return _batch(handler.hub, match[1], json.loads(handler.form))
    match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch|tag)/([^/]+)", path)
    if match is None:
        return None
    repo_id, verb, name = match[1], match[2], unquote(match[3])
    repository = _may_write(handler, repo_id)
    if verb == "preupload":
        return _preupload(repository, name, json.loads(handler.form))
    if verb == "commit":
        with handler.hub.writing:
            return _commit(handler.hub, repository, name, handler.form)
    return _reference(repository, verb, name, json.loads(handler.form or "{}"))


def take(hub: LoopbackHub, path: str, query: dict[str, str], content: bytes) -> Answer:
    """Keep a large file that is sent to a link of `_batch`."""
    sha256 = path.rpartition("/")[2]
    if query.get("Signature") != hub.signature(path, "upload") or hashlib.sha256(content).hexdigest() != sha256:
        return Answer(403, b"")
    hub.uploaded[sha256] = content
    return Answer(200, b"")


def _may_write(handler: HubHandler, repo_id: str) -> Repository:
    repository = handler._repository("models", repo_id)
    if handler.user != repo_id.partition("/")[0]:
        raise Refusal(403, "", "You don't have the rights to write to this repository.")
    return repository


def _validated(content: str) -> Answer:
    """Errors for metadata of the wrong kind, as far as this house writes them."""
    import yaml

    if not content.startswith("---"):
        return as_json({"warnings": [{"message": "empty or missing yaml metadata in repo card"}], "errors": []})
    try:
        data: Any = yaml.safe_load(content.split("---\n")[1])
    except yaml.YAMLError as error:
        return as_json({"errors": [{"message": str(error)}]})._replace(status=400)
    lists = [name for name in ("tags", "datasets") if not isinstance(data.get(name, []), list)]
    licence = data.get("license")
    wrong = [f'"{name}" must be an array' for name in lists]
    wrong += ['"license" must be a known one'] if licence is not None and not re.fullmatch(r"[a-z0-9.-]+", str(licence)) else []
    answer = as_json({"errors": [{"message": message} for message in wrong], "warnings": []})
    return answer._replace(status=400) if wrong else answer


def _create(handler: HubHandler, asked: dict[str, Any]) -> Answer:
    if handler.user is None:
        raise Refusal(401, "", "Invalid username or password.")
    owner = asked.get("organization") or handler.user
    repo_id = f"{owner}/{asked['name']}"
    url = f"{handler.hub.endpoint}/{repo_id}"
    if owner != handler.user:
        raise Refusal(403, "", "You don't have the rights to create a model under this namespace")
    with handler.hub.writing:
        if ("models", repo_id) in handler.hub.repositories:
            answer = as_json({"error": "You already created this model repo", "url": url})
            return answer._replace(status=409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repository = handler.hub.add(Repository(repo_id, "models", private=private))
        repository.commit({".gitattributes": ATTRIBUTES})
    return as_json({"url": url, "name": repo_id, "id": repo_id})


def _preupload(repository: Repository, branch: str, asked: dict[str, Any]) -> Answer:
    there = repository.commits[repository.branches[branch]] if branch in repository.branches else {}
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].lower().endswith(LARGE) else "regular",
            "shouldIgnore": False,
            "oid": there[file["path"]].etag if file["path"] in there else None,
        }
        for file in asked["files"]
    ]
    return as_json({"files": files, "commitOid": repository.branches.get(branch, "")})


def _batch(hub: LoopbackHub, repo_id: str, asked: dict[str, Any]) -> Answer:
    objects = []
    for one in asked["objects"]:
        path = f"/uploads/{repo_id}/{one['oid']}"
        link = f"{hub.store}{path}?Signature={hub.signature(path, 'upload')}"
        actions = {} if one["oid"] in hub.uploaded else {"actions": {"upload": {"href": link, "header": {}}}}
        objects.append({"oid": one["oid"], "size": one["size"], **actions})
    return as_json({"transfer": "basic", "objects": objects})


def _commit(hub: LoopbackHub, repository: Repository, branch: str, body: str) -> Answer:
    lines = [json.loads(line) for line in body.splitlines() if line]
    head = repository.branches.get(branch)
    if head is None:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
    header = lines[0]["value"]
    if header.get("parentCommit", head) != head:
        raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
    changes: dict[str, bytes | None] = {}
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            changes[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            changes[value["path"]] = hub.uploaded[value["oid"]]
        else:
            changes[value["path"]] = None
    commit = repository.commit(changes, branch)
    repository.messages.append((branch, header["summary"]))
    return as_json({"success": True, "commitOid": commit, "commitUrl": f"{hub.endpoint}/{repository.repo_id}/commit/{commit}"})


def _reference(repository: Repository, verb: str, name: str, asked: dict[str, Any]) -> Answer:
    """A new branch of this name, or a tag on the commit of this name."""
    if verb == "branch":
        if name in repository.branches:
            raise Refusal(409, "", "Reference already exists")
        repository.branches[name] = repository.find(asked.get("startingPoint", "main")) or ""
        return as_json({})
    if asked["tag"] in repository.tags:
        raise Refusal(409, "", "Tag reference exists already.")
    commit = repository.find(name)
    if commit is None:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {name}")
    repository.tags[asked["tag"]] = commit
    return as_json({})
