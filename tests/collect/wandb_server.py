"""A stand-in for W&B's server, as far as wandb 0.31 speaks with one in online mode, that can be made to fail."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """``status`` other than 200 answers every request with it; ``latency_s`` passes before every answer.

    ``history`` has run id -> line number -> row, as the server would show them.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.latency_s = 200, 0.0
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.num_failed = 0
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def rows(self) -> list[dict[str, Any]]:
        """Those of the only run, in their order."""
        (lines,) = self.history.values()
        return [lines[number] for number in sorted(lines)]


@contextmanager
def serve() -> Iterator[WandbServer]:
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on stderr."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self._fails():
            return
        value = json.loads(body or b"{}")
        if self.path.endswith("/file_stream"):
            self._take_rows(self.path.split("/")[-2], value)
            self._answer({"exitcode": None, "limits": {}})
        else:
            self._answer({"data": self._ask(value)})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._fails():
            self._answer({})

    def do_GET(self) -> None:
        if not self._fails():
            self._answer({})

    def _fails(self) -> bool:
        time.sleep(self.server.latency_s)
        if self.server.status == 200:
            return False
        self.server.num_failed += 1
        self._answer({"error": "injected"}, self.server.status)
        return True

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the client did not wait

    def _take_rows(self, run: str, value: dict[str, Any]) -> None:
        part = (value.get("files") or {}).get("wandb-history.jsonl")
        if part:
            lines = self.server.history.setdefault(run, {})
            lines.update({part["offset"] + index: json.loads(line) for index, line in enumerate(part["content"])})

    def _ask(self, value: dict[str, Any]) -> dict[str, Any]:
        """What a GraphQL query is answered; ``operationName`` says which it is, else its text."""
        query, given = value.get("query", ""), value.get("variables") or {}
        self.server.seen.append(query.split("(")[0].split("{")[0].strip())
        entity = {"id": "e", "name": "me"}
        project = {"id": "p", "name": "tuneyard", "entity": entity}
        if "upsertBucket" in query:
            run = given.get("name") or "run"
            lines = self.server.history.setdefault(run, {})
            bucket = {"id": run, "name": run, "displayName": run, "description": "", "config": "{}", "project": project}
            bucket |= {"sweepName": None, "historyLineCount": len(lines)}
            return {"upsertBucket": {"bucket": bucket, "inserted": not lines}}
        if "bucket(" in query:
            lines = self.server.history.get(str(given.get("name")), {})
            return {"model": {**project, "bucket": self._describe(str(given.get("name")), lines) if lines else None}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{name}"} for name in given.get("files", [])]
            return {"createRunFiles": {"runID": given.get("run"), "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": []}}
        return {"entity": None}

    def _describe(self, run: str, lines: dict[int, dict[str, Any]]) -> dict[str, Any]:
        last = lines[max(lines)]
        return {
            "id": run,
            "name": run,
            "displayName": run,
            "tags": [],
            "config": "{}",
            "wandbConfig": json.dumps({"t": 1}),
            "summaryMetrics": json.dumps({"_step": last["_step"]}),
            "historyTail": json.dumps([json.dumps(last)]),
            "eventsTail": "[]",
            "historyLineCount": len(lines),
            "logLineCount": 0,
            "eventsLineCount": 0,
        }
