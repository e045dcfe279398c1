# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures of a run of the benchmarks, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Rounds = dict[str, list[float]]

OURS = "hybrid"
STORES_GOAL = 0.8
TASKS_GOAL = 1.0
FIRST_GOAL_MS = 2000.0
FURTHER_GOAL_MS = 20.0
CANVAS_GOAL = 1.2


def number(value: float) -> str:
    """Return a number with three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """Return the smallest and the largest value."""
    return f"{number(min(values))} to {number(max(values))}"


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that so many percent of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def ratios(better: Sequence[float], worse: Sequence[float]) -> list[float]:
    """Return the ratio of each round: above 1 where ``better`` is larger."""
    return [one / other for one, other in zip(better, worse, strict=False)]


def ratio(values: Sequence[float]) -> str:
    """Return the median ratio, and its spread."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def verdict(goal: str, held: bool) -> str:
    """Return what the table says of a goal."""
    return f"{goal}: {'held' if held else '**missed**'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["", *(f"| {' | '.join(line)} |" for line in lines)]


class Report:
    """Takes the figures and says what they mean.

    Args:
        labels: what the sides are called.
        facts: about the machine and the run, name and value.
    """

    def __init__(self, labels: dict[str, str], facts: dict[str, str]) -> None:
        self._labels = labels
        self.facts = facts
        self._sections: list[str] = []

    def text(self) -> str:
        """Return everything."""
        lines = [
            "# Benchmarks",
            "",
            "Written by `make bench`, not by hand; run it again to check. The sides take turns in one run on one",
            "machine, which may do other things meanwhile: all sides meet those, so **the ratios are what counts**,",
            "not the figures that they come from. A ratio says how many times as good ours is as the side of that",
            "line: above 1 ours is better. It is the median of the ratios of all rounds, with the smallest and the",
            "largest. No figure decides whether a test passes.",
            "",
            *(f"* {name}: {value}" for name, value in self.facts.items()),
            *self._sections,
        ]
        return "\n".join(lines).rstrip() + "\n"

    def _section(self, title: str, words: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._sections += ["", f"## {title}", "", words, *table(head, rows)]

    def _failures(self, failed: dict[str, str], columns: int) -> list[list[str]]:
        return [[self._labels[name], f"did not work: {why}", *[""] * (columns - 2)] for name, why in failed.items()]

    def stores(self, rates: Rounds, costs: Rounds, count: int) -> None:
        """Case 1: results stored per second, and microseconds of processor time of the process for each, by round."""
        labels = {
            OURS: "`store_result` of ours",
            "raw": "py-amqp alone, the same bytes",
            "redis": "`store_result` of `redis://`",
        }
        rows = []
        for name, values in rates.items():
            against = ratios(rates[OURS], values)
            held = statistics.median(against) >= STORES_GOAL
            rows.append(
                [
                    labels[name],
                    f"{len(values)} x {count}",
                    number(statistics.median(values)),
                    spread(values),
                    number(statistics.median(costs[name])),
                    "" if name == OURS else ratio(against),
                    verdict(f"at least {STORES_GOAL}", held) if name == "raw" else "",
                ]
            )
        self._section(
            "Storing results",
            "One process stores the results of ended tasks one after the other. *py-amqp alone* publishes the same\n"
            "messages to the same streams, already encoded, and waits for a confirm each. So the ratio to it is what\n"
            "is left after all that a result backend has to do beside that; the goal is held against it. Redis\n"
            "answers before the result is on disk.",
            ["what", "n", "per second", "spread", "its CPU, µs each", "ratio", "goal"],
            rows,
        )

    def tasks(self, seconds: Rounds, count: int, failed: dict[str, str]) -> None:
        """Case 2: seconds for so many tasks, by round."""
        rows = []
        for name, values in seconds.items():
            if not values:
                continue
            against = ratios(values, seconds[OURS])
            held = statistics.median(against) >= TASKS_GOAL
            rates = [count / value for value in values]
            rows.append(
                [
                    self._labels[name],
                    f"{len(values)} x {count:,}",
                    number(statistics.median(rates)),
                    spread(rates),
                    "" if name == OURS else ratio(against),
                    verdict(f"at least {TASKS_GOAL}", held) if name == "redis" else "",
                ]
            )
        self._section(
            "Tasks from end to end",
            f"A client sends {count:,} tasks that add two numbers and collects all results. The worker has two\n"
            "processes (prefork) and the settings of the role: acknowledged late, `worker_prefetch_multiplier` 1,\n"
            "`task_track_started` (so two records a task), `result_extended`, events.",
            ["results in", "n", "tasks per second", "spread", "ratio", "goal"],
            [*rows, *self._failures(failed, 6)],
        )

    def task_costs(self, rounds: dict[str, list[dict[str, float]]], count: int) -> None:
        """Case 2 as well: processor seconds by process, by round."""
        rows = []
        ours = [sum(cpu.values()) for cpu in rounds[OURS]]
        who = next(list(values[0]) for values in rounds.values() if values)
        for name, values in rounds.items():
            if not values:
                continue
            totals = [sum(cpu.values()) for cpu in values]
            costs = [1000 * statistics.median(cpu[one] for cpu in values) / count for one in who]
            rows.append(
                [
                    self._labels[name],
                    *map(number, costs),
                    number(1000 * statistics.median(totals) / count),
                    "" if name == OURS else ratio(ratios(totals, ours)),
                ]
            )
        self._section(
            "What a task takes of the processors",
            "Milliseconds of processor time for each task of the case before. Where clients, workers and servers\n"
            "share the cores, the sum is what limits the tasks per second; other load changes it far less than these.",
            ["results in", *who, "sum", "ratio"],
            rows,
        )

    def round_trips(self, times: dict[str, list[list[float]]], failed: dict[str, str]) -> None:
        """Case 3: milliseconds of each call, by round."""
        rows = []
        medians = {name: [statistics.median(values) for values in rounds] for name, rounds in times.items()}
        for name, rounds in times.items():
            every = [value for values in rounds for value in values]
            if not every:
                continue
            against = ratios(medians[name], medians[OURS])
            rows.append(
                [
                    self._labels[name],
                    f"{len(every)}",
                    number(statistics.median(every)),
                    number(percentile(every, 99)),
                    spread(medians[name]),
                    "" if name == OURS else ratio(against),
                    verdict(f"at least {TASKS_GOAL}", statistics.median(against) >= TASKS_GOAL)
                    if name == "redis"
                    else "",
                ]
            )
        self._section(
            "One round trip",
            "`add.delay().get()`, one call after the other: milliseconds from the call to the value. Spread and ratio\n"
            "are those of the rounds' medians.",
            ["results in", "n", "median ms", "99th percentile", "spread", "ratio", "goal"],
            [*rows, *self._failures(failed, 7)],
        )

    def look_ups(self, first: Rounds, further: Rounds, live: int) -> None:
        """Case 4: milliseconds of look-ups by id in fresh processes."""
        rows = []
        for what, times, goal in (
            ("the first look-up", first, FIRST_GOAL_MS),
            ("each further look-up", further, FURTHER_GOAL_MS),
        ):
            for name, values in times.items():
                if not values:
                    continue
                slowest = max(values) if times is first else percentile(values, 99)
                rows.append(
                    [
                        f"{what}, {self._labels[name]}",
                        str(len(values)),
                        number(statistics.median(values)),
                        number(percentile(values, 99)),
                        number(max(values)),
                        "" if name == OURS else f"{statistics.median(values) / statistics.median(times[OURS]):.3f}",
                        verdict(f"at most {goal:,.0f} ms", slowest <= goal) if name == OURS else "",
                    ]
                )
        self._section(
            f"Look-up by id among {live:,} live results",
            "A fresh process, which has sent none of the tasks, asks for the state of one random id, connecting\n"
            "included, then for others; ours reads each partition of the archive when it is asked for the first time,\n"
            "which the slowest probably were. The goals are held against the slowest first look-up and against the\n"
            "99th percentile of the others.",
            ["what", "n", "median ms", "99th percentile", "slowest", "ratio", "goal"],
            rows,
        )

    def canvases(self, few: Rounds, many: Rounds, live: int) -> None:
        """Case 6: milliseconds of chains and chords, before and after so many results were stored."""
        rows = []
        for name, values in many.items():
            growth = statistics.median(values) / statistics.median(few[name])
            for archive, times in ((f"{live:,} live results", values), ("as it was at the beginning", few[name])):
                rows.append(
                    [
                        name,
                        archive,
                        str(len(times)),
                        number(statistics.median(times)),
                        number(max(times)),
                        f"{growth:.2f}" if times is values else "",
                        verdict(f"at most {CANVAS_GOAL}", growth <= CANVAS_GOAL) if times is values else "",
                    ]
                )
        self._section(
            "Chains and chords beside a large archive",
            "A fresh client process sends one after the other and waits with `get()`. The growth is the ratio of the\n"
            "medians: who waits is woken by a message, however many results are kept.",
            ["what", "archive", "n", "median ms", "slowest", "growth", "goal"],
            rows,
        )

    def memory(
        self,
        live: int,
        servers: tuple[dict[str, float], dict[str, float]],
        processes: Sequence[tuple[str, float, float]],
        queues: tuple[int, dict[str, float], dict[str, float]] | None,
    ) -> None:
        """Case 5: MiB before and after.

        Args:
            live: results put into the store in between.
            servers: memory and disk of the servers before and after.
            processes: what, PSS before, PSS after.
            queues: how many results with a queue each, and the servers before and after those.
        """
        before, after = servers
        lines: list[tuple[str, float, float, int]] = [
            (f"RabbitMQ, {live:,} results of ours", before["rabbitmq"], after["rabbitmq"], live),
            ("RabbitMQ's disk", before["rabbitmq_disk"], after["rabbitmq_disk"], live),
            (f"Redis, {live:,} results", before["redis"], after["redis"], live),
            ("Redis' disk", before["redis_disk"], after["redis_disk"], live),
        ]
        if queues is not None:
            count, start, end = queues
            lines.append((f"RabbitMQ, {count:,} results in a queue each", start["rabbitmq"], end["rabbitmq"], count))
            lines.append(("RabbitMQ's disk", start["rabbitmq_disk"], end["rabbitmq_disk"], count))
        rows = [
            [what, number(start), number(end), f"{1024 * (end - start) / count:.2f}"]
            for what, start, end, count in lines
        ]
        rows += [[what, number(start), number(end), ""] for what, start, end in processes]
        self._section(
            "Memory",
            "MiB before and after: the resident set of RabbitMQ, `used_memory` of Redis, and what their data\n"
            "directories take on disk; of processes the resident set, which a worker's child shares in part.",
            ["what", "before", "after", "KiB for each result"],
            rows,
        )

    def idle(self, costs: dict[tuple[str, str], tuple[float, int]], seconds: float) -> None:
        """Case 5: processor seconds and TCP segments of idle processes."""
        rows = []
        for (name, what), (cpu, messages) in costs.items():
            our_cpu, our_messages = costs[OURS, what]
            rows.append(
                [
                    f"{what}, {self._labels[name]}",
                    f"{cpu:.2f}",
                    str(messages),
                    "" if name == OURS else f"{cpu / our_cpu:.2f}" if our_cpu else "-",
                    "" if name == OURS else f"{messages / our_messages:.2f}" if our_messages else "-",
                ]
            )
        self._section(
            "Doing nothing",
            f"What a client that has sent tasks and a worker (main process and two children, broker included) take in\n"
            f"{seconds:.0f} s without tasks. Messages are TCP segments with data, both ways. All at the same time.",
            ["who", "CPU seconds", "messages", "ratio of CPU", "ratio of messages"],
            rows,
        )
