"""``python -m perf.contenders.asyncio_server JOB [CERTIFICATE]``"""

import asyncio
import sys

from perf.contenders.protocols import serve

asyncio.run(serve(*sys.argv[1:]))
