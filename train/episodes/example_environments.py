"""Environments of the example run files."""

from __future__ import annotations

import re
from typing import Any

from counterpoint.train.episodes.environment import Context, Done, Environment, ToolError
from counterpoint.train.episodes.example_tools import calculator


class Calculator(Environment):
    """A pocket calculator with a display: each rollout has its own, and the answer has to be read from it."""

    def reset(self, row: dict[str, Any], ctx: Context) -> None:
        self.display: str | None = None
        self.keys = 0

    def calculator(self, expression: str) -> str:
        """Works out an expression."""
        self.keys += 1
        try:
            self.display = calculator(expression)
        except (ValueError, SyntaxError, ZeroDivisionError) as error:
            raise ToolError(str(error)) from None
        return self.display

    def respond(self, final: str, ctx: Context) -> str | None:
        return None if self.display is not None or ctx.turn > 1 else "Use the calculator."

    def reward(self, rollout: Any, ctx: Context) -> dict[str, float]:
        target = str(rollout.row["answer"])
        said = re.findall(r"-?\d+", rollout.final or "")
        return {"right": float(self.display == target and said[-1:] == [target]), "keys": -0.05 * self.keys}


DONE = "###DONE###"
POLICY = (
    "You work for a shop. Look an order up before you change it. What came broken is refunded, what is old is not. "
    "A refund needs the customer's consent."
)
PERSONA = (
    "You are a customer, not an assistant. Your case: {case} Say one short thing at a time, reveal facts only when "
    f"asked. When your case is settled, or cannot be, write {DONE} alone."
)


class Shop(Environment):
    """A shop with orders, a policy, and a customer: a script, or a model behind `rollout.user` (`user: NAME` in the
    settings). A refund counts where the order was looked up before it, and the customer had agreed to its amount.

    A row: `case`, what the customer asks; `order`, `amount`, what is to be refunded, 0 where nothing is due; `orders`,
    by number, each with item and price.
    """

    seconds = 60.0

    def setup(self, settings: dict[str, Any]) -> None:
        self.shared = {"user": settings.get("user")}

    def reset(self, row: dict[str, Any], ctx: Context) -> list[dict[str, str]]:
        self.row = row
        self.orders = {number: {**order, "refunded": 0} for number, order in row["orders"].items()}
        self.looked_up: set[str] = set()
        self.agreed: set[tuple[str, float]] = set()
        self.proper = True
        self.said = [{"role": "system", "content": PERSONA.format(case=row["case"])}]
        opening = row["case"] if self.shared["user"] is None else self._played("Hello! How can I help you?", ctx)
        return [{"role": "system", "content": POLICY}, {"role": "user", "content": opening}]

    def find_order(self, order_id: str) -> dict[str, Any]:
        """Shows an order: item, price, refunded."""
        order = self._order(order_id)
        self.looked_up.add(order_id)
        return order

    def refund(self, order_id: str, amount: float) -> str:
        """Refunds an amount of an order to the customer."""
        order = self._order(order_id)
        if not 0 < amount <= order["price"] - order["refunded"]:
            raise ToolError("not what was paid")
        self.proper = self.proper and order_id in self.looked_up and (order_id, float(amount)) in self.agreed
        order["refunded"] += amount
        return f"refunded {amount:.2f}"

    def transfer_to_human(self, reason: str) -> str:
        """Gives the case to a person; ends the conversation."""
        raise Done("transferred")

    def respond(self, final: str, ctx: Context) -> str | None:
        offers = [(number, float(order["price"])) for number, order in self.orders.items()]
        offered = [(number, price) for number, price in offers if number in final and _names(final, price)]
        settled = any(order["refunded"] for order in self.orders.values())
        if self.shared["user"] is not None:
            said = self._played(final, ctx)
            # What the customer agrees to is what was offered to them just now, of an order that was looked up.
            if re.match(r"\W*(yes|sure|please do|go ahead|i agree)\b", said, re.IGNORECASE):
                self.agreed |= {offer for offer in offered if offer[0] in self.looked_up}
            return None if DONE in said else said
        if settled:
            return None
        wanted = [(n, p) for n, p in offered if n == self.row["order"] and p == self.row["amount"]]
        if wanted and "?" in final and self.row["order"] in self.looked_up:
            self.agreed |= set(wanted)
            return "Yes, please do."
        return "What will you do about it?" if ctx.turn < 3 else None

    def reward(self, rollout: Any, ctx: Context) -> dict[str, float]:
        due = {number: self.row["amount"] if number == self.row["order"] else 0 for number in self.orders}
        right = all(order["refunded"] == due[number] for number, order in self.orders.items())
        told = bool(rollout.final) and (not self.row["amount"] or _names(rollout.final, self.row["amount"]))
        # Where nothing is due, the order has to be looked up to know it: silence and a transfer solve no case.
        looked_up = self.row["order"] in self.looked_up
        solved = right and told and self.proper and looked_up and rollout.ended == "return"
        return {"solved": float(solved), "looked_up": float(looked_up)}

    def _order(self, order_id: str) -> dict[str, Any]:
        if order_id not in self.orders:
            raise ToolError(f"no order {order_id}")
        return self.orders[order_id]

    def _played(self, heard: str, ctx: Context) -> str:
        """What the user model says."""
        self.said.append({"role": "user", "content": heard})
        text = ctx.ask(self.said, model=self.shared["user"], seed=ctx.seed, max_tokens=80)
        self.said.append({"role": "assistant", "content": text})
        return text


def _names(text: str, amount: float) -> bool:
    """Whether a text names an amount: 30 is in `30`, `30.00` and `$30`, not in `300` or `130`."""
    return re.search(rf"(?<![\d.]){amount:g}(?:\.0+)?(?![\d]|\.\d)", text) is not None
