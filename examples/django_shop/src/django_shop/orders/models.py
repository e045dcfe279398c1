# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""What is kept of an order."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Order(models.Model):
    """A quantity of one item; amounts are in cents, because money is not a floating-point number."""

    item = models.CharField(max_length=100)
    quantity = models.PositiveIntegerField()
    total = models.PositiveIntegerField(null=True)

    class Meta:
        """Names."""

        app_label = "orders"
        ordering: ClassVar[list[str]] = ["pk"]
