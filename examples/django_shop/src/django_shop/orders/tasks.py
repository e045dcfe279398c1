# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The task that prices orders."""

from __future__ import annotations

from celery import shared_task

from django_shop.orders.models import Order

PRICES = {"apple": 40, "book": 1999, "chair": 8900}


class UnknownItemError(Exception):
    """There is no price of such an item."""


@shared_task(name="django_shop.price_order")
def price_order(order_id: int) -> dict[str, int]:
    """Set what an order costs; doing it twice changes nothing.

    Raises:
        UnknownItemError: the shop does not sell this.
    """
    order = Order.objects.get(pk=order_id)
    if order.item not in PRICES:
        raise UnknownItemError(f"the shop sells no {order.item}")
    order.total = PRICES[order.item] * order.quantity
    order.save(update_fields=["total"])
    return {"order": order.pk, "total": order.total}
