"""Run pip with what it needs to know and others must not see.

The ``worker`` role pipes this program, with a call of :func:`main` after it, to the Python of a new virtual
environment. Variables of a task of Ansible stand on the command line of the remote shell, and pip hands the URLs of
indexes to the pips that it starts for builds on theirs, so that every user of the host could read a password there.
Here the variables come by standard input, and users and passwords of URLs go from them into a netrc file without a
name, which ends with the process.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit, urlunsplit

# Each is one URL, or several with blanks between them.
URLS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")


def apart(environment: dict[str, str]) -> tuple[dict[str, str], str]:
    """Return the variables without users and passwords in URLs, and these as the text of a netrc file."""
    clean, entries = dict(environment), {}
    for name in URLS:
        words = []
        for word in clean.get(name, "").split():
            parts = urlsplit(word)
            if parts.scheme in ("http", "https") and parts.hostname and "@" in parts.netloc:
                login, password = unquote(parts.username or ""), unquote(parts.password or "")
                entries[parts.hostname] = (
                    f"machine {parts.hostname} login {quoted(login)} password {quoted(password)}\n"
                )
                words.append(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
            else:
                words.append(word)
        if words:
            clean[name] = " ".join(words)
    return clean, "".join(entries.values())


def quoted(text: str) -> str:
    """Return a word of a netrc file, as Python's netrc module reads it."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def netrc(text: str, home: str) -> str:
    """Keep the text of a netrc file in memory, after that of the home directory; return a path to it.

    Processes of the same user can read it there as long as this one, or what takes its place, runs.
    """
    own = Path(home, ".netrc")
    before = own.read_text() if own.is_file() else ""
    descriptor = os.memfd_create("netrc")
    os.write(descriptor, f"{before}\n{text}".encode())
    os.set_inheritable(descriptor, True)
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def main(encoded: str) -> NoReturn:
    """Become the command that is described by base64 of JSON: its ``command`` and ``environment``."""
    request = json.loads(base64.b64decode(encoded))
    environment, text = apart({name: str(value) for name, value in request["environment"].items()})
    if text and "NETRC" not in environment:
        environment["NETRC"] = netrc(text, os.path.expanduser("~"))  # noqa: PTH111
    sys.stdout.flush()
    os.execve(request["command"][0], request["command"], {**os.environ, **environment})  # noqa: S606
