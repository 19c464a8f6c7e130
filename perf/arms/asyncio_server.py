"""``python -m perf.arms.asyncio_server JOB [CERTIFICATE]``"""

import asyncio
import sys

from perf.arms.protocols import serve

asyncio.run(serve(*sys.argv[1:]))
