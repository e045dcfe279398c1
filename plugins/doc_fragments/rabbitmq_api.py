# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  url:
    description:
      - Base URL of the management API. The default is made of O(login_protocol), O(login_host) and O(login_port).
    type: str
  login_protocol:
    description:
      - Protocol of the management API. Not used with O(url).
    type: str
    choices: [http, https]
    default: http
  login_host:
    description:
      - Name or address of the management API. Not used with O(url).
    type: str
    default: 127.0.0.1
  login_port:
    description:
      - Port of the management API. Not used with O(url).
    type: int
    default: 15672
  username:
    description:
      - Name of the user. It needs the tag C(administrator); to read, C(monitoring) is enough.
    type: str
    required: true
    aliases: [login_user]
  password:
    description:
      - Password of the user.
    type: str
    required: true
    aliases: [login_password]
  validate_certs:
    description:
      - Whether the certificate of the server is verified, when O(url) is V(https).
    type: bool
    default: true
  ca_path:
    description:
      - File with the CA certificate of the server. Without it, that of the system.
    type: path
    aliases: [ca_cert, cacert]
  client_cert:
    description:
      - File with a certificate (PEM) that the server asks for.
    type: path
  client_key:
    description:
      - File with the key of O(client_cert), unless that file has it as well.
    type: path
  timeout:
    description:
      - Seconds that each request may take.
    type: float
    default: 30.0
"""
