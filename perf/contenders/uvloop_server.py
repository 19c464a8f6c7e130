"""``python -m perf.contenders.uvloop_server JOB [CERTIFICATE]``"""

import sys

import uvloop

from perf.contenders.protocols import serve

uvloop.run(serve(*sys.argv[1:]))
