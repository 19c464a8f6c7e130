"""A process of clients: ``python -m perf.soak.clients well_behaved|hostile --seconds S --seed N
--authority FILE PLACE=PORT...``

Prints what became of them as one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl

from perf.soak.hostile import HostileClients
from perf.soak.link import Target
from perf.soak.settings import Place
from perf.soak.well_behaved import WellBehavedClients

SIDES: dict[str, type[WellBehavedClients | HostileClients]] = {
    "well_behaved": WellBehavedClients,
    "hostile": HostileClients,
}


async def run(options: argparse.Namespace) -> None:
    """All of one side."""
    target = Target(
        {
            Place(name): int(port)
            for name, _, port in (word.partition("=") for word in options.ports)
        },
        ssl.create_default_context(cafile=options.authority),
    )
    side = SIDES[options.side](target, f"{options.seed} {options.side}", options.seconds)
    await side.run()
    print(json.dumps(side.report()), flush=True)


def main() -> None:
    """Until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("ports", nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--authority", required=True)
    asyncio.run(run(parser.parse_args()))


main()
