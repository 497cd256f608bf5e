"""OpenSession on a warm partition with simulated evidence, the SDK's verification included."""

import time
from pathlib import Path
from typing import Final

from benchmarks.report import Row, percentile, verdict
from bulkhead.client import AsyncBulkhead

WARM_UP: Final = 10
OPENS: Final = 200


async def measure(client_config: Path) -> list[Row]:
    """Return the row of opens; a session stays open, so that the partition stays."""
    took_ms = []
    async with AsyncBulkhead.from_profile("acme", path=client_config) as client, client.open_session():
        for number in range(WARM_UP + OPENS):
            started = time.perf_counter()
            session = await client.open_session()
            if number >= WARM_UP:
                took_ms.append((time.perf_counter() - started) * 1e3)
            await session.close()
    p50, p99 = percentile(took_ms, 50), percentile(took_ms, 99)
    return [
        Row(
            "OpenSession, warm partition, simulated evidence, audit commits and the SDK's verification included",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms ({OPENS} opens)",
            goal="p50 <= 15 ms, p99 <= 50 ms",
            verdict=verdict(met=p50 <= 15.0 and p99 <= 50.0),
        )
    ]
