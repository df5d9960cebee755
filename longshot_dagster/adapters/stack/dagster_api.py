"""What the command line asks of a running stack: GraphQL over HTTP with the installation's token, without importing Dagster."""

import http.client
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.web_guard import TOKEN_HEADER

LOCATION = "longshot"
REPOSITORY = "__repository__"
ACTIVE = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")
ENDED = ("SUCCESS", "FAILURE", "CANCELED")
_ASSET_JOB = "__ASSET_JOB"  # Dagster's own name for whatever materializes assets
_TASK_RESULT = "task_result"

_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PipelineNotFoundError { message }
    ... on PythonError { message }
    ... on UnauthorizedError { message }
  }
}"""
_STATUS = "query Status($id: ID!) { runOrError(runId: $id) { __typename ... on Run { status } } }"
_FAILURE = """
query Failure($id: ID!) {
  logsForRun(runId: $id) {
    ... on EventConnection {
      events {
        __typename
        ... on ExecutionStepFailureEvent { error { ...E errorChain { error { ...E } } } failureMetadata { description } }
        ... on RunFailureEvent { message error { ...E errorChain { error { ...E } } } }
      }
    }
  }
}
fragment E on PythonError { message className }"""
_ACTIVE = """
query Active($statuses: [RunStatus!]) {
  runsOrError(filter: {statuses: $statuses}, limit: 1000) { ... on Runs { results {
    runId status jobName tags { key value }
  } } }
}"""
_POOL = """
query Pool($pool: String!) {
  instance { concurrencyLimit(concurrencyKey: $pool) {
    limit slotCount claimedSlots { runId stepKey } pendingSteps { runId stepKey }
  } }
}"""
_TAGS = """
query Tags($ids: [String]) {
  runsOrError(filter: {runIds: $ids}, limit: 1000) { ... on Runs { results { runId tags { key value } } } }
}"""
_PAGE = 500
_EVERY = """
query Every($cursor: String, $limit: Int!) {
  runsOrError(cursor: $cursor, limit: $limit) { ... on Runs { results {
    runId status jobName tags { key value }
  } } }
}"""
_FORGET = """
mutation Forget($repository: RepositorySelector!, $name: String!, $keys: [String!]!) {
  deleteDynamicPartitions(repositorySelector: $repository, partitionsDefName: $name, partitionKeys: $keys) {
    __typename
    ... on PythonError { message }
    ... on UnauthorizedError { message }
  }
}"""
_TERMINATE = """
mutation Terminate($ids: [String!]!, $policy: TerminateRunPolicy!) {
  terminateRuns(runIds: $ids, terminatePolicy: $policy) { __typename }
}"""
_HEALTH = """
query Health {
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
  workspaceOrError { ... on Workspace { locationEntries {
    name loadStatus locationOrLoadError { __typename ... on PythonError { message } }
  } } }
}"""


@dataclass(frozen=True)
class ActiveRun:
    id: str
    status: str
    job: str
    tags: Mapping[str, str]

    def belongs_to(self, build: str) -> bool:
        """By its tag, or by the partition it made: a run that a person started in the UI carries no tag."""
        partition = self.tags.get("dagster/partition", "")
        return self.tags.get("longshot/build") == build or partition == build or partition.startswith(f"{build}.")


@dataclass(frozen=True)
class Pool:
    """`used` and `waiting` are (run id, step key); `limit` is None when nothing limits it."""

    limit: int | None
    used: tuple[tuple[str, str], ...]
    waiting: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Health:
    """`waiting` names what is not ready yet; `error` is why the code location will not load, if it will not."""

    waiting: tuple[str, ...]
    error: str = ""


class ApiUnavailable(LongshotError):
    """Raised when nothing answers on the UI's port, or something that is not ours."""


class DagsterApi:
    """The UI's GraphQL on `port` of 127.0.0.1."""

    def __init__(self, port: int, token: str, timeout_s: float = 30) -> None:
        self._port = port
        self._token = token
        self._timeout_s = timeout_s

    def launch(self, job: str, run_config: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Run id of a run of `job` that was just asked for. Raises LongshotError when Dagster refuses it."""
        params = {
            "selector": {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "jobName": job},
            "runConfigData": run_config,
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
        }
        return self._launched(job, params)

    def _launched(self, what: str, params: Mapping[str, Any]) -> str:
        answer = self.ask(_LAUNCH, {"params": params})["launchRun"]
        if answer["__typename"] == "LaunchRunSuccess":
            return str(answer["run"]["runId"])
        said = answer.get("message") or "; ".join(e["message"] for e in answer.get("errors", []))
        raise LongshotError(f"Dagster would not start {what}: {_line(said or answer['__typename'])}")

    def materialize_task(self, partition: str, *, again: bool, tags: Mapping[str, str]) -> str:
        """Run id of a run that works on the task, lands or reports it anew. Raises LongshotError when Dagster refuses it."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "jobName": _ASSET_JOB}
        # A run that Dagster repeats after a crash begins anew: what there is, is in the ledger.
        tags = {**tags, "dagster/partition": partition, "dagster/retry_strategy": "ALL_STEPS"}
        params = {
            "selector": {**selector, "assetSelection": [{"path": [_TASK_RESULT]}]},
            "runConfigData": {"ops": {_TASK_RESULT: {"config": {"again": again}}}},
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
        }
        return self._launched(_TASK_RESULT, params)

    def status(self, run_id: str) -> str:
        """Dagster's word for how the run stands; empty when it knows no such run."""
        return str(self.ask(_STATUS, {"id": run_id})["runOrError"].get("status", ""))

    def failure(self, run_id: str) -> tuple[str, str]:
        """(class name, one line) of the deepest error of a failed run; both empty when it has recorded none."""
        found = ("", "")
        for event in self.ask(_FAILURE, {"id": run_id})["logsForRun"].get("events", []):
            error = event.get("error")
            if not error or (event["__typename"] == "RunFailureEvent" and found != ("", "")):
                continue
            chain = [error, *(link["error"] for link in error.get("errorChain", []))]
            found = _deepest(chain)
            if description := (event.get("failureMetadata") or {}).get("description"):
                return found[0], _line(description)
        return found

    def active(self) -> list[ActiveRun]:
        """Every run that has not ended, newest first."""
        runs = self.ask(_ACTIVE, {"statuses": list(ACTIVE)})["runsOrError"].get("results", [])
        return [
            ActiveRun(r["runId"], r["status"], r["jobName"], {t["key"]: t["value"] for t in r["tags"]}) for r in runs
        ]

    def every_run(self) -> Iterator[ActiveRun]:
        """All runs that Dagster has recorded, ended ones too, newest first."""
        cursor = None
        while True:
            runs = self.ask(_EVERY, {"cursor": cursor, "limit": _PAGE})["runsOrError"].get("results", [])
            for r in runs:
                yield ActiveRun(r["runId"], r["status"], r["jobName"], {t["key"]: t["value"] for t in r["tags"]})
            if len(runs) < _PAGE:
                return
            cursor = runs[-1]["runId"]

    def delete_run(self, run_id: str) -> None:
        """Remove an ended run with its events; one that is gone already is no error."""
        self.ask("mutation D($id: String!) { deletePipelineRun(runId: $id) { __typename } }", {"id": run_id})

    def delete_partitions(self, name: str, keys: Sequence[str]) -> None:
        """Take `keys` out of the set of partitions `name`; those that are gone already are no error."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY}
        for start in range(0, len(keys), _PAGE):
            variables = {"repository": selector, "name": name, "keys": list(keys[start : start + _PAGE])}
            answer = self.ask(_FORGET, variables)["deleteDynamicPartitions"]
            if answer["__typename"] != "DeleteDynamicPartitionsSuccess":
                raise LongshotError(f"Dagster keeps partitions of {name}: {_line(answer.get('message', ''))}")

    def pool(self, name: str) -> Pool:
        """Who holds a slot of pool `name`, and who waits for one."""
        found = self.ask(_POOL, {"pool": name})["instance"]["concurrencyLimit"]
        used, pending = (tuple((s["runId"], s["stepKey"]) for s in found[k]) for k in ("claimedSlots", "pendingSteps"))
        # A step that has its slot stays listed as pending.
        waiting = tuple(s for s in pending if s not in used)
        return Pool(found["slotCount"] if found["limit"] is None else found["limit"], used, waiting)

    def tags(self, run_ids: Sequence[str]) -> dict[str, Mapping[str, str]]:
        """Tags of runs, by run id."""
        runs = self.ask(_TAGS, {"ids": list(run_ids)})["runsOrError"].get("results", [])
        return {r["runId"]: {t["key"]: t["value"] for t in r["tags"]} for r in runs}

    def terminate(self, run_ids: Sequence[str], *, now: bool = False) -> None:
        """Ask runs to end; `now` also marks those CANCELED whose process is gone."""
        if run_ids:
            policy = "MARK_AS_CANCELED_IMMEDIATELY" if now else "SAFE_TERMINATE"
            self.ask(_TERMINATE, {"ids": list(run_ids), "policy": policy})

    def health(self) -> Health:
        answer = self.ask(_HEALTH, {})
        waiting = [
            f"daemon ({d['daemonType'].lower()})"
            for d in answer["instance"]["daemonHealth"]["allDaemonStatuses"]
            if d["required"] and not d["healthy"]
        ]
        entries = answer["workspaceOrError"].get("locationEntries", [])
        ours = next((e for e in entries if e["name"] == LOCATION), None)
        if ours is None or ours["loadStatus"] != "LOADED" or ours["locationOrLoadError"] is None:
            return Health((*waiting, "code location"))
        if ours["locationOrLoadError"]["__typename"] == "PythonError":
            return Health((*waiting, "code location"), _line(ours["locationOrLoadError"]["message"]))
        return Health(tuple(waiting))

    def reload(self) -> None:
        """Have the webserver look at the code server again."""
        query = "mutation R($n: String!) { reloadRepositoryLocation(repositoryLocationName: $n) { __typename } }"
        self.ask(query, {"n": LOCATION})

    def answers(self) -> bool:
        """Is our own webserver up on that port?"""
        try:
            return "dagster_version" in json.loads(self._request("GET", "/server_info", None))
        except (ApiUnavailable, ValueError):
            return False

    def ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The `data` of one GraphQL answer. Raises ApiUnavailable, and LongshotError for an answer with errors."""
        body = json.dumps({"query": query, "variables": dict(variables)}).encode()
        try:
            answer = json.loads(self._request("POST", "/graphql", body))
        except ValueError as e:
            raise ApiUnavailable(f"the answer on port {self._port} is not JSON") from e
        if answer.get("errors"):
            raise LongshotError(f"Dagster's API: {_line(answer['errors'][0].get('message', ''))}")
        data: dict[str, Any] = answer["data"]
        return data

    def _request(self, method: str, path: str, body: bytes | None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout_s)
        headers = {TOKEN_HEADER: self._token, "content-type": "application/json", "connection": "close"}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as e:
            raise ApiUnavailable(f"the Dagster UI on port {self._port} does not answer ({e})") from e
        finally:
            connection.close()
        if response.status in (401, 403, 421):
            raise ApiUnavailable(f"port {self._port} refuses us: {_line(data.decode('utf-8', 'replace'))}")
        return data


def _deepest(chain: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The last error of a cause chain, `module.Class: text` cut to the text."""
    last = chain[-1]
    name = str(last.get("className") or "")
    text = re.sub(rf"^[\w.]*\b{re.escape(name)}: ", "", str(last["message"]).strip()) if name else last["message"]
    return name, _line(text)


def _line(text: object) -> str:
    return one_line(text, 500)
