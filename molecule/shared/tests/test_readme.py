"""The inventory of the README, as written but for the addresses of this scenario's hosts."""

from __future__ import annotations

import re

from stack import PROJECT, ROOT, STATE

testinfra_hosts = ["ansible://redis"]
SECRETS = {
    "redis": "REDIS_PASSWORD",
    "redis_admin": "REDIS_ADMIN_PASSWORD",
    "rabbitmq_admin": "RABBITMQ_ADMIN_PASSWORD",
    "rabbitmq_worker": "RABBITMQ_WORKER_PASSWORD",
    "rabbitmq_client": "RABBITMQ_CLIENT_PASSWORD",
    "rabbitmq_monitoring": "RABBITMQ_MONITORING_PASSWORD",
    "rabbitmq_letters": "RABBITMQ_LETTERS_PASSWORD",
}


def test_inventory_of_the_readme_works(ansible_playbook, addresses, secrets, tmp_path):
    text = re.search(r"<!-- inventory -->\n```yaml\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    text = text.replace("/srv/checkout/payments", str(ROOT / "examples" / "payments"))
    # The scenario has one worker host.
    text = text.replace(", worker2: {ansible_host: 10.0.0.14}", "")
    for group, documented in {"redis": "10.0.0.11", "rabbitmq": "10.0.0.12", "worker": "10.0.0.13"}.items():
        assert documented in text
        text = text.replace(documented, addresses[group])
    # The scenario's hosts have what the README says about TLS as well.
    tls = re.search(r"<!-- tls -->\n```yaml\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "tls.yml").write_text(tls)
    certificates = f"certificates_directory={STATE / 'tls' / PROJECT}"
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(text)
    environment = {variable: secrets[name] for name, variable in SECRETS.items()}
    arguments = ["--check", "--diff", "--user", "ops", "-e", f"@{tmp_path / 'tls.yml'}", "-e", certificates]
    done = ansible_playbook("site", *arguments, inventory=inventory, environment=environment)
    assert done.returncode == 0, done.stdout
    # Broker and result store are what the README's inventory declares, so nothing would change there.
    recap = dict(re.findall(r"^(\w+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.MULTILINE))
    assert (recap["broker1"], recap["results1"]) == ("0", "0"), done.stdout
    assert not [name for name, secret in secrets.items() if secret in done.stdout]
