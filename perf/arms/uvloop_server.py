"""``python -m perf.arms.uvloop_server JOB [CERTIFICATE]``"""

import sys

import uvloop

from perf.arms.protocols import serve

uvloop.run(serve(*sys.argv[1:]))
