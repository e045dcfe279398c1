"""``python -m celery_hybrid.verify``: a table for people, JSON for programs."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from .names import NAMES
from .report import Check, CheckReport
from .request import VerifyRequest, VerifyRequestError
from .runner import run


def main(arguments: list[str] | None = None) -> int:
    """Verify, print, and return the exit code.

    Returns:
        0: every check passed; 1: one failed; 2: the request could not be understood.
    """
    options = _parser().parse_args(arguments)
    if options.names:
        for name, meaning in NAMES.items():
            sys.stdout.write(f"{name:<38} {meaning}\n")
        return 0
    try:
        request = _request(options)
    except (VerifyRequestError, OSError, ValueError) as exc:
        sys.stderr.write(f"celery_hybrid.verify: {exc}\n")
        return 2
    # An application may print while it is imported; the answer must stay readable for programs.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.getLogger("kombu").setLevel(logging.ERROR)
    if options.request:

        def tell(check: Check) -> None:
            _line(out, {"check": asdict(check)})

        report = run(request, tell)
        _line(out, {"end": report.as_dict()["summary"], "skipped": report.skipped})
    else:
        report = run(request)
        if options.json:
            _line(out, report.as_dict())
        else:
            print_table(report, out)
        out.flush()
    return 0 if report.ok else 1


def _line(out: TextIO, data: dict[str, Any]) -> None:
    """Print a line immediately, so that what was found is kept when this program is killed."""
    out.write(json.dumps(data) + "\n")
    out.flush()


def print_table(report: CheckReport, out: TextIO) -> None:
    """One line per check, then the sentences of those that failed."""
    width = max((len(check.name) for check in report.checks), default=0)
    for check in report.checks:
        verdict = "ok    " if check.ok else "FAILED"
        out.write(f"{verdict}  {check.name:<{width}}  {check.milliseconds:>8.1f} ms  {check.actual}\n")
    for name, why in report.skipped.items():
        out.write(f"-       {name:<{width}}  {'':>8}     left out{f': {why}' if why else ''}\n")
    summary = report.as_dict()["summary"]
    out.write(f"\n{summary['passed']} of {summary['checks']} checks passed\n")
    for sentence in report.sentences():
        out.write(f"\n{sentence}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m celery_hybrid.verify",
        description="Prove that tasks go through Redis and results through RabbitMQ. URLs are taken from the "
        "environment (CELERY_BROKER_URL, CELERY_RESULT_BACKEND) and the configuration. Changes nothing that lasts.",
    )
    parser.add_argument("--app", help="the application, as for 'celery -A'")
    parser.add_argument("--config", metavar="MODULE", help="configuration module (default: CELERY_CONFIG_MODULE)")
    parser.add_argument("--queue", action="append", default=[], help="queue that gets a canary (default: all declared)")
    parser.add_argument("--node", action="append", default=[], help="node name that must answer")
    parser.add_argument("--skip", action="append", default=[], metavar="CHECK", help="leave a check out")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds a canary may take (default: %(default)g)")
    parser.add_argument("--facts", type=Path, metavar="FILE", help="JSON with broker_facts and results_facts")
    parser.add_argument(
        "--letters",
        type=Path,
        metavar="FILE",
        help="JSON with user and password of who may read dead letters; without it canary.refused is left out",
    )
    parser.add_argument("--json", action="store_true", help="print data")
    parser.add_argument("--names", action="store_true", help="list the checks and end")
    parser.add_argument(
        "--request",
        choices=["-"],
        help="read the request as JSON from standard input; print JSON lines",
    )
    return parser


def _request(options: argparse.Namespace) -> VerifyRequest:
    if options.request:
        return VerifyRequest.from_mapping(json.load(sys.stdin))
    data: dict[str, Any] = json.loads(options.facts.read_text("utf-8")) if options.facts else {}
    data["letters"] = json.loads(options.letters.read_text("utf-8")) if options.letters else None
    data.update(
        app=options.app,
        config_module=options.config,
        # As 'celery -A' does.
        python_path=[str(Path.cwd())],
        queues=options.queue,
        nodes=options.node,
        skip=options.skip,
        canary_timeout=options.timeout,
    )
    return VerifyRequest.from_mapping(data)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Threads of a result backend must not keep a finished verification alive.
    os._exit(code)
