# Copyright (c) 2026, celeryops.hybrid contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Which view answers what."""

from __future__ import annotations

from django.urls import path

from django_shop.orders import views

urlpatterns = [
    path("orders", views.order, name="order"),
    path("results/<uuid:task_id>", views.result, name="result"),
]
