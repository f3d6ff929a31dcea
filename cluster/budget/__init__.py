"""Rates and budgets: what a tenant or a key may use, reserved before and settled after."""
