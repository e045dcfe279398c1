"""Every kind of thing that the roles manage: how it is broken by hand, and what the drift report must say.

A new kind of thing is one more row; ``tests/unit/molecule/test_drift_rows.py`` fails for a managing task without one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One thing, broken by hand.

    Attributes:
        group: on the first host of this group.
        what: part of what the report calls the thing.
        declared: part of what it says is declared.
        actual: part of what it says is there.
        breaks: what ops or an intruder did, in a root shell; see PROLOGUE of test_drift.py for 'api', 'r' and 'edit'.
        covers: the tasks of the roles that manage it, as ``role: name``, or the kinds of objects, as ``role: kind``.
        layer: where the report places it.
        round: rounds are broken, seen and repaired one after the other, because some breaks hide others.
        more: parts of further findings that the same break causes.
    """

    group: str
    what: str
    declared: str
    actual: str
    breaks: str
    covers: tuple[str, ...]
    layer: str = "file"
    round: int = 1
    more: tuple[str, ...] = ()


SECRET = "differs (secret)"
UNITS = "/etc/systemd/system"

REDIS = (
    Row(
        "redis",
        "user redis",
        "",
        "differs",
        "usermod --append --groups adm redis",
        ("server: Keep the account out of other groups",),
        layer="object",
    ),
    Row(
        "redis",
        "/etc/systemd/system/service.d/10-all.conf",
        "absent",
        "a file",
        f"mkdir -p {UNITS}/service.d; printf '[Service]\\nTasksMax=500\\n' >{UNITS}/service.d/10-all.conf",
        ("redis: Move aside what changes the service and is not declared",),
    ),
    Row(
        "redis",
        "/etc/systemd/system/redis-.service.d/10-x.conf",
        "absent",
        "a file",
        f"mkdir -p {UNITS}/redis-.service.d; printf '[Service]\\nNice=10\\n' >{UNITS}/redis-.service.d/10-x.conf",
        ("redis: Move aside what changes the service and is not declared",),
    ),
    Row(
        "redis",
        "/etc/redis",
        "mode=02770",
        "mode=02777",
        "chmod 0777 /etc/redis",
        ("redis: /etc/redis",),
    ),
    Row(
        "redis",
        "/var/lib/redis",
        "owner=",
        "owner=0",
        "chown root /var/lib/redis",
        ("redis: {{ __redis_data }}",),
    ),
    Row(
        "redis",
        "/var/log/redis",
        "mode=02750",
        "mode=0700",
        "chmod 0700 /var/log/redis; chmod g-s /var/log/redis",
        ("redis: /var/log/redis",),
    ),
    Row(
        "redis",
        "/etc/redis/celeryops.conf",
        "appendfsync everysec",
        "appendfsync no",
        "edit 's/^appendfsync .*/appendfsync no/' /etc/redis/celeryops.conf",
        ("redis: {{ __redis_config_file }}",),
    ),
    Row(
        "redis",
        "/etc/redis/celeryops.acl",
        SECRET,
        SECRET,
        "echo 'user ghost off' >>/etc/redis/celeryops.acl",
        ("redis: {{ __redis_acl_file }}",),
    ),
    Row(
        "redis",
        f"{UNITS}/redis-server.service.d/celeryops.conf",
        "LimitNOFILE=",
        "LimitNOFILE=1024",
        f"edit 's/^LimitNOFILE=.*/LimitNOFILE=1024/' {UNITS}/redis-server.service.d/celeryops.conf",
        ("redis: /etc/systemd/system/{{ __redis_service }}.service.d/celeryops.conf",),
    ),
    Row(
        "redis",
        f"{UNITS}/redis-server.service.d",
        "mode=0755",
        "mode=0777",
        f"chmod 0777 {UNITS}/redis-server.service.d",
        ("redis: /etc/systemd/system/{{ __redis_service }}.service.d",),
    ),
    Row(
        "redis",
        f"{UNITS}/redis-server.service.d/override.conf",
        "absent",
        "a file",
        f"printf '[Service]\\nNice=5\\n' >{UNITS}/redis-server.service.d/override.conf",
        ("redis: Move aside what changes the service and is not declared",),
    ),
    Row(
        "redis",
        "service redis-server",
        "not masked",
        "masked",
        "systemctl mask --quiet redis-server",
        ("server: Enable and start the service",),
        layer="runtime",
    ),
    Row(
        "redis",
        "package redis-server",
        "install",
        "hold",
        "apt-mark --quiet hold redis-server",
        ("server: Allow upgrades of the package, or hold it back",),
        layer="package",
    ),
    Row(
        "redis",
        "maxmemory-policy",
        "noeviction",
        "allkeys-lru",
        "r CONFIG SET maxmemory-policy allkeys-lru",
        ("redis: settings",),
        layer="runtime",
    ),
    Row(
        "redis",
        "setting loglevel",
        "notice",
        "debug",
        "r CONFIG SET loglevel debug proto-max-bulk-len 1mb stop-writes-on-bgsave-error no replica-read-only no",
        ("redis: config_file",),
        layer="runtime",
        more=("setting proto-max-bulk-len", "setting stop-writes-on-bgsave-error", "setting replica-read-only"),
    ),
    Row(
        "redis",
        "user intruder",
        "absent",
        "+@all",
        "r ACL SETUSER intruder on nopass '~*' '&*' +@all",
        ("redis: users",),
        layer="object",
    ),
    Row(
        "redis",
        "user celery",
        "",
        "admin",
        "r ACL SETUSER celery +@admin",
        ("redis: users",),
        layer="object",
    ),
)

RABBITMQ = (
    Row(
        "rabbitmq",
        "user rabbitmq",
        "",
        "differs",
        "usermod --append --groups adm rabbitmq",
        ("server: Keep the account out of other groups",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "vhost_limits celery/max-connections",
        "absent",
        "40",
        'rabbitmqctl --quiet set_vhost_limits --vhost celery \'{"max-connections": 40, "max-queues": 10000}\'',
        ("rabbitmq: vhost_limits",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "user_limits worker/max-connections",
        "absent",
        "300",
        "rabbitmqctl --quiet set_user_limits worker '{\"max-connections\": 300}'",
        ("rabbitmq: vhost_limits",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "operator_policies celery/celery.reply",
        "expires",
        "absent",
        "api DELETE operator-policies/celery/celery.reply",
        ("rabbitmq: operator_policies",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "bindings celery/celery.results -> spy",
        "absent",
        "",
        """api PUT queues/celery/spy '{"durable": true}'"""
        """; api POST bindings/celery/e/celery.results/q/spy '{"routing_key": "celery.results.0"}'""",
        ("rabbitmq: bindings",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "setting memory_limit",
        "absolute",
        "0.9",
        "rabbitmqctl --quiet set_vm_memory_high_watermark 0.9; rabbitmqctl --quiet set_disk_free_limit 5GB",
        ("rabbitmq: memory_limit", "rabbitmq: disk_free_limit"),
        layer="runtime",
        more=("setting disk_free_limit",),
    ),
    Row(
        "rabbitmq",
        "setting log_level",
        "info",
        "debug",
        "rabbitmqctl --quiet set_log_level debug",
        ("rabbitmq: log_level",),
        layer="runtime",
    ),
    Row(
        "rabbitmq",
        "setting tracing of vhost celery",
        "false",
        "true",
        "rabbitmqctl --quiet trace_on --vhost celery",
        ("rabbitmq: untraced_vhosts",),
        layer="runtime",
    ),
    Row(
        "rabbitmq",
        "setting max_message_size",
        "16777216",
        "1000000",
        "rabbitmqctl --quiet eval 'application:set_env(rabbit, max_message_size, 1000000).'",
        ("rabbitmq: settings",),
        layer="runtime",
    ),
    Row(
        "rabbitmq",
        "/etc/rabbitmq",
        "mode=0755",
        "mode=0777",
        "chmod 0777 /etc/rabbitmq",
        ("rabbitmq: /etc/rabbitmq",),
    ),
    Row(
        "rabbitmq",
        "/var/lib/rabbitmq",
        "mode=0755",
        "mode=0700",
        "chmod 0700 /var/lib/rabbitmq",
        ("rabbitmq: /var/lib/rabbitmq",),
    ),
    Row(
        "rabbitmq",
        "/var/lib/rabbitmq/mnesia",
        "mode=0750",
        "mode=0777",
        "chmod 0777 /var/lib/rabbitmq/mnesia",
        ("rabbitmq: {{ rabbitmq_data_directory }}",),
    ),
    Row(
        "rabbitmq",
        "/var/log/rabbitmq",
        "mode=0755",
        "mode=0711",
        "chmod 0711 /var/log/rabbitmq",
        ("rabbitmq: /var/log/rabbitmq",),
    ),
    Row(
        "rabbitmq",
        "/etc/rabbitmq/conf.d/50-celeryops.conf",
        "heartbeat = 60",
        "heartbeat = 600",
        "edit 's/^heartbeat = .*/heartbeat = 600/' /etc/rabbitmq/conf.d/50-celeryops.conf",
        ("rabbitmq: /etc/rabbitmq/conf.d/50-celeryops.conf",),
    ),
    Row(
        "rabbitmq",
        "/etc/rabbitmq/rabbitmq-env.conf",
        "lines",
        "absent",
        "cp -p /etc/rabbitmq/rabbitmq-env.conf /root/; rm /etc/rabbitmq/rabbitmq-env.conf",
        ("rabbitmq: /etc/rabbitmq/rabbitmq-env.conf",),
    ),
    Row(
        "rabbitmq",
        f"{UNITS}/rabbitmq-server.service.d/celeryops.conf",
        "owner=0",
        "owner=1",
        f"chown daemon {UNITS}/rabbitmq-server.service.d/celeryops.conf",
        ("rabbitmq: /etc/systemd/system/{{ __rabbitmq_service }}.service.d/celeryops.conf",),
    ),
    Row(
        "rabbitmq",
        f"{UNITS}/epmd.socket.d/celeryops.conf",
        "lines",
        "absent",
        f"rm {UNITS}/epmd.socket.d/celeryops.conf",
        ("rabbitmq: /etc/systemd/system/epmd.socket.d/celeryops.conf",),
    ),
    Row(
        "rabbitmq",
        f"{UNITS}/rabbitmq-server.service.d",
        "group=0",
        "group=1",
        f"chgrp daemon {UNITS}/rabbitmq-server.service.d",
        ("rabbitmq: /etc/systemd/system/{{ __rabbitmq_service }}.service.d",),
    ),
    Row(
        "rabbitmq",
        f"{UNITS}/epmd.socket.d",
        "mode=0755",
        "mode=0777",
        f"chmod 0777 {UNITS}/epmd.socket.d",
        ("rabbitmq: /etc/systemd/system/epmd.socket.d",),
    ),
    Row(
        "rabbitmq",
        "/etc/rabbitmq/conf.d",
        "mode=0750",
        "mode=0755",
        "chmod 0755 /etc/rabbitmq/conf.d",
        ("rabbitmq: /etc/rabbitmq/conf.d",),
    ),
    Row(
        "rabbitmq",
        "/etc/rabbitmq/conf.d/99-local.conf",
        "absent",
        "a file",
        "echo 'log.console = true' >/etc/rabbitmq/conf.d/99-local.conf",
        ("rabbitmq: Move aside what changes the service and is not declared",),
    ),
    Row(
        "rabbitmq",
        "/etc/rabbitmq/advanced.config",
        "absent",
        "a file",
        "echo '[].' >/etc/rabbitmq/advanced.config",
        ("rabbitmq: Move aside what changes the service and is not declared",),
    ),
    Row(
        "rabbitmq",
        ".erlang.cookie",
        "mode=0400",
        "mode=0600",
        "chmod 0600 /var/lib/rabbitmq/.erlang.cookie",
        ("rabbitmq: Keep the Erlang cookie private",),
    ),
    Row(
        "rabbitmq",
        ".erlang.cookie",
        SECRET,
        SECRET,
        "echo weak >/var/lib/rabbitmq/.erlang.cookie",
        ("rabbitmq: Make an Erlang cookie where it is missing or weak",),
        # The node does not answer rabbitmqctl meanwhile, which hides what only that shows.
        round=5,
    ),
    Row(
        "rabbitmq",
        "package rabbitmq-server",
        "install",
        "hold",
        "apt-mark --quiet hold rabbitmq-server",
        ("server: Allow upgrades of the package, or hold it back",),
        layer="package",
    ),
    Row(
        "rabbitmq",
        "service rabbitmq-server",
        "enabled",
        "disabled",
        "systemctl disable --quiet rabbitmq-server",
        ("server: Enable and start the service",),
        layer="runtime",
    ),
    Row(
        "rabbitmq",
        "guest",
        "absent",
        "administrator",
        """api PUT users/guest '{"password": "guest", "tags": "administrator"}'""",
        ("rabbitmq: users",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "intruder",
        "absent",
        "administrator",
        """api PUT users/intruder '{"password": "intruder-7", "tags": "administrator"}'""",
        ("rabbitmq: users",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "users monitoring",
        "",
        "",
        """api PUT users/monitoring '{"password": "another-one", "tags": "monitoring"}'""",
        ("rabbitmq: users",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "celery/client",
        r"^celery\.reply\..*$",
        ".*",
        """api PUT permissions/celery/client '{"configure": ".*", "write": ".*", "read": ".*"}'""",
        ("rabbitmq: permissions",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "celery/client/celery.dlx",
        "absent",
        ".*",
        """api PUT topic-permissions/celery/client '{"exchange": "celery.dlx", "write": ".*", "read": ".*"}'""",
        ("rabbitmq: topic_permissions",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "policies celery/celery.journal",
        "message-ttl",
        "message-ttl=1000",
        "api PUT policies/celery/celery.journal"
        """ '{"pattern": "^celery.journal$", "apply-to": "queues", "definition": {"message-ttl": 1000}}'""",
        ("rabbitmq: policies",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "policies celery/late",
        "absent",
        "max-length",
        """api PUT policies/celery/late '{"pattern": ".*", "priority": -1, "definition": {"max-length": 9}}'""",
        ("rabbitmq: policies",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "exchanges celery/celery.dlx",
        "topic",
        "absent",
        "api DELETE exchanges/celery/celery.dlx",
        ("rabbitmq: exchanges",),
        layer="object",
        more=("bindings celery/celery.dlx", "bindings celery/celery.refused"),
    ),
    Row(
        "rabbitmq",
        "queues celery/audit",
        "max-length",
        "absent",
        "api DELETE queues/celery/audit",
        ("rabbitmq: queues",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "bindings celery/celery.results",
        "",
        "absent",
        "api DELETE bindings/celery/e/celery.results/q/celery.journal/celery.journal",
        ("rabbitmq: bindings",),
        layer="object",
    ),
    Row(
        "rabbitmq",
        "global_parameters celery.results.partitions.celery",
        "16",
        "absent",
        "api DELETE global-parameters/celery.results.partitions.celery",
        ("rabbitmq: global_parameters",),
        layer="object",
        # A run knows its own deployment by it, and deletes what others have declared nowhere else.
        round=2,
    ),
)

# Deployments with TLS.
TLS = (
    Row(
        "redis",
        "/etc/redis/tls",
        "mode=0750",
        "mode=0755",
        "chmod 0755 /etc/redis/tls",
        ("redis: {{ __redis_tls_folder }}",),
    ),
    Row(
        "redis",
        "/etc/redis/tls/ca.pem",
        "mode=0640",
        "mode=0666",
        "chmod 0666 /etc/redis/tls/ca.pem",
        ("redis: {{ __redis_tls_ca_file }}",),
    ),
    Row(
        "redis",
        "/etc/redis/tls/server-",
        SECRET,
        SECRET,
        "for file in /etc/redis/tls/server-*.pem; do echo >>$file; done",
        ("redis: {{ __redis_tls_file }}",),
    ),
    Row(
        "redis",
        "/etc/redis/tls/server.pem",
        "/etc/redis/tls/server-",
        "/etc/redis/tls/ca.pem",
        "ln -sfn /etc/redis/tls/ca.pem /etc/redis/tls/server.pem",
        ("redis: {{ __redis_tls_folder }}/server.pem",),
    ),
    Row(
        "redis",
        "/etc/redis/tls/server-old.pem",
        "absent",
        "file",
        "echo old >/etc/redis/tls/server-old.pem",
        ("redis: Remove certificates that are no longer used",),
    ),
    Row(
        "rabbitmq",
        "/etc/rabbitmq/tls",
        "mode=0750",
        "mode=0755",
        "chmod 0755 /etc/rabbitmq/tls",
        ("rabbitmq: {{ __rabbitmq_tls_folder }}",),
    ),
    Row(
        "rabbitmq",
        "/etc/rabbitmq/tls/ca.pem",
        "mode=0640",
        "mode=0666",
        "chmod 0666 /etc/rabbitmq/tls/ca.pem",
        ("rabbitmq: {{ __rabbitmq_tls_ca_file }}",),
    ),
    Row(
        "rabbitmq",
        "/etc/rabbitmq/tls/server.pem",
        SECRET,
        SECRET,
        "echo >>/etc/rabbitmq/tls/server.pem",
        ("rabbitmq: {{ __rabbitmq_tls_file }}",),
    ),
    Row(
        "worker",
        "/etc/celery/tls",
        "mode=0750",
        "mode=0755",
        "chmod 0755 /etc/celery/tls",
        ("worker: {{ __worker_tls_folder }}",),
    ),
    Row(
        "worker",
        "/etc/celery/tls/redis-ca.pem",
        "mode=0640",
        "mode=0666",
        "chmod 0666 /etc/celery/tls/redis-ca.pem",
        ("worker: {{ __worker_tls_folder }}/redis-ca.pem",),
    ),
    Row(
        "worker",
        "/etc/celery/tls/rabbitmq-ca.pem",
        "(no such line)",
        "# mine",
        "echo '# mine' >>/etc/celery/tls/rabbitmq-ca.pem",
        ("worker: {{ __worker_tls_folder }}/rabbitmq-ca.pem",),
    ),
    Row(
        "worker",
        "/etc/celery/tls/client.pem",
        SECRET,
        SECRET,
        "echo >>/etc/celery/tls/client.pem",
        ("worker: {{ __worker_tls_folder }}/client.pem",),
    ),
)

WORKER = (
    Row(
        "worker",
        "package python3-venv",
        "installed",
        "not installed",
        "dpkg --remove --force-depends python3-venv",
        ("worker: Install Debian's packages",),
        layer="package",
    ),
    Row(
        "worker",
        "user celery",
        "",
        "",
        "usermod --shell /bin/bash celery",
        ("worker: Add the user",),
        layer="object",
    ),
    Row(
        "worker",
        "/etc/celery",
        "mode=0750",
        "mode=0777",
        "chmod 0777 /etc/celery",
        ("worker: {{ __worker_config }}",),
    ),
    Row(
        "worker",
        "/opt/celery/environments",
        "mode=0755",
        "mode=0775",
        "chmod 0775 /opt/celery/environments",
        ("worker: {{ __worker_environments }}",),
    ),
    Row(
        "worker",
        "/etc/celery/celeryconfig.py",
        "task_acks_late = True",
        "task_acks_late = False",
        "edit 's/^task_acks_late = .*/task_acks_late = False/' /etc/celery/celeryconfig.py",
        ("worker: {{ __worker_config }}/celeryconfig.py",),
    ),
    Row(
        "worker",
        "/etc/celery/celery.env",
        SECRET,
        SECRET,
        "echo EXTRA=1 >>/etc/celery/celery.env",
        ("worker: {{ __worker_config }}/celery.env",),
    ),
    Row(
        "worker",
        "/etc/celery/worker@slow.env",
        "lines",
        "absent",
        "rm /etc/celery/worker@slow.env",
        ("worker: __worker_instance_files",),
    ),
    Row(
        "worker",
        f"{UNITS}/celery-worker@.service",
        "KillMode=mixed",
        "KillMode=control-group",
        f"edit 's/^KillMode=.*/KillMode=control-group/' {UNITS}/celery-worker@.service",
        ("worker: {{ __worker_units }}/celery-worker@.service",),
    ),
    Row(
        "worker",
        f"{UNITS}/celery-beat.service",
        "RestartSec=3",
        "RestartSec=30",
        f"edit 's/^RestartSec=.*/RestartSec=30/' {UNITS}/celery-beat.service",
        ("worker: {{ __worker_units }}/celery-beat.service",),
    ),
    Row(
        "worker",
        f"{UNITS}/celery-worker@default.service.d/override.conf",
        "absent",
        "a file",
        f"mkdir -p {UNITS}/celery-worker@default.service.d; "
        f"printf '[Service]\\nNice=5\\n' >{UNITS}/celery-worker@default.service.d/override.conf",
        ("worker: Move aside what changes the services and is not declared",),
    ),
    Row(
        "worker",
        "/usr/local/sbin/celery",
        "mode=0755",
        "mode=0644",
        "chmod 0644 /usr/local/sbin/celery",
        ("worker: /usr/local/sbin/celery",),
    ),
    Row(
        "worker",
        "/opt/celery/venv",
        "/opt/celery/environments/",
        "/opt/celery/environments/copy",
        # A copy, so that the workers go on.
        "cd /opt/celery; cp -al $(readlink venv) environments/copy; ln -sfn /opt/celery/environments/copy venv",
        ("worker: {{ worker_venv }}",),
    ),
    Row(
        "worker",
        "service celery-worker@slow",
        "started",
        "inactive",
        "systemctl stop celery-worker@slow",
        ("worker: Run the instances",),
        layer="runtime",
    ),
    Row(
        "worker",
        "service celery-beat",
        "enabled",
        "disabled",
        "systemctl disable --quiet celery-beat",
        ("worker: Run beat on one host only",),
        layer="runtime",
    ),
    Row(
        "worker",
        "service celery-worker@ghost",
        "disabled",
        "enabled",
        "cp /etc/celery/worker@default.env /etc/celery/worker@ghost.env; systemctl enable --quiet celery-worker@ghost",
        ("worker: Drain instances that are no longer declared",),
        layer="runtime",
    ),
    Row(
        "worker",
        "/etc/celery/worker@ghost.env",
        "absent",
        "file",
        "true",
        ("worker: Forget instances that are no longer declared",),
    ),
    *(
        Row(
            "worker",
            what,
            declared,
            actual,
            f"(cd $(readlink /opt/celery/venv)/lib/python3*/site-packages; {breaks})",
            ("worker: Find a virtual environment that is as it was built",),
            layer=layer,
            # Of its own, because the row about /opt/celery/venv leads it elsewhere.
            round=6,
            # It is built beside the one in use.
            more=("Make the virtual environment", "/opt/celery/venv"),
        )
        for what, declared, actual, layer, breaks in (
            (
                "/site-packages/payments/tasks.py",
                "as it was installed",
                "other content",
                "file",
                "echo 'raise RuntimeError' >>payments/tasks.py",
            ),
            ("/site-packages/stray.pth", "absent", "a file", "file", "echo 'import os' >stray.pth"),
            ("/site-packages/kombu/utils", "mode=0755", "mode=0700", "file", "chmod 0700 kombu/utils"),
            (
                "package six in /opt/celery/environments/",
                "1.",
                "1.0",
                "package",
                "mv six-*.dist-info six-1.0.dist-info; edit 's/^Version: .*/Version: 1.0/' six-1.0.dist-info/METADATA",
            ),
        )
    ),
)


def _mode(group: str, path: str, declared: str, actual: str, covers: str) -> Row:
    """A file or folder whose mode was changed by hand."""
    return Row(group, path, f"mode={declared}", f"mode={actual}", f"chmod {actual} {path}", (f"monitoring: {covers}",))


_MONITORING = "/etc/prometheus/celeryops"
_DAYS = "celeryops-certificate-days"
MONITORING = (
    _mode("monitoring", _MONITORING, "0750", "0755", "{{ __monitoring_folder }}"),
    _mode("monitoring", "/var/lib/prometheus/node-exporter", "0755", "0777", "{{ __monitoring_text_files }}"),
    Row(
        "monitoring",
        f"{_MONITORING}/token",
        SECRET,
        SECRET,
        f"echo another-one >{_MONITORING}/token",
        ("monitoring: {{ __monitoring_folder }}/token",),
    ),
    *(
        _mode("monitoring", f"{_MONITORING}/{name}", "0640", "0644", f"{{{{ __monitoring_folder }}}}/{name}")
        for name in (
            "door.yml",
            "door.pem",
            "door.key",
            "ca.pem",
            "extra-rules.yml",
            "prometheus.yml",
            "alertmanager.yml",
        )
    ),
    _mode("monitoring", f"{_MONITORING}/consoles", "0750", "0755", "{{ __monitoring_folder }}/consoles"),
    *(
        _mode(
            "monitoring",
            f"{_MONITORING}/consoles/{name}.html",
            "0640",
            "0644",
            f"{{{{ __monitoring_folder }}}}/consoles/{name}.html",
        )
        for name in ("celery", "task")
    ),
    Row(
        "monitoring",
        f"{_MONITORING}/rules.yml",
        "severity: critical",
        "severity: info",
        f"edit 's/severity: critical/severity: info/' {_MONITORING}/rules.yml",
        ("monitoring: {{ __monitoring_folder }}/rules.yml",),
    ),
    _mode("redis", f"{_MONITORING}/queues.lua", "0640", "0644", "{{ __monitoring_folder }}/queues.lua"),
    _mode("redis", f"{_MONITORING}/redis-exporter.env", "0600", "0644", "{{ __monitoring_folder }}/redis-exporter.env"),
    *(
        _mode(
            "redis" if unit == "prometheus-redis-exporter" else "monitoring",
            f"{UNITS}/{unit}.service.d{file}",
            right,
            wrong,
            f"{{{{ __monitoring_units }}}}/{unit}.service.d{file}",
        )
        for unit in (
            "prometheus-node-exporter",
            "prometheus-exporter-exporter",
            "prometheus-redis-exporter",
            "prometheus",
            "prometheus-alertmanager",
        )
        for file, right, wrong in (("", "0755", "0777"), ("/celeryops.conf", "0644", "0640"))
    ),
    _mode("monitoring", f"/usr/local/sbin/{_DAYS}", "0755", "0700", f"/usr/local/sbin/{_DAYS}"),
    *(
        _mode("monitoring", f"{UNITS}/{_DAYS}.{kind}", "0644", "0640", f"{{{{ __monitoring_units }}}}/{_DAYS}.{kind}")
        for kind in ("service", "timer")
    ),
    Row(
        "monitoring",
        "service prometheus-alertmanager",
        "started",
        "inactive",
        "systemctl stop prometheus-alertmanager",
        ("monitoring: Run the services",),
        layer="runtime",
    ),
    Row(
        "monitoring",
        f"service {_DAYS}.timer",
        "started",
        "inactive",
        f"systemctl stop {_DAYS}.timer",
        ("monitoring: Check the certificates every hour",),
        layer="runtime",
    ),
)

# What a package that is gone, a plugin that is off, a changed administrator or a missing vhost hides.
HIDING = (
    Row(
        "redis",
        "package redis-server",
        "installed",
        "not installed",
        "dpkg --remove --force-depends redis-server",
        ("server: Install the package",),
        layer="package",
        round=2,
    ),
    Row(
        "rabbitmq",
        "/etc/rabbitmq/enabled_plugins",
        "rabbitmq_management",
        "[].",
        # Below root's ordinary umask, or the command makes a file that it cannot read itself.
        "(umask 022; rabbitmq-plugins --quiet disable --all)",
        ("rabbitmq: /etc/rabbitmq/enabled_plugins",),
        round=3,
        # And its owner, now root. RabbitMQ takes back the interval at which the management wants its statistics.
        more=("/etc/rabbitmq/enabled_plugins", "Report what cannot be compared", "setting collect_statistics_interval"),
    ),
    Row(
        "redis",
        "Bring a running Redis to its declaration",
        "",
        "WRONGPASS",
        "r ACL SETUSER admin resetpass '>another-one'",
        ("redis: users",),
        layer="runtime",
        round=3,
    ),
    Row(
        "rabbitmq",
        "Report what cannot be compared in check mode",
        "",
        "does not let admin in",
        """api PUT users/admin '{"password": "another-one", "tags": "administrator"}'""",
        ("rabbitmq: Import the administrator", "rabbitmq: Report what cannot be compared in check mode"),
        layer="runtime",
        round=4,
    ),
    Row(
        "rabbitmq",
        "vhosts celery",
        "{}",
        "absent",
        "api DELETE vhosts/celery",
        ("rabbitmq: vhosts",),
        layer="object",
        round=2,
        more=("celery/", "celery.results"),
    ),
)

ROWS = REDIS + RABBITMQ + TLS + WORKER + MONITORING + HIDING

# Managing tasks that no row can break, and why.
EXEMPT = {
    "server: Install the package with fresh package lists": "the second try of the task before it",
    "worker: Install Debian's packages with fresh package lists": "the second try of the task before it",
    "redis: Keep the kernel settings": "the kernel of a container belongs to its host",
    "redis: Apply kernel settings that have drifted": "the kernel of a container belongs to its host",
    "redis: Restart for what cannot be changed live": "announces a handler; the finding is that of the task before it",
    "rabbitmq: Make RabbitMQ read its certificate again": "test_certificates.py of the stack breaks it",
    "rabbitmq: Remove key and certificate that are not used": "of hosts without TLS",
    "monitoring: Install Debian's packages": "its like is tried with Redis",
    "monitoring: Install Debian's packages with fresh package lists": "the second try of the task before it",
    "worker: Add the group": "the primary group of a user cannot be deleted",
    "worker: Keep the last ones, to go back to, and remove the others": "follows from another environment",
    "worker: Write down which release it serves": "follows from another environment",
    "worker: Stop beat on the other hosts first": "each of these hosts has its own finding",
}
# Tasks of these files make what one other task declares, or are handlers' doing.
EXEMPT_FILES = {
    "monitoring/tasks/export.yml": "writes to the control node, when asked to",
    "monitoring/tasks/restart.yml": "does what a handler asks for",
    "rabbitmq/tasks/plugins.yml": "does what a handler asks for",
    **dict.fromkeys(
        (f"{role}/tasks/remove.yml" for role in ("monitoring", "rabbitmq", "redis", "server", "worker")),
        "of the remove playbook: nothing is declared afterwards",
    ),
    "server/tasks/restart.yml": "does what a handler asks for",
    "worker/tasks/release_back.yml": "of the release playbook: puts back what it has changed",
    "worker/tasks/release_prepare.yml": "of the release playbook: goes through the steps of the role",
    "worker/tasks/environment.yml": "builds what 'Take the virtual environment into use' declares",
}
