"""The predecessor's workflow client (`mi-system-wf.py`), for tests. Its quirks:

- appends `:50443` to the base URL, and does not check certificates;
- sends a JSON body with GET;
- stops on every HTTP status but 200 and 201;
- takes the second part of `status:x`, and crashes where there is no colon;
- sends a missing input as three empty strings;
- always asks for stdout and stderr as two more results;
- force-deletes its job when it is destroyed early.
"""

from __future__ import annotations

import base64
import os
import signal
import sys
import time
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from predecessor.calls import STDERR_NAME, STDOUT_NAME, Caller, file_words


class Stopped(Exception):
    """The client gives up: exit status 1."""


class WorkflowClient:
    """One run of the client. `interval` is the time between polls in seconds (the predecessor: 10)."""

    def __init__(self, words: list[str], interval: float = 10.0, port: int = 50443) -> None:
        base_url, self.site_id, token, self.command, inputs, results = words[:6]
        self.parameters = words[6] if len(words) > 6 else ""
        self.inputs = inputs.split(":") if inputs else []
        self.results = [*(results.split(":") if results else []), STDOUT_NAME, STDERR_NAME]
        self.interval = interval
        self.caller = Caller(base_url, token, port)
        self.accept_id: str | None = None

    def entry(self, method: str, name: str, query: dict[str, str] | None, body: Any) -> dict[str, Any]:
        status, answer = self.caller.call(method, name, query, body)
        if status not in (200, 201):
            raise Stopped(f"{name}: HTTP {status}")
        entry: dict[str, Any] = answer["errors"][0]
        if entry["code"] != 200:
            raise Stopped(f"{name}: {entry['code']} {entry['message']}")
        return entry

    def about_job(self, method: str, name: str, **more: str) -> dict[str, Any]:
        body = {"accept_id": str(self.accept_id), **more}
        return self.entry(method, name, {"accept_id": str(self.accept_id)} if method == "GET" else None, body)

    def input_files(self) -> dict[str, list[str]]:
        files = {}
        for name in self.inputs:
            if not os.path.isfile(name):
                files[name] = ["", "", ""]
                continue
            with open(name, "rb") as stream:
                files[name] = [base64.b64encode(stream.read()).decode(), *file_words(name)]
        return files

    def register(self) -> None:
        info = {
            "command": self.command,
            "remote-site": self.site_id,
            "parameters": self.parameters,
            "parameter_files": self.input_files(),
            "result_files": {name: {"content": "", "mimetype1": "", "mimetype2": ""} for name in self.results},
        }
        self.accept_id = self.entry("POST", "add-calcinfo", None, {"calc-info": info})["accept_id"]

    def wait(self) -> str:
        """Poll until the progress is `got return`; the status is the last one seen."""
        while True:
            status = self.about_job("GET", "calc-status")["message"].split(":")[1]
            progress = self.about_job("GET", "calc-progress")["message"].split(":")[1]
            if progress == "got return":
                return str(status)
            time.sleep(self.interval)

    def fetch(self) -> None:
        entry = self.about_job("GET", "get-calc-result")
        self.accept_id = None
        for name, value in entry["result-info"]["result_files"].items():
            if value["mimetype1"] == "Error":
                print(f"{name}: {value['mimetype2']}")
                continue
            with open(name, "wb") as stream:
                stream.write(base64.b64decode(value["content"]))

    def run(self) -> int:
        """The exit status."""
        try:
            self.register()
            self.about_job("POST", "allow-wait-calc")
            status = self.wait()
            self.fetch()
        except Stopped as error:
            print(error)
            return 1
        finally:
            self.destroy()
        return 1 if status == "abnormal" else 0

    def destroy(self) -> None:
        if self.accept_id is not None:
            accept_id, self.accept_id = self.accept_id, None
            self.caller.call("POST", "cancel-wait-calc", None, {"accept_id": accept_id, "delete": "force"})


def stop(number: int, frame: Any) -> None:
    sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.exit(
        WorkflowClient(
            sys.argv[1:],
            float(os.environ.get("PREDECESSOR_INTERVAL", "10")),
            int(os.environ.get("PREDECESSOR_PORT", "50443")),
        ).run()
    )
