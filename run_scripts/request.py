#!/usr/bin/env python3
"""Ask a served model about a clip, a text or both. Prints the answer, and writes it to response.txt.

request.py http://127.0.0.1:8000/predictions/toy_actions clip.mp4 --text "a person sneezes"
"""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path

RESPONSE = Path("response.txt")
BOUNDARY = uuid.uuid4().hex  # is in no clip

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("url", help="http://HOST:PORT/predictions/MODEL")
parser.add_argument("clip", nargs="?", type=Path, help="media file")
source = parser.add_mutually_exclusive_group()
source.add_argument("--text", help="text, or question")
source.add_argument("--info", type=Path, help="JSON file whose `script` is the text")
parser.add_argument("--top_k", help="largest number of results")
parser.add_argument("--threshold", help="smallest score of a result")
parser.add_argument("--token_file", type=Path, help="file with the bearer token; default: SIMPLE_MULTIMODAL_TOKEN")
args = parser.parse_args()
if not args.url.startswith(("http://", "https://")):
    parser.error("the URL begins with http://")

RESPONSE.unlink(missing_ok=True)
parts: dict[str, bytes] = {}
try:
    texts = {"script": args.text, "top_k": args.top_k, "threshold": args.threshold}
    if args.info:
        texts["script"] = json.loads(args.info.read_text(encoding="utf-8"))["script"]
    if args.clip:
        parts['name="data"; filename="clip"'] = args.clip.read_bytes()
    token = args.token_file.read_text().strip() if args.token_file else os.environ.get("SIMPLE_MULTIMODAL_TOKEN")
except OSError as error:
    parser.error(f"{error.filename}: {error.strerror}")
except (ValueError, LookupError, TypeError):
    parser.error(f'{args.info} must hold {{"script": "a text"}} as JSON')
parts |= {f'name="{name}"': text.encode() for name, text in texts.items() if text}
body = b""
for name, part in parts.items():
    body += f"--{BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + part + b"\r\n"
body += f"--{BOUNDARY}--\r\n".encode()
headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
headers |= {"Authorization": f"Bearer {token}"} if token else {}
try:
    with urllib.request.urlopen(urllib.request.Request(args.url, body, headers)) as response:
        answer = response.read().decode()
except urllib.error.HTTPError as error:
    sys.exit(f"request.py: {error.code} {error.read().decode()}")
except OSError as error:
    sys.exit(f"request.py: {args.url}: {error}; is the server running?")
RESPONSE.write_text(answer + "\n", encoding="utf-8")
print(answer)
