"""The predecessor's polling client at a site (`mi-system-remote.py`), for tests. Its quirks:

- appends `:50443` to the base URL (`port:N` changes it), and prints the token;
- `no_auth` means no check of the certificate, `no_auth:FILE` a CA file;
- throws the first answer to calc-request away and asks again;
- tolerates HTTP errors on calc-request: prints, and polls again;
- uses the last part of each input's name;
- runs the command with its parameters through a shell, in the job's directory, with CALC_DIR;
- counts a program that made none of its outputs as abnormal, whatever its exit status;
- keeps all output in memory and decodes it as UTF-8;
- waits between the steps, and ends with an error after its retries.
"""

from __future__ import annotations

import base64
import http.client
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from predecessor.calls import STDERR_NAME, STDOUT_NAME, Caller, file_words


class Stopped(Exception):
    """The client ends with an error: exit status 1."""


@dataclass
class Timing:
    """Seconds: between polls and between steps. `jobs`: end after so many (None: never)."""

    poll: float = 30.0
    step: float = 10.0
    jobs: int | None = None
    send_after_abnormal: bool = True


class RemoteClient:
    """One run of the client."""

    def __init__(self, words: list[str], timing: Timing) -> None:
        self.site_id, base_url, token = words[:3]
        if token == "login":
            raise Stopped("the double knows no login")
        self.timing = timing
        self.retry, self.retry_interval = 5, 60.0
        self.calc_base = "/tmp"
        self.caller = Caller(base_url, token)
        for word in words[3:]:
            self.option(word)
        print(f"site id = {self.site_id}")
        print(f"base url = {self.caller.address}")
        print(f"token = {token}")

    def option(self, word: str) -> None:
        name, _, value = word.partition(":")
        if name == "retry":
            count, interval = value.split(",")
            self.retry, self.retry_interval = int(count), float(interval)
        elif name == "no_auth":
            self.caller.cafile = value or None
        elif name == "port":
            self.caller.port = int(value)
        elif name == "calc_base":
            self.calc_base = value

    def call(self, method: str, name: str, **values: Any) -> tuple[int, Any]:
        """One call, tried again where there is no answer at all."""
        query = values if method == "GET" else None
        for attempt in range(self.retry + 1):
            try:
                return self.caller.call(method, name, query, None if query else values)
            except (OSError, http.client.HTTPException) as error:
                print(f"{name}: {error}")
                if attempt < self.retry:
                    time.sleep(self.retry_interval)
        raise Stopped(f"{name}: no answer")

    def about_job(self, name: str, accept_id: str, **more: Any) -> None:
        _, answer = self.call("POST", name, accept_id=accept_id, site_id=self.site_id, **more)
        code = answer["errors"][0]["code"]
        if code != 200:
            raise Stopped(f"{name}: {code} {answer['errors'][0]['message']}")
        time.sleep(self.timing.step)

    def poll(self) -> str | None:
        """The job to take, from the second of two answers."""
        self.call("GET", "calc-request", site_id=self.site_id)
        status, answer = self.call("GET", "calc-request", site_id=self.site_id)
        if status not in (200, 201) or answer is None:
            print(f"calc-request: HTTP {status}")
            return None
        entry = answer["errors"][0]
        return str(entry["accept_id"]) if entry["code"] == 200 else None

    def receive(self, accept_id: str) -> tuple[str, dict[str, Any]]:
        """The job's directory, with its inputs, and what is to be done."""
        _, answer = self.call("GET", "calc-params", accept_id=accept_id, site_id=self.site_id)
        if "errors" in answer:
            raise Stopped(f"calc-params: {answer['errors'][0]['code']}")
        info: dict[str, Any] = answer["calc-info"]
        directory = os.path.join(self.calc_base, accept_id)
        os.makedirs(directory)
        for name, value in info["parameter_files"].items():
            with open(os.path.join(directory, name.split("/")[-1]), "wb") as stream:
                stream.write(base64.b64decode(value[0]))
        return directory, info

    def compute(self, directory: str, info: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Whether it was abnormal, and the results."""
        command = f"{info['command']} {info['parameters']}"
        environment = {**os.environ, "CALC_DIR": directory}
        done = subprocess.run(command, shell=True, cwd=directory, env=environment, capture_output=True, check=False)
        said = {STDOUT_NAME: done.stdout.decode("utf-8"), STDERR_NAME: done.stderr.decode("utf-8")}
        results = {name: self.result(directory, name, said) for name in info["result_files"]}
        outputs = [value for name, value in results.items() if name not in said]
        none_made = bool(outputs) and all(value["mimetype1"] == "Error" for value in outputs)
        return done.returncode != 0 or none_made, results

    def result(self, directory: str, name: str, said: dict[str, str]) -> dict[str, str]:
        path = os.path.join(directory, name)
        if name in said:
            content, words = said[name].encode(), ["text/plain;", "charset=utf-8"]
        elif os.path.isfile(path):
            with open(path, "rb") as stream:
                content = stream.read()
            words = file_words(path)
        else:
            content, words = b"", ["Error", f"{name} was not made"]
        return {"content": base64.b64encode(content).decode(), "mimetype1": words[0], "mimetype2": words[1]}

    def serve(self, accept_id: str) -> None:
        """One job."""
        directory, info = self.receive(accept_id)
        self.about_job("calc-params-complete", accept_id)
        self.about_job("calc-start", accept_id)
        abnormal, results = self.compute(directory, info)
        self.about_job("calc-end", accept_id, result="abnormal" if abnormal else "calc end")
        if abnormal and not self.timing.send_after_abnormal:
            return
        self.about_job("send-results", accept_id, result_files=results)
        self.about_job("end-send", accept_id, result="end send")

    def run(self) -> int:
        """Serve jobs; the exit status."""
        served = 0
        try:
            while served != self.timing.jobs:
                accept_id = self.poll()
                if accept_id is None:
                    time.sleep(self.timing.poll)
                    continue
                self.serve(accept_id)
                served += 1
        except Stopped as error:
            print(error)
            return 1
        return 0


if __name__ == "__main__":
    seconds = float(os.environ.get("PREDECESSOR_INTERVAL", "10"))
    count = os.environ.get("PREDECESSOR_JOBS")
    keep_on = os.environ.get("PREDECESSOR_AFTER_ABNORMAL", "send") == "send"
    sys.exit(RemoteClient(sys.argv[1:], Timing(seconds, seconds, int(count) if count else None, keep_on)).run())
