"""The predecessor's way to take a job with its files: Flask reads the JSON whole, decodes each file and writes it.

flask_server.py PORT FOLDER
"""

from __future__ import annotations

import base64
import sys
import uuid
from pathlib import Path
from typing import Any

from flask import Flask, request

app = Flask(__name__)
folder = Path(sys.argv[2])


@app.post("/mi-distcomp-api/add-calcinfo")
def add_calcinfo() -> dict[str, Any]:
    """Register a job."""
    info = request.get_json()["calc-info"]
    job = str(uuid.uuid4())
    (folder / job).mkdir()
    for number, (text, _mime, _charset) in enumerate(info["parameter_files"].values()):
        (folder / job / str(number)).write_bytes(base64.b64decode(text))
    return {"errors": [{"code": 200, "message": "registered", "accept_id": job}]}


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]), threaded=True)
