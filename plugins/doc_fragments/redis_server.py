# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  host:
    description:
      - Name or address of the server.
    type: str
    aliases: [login_host]
    default: 127.0.0.1
  port:
    description:
      - TCP port of the server.
    type: int
    aliases: [login_port]
    default: 6379
  username:
    description:
      - ACL user with the rights of an administrator.
    type: str
    aliases: [login_user]
    required: true
  password:
    description:
      - Password of the user.
    type: str
    aliases: [login_password]
    required: true
  tls:
    description:
      - Whether the port speaks TLS. Then it is TLS 1.2 or newer, and the certificate of the server is always verified.
    type: bool
    default: false
  server_hostname:
    description:
      - Name or address that the certificate of the server must be for. Without it, O(host).
    type: str
  ca_path:
    description:
      - File with the CA certificate of the server. Without it, those of the system.
    type: path
    aliases: [ca_certs]
  client_cert:
    description:
      - File with the certificate to show to the server, and with its key unless O(client_key) names it.
    type: path
  client_key:
    description:
      - File with the key of O(client_cert).
    type: path
  wait:
    description:
      - Seconds to wait until the server answers, for example while it loads its data after a restart.
    type: float
    default: 0.0
"""
