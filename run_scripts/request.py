#!/usr/bin/env python3
"""Ask a served model about a clip, a text or both. Prints the answer, and writes it to response.txt.

request.py http://127.0.0.1:8000/predictions/toy_actions clip.mp4 --text "a person sneezes"
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path

BOUNDARY = uuid.uuid4().hex  # is in no clip

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("url", help="http://HOST:PORT/predictions/MODEL")
parser.add_argument("clip", nargs="?", type=Path, help="media file")
parser.add_argument("--text", default="", help="text, or question")
parser.add_argument("--info", type=Path, help="JSON file whose `script` is the text")
parser.add_argument("--token_file", type=Path, help="file with the bearer token")
args = parser.parse_args()

text = json.loads(args.info.read_text(encoding="utf-8"))["script"] if args.info else args.text
parts = {'name="data"; filename="clip"': args.clip.read_bytes()} if args.clip else {}
parts |= {'name="script"': text.encode()} if text else {}
body = b""
for name, part in parts.items():
    body += f"--{BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + part + b"\r\n"
body += f"--{BOUNDARY}--\r\n".encode()
headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
headers |= {"Authorization": f"Bearer {args.token_file.read_text().strip()}"} if args.token_file else {}
try:
    with urllib.request.urlopen(urllib.request.Request(args.url, body, headers)) as response:
        answer = response.read().decode()
except urllib.error.HTTPError as error:
    sys.exit(f"request.py: {error.code} {error.read().decode()}")
except OSError as error:
    sys.exit(f"request.py: {error}")
Path("response.txt").write_text(answer + "\n", encoding="utf-8")
print(answer)
