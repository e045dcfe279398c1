# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that hold across the variables of the redis and rabbitmq roles, each broken one as a sentence.

Both take the role's variables by name, and what the role knows of the host: ``host`` (its name), ``distribution``,
``release``, ``platforms`` (tested releases by distribution), ``addresses``, ``memory_mb``, ``protected`` (lines that
the free-form dictionary may not contain) and ``tls_problems``.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.celeryops.hybrid.plugins.module_utils._redis import size_in_bytes
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._secrets import password_problem

Declared = t.Mapping[str, t.Any]
# Addresses that stand for all of a host.
_WILDCARDS = {"redis": ("0.0.0.0", "::", "*"), "rabbitmq": ("0.0.0.0", "::")}  # noqa: S104
_MEMORY = re.compile(r"[0-9]+([kmg]b?)?", re.IGNORECASE)
_MEBIBYTE = 1048576
_NODE_NAME = re.compile(r"[A-Za-z0-9_-]+@[A-Za-z0-9_-]+")
_PLUGIN = re.compile(r"[a-z0-9_]+")
REDIS_USERS = ("admin", "celery", "client", "monitoring")


def redis_problems(declared: Declared) -> list[str]:
    """Return a sentence for every rule that the declaration of a Redis breaks.

    Args:
        declared: see the module; also ``databases``, their number.
    """
    rules = (_redis_passwords, _redis_users, _redis_ports, _memory, _redis_config)
    return _of_both(declared, "redis") + [problem for rule in rules for problem in rule(declared)]


def rabbitmq_problems(declared: Declared) -> list[str]:
    """Return a sentence for every rule that the declaration of a RabbitMQ breaks.

    Args:
        declared: see the module.
    """
    rules = (_rabbitmq_passwords, _rabbitmq_users, _archive, _rabbitmq_ports, _plugins, _rabbitmq_config)
    return _of_both(declared, "rabbitmq") + [problem for rule in rules for problem in rule(declared)]


def _of_both(v: Declared, role: str) -> list[str]:
    problems = []
    if v["release"] not in v["platforms"].get(v["distribution"], ()):
        tested = "; ".join(f"{name} {' and '.join(releases)}" for name, releases in v["platforms"].items())
        problems.append(f"{v['host']} runs {v['distribution']} {v['release']}; the {role} role is for {tested}.")
    plain, tls = v[f"{role}_plain_enabled"], v[f"{role}_tls_enabled"]
    if not plain and not tls:
        problems.append(
            f"{role}_plain_enabled is false, and {role}_tls_enabled is not true, so no client could connect. Set one "
            "of them to true."
        )
    if tls:
        problems += [f"{v['host']}: {problem}" for problem in v["tls_problems"]]
    wanted = v[f"{role}_bind_addresses"]
    own = ["127.0.0.1", "::1", *v["addresses"]]
    foreign = [name for name in wanted if name not in (*own, *_WILDCARDS[role]) and not name.startswith("127.")]
    if not wanted or foreign:
        problems.append(
            f"{role}_bind_addresses: {v['host']} has no address "
            f"{', '.join(foreign) or 'to listen on, the list is empty'}. It has {', '.join(own)}; "
            "the default is 127.0.0.1 and the address of its default route."
        )
    return problems


def _passwords(v: Declared, users: t.Mapping[str, str], optional: t.Container[str]) -> list[str]:
    """The passwords that are missing or weak.

    Args:
        v: the declaration.
        users: the user of each password, by the name of the variable.
        optional: variables that may be empty.
    """
    return [
        f"{setting} {problem}. Make one with 'openssl rand -hex 24' and put it into an ansible-vault file, or export "
        f"{setting.upper()}."
        for setting, user in users.items()
        if v[setting] or setting not in optional
        if (problem := password_problem(v[setting], user))
    ]


def _redis_passwords(v: Declared) -> list[str]:
    users = {
        "redis_password": "celery",
        "redis_admin_password": "admin",
        "redis_client_password": "client",
        "redis_monitoring_password": "monitoring",
    }
    problems = _passwords(v, users, ("redis_client_password", "redis_monitoring_password"))
    problems += [
        f"redis_extra_users: the password of {user['name']!r} {problem}. Make one with 'openssl rand -hex 24' and put "
        "it into an ansible-vault file."
        for user in v["redis_extra_users"]
        if (problem := password_problem(user["password"], user["name"]))
    ]
    shared = [v["redis_password"], v["redis_admin_password"], v["redis_client_password"]]
    if not problems and (shared[0] == shared[1] or shared[2] in shared[:2]):
        problems.append(
            "Two of redis_password, redis_client_password and redis_admin_password are the same, so that every worker "
            "could administer Redis, or every application do what workers may. Make another with 'openssl rand -hex "
            "24'."
        )
    return problems


def _redis_users(v: Declared) -> list[str]:
    names = [user["name"] for user in v["redis_extra_users"]]
    if len(set(names)) == len(names) and not {"default", *REDIS_USERS} & set(names):
        return []
    return [
        "redis_extra_users must have different names, and none may be default, which is off, or one of the role's own "
        f"({', '.join(REDIS_USERS)}); declared are {', '.join(names)}."
    ]


def _redis_ports(v: Declared) -> list[str]:
    port, tls_port, database = int(v["redis_port"]), int(v["redis_tls_port"]), int(v["redis_db"])
    if _are_ports(port, tls_port) and 0 <= database < int(v["databases"]):
        return []
    return [
        f"redis_port ({port}) and redis_tls_port ({tls_port}) must be two different ports, 1 to 65535, and redis_db a "
        f"number below 'databases' of redis_config (redis_db is {database}, databases {v['databases']})."
    ]


def _memory(v: Declared) -> list[str]:
    text, host = str(v["redis_maxmemory"]), int(v["memory_mb"])
    if _MEMORY.fullmatch(text) and _MEBIBYTE < size_in_bytes(text) < host * _MEBIBYTE:
        return []
    return [
        f"redis_maxmemory is {text}; it must be a number with kb, mb or gb, more than 1mb and less than the {host} MB "
        f"that {v['host']} has. Leave it unset for a share of the host's memory."
    ]


def _redis_config(v: Declared) -> list[str]:
    clash = [name.lower() for name in v["redis_config"] if name.lower() in v["protected"]]
    if not clash:
        return []
    return [
        f"redis_config may not contain {', '.join(clash)}: the role sets it. Use the variable of that name "
        f"(redis_{clash[0].replace('-', '_')}) if there is one; maxmemory-policy, for example, is fixed to noeviction, "
        "because any other deletes queued tasks."
    ]


def _rabbitmq_passwords(v: Declared) -> list[str]:
    kinds = ("admin", "worker", "client", "monitoring", "letters")
    users = {f"rabbitmq_{kind}_password": v[f"rabbitmq_{kind}_user"] for kind in kinds}
    problems = _passwords(v, users, ("rabbitmq_letters_password",))
    if not problems and v["rabbitmq_admin_password"] in [v[setting] for setting in list(users)[1:]]:
        problems.append(
            "rabbitmq_admin_password is also the password of the worker, client, monitoring or letters user, who could "
            "then administer RabbitMQ. Make another with 'openssl rand -hex 24'."
        )
    return problems


def _rabbitmq_users(v: Declared) -> list[str]:
    kinds = ("admin", "worker", "client", "monitoring", "letters")
    settings = [f"rabbitmq_{kind}_user" for kind in kinds]
    names = [v[setting] for setting in settings]
    if len(set(names)) == len(names) and "guest" not in names:
        return []
    return [
        f"{', '.join(settings)} must have different names, and none may be guest, which is deleted; declared are "
        f"{', '.join(names)}."
    ]


def _archive(v: Declared) -> list[str]:
    partitions, expires = int(v["rabbitmq_partitions"]), int(v["rabbitmq_result_expires"])
    if 1 <= partitions <= 64 and expires >= 60:
        return []
    return [
        f"rabbitmq_partitions must be 1 to 64 (it is {partitions}), and rabbitmq_result_expires at least 60 seconds "
        f"(it is {expires})."
    ]


def _rabbitmq_ports(v: Declared) -> list[str]:
    port, tls_port, management = (int(v[f"rabbitmq_{kind}port"]) for kind in ("", "tls_", "management_"))
    problems = []
    if not _are_ports(port, tls_port, management):
        problems.append(
            f"rabbitmq_port ({port}), rabbitmq_tls_port ({tls_port}) and rabbitmq_management_port ({management}) must "
            "be three different ports, 1 to 65535."
        )
    if not _NODE_NAME.fullmatch(v["rabbitmq_node_name"]):
        problems.append(
            f"rabbitmq_node_name is {v['rabbitmq_node_name']!r}: it must be a name and a host without dots, such as "
            "rabbit@localhost."
        )
    if not v["rabbitmq_vhost"]:
        problems.append("rabbitmq_vhost is empty: name the virtual host, such as celery.")
    return problems


def _plugins(v: Declared) -> list[str]:
    plugins = v["rabbitmq_plugins"]
    if "rabbitmq_management" in plugins and all(_PLUGIN.fullmatch(name) for name in plugins):
        return []
    return [
        "rabbitmq_plugins must contain rabbitmq_management, through which the role declares the topology, and names of "
        f"plugins only; it is {', '.join(plugins)}."
    ]


def _rabbitmq_config(v: Declared) -> list[str]:
    clash = [name for name in v["rabbitmq_config"] if name in v["protected"]]
    if not clash:
        return []
    return [
        f"rabbitmq_config may not contain {', '.join(clash)}: the role sets it, or it would open what the role closes. "
        "Use the variable for it; README.md of the role lists them."
    ]


def _are_ports(*ports: int) -> bool:
    """Whether these are different TCP ports."""
    return len(set(ports)) == len(ports) and all(0 < port < 65536 for port in ports)
